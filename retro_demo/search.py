"""Find the chunks of a corpus that are nearest to a text that a person typed."""

from __future__ import annotations

from typing import Any

import numpy as np

from retro_demo.corpus import Corpus
from retro_demo.errors import UserError
from retro_demo.generate import describe_neighbors
from retro_demo.lexical import ByVectors
from retro_demo.neighbors import Retriever
from retro_demo.unknown_text import doubt_of_query, doubt_of_statistics


def search(corpus: Corpus, retriever: Retriever, text: str, k: int) -> list[dict[str, Any]]:
    """The k nearest chunks of the index with document, score, text and continuation.

    The text may be of any length; unlike a chunk of a document it excludes nothing.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError("There is nothing to search for. Type a few words.")
    if type(k) is not int or not 1 <= k <= 100:
        raise UserError(f"You ask for {k} chunks; ask for 1 to 100.")
    found = retriever.search(np.array([corpus.tokenizer.encode(text)]), k)
    return describe_neighbors(corpus, found.ids[0], found.scores[0])


def search_doubt(corpus: Corpus, retriever: Retriever, text: str) -> str:
    """Why what this retriever finds may be unrelated to a text: its embedder does not know the corpus, or the
    text. "" where it knows both, or needs no embedder."""
    if not isinstance(retriever, ByVectors):
        return ""
    return doubt_of_statistics(corpus.manifest["statistics"]) or doubt_of_query(retriever.embedder, text)
