"""The Generate tab: write a text or bring one, then look into it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from retro_demo.config import GenerateConfig
from retro_demo.errors import UserError
from retro_demo.explain import explained
from retro_demo.explain.tracing import Trace
from retro_demo.explain.writing import write_sides
from retro_demo.explain_config import MOST_NEIGHBORS, ExplainConfig
from retro_demo.paths import SAMPLE
from retro_demo.render import text_views, views
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import kept_traces, service
from retro_demo.server.library import Library
from retro_demo.server.quotas import checked_writing
from retro_demo.server.run_settings import built_ones
from retro_demo.server.workspace import Workspace
from retro_demo.ui import zero_gpu
from retro_demo.ui.evidence_writing import evidence_writing
from retro_demo.ui.explain_view import explain_view
from retro_demo.ui.form import (
    CHEAP,
    MODEL,
    QUIET,
    Form,
    first_of,
    once_known,
    relisted,
    shows_errors,
)
from retro_demo.ui.lane import Lane
from retro_demo.ui.visit import copy_link, trail_line

NO_RUN = "No run yet: train one on the Train tab."
PROMPT = "Geography\n\nLocation: Oceania, islands in the South Pacific Ocean"
EXAMPLES = [
    [PROMPT],
    ["Geography\n\nLocation: Western Africa, bordering the North Atlantic Ocean"],
    ["Economy - overview: The country exports coffee, tea and gold"],
    ["Government type: parliamentary democracy"],
]
READING = '<p class="speed" role="status">Reading the text with and without neighbors.</p>'


def generate_tab(
    tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any, trail: gr.HTML
) -> None:
    """Build the tab and wire it; `arrival` is the event after which the visitor is known."""
    home, watch, lane = library.home, zero_gpu.writer(library), Lane(library)
    form, reading = Form(GenerateConfig), Form(ExplainConfig)
    trace_id = gr.BrowserState("", storage_key="retro-demo-trace", secret="only an id")
    with gr.Row(elem_classes="knobs") as above:
        run = gr.Dropdown([], label="Run", info="Which model writes or reads.", elem_id="run", min_width=220)
        corpus = gr.Dropdown(
            [("the corpus of its training", "")],
            value="",
            label="Reads from",
            info="Another corpus is a hot swap: the same weights, another database.",
            elem_id="reads-from",
            min_width=220,
        )
    with gr.Tabs(elem_id="ways"):
        with gr.Tab("Write a text", id="write") as plain:
            prompt = gr.Textbox(
                PROMPT, label="Prompt", lines=2, max_lines=8, elem_id="prompt", info="How the text begins."
            )
            examples = gr.Dataset(
                components=["textbox"],
                samples=EXAMPLES,
                label="Prompts to try: a click writes on",
                elem_id="examples",
                type="values",
            )
            with gr.Row(elem_classes="knobs"):
                form.show(main=True)
            with gr.Accordion("More settings", open=False), gr.Row():
                form.show(main=False)
            linked = gr.HTML()
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", elem_id="stop-generating")
                copy_link("generate", run, linked)
            with gr.Accordion("Side by side: on, off, shuffled", open=False, elem_id="sides"):
                gr.HTML(
                    f"<p class='caption'>The same prompt and seed three times. Only what on does better than "
                    f"the {views.term('shuffled control')} is owed to what the neighbors say.</p>"
                )
                with gr.Row(elem_classes="actions"):
                    compare = gr.Button("Write all three", elem_id="compare")
                sides = gr.HTML(elem_id="compared")
        with gr.Tab("Explain a given text", id="explain") as given_text:
            document = gr.Dropdown(
                [], label="A held-out document of the corpus", elem_id="document", info="Fills the box below."
            )
            given = gr.Textbox(label="Text", lines=4, max_lines=10, elem_id="given", info="Paste any text.")
            with gr.Row(elem_classes="knobs"):
                reading.widgets["num_neighbors"] = _slider(reading)
                reading.show(main=True)
            with gr.Row(elem_classes="actions"):
                explain = gr.Button("Explain this text", variant="primary", elem_id="explain")
                again = gr.Button("Read the text below this way", elem_id="again")
        with gr.Tab("From evidence (MARGE)", id="from-evidence") as inner:
            marge = evidence_writing(inner, library, visitor, arrival)
    with gr.Column() as below:
        with gr.Row(elem_classes="actions"):
            speed = gr.HTML(elem_id="speed", min_height=28)
        view = explain_view(library, visitor, trace_id)
    everything = [speed, *view.outputs]

    def show(code: str, name: str) -> list[Any]:
        """Values of `everything` for a kept trace, else for the example that ships."""
        name, trace = kept_traces.shown_trace(Workspace.open(home, code), name)
        return [text_views.trace_speed(trace) if trace else "", *view.values(trace, name)]

    def restore(code: str, name: str) -> list[Any]:
        """`everything`, then prompt and knobs as they made it; those of an example write another text."""
        shown_id, trace = kept_traces.shown_trace(Workspace.open(home, code), name)
        if trace is None or trace.about.get("given"):
            return [*show(code, name), *[gr.skip()] * (1 + len(form.inputs))]
        made_with = trace.about.get("written_with", trace.about["config"])
        if shown_id.startswith(SAMPLE):  # it stands there already: a first click is to write a new one
            made_with = made_with | {"seed": made_with["seed"] + 1}
        return [*show(code, name), trace.about["prompt"], *form.fill(made_with)]

    def load(workspace: Workspace, name: str, other: str, retriever: str) -> LoadedRun:
        if not name:
            raise UserError("There is no run yet. Train one on the Train tab.")
        service.check_ready(workspace, name, other)
        workspace.make()  # for the text, which is not kept where all is deleted meanwhile
        swap = service.built_corpus(workspace, other) if other else None
        return library.run(workspace.run(name), swap, retriever)

    def keep(workspace: Workspace, trace: Trace, other: str) -> str:
        trace.about["corpus_id"] = other
        kept = time.strftime("t%Y%m%d-%H%M%S-") + secrets.token_hex(4)
        kept_traces.keep_trace(workspace, kept, trace)
        return kept

    @shows_errors
    def write(code: str, name: str, other: str, token: str, words: str, *values: Any) -> Iterator[list[Any]]:
        config = checked_writing(home, **form.read(values))
        workspace = Workspace.open(home, code)
        with lane.text(code, token) as stopped:
            yield [gr.skip(), loading(other), gr.skip()]
            loaded = load(workspace, name, other, config.retriever)
            for writing in watch(loaded, name, words, config, stopped):
                kept = keep(workspace, writing.trace, other) if writing.trace is not None else gr.skip()
                yield [text_views.growing_text(writing), text_views.writing_speed(writing), kept]

    @shows_errors
    def side_by_side(
        code: str, name: str, other: str, token: str, words: str, *values: Any
    ) -> Iterator[list[Any]]:
        config = checked_writing(home, **form.read(values))
        workspace = Workspace.open(home, code)
        with lane.text(code, token) as stopped:
            yield [loading(other), gr.skip()]
            loaded = load(workspace, name, other, config.retriever)
            if not loaded.database:
                raise UserError("This run is a plain language model (lm): it has no retrieval to compare.")
            for written in write_sides(loaded, name, words, config, stopped):
                last = list(written.values())[-1]
                yield [text_views.writing_speed(last), text_views.sides_html(written)]

    @shows_errors
    def explain_given(code: str, name: str, other: str, text: str, *values: Any) -> Iterator[list[Any]]:
        config = ExplainConfig(**reading.read(values))
        workspace = Workspace.open(home, code)
        yield [loading(other), gr.skip()]
        loaded = load(workspace, name, other, config.retriever)
        yield [READING, gr.skip()]
        yield [gr.skip(), keep(workspace, explained.explain_text(loaded, name, text, config), other)]

    @shows_errors
    def explain_shown(code: str, kept: str, other: str, *values: Any) -> Iterator[list[Any]]:
        config = ExplainConfig(**reading.read(values))
        workspace = Workspace.open(home, code)
        trace = kept_traces.shown_trace(workspace, kept)[1]
        if trace is None:
            raise UserError("There is no text below yet. Write or explain one first.")
        yield [loading(other), gr.skip()]
        loaded = load(workspace, trace.about["run"], other, config.retriever)
        yield [READING, gr.skip()]
        yield [gr.skip(), keep(workspace, explained.explain_again(loaded, trace, config), other)]

    @once_known
    def refresh(
        code: str, kept: str, now: str | None, other: str, of_marge: bool, found: str | None
    ) -> list[Any]:
        workspace = Workspace.open(home, code)
        runs = service.readable_runs(workspace)
        chosen = now if now in runs else None
        if chosen is None:  # the run whose text is shown, else the first
            trace = kept_traces.shown_trace(workspace, kept)[1]
            shown_run = trace.about["run"] if trace else None
            chosen = shown_run if shown_run in runs else next(iter(runs), None)
        choices = [(r.removeprefix(SAMPLE), r) for r in runs]
        corpora = built_ones(workspace)
        reads = [("the corpus of its training", ""), *((service.corpus_title(c), c) for c in corpora)]
        return [
            relisted(choices, now, chosen),
            relisted(reads, other, other if other in corpora else ""),
            top_line(code, of_marge, chosen, found),
            place(code, chosen)[1],
        ]

    @once_known
    def arrive(code: str, link: dict[str, str], *values: Any) -> list[Any]:
        """As `refresh`; where a link opens another tab the line at the top is that one's."""
        chosen, reads, line, documents = refresh(code, *values)
        return [chosen, reads, line if link["tab"] in ("", tab.id) else gr.skip(), documents]

    @once_known
    def place(code: str, name: str | None) -> list[Any]:
        """The line at the top and the held-out documents, for the chosen run."""
        if not name:
            return [views.note(NO_RUN), gr.Dropdown([], value=None)]
        workspace = Workspace.open(home, code)
        folder = service.corpus_of_run(workspace, name)[1]
        documents = gr.Dropdown(explained.held_out_documents(folder), value=None)
        return [trail_line(workspace, name), documents]

    @once_known
    def top_line(code: str, of_marge: bool, name: str | None, found: str | None) -> str:
        """The line at the top: it names the run of the way to write that is in view."""
        shown_run = found if of_marge else name
        return trail_line(Workspace.open(home, code), shown_run) if shown_run else views.note(NO_RUN)

    @once_known
    def fill(code: str, name: str, number: int | None) -> Any:
        if number is None or not name:
            return gr.skip()
        return explained.document_text(
            service.corpus_of_run(Workspace.open(home, code), name)[1], int(number)
        )

    token = gr.State("")  # of the text that this page asked for last
    of_marge = gr.State(False)  # whether the way to write that is in view is that of a MARGE
    arrival = arrival.opening(tab, run)
    shown = [visitor, trace_id]
    model = CHEAP | MODEL
    text = view.outputs[1]
    picked = examples.click(first_of, examples, prompt, **QUIET)
    asked, written = [visitor, run, corpus, token, prompt, *form.inputs], [text, speed, trace_id]
    clicks = (go.click, picked.then, explain.click, compare.click)
    waits = [begun(lane.waiting(), [visitor, run, corpus], [speed, token], **CHEAP) for begun in clicks]
    writes, tried = (begun.success(write, asked, written, **model) for begun in waits[:2])
    reads = waits[2].success(
        explain_given, [visitor, run, corpus, given, *reading.inputs], [speed, trace_id], **model
    )
    rereads = again.click(
        explain_shown, [visitor, trace_id, corpus, *reading.inputs], [speed, trace_id], **model
    )
    for begun in (writes, tried, reads, rereads):
        begun.success(shows_errors(show), shown, everything, **CHEAP)
        begun.failure(lambda: "", None, speed, **QUIET)
    compares = waits[3].success(side_by_side, asked, [speed, sides], **model)
    for begun in (compares, *waits):
        begun.failure(lambda: "", None, speed, **QUIET)
    stop.click(lane.stopping(), [visitor, token], None, **QUIET)
    for way in (plain, given_text, inner):  # a MARGE has runs and evidence of its own
        own = way is inner
        turned = way.select(
            lambda own=own: [*_shown_or_not(not own), own], None, [above, below, of_marge], **QUIET
        )
        turned.then(top_line, [visitor, of_marge, run, marge], trail, **QUIET)
    marge.input(top_line, [visitor, of_marge, run, marge], trail, **QUIET)
    run.input(place, [visitor, run], [trail, document], **QUIET)
    document.input(fill, [visitor, run, document], given, **QUIET)
    listed, lists = [*shown[1:], run, corpus, of_marge, marge], [run, corpus, trail, document]
    tab.select(refresh, [visitor, *listed], lists, **QUIET)
    arrival.then(arrive, [visitor, arrival.link, *listed], lists, **QUIET)
    arrival.then(shows_errors(restore), shown, [*everything, prompt, *form.inputs], **QUIET)


def loading(other: str) -> str:
    """What is said while a run is loaded, with another corpus or that of its training."""
    longer = "; the first reading of another corpus takes longer" if other else ""
    return f'<p class="speed" role="status">Loading the run{longer}.</p>'


def _shown_or_not(shown: bool) -> list[Any]:
    """The run above the ways to write and the text below them; hidden, both stay in the page as they are."""
    visible = True if shown else "hidden"
    return [gr.Row(visible=visible), gr.Column(visible=visible)]


def _slider(reading: Form) -> gr.Slider:
    meta = reading.knobs["num_neighbors"].metadata
    return gr.Slider(
        0, MOST_NEIGHBORS, 0, step=1, label=meta["label"], info=meta["help"], elem_id="knob-read-neighbors"
    )
