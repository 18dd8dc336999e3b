"""MARGE's own retrieval: passages, which of them are evidence for which, and re-indexing."""
