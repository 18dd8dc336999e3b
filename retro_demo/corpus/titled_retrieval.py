"""Retrieval with titles: BM25 over the words of a chunk and, some times over, of its document's title.

Whoever asks for a fact asks with a document's title and the last words of a text, not with all that came
before. So a query is its last few tokens and a title; in the Factbook the neighbors of such a query hold the
value that comes next in 80 to 98% of the facts, and those of a whole chunk in 6 to 16% where the database is
another edition (docs/science.md).

Shapes: Q queries, C tokens of a query, K neighbors, P tokens of a title, N chunks, D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retro_demo.corpus.store import Corpus
from retro_demo.retrieval.bm25 import LexicalIndex, LexicalRetriever, word_terms
from retro_demo.retrieval.neighbors import EndOfQuery, Neighbors, Retriever, joined, rank
from retro_demo.tokenizer import WORD

TIMES = 2  # that a word of the title counts


def titled_terms(corpus: Corpus) -> Callable[[np.ndarray], list[list[str]]]:
    """Tells the terms of stored chunks: their words, and those of their titles, which count more."""

    def terms_of(rows: np.ndarray) -> list[list[str]]:
        titles = [_words(document.title) * TIMES for document in corpus.documents]
        words = word_terms(corpus.tokenizer)
        tokens, document = corpus.chunks.tokens, corpus.chunks.document
        return [words(tokens[row]) + titles[document[row]] for row in rows.tolist()]

    return terms_of


class TitledRetriever(LexicalRetriever):
    """BM25 over the words of chunks and their titles.

    A query that is a chunk of the corpus has its document's title; any other has `title`.
    """

    def __init__(self, corpus: Corpus, index: LexicalIndex, title: str = "") -> None:
        super().__init__(index, word_terms(corpus.tokenizer), corpus.excluded)
        self.corpus, self.title = corpus, title

    def search(
        self,
        tokens: np.ndarray,
        k: int,
        *,
        own: np.ndarray | None = None,
        titles: Sequence[str] | None = None,
    ) -> Neighbors:
        """As `Retriever.search`; `titles` (Q,) of the queries, where others are meant."""
        if titles is None:
            of, document = self.corpus.documents, self.corpus.chunks.document
            titles = [self.title] * len(tokens) if own is None else [of[document[one]].title for one in own]
        found = []
        for row, title in enumerate(titles):
            terms = self._terms(tokens[row]) + _words(title) * TIMES
            ids, scores = self._best_by_terms(terms, k, None if own is None else own[row, None])
            found.append(rank(ids[None], scores[None], k))
        return joined(found, k)


def about(retriever: Retriever, title: str) -> Retriever:
    """The retriever, with this title for queries that are no chunks, where it searches by titles."""
    if isinstance(retriever, EndOfQuery):
        return EndOfQuery(about(retriever.whole, title), retriever.count)
    if isinstance(retriever, TitledRetriever):
        return TitledRetriever(retriever.corpus, retriever.index, title)
    return retriever


def _words(title: str) -> list[str]:
    return WORD.findall(title.lower())
