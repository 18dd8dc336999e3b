"""The Corpus tab: build one from files, watch it, see its figures, search in it, change it, tidy up.

Its parts are classes like those of the Train tab.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.corpus.embedding import nothing_found
from retro_demo.corpus.retrievers import search, search_doubt
from retro_demo.documents.kinds import KIND_NAMES
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.paths import SAMPLE
from retro_demo.render import html_parts, job_views
from retro_demo.render.wording import on_page
from retro_demo.server import corpus_changes, run_actions, service
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, disk_use
from retro_demo.settings import RETRIEVERS, AddConfig, CorpusConfig, whole
from retro_demo.ui.form import (
    CHEAP,
    MODEL,
    PRIVATE,
    QUIET,
    Form,
    Values,
    command_box,
    json_file,
    once_known,
    shown_command,
    shows_errors,
    stop_and_resume,
    sure,
)
from retro_demo.ui.uploads import chosen_files, documents_picker
from retro_demo.ui.visit import corpus_breadcrumb


class CorpusView:
    """The chosen corpus: its build, which a timer follows while it is under way, and its figures."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.corpus = gr.Dropdown(
            [], label="Corpus", info="Shipped samples and those you built.", elem_id="corpus"
        )
        self.status = gr.HTML(elem_id="build-status")
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", size="sm", elem_id="stop-building")
            self.resume = gr.Button("Resume", size="sm", elem_id="resume-building")
        self.stats = gr.HTML(elem_id="statistics")
        self.command = command_box("The command that builds the same", "build-command")
        self.stats_file = gr.DownloadButton(
            "Download the statistics and where they come from (JSON)",
            size="sm",
            visible=False,
            elem_id="download-statistics",
        )
        self.shown_before = gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        self.outputs = [self.status, self.stats, self.command, self.stats_file]
        self.outputs += [self.stop, self.resume, self.timer, self.shown_before]

    def wire(self, visitor: gr.BrowserState) -> None:
        follow = once_known(self.values)
        watched = [visitor, self.corpus, self.shown_before]
        chosen = self.corpus.input(follow, [visitor, self.corpus, gr.State("")], self.outputs, **QUIET)
        self.timer.tick(follow, watched, self.outputs, **QUIET)
        chosen.then(follow, watched, self.outputs, **QUIET)  # late, it may have drawn a corpus chosen before

    def values(self, code: str, corpus: str | None, before: str) -> Values:
        """A corpus, its figures drawn anew only when they changed since the mark `before`."""
        if not corpus:
            return self._nothing("")
        workspace = Workspace.open(self.home, code)
        if corpus not in workspace.corpora():
            return self._nothing(html_parts.note("Choose a corpus from the list."))
        folder = workspace.corpus(corpus)
        now, built = corpus_changes.corpus_status(folder), service.statistics(folder)
        mark = f"{corpus} {now.state} {len(now.events)} {now.queue_position} {built is not None}"
        followed = {self.timer: gr.Timer(active=now.under_way), self.shown_before: mark}
        if mark == before:
            return followed
        kept = gr.DownloadButton(visible=False)
        if built is not None:
            kept = _download("statistics.json", run_actions.corpus_json(folder, corpus, built))
        return followed | {
            self.status: job_views.build_status(now, service.corpus_title(corpus)),
            self.stats: job_views.corpus_statistics(built),
            self.command: shown_command(run_actions.build_command(folder, corpus)),
            self.stats_file: kept,
            **self._buttons(now.state),
        }

    def _nothing(self, said: str) -> Values:
        return {
            self.status: "",
            self.stats: said,
            self.command: "",
            self.stats_file: gr.DownloadButton(visible=False),
            **self._buttons(""),
            self.timer: gr.Timer(active=False),
            self.shown_before: "",
        }

    def _buttons(self, state: str) -> Values:
        return dict(zip((self.stop, self.resume), stop_and_resume(state, new="Build"), strict=True))


class SearchSection:
    """A search in the chosen corpus."""

    def __init__(self, cache: ModelCache) -> None:
        self.cache = cache
        gr.HTML(
            f"<h2>Try a search</h2><p class='caption'>The nearest {html_parts.term('chunk', 'chunks')} of "
            f"the chosen corpus, each with its {html_parts.term('continuation')}. The "
            f"{html_parts.term('retriever')} goes by vectors (dense), by shared tokens or words "
            f"({html_parts.term('BM25')}), or by both ({html_parts.term('hybrid')}).</p>"
        )
        with gr.Row(elem_classes="actions"):
            self.query = gr.Textbox(
                label="Text",
                max_lines=1,
                info="What to look for, in words or as a text.",
                placeholder="an island nation that exports fish",
                elem_id="query",
                scale=5,
                min_width=200,
            )
            self.finder = gr.Dropdown(
                list(RETRIEVERS),
                value="dense",
                label="Retriever",
                info="Explained above.",
                elem_id="finder",
                min_width=110,
            )
            self.count = gr.Number(4, label="How many", info="At most.", elem_id="count", min_width=90)
            self.find = gr.Button("Search", elem_id="search", min_width=90)
        self.found = gr.HTML(elem_id="found")
        self.found_file = gr.DownloadButton(
            "Download what was found and where it comes from (JSON)",
            size="sm",
            visible=False,
            elem_id="download-found",
        )

    def wire(self, visitor: gr.BrowserState, corpus: gr.Dropdown) -> None:
        asked = [visitor, corpus, self.query, self.finder, self.count]
        found = [self.found, self.found_file]
        begun = [self.find.click, self.query.submit]
        gr.on(begun, shows_errors(self.search_corpus), asked, found, concurrency_limit=2, **PRIVATE)

    def search_corpus(self, code: str, corpus: str, text: str, retriever: str, count: float | None) -> Values:
        workspace, k = Workspace.open(self.cache.home, code), whole(count, "How many")
        folder = service.built_corpus(workspace, corpus)
        database = self.cache.corpus(folder, retriever)
        begun = time.perf_counter()
        near = search(database.corpus, database.retriever, text, k)
        doubted = search_doubt(database.corpus, database.retriever, text)
        nothing = nothing_found(retriever, database.corpus.manifest["statistics"])
        seconds = time.perf_counter() - begun
        kept = run_actions.search_json(
            folder, corpus, text=text, retriever=retriever, k=k, found=near, seconds=seconds
        )
        return {
            self.found: html_parts.found_html(near, doubted=on_page(doubted), nothing=nothing),
            self.found_file: _download("search.json", kept),
        }


class ChangeSection:
    """Documents to add to the chosen corpus or to forget, and which tokens of a run would miss them."""

    def __init__(
        self, cache: ModelCache, visitor: gr.BrowserState, refreshed: Callable[[str, str | None], Values]
    ) -> None:
        """`refreshed` gives the values of the tab for a code and a corpus."""
        self.cache, self.home, self.refreshed = cache, cache.home, refreshed
        self.form = Form(AddConfig, prefix="add-")
        with gr.Accordion("Add or forget documents", open=False, elem_id="changes") as self.section:
            gr.HTML(
                "<p class='caption'>Nothing that is there is embedded anew, and what is held out stays held "
                "out. A run that was trained on the corpus as it was cannot train on; it can read the "
                "changed one as another corpus.</p>"
            )
            self.name = gr.Textbox(
                label="Make the changed corpus under this name",
                max_lines=1,
                elem_id="changed-name",
                info="Empty: change the chosen corpus itself. The shipped ones stay as they are.",
            )
            with gr.Row():
                with gr.Column(min_width=320):
                    self.files = documents_picker("Documents to add", "more-files", 120, self.home, visitor)
                    self.form.show(main=True)
                    self.form.show(main=False, without=("max_megabytes",))
                    self.add = gr.Button("Add", elem_id="add-documents")
                with gr.Column(min_width=320):
                    self._forget_column()
            self.missed = gr.HTML(elem_id="missed")
            self.missed_file = gr.DownloadButton(
                "Download what would be lost and where it comes from (JSON)",
                size="sm",
                visible=False,
                elem_id="download-missed",
            )

    def _forget_column(self) -> None:
        self.documents = gr.Dropdown(
            [],
            label="Documents to forget",
            multiselect=True,
            allow_custom_value=True,
            elem_id="forget-which",
            info="By title or id.",
        )
        self.forget = gr.Button("Forget", variant="stop", elem_id="forget")
        self.run = gr.Dropdown(
            [], label="A run that may miss them", elem_id="missing-run", info="It reads the chosen corpus."
        )
        self.text = gr.Textbox(
            label="In this text",
            lines=3,
            max_lines=8,
            elem_id="missing-text",
            info="Empty: held-out text that finds them.",
        )
        self.weigh = gr.Button("Which tokens would lose their gain?", elem_id="weigh")

    def wire(self, visitor: gr.BrowserState, corpus: gr.Dropdown, outputs: Sequence[Any]) -> None:
        """`outputs` are what `refreshed` gives values for."""
        chosen = [visitor, corpus]
        for shown in (self.section.expand, corpus.change):
            shown(once_known(self.list_choices), chosen, [self.documents, self.run], **QUIET)
        added = [*chosen, self.name, self.files, *self.form.inputs]
        self.add.click(shows_errors(self.add_documents), added, outputs, **CHEAP)
        forgotten = [*chosen, self.name, self.documents]
        self.forget.click(shows_errors(self.forget_documents), forgotten, outputs, **CHEAP)
        weighed = [*chosen, self.documents, self.run, self.text]
        missed = [self.missed, self.missed_file]
        self.weigh.click(shows_errors(self.weigh_documents), weighed, missed, **PRIVATE, **MODEL)

    def list_choices(self, code: str, corpus: str | None) -> Values:
        workspace = Workspace.open(self.home, code)
        there = corpus in workspace.corpora()
        choices = corpus_changes.listed_documents(workspace.corpus(str(corpus))) if there else []
        runs = [(id_.removeprefix(SAMPLE), id_) for id_ in corpus_changes.retrieving_runs(workspace)]
        first = runs[0][1] if runs else None
        return {self.documents: gr.Dropdown(choices, value=[]), self.run: gr.Dropdown(runs, value=first)}

    def add_documents(
        self, code: str, corpus: str, name: str, paths: list[str] | None, *values: Any
    ) -> Values:
        config = AddConfig(**self.form.read(values))
        workspace = Workspace.open(self.home, code)
        given = chosen_files(workspace, paths)
        changed = corpus_changes.start_change(workspace, corpus, files=given, config=config, name=name)
        return self.refreshed(code, changed)

    def forget_documents(self, code: str, corpus: str, name: str, documents: list[str] | None) -> Values:
        workspace = Workspace.open(self.home, code)
        changed = corpus_changes.start_change(workspace, corpus, forget=documents or [], name=name)
        return self.refreshed(code, changed)

    def weigh_documents(
        self, code: str, corpus: str, documents: list[str] | None, run: str | None, text: str
    ) -> Values:
        result = corpus_changes.weigh_documents(
            self.cache,
            Workspace.open(self.home, code),
            run or "",
            documents or [],
            text=text.strip(),
            corpus=corpus,
        )
        kept = _download("forgotten.json", result)
        return {self.missed: job_views.weighed_html(result), self.missed_file: kept}


class CorpusTab:
    """The whole tab: what to build, the chosen corpus, all corpora, and what is done with them."""

    def __init__(self, cache: ModelCache, visitor: gr.BrowserState) -> None:
        self.home = cache.home
        self.form = Form(CorpusConfig, choices=service.VISITOR_CHOICES)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._build_column(visitor)
            with gr.Column(scale=3, min_width=320):
                self.view = CorpusView(self.home)
        self.search = SearchSection(cache)
        with gr.Column():
            self.changes = ChangeSection(cache, visitor, self.refreshed)
        with gr.Accordion("All corpora, disk use, rename, delete", open=False):
            self.listing = gr.HTML(elem_id="corpora")
            with gr.Row(elem_classes="actions"):
                self.new_name = gr.Textbox(
                    label="New name of the chosen corpus", max_lines=1, elem_id="corpus-new-name"
                )
                self.rename = gr.Button("Rename", elem_id="rename-corpus", min_width=90)
                self.answer = gr.Textbox(visible=False)
                self.delete = gr.Button(
                    "Delete the chosen corpus", variant="stop", elem_id="delete-corpus", min_width=200
                )
        self.outputs = [self.view.corpus, self.listing, *self.view.outputs]

    def _build_column(self, visitor: gr.BrowserState) -> None:
        gr.HTML(
            f"<h2>Build a {html_parts.term('corpus')}</h2><p class='caption'>Drop a dozen or more texts, "
            "or one long one: what makes neighbors useful is that documents resemble each other. "
            f"They may be {KIND_NAMES}; also in .zip and .gz.</p>"
        )
        self.files = documents_picker("Files", "files", 150, self.home, visitor)
        self.name = gr.Textbox(label="Name", max_lines=1, elem_id="corpus-name", info="Empty: by the files.")
        self.form.show(main=True)
        with gr.Accordion("All settings", open=False):
            self.form.show(main=False, without=("max_megabytes",))
        self.build = gr.Button("Build", variant="primary", elem_id="build")

    def wire(self, tab: gr.Tab, visitor: gr.BrowserState, arrival: Any) -> None:
        corpus, outputs = self.view.corpus, self.outputs
        chosen = [visitor, corpus]
        self.changes.wire(visitor, corpus, outputs)
        given = [visitor, self.files, self.name, *self.form.inputs]
        began = self.build.click(shows_errors(self.start_build), given, outputs, **CHEAP)
        began.success(lambda corpus: corpus, corpus, arrival.built, **QUIET)
        self.view.resume.click(shows_errors(self.continue_build), chosen, outputs, **CHEAP)
        self.view.stop.click(shows_errors(self.stop_build), chosen, None, **CHEAP)
        self.view.wire(visitor)
        self.search.wire(visitor, corpus)
        self.rename.click(shows_errors(self.rename_corpus), [*chosen, self.new_name], outputs, **CHEAP)
        asked = [*chosen, self.answer]
        self.delete.click(shows_errors(self.delete_corpus), asked, outputs, js=sure("corpus"), **CHEAP)
        arrival = arrival.opening_corpus(tab, corpus)
        arrival.naming(tab, corpus, corpus_breadcrumb, when=[self.view.stats.change])
        for begun in (arrival.then, tab.select):
            begun(once_known(self.refreshed), chosen, outputs, **QUIET)

    def refreshed(self, code: str, corpus: str | None) -> Values:
        """The lists and the corpus as they stand; the first one where this one is gone."""
        workspace = Workspace.open(self.home, code)
        names = workspace.corpora()
        chosen = corpus if corpus in names else names[0]
        rows = []
        for each in names:
            folder = workspace.corpus(each)
            now, built = corpus_changes.corpus_status(folder), service.statistics(folder)
            used = disk_use(folder) if folder.is_dir() else 0
            rows.append((service.corpus_title(each), now.state, built and built["documents"], used))
        choices = [(service.corpus_title(each), each) for each in names]
        return {
            self.view.corpus: gr.Dropdown(choices, value=chosen),
            self.listing: job_views.corpora_table(rows),
            **self.view.values(code, chosen, ""),
        }

    def start_build(self, code: str, paths: list[str] | None, name: str, *values: Any) -> Values:
        config = CorpusConfig(**self.form.read(values))
        workspace = Workspace.open(self.home, code)
        built = service.start_build(workspace, chosen_files(workspace, paths), name, config)
        return self.refreshed(code, built)

    def continue_build(self, code: str, corpus: str) -> Values:
        service.resume_build(Workspace.open(self.home, code), corpus)
        return self.refreshed(code, corpus)

    def stop_build(self, code: str, corpus: str | None) -> None:
        corpus = corpus or ""
        if corpus.startswith(SAMPLE):
            raise UserError(f"{service.corpus_title(corpus)} is built for all visitors. Let it go on.")
        if not lifecycle.stop(Workspace.open(self.home, code).corpus(corpus)):
            raise UserError(f"{corpus} is not being built.")

    def rename_corpus(self, code: str, corpus: str, name: str) -> Values:
        renamed = corpus_changes.rename_corpus(Workspace.open(self.home, code), corpus, name)
        return self.refreshed(code, renamed)

    def delete_corpus(self, code: str, corpus: str, answer: str) -> Values:
        if answer == "yes":
            corpus_changes.delete_corpus(Workspace.open(self.home, code), corpus)
        return self.refreshed(code, None)


def corpus_tab(tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    CorpusTab(cache, visitor).wire(tab, visitor, arrival)


def _download(name: str, values: dict[str, Any]) -> gr.DownloadButton:
    return gr.DownloadButton(value=json_file(name, values), visible=True)
