"""A run folder -> a model in memory with its corpus and retriever, ready to write text.

For one command on the terminal it also builds the sample and retokenizes another corpus, where needed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from retro_demo.corpus.changes import load_retokenized, prepare_retokenized
from retro_demo.corpus.embedding import doubt_of, nothing_found
from retro_demo.corpus.retrievers import Database, load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.events import Event, Retrieved, Stopped, Warned
from retro_demo.models.retro import RETRO
from retro_demo.paths import CHECKPOINTS, data_home
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.retrieval.bm25 import LexicalRetriever
from retro_demo.runs.checkpoint import (
    AnyRun,
    PretrainedRun,
    RunConfig,
    load_model,
    read_any_config,
    read_run_config,
)
from retro_demo.tokenizer import Tokenizer


def load_trained_on(config: AnyRun) -> Corpus:
    """The corpus that a run was trained on, as it was built; raises UserError where it changed since."""
    corpus = load_corpus(corpus_folder(data_home()[0], config.corpus))
    if corpus.fingerprint != config.corpus_fingerprint:
        raise UserError(
            f"The corpus {corpus.name} has changed since this run was trained (it was "
            f"{config.corpus_fingerprint}, it is {corpus.fingerprint}). Put the old one back, "
            "or train a new run on this one."
        )
    return corpus


def load_own_corpus(folder: Path, config: AnyRun) -> Corpus:
    """The same as the run in a folder reads it, which may be in other tokens."""
    corpus = load_trained_on(config)
    return as_read(corpus, folder, config) if isinstance(config, PretrainedRun) else corpus


def as_read(corpus: Corpus, folder: Path, config: RunConfig) -> Corpus:
    """A corpus in the tokens and chunks of the run in a folder; UserError where it is not made ready for it.

    Ids that a base has room for and its vocabulary does not name are known, too.
    """
    there = load_retokenized(corpus, folder, config.network.chunk_len)
    if not config.retokenizes:
        return there
    return replace(there, tokenizer=load_tokenizer(folder / "tokenizer.json", config.network.vocab_size))


def make_ready(corpus: str, folder: Path, config: RunConfig) -> Iterator[Event]:
    """Make what the run in a folder reads of a corpus that is built, where that is not there yet."""
    read = load_corpus(corpus_folder(data_home()[0], corpus))
    yield from prepare_retokenized(read, folder, config.network.chunk_len)


def load_database(folder: Path, config: RunConfig, retriever: str = "") -> Database:
    """The corpus of a run with its retriever, or another one; raises UserError where it changed since."""
    corpus = load_own_corpus(folder, config)
    name = retriever or config.training.retriever
    return Database(corpus, load_retriever(corpus, name, config.training.query_tokens))


@dataclass(frozen=True)
class LoadedRun:
    """A run in memory, ready to write.

    `retriever` is the name of the one it reads through, "" for an lm; `swapped` the name of the
    corpus that was put in place of the one it was trained on, "" where that one is there; `corpus_folder` the
    folder of the corpus that was named when it was loaded, None = none was.
    """

    folder: Path
    config: RunConfig
    model: RETRO
    tokenizer: Tokenizer
    database: Database | None
    retriever: str
    swapped: str = ""
    corpus_folder: Path | None = None

    @cached_property
    def bm25(self) -> LexicalRetriever:
        """BM25 over the token ids of its corpus: its own retriever, or a second opinion, loaded once."""
        assert self.database is not None
        retriever = self.database.retriever
        if self.retriever == "bm25" and isinstance(retriever, LexicalRetriever):
            return retriever
        found = load_retriever(self.database.corpus, "bm25")
        assert isinstance(found, LexicalRetriever)
        return found


def load_run(
    folder: Path, device: str = "auto", corpus: Path | None = None, retriever: str = ""
) -> LoadedRun:
    """Read a run and, where it retrieves, its corpus, with the retriever of its training or another.

    Another `corpus` than the one it was trained on is a hot swap: the same weights read another
    database. For another tokenizer the retokenized corpus must be made before (corpus/changes.py).
    Raises UserError where it is not, and for an lm with either of them, as it could make no difference.
    """
    config = read_run_config(folder)
    if not config.retrieves:
        if corpus is not None or retriever:
            raise UserError(
                f"{folder.name} ({config.model}) reads no neighbors, so neither another corpus nor a "
                "retriever changes what it writes. Choose a run that retrieves."
            )
        database, name, swapped = None, "", ""
    else:
        name, swapped = retriever or config.training.retriever, ""
        if corpus is None:
            database = load_database(folder, config, name)
        else:
            other = load_corpus(corpus)
            swapped = other.name if other.fingerprint != config.corpus_fingerprint else ""
            there = as_read(other, folder, config)
            database = Database(there, load_retriever(there, name, config.training.query_tokens))
    model = load_model(folder, choose_device(device))
    tokenizer = load_tokenizer(folder / "tokenizer.json", config.network.vocab_size)
    return LoadedRun(folder, config, model, tokenizer, database, name, swapped, corpus)


def why_none_found(run: LoadedRun, retrieved: Sequence[Retrieved]) -> str:
    """Why a run that looked up neighbors found none at all, "" where it found one or looked up none."""
    if run.database is None or not retrieved or any(event.neighbors for event in retrieved):
        return ""
    return nothing_found(run.retriever, run.database.corpus.manifest["statistics"])


def ready_run(
    folder: Path, device: str, corpus: str | None, retriever: str, stop: Callable[[], bool]
) -> Generator[Event, None, LoadedRun | None]:
    """Yield what is prepared; returns the run, or None after a stop.

    `corpus` names another corpus than the one of the training (a hot swap), a folder or "sample:NAME".
    Raises UserError as `load_run` does.
    """
    trained = read_run_config(folder)
    yield from ensure_sample(trained.corpus, stop)
    other = None
    if corpus:
        yield from ensure_sample(corpus, stop)
        other = corpus_folder(data_home()[0], corpus)
    if corpus or (trained.retokenizes and trained.retrieves):
        for event in make_ready(corpus or trained.corpus, folder, trained):
            yield event
            if stop():
                yield Stopped()
                return None
    run = load_run(folder, device, other, retriever)
    if run.swapped:
        yield Warned(f"Hot swap: this run was trained on another corpus and now reads {run.swapped}.")
    if run.database and (doubted := doubt_of(run.database.corpus, run.retriever)):
        yield Warned(doubted)
    return run


def prepare_shipped() -> Iterator[Event]:
    """Make what shipped readers read of their own corpora, which are built, where their bases are there."""
    for folder in sorted(path.parent for path in CHECKPOINTS.glob("*/config.json")):
        config = read_any_config(folder)
        if isinstance(config, RunConfig) and config.retokenizes and not config.missing:
            yield from make_ready(config.corpus, folder, config)
            load_database(folder, config)  # whose index is kept
