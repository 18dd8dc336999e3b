"""Runs and the databases they read, brought into memory, ready to write text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retro_demo.checkpoint import RunConfig, load_model, read_run_config
from retro_demo.config import GenerateConfig
from retro_demo.corpus import Corpus, load_corpus
from retro_demo.devices import choose_device
from retro_demo.embedding import load_embedder
from retro_demo.errors import UserError
from retro_demo.events import Event
from retro_demo.generate import Database, Written, generate
from retro_demo.index import DenseRetriever, VectorIndex, gpu_available
from retro_demo.retro import RETRO
from retro_demo.tokenizer import Tokenizer
from retro_demo.workspace import corpus_folder, data_home


def load_retriever(corpus: Corpus) -> DenseRetriever:
    """The dense retriever of a built corpus; raises UserError where its index is of another embedder."""
    embedder = load_embedder(corpus.config.embedder, choose_device("auto"))
    if embedder.fingerprint != corpus.manifest["embedder_fingerprint"]:
        raise UserError(
            f"The index of {corpus.name} was made by another version of the embedder {embedder.name}. "
            "Build the corpus anew."
        )
    index = VectorIndex.load(corpus.folder / "index.faiss", device="cuda" if gpu_available()[0] else "cpu")
    return DenseRetriever(index, embedder, corpus.tokenizer.decode, corpus.excluded)


def load_database(config: RunConfig) -> Database:
    """The corpus of a run with its retriever; raises UserError where it changed since training."""
    corpus = load_corpus(corpus_folder(data_home()[0], config.corpus))
    if corpus.fingerprint != config.corpus_fingerprint:
        raise UserError(
            f"The corpus {corpus.name} has changed since this run was trained (it was "
            f"{config.corpus_fingerprint}, it is {corpus.fingerprint}). Put the old one back, "
            "or train a new run on this one."
        )
    return Database(corpus, load_retriever(corpus))


@dataclass(frozen=True)
class LoadedRun:
    """A run in memory, ready to write."""

    folder: Path
    config: RunConfig
    model: RETRO
    tokenizer: Tokenizer
    database: Database | None


def load_run(folder: Path, device: str = "auto") -> LoadedRun:
    """Read a run and, where it retrieves, its corpus."""
    config = read_run_config(folder)
    model = load_model(folder, choose_device(device))
    database = load_database(config) if config.model != "lm" else None
    return LoadedRun(folder, config, model, Tokenizer.load(folder / "tokenizer.json"), database)


def write(run: LoadedRun, prompt: str, config: GenerateConfig) -> Iterator[Event | Written]:
    """`generate` for a loaded run."""
    return generate(
        run.model,
        run.tokenizer,
        prompt,
        config,
        context=run.config.training.seq_len,
        num_neighbors=run.config.training.num_neighbors,
        database=run.database,
    )
