"""Documents to a corpus folder: chunks, vectors, an index, neighbors, and how it changes."""
