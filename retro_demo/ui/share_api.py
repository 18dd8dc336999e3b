"""Public HTTP endpoints that share: a run as a .zip, and a .zip as a run or corpus."""

from __future__ import annotations

import gradio as gr

from retro_demo.server import shares
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import SHARE
from retro_demo.ui.refusals import public
from retro_demo.ui.uploads import exported, uploaded


def add_share_endpoints(library: Library) -> None:
    """Publish the endpoints; call inside the Blocks of the page."""
    home = library.home

    def export_run(
        workspace: str, run: str, with_corpus: bool = False, with_state: bool = False, license: str = ""
    ) -> gr.FileData:
        """A run as a .zip to download: weights, tokenizer, config and a card with its figures; where asked
        its corpus (the texts) and the optimizer state from which a training goes on."""
        space = Workspace.open(home, workspace)
        path = exported(
            space, run, with_corpus=bool(with_corpus), with_state=bool(with_state), license=license
        )
        return gr.FileData(path=str(path), orig_name=path.name)

    def import_run(workspace: str, file: gr.FileData, name: str = "") -> dict:
        """Check the .zip of an export and make it a run or corpus of the workspace. Returns kind, run and
        corpus (ids) and notes: what is missing, or is being indexed."""
        space = Workspace.open(home, workspace)
        return shares.import_zip(space, uploaded(space, file), name)

    publish = gr.api  # pyright: ignore[reportPrivateImportUsage]
    for endpoint in (export_run, import_run):
        publish(public(endpoint), api_name=endpoint.__name__, **SHARE)
