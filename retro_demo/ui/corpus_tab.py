"""The Corpus tab: build from files, watch, see figures, search, add, weigh and forget documents."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from retro_demo.corpus.embedding import nothing_found
from retro_demo.corpus.retrievers import search, search_doubt
from retro_demo.documents.kinds import KIND_NAMES
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.paths import SAMPLE
from retro_demo.render import html_parts, job_views
from retro_demo.server import corpus_changes, run_actions, service
from retro_demo.server.messages import on_page
from retro_demo.server.model_cache import Library
from retro_demo.server.workspace import Workspace, disk_use
from retro_demo.settings import RETRIEVERS, AddConfig, CorpusConfig
from retro_demo.ui.form import (
    CHEAP,
    MODEL,
    PRIVATE,
    QUIET,
    Form,
    command_box,
    json_file,
    once_known,
    shown_command,
    shows_errors,
    stop_and_resume,
    sure,
)
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
        return [job_views.weighed_html(result), kept]

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


def corpus_tab(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    home = library.home
    form = Form(CorpusConfig, choices=service.VISITOR_CHOICES)
    shown_before = gr.State("")
    timer = gr.Timer(1.0, active=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.HTML(
                f"<h2>Build a {html_parts.term('corpus')}</h2><p class='caption'>Drop a dozen or more texts, "
                "or one long one: what makes neighbors useful is that documents resemble each other. "
                f"They may be {KIND_NAMES}; also in .zip and .gz.</p>"
            )
            files = documents_picker("Files", "files", 150, home, visitor)
            name = gr.Textbox(
                label="Name", max_lines=1, elem_id="corpus-name", info="Empty: that of the first file."
            )
            form.show(main=True)
            with gr.Accordion("All knobs", open=False):
                form.show(main=False, without=("max_megabytes",))
            build = gr.Button("Build", variant="primary", elem_id="build")
        with gr.Column(scale=3, min_width=320):
            corpus = gr.Dropdown(
                [], label="Corpus", info="The shipped sample and those you built.", elem_id="corpus"
            )
            status = gr.HTML(elem_id="build-status", min_height=60)
            with gr.Row(elem_classes="actions"):
                stop = gr.Button("Stop", size="sm", elem_id="stop-building")
                resume = gr.Button("Resume", size="sm", elem_id="resume-building")
            stats = gr.HTML(elem_id="statistics")
            command = command_box("The command that builds the same", "build-command")
            stats_file = gr.DownloadButton(
                "Download the statistics and where they come from (JSON)",
                size="sm",
                visible=False,
                elem_id="download-statistics",
            )
    gr.HTML(
        f"<h2>Try a search</h2><p class='caption'>The nearest {html_parts.term('chunk', 'chunks')} of the "
        f"chosen corpus, each with its {html_parts.term('continuation')}. The {html_parts.term('retriever')} "
        f"goes by vectors (dense), by shared tokens or words ({html_parts.term('BM25')}), or by both "
        f"({html_parts.term('hybrid')}).</p>"
    )
    with gr.Row(elem_classes="actions"):
        query = gr.Textbox(
            label="Text",
            max_lines=1,
            info="What to look for, in words or as a text.",
            placeholder="an island nation that exports fish",
            elem_id="query",
            scale=5,
            min_width=200,
        )
        finder = gr.Dropdown(
            list(RETRIEVERS),
            value="dense",
            label="Retriever",
            info="Explained above.",
            elem_id="finder",
            min_width=110,
        )
        count = gr.Number(4, label="How many", info="At most.", precision=0, elem_id="count", min_width=90)
        find = gr.Button("Search", elem_id="search", min_width=90)
    found = gr.HTML(elem_id="found")
    found_file = gr.DownloadButton(
        "Download what was found and where it comes from (JSON)",
        size="sm",
        visible=False,
        elem_id="download-found",
    )
    changes = gr.Column()
    with gr.Accordion("All corpora, disk use, rename, delete", open=False):
        listing = gr.HTML(elem_id="corpora")
        with gr.Row(elem_classes="actions"):
            new_name = gr.Textbox(
                label="New name of the chosen corpus", max_lines=1, elem_id="corpus-new-name"
            )
            rename = gr.Button("Rename", elem_id="rename-corpus", min_width=90)
            answer = gr.Textbox(visible=False)
            delete = gr.Button(
                "Delete the chosen corpus", variant="stop", elem_id="delete-corpus", min_width=200
            )

    def state_of(workspace: Workspace, one: str) -> tuple[lifecycle.JobStatus, dict[str, Any] | None]:
        folder = workspace.corpus(one)
        return corpus_changes.corpus_status(folder), service.statistics(folder)

    def follow_now(code: str, one: str | None, before: str) -> list[Any]:
        """The values of `followed`; figures are drawn anew only when they changed."""
        hidden = gr.DownloadButton(visible=False)
        if not one:
            return ["", "", "", hidden, *stop_and_resume(""), gr.Timer(active=False), ""]
        workspace = Workspace.open(home, code)
        if one not in workspace.corpora():
            gone = html_parts.note("Choose a corpus from the list.")
            return ["", gone, "", hidden, *stop_and_resume(""), gr.Timer(active=False), ""]
        now, built = state_of(workspace, one)
        mark = f"{one} {now.state} {len(now.events)} {now.place} {built is not None}"
        if mark == before:
            return [*[gr.skip()] * 6, gr.Timer(active=now.under_way), before]
        return [
            job_views.build_status(now, service.corpus_title(one)),
            job_views.corpus_statistics(built),
            shown_command(run_actions.build_command(workspace.corpus(one), one)),
            hidden if built is None else _download("statistics.json", _statistics(workspace, one, built)),
            *stop_and_resume(now.state),
            gr.Timer(active=now.under_way),
            mark,
        ]

    def refreshed(code: str, one: str | None) -> list[Any]:
        """corpus, listing, then what `follow_now` gives."""
        workspace = Workspace.open(home, code)
        names = workspace.corpora()
        chosen = one if one in names else names[0]
        rows = []
        for each in names:
            now, built = state_of(workspace, each)
            used = disk_use(workspace.corpus(each)) if workspace.corpus(each).is_dir() else 0
            rows.append((service.corpus_title(each), now.state, built and built["documents"], used))
        choices = [(service.corpus_title(each), each) for each in names]
        return [
            gr.Dropdown(choices, value=chosen),
            job_views.corpora_table(rows),
            *follow_now(code, chosen, ""),
        ]

    @once_known
    def refresh(code: str, one: str | None) -> list[Any]:
        return refreshed(code, one)

    @once_known
    def follow(code: str, one: str | None, before: str) -> list[Any]:
        return follow_now(code, one, before)

    @shows_errors
    def begin(code: str, paths: list[str] | None, wanted: str, *values: Any) -> list[Any]:
        config = CorpusConfig(**form.read(values))
        workspace = Workspace.open(home, code)
        return refreshed(code, service.start_build(workspace, chosen_files(workspace, paths), wanted, config))

    @shows_errors
    def go_on(code: str, one: str) -> list[Any]:
        service.resume_build(Workspace.open(home, code), one)
        return refreshed(code, one)

    @shows_errors
    def end(code: str, one: str | None) -> None:
        one = one or ""
        if one.startswith(SAMPLE):
            raise UserError(f"{service.corpus_title(one)} is built for all visitors. Let it go on.")
        if not lifecycle.stop(Workspace.open(home, code).corpus(one)):
            raise UserError(f"{one} is not being built.")

    @shows_errors
    def look_up(code: str, one: str, words: str, by: str, k: float | None) -> list[Any]:
        folder, count = service.built_corpus(Workspace.open(home, code), one), int(k or 0)
        database = library.corpus(folder, by)
        begun = time.perf_counter()
        near = search(database.corpus, database.retriever, words, count)
        doubted = search_doubt(database.corpus, database.retriever, words)
        nothing = nothing_found(by, database.corpus.manifest["statistics"])
        seconds = time.perf_counter() - begun
        kept = run_actions.search_json(
            folder, one, text=words, retriever=by, k=count, found=near, seconds=seconds
        )
        return [
            html_parts.found_html(near, doubted=on_page(doubted), nothing=nothing),
            _download("search.json", kept),
        ]

    @shows_errors
    def call_it(code: str, one: str, wanted: str) -> list[Any]:
        return refreshed(code, corpus_changes.rename_corpus(Workspace.open(home, code), one, wanted))

    @shows_errors
    def remove(code: str, one: str, answer: str) -> list[Any]:
        if answer != "yes":
            return refreshed(code, None)
        corpus_changes.delete_corpus(Workspace.open(home, code), one)
        return refreshed(code, None)

    followed = [status, stats, command, stats_file, stop, resume, timer, shown_before]
    all_of_it = [corpus, listing, *followed]
    with changes:
        change_section(library, visitor, corpus, refreshed, all_of_it)
    build.click(begin, [visitor, files, name, *form.inputs], all_of_it, **CHEAP)
    resume.click(go_on, [visitor, corpus], all_of_it, **CHEAP)
    stop.click(end, [visitor, corpus], None, **CHEAP)
    corpus.input(follow, [visitor, corpus, gr.State("")], followed, **QUIET)
    timer.tick(follow, [visitor, corpus, shown_before], followed, **QUIET)
    gr.on(
        [find.click, query.submit],
        look_up,
        [visitor, corpus, query, finder, count],
        [found, found_file],
        concurrency_limit=2,
        **PRIVATE,
    )
    rename.click(call_it, [visitor, corpus, new_name], all_of_it, **CHEAP)
    delete.click(remove, [visitor, corpus, answer], all_of_it, js=sure("corpus"), **CHEAP)
    for begun in (arrival.then, tab.select):
        begun(refresh, [visitor, corpus], all_of_it, **QUIET)


def _statistics(workspace: Workspace, one: str, built: dict[str, Any]) -> dict[str, Any]:
    return run_actions.corpus_json(workspace.corpus(one), one, built)


def _download(name: str, values: dict[str, Any]) -> gr.DownloadButton:
    return gr.DownloadButton(value=json_file(name, values), visible=True)
