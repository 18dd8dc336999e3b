"""What the Evidence tab shows as a file, written when somebody asks for it and not at every look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain.evidence_export import matrix_json
from retro_demo.explain.evidence_run import reindexing_at
from retro_demo.explain.evidence_sample import choose_sample
from retro_demo.explain.evidence_series import reindexes
from retro_demo.jobs import jobs
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import LOOKS, json_file, shows_errors

# a moment after the file has its address in the page
SAVE = "() => { setTimeout(() => document.querySelector('#evidence-file').click(), 300); }"


def evidence_file(library: Library, looks: Sequence[Any]) -> None:
    """Build the button and wire it; `looks` are the widgets that the pictures are drawn from."""
    button = gr.Button(
        "Download matrix, map and figures with where they come from (JSON)",
        size="sm",
        elem_id="evidence-download",
    )
    # a button to download sends what it has when it is pressed, so this one is pressed once it has the file;
    # style.css hides it, because Gradio shows what it hides itself after the first look at a run
    file = gr.DownloadButton("Download", elem_id="evidence-file")

    @shows_errors
    def write_file(code: str, name: str | None, how: str, some: list[str], *look: Any) -> str:
        if not name:
            raise UserError("There is no run yet. Choose one first.")
        order, _, place, _ = look
        folder = Workspace.open(library.home, code).run(name)
        source, first, now = (
            library.marge_corpus(folder),
            reindexing_at(folder, 0),
            reindexing_at(folder, place),
        )
        sample = choose_sample(
            source.passages, now.rows, held_out=how == "held-out", order=order, languages=some or []
        )
        rows = reindexes(jobs.status(folder))
        return json_file("evidence.json", matrix_json(folder, source, sample, first, now, rows))

    button.click(write_file, list(looks), file, **LOOKS).success(None, js=SAVE)
