"""The verbs of the command line that change a built corpus, or say what its documents are worth to a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from retro_demo.change_config import AddConfig, WeighConfig
from retro_demo.cli.flags import add_flags, given, words
from retro_demo.corpus.build_jobs import ensure_sample, run_build
from retro_demo.corpus.changing import prepare_change
from retro_demo.corpus.corpus import is_built
from retro_demo.corpus.samples import corpus_folder
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished
from retro_demo.explain.weighing import weigh
from retro_demo.jobs.jobs import claim
from retro_demo.output_folder import check_output
from retro_demo.paths import SAMPLE, data_home, run_folder
from retro_demo.runs.ready import ready_run

DOCUMENTS = "ids or titles of documents"


def add_change_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    add = verb("add-documents", _add, "add documents to a built corpus; what is there is not embedded anew")
    add.add_argument("corpus", metavar="DIR", help="folder of a built corpus")
    add.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="files or folders")
    add.add_argument("--out", type=Path, help="make the changed corpus here and leave DIR as it is")
    add_flags(add, AddConfig)

    forget = verb("forget", _forget, "remove documents from a built corpus and from all that it finds")
    forget.add_argument("corpus", metavar="DIR", help='folder of a built corpus, or "sample:NAME" with --out')
    forget.add_argument("documents", type=words, nargs="+", metavar="DOC", help=DOCUMENTS)
    forget.add_argument("--out", type=Path, help="make the changed corpus here and leave DIR as it is")

    worth = verb("weigh", _weigh, "say which tokens would lose their gain if documents were forgotten")
    worth.add_argument("run", type=run_folder, metavar="RUN", help="folder of the run, or sample:NAME")
    worth.add_argument("documents", type=words, nargs="+", metavar="DOC", help=DOCUMENTS)
    worth.add_argument("--text", type=words, help="what to read (default: held-out text that finds them)")
    worth.add_argument("--corpus", metavar="DIR", help="read another corpus than in training (hot swap)")
    worth.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    add_flags(worth, WeighConfig)


def _add(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    base = yield from _base_of_change(options, stop)
    config = AddConfig(**given(options, AddConfig))
    with _held(base, options.out):
        folder = prepare_change(base, options.out, add=options.sources, config=config)
    yield from run_build(folder, stop)


def _forget(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    base = yield from _base_of_change(options, stop)
    with _held(base, options.out):
        folder = prepare_change(base, options.out, forget=options.documents)
    yield from run_build(folder, stop)


def _held(base: Path, out: Path | None) -> AbstractContextManager[None]:
    """The corpus held while a change of it in place is written down: none may be going on.

    Nothing but a corpus is held: that would write a lock into somebody's folder.
    """
    return claim(base) if out is None and check_output(base, "corpus") and is_built(base) else nullcontext()


def _base_of_change(options: argparse.Namespace, stop: Callable[[], bool]) -> Generator[Event, None, Path]:
    """The folder of the corpus to change; one that ships is changed in another folder only."""
    if options.corpus.startswith(SAMPLE) and options.out is None:
        raise UserError(
            f"{options.corpus} ships with the app and stays as it is. Name a folder for the changed one with "
            "--out."
        )
    if options.out is not None:
        check_output(options.out, "corpus")  # before a sample is built for it
    yield from ensure_sample(options.corpus, stop)
    home = data_home()[0]
    base = corpus_folder(home, options.corpus)
    if options.out is None and base.resolve().is_relative_to((home / "samples").resolve()):
        raise UserError(
            f"{base.name} is a sample that all share. Name a folder for the changed one with --out."
        )
    return base


def _weigh(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    config = WeighConfig(**given(options, WeighConfig))
    if options.text is not None and not options.text.strip():
        raise UserError("The text is empty. Give a few words, or leave --text out to read held-out text.")
    run = yield from ready_run(options.run, options.device, options.corpus, config.retriever, stop)
    if run is not None:
        yield Finished(weigh(run, options.documents, config, options.text or ""))
