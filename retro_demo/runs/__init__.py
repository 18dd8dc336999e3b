"""The folder of a run: planned, saved, loaded, watched, and where its figures come from."""
