"""Retrievers over a stored corpus: load one by name, search one query, keep a table of all neighbors.

The table of dense neighbors is part of the corpus. Those of BM25 and of the hybrid are made when a run first
needs them, and lie beside the corpus with the fingerprint of the corpus that they were made from.

Shapes: N chunks, S stored neighbors, Q queries, K neighbors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from retro_demo.corpus.building import open_index
from retro_demo.corpus.embedder_choice import open_embedder
from retro_demo.corpus.embedding import doubt_of_query, doubt_of_statistics
from retro_demo.corpus.store import Corpus, check_current, derived_folder, unchanged
from retro_demo.corpus.titled_retrieval import TitledRetriever, titled_terms
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress
from retro_demo.files import beside, load_array
from retro_demo.paths import data_home
from retro_demo.retrieval.bm25 import FORMAT as TERMS_FORMAT
from retro_demo.retrieval.bm25 import (
    ByVectors,
    HybridRetriever,
    LexicalIndex,
    LexicalRetriever,
    Terms,
    token_terms,
    word_terms,
)
from retro_demo.retrieval.dense import DenseRetriever, VectorIndex, gpu_available
from retro_demo.retrieval.neighbors import Neighbors, Retriever, end_of_query


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


def load_retriever(corpus: Corpus, name: str = "dense", query_tokens: int = 0) -> Retriever:
    """A retriever (a name in MAKERS) over the documents of a built corpus that are not held out.

    `query_tokens`: how many tokens at the end of a query are searched for, 0 = all.
    The first use of BM25 makes its index and keeps it; one made from another state of the corpus
    is made again. Raises UserError for an unknown name, and for an index of another embedder.
    """
    if name not in MAKERS:
        raise UserError(f"There is no retriever {name!r}; choose one of {', '.join(MAKERS)}.")
    device = "cuda" if gpu_available()[0] else "cpu"
    kind = "bm25" if name == "hybrid" else name
    found = retriever_over(
        corpus,
        name,
        lambda: open_index(corpus, device),
        lambda terms_of: _lexical_index(corpus, kind, terms_of),
    )
    return end_of_query(found, query_tokens)


def retriever_over(corpus: Corpus, name: str, vectors: Vectors, words: Words) -> Retriever:
    """A retriever over the indexes that these two make, of which only those that it needs are made."""
    return MAKERS[name](corpus, vectors, words)


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
    embedder = open_embedder(corpus.folder, corpus.config.embedder)
    if embedder.fingerprint != corpus.manifest["embedder_fingerprint"]:
        raise UserError(
            f"The index of {corpus.name} was made by another version of the embedder {embedder.name}. "
            "Build the corpus anew."
        )
    return DenseRetriever(index, embedder, corpus.tokenizer.decode, corpus.excluded)


def _lexical(corpus: Corpus, words: Words, terms: Terms) -> LexicalRetriever:
    index = words(lambda rows: [terms(row) for row in corpus.chunks.tokens[rows]])
    return LexicalRetriever(index, terms, corpus.excluded)


def _token_terms(corpus: Corpus) -> Terms:
    silent = {0, corpus.tokenizer.pad_id, corpus.tokenizer.eos_id}
    return lambda tokens: token_terms(tokens, silent)


Vectors = Callable[[], VectorIndex]
Words = Callable[[Callable[[np.ndarray], list[list[str]]]], LexicalIndex]
"""Makes a BM25 index, given what tells the terms of stored chunks (their numbers)."""
MAKERS: Mapping[str, Callable[[Corpus, Vectors, Words], Retriever]] = {
    "dense": lambda corpus, vectors, words: _dense(corpus, vectors()),
    "bm25": lambda corpus, vectors, words: _lexical(corpus, words, _token_terms(corpus)),
    "bm25-words": lambda corpus, vectors, words: _lexical(corpus, words, word_terms(corpus.tokenizer)),
    "bm25-titles": lambda corpus, vectors, words: TitledRetriever(corpus, words(titled_terms(corpus))),
    "hybrid": lambda corpus, vectors, words: HybridRetriever(
        _dense(corpus, vectors()), _lexical(corpus, words, _token_terms(corpus))
    ),
}
"""The table of retrievers: name, as in settings.RETRIEVERS -> how it is made over the indexes of a corpus."""


def _lexical_index(
    corpus: Corpus, kind: str, terms_of: Callable[[np.ndarray], list[list[str]]]
) -> LexicalIndex:
    path = derived_folder(data_home()[0], corpus.folder, corpus.fingerprint) / f"{kind}.safetensors"
    if (kept := LexicalIndex.load(path, corpus.fingerprint)) is not None:
        return kept
    rows = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
    index = LexicalIndex.build(terms_of(rows), rows)
    check_current(corpus)
    index.save(path, corpus.fingerprint)
    return index


FORMAT = f"1, terms {TERMS_FORMAT}"  # of the table, and of what BM25 counts
BLOCK = 1024


def prepare_neighbors(corpus: Corpus, retriever: str, query_tokens: int = 0) -> Iterator[Event]:
    """Find and keep the neighbors of every chunk by this retriever, where that is not done yet.

    A table of another state of the corpus, or a damaged one, is made again. Two processes may do
    this at once: both find the same, and each puts its file in place whole.
    """
    name = _name(retriever, query_tokens)
    if name == "dense" or _kept(corpus, name) is not None:
        return
    finder = load_retriever(corpus, retriever, query_tokens)
    count, k = len(corpus.chunks), corpus.config.num_neighbors
    ids = np.full((count, k), -1, np.int32)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        ids[rows] = search_stored(corpus, finder, rows, k).ids
        yield Progress("neighbors", int(rows[-1]) + 1, count)
    about = {"fingerprint": corpus.fingerprint, "format": FORMAT, "hash": _hash(ids)}
    check_current(corpus)
    with beside(_path(corpus, name)) as unfinished:
        save_file({"ids": ids}, unfinished, metadata=about)


def neighbor_table(corpus: Corpus, retriever: str, query_tokens: int = 0) -> np.ndarray:
    """The neighbors of all chunks, held-out ones too: ids int64 (N, S), best first, -1 = none.

    Made where it is not made yet. Raises UserError as `load_retriever` does.
    """
    name = _name(retriever, query_tokens)
    if name == "dense":
        return corpus.neighbor_ids.astype(np.int64)
    for _ in prepare_neighbors(corpus, retriever, query_tokens):
        pass
    ids = _kept(corpus, name)
    assert ids is not None
    return ids.astype(np.int64)


def _name(retriever: str, query_tokens: int) -> str:
    return f"{retriever}-{query_tokens}" if query_tokens else retriever


def _path(corpus: Corpus, name: str) -> Path:
    folder = derived_folder(data_home()[0], corpus.folder, corpus.fingerprint)
    return folder / f"neighbors-{name}.safetensors"


def _kept(corpus: Corpus, name: str) -> np.ndarray | None:
    """The table on disk, None where there is none of this state of the corpus or it is damaged."""
    try:
        with safe_open(_path(corpus, name), "numpy") as file:
            about, ids = file.metadata() or {}, file.get_tensor("ids")
    except (SafetensorError, OSError):
        return None
    wanted = {"fingerprint": corpus.fingerprint, "format": FORMAT, "hash": _hash(ids)}
    return ids if about == wanted else None


def _hash(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()
