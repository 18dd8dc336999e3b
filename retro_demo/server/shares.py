"""What a visitor shares: a run as a .zip, somebody's .zip as a run or corpus, a run pushed to the Hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from retro_demo.corpus.corpus import is_built
from retro_demo.documents.archives import ReadingLimits
from retro_demo.errors import UserError
from retro_demo.jobs import jobs
from retro_demo.paths import SAMPLE
from retro_demo.runs.checkpoint import STATE
from retro_demo.server import dispatch, service
from retro_demo.server.evaluations import folder_of_evaluations
from retro_demo.server.limits import MEGABYTE, limits_of
from retro_demo.server.quotas import check_reading, check_run, check_space, check_text
from retro_demo.server.workspace import Workspace
from retro_demo.sharing.exporting import export_run, write_zip
from retro_demo.sharing.hub import check_address, push
from retro_demo.sharing.importing import (
    MISSING,
    Checked,
    checked_export,
    corpus_here,
    name_of_corpus,
    take_corpus,
    take_run,
)

LIMITS = ReadingLimits(total_bytes=1_000_000_000)


def export_zip(
    workspace: Workspace,
    run: str,
    folder: Path,
    *,
    with_corpus: bool = False,
    with_state: bool = False,
    license: str = "unknown",
) -> Path:
    """Write a run of the workspace, or a shipped one, as a .zip into `folder`; its path."""
    path = folder / f"{workspace.run(run).name}.zip"
    check_space(workspace)
    with tempfile.TemporaryDirectory(dir=workspace.make().folder, prefix=".export-") as scratch:
        out = Path(scratch) / "export"
        _export(workspace, run, out, with_corpus=with_corpus, with_state=with_state, license=license)
        write_zip(out, path)
    return path


def push_run(
    workspace: Workspace,
    run: str,
    repo: str,
    token: str,
    *,
    with_corpus: bool = False,
    with_state: bool = False,
    license: str = "unknown",
    private: bool = True,
) -> str:
    """Export a run and push it to the Hub with the visitor's own token, never the server's; its address."""
    check_address(repo, token)
    workspace.run(run)  # refuses what is no run
    check_space(workspace)  # the export lies there while it is pushed
    with tempfile.TemporaryDirectory(dir=workspace.make().folder, prefix=".export-") as scratch:
        out = Path(scratch) / "export"
        _export(workspace, run, out, with_corpus=with_corpus, with_state=with_state, license=license)
        return push(out, repo, token, private=private)


def _export(
    workspace: Workspace, run: str, out: Path, *, with_corpus: bool, with_state: bool, license: str
) -> None:
    folder = workspace.run(run)
    if with_corpus:
        service.check_ready(workspace, run)
        title, place = service.corpus_of_run(workspace, run)
        if jobs.is_at_work(place):
            raise UserError(f"{title} is being built or changed. Wait for its end, then export it.")
    export_run(
        folder,
        out,
        with_corpus=with_corpus,
        with_state=with_state,
        license=license or "unknown",
        evaluations=folder_of_evaluations(workspace, run),
    )


def import_zip(workspace: Workspace, file: tuple[str, Path], name: str = "") -> dict[str, Any]:
    """Check an uploaded .zip (name, where it lies) and make it a run or a corpus of the workspace.

    Returns kind, run and corpus (ids; "" = none), and what is missing or still being built, in words.
    """
    given, path = file
    if not given.lower().endswith(".zip"):
        raise UserError(f"{given[:80]!r} is no .zip. Choose the .zip of an export.")
    check_space(workspace, path.stat().st_size)
    most = limits_of(workspace.home).text_megabytes * MEGABYTE
    with checked_export(path, workspace.make().folder, LIMITS, most) as export:
        workspace.check_there()
        check_space(workspace)  # with what was unpacked, which becomes the run
        return _take(workspace, export, name or export.manifest.name)


def _take(workspace: Workspace, export: Checked, name: str) -> dict[str, Any]:
    if export.config is not None:  # its steps are looked at where it goes on
        check_run(limits_of(workspace.home), export.config.network, 0)
        check_reading(limits_of(workspace.home), export.config)
    corpora = {corpus: workspace.corpus(corpus) for corpus in workspace.corpora()}
    here = corpus_here(export, [folder for folder in corpora.values() if is_built(folder)])
    corpus = next((one for one, folder in corpora.items() if folder == here), "")
    notes = []
    if export.corpus is not None and not corpus:
        check_text(workspace.home, export.text_bytes)
        corpus = _begin_corpus(workspace, export, name)
        notes.append("Its corpus is being indexed now: follow that on the Corpus tab.")
    if export.config is None:
        notes += [] if notes else [f"This corpus is here already, as {service.corpus_title(corpus)}."]
        return {"kind": "corpus", "run": "", "corpus": corpus, "notes": notes}
    place = None if not corpus or corpus.startswith(SAMPLE) else workspace.corpus(corpus)
    named = corpus if corpus.startswith(SAMPLE) else name_of_corpus(export, place)
    if named.startswith(MISSING):
        notes.append(
            f"Its corpus, {export.manifest.corpus.title}, is not in the export and not in this workspace: "
            "where the run reads one, choose another."
        )
    if not (export.folder / STATE).exists():
        notes.append("It came without its optimizer state, so it cannot be trained on.")
    folder = workspace.new_folder("runs", name)
    try:
        take_run(export, folder, named, [workspace.run(run) for run in workspace.runs()])
    except BaseException:
        shutil.rmtree(folder)
        raise
    return {"kind": "run", "run": folder.name, "corpus": corpus, "notes": notes}


def _begin_corpus(workspace: Workspace, export: Checked, name: str) -> str:
    folder = workspace.new_folder("corpora", export.manifest.corpus.title if export.config else name)
    try:
        take_corpus(export, folder)
        dispatch.begin(workspace, folder, "build-corpus")
    except BaseException:
        shutil.rmtree(folder)  # nothing was begun
        raise
    return folder.name
