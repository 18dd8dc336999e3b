"""On the Train tab: a run as a .zip for others, a .zip of others as a run, and the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.render import views
from retro_demo.server import shares
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import CHEAP, PRIVATE, SHARE, shows_errors
from retro_demo.ui.uploads import chosen_files, exported, note_uploads

PUSHES = PRIVATE | {"concurrency_id": "push", "concurrency_limit": 2}  # minutes, on a slow line to the Hub


def share_section(
    library: Library,
    visitor: gr.BrowserState,
    run: gr.Dropdown,
    refreshed: Callable[[str, str | None], list[Any]],
    all_of_it: list[Any],
) -> None:
    """Build the section and wire it; `refreshed` gives the values of `all_of_it` for a run."""
    home = library.home
    with gr.Accordion("Share: export, import, push to the Hub", open=False, elem_id="share"), gr.Row():
        with gr.Column(min_width=320):
            gr.HTML(
                "<p class='caption'>An export is a .zip of the chosen run: weights, tokenizer, settings "
                "and a card with its figures and what was not measured. Nothing of this server's folders "
                "is in it.</p>"
            )
            along = gr.CheckboxGroup(
                [("its corpus (the texts!)", "corpus"), ("what a training goes on from", "state")],
                label="Take along",
                elem_id="share-along",
                info="Share texts only where you may.",
            )
            license = gr.Textbox(
                label="License",
                max_lines=1,
                elem_id="share-license",
                info="Short name for the card, such as mit or cc-by-4.0. Empty: unknown.",
            )
            make = gr.Button("Export the chosen run", elem_id="export-run")
            made = gr.DownloadButton("Download", size="sm", visible=False, elem_id="download-export")
        with gr.Column(min_width=320):
            file = gr.File(label="An export (.zip)", file_types=[".zip"], elem_id="import-file", height=120)
            note_uploads(file, home, visitor)
            name = gr.Textbox(
                label="Name here",
                max_lines=1,
                elem_id="import-name",
                info="Empty: the one in the export.",
            )
            bring = gr.Button("Import", elem_id="import-run")
            brought = gr.HTML(elem_id="imported")
        with gr.Column(min_width=320):
            repo = gr.Textbox(label="Repository", max_lines=1, elem_id="push-repo", info="OWNER/NAME")
            token = gr.Textbox(
                label="Your token",
                type="password",
                max_lines=1,
                elem_id="push-token",
                info="With write access. It is used once, for this push, and neither kept nor logged.",
            )
            private = gr.Checkbox(
                True, label="Private repository", elem_id="push-private", info="Only you can see it there."
            )
            push = gr.Button("Push the chosen run", elem_id="push-run")
            pushed = gr.HTML(elem_id="pushed")

    @shows_errors
    def export(code: str, one: str | None, what: list[str], terms: str) -> Any:
        workspace = Workspace.open(home, code)
        taken = {"with_corpus": "corpus" in what, "with_state": "state" in what}
        path = exported(workspace, one or "", license=terms.strip(), **taken)
        megabytes = path.stat().st_size / 1e6
        return gr.DownloadButton(f"Download {path.name} ({megabytes:.1f} MB)", value=str(path), visible=True)

    @shows_errors
    def bring_in(code: str, one: str | None, path: str | None, wanted: str) -> list[Any]:
        if not path:
            raise UserError("There is nothing to import. Choose the .zip of an export first.")
        workspace = Workspace.open(home, code)
        (given,) = chosen_files(workspace, path)
        result = shares.import_zip(workspace, given, wanted.strip())
        what = f"The run {result['run']} is yours now." if result["run"] else "The corpus is taken in."
        said = views.note(" ".join([what, *result["notes"]]))
        return [said, None, *refreshed(code, result["run"] or one)]

    @shows_errors
    def push_it(
        code: str, one: str | None, where: str, secret: str, hidden: bool, what: list[str], terms: str
    ) -> Iterator[list[Any]]:
        """pushed, token: no page keeps a token, whatever comes of the push."""
        yield ["", ""]
        url = shares.push_run(
            Workspace.open(home, code),
            one or "",
            where.strip(),
            secret.strip(),
            with_corpus="corpus" in what,
            with_state="state" in what,
            license=terms.strip(),
            private=bool(hidden),
        )
        yield [views.note(f"It is at {url} now."), ""]

    chosen = [visitor, run]
    run.change(lambda: gr.DownloadButton(visible=False), None, made, **CHEAP)
    make.click(export, [*chosen, along, license], made, **PRIVATE, **SHARE)
    bring.click(bring_in, [*chosen, file, name], [brought, file, *all_of_it], **PRIVATE, **SHARE)
    told = [*chosen, repo, token, private, along, license]
    push.click(push_it, told, [pushed, token], **PUSHES)
