"""What a visitor can ask of a corpus: add or forget documents, weigh them for a run, rename it, delete it.

Corpora and runs are named by their ids in a workspace, as in server/service.py; the page and the HTTP
endpoints both call these functions.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from retro_demo.corpus.changes import (
    CHANGE,
    SOURCES,
    base_of_change,
    find_documents,
    is_pending,
    prepare_change,
)
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.store import is_built, load_corpus, read_stored_documents
from retro_demo.errors import UserError, listed
from retro_demo.explain.document_value import weigh
from retro_demo.jobs import lifecycle
from retro_demo.paths import SAMPLE
from retro_demo.runs.checkpoint import read_any_config, read_run_config, write_run_config
from retro_demo.server import service
from retro_demo.server.evaluations import evaluations_reading, tell_of_move
from retro_demo.server.limits import check_space, checked_addition, limits_of, weighed_tokens
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.scheduler import begin
from retro_demo.server.service import keep_files
from retro_demo.server.studies import studies_reading
from retro_demo.server.workspace import Workspace
from retro_demo.settings import AddConfig, WeighConfig

MOST_LISTED = 2000
MOST_WEIGHED = 50  # each is one more reading of every passage that finds it
LEAST_WEIGHED = 500  # tokens, however many documents are named


def start_change(
    workspace: Workspace,
    corpus: str,
    *,
    files: Sequence[tuple[str, Path]] = (),
    forget: Sequence[str] = (),
    config: AddConfig | None = None,
    name: str = "",
) -> str:
    """Begin to add files (name, where it lies) to a corpus, or to forget documents; its id.

    `name`: make the changed corpus under this name and leave the other as it is.
    """
    base = service.built_corpus(workspace, corpus)
    if not files and not forget:
        raise UserError("There is nothing to change. Choose files to add, or documents to forget.")
    if corpus.startswith(SAMPLE) and not name.strip():
        raise UserError(
            f"{service.corpus_title(corpus)} ships with the app and stays as it is. Give the changed corpus "
            "a name of its own."
        )
    coming = sum(path.stat().st_size for _, path in files)
    check_space(workspace, coming)
    before, config = load_corpus(base), config or AddConfig()
    gone = find_documents(before, forget)  # a mistyped title is said before anything is made
    if files:
        held = sum(len(one.text.encode()) for one in before.documents if one.id not in set(gone))
        config = replace(
            config, max_megabytes=checked_addition(workspace.home, config.max_megabytes, held, coming)
        )
    if name.strip():
        with workspace.filling("corpora", name) as folder:
            copies = keep_files(workspace, files, folder / SOURCES)
            prepare_change(base, folder, add=copies, forget=forget, config=config, placed=(SOURCES,))
            begin(workspace, folder, "build-corpus")
        return folder.name
    with lifecycle.asking(base):
        _check_free(workspace, corpus, base)
        shutil.rmtree(base / CHANGE, ignore_errors=True)  # what one that failed or was done may have left
        try:
            copies = keep_files(workspace, files, base / CHANGE / SOURCES) if files else []
            prepare_change(base, None, add=copies, forget=forget, config=config)
            with lifecycle.without_events(base):  # those of the build are not about the change
                begin(workspace, base, "build-corpus")
        except BaseException:
            shutil.rmtree(base / CHANGE, ignore_errors=True)  # nothing was begun
            raise
    return base.name


def _check_free(workspace: Workspace, corpus: str, base: Path) -> None:
    """Raise UserError while something is at work on the corpus, or reads it; a change that failed is not."""
    if lifecycle.is_at_work(base) or (is_pending(base) and lifecycle.status(base).state != "failed"):
        raise UserError(f"{corpus} is being changed already. Wait for its end, or resume it.")
    if reader := next(_readers(workspace, base), ""):
        raise UserError(
            f"{reader} {corpus} and could not go on after a change. Wait for its end, or make the changed "
            "corpus under another name."
        )


def _readers(workspace: Workspace, base: Path) -> Iterator[str]:
    """What of the workspace is at work and reads the corpus, as the beginning of a sentence."""
    runs = [run for run in workspace.runs() if lifecycle.is_at_work(workspace.run(run))]
    for run in runs:
        if read_any_config(workspace.run(run)).corpus == str(base):
            yield f"{run} is training on"
    for study in studies_reading(workspace, base):
        yield f"The study {study} is at work on"
    for run in evaluations_reading(workspace, base):
        yield f"An evaluation of {run} reads"
    if any(map(lifecycle.is_at_work, base.glob("editions/*"))):
        yield "A run with another tokenizer is about to read"
    for one in workspace.corpora():
        folder = workspace.corpus(one)
        if lifecycle.is_at_work(folder) and base_of_change(folder) == base.resolve():
            yield f"{one} is being made from"


def rename_corpus(workspace: Workspace, old: str, new: str) -> str:
    """Give a corpus another name, and tell its runs in this workspace; returns the name."""
    with _let_go(workspace, old) as before:
        name = workspace.rename("corpora", old, new)
        for run in workspace.runs():
            folder = workspace.run(run)
            config = read_any_config(folder)
            if config.corpus == str(before):
                write_run_config(folder, replace(config, corpus=str(workspace.corpus(name))))
        tell_of_move(workspace, before, workspace.corpus(name))
    return name


def delete_corpus(workspace: Workspace, corpus: str) -> None:
    """Remove a corpus; raises UserError while runs of the workspace read it, which it would orphan."""
    with _let_go(workspace, corpus) as place:
        own = [run for run in workspace.runs() if not run.startswith(SAMPLE)]
        if readers := [run for run in own if read_any_config(workspace.run(run)).corpus == str(place)]:
            raise UserError(
                f"The corpus {corpus} is read by {len(readers)} of your runs ({listed(readers)}), "
                "which could neither write nor train without it. Delete them first."
            )
        workspace.delete("corpora", corpus)


@contextmanager
def _let_go(workspace: Workspace, corpus: str) -> Iterator[Path]:
    """The folder of a corpus that no job reads, is to read or changes, and no change begins meanwhile.

    Raises UserError where one does, also where a change that was cut off is still to be made from it.
    """
    folder = workspace.owned("corpora", corpus)
    with lifecycle.asking(folder):
        workspace.owned("corpora", corpus)  # a change may have begun before
        if reader := next(_readers(workspace, folder), ""):
            raise UserError(f"{reader} {corpus}. Wait for its end, or stop it first.")
        for one in workspace.corpora():
            place = workspace.corpus(one)
            unmade = not one.startswith(SAMPLE) and not is_built(place)
            if unmade and base_of_change(place) == folder.resolve():
                raise UserError(f"{one} is still to be made from {corpus}. Resume it, or delete it first.")
        yield folder


def corpus_status(folder: Path) -> lifecycle.JobStatus:
    """How a build or a change of a corpus stands; a built corpus is finished unless one is going on."""
    status = lifecycle.status(folder)
    if not is_built(folder) or is_pending(folder) or status.under_way or status.state == "failed":
        return status
    return lifecycle.JobStatus("finished", status.events, "")


def listed_documents(folder: Path) -> list[tuple[str, str]]:
    """(title, id) of the first documents of a built corpus, in the order of their titles."""
    if not is_built(folder):
        return []
    path = folder / "documents.jsonl"
    at = path.stat()
    return list(_listed(path, at.st_mtime_ns, at.st_size))


@lru_cache(maxsize=64)
def _listed(path: Path, _changed: int, _size: int) -> tuple[tuple[str, str], ...]:
    """As `listed_documents`, read once as long as the file stays as it is: it may be large."""
    documents = read_stored_documents(path)[:MOST_LISTED]
    named = [(one.title if one.title == one.id else f"{one.title} ({one.id})", one.id) for one in documents]
    return tuple(sorted(named, key=lambda pair: pair[0].lower()))


def retrieving_runs(workspace: Workspace) -> list[str]:
    """Ids of the runs that read neighbors and have weights."""
    return [run for run in service.readable_runs(workspace) if read_run_config(workspace.run(run)).retrieves]


def weigh_documents(
    cache: ModelCache,
    workspace: Workspace,
    run: str,
    documents: Sequence[str],
    *,
    text: str = "",
    corpus: str = "",
    config: WeighConfig | None = None,
) -> dict[str, Any]:
    """What documents are worth to a run, as `weigh`; `corpus` is another one than that of its training."""
    if run not in service.readable_runs(workspace):
        raise UserError(f"There is no run {run[:80]!r} that reads neighbors. Choose one from the list.")
    if len(documents) > MOST_WEIGHED:
        raise UserError(
            f"{len(documents):,} documents are named; here at most {MOST_WEIGHED} are weighed at a time. "
            "Name fewer, or use the command line."
        )
    service.check_ready(workspace, run, corpus)
    folder = workspace.run(run)
    other = service.built_corpus(workspace, corpus) if corpus else None
    if other == corpus_folder(workspace.home, read_run_config(folder).corpus) and other is not None:
        own = load_corpus(other).fingerprint == read_run_config(folder).corpus_fingerprint
        other = None if own else other
    config = config or WeighConfig()
    if most := weighed_tokens(
        limits_of(workspace.home), read_run_config(folder)
    ):  # all wait for the end of it
        each = max(LEAST_WEIGHED, most // (len(documents) + 2))
        config = replace(config, max_tokens=min(config.max_tokens, each))
    return weigh(cache.run(folder, other, config.retriever), documents, config, text)
