"""The Evaluate tab: does retrieval help, by how much, where, and is it copying?

A MARGE has its own arms, and shows what its encoder finds across languages in place of copies.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from retro_demo.evaluation.request import read_request
from retro_demo.jobs import lifecycle
from retro_demo.paths import SAMPLE
from retro_demo.render import evaluation_views, html_parts, plots
from retro_demo.server import evaluations, service
from retro_demo.server.model_cache import Library
from retro_demo.server.run_actions import built_ones
from retro_demo.server.workspace import Workspace
from retro_demo.settings import EvaluateConfig
from retro_demo.ui.form import (
    CHEAP,
    QUIET,
    Form,
    command_box,
    json_file,
    once_known,
    shown_command,
    shows_errors,
    stop_and_resume,
)
from retro_demo.ui.visit import copy_link

OWN_CORPUS = "the corpus of its training"
AGAINST = [("the whole database", "database"), ("its stored neighbors", "neighbors")]


def evaluate_tab(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    home = library.home
    form = Form(EvaluateConfig)
    shown_before = gr.State("")
    timer = gr.Timer(1.5, active=False)
    verdict = gr.HTML(elem_id="verdict", min_height=120)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.HTML("<h2>Measure a run against its controls</h2>")
            run = gr.Dropdown(
                [], label="Run", info="Runs that read neighbors, or evidence (MARGE).", elem_id="evaluate-run"
            )
            baseline = gr.Dropdown(
                [],
                label="Matched baseline",
                elem_id="evaluate-baseline",
                info="The same decoder without the reader of neighbors, trained alike. A verdict needs one.",
            )
            control = gr.Dropdown(
                [], label="Control", elem_id="evaluate-control", info="A run trained with random neighbors."
            )
            corpus = gr.Dropdown(
                [(OWN_CORPUS, "")],
                value="",
                label="Measured on",
                elem_id="evaluate-corpus",
                info="Another corpus is a hot swap: its held-out text, with its database to read.",
            )
            with gr.Row(elem_classes="knobs"):
                form.show(main=True)
            with gr.Accordion("All knobs", open=False), gr.Row(elem_classes="knobs"):
                form.show(main=False)
            start = gr.Button("Evaluate", variant="primary", elem_id="evaluate")
            status = gr.HTML(elem_id="evaluate-status", min_height=60)
            linked = gr.HTML()
            with gr.Row(elem_classes="actions"):
                stop = gr.Button("Stop", size="sm", elem_id="stop-evaluation")
                resume = gr.Button("Resume", size="sm", elem_id="resume-evaluation")
                copy_link("evaluate", run, linked)
        with gr.Column(scale=3, min_width=320):
            gr.HTML("<h2>The arms</h2>")
            arms = gr.Plot(show_label=False, container=False, elem_id="arms-plot")
            arms_caption = gr.HTML(elem_id="arms-caption")
            with gr.Accordion("The arms as a table", open=False):
                arms_table = gr.HTML(elem_id="arms-table")
            nexts = gr.HTML(elem_id="next")
            train = gr.Button("Train the matched baseline", visible=False, elem_id="train-baseline")
            trained = gr.HTML()
    with gr.Column(visible=False) as more:
        with gr.Column(visible=False) as marge, gr.Row():
            with gr.Column(min_width=320):
                gr.HTML("<h2>Does it find other languages?</h2>")
                across = gr.HTML(elem_id="across-languages")
            with gr.Column(min_width=320):
                gr.HTML("<h2>How much relevance weighs</h2>")
                betas = gr.HTML(elem_id="betas")
        with gr.Column(visible=False) as copies:
            gr.HTML("<h2>Is it copying?</h2>")
            against = gr.Radio(
                AGAINST,
                value="database",
                label="Overlap of the predicted chunk with",
                elem_id="overlap-with",
                info="The database tells whether a text was leaked; the neighbors are what the paper "
                "measures.",
            )
            with gr.Row():
                with gr.Column(min_width=320):
                    leak = gr.Plot(show_label=False, container=False, elem_id="leakage")
                    gr.HTML(
                        "<p class='caption'>Loss on the chunks that overlap at most so much, and its "
                        "difference to the dashed line; the last point is all of them. Pale: fewer than 30 "
                        "chunks.</p>"
                    )
                    with gr.Accordion("The curve as a table", open=False):
                        leak_table = gr.HTML()
                with gr.Column(min_width=320):
                    buckets = gr.Plot(show_label=False, container=False, elem_id="buckets")
                    gr.HTML("<p class='caption'>Above 0 retrieval helps. Pale: fewer than 30 chunks.</p>")
                    with gr.Accordion("The gain as a table", open=False):
                        buckets_table = gr.HTML()
            gr.HTML("<h2>More or less to read</h2>")
            curve_note = gr.HTML()
            with gr.Row():
                sizes = gr.Plot(show_label=False, container=False, visible=False, elem_id="database-sizes")
                numbers = gr.Plot(show_label=False, container=False, visible=False, elem_id="neighbor-counts")
            with gr.Accordion("Database sizes and k as a table", open=False):
                curve_table = gr.HTML()
        origin = gr.HTML()
        command = command_box("The command that measures the same", "evaluate-command")
        download = gr.DownloadButton(
            "Download all figures and where they come from (JSON)", size="sm", elem_id="evaluate-download"
        )

    def overlap_now(result: dict[str, Any], which: str) -> list[Any]:
        leakage = result["leakage"][which or "database"]
        return [
            plots.leakage_figure(leakage),
            evaluation_views.leakage_table(leakage),
            plots.buckets_figure(leakage),
            evaluation_views.buckets_table(leakage),
        ]

    def curves_now(result: dict[str, Any]) -> list[Any]:
        curves = result["curves"]
        drawn = [
            gr.Plot(plots.curve_figure(curves, kind), visible=True)
            if curves and curves[kind]
            else gr.Plot(visible=False)
            for kind in ("database_sizes", "neighbor_counts")
        ]
        if not curves:
            hint = (
                "Not measured. Give database sizes such as 1, 5, 20, 100 and numbers of neighbors such as "
                "1, 2, 4, 10, and evaluate again."
            )
            return [html_parts.note(hint), *drawn, ""]
        words = (
            f"On {curves['documents']:,} documents ({curves['tokens']:,} tokens), searched anew in each part."
        )
        return [html_parts.note(words), *drawn, evaluation_views.curves_table(curves)]

    def nothing() -> list[Any]:
        """nexts ... download, while there are no figures."""
        hidden = [gr.Plot(visible=False), evaluation_views.arms_caption(None), "", gr.Column(visible=False)]
        return ["", gr.Button(visible=False), *hidden, *[gr.skip()] * 15]

    def own_part(result: dict[str, Any], which: str) -> list[Any]:
        """marge ... curve_table: what only a MARGE shows, or only a run that reads neighbors."""
        if "beta" in result:
            shown = [evaluation_views.across_html(result), evaluation_views.beta_html(result)]
            return [gr.Column(visible=True), *shown, gr.Column(visible=False), *[gr.skip()] * 8]
        copied = [*overlap_now(result, which), *curves_now(result)]
        return [gr.Column(visible=False), "", "", gr.Column(visible=True), *copied]

    def follow_now(code: str, one: str | None, which: str, before: str) -> list[Any]:
        """The values of `followed`; drawn anew only when something changed."""
        workspace = Workspace.open(home, code)
        known = one if one in evaluations.readers(workspace) else None
        folder = evaluations.shown_evaluation(workspace, known) if known else None
        if folder is None:
            return [
                evaluation_views.verdict_html(None),
                "",
                *stop_and_resume(""),
                *nothing(),
                gr.Timer(active=False),
                "",
            ]
        now = lifecycle.status(folder)
        result = evaluations.latest_result(now)
        going = gr.Timer(active=now.under_way)
        said = len(now.of_kind("refined")) + len(now.of_kind("finished"))
        other = bool(known and result and evaluations.of_other_weights(workspace, known, result))
        mark = f"{one} {folder.name} {now.state} {now.place} {said} {which} {other}"
        buttons = stop_and_resume("" if folder.name == "evaluation" else now.state)
        progress = evaluation_views.evaluation_status(now)
        if mark == before:
            return [gr.skip(), progress, *buttons, *[gr.skip()] * 21, going, before]
        if result is None:
            return [evaluation_views.verdict_html(None), progress, *buttons, *nothing(), going, mark]
        rounds = now.of_kind("refined")
        words = f"Round {rounds[-1]['round']} of {rounds[-1]['rounds']}." if now.state == "running" else ""
        if folder.name == "evaluation":
            words = "This evaluation ships with the run. Evaluate measures anew."
        if other and not now.under_way:
            words = "These figures are of other weights than the run is used with now: evaluate it again."
        return [
            evaluation_views.verdict_html(result, words),
            progress,
            *buttons,
            evaluation_views.next_html(result),
            gr.Button(visible="match" in result and (not result["match"] or bool(result["match"]["unfit"]))),
            gr.Plot(plots.arms_figure(result), visible=True),
            evaluation_views.arms_caption(result),
            evaluation_views.arms_table(result),
            gr.Column(visible=True),
            *own_part(result, which),
            evaluation_views.origin_html(result),
            shown_command(read_request(folder).command()),
            json_file("evaluation.json", result),
            going,
            mark,
        ]

    @once_known
    def follow(code: str, one: str | None, which: str, before: str) -> list[Any]:
        return follow_now(code, one, which, before)

    @once_known
    def arrive(code: str, one: str | None, which: str) -> list[Any]:
        """run, baseline, control, corpus, then what `follow_now` gives."""
        known = evaluations.readers(Workspace.open(home, code))
        first = one if one in known else next(iter(known), None)
        named = gr.Dropdown(_named(known), value=first)
        return [named, *offered(code, first), *follow_now(code, first, which, "")]

    @once_known
    def refresh(code: str, one: str | None, which: str, before: str) -> list[Any]:
        """As `arrive`; what the visitor has chosen stays, and an arrival under way is left to end."""
        if not before:
            return [gr.skip()] * (4 + len(followed))
        known = evaluations.readers(Workspace.open(home, code))
        if one not in known:
            return arrive(code, None, which)
        choices = [gr.Dropdown(found) for found, _ in comparable(code, one)]
        return [gr.Dropdown(_named(known)), *choices, *follow_now(code, one, which, "")]

    def comparable(code: str, one: str) -> list[tuple[list[tuple[str, str]], str]]:
        """The baselines, controls and corpora for a run, each with the one to choose ("" = none)."""
        workspace = Workspace.open(home, code)
        lms, others = evaluations.baselines(workspace, one), evaluations.controls(workspace, one)
        words = [(_called(each, why), each) for each, why in lms]
        fits = next((each for each, why in lms if not why), "")
        built = [(service.corpus_title(corpus), corpus) for corpus in built_ones(workspace)]
        return [
            ([("none yet", ""), *words], fits),
            ([("none", ""), *_named(others)], next(iter(others), "")),
            ([(OWN_CORPUS, ""), *built], ""),
        ]

    def offered(code: str, one: str | None) -> list[Any]:
        found = comparable(code, one) if one else [([], None), ([], None), ([(OWN_CORPUS, "")], "")]
        return [gr.Dropdown(choices, value=value) for choices, value in found]

    @once_known
    def choose(code: str, one: str | None, which: str) -> list[Any]:
        return [*offered(code, one), *follow_now(code, one, which, "")]

    @shows_errors
    def begin(code: str, one: str, base: str, other: str, place: str, which: str, *values: Any) -> list[Any]:
        config = EvaluateConfig(**form.read(values))
        against = {"baseline": base or "", "control": other or "", "corpus": place or ""}
        evaluations.start_evaluation(Workspace.open(home, code), one or "", config, **against)
        return follow_now(code, one, which, "")

    @shows_errors
    def end(code: str, one: str) -> None:
        evaluations.stop_evaluation(Workspace.open(home, code), one or "")

    @shows_errors
    def go_on(code: str, one: str, which: str) -> list[Any]:
        evaluations.resume_evaluation(Workspace.open(home, code), one or "")
        return follow_now(code, one, which, "")

    @shows_errors
    def train_it(code: str, one: str) -> str:
        name = evaluations.train_baseline(Workspace.open(home, code), one or "")
        return html_parts.note(f"{name} is being trained: follow it on the Train tab, then evaluate again.")

    followed = [verdict, status, stop, resume, nexts, train, arms, arms_caption, arms_table, more]
    followed += [marge, across, betas, copies, leak, leak_table, buckets, buckets_table]
    followed += [curve_note, sizes, numbers, curve_table]
    followed += [origin, command, download, timer, shown_before]
    chosen = [visitor, run, against]
    start.click(begin, [visitor, run, baseline, control, corpus, against, *form.inputs], followed, **CHEAP)
    stop.click(end, [visitor, run], None, **CHEAP)
    resume.click(go_on, chosen, followed, **CHEAP)
    train.click(train_it, [visitor, run], trained, **CHEAP)
    compared = [baseline, control, corpus]
    run.input(choose, chosen, [*compared, *followed], **QUIET)
    against.input(follow, [*chosen, gr.State("")], followed, **QUIET)
    timer.tick(follow, [*chosen, shown_before], followed, **QUIET)
    arrival = arrival.opening(tab, run)
    arrival.naming(tab, run)
    arrival.then(arrive, chosen, [run, *compared, *followed], **QUIET)
    tab.select(refresh, [*chosen, shown_before], [run, *compared, *followed], **QUIET)


def _named(runs: list[str]) -> list[tuple[str, str]]:
    return [(run.removeprefix(SAMPLE), run) for run in runs]


def _called(run: str, unfit: str) -> str:
    return run.removeprefix(SAMPLE) + (f" (no match: {unfit})" if unfit else "")
