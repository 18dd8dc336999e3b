"""Retrieval with titles: BM25 over the words and labels of a chunk and over its document's title.

Whoever asks for a fact asks with a document's title and the last words of a text, not with all that came
before. So a query is its last few tokens and a title. A *label* is what stands before a colon where a line
or the text begins ("Population:"). A query with labels is asked twice: with all its words, and with its last
words and its labels. A field that follows another one than it does in the database is lost among the words of
the field before it; its label finds it. docs/science.md tells how often each way finds a fact.

Shapes: Q queries, C tokens of a query, K neighbors, P tokens of a title, N chunks, D documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from retro_demo.corpus.store import Corpus
from retro_demo.retrieval.bm25 import LexicalIndex, LexicalRetriever, word_terms
from retro_demo.retrieval.neighbors import EndOfQuery, Neighbors, Retriever, joined, rank
from retro_demo.tokenizer import WORD

TIMES = 2  # that a word of the title counts
LAST = 8  # tokens of a query whose words stand beside its labels
SECOND = 0.999  # what the best chunk of the second way counts, of the best of the first
LABEL = re.compile(r"(?:^|\n)[ \t]*([^\n:：]{2,60}[:：])")  # no term of WORD ends with a colon


def titled_terms(corpus: Corpus) -> Callable[[np.ndarray], list[list[str]]]:
    """Tells the terms of stored chunks: words, labels, and the words of titles, which count more."""

    def terms_of(rows: np.ndarray) -> list[list[str]]:
        titles = [_words(document.title) * TIMES for document in corpus.documents]
        document = corpus.chunks.document
        texts = (corpus.tokenizer.decode(tokens.tolist()) for tokens in corpus.chunks.tokens[rows])
        return [
            _words(text) + labels_of(text) + titles[of]
            for text, of in zip(texts, document[rows], strict=True)
        ]

    return terms_of


class TitledRetriever(LexicalRetriever):
    """BM25 over the words and labels of chunks and their titles.

    A query that is a chunk of the corpus has its document's title; any other has `title`. The score of a
    chunk is the higher of both ways of asking, the second scaled so that its best comes next to the best of
    the first: of two neighbors, each way usually finds one.
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
            own_chunk, of_title = None if own is None else own[row, None], _words(title) * TIMES
            text = self.corpus.tokenizer.decode(tokens[row].tolist())
            best = self._best_by_terms(_words(text) + of_title, k, own_chunk)
            if labels := labels_of(text):
                last = self._terms(tokens[row][tokens[row] != 0][-LAST:])
                best = _higher(best, self._best_by_terms(last + labels + of_title, k, own_chunk))
            ids, scores = best
            found.append(rank(ids[None], scores[None], k))
        return joined(found, k)


def about(retriever: Retriever, title: str) -> Retriever:
    """The retriever, with this title for queries that are no chunks, where it searches by titles."""
    if isinstance(retriever, EndOfQuery):
        return EndOfQuery(about(retriever.whole, title), retriever.count)
    if isinstance(retriever, TitledRetriever):
        return TitledRetriever(retriever.corpus, retriever.index, title)
    return retriever


def _higher(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores (K',) that two ways of asking found -> all ids, with the higher score of each."""
    (ids, scores), (others, theirs) = first, second
    if len(ids) and len(others):
        theirs = theirs * (SECOND * scores.max() / theirs.max())
    union, place = np.unique(np.concatenate([ids, others]), return_inverse=True)
    best = np.zeros(len(union), np.float32)
    np.maximum.at(best, place, np.concatenate([scores, theirs]))
    return union, best


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def labels_of(text: str) -> list[str]:
    """What stands before a colon where a line or the text begins, with the colon, in small letters."""
    return LABEL.findall(text.lower())
