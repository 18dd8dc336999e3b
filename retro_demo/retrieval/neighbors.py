"""What a neighbor list is, and what every retriever can do.

The order of neighbors (score, then id), their comparison, and which chunks may be neighbors (`excluded`) are
decided here. This module does not know vectors, words or FAISS: retrieval/dense.py and retrieval/bm25.py find
neighbors.

Shapes: Q queries, K neighbors, C chunk length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SCORE_STEP = 1e-6  # float32 sums differ by less from one batch size to another: seldom across a border of it
NO_KEY = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Neighbors:
    """The nearest chunks of Q queries, best first; equal scores stand in the order of the ids.

    ids int64 (Q, K), -1 = none; scores float32 (Q, K), -inf = none. A dense score is the cosine, a
    lexical one the BM25 score (a TitledRetriever scales those of its second way of asking), rounded to
    1e-6, so that float noise decides no tie.
    """

    ids: np.ndarray
    scores: np.ndarray


class Retriever(Protocol):
    """Finds the chunks of one corpus that are nearest to a chunk of tokens."""

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        """tokens (Q, C) int, 0 = padding -> the k nearest of each.

        own (Q,) are the queries' chunk ids where they come from this same corpus: what that
        excludes is never given back. None: the queries come from outside, nothing is excluded.
        """
        ...


class EndOfQuery(Retriever):
    """Another retriever, asked for the last tokens of each query only."""

    def __init__(self, retriever: Retriever, count: int) -> None:
        self.whole, self.count = retriever, count

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        """As `Retriever.search`; padding behind the tokens of a query does not count."""
        ends = np.zeros((len(tokens), self.count), tokens.dtype)
        for end, row in zip(ends, tokens, strict=True):
            last = row[row != 0][-self.count :]
            end[: len(last)] = last
        return self.whole.search(ends, k, own=own)


def end_of_query(retriever: Retriever, count: int) -> Retriever:
    """The retriever, asked for the last `count` tokens of a query; 0: as it is asked already."""
    whole = retriever.whole if isinstance(retriever, EndOfQuery) else retriever
    return EndOfQuery(whole, count) if count else retriever


def rank(ids: np.ndarray, scores: np.ndarray, k: int) -> Neighbors:
    """The k best of each row of candidates (Q, K'); ids < 0 are no candidates."""
    rounded = np.rint(np.where(ids < 0, 0, scores).astype(np.float64) / SCORE_STEP) * SCORE_STEP
    # One integer orders by score, then by smaller id: 32 bits each.
    keys = (_ordered(rounded.astype(np.float32) + 0).astype(np.int64) << 32) | (0xFFFFFFFF - ids)
    keys = np.where(ids < 0, NO_KEY, keys)
    if k < keys.shape[1]:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    keys = np.sort(keys, axis=1)[:, ::-1]
    keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=NO_KEY)
    none = keys == NO_KEY
    found = np.where(none, -1, 0xFFFFFFFF - (keys & 0xFFFFFFFF))
    best = _ordered((keys >> 32).astype(np.int32)).view(np.float32)
    return Neighbors(found, np.where(none, np.float32(-np.inf), best))


def _ordered(values: np.ndarray) -> np.ndarray:
    """float32, or its bits -> int32 that sort as the floats do; the same step leads back."""
    bits = np.ascontiguousarray(values).view(np.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def joined(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """The neighbors of several blocks of queries, one below the other; (0, K) where there are none."""
    if not parts:
        return Neighbors(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Neighbors(
        np.concatenate([part.ids for part in parts]), np.concatenate([part.scores for part in parts])
    )


def excluded(
    document: np.ndarray, cluster: np.ndarray, window: int, own: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Candidates (Q, K) that are of the document of own (Q,), of a near-duplicate of it, or too near.

    `window` > 0 is for one document cut into sections: chunks at most so far from the query, and
    those whose continuation is, would show it what follows.
    """
    same = cluster[document[candidates]] == cluster[document[own]][:, None]
    if not window:
        return same
    return same | (np.abs(candidates - own[:, None]) <= window)
