"""The Evidence tab: what a MARGE finds relevant, re-index by re-index, and as a file to download.

A file is written on request, not at every look.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.evidence.reindex import Reindexing, reindexed_steps
from retro_demo.explain.marge_history import (
    PassageSample,
    beta_series,
    centered,
    choose_sample,
    matrix_json,
    moved_tokens,
    nearest_of_group,
    pair_series,
    ranks,
    recall_series,
    reindexes,
    relevance_matrix,
)
from retro_demo.explain.marge_reading import MargeCorpus, reindexing_at, targets_of
from retro_demo.jobs import lifecycle
from retro_demo.paths import ASSETS
from retro_demo.render import found_views, html_parts, job_views, marge_views
from retro_demo.render.wording import explain
from retro_demo.server import service
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, control_of, marge_runs
from retro_demo.ui.evidence_reading import TargetView, wire_target
from retro_demo.ui.form import (
    CHEAP,
    LOOKS,
    QUIET,
    Values,
    json_file,
    once_known,
    relisted_runs,
    shows_errors,
)
from retro_demo.ui.visit import Asked, Lane, copy_link, run_breadcrumb

# a moment after the file has its address in the page
SAVE = "() => { setTimeout(() => document.querySelector('#evidence-file').click(), 300); }"
MATRIX = ASSETS / "matrix.js"
NO_RUN = (
    "No MARGE yet. It learns to find its own evidence: train one on the Train tab (model: marge), "
    "best on a corpus with the same texts in several languages."
)
NO_REINDEX = "This run has not re-indexed yet. Its first re-index comes before its first step: wait a moment."
NEVER_REINDEXED = "This run has kept no re-index. Train it further."
READING = html_parts.status_line("Reading the passages of the corpus.")


class EvidenceView:
    """The components of the tab by name; to make one, inside a layout, builds them."""

    def __init__(self) -> None:
        self.seen = gr.State("")  # the run and how many re-indexes are shown
        self.names = gr.State([])  # of the runs that there were at the last look
        self.timer = gr.Timer(2.0, active=False)
        gr.HTML(
            f"<h2>Evidence</h2><p class='caption'>A {html_parts.term('marge', 'MARGE')} writes "
            f"each {html_parts.term('target')} anew from {html_parts.term('evidence')} that its own encoder "
            f"finds. At each {html_parts.term('re-index')} it looks again, with what it has learned "
            "since.</p>"
        )
        self._choices()
        self.status = gr.HTML(elem_id="evidence-status")
        linked = gr.HTML()
        with gr.Row(elem_classes="actions"):
            copy_link("evidence", self.run, linked)
        with gr.Column(visible=False) as self.body:
            self.finding = gr.HTML(elem_id="evidence-finding")
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    gr.HTML("<h2>What it finds, as it learns</h2>")
                    self.found = gr.Plot(show_label=False, container=False, elem_id="evidence-recall")
                with gr.Column(scale=2, min_width=320) as self.weights:
                    gr.HTML("<h2>Tokens that came to count more, and less</h2>")
                    self.tokens = gr.HTML(elem_id="evidence-tokens")
            self._curves()
            self._matrix()
            self.save = gr.Button(
                "Download matrix, weights and figures with where they come from (JSON)",
                size="sm",
                elem_id="evidence-download",
            )
            # a button to download sends what it has when it is pressed, so this one is pressed once it has
            # the file; style.css hides it, because Gradio shows what it hides itself after the first look
            # at a run
            self.file = gr.DownloadButton("Download", elem_id="evidence-file")
            gr.HTML("<h2>One target and what it reads</h2>")
            self.reading = TargetView()

    def _choices(self) -> None:
        with gr.Row(elem_classes="knobs"):
            self.run = gr.Dropdown(
                [], label="Run", info="Runs of MARGE.", elem_id="evidence-run", min_width=220
            )
            self.kind = gr.Radio(
                [("held out", "held-out"), ("training", "training")],
                value="held-out",
                label="Documents",
                elem_id="evidence-kind",
                info="Held-out ones were never trained on.",
            )
            self.languages = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                label="Languages",
                info="Of pictures and targets. Empty: all, chosen evenly.",
                elem_id="evidence-languages",
                min_width=220,
            )

    def _matrix(self) -> None:
        gr.HTML("<h2>Who is relevant to whom</h2>")
        with gr.Row(elem_classes="knobs"):
            self.order = gr.Radio(
                ["group", "language"],
                value="group",
                label="Order",
                info="Which documents stand side by side.",
                elem_id="evidence-order",
            )
            self.values = gr.Radio(
                ["ranks", "centered"],
                value="ranks",
                label="Values",
                info="Each target's order, or relevance minus what all have in common.",
                elem_id="evidence-values",
            )
        self.at = gr.Slider(
            0,
            1,
            0,
            step=1,
            label="Re-index (0: untrained)",
            info=explain("re-index"),
            elem_id="evidence-at",
            interactive=True,
        )
        choose_target = MATRIX.read_text("utf-8")
        self.caption = gr.HTML(elem_id="evidence-caption", js_on_load=choose_target)
        self.matrix = gr.Plot(show_label=False, container=False, elem_id="evidence-matrix")
        with gr.Accordion("The most relevant documents as a table", open=False):
            self.matrix_table = gr.HTML(elem_id="evidence-table", js_on_load=choose_target)

    def _curves(self) -> None:
        with gr.Accordion("Its re-indexes: pairs, beta, a table", open=False, elem_id="evidence-more"):
            with gr.Row():
                with gr.Column(min_width=320):
                    self.pairs = gr.Plot(show_label=False, container=False, elem_id="evidence-pairs")
                with gr.Column(min_width=320):
                    self.betas = gr.Plot(show_label=False, container=False, elem_id="evidence-beta")
            self.curves_table = gr.HTML(elem_id="evidence-reindexes")

    @property
    def look(self) -> list[Any]:
        """What says how pictures are drawn: the fields of a Look."""
        return [self.kind, self.order, self.values, self.at, self.languages]

    @property
    def pictures(self) -> list[Any]:
        """What is drawn of one re-index."""
        return [self.matrix, self.caption, self.matrix_table, self.weights, self.tokens]

    @property
    def everything(self) -> list[Any]:
        states = [self.kind, self.languages, self.status, self.body, self.timer, self.seen, self.at]
        curves = [self.finding, self.found, self.pairs, self.betas, self.curves_table]
        return [*states, *curves, *self.pictures, *self.reading.outputs]


@dataclass(frozen=True)
class Look:
    """How the pictures of a run are drawn; the fields are in the order of `EvidenceView.look`.

    `kind` of documents: held-out or training. `order` of documents and `values` in the matrix. `at`: the
    re-index, from 0. `languages` of the documents: empty or None for all.
    """

    kind: str
    order: str
    values: str
    at: int = sys.maxsize
    languages: Sequence[str] | None = ()

    @property
    def held_out(self) -> bool:
        return self.kind == "held-out"


class EvidenceHandlers:
    """What happens on the tab. Gradio passes values by position: `look` are those of the fields of a Look."""

    def __init__(self, cache: ModelCache, view: EvidenceView) -> None:
        self.cache, self.home, self.view = cache, cache.home, view
        self.lane = Lane(cache)

    def arrive(self, code: str, now: str | None, before: str, known: Sequence[str] = ()) -> Values:
        """The runs to choose from, and the state that makes `show_run` begin: nothing is redrawn twice.

        known: the runs that there were at the last look (none: it is the first); a new one is chosen.
        """
        names = marge_runs(Workspace.open(self.home, code))
        new = [name for name in names if known and name not in known]
        chosen = next(iter(new), now if now in names else next(iter(names), None))
        shown: Values = {self.view.run: relisted_runs(names, now, chosen), self.view.names: names}
        if chosen is None or before.rpartition(" ")[0] != chosen:
            shown[self.view.status] = "" if chosen else html_parts.note(NO_RUN)
        return shown

    def show_run(self, code: str, name: str | None, *look: Any) -> Iterator[Values]:
        """Show a run at its last re-index, once its corpus is there."""
        if not name:
            yield self._nothing(html_parts.note(NO_RUN))
            return
        workspace = Workspace.open(self.home, code)
        asked = Asked(code)
        with self.lane.follower(asked):
            for build in service.wait_for_corpus(workspace, name):
                if asked.end:
                    raise UserError(asked.end)
                yield self._nothing(job_views.waiting(build, "The corpus is being prepared"))
        yield self._nothing(READING)
        yield self._opened(code, name, self.cache.marge_corpus(workspace.run(name)), Look(*look))

    def show_run_once(self, code: str, name: str | None, before: str, *look: Any) -> Iterator[Values]:
        """As `show_run`; what is shown already stays, and is followed again if the run goes on."""
        if name and before.rpartition(" ")[0] == name:
            going = lifecycle.status(Workspace.open(self.home, code).run(name)).under_way
            # a control may have been trained since
            yield {self.view.timer: gr.Timer(active=going)} | self._curves(code, name)
        else:
            yield from self.show_run(code, name, *look)

    def redraw_if_stale(self, code: str, name: str | None, before: str, *look: Any) -> Iterator[Values]:
        """As `show_run`, where an answer that came late has drawn another run than the one that is chosen."""
        if name and before and before.rpartition(" ")[0] != name:
            yield from self.show_run(code, name, *look)
        else:
            yield {self.view.timer: gr.skip()}

    def redraw(self, code: str, name: str | None, *look: Any) -> Values:
        return self._drawn(code, name, Look(*look)) if name else gr.skip()

    def show_other_documents(self, code: str, name: str | None, *look: Any) -> Values:
        """The pictures and the targets of other documents."""
        if not name:
            return gr.skip()
        asked = Look(*look)
        source = self.cache.marge_corpus(Workspace.open(self.home, code).run(name))
        offered = targets_of(source, held_out=asked.held_out, languages=asked.languages or [])
        return self._drawn(code, name, asked) | self.view.reading.fresh(offered, source)

    def follow_run(self, code: str, name: str | None, before: str, *look: Any) -> Values:
        """A new re-index is shown at once, if the last one was."""
        view, workspace, asked = self.view, Workspace.open(self.home, code), Look(*look)
        if name not in marge_runs(workspace):  # it was deleted or renamed
            return self._nothing(html_parts.note(NO_RUN))
        folder = workspace.run(name)
        steps, known = reindexed_steps(folder), int(before.rpartition(" ")[2] or 0)
        if steps and not known:
            return self._opened(code, name, self.cache.marge_corpus(folder), asked)
        shown: Values = {view.timer: gr.Timer(active=lifecycle.status(folder).under_way)}
        if len(steps) == known:
            return shown
        shown |= {view.seen: f"{name} {len(steps)}"} | self._curves(code, name)
        last = len(steps) - 1
        slider = {"maximum": max(1, last), "interactive": last > 0}
        if asked.at < known - 1:
            return shown | {view.at: gr.Slider(**slider)}
        # the visitor looks at the latest
        drawn = self._drawn(code, name, replace(asked, at=last))
        return shown | {view.at: gr.Slider(**slider, value=last)} | drawn

    def write_file(self, code: str, name: str | None, *look: Any) -> str:
        """What the tab shows as a file, written when somebody asks for it and not at every look."""
        if not name:
            raise UserError("There is no run yet. Choose one first.")
        asked, folder = Look(*look), Workspace.open(self.home, code).run(name)
        source = self.cache.marge_corpus(folder)
        first, now = reindexing_at(folder, 0), reindexing_at(folder, asked.at)
        sample = _sample(source, now, asked)
        rows = reindexes(lifecycle.status(folder))
        return json_file("evidence.json", matrix_json(folder, source, sample, first, now, rows))

    def _nothing(self, words: str) -> Values:
        """Words in place of a run."""
        hidden = {self.view.body: gr.Column(visible=False), self.view.timer: gr.Timer(active=False)}
        return {self.view.status: words, self.view.seen: "", **hidden}

    def _opened(self, code: str, name: str, source: MargeCorpus, look: Look) -> Values:
        """A run whose corpus is there, at its last re-index and in all languages."""
        view, folder = self.view, Workspace.open(self.home, code).run(name)
        steps = reindexed_steps(folder)
        going = lifecycle.status(folder).under_way
        followed = {view.timer: gr.Timer(active=going), view.seen: f"{name} {len(steps)}"}
        if not steps:
            return self._nothing(html_parts.note(NO_REINDEX if going else NEVER_REINDEXED)) | followed
        last = len(steps) - 1
        kind = look.kind if source.passages.held_out.any() else "training"
        look = replace(look, kind=kind, at=last, languages=())
        return {
            view.kind: gr.Radio(value=kind),
            view.languages: gr.Dropdown(_languages(source), value=[]),
            view.status: "",
            view.body: gr.Column(visible=True),
            view.at: gr.Slider(maximum=max(1, last), value=last, interactive=last > 0),
            **followed,
            **self._curves(code, name),
            **self._drawn(code, name, look),
            **view.reading.fresh(targets_of(source, held_out=look.held_out), source),
        }

    def _curves(self, code: str, name: str) -> Values:
        """What is drawn of all re-indexes."""
        view, workspace = self.view, Workspace.open(self.home, code)
        folder = workspace.run(name)
        state, control = lifecycle.status(folder), control_of(workspace, name)
        rows, beside = reindexes(state), reindexes(lifecycle.status(control)) if control else None
        recall = recall_series(rows, beside)
        found = gr.Plot(visible=False)
        if any(recall.values()):
            found = gr.Plot(marge_views.curves(recall, "step", "recall@1", name), visible=True)
        source = self.cache.marge_corpus(folder)
        lesson = found_views.taught_by(source.groups_to_learn_from, source.config.corpus)
        return {
            view.finding: found_views.found_html(rows, beside) + lesson,
            view.found: found,
            view.pairs: marge_views.curves(pair_series(rows), "step", "share", name),
            view.betas: marge_views.curves(beta_series(state), "step", "beta", name),
            view.curves_table: marge_views.reindex_table(rows),
        }

    def _drawn(self, code: str, name: str, look: Look) -> Values:
        """The pictures of one re-index."""
        view, kind, folder = self.view, look.values, Workspace.open(self.home, code).run(name)
        source = self.cache.marge_corpus(folder)
        first, now, last = (reindexing_at(folder, which) for which in (0, look.at, sys.maxsize))
        passages, rules, sample = source.passages, source.config.evidence, _sample(source, now, look)
        relevance = relevance_matrix(now, sample, passages, rules)
        numbers = ranks(relevance) if kind == "ranks" else centered(relevance)
        top = marge_views.full_color(centered(relevance_matrix(last, sample, passages, rules)))
        untrained = nearest_of_group(relevance_matrix(first, sample, passages, rules), sample, passages)
        nearest = nearest_of_group(relevance, sample, passages)
        moved = moved_tokens(first, now, source)
        sketched = source.config.network.by_words
        return {
            view.matrix: marge_views.matrix_figure(numbers, relevance, sample, source, kind=kind, top=top),
            view.caption: marge_views.matrix_caption(
                nearest, untrained, now.step, len(sample.ids), sketched=sketched
            ),
            view.matrix_table: marge_views.matrix_table(numbers, relevance, sample, source),
            view.weights: gr.Column(visible=moved is not None),
            view.tokens: found_views.tokens_html(moved, now.step) if moved else "",
        }


def evidence_tab(tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    view = EvidenceView()
    on, known = EvidenceHandlers(cache, view), [visitor, view.run]
    _wire_pictures(view, on, [*known, *view.look])
    documents, pickers = [view.kind, view.languages], [view.caption, view.matrix_table]
    wire_target(cache, view.reading, known, documents, pickers)
    watched = [*known, view.seen, *view.look]
    view.timer.tick(once_known(on.follow_run), watched, view.everything, **QUIET)
    arrive, listed = once_known(on.arrive), [*known, view.seen]
    asked, lists = [*listed, view.names], [view.run, view.status, view.names]
    arrival = arrival.opening(tab, view.run)
    arrival.naming(tab, view.run, run_breadcrumb)
    arrival.then(arrive, asked, lists, **QUIET)
    # figures are drawn for those who look at them
    looked = [view.kind, view.order, view.values]  # languages of another run mean nothing here
    begun = tab.select(arrive, asked, lists, **QUIET).then(
        once_known(on.show_run_once), [*listed, *looked], view.everything, **CHEAP
    )
    # a run that is chosen while another is still being opened is the one that is shown
    choose = once_known(on.show_run)
    chosen = view.run.input(choose, [*known, *looked], view.everything, cancels=[begun], **CHEAP)
    for looking in (chosen, begun):
        looking.failure(lambda: "", None, view.status, **QUIET)
        looking.then(once_known(on.redraw_if_stale), [*listed, *looked], view.everything, **CHEAP)


def _wire_pictures(view: EvidenceView, on: EvidenceHandlers, looks: list[Any]) -> None:
    """What draws the pictures, from `looks`, anew or as a file."""
    redraw, others = once_known(on.redraw), [*view.pictures, *view.reading.outputs]
    view.at.input(redraw, looks, view.pictures, trigger_mode="always_last", **LOOKS)
    gr.on([view.order.input, view.values.input], redraw, looks, view.pictures, **LOOKS)
    documents = [view.kind.input, view.languages.input]
    gr.on(documents, once_known(on.show_other_documents), looks, others, **LOOKS)
    view.save.click(shows_errors(on.write_file), looks, view.file, **LOOKS).success(None, js=SAVE)


def _sample(source: MargeCorpus, now: Reindexing, look: Look) -> PassageSample:
    """The documents that are drawn."""
    documents, some = source.passages, look.languages or []
    return choose_sample(documents, now.rows, held_out=look.held_out, order=look.order, languages=some)


def _languages(source: MargeCorpus) -> list[tuple[str, str]]:
    return [(html_parts.language_name(name), name) for name in source.passages.languages]
