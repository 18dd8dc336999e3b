"""Neighbors from a part of the database: what a smaller one would have given.

Documents are dropped, and the held-out chunks are searched anew in what is left. Parts are nested: the
documents of 5% are among those of 20%.

Shapes: N chunks, K neighbors, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro_demo.corpus.corpus import Corpus
from retro_demo.corpus.stored import retriever_over, search_stored
from retro_demo.retrieval.index import VectorIndex
from retro_demo.retrieval.lexical import LexicalIndex, Terms
from retro_demo.whole_files import load_array


@dataclass(frozen=True)
class Part:
    """A part of the database: its documents, chunk ids and tokens."""

    documents: int
    ids: np.ndarray
    tokens: int


def part_of_database(corpus: Corpus, percent: int, seed: int) -> Part:
    """`percent` of the documents that may be retrieved, at least one, drawn with the seed."""
    documents = np.flatnonzero(~corpus.held_out)
    order = np.random.default_rng([seed, 5]).permutation(documents)
    kept = order[: max(1, round(len(order) * percent / 100))]
    ids = np.flatnonzero(np.isin(corpus.chunks.document, kept))
    return Part(len(kept), ids, int((corpus.chunks.tokens[ids] != 0).sum()))


def search_part(corpus: Corpus, retriever: str, part: Part, queries: np.ndarray, k: int) -> np.ndarray:
    """A table (N, k) of chunk ids, -1 = none, filled for the chunk ids `queries` (Q,)."""

    def vectors() -> VectorIndex:
        stored = load_array(corpus.folder / "vectors.npy", mapped=True)[part.ids]
        return VectorIndex.build(np.asarray(stored), part.ids.astype(np.int64), factory="Flat")

    def words(terms: Terms) -> LexicalIndex:
        return LexicalIndex.build([terms(row) for row in corpus.chunks.tokens[part.ids]], part.ids)

    finder = retriever_over(corpus, retriever, vectors, words)
    table = np.full((len(corpus.chunks), k), -1, dtype=np.int64)
    table[queries] = search_stored(corpus, finder, queries, k).ids
    return table
