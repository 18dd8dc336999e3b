"""A corpus made for the tokenizer of a run that is to read it (hot swap): a job like any build.

The page and the endpoints never make an edition (corpus/editions.py) themselves: that takes as long as a
build. Who asks first begins the job in the queue; who asks meanwhile waits for the same one, or is told of
it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from retro_demo.corpus.corpus import is_built, load_corpus
from retro_demo.corpus.editions import edition_of_stored, plan_edition
from retro_demo.errors import UserError
from retro_demo.jobs import jobs, tickets
from retro_demo.runs.checkpoint import RunConfig, read_any_config
from retro_demo.server.belongings import note_files, noted
from retro_demo.server.dispatch import begin
from retro_demo.server.quotas import check_space
from retro_demo.server.workspace import Workspace


def begin_edition(workspace: Workspace, run: Path, corpus: Path, title: str) -> Path | None:
    """Let a job make what a run needs to read a built corpus; its folder, None where all is there.

    One that is under way goes on. Raises UserError while the corpus is being changed, where there is no
    room or the queue is full, and for a failure of before, once: then it can be tried again.
    """
    config = read_any_config(run)
    if not isinstance(config, RunConfig) or not config.retrieves:
        return None  # it reads no other corpus, and whoever loads it says so
    folder = edition_of_stored(corpus, run, config.network.chunk_len)
    if folder == corpus:
        return None
    _note_tokenizer(workspace, run, folder)
    if is_built(folder):
        return None
    if jobs.is_under_way(folder):
        return folder
    _tell_failure(folder, title)
    with jobs.asking(folder.parent.parent):  # of the corpus: it neither changes nor goes meanwhile
        if is_built(folder) or jobs.is_under_way(folder):  # somebody else asked for it at this moment
            return folder
        if not is_built(corpus) or jobs.is_at_work(corpus):
            raise UserError(f"{title} is being changed. Wait for the end of that, then ask again.")
        check_space(workspace, (corpus / "documents.jsonl").stat().st_size)
        planned = folder.exists()
        try:
            plan_edition(load_corpus(corpus), run, config.network.chunk_len)
            begin(workspace, folder, "build-corpus")
        except BaseException:
            if not planned:
                shutil.rmtree(folder, ignore_errors=True)  # nothing was begun
            raise
    return folder


def _note_tokenizer(workspace: Workspace, run: Path, folder: Path) -> None:
    """The edition of a sample holds the tokenizer of a visitor's run, and goes with that visitor's data."""
    own, inside = (path.is_relative_to(workspace.folder) for path in (run, folder))
    if own and not inside and folder.resolve() not in noted(workspace.folder):
        note_files(workspace, [folder])


def check_made(folder: Path, title: str) -> None:
    """Raise UserError where the job that made an edition has ended before it was whole, and say why."""
    if is_built(folder):
        return
    _tell_failure(folder, title)
    stopped = jobs.status(folder).of_kind("stopped")
    why = (stopped[-1].get("why") if stopped else "") or "It was stopped before its end."
    raise UserError(f"{title} is not ready for this run yet. {why} Ask again to go on with it.")


def _tell_failure(folder: Path, title: str) -> None:
    """Raise UserError for a job that failed; what it made stays, and who asks again goes on from there."""
    status = jobs.status(folder)
    if status.state == "failed":
        (folder / "events.jsonl").unlink(missing_ok=True)
        said = status.of_kind("failed")[-1]["error"]
        raise UserError(f"{title} could not be made ready for this run: {said}")


def stop_edition(workspace: Workspace, run: Path, corpus: Path) -> None:
    """Stop the job that makes an edition where this visitor asked for it first; others go on."""
    config = read_any_config(run)
    if isinstance(config, RunConfig) and config.retrieves:
        folder = edition_of_stored(corpus, run, config.network.chunk_len)
        asked = [ticket.visitor for ticket in tickets.read_tickets(workspace.home) if ticket.folder == folder]
        if workspace.folder.name in asked:
            jobs.stop(folder)
