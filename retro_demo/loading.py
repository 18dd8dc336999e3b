"""Runs and the databases they read, brought into memory, ready to write text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from retro_demo.checkpoint import AnyRun, RunConfig, load_model, read_run_config
from retro_demo.config import RETRIEVERS, GenerateConfig
from retro_demo.corpus import Corpus, load_array, load_corpus
from retro_demo.devices import choose_device
from retro_demo.editions import load_edition
from retro_demo.embedding import load_embedder
from retro_demo.errors import UserError
from retro_demo.events import Event, Retrieved
from retro_demo.generate import Database, Written, generate
from retro_demo.index import DenseRetriever, VectorIndex, gpu_available
from retro_demo.index_files import open_index
from retro_demo.lexical import (
    ByVectors,
    HybridRetriever,
    LexicalIndex,
    LexicalRetriever,
    Terms,
    token_terms,
    word_terms,
)
from retro_demo.marks import check_current, unchanged
from retro_demo.neighbors import Neighbors, Retriever
from retro_demo.retro import RETRO
from retro_demo.tokenizer import Tokenizer
from retro_demo.unknown_text import nothing_found
from retro_demo.workspace import corpus_folder, data_home, derived_folder


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


def load_own_corpus(config: AnyRun) -> Corpus:
    """The corpus of a run of any model; raises UserError where it changed since."""
    corpus = load_corpus(corpus_folder(data_home()[0], config.corpus))
    if corpus.fingerprint != config.corpus_fingerprint:
        raise UserError(
            f"The corpus {corpus.name} has changed since this run was trained (it was "
            f"{config.corpus_fingerprint}, it is {corpus.fingerprint}). Put the old one back, "
            "or train a new run on this one."
        )
    return corpus


def load_database(config: RunConfig, retriever: str = "") -> Database:
    """The corpus of a run with its retriever, or another one; raises UserError where it changed since."""
    corpus = load_own_corpus(config)
    return Database(corpus, load_retriever(corpus, retriever or config.training.retriever))


@dataclass(frozen=True)
class LoadedRun:
    """A run in memory, ready to write.

    `retriever` is the name of the one it reads through, "" for an lm; `swapped` the name of the
    corpus that was put in place of the one it was trained on, "" where that one is there; `place` the
    folder of the corpus that was named when it was loaded, None = none was.
    """

    folder: Path
    config: RunConfig
    model: RETRO
    tokenizer: Tokenizer
    database: Database | None
    retriever: str
    swapped: str = ""
    place: Path | None = None

    @cached_property
    def bm25(self) -> LexicalRetriever:
        """BM25 over the token ids of its corpus: its own retriever, or a second opinion, loaded once."""
        assert self.database is not None
        retriever = self.database.retriever
        found = retriever if self.retriever == "bm25" else load_retriever(self.database.corpus, "bm25")
        assert isinstance(found, LexicalRetriever)
        return found


def load_run(
    folder: Path, device: str = "auto", corpus: Path | None = None, retriever: str = ""
) -> LoadedRun:
    """Read a run and, where it retrieves, its corpus, with the retriever of its training or another.

    Another `corpus` than the one it was trained on is a hot swap: the same weights read another
    database. Where this run has another tokenizer its edition must be made before (editions.py). Raises
    UserError where it is not, and for an lm with either of them, as it could make no difference.
    """
    config = read_run_config(folder)
    if not config.retrieves:
        if corpus is not None or retriever:
            raise UserError(
                f"{folder.name} is a plain language model (lm): it reads no neighbors, so neither another "
                "corpus nor a retriever changes what it writes. Choose a run that retrieves."
            )
        database, name, swapped = None, "", ""
    else:
        name, swapped = retriever or config.training.retriever, ""
        if corpus is None:
            database = load_database(config, name)
        else:
            other = load_corpus(corpus)
            swapped = other.name if other.fingerprint != config.corpus_fingerprint else ""
            there = load_edition(other, folder, config.network.chunk_len)
            database = Database(there, load_retriever(there, name))
    model = load_model(folder, choose_device(device))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return LoadedRun(folder, config, model, tokenizer, database, name, swapped, corpus)


def write(run: LoadedRun, prompt: str, config: GenerateConfig) -> Iterator[Event | Written]:
    """`generate` for a loaded run, whose retriever must be the one that config names, if it does."""
    if config.retriever not in ("", run.retriever):
        raise ValueError(f"the run was loaded with retriever {run.retriever!r}, not {config.retriever!r}")
    return generate(
        run.model,
        run.tokenizer,
        prompt,
        config,
        context=run.config.training.seq_len,
        num_neighbors=run.config.training.num_neighbors,
        database=run.database,
    )


def why_none_found(run: LoadedRun, retrieved: Sequence[Retrieved]) -> str:
    """Why a run that looked up neighbors found none at all, "" where it found one or looked up none."""
    if run.database is None or not retrieved or any(event.neighbors for event in retrieved):
        return ""
    return nothing_found(run.retriever, run.database.corpus.manifest["statistics"])
