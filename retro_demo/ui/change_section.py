"""On the Corpus tab: documents to add or to forget, and which tokens of a run would miss them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from retro_demo.change_config import AddConfig
from retro_demo.paths import SAMPLE
from retro_demo.render import weigh_views
from retro_demo.server import corpus_changes
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import CHEAP, MODEL, PRIVATE, QUIET, Form, json_file, once_known, shows_errors
from retro_demo.ui.uploads import chosen_files, documents_picker


def change_section(
    library: Library,
    visitor: gr.BrowserState,
    corpus: gr.Dropdown,
    refreshed: Callable[[str, str | None], list[Any]],
    all_of_it: list[Any],
) -> None:
    """Build the section below the statistics and wire it; `refreshed` gives the values of `all_of_it`."""
    home = library.home
    form = Form(AddConfig, prefix="add-")
    with gr.Accordion("Add or forget documents", open=False, elem_id="changes") as section:
        gr.HTML(
            "<p class='caption'>Nothing that is there is embedded anew, and what is held out stays held out. "
            "A run that was trained on the corpus as it was cannot train on; it can read the changed one as "
            "another corpus.</p>"
        )
        name = gr.Textbox(
            label="Make the changed corpus under this name",
            max_lines=1,
            elem_id="changed-name",
            info="Empty: change the chosen corpus itself. The shipped ones stay as they are.",
        )
        with gr.Row():
            with gr.Column(min_width=320):
                files = documents_picker("Documents to add", "more-files", 120, home, visitor)
                form.show(main=True)
                form.show(main=False, without=("max_megabytes",))
                add = gr.Button("Add", elem_id="add-documents")
            with gr.Column(min_width=320):
                documents = gr.Dropdown(
                    [],
                    label="Documents to forget",
                    multiselect=True,
                    allow_custom_value=True,
                    elem_id="forget-which",
                    info="By title or id.",
                )
                forget = gr.Button("Forget", variant="stop", elem_id="forget")
                run = gr.Dropdown(
                    [],
                    label="A run that may miss them",
                    elem_id="missing-run",
                    info="It reads the chosen corpus.",
                )
                text = gr.Textbox(
                    label="In this text",
                    lines=3,
                    max_lines=8,
                    elem_id="missing-text",
                    info="Empty: held-out text that finds them.",
                )
                weigh = gr.Button("Which tokens would lose their gain?", elem_id="weigh")
        missed = gr.HTML(elem_id="missed")
        missed_file = gr.DownloadButton(
            "Download what would be lost and where it comes from (JSON)",
            size="sm",
            visible=False,
            elem_id="download-missed",
        )

    @once_known
    def list_choices(code: str, one: str | None) -> list[Any]:
        workspace = Workspace.open(home, code)
        there = one in workspace.corpora()
        choices = corpus_changes.listed_documents(workspace.corpus(str(one))) if there else []
        runs = [(id_.removeprefix(SAMPLE), id_) for id_ in corpus_changes.retrieving_runs(workspace)]
        first = runs[0][1] if runs else None
        return [gr.Dropdown(choices, value=[]), gr.Dropdown(runs, value=first)]

    @shows_errors
    def begin_add(code: str, one: str, wanted: str, paths: list[str] | None, *values: Any) -> list[Any]:
        config = AddConfig(**form.read(values))
        workspace = Workspace.open(home, code)
        given = chosen_files(workspace, paths)
        return refreshed(
            code, corpus_changes.start_change(workspace, one, files=given, config=config, name=wanted)
        )

    @shows_errors
    def begin_forget(code: str, one: str, wanted: str, names: list[str] | None) -> list[Any]:
        workspace = Workspace.open(home, code)
        return refreshed(code, corpus_changes.start_change(workspace, one, forget=names or [], name=wanted))

    @shows_errors
    def look(code: str, one: str, names: list[str] | None, who: str | None, words: str) -> list[Any]:
        workspace = Workspace.open(home, code)
        result = corpus_changes.weigh_documents(
            library, workspace, who or "", names or [], text=words.strip(), corpus=one
        )
        kept = gr.DownloadButton(value=json_file("forgotten.json", result), visible=True)
        return [weigh_views.weighed_html(result), kept]

    for shown in (section.expand, corpus.change):
        shown(list_choices, [visitor, corpus], [documents, run], **QUIET)
    add.click(begin_add, [visitor, corpus, name, files, *form.inputs], all_of_it, **CHEAP)
    forget.click(begin_forget, [visitor, corpus, name, documents], all_of_it, **CHEAP)
    weigh.click(
        look,
        [visitor, corpus, documents, run, text],
        [missed, missed_file],
        **PRIVATE,
        **MODEL,
    )
