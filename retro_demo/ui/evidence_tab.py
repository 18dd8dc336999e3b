"""The Evidence tab: what a MARGE finds relevant, re-index by re-index, and as a file to download.

A file is written on request, not at every look.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.evidence.reindex import reindexed_steps
from retro_demo.explain.marge_history import (
    beta_series,
    centered,
    choose_sample,
    matrix_json,
    movement,
    nearest_of_group,
    pair_series,
    ranks,
    recall_series,
    reindexes,
    relevance_matrix,
)
from retro_demo.explain.marge_reading import MargeCorpus, reindexing_at, targets_of
from retro_demo.glossary import explain
from retro_demo.jobs import lifecycle
from retro_demo.paths import ASSETS, SAMPLE
from retro_demo.render import html_parts, job_views, marge_views
from retro_demo.server import service
from retro_demo.server.model_cache import Library
from retro_demo.server.workspace import Workspace, marge_runs
from retro_demo.ui.evidence_reading import evidence_target
from retro_demo.ui.form import CHEAP, LOOKS, QUIET, json_file, once_known, relisted, shows_errors
from retro_demo.ui.visit import Asked, Lane, copy_link

# a moment after the file has its address in the page
SAVE = "() => { setTimeout(() => document.querySelector('#evidence-file').click(), 300); }"


def evidence_file(library: Library, looks: Sequence[Any]) -> None:
    """Build the button and wire it; `looks` are the widgets that the pictures are drawn from."""
    button = gr.Button(
        "Download matrix, map and figures with where they come from (JSON)",
        size="sm",
        elem_id="evidence-download",
    )
    # a button to download sends what it has when it is pressed, so this one is pressed once it has the file;
    # style.css hides it, because Gradio shows what it hides itself after the first look at a run
    file = gr.DownloadButton("Download", elem_id="evidence-file")

    @shows_errors
    def write_file(code: str, name: str | None, how: str, some: list[str], *look: Any) -> str:
        if not name:
            raise UserError("There is no run yet. Choose one first.")
        order, _, place, _ = look
        folder = Workspace.open(library.home, code).run(name)
        source, first, now = (
            library.marge_corpus(folder),
            reindexing_at(folder, 0),
            reindexing_at(folder, place),
        )
        sample = choose_sample(
            source.passages, now.rows, held_out=how == "held-out", order=order, languages=some or []
        )
        rows = reindexes(lifecycle.status(folder))
        return json_file("evidence.json", matrix_json(folder, source, sample, first, now, rows))

    button.click(write_file, list(looks), file, **LOOKS).success(None, js=SAVE)


MATRIX = ASSETS / "matrix.js"
NO_RUN = (
    "No MARGE yet. It learns to find its own evidence: train one on the Train tab (model: marge), "
    "best on a corpus with the same texts in several languages."
)
NO_REINDEX = "This run has not re-indexed yet. Its first re-index comes before its first step: wait a moment."


def evidence_tab(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> None:
    """Build the tab and wire it."""
    home, lane = library.home, Lane(library)
    seen = gr.State("")  # the run and how many re-indexes are shown
    timer = gr.Timer(2.0, active=False)
    gr.HTML(
        f"<h2>Evidence</h2><p class='caption'>A {html_parts.term('marge', 'MARGE')} writes each "
        f"{html_parts.term('target')} anew from {html_parts.term('evidence')} that its own encoder finds. At "
        f"each {html_parts.term('re-index')} it looks again, with what it has learned since.</p>"
    )
    with gr.Row(elem_classes="knobs"):
        run = gr.Dropdown([], label="Run", info="Runs of MARGE.", elem_id="evidence-run", min_width=220)
        kind = gr.Radio(
            [("held out", "held-out"), ("training", "training")],
            value="held-out",
            label="Documents",
            elem_id="evidence-kind",
            info="Held-out ones were never trained on.",
        )
        languages = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            label="Languages",
            info="Of pictures and targets. Empty: all, chosen evenly.",
            elem_id="evidence-languages",
            min_width=220,
        )
    status = gr.HTML(elem_id="evidence-status")
    linked = gr.HTML()
    with gr.Row(elem_classes="actions"):
        copy_link("evidence", run, linked)
    with gr.Column(visible=False) as body:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gr.HTML("<h2>Who is relevant to whom</h2>")
                with gr.Row(elem_classes="knobs"):
                    order = gr.Radio(
                        ["group", "language"],
                        value="group",
                        label="Order",
                        info="Which documents stand side by side.",
                        elem_id="evidence-order",
                    )
                    values = gr.Radio(
                        ["ranks", "centered"],
                        value="ranks",
                        label="Values",
                        info="Each target's order, or relevance minus what all have in common.",
                        elem_id="evidence-values",
                    )
                at = gr.Slider(
                    0,
                    1,
                    0,
                    step=1,
                    label="Re-index (0: untrained)",
                    info=explain("re-index"),
                    elem_id="evidence-at",
                    interactive=True,
                )
                matrix = gr.Plot(show_label=False, container=False, elem_id="evidence-matrix")
                choose_target = MATRIX.read_text("utf-8")
                caption = gr.HTML(elem_id="evidence-caption", js_on_load=choose_target)
                with gr.Accordion("The most relevant documents as a table", open=False):
                    matrix_table = gr.HTML(elem_id="evidence-table", js_on_load=choose_target)
            with gr.Column(scale=2, min_width=320):
                gr.HTML("<h2>Over the re-indexes</h2>")
                found = gr.Plot(show_label=False, container=False, elem_id="evidence-recall")
                pairs = gr.Plot(show_label=False, container=False, elem_id="evidence-pairs")
                betas = gr.Plot(show_label=False, container=False, elem_id="evidence-beta")
                with gr.Accordion("The re-indexes as a table", open=False):
                    lines_table = gr.HTML(elem_id="evidence-reindexes")
        gr.HTML("<h2>The map of embeddings</h2>")
        by = gr.Radio(
            ["group", "language"],
            value="group",
            label="Color by",
            info="What has one color.",
            elem_id="evidence-by",
        )
        picture = gr.Plot(show_label=False, container=False, elem_id="evidence-map")
        map_caption = gr.HTML()
        with gr.Accordion("The map as a table", open=False):
            map_table = gr.HTML()
        looks = [visitor, run, kind, languages, order, values, at, by]
        evidence_file(library, looks)
        gr.HTML("<h2>One target and what it reads</h2>")
        target = evidence_target(library, visitor, run, (kind, languages), [caption, matrix_table])

    def drawn(code: str, name: str, how: str, some: list[str], *look: Any) -> list[Any]:
        """The values of `pictures` for a run, a kind of documents, languages, and order ... by."""
        order_by, shown, place, colors = look
        folder = Workspace.open(home, code).run(name)
        source = library.marge_corpus(folder)
        first, now, last = (reindexing_at(folder, which) for which in (0, place, sys.maxsize))
        passages, rules = source.passages, source.config.evidence
        sample = choose_sample(
            passages, now.rows, held_out=how == "held-out", order=order_by, languages=some or []
        )
        relevance = relevance_matrix(now, sample, passages, rules)
        numbers = ranks(relevance) if shown == "ranks" else centered(relevance)
        top = marge_views.full_color(centered(relevance_matrix(last, sample, passages, rules)))
        untrained = nearest_of_group(relevance_matrix(first, sample, passages, rules), sample, passages)
        moved = movement(first, now, sample)
        return [
            marge_views.matrix_figure(numbers, relevance, sample, source, kind=shown, top=top),
            marge_views.matrix_caption(
                nearest_of_group(relevance, sample, passages), untrained, now.step, len(sample.ids)
            ),
            marge_views.matrix_table(numbers, relevance, sample, source),
            marge_views.map_figure(moved, sample, source, colors),
            marge_views.map_caption(moved, now.step),
            marge_views.map_table(moved, sample, source),
        ]

    def lines(code: str, name: str) -> list[Any]:
        """The values of `curves`."""
        state = lifecycle.status(Workspace.open(home, code).run(name))
        rows = reindexes(state)
        recall = recall_series(rows)
        shown = gr.Plot(visible=False)
        if any(recall.values()):
            shown = gr.Plot(marge_views.curves(recall, "step", "recall@1, MRR", name), visible=True)
        return [
            shown,
            marge_views.curves(pair_series(rows), "step", "share", name),
            marge_views.curves(beta_series(state), "step", "beta", name),
            marge_views.reindex_table(rows),
        ]

    def opened(code: str, name: str, how: str, source: MargeCorpus, *look: Any) -> list[Any]:
        """The values of `everything` for a run whose corpus is there."""
        folder = Workspace.open(home, code).run(name)
        steps = reindexed_steps(folder)
        going = lifecycle.status(folder).under_way
        if not steps:
            words = html_parts.note(
                NO_REINDEX if going else "This run has kept no re-index. Train it further."
            )
            return [
                gr.skip(),
                gr.skip(),
                words,
                gr.Column(visible=False),
                gr.Timer(active=going),
                f"{name} 0",
            ] + [gr.skip()] * (len(everything) - 6)
        if how == "held-out" and not source.passages.held_out.any():
            how = "training"
        order_by, shown, colors = look
        last = len(steps) - 1
        return [
            gr.Radio(value=how),
            gr.Dropdown(_languages(source), value=[]),
            "",
            gr.Column(visible=True),
            gr.Timer(active=going),
            f"{name} {len(steps)}",
            gr.Slider(maximum=max(1, last), value=last, interactive=last > 0),
            *lines(code, name),
            *drawn(code, name, how, [], order_by, shown, last, colors),
            *target.fresh(targets_of(source, held_out=how == "held-out"), source),
        ]

    def nothing(words: str) -> list[Any]:
        hidden = [gr.skip(), gr.skip(), words, gr.Column(visible=False), gr.Timer(active=False), ""]
        return hidden + [gr.skip()] * (len(everything) - 6)

    @once_known
    def choose(code: str, name: str | None, how: str, *look: Any) -> Iterator[list[Any]]:
        if not name:
            yield nothing(html_parts.note(NO_RUN))
            return
        workspace = Workspace.open(home, code)
        asked = Asked(code)
        with lane.follower(asked):
            for build in service.wait_for_corpus(workspace, name):
                if asked.end:
                    raise UserError(asked.end)
                yield nothing(job_views.waiting(build, "The corpus is being prepared"))
        yield nothing('<p class="speed" role="status">Reading the passages of the corpus.</p>')
        yield opened(code, name, how, library.marge_corpus(workspace.run(name)), *look)

    @once_known
    def arrive(code: str, now: str | None, before: str) -> list[Any]:
        """The runs to choose from, and the state that makes `choose` begin: nothing is redrawn twice."""
        names = marge_runs(Workspace.open(home, code))
        chosen = now if now in names else next(iter(names), None)
        named = relisted([(each.removeprefix(SAMPLE), each) for each in names], now, chosen)
        same = chosen is not None and before.rpartition(" ")[0] == chosen
        return [named, gr.skip() if same else "" if chosen else html_parts.note(NO_RUN)]

    @once_known
    def choose_once(code: str, name: str | None, before: str, how: str, *look: Any) -> Iterator[list[Any]]:
        """As `choose`; what is shown already stays, and is followed again if the run goes on."""
        if not name or before.rpartition(" ")[0] != name:
            yield from choose(code, name, how, *look)
            return
        going = lifecycle.status(Workspace.open(home, code).run(name)).under_way
        yield [gr.skip()] * 4 + [gr.Timer(active=going)] + [gr.skip()] * (len(everything) - 5)

    @once_known
    def redraw(code: str, name: str | None, *look: Any) -> list[Any]:
        return drawn(code, name, *look) if name else [gr.skip()] * len(pictures)

    @once_known
    def other_documents(code: str, name: str | None, how: str, some: list[str], *look: Any) -> list[Any]:
        if not name:
            return [gr.skip()] * (len(pictures) + len(target.outputs))
        source = library.marge_corpus(Workspace.open(home, code).run(name))
        offered = targets_of(source, held_out=how == "held-out", languages=some or [])
        return [*drawn(code, name, how, some, *look), *target.fresh(offered, source)]

    @once_known
    def follow(code: str, name: str | None, before: str, place: int, *look: Any) -> list[Any]:
        """The values of `everything`: a new re-index is shown at once, if the last one was."""
        workspace = Workspace.open(home, code)
        if name not in marge_runs(workspace):  # it was deleted or renamed
            return nothing(html_parts.note(NO_RUN))
        folder = workspace.run(name)
        steps, known = reindexed_steps(folder), int(before.rpartition(" ")[2] or 0)
        how, some, order_by, shown, colors = look
        if steps and not known:
            return opened(code, name, how, library.marge_corpus(folder), order_by, shown, colors)
        going = gr.Timer(active=lifecycle.status(folder).under_way)
        if len(steps) == known:
            return [gr.skip()] * 4 + [going] + [gr.skip()] * (len(everything) - 5)
        last = len(steps) - 1
        slider, drawing = gr.Slider(maximum=max(1, last), interactive=last > 0), [gr.skip()] * len(pictures)
        if place >= known - 1:  # the visitor looks at the latest
            slider = gr.Slider(maximum=max(1, last), value=last, interactive=last > 0)
            drawing = drawn(code, name, how, some, order_by, shown, last, colors)
        mark = [going, f"{name} {len(steps)}", slider]
        return [gr.skip()] * 4 + mark + lines(code, name) + drawing + [gr.skip()] * len(target.outputs)

    pictures = [matrix, caption, matrix_table, picture, map_caption, map_table]
    curves = [found, pairs, betas, lines_table]
    everything = [kind, languages, status, body, timer, seen, at, *curves, *pictures, *target.outputs]
    at.input(redraw, looks, pictures, trigger_mode="always_last", **LOOKS)
    gr.on([order.input, values.input, by.input], redraw, looks, pictures, **LOOKS)
    gr.on([kind.input, languages.input], other_documents, looks, [*pictures, *target.outputs], **LOOKS)
    watched = [visitor, run, seen, at, kind, languages, order, values, by]
    timer.tick(follow, watched, everything, **QUIET)
    listed = [visitor, run, seen]
    arrival = arrival.opening(tab, run)
    arrival.naming(tab, run)
    arrival.then(arrive, listed, [run, status], **QUIET)
    # figures are drawn for those who look at them
    begun = tab.select(arrive, listed, [run, status], **QUIET).then(
        choose_once, [*listed, kind, order, values, by], everything, **CHEAP
    )
    # a run that is chosen while another is still being opened is the one that is shown
    looked = [visitor, run, kind, order, values, by]
    chosen = run.input(choose, looked, everything, cancels=[begun], **CHEAP)
    for looking in (chosen, begun):
        looking.failure(lambda: "", None, status, **QUIET)


def _languages(source: MargeCorpus) -> list[tuple[str, str]]:
    return [(html_parts.language_name(name), name) for name in source.passages.languages]
