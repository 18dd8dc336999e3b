"""Retrievers over the files of a stored corpus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retro_demo.config import RETRIEVERS
from retro_demo.corpus.corpus import Corpus, derived_folder
from retro_demo.corpus.index_files import open_index
from retro_demo.corpus.marks import check_current, unchanged
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.paths import data_home
from retro_demo.retrieval.embedding import load_embedder
from retro_demo.retrieval.index import DenseRetriever, VectorIndex, gpu_available
from retro_demo.retrieval.lexical import (
    ByVectors,
    HybridRetriever,
    LexicalIndex,
    LexicalRetriever,
    Terms,
    token_terms,
    word_terms,
)
from retro_demo.retrieval.neighbors import Neighbors, Retriever
from retro_demo.whole_files import load_array


def load_retriever(corpus: Corpus, name: str = "dense") -> Retriever:
    """A retriever (one of RETRIEVERS) over the documents of a built corpus that are not held out.

    The first use of BM25 makes its index and keeps it; one made from another state of the corpus
    is made anew. Raises UserError for an unknown name, and for an index of another embedder.
    """
    if name not in RETRIEVERS:
        raise UserError(f"There is no retriever {name!r}; choose one of {', '.join(RETRIEVERS)}.")
    device = "cuda" if gpu_available()[0] else "cpu"
    return retriever_over(
        corpus,
        name,
        lambda: open_index(corpus, device),
        lambda terms: _lexical_index(corpus, "bm25-words" if name == "bm25-words" else "bm25", terms),
    )


def retriever_over(
    corpus: Corpus, name: str, vectors: Callable[[], VectorIndex], words: Callable[[Terms], LexicalIndex]
) -> Retriever:
    """A retriever over the indexes that these two make, of which only those that it needs are made."""
    if name == "dense":
        return _dense(corpus, vectors())
    terms = word_terms(corpus.tokenizer) if name == "bm25-words" else token_terms
    lexical = LexicalRetriever(words(terms), terms, corpus.excluded)
    return HybridRetriever(_dense(corpus, vectors()), lexical) if name == "hybrid" else lexical


def search_stored(corpus: Corpus, finder: Retriever, rows: np.ndarray, k: int) -> Neighbors:
    """The neighbors of chunks `rows` (Q,) of the corpus itself, by the vectors that it keeps of them."""
    tokens = corpus.chunks.tokens[rows]
    if not isinstance(finder, ByVectors):
        return finder.search(tokens, k, own=rows)
    vectors = np.asarray(load_array(unchanged(corpus, "vectors.npy"), mapped=True)[rows])
    if isinstance(finder, DenseRetriever):
        return finder.search_vectors(vectors, k, own=rows)
    return finder.search_vectors(tokens, vectors, k, own=rows)


def _dense(corpus: Corpus, index: VectorIndex) -> DenseRetriever:
    embedder = load_embedder(corpus.config.embedder, choose_device("auto"))
    if embedder.fingerprint != corpus.manifest["embedder_fingerprint"]:
        raise UserError(
            f"The index of {corpus.name} was made by another version of the embedder {embedder.name}. "
            "Build the corpus anew."
        )
    return DenseRetriever(index, embedder, corpus.tokenizer.decode, corpus.excluded)


def _lexical_index(corpus: Corpus, kind: str, terms: Terms) -> LexicalIndex:
    path = derived_folder(data_home()[0], corpus.folder, corpus.fingerprint) / f"{kind}.safetensors"
    if (kept := LexicalIndex.load(path, corpus.fingerprint)) is not None:
        return kept
    rows = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
    index = LexicalIndex.build([terms(row) for row in corpus.chunks.tokens[rows]], rows)
    check_current(corpus)
    index.save(path, corpus.fingerprint)
    return index
