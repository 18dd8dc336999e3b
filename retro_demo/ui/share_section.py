"""Sharing on the Train tab: a run as a .zip for others, a .zip of others as a run, and the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.render import html_parts
from retro_demo.server import run_actions
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import CHEAP, PRIVATE, SHARE, Values, shows_errors
from retro_demo.ui.uploads import chosen_files, exported, note_uploads

PUSHES = PRIVATE | {"concurrency_id": "push", "concurrency_limit": 2}  # minutes, on a slow line to the Hub


class ShareSection:
    """A run as a .zip for others, a .zip of others as a run, and the Hub."""

    def __init__(self, home: Path, visitor: gr.BrowserState, refreshed: Callable[..., Values]) -> None:
        """`refreshed` gives the values of the tab for a code and a run."""
        self.home, self.refreshed = home, refreshed
        with gr.Accordion("Share: export, import, push to the Hub", open=False, elem_id="share"), gr.Row():
            with gr.Column(min_width=320):
                self._export_column()
            with gr.Column(min_width=320):
                self._import_column(visitor)
            with gr.Column(min_width=320):
                self._push_column()

    def _export_column(self) -> None:
        gr.HTML(
            "<p class='caption'>An export is a .zip of the chosen run: weights, tokenizer, settings "
            "and a card with its figures and what was not measured. Nothing of this server's folders "
            "is in it.</p>"
        )
        self.along = gr.CheckboxGroup(
            [("its corpus (the texts!)", "corpus"), ("what a training goes on from", "state")],
            label="Take along",
            elem_id="share-along",
            info="Share texts only where you may.",
        )
        self.license = gr.Textbox(
            label="License",
            max_lines=1,
            elem_id="share-license",
            info="Short name for the card, such as mit or cc-by-4.0. Empty: unknown.",
        )
        self.make = gr.Button("Export the chosen run", elem_id="export-run")
        self.made = gr.DownloadButton("Download", size="sm", visible=False, elem_id="download-export")

    def _import_column(self, visitor: gr.BrowserState) -> None:
        self.file = gr.File(label="An export (.zip)", file_types=[".zip"], elem_id="import-file", height=120)
        note_uploads(self.file, self.home, visitor)
        self.name = gr.Textbox(
            label="Name here", max_lines=1, elem_id="import-name", info="Empty: the one in the export."
        )
        self.bring = gr.Button("Import", elem_id="import-run")
        self.brought = gr.HTML(elem_id="imported")

    def _push_column(self) -> None:
        self.repo = gr.Textbox(label="Repository", max_lines=1, elem_id="push-repo", info="OWNER/NAME")
        self.token = gr.Textbox(
            label="Your token",
            type="password",
            max_lines=1,
            elem_id="push-token",
            info="With write access. It is used once, for this push, and neither kept nor logged.",
        )
        self.private = gr.Checkbox(
            True, label="Private repository", elem_id="push-private", info="Only you can see it there."
        )
        self.push = gr.Button("Push the chosen run", elem_id="push-run")
        self.pushed = gr.HTML(elem_id="pushed")

    def wire(self, visitor: gr.BrowserState, run: gr.Dropdown, outputs: Sequence[Any]) -> None:
        """`outputs` are what `refreshed` gives values for."""
        chosen = [visitor, run]
        run.change(lambda: gr.DownloadButton(visible=False), None, self.made, **CHEAP)
        exported_with = [*chosen, self.along, self.license]
        self.make.click(shows_errors(self.export), exported_with, self.made, **PRIVATE, **SHARE)
        brought = [self.brought, self.file, *outputs]
        self.bring.click(
            shows_errors(self.import_archive), [*chosen, self.file, self.name], brought, **PRIVATE, **SHARE
        )
        told = [*chosen, self.repo, self.token, self.private, self.along, self.license]
        self.push.click(shows_errors(self.push_run), told, [self.pushed, self.token], **PUSHES)

    def export(self, code: str, run: str | None, along: list[str], license: str) -> Values:
        workspace = Workspace.open(self.home, code)
        path = exported(workspace, run or "", **_taken(along, license))
        label = f"Download {path.name} ({path.stat().st_size / 1e6:.1f} MB)"
        return {self.made: gr.DownloadButton(label, value=str(path), visible=True)}

    def import_archive(self, code: str, run: str | None, path: str | None, name: str) -> Values:
        if not path:
            raise UserError("There is nothing to import. Choose the .zip of an export first.")
        workspace = Workspace.open(self.home, code)
        (given,) = chosen_files(workspace, path)
        result = run_actions.import_zip(workspace, given, name.strip())
        what = f"The run {result['run']} is yours now." if result["run"] else "The corpus is taken in."
        said = html_parts.note(" ".join([what, *result["notes"]]))
        return {self.brought: said, self.file: None, **self.refreshed(code, result["run"] or run)}

    def push_run(
        self, code: str, run: str | None, repo: str, token: str, private: bool, along: list[str], license: str
    ) -> Iterator[Values]:
        """No page keeps a token, whatever comes of the push."""
        yield {self.pushed: "", self.token: ""}
        workspace = Workspace.open(self.home, code)
        how = {**_taken(along, license), "private": bool(private)}
        url = run_actions.push_run(workspace, run or "", repo.strip(), token.strip(), **how)
        yield {self.pushed: html_parts.note(f"It is at {url} now."), self.token: ""}


def _taken(along: list[str], license: str) -> dict[str, Any]:
    return {"with_corpus": "corpus" in along, "with_state": "state" in along, "license": license.strip()}
