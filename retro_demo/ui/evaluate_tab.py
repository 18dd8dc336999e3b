"""The Evaluate tab: does retrieval help, by how much, where, and is it copying?

A MARGE has its own arms, and shows what its encoder finds across languages in place of copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.evaluation.runner import read_request
from retro_demo.jobs import lifecycle
from retro_demo.render import evaluation_views, html_parts, plots
from retro_demo.server import evaluations, service
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.run_actions import built_ones
from retro_demo.server.workspace import Workspace
from retro_demo.settings import EvaluateConfig
from retro_demo.ui.form import (
    CHEAP,
    QUIET,
    Form,
    Values,
    command_box,
    json_file,
    named_runs,
    once_known,
    shown_command,
    shows_errors,
    stop_and_resume,
)
from retro_demo.ui.visit import copy_link, run_breadcrumb

OWN_CORPUS = "the corpus of its training"
AGAINST = [("the whole database", "database"), ("its stored neighbors", "neighbors")]
SHIPPED = "This evaluation ships with the run. Evaluate measures anew."
OTHER_WEIGHTS = "These figures are of other weights than the run is used with now: evaluate it again."
NO_CURVES = (
    "Not measured. Give database sizes such as 1, 5, 20, 100 and numbers of neighbors such as "
    "1, 2, 4, 10, and evaluate again."
)


class EvaluateView:
    """The components of the tab by name; to make one, inside a layout, builds them."""

    def __init__(self) -> None:
        self.form = Form(EvaluateConfig)
        self.shown_before = gr.State("")  # what `EvaluateHandlers.follow` drew last
        self.timer = gr.Timer(1.5, active=False)
        self.verdict = gr.HTML(elem_id="verdict", min_height=120)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._question()
            with gr.Column(scale=3, min_width=320):
                self._answer()
        with gr.Column(visible=False) as self.more:
            self.ways = gr.HTML(elem_id="reading-ways")
            with gr.Column(visible=False) as self.marge, gr.Row():
                with gr.Column(min_width=320):
                    gr.HTML("<h2>Does it find other languages?</h2>")
                    self.across = gr.HTML(elem_id="across-languages")
                with gr.Column(min_width=320):
                    gr.HTML("<h2>How much relevance weighs</h2>")
                    self.betas = gr.HTML(elem_id="betas")
            with gr.Column(visible=False) as self.copies:
                self._overlap()
                self._curves()
            self.origin = gr.HTML()
            self.command = command_box("The command that measures the same", "evaluate-command")
            self.download = gr.DownloadButton(
                "Download all figures and where they come from (JSON)", size="sm", elem_id="evaluate-download"
            )

    def _question(self) -> None:
        """Which run is measured, against what, and how."""
        gr.HTML("<h2>Measure a run against its controls</h2>")
        self.run = gr.Dropdown(
            [], label="Run", info="Runs that read neighbors, or evidence (MARGE).", elem_id="evaluate-run"
        )
        self.baseline = gr.Dropdown(
            [],
            label="Matched baseline",
            elem_id="evaluate-baseline",
            info="The same model without neighbors, trained as long: an lm, or the pretrained base, fine-"
            "tuned. A verdict needs one.",
        )
        self.control = gr.Dropdown(
            [], label="Control", elem_id="evaluate-control", info="A run trained with random neighbors."
        )
        self.corpus = gr.Dropdown(
            [(OWN_CORPUS, "")],
            value="",
            label="Measured on",
            elem_id="evaluate-corpus",
            info="Another corpus is a hot swap: its held-out text, with its database to read.",
        )
        with gr.Row(elem_classes="knobs"):
            self.form.show(main=True, short=True)
        with gr.Accordion("All settings", open=False), gr.Row(elem_classes="knobs"):
            self.form.show(main=False, short=True)
        self.start = gr.Button("Evaluate", variant="primary", elem_id="evaluate")
        self.status = gr.HTML(elem_id="evaluate-status")
        linked = gr.HTML()
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", size="sm", elem_id="stop-evaluation")
            self.resume = gr.Button("Resume", size="sm", elem_id="resume-evaluation")
            copy_link("evaluate", self.run, linked)

    def _answer(self) -> None:
        """The arms, and what to do next."""
        gr.HTML("<h2>The arms</h2>")
        self.arms = gr.Plot(show_label=False, container=False, elem_id="arms-plot")
        self.arms_caption = gr.HTML(elem_id="arms-caption")
        with gr.Accordion("The arms as a table", open=False):
            self.arms_table = gr.HTML(elem_id="arms-table")
        self.nexts = gr.HTML(elem_id="next")
        self.train = gr.Button("Train the matched baseline", visible=False, elem_id="train-baseline")
        self.trained = gr.HTML()

    def _overlap(self) -> None:
        """Loss and gain by how much of a chunk was to be copied."""
        gr.HTML("<h2>Is it copying?</h2>")
        self.against = gr.Radio(
            AGAINST,
            value="database",
            label="Overlap of the predicted chunk with",
            elem_id="overlap-with",
            info="The database tells whether a text was leaked; the neighbors are what the paper measures.",
        )
        with gr.Row():
            with gr.Column(min_width=320):
                self.leak = gr.Plot(show_label=False, container=False, elem_id="leakage")
                gr.HTML(
                    "<p class='caption'>Loss on the chunks that overlap at most so much, and its "
                    "difference to the dashed line; the last point is all of them. Pale: fewer than 30 "
                    "chunks.</p>"
                )
                with gr.Accordion("The curve as a table", open=False):
                    self.leak_table = gr.HTML()
            with gr.Column(min_width=320):
                self.buckets = gr.Plot(show_label=False, container=False, elem_id="buckets")
                gr.HTML("<p class='caption'>Above 0 retrieval helps. Pale: fewer than 30 chunks.</p>")
                with gr.Accordion("The gain as a table", open=False):
                    self.buckets_table = gr.HTML()

    def _curves(self) -> None:
        """Loss with smaller databases and other numbers of neighbors."""
        gr.HTML("<h2>More or less to read</h2>")
        self.curve_note = gr.HTML()
        with gr.Row():
            hidden: dict[str, Any] = {"show_label": False, "container": False, "visible": False}
            self.sizes = gr.Plot(**hidden, elem_id="database-sizes")
            self.numbers = gr.Plot(**hidden, elem_id="neighbor-counts")
        with gr.Accordion("Database sizes and k as a table", open=False):
            self.curve_table = gr.HTML()

    @property
    def followed(self) -> list[Any]:
        """All that tells of an evaluation."""
        figures = [self.nexts, self.train, self.arms, self.arms_caption, self.arms_table, self.more]
        copied = [self.copies, self.leak, self.leak_table, self.buckets, self.buckets_table]
        read = [self.curve_note, self.sizes, self.numbers, self.curve_table]
        return [
            *(self.verdict, self.status, self.stop, self.resume),
            *figures,
            *(self.ways, self.marge, self.across, self.betas),
            *copied,
            *read,
            *(self.origin, self.command, self.download, self.timer, self.shown_before),
        ]


class EvaluateHandlers:
    """What happens on the tab: each takes plain values and gives new ones for components of the view."""

    def __init__(self, home: Path, view: EvaluateView) -> None:
        self.home, self.view = home, view

    def follow(self, code: str, one: str | None, which: str, before: str) -> Values:
        """The latest evaluation of a run; its figures are drawn anew only when something changed."""
        view, workspace = self.view, Workspace.open(self.home, code)
        known = one if one in evaluations.readers(workspace) else None
        folder = evaluations.shown_evaluation(workspace, known) if known else None
        if folder is None:
            ended = {view.status: "", view.timer: gr.Timer(active=False), view.shown_before: ""}
            return self._buttons("") | ended | self._no_figures()
        now = lifecycle.status(folder)
        result = evaluations.latest_result(now)
        said = len(now.of_kind("refined")) + len(now.of_kind("finished"))
        other = bool(known and result and evaluations.of_other_weights(workspace, known, result))
        mark = f"{one} {folder.name} {now.state} {now.queue_position} {said} {which} {other}"
        shown = self._buttons("" if folder.name == "evaluation" else now.state)
        shown |= {view.status: evaluation_views.evaluation_status(now)}
        shown |= {view.timer: gr.Timer(active=now.under_way), view.shown_before: mark}
        if mark == before:
            return shown
        if result is None:
            return shown | self._no_figures()
        rounds = now.of_kind("refined")
        words = f"Round {rounds[-1]['round']} of {rounds[-1]['rounds']}." if now.state == "running" else ""
        if folder.name == "evaluation":
            words = SHIPPED
        if other and not now.under_way:
            words = OTHER_WEIGHTS
        command = shown_command(read_request(folder).command())
        return shown | self._figures(result, words, which) | {view.command: command}

    def arrive(self, code: str, one: str | None, which: str) -> Values:
        """The runs to choose from, what one of them is compared with, and its evaluation."""
        workspace = Workspace.open(self.home, code)
        known = evaluations.readers(workspace)
        first = one
        if one not in known:  # the first with figures to show
            judged = (name for name in known if evaluations.measured(workspace, name))
            first = next(judged, next(iter(known), None))
        return {self.view.run: gr.Dropdown(named_runs(known), value=first)} | self.show_run(
            code, first, which
        )

    def refresh(self, code: str, one: str | None, which: str, before: str) -> Values:
        """As `arrive`; what the visitor has chosen stays, and an arrival under way is left to end."""
        if not before:
            return gr.skip()
        known = evaluations.readers(Workspace.open(self.home, code))
        if one not in known:
            return self.arrive(code, None, which)
        choices = {place: gr.Dropdown(found) for place, (found, _) in self._comparable(code, one).items()}
        shown = self.follow(code, one, which, "")
        return {self.view.run: gr.Dropdown(named_runs(known))} | choices | shown

    def show_run(self, code: str, one: str | None, which: str) -> Values:
        """What a run is compared with, and its evaluation."""
        found = self._comparable(code, one)
        chosen = {place: gr.Dropdown(choices, value=value) for place, (choices, value) in found.items()}
        return chosen | self.follow(code, one, which, "")

    def redraw_if_stale(self, code: str, one: str | None, which: str, before: str) -> Values:
        """As `show_run`, where an answer that came late has drawn another run than the one that is chosen."""
        return self.show_run(code, one, which) if one and before.split(" ")[0] not in ("", one) else gr.skip()

    def start_evaluation(
        self, code: str, one: str, base: str, other: str, place: str, which: str, *values: Any
    ) -> Values:
        config = EvaluateConfig(**self.view.form.read(values))
        against = {"baseline": base or "", "control": other or "", "corpus": place or ""}
        evaluations.start_evaluation(Workspace.open(self.home, code), one or "", config, **against)
        return self.follow(code, one, which, "")

    def stop_evaluation(self, code: str, one: str) -> None:
        evaluations.stop_evaluation(Workspace.open(self.home, code), one or "")

    def continue_evaluation(self, code: str, one: str, which: str) -> Values:
        evaluations.resume_evaluation(Workspace.open(self.home, code), one or "")
        return self.follow(code, one, which, "")

    def train_baseline(self, code: str, one: str) -> str:
        """Train the matched baseline of a run."""
        name = evaluations.train_baseline(Workspace.open(self.home, code), one or "")
        return html_parts.note(f"{name} is being trained: follow it on the Train tab, then evaluate again.")

    def _comparable(self, code: str, one: str | None) -> Values:
        """The baselines, controls and corpora for a run, each with the one to choose ("" = none)."""
        view = self.view
        if not one:
            nothing = ([], None)
            return {view.baseline: nothing, view.control: nothing, view.corpus: ([(OWN_CORPUS, "")], "")}
        workspace = Workspace.open(self.home, code)
        lms, others = evaluations.baselines(workspace, one), evaluations.controls(workspace, one)
        words = [
            (f"{name} (no match: {why})" if why else name, each)
            for (name, each), (_, why) in zip(named_runs([run for run, _ in lms]), lms, strict=True)
        ]
        fits = next((each for each, why in lms if not why), "")
        built = [(service.corpus_title(corpus), corpus) for corpus in built_ones(workspace)]
        return {
            view.baseline: ([("none yet", ""), *words], fits),
            view.control: ([("none", ""), *named_runs(others)], next(iter(others), "")),
            view.corpus: ([(OWN_CORPUS, ""), *built], ""),
        }

    def _buttons(self, state: str) -> Values:
        return dict(zip((self.view.stop, self.view.resume), stop_and_resume(state), strict=True))

    def _no_figures(self) -> Values:
        view = self.view
        return {
            view.verdict: evaluation_views.verdict_html(None),
            view.nexts: "",
            view.train: gr.Button(visible=False),
            view.arms: gr.Plot(visible=False),
            view.arms_caption: evaluation_views.arms_caption(None),
            view.arms_table: "",
            view.more: gr.Column(visible=False),
        }

    def _figures(self, result: dict[str, Any], words: str, which: str) -> Values:
        """The figures of all runs, and those of a MARGE or of a run that reads neighbors."""
        view, of_marge = self.view, "beta" in result
        unmatched = "match" in result and (not result["match"] or bool(result["match"]["unfit"]))
        shown = {
            view.verdict: evaluation_views.verdict_html(result, words),
            view.nexts: evaluation_views.next_html(result),
            view.train: gr.Button(visible=unmatched),
            view.arms: gr.Plot(plots.arms_figure(result), visible=True),
            view.arms_caption: evaluation_views.arms_caption(result),
            view.arms_table: evaluation_views.arms_table(result),
            view.more: gr.Column(visible=True),
            view.ways: evaluation_views.ways_html(result),
            view.marge: gr.Column(visible=of_marge),
            view.across: evaluation_views.across_html(result) if of_marge else "",
            view.betas: evaluation_views.beta_html(result) if of_marge else "",
            view.copies: gr.Column(visible=not of_marge),
            view.origin: evaluation_views.origin_html(result),
            view.download: json_file("evaluation.json", result),
        }
        return shown if of_marge else shown | self._overlap(result, which) | self._curves(result)

    def _overlap(self, result: dict[str, Any], which: str) -> Values:
        view, leakage = self.view, result["leakage"][which or "database"]
        return {
            view.leak: plots.leakage_figure(leakage),
            view.leak_table: evaluation_views.leakage_table(leakage),
            view.buckets: plots.buckets_figure(leakage),
            view.buckets_table: evaluation_views.buckets_table(leakage),
        }

    def _curves(self, result: dict[str, Any]) -> Values:
        view, curves = self.view, result["curves"]
        shown: Values = {
            place: gr.Plot(plots.curve_figure(curves, kind), visible=True)
            if curves and curves[kind]
            else gr.Plot(visible=False)
            for place, kind in ((view.sizes, "database_sizes"), (view.numbers, "neighbor_counts"))
        }
        if not curves:
            return shown | {view.curve_note: html_parts.note(NO_CURVES), view.curve_table: ""}
        words = (
            f"On {curves['documents']:,} documents ({curves['tokens']:,} tokens), searched anew in each part."
        )
        table = evaluation_views.curves_table(curves)
        return shown | {view.curve_note: html_parts.note(words), view.curve_table: table}


def evaluate_tab(tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    view = EvaluateView()
    on = EvaluateHandlers(cache.home, view)
    known, chosen = [visitor, view.run], [visitor, view.run, view.against]
    compared = [view.baseline, view.control, view.corpus]
    asked = [*known, *compared, view.against, *view.form.inputs]
    everything = [view.run, *compared, *view.followed]
    view.start.click(shows_errors(on.start_evaluation), asked, view.followed, **CHEAP)
    view.stop.click(shows_errors(on.stop_evaluation), known, None, **CHEAP)
    view.resume.click(shows_errors(on.continue_evaluation), chosen, view.followed, **CHEAP)
    view.train.click(shows_errors(on.train_baseline), known, view.trained, **CHEAP)
    filled = [*compared, *view.followed]
    drawn = view.run.input(once_known(on.show_run), chosen, filled, **QUIET)
    drawn.then(once_known(on.redraw_if_stale), [*chosen, view.shown_before], filled, **QUIET)
    follow = once_known(on.follow)
    view.against.input(follow, [*chosen, gr.State("")], view.followed, **QUIET)
    view.timer.tick(follow, [*chosen, view.shown_before], view.followed, **QUIET)
    arrival = arrival.opening(tab, view.run)
    arrival.naming(tab, view.run, run_breadcrumb)
    arrival.then(once_known(on.arrive), chosen, everything, **QUIET)
    tab.select(once_known(on.refresh), [*chosen, view.shown_before], everything, **QUIET)
