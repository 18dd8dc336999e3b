"""The Corpus tab: build one from files, watch it, see its figures, search in it, tidy up."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from retro_demo.config import RETRIEVERS, CorpusConfig
from retro_demo.corpus.search import search, search_doubt
from retro_demo.corpus.unknown_text import nothing_found
from retro_demo.documents.reader import KIND_NAMES
from retro_demo.errors import UserError
from retro_demo.jobs import jobs
from retro_demo.paths import SAMPLE
from retro_demo.render import job_views, views
from retro_demo.server import corpus_changes, downloads, service
from retro_demo.server.library import Library
from retro_demo.server.telling import on_page
from retro_demo.server.workspace import Workspace, disk_use
from retro_demo.ui.change_section import change_section
from retro_demo.ui.form import (
    CHEAP,
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


def corpus_tab(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    home = library.home
    form = Form(CorpusConfig, choices=service.VISITOR_CHOICES)
    shown_before = gr.State("")
    timer = gr.Timer(1.0, active=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.HTML(
                f"<h2>Build a {views.term('corpus')}</h2><p class='caption'>Drop a dozen or more texts, or "
                "one long one: what makes neighbors useful is that documents resemble each other. "
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
        f"<h2>Try a search</h2><p class='caption'>The nearest {views.term('chunk', 'chunks')} of the "
        f"chosen corpus, each with its {views.term('continuation')}. The {views.term('retriever')} "
        f"goes by vectors (dense), by shared tokens or words ({views.term('BM25')}), or by both "
        f"({views.term('hybrid')}).</p>"
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

    def state_of(workspace: Workspace, one: str) -> tuple[jobs.JobStatus, dict[str, Any] | None]:
        folder = workspace.corpus(one)
        return corpus_changes.corpus_status(folder), service.statistics(folder)

    def follow_now(code: str, one: str | None, before: str) -> list[Any]:
        """The values of `followed`; figures are drawn anew only when they changed."""
        hidden = gr.DownloadButton(visible=False)
        if not one:
            return ["", "", "", hidden, *stop_and_resume(""), gr.Timer(active=False), ""]
        workspace = Workspace.open(home, code)
        if one not in workspace.corpora():
            gone = views.note("Choose a corpus from the list.")
            return ["", gone, "", hidden, *stop_and_resume(""), gr.Timer(active=False), ""]
        now, built = state_of(workspace, one)
        mark = f"{one} {now.state} {len(now.events)} {now.place} {built is not None}"
        if mark == before:
            return [*[gr.skip()] * 6, gr.Timer(active=now.under_way), before]
        return [
            job_views.build_status(now, service.corpus_title(one)),
            job_views.corpus_statistics(built),
            shown_command(downloads.build_command(workspace.corpus(one), one)),
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
        if not jobs.stop(Workspace.open(home, code).corpus(one)):
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
        kept = downloads.search_json(
            folder, one, text=words, retriever=by, k=count, found=near, seconds=seconds
        )
        return [
            views.found_html(near, doubted=on_page(doubted), nothing=nothing),
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
    return downloads.corpus_json(workspace.corpus(one), one, built)


def _download(name: str, values: dict[str, Any]) -> gr.DownloadButton:
    return gr.DownloadButton(value=json_file(name, values), visible=True)
