"""Vectors of text, FAISS and BM25: from a query to the ids of its nearest chunks."""
