"""Files and exports of a visitor, and the account panel with the code of the workspace.

In the panel a visitor finds the code, comes back with one, and deletes the workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from retro_demo.errors import UserError
from retro_demo.render.wording import values_to_program
from retro_demo.server import run_actions, service
from retro_demo.server.cleanup import delete_workspace
from retro_demo.server.limits import Limits, limits_of
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code, note_export, note_files
from retro_demo.ui.form import CHEAP, QUIET, download, once_known, shows_errors


def followed(folder: Path, what: str, **about: str) -> Iterator[dict[str, Any]]:
    """The events of the job in a folder until it ends, with each what it is `about`, as corpus=ID; before
    them its places in the queue, if it waits.

    Raises UserError where it fails; `what` is what it does, as in "The build was interrupted."
    """
    sent, place = 0, 0
    for status in service.follow(folder):
        if status.queue_position not in (0, place):
            place = status.queue_position
            yield {"event": "waiting", "place": place, "waiting": status.waiting} | about
        for event in status.events[sent:]:
            yield values_to_program(event) | about
        sent = len(status.events)
    if status.state in ("failed", "interrupted"):
        failed = status.of_kind("failed")
        raise UserError(failed[-1]["error"] if failed else f"The {what} was interrupted. {status.why}")
    if place and status.state == "new":
        raise UserError(f"The {what} was taken out of the queue before it began. Resume it.")


def documents_picker(label: str, elem_id: str, height: int, home: Path, visitor: gr.BrowserState) -> gr.File:
    """Where a visitor chooses files of documents.

    Of any kind: the widget would refuse by listing all suffixes, the build does it in a sentence.
    """
    picker = gr.File(label=label, file_count="multiple", elem_id=elem_id, height=height)
    return note_uploads(picker, home, visitor)


def uploaded(workspace: Workspace, file: Any) -> tuple[str, Path]:
    """Name and place of an uploaded file, which goes with the workspace from now on.

    Raises UserError for what was not uploaded here, or is there no more.
    """
    values = file if isinstance(file, dict) else getattr(file, "model_dump", dict)()
    path = Path(str(values.get("path") or ""))
    return _taken(workspace, path, str(values.get("orig_name") or path.name))


def chosen_files(workspace: Workspace, paths: list[str] | str | None) -> list[tuple[str, Path]]:
    """As `uploaded`, for the files that a picker of the page shows; it shows them also when they are gone."""
    return [_taken(workspace, path, path.name) for path in _several(paths)]


def _taken(workspace: Workspace, path: Path, name: str) -> tuple[str, Path]:
    path = path.resolve()
    if not _came_here(path):
        raise UserError("A file was not uploaded here. Send it with gradio_client's handle_file.")
    if not path.is_file():
        raise UserError(f"{name[:80]!r} is not there any more: uploads go after an hour. Upload it again.")
    note_files(workspace.make(), [path])
    return name, path


def exported(workspace: Workspace, run: str, **options: Any) -> Path:
    """A run as a .zip to download, as `run_actions.export_zip`; the visitor's older export of it goes."""
    path = download(lambda folder: run_actions.export_zip(workspace, run, folder, **options))
    note_export(workspace, path)
    return path


def note_uploads(picker: gr.File, home: Path, visitor: gr.BrowserState) -> gr.File:
    """The picker, whose files go with the visitor's workspace from the moment they are here."""

    def note(code: str, paths: list[str] | str | None) -> None:
        if here := [path for path in _several(paths) if _came_here(path) and path.is_file()]:
            note_files(Workspace.open(home, code).make(), here)

    picker.upload(once_known(note), [visitor, picker], None, **QUIET)
    return picker


def _several(paths: list[str] | str | None) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, str) else paths or [])]


def _came_here(path: Path) -> bool:
    return path.resolve().is_relative_to(Path(get_upload_folder()).resolve())


RELOAD = """() => {
  const at = new URL(location.href);
  for (const name of ['tab', 'run', 'corpus']) at.searchParams.delete(name);  // of another workspace
  history.replaceState(null, '', at);
  location.reload();
}"""
SURE = (
    "(code, answer) => [code, window.confirm('Delete your whole workspace: all corpora, runs and texts under "
    "this code? This cannot be undone.') ? 'yes' : 'no']"
)


def account_panel(cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the drawer and wire it."""
    home = cache.home
    with gr.Accordion("Your workspace", open=False, elem_id="workspace"):
        gr.HTML(
            "<p class='caption'>Corpora, runs and texts are kept under this code, in this browser. Keep "
            "it to come back from elsewhere, or to call the HTTP endpoints; who knows it sees your work.</p>"
            f"<p class='caption' id='privacy'>{privacy(limits_of(home))}</p>"
        )
        with gr.Row(elem_classes="actions"):
            code = gr.Textbox(label="Workspace code", max_lines=1, buttons=["copy"], elem_id="code")
            open_it = gr.Button("Open the workspace of this code", elem_id="open-workspace")
            answer = gr.Textbox(visible=False)
            delete = gr.Button("Delete all my data", variant="stop", elem_id="delete-workspace")

    @shows_errors
    def change(wanted: str) -> str:
        workspace = Workspace.open(home, wanted.strip())
        return workspace.folder.name

    @shows_errors
    def remove(known: str, answer: str) -> str:
        if answer != "yes":
            return known
        forget_visitor(cache, known)
        return new_code()

    arrival.then(lambda known: known, visitor, code, **QUIET)
    open_it.click(change, code, visitor, **CHEAP).success(None, js=RELOAD)
    delete.click(remove, [visitor, answer], visitor, js=SURE, **CHEAP).success(None, js=RELOAD)


def forget_visitor(cache: ModelCache, code: str) -> int:
    """End a visitor's jobs and delete all that is kept of them; the bytes that are free again."""
    folder = Workspace.open(cache.home, code).folder
    cache.forget(folder)
    freed = delete_workspace(cache.home, code) if folder.is_dir() else 0  # nothing was ever written
    cache.forget(folder)  # what was asked for while its jobs ended
    return freed


def privacy(limits: Limits) -> str:
    """What becomes of what a visitor brings, in plain words."""
    days = ""
    if limits.keep_days:
        days = f"It is deleted when nobody has used it for {limits.keep_days} days on which this server ran, "
    return (
        "What you upload and make stays on this server, whose operator could read it. Other visitors cannot, "
        f"and it is sent nowhere. {days or 'It is deleted '}{'or ' if days else ''}at once when you press "
        "Delete all my data, with the files you brought and the exports you made. Figures you downloaded "
        "go an hour after they were made. So bring nothing secret."
    )
