"""Find the chunks of a corpus that are nearest to a text that a person typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.corpus.corpus import Corpus
from retro_demo.corpus.unknown_text import doubt_of_query, doubt_of_statistics
from retro_demo.errors import UserError
from retro_demo.retrieval.lexical import ByVectors
from retro_demo.retrieval.neighbors import Retriever


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


@dataclass(frozen=True)
class Database:
    """What generation retrieves from: a corpus and the retriever over its training chunks."""

    corpus: Corpus
    retriever: Retriever


def describe_neighbors(corpus: Corpus, ids: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """ids and scores (K,) -> a dict for each neighbor: chunk, document, title, score, text, continuation."""
    neighbors = []
    for chunk, score in zip(ids.tolist(), scores.tolist(), strict=True):
        if chunk < 0:
            continue
        document = corpus.documents[corpus.chunks.document[chunk]]
        text, continuation = np.split(corpus.chunks.with_continuation(np.array(chunk)), 2)
        neighbors.append(
            {
                "chunk": chunk,
                "document": document.id,
                "title": document.title,
                "score": round(score, 4),
                "text": corpus.tokenizer.decode(text.tolist()),
                "continuation": corpus.tokenizer.decode(continuation.tolist()),
            }
        )
    return neighbors
