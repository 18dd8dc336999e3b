"""The networks of RETRO and MARGE and their configurations; torch alone, no files and no corpus."""
