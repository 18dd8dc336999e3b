"""A run made ready to read and write for one command: its sample built, another corpus prepared."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

from retro_demo.corpus.build_jobs import ensure_sample
from retro_demo.corpus.corpus import load_corpus
from retro_demo.corpus.editions import prepare_edition
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.unknown_text import doubt_of
from retro_demo.events import Event, Stopped, Warned
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import read_run_config
from retro_demo.runs.loading import LoadedRun, load_run


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
        for event in prepare_edition(load_corpus(other), folder, trained.network.chunk_len):
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
