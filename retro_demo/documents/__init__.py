"""What somebody uploads, read into documents: one file for each kind of file."""
