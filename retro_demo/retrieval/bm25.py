"""Words in common -> neighbors: BM25 over token ids or words, and BM25 over dense candidates.

This module decides what a term is, the file of the BM25 index and its search. bm25s weighs the terms. The
search is our own because it must leave excluded chunks out, and because all chunks of a corpus are
queries at once. It does not know which chunks are too close to each other: it is told.

Shapes: Q queries, K neighbors, C chunk length, N stored chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import bm25s
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from retro_demo.files import beside
from retro_demo.retrieval.dense import DenseRetriever
from retro_demo.retrieval.neighbors import Neighbors, Retriever, joined, rank
from retro_demo.tokenizer import SPECIALS, WORD, Tokenizer

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

FORMAT = "2"  # of the file, and of what counts as a term
FREQUENT = 8  # a term in more than 1 / FREQUENT of the chunks is added to all of them: faster so
MARGIN = 16
BLOCK = 64
CANDIDATES = 100  # dense candidates that BM25 puts into a new order

Terms = Callable[[np.ndarray], list[str]]
"""Token ids (C,) of a chunk, 0 = padding -> the terms that BM25 counts."""


def token_terms(tokens: np.ndarray, silent: Collection[int] = range(len(SPECIALS))) -> list[str]:
    """The token ids as they are, without those that stand for no text: padding and end of text."""
    return [str(token) for token in tokens.tolist() if token not in silent]


def word_terms(tokenizer: Tokenizer) -> Terms:
    """The words of a chunk, lower-cased, cut where duplicates are counted (corpus.WORD)."""

    def words(tokens: np.ndarray) -> list[str]:
        return WORD.findall(tokenizer.decode(tokens.tolist()).lower())

    return words


class LexicalIndex:
    """The BM25 weight of each term in each stored chunk (Lucene's variant, k1 1.5, b 0.75).

    `weights` and `places` hold the postings of term t at starts[t] : starts[t + 1]; a place is a
    row of `ids` (N,), the stored chunks in ascending order.
    """

    def __init__(
        self,
        ids: np.ndarray,
        vocabulary: Sequence[str],
        weights: np.ndarray,
        places: np.ndarray,
        starts: np.ndarray,
    ) -> None:
        """Use `build` or `load`."""
        self.ids, self.vocabulary = ids, vocabulary
        self._weights, self._places, self._starts = weights, places, starts
        self._number = {term: number for number, term in enumerate(vocabulary)}
        self._frequent: dict[int, np.ndarray] = {}
        for number in np.flatnonzero(np.diff(starts) * FREQUENT > len(ids)).tolist():
            row = self._frequent[number] = np.zeros(len(ids), np.float32)
            row[places[starts[number] : starts[number + 1]]] = weights[starts[number] : starts[number + 1]]

    @classmethod
    def build(cls, terms: Sequence[list[str]], ids: np.ndarray) -> LexicalIndex:
        """terms: those of each stored chunk; ids (N,) its number, ascending."""
        number: dict[str, int] = {}
        counted = [[number.setdefault(term, len(number)) for term in of_chunk] for of_chunk in terms]
        if not number:  # bm25s divides by the number of terms
            empty = np.zeros(0, np.int32)
            return cls(ids, [], empty.astype(np.float32), empty, np.zeros(1, np.int32))
        model = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
        model.index((counted, number), create_empty_token=False, show_progress=False)
        postings = model.scores
        return cls(ids, list(number), postings["data"], postings["indices"], postings["indptr"])

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the index to path with the fingerprint of what it was made from; all or nothing."""
        arrays = {
            "ids": self.ids,
            "weights": self._weights,
            "places": self._places,
            "starts": self._starts,
            "vocabulary": np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8),
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        with beside(path) as unfinished:
            save_file(contiguous, unfinished, metadata={"made_from": f"{FORMAT} {fingerprint}"})

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> LexicalIndex | None:
        """What `save` wrote; None where there is none, a torn one, or one made from something else."""
        try:
            with safe_open(path, "numpy") as file:
                if file.metadata() != {"made_from": f"{FORMAT} {fingerprint}"}:
                    return None
                array = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        words = array.pop("vocabulary").tobytes().decode()
        return cls(vocabulary=words.split("\n") if words else [], **array)

    def scores(self, terms: Sequence[str]) -> np.ndarray:
        """The BM25 score (N,) of every stored chunk for a query; a repeated term counts each time."""
        scores = np.zeros(len(self.ids), np.float32)
        # in one order whatever that of the query is: sums of floats depend on it
        for number in sorted(self._number[term] for term in terms if term in self._number):
            if number in self._frequent:
                scores += self._frequent[number]
            else:
                part = slice(self._starts[number], self._starts[number + 1])
                scores[self._places[part]] += self._weights[part]
        return scores


class LexicalRetriever(Retriever):
    """Neighbors by BM25: the more and the rarer the terms that two chunks share, the nearer.

    A chunk that shares no term with the query is no neighbor. Excluded chunks are left out by
    fetching more than k and filtering; a query that is still short fetches four times as many, in
    the end all, so it lacks a neighbor only where none is left.
    """

    def __init__(
        self, index: LexicalIndex, terms: Terms, excluded: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> None:
        """excluded: own (q,), candidates (q, k') -> bool (q, k')."""
        self.index, self._terms, self._excluded = index, terms, excluded

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        """As `Retriever.search`."""
        found = []
        for start in range(0, len(tokens), BLOCK):
            rows = range(start, min(start + BLOCK, len(tokens)))
            best = [self._best(tokens[row], k, None if own is None else own[row, None]) for row in rows]
            most = max(len(ids) for ids, _ in best)
            ids = np.array([np.pad(ids, (0, most - len(ids)), constant_values=-1) for ids, _ in best])
            scores = np.array([np.pad(scores, (0, most - len(scores))) for _, scores in best])
            found.append(rank(ids, scores, k))
        return joined(found, k)

    def _best(self, tokens: np.ndarray, k: int, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores, in no order, of allowed chunks; the k best for tokens (C,) are among them."""
        return self._best_by_terms(self._terms(tokens), k, own)

    def _best_by_terms(
        self, terms: Sequence[str], k: int, own: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = self.index.scores(terms)
        sharing = np.flatnonzero(scores)
        fetch = k + MARGIN
        while True:
            places = sharing
            if fetch < len(sharing):  # all that tie with the last one fetched come along
                places = sharing[scores[sharing] >= np.partition(scores[sharing], -fetch)[-fetch]]
            if own is not None:
                places = places[~self._excluded(own, self.index.ids[places][None])[0]]
            if len(places) >= k or fetch >= len(sharing):
                return self.index.ids[places], scores[places]
            fetch *= 4

    def rescore(self, tokens: np.ndarray, found: Neighbors, k: int) -> Neighbors:
        """The k best by BM25 among the neighbors found (Q, K') of tokens (Q, C)."""
        scores = np.zeros(found.ids.shape, np.float32)
        for place, row in enumerate(tokens):
            there = np.searchsorted(self.index.ids, np.maximum(found.ids[place], self.index.ids[0]))
            scores[place] = self.index.scores(self._terms(row))[there]
        return rank(found.ids, scores, k)


class HybridRetriever(Retriever):
    """The nearest 100 (or k) chunks by their embeddings, put into the order of BM25.

    Scores are BM25 scores; a dense candidate that shares no term stays, with score 0, at the end.
    """

    def __init__(self, dense: DenseRetriever, lexical: LexicalRetriever) -> None:
        self._dense, self._lexical = dense, lexical
        self.embedder = dense.embedder

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        """As `Retriever.search`."""
        candidates = self._dense.search(tokens, max(k, CANDIDATES), own=own)
        return self._lexical.rescore(tokens, candidates, k)

    def search_vectors(
        self, tokens: np.ndarray, vectors: np.ndarray, k: int, *, own: np.ndarray | None = None
    ) -> Neighbors:
        """As `search`, for queries (Q, C) that are embedded already: vectors (Q, E)."""
        candidates = self._dense.search_vectors(vectors, max(k, CANDIDATES), own=own)
        return self._lexical.rescore(tokens, candidates, k)


ByVectors = DenseRetriever | HybridRetriever
"""The retrievers that find nothing without an embedder; by name: BY_VECTORS of corpus/embedding.py."""
