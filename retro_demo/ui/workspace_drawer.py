"""Where a visitor finds the code of the workspace, comes back with one, and deletes it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from retro_demo.server.janitor import delete_workspace
from retro_demo.server.library import Library
from retro_demo.server.limits import Limits, limits_of
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.form import CHEAP, QUIET, shows_errors

RELOAD = "() => window.location.reload()"
SURE = (
    "(code, answer) => [code, window.confirm('Delete your whole workspace: all corpora, runs and texts under "
    "this code? This cannot be undone.') ? 'yes' : 'no']"
)


def workspace_drawer(library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the drawer and wire it."""
    home = library.home
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
        forget_visitor(library, known)
        return new_code()

    arrival.then(lambda known: known, visitor, code, **QUIET)
    open_it.click(change, code, visitor, **CHEAP).success(None, js=RELOAD)
    delete.click(remove, [visitor, answer], visitor, js=SURE, **CHEAP).success(None, js=RELOAD)


def forget_visitor(library: Library, code: str) -> int:
    """End a visitor's jobs and delete all that is kept of them; the bytes that are free again."""
    folder = Workspace.open(library.home, code).folder
    library.forget(folder)
    freed = delete_workspace(library.home, code) if folder.is_dir() else 0  # nothing was ever written
    library.forget(folder)  # what was asked for while its jobs ended
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
