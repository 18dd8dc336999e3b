"""The Generate tab: write a text or bring one, then look into it in the linked view.

The linked view shows a finished text, its neighbors, its attention, an editor for neighbors, and the numbers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain import edits
from retro_demo.explain import text as explained
from retro_demo.explain.edits import Rewritten, edit_json
from retro_demo.explain.text import trace_values, write_sides
from retro_demo.explain.tracing import Trace
from retro_demo.glossary import explain
from retro_demo.paths import ASSETS, SAMPLE
from retro_demo.render import html_parts, trace_views
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server import workspace as kept_traces
from retro_demo.server.model_cache import Library
from retro_demo.server.quotas import checked_writing
from retro_demo.server.run_actions import built_ones
from retro_demo.server.workspace import Workspace
from retro_demo.settings import MOST_NEIGHBORS, ExplainConfig, GenerateConfig
from retro_demo.ui import zero_gpu
from retro_demo.ui.evidence_reading import evidence_writing
from retro_demo.ui.form import (
    CHEAP,
    MODEL,
    PRIVATE,
    QUIET,
    Form,
    clicked,
    first_of,
    json_file,
    once_known,
    relisted,
    shows_errors,
)
from retro_demo.ui.visit import Lane, copy_link, trail_line

MEAN = "mean"
TO_EDITOR = """() => document.querySelector('#editor')?.scrollIntoView({
  block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth',
})"""

# a bar of the strip shows the predictions after its position
SHOW_POSITION = """
element.addEventListener('click', e => {
  const bar = e.target.closest('[data-position]');
  if (!bar) return;
  element.querySelectorAll('[data-position]').forEach(b => b.setAttribute('aria-pressed', b === bar));
  const shown = bar.dataset.position;
  element.querySelectorAll('[data-after]').forEach(d => { d.hidden = d.dataset.after !== shown; });
});
"""


@dataclass(frozen=True)
class ExplainView:
    """The components of the view; `values` fills them for a trace."""

    outputs: list[Any]

    def values(self, trace: Trace | None, name: str) -> list[Any]:
        """Values of `outputs` for a trace (None: there is none yet) and its id."""
        layers = trace.layers if trace else []
        heads = trace.weights.shape[2] if trace and trace.layers else 0
        return [
            html_parts.intro(trace, example=name.startswith(SAMPLE)),
            trace_views.linked(trace),
            gr.Dropdown([MEAN, *map(str, layers)], value=MEAN),
            gr.Dropdown([MEAN, *(str(i + 1) for i in range(heads))], value=MEAN),
            trace_views.heat(trace),
            gr.Accordion(open=False),
            "",
            trace_views.timeline_html(trace),
            trace_views.token_table(trace),
            _file(trace) if trace else None,
        ]


def explain_view(library: Library, visitor: gr.BrowserState, trace_id: gr.BrowserState) -> ExplainView:
    """Build the view and wire what happens inside it."""
    home = library.home
    intro = gr.HTML(elem_id="intro")
    linked = gr.HTML(elem_id="linked", js_on_load=(ASSETS / "explain.js").read_text("utf-8"))
    place = gr.State((0, 0, 0))  # chunk, neighbor, token
    with gr.Accordion("Edit a neighbor", open=False, elem_id="editor") as editor:
        said = gr.HTML(
            "<p class='caption'>Choose edit, drop or swap on a neighbor: the text is read again with the "
            "other neighbor in its place.</p>"
        )
        with gr.Row():
            n_text = gr.Textbox(
                label="N: the neighbor", lines=4, max_lines=8, elem_id="edit-n", info=explain("N")
            )
            f_text = gr.Textbox(
                label="F: its continuation", lines=4, max_lines=8, elem_id="edit-f", info=explain("F")
            )
        with gr.Row(elem_classes="actions"):
            reread = gr.Button("Read this instead", variant="primary", elem_id="reread")
            other = gr.Dropdown(
                [],
                label="Or another chunk of the corpus",
                info="The nearest first; it is read at once.",
                elem_id="swap-with",
                min_width=260,
            )
        changed = gr.HTML(elem_id="changed", js_on_load=SHOW_POSITION)
    gr.HTML(
        f"<h2>What was read: {html_parts.term('cross-attention')}</h2>"
        "<p class='caption'>Rows are the tokens of the chosen chunk as they were written, columns the tokens "
        "of each neighbor: N, then a dotted line, then its continuation F. Stronger color, more attention; "
        "one scale for all panels.</p>"
    )
    with gr.Row(elem_classes="knobs"):
        layer = gr.Dropdown(
            [MEAN], value=MEAN, label="Layer", info=explain("layer"), elem_id="layer", min_width=120
        )
        head = gr.Dropdown(
            [MEAN], value=MEAN, label="Head", info=explain("head"), elem_id="head", min_width=120
        )
    heat = gr.HTML(elem_id="heatmap", js_on_load=(ASSETS / "heatmap.js").read_text("utf-8"))
    with gr.Accordion("Retrieval, chunk by chunk", open=False, elem_id="timeline"):
        timeline = gr.HTML(elem_id="lookups")
    with gr.Accordion("All numbers as a table", open=False):
        numbers = gr.HTML(elem_id="numbers")
    download = gr.DownloadButton(
        "Download the text with all numbers, the edit and where they come from (JSON)",
        size="sm",
        elem_id="download",
    )

    def shown(code: str, name: str) -> Trace:
        trace = kept_traces.shown_trace(Workspace.open(home, code), name)[1]
        if trace is None:
            raise UserError("This text is gone. Write or explain one first.")
        return trace

    def run_of(code: str, trace: Trace) -> LoadedRun:
        """The run that read a trace, with the corpus and retriever that it had."""
        workspace = Workspace.open(home, code)
        corpus = trace.about.get("corpus_id", "")
        service.check_ready(workspace, trace.about["run"], corpus)
        folder = service.built_corpus(workspace, corpus) if corpus else None
        return library.run(workspace.run(trace.about["run"]), folder, trace.about["retriever"])

    @once_known
    def look(code: str, name: str, which: str, one: str) -> str:
        trace = shown(code, name)
        number = int(which) if (which or "").isdecimal() and int(which) in trace.layers else None
        nth = int(one) - 1 if (one or "").isdecimal() and 0 < int(one) <= trace.weights.shape[2] else None
        return trace_views.heat(trace, number, nth)

    @once_known
    def act(code: str, name: str, event: gr.EventData) -> list[Any]:
        """Open the editor on a neighbor; drop and swap are done at once."""
        trace = shown(code, name)
        chunk, neighbor, token = clicked(event, "neighbor of the text", "chunk", "neighbor", "token")
        kind = getattr(event, "act", "edit")
        edits.check_place(trace, chunk, neighbor)
        run = run_of(code, trace)
        choices = edits.candidates(run, trace, chunk)
        texts, made = edits.neighbor_texts(run, trace.neighbor_tokens[chunk, neighbor]), None
        if kind == "drop":
            made, texts = edits.rewrite(run, trace, chunk, neighbor, "", ""), ("", "")
        elif kind == "swap":
            if not choices:
                raise UserError("There is no other chunk of the corpus to read in its place.")
            made = edits.swap(run, trace, chunk, neighbor, choices[0]["chunk"])
            texts = edits.neighbor_texts(run, made.edit.after)
        title = trace.neighbors[chunk][neighbor]["title"]
        words = f"Neighbor {neighbor + 1} of chunk {chunk + 1}: {html_parts.isolated(title)}"
        options = [
            (f"{one['title'] or one['document']} · {one['score']:.2f}", one["chunk"]) for one in choices
        ]
        taken = options[0][1] if kind == "swap" else None
        return [
            gr.Accordion(open=True),
            (chunk, neighbor, token),
            html_parts.note(words),
            *texts,
            gr.Dropdown(options, value=taken),
            *_edited(trace, made, token),
        ]

    @shows_errors
    def read_instead(code: str, name: str, at: tuple[int, int, int], n: str, f: str) -> list[Any]:
        trace = shown(code, name)
        made = edits.rewrite(run_of(code, trace), trace, at[0], at[1], n or "", f or "")
        return _edited(trace, made, at[2])

    @shows_errors
    def read_other(code: str, name: str, at: tuple[int, int, int], chunk: int | None) -> list[Any]:
        if chunk is None:
            return [gr.skip()] * 4
        trace = shown(code, name)
        run = run_of(code, trace)
        made = edits.swap(run, trace, at[0], at[1], int(chunk))
        return [*edits.neighbor_texts(run, made.edit.after), *_edited(trace, made, at[2])]

    model = PRIVATE | MODEL
    known = [visitor, trace_id]
    edited = [changed, download]
    opened = linked.select(
        act, known, [editor, place, said, n_text, f_text, other, *edited], show_progress="hidden", **model
    )
    opened.success(None, js=TO_EDITOR)
    reread.click(read_instead, [*known, place, n_text, f_text], edited, **model)
    other.input(read_other, [*known, place, other], [n_text, f_text, *edited], **model)
    gr.on([layer.input, head.input], look, [*known, layer, head], heat, **QUIET)
    return ExplainView([intro, linked, layer, head, heat, editor, changed, timeline, numbers, download])


def _edited(trace: Trace, made: Rewritten | None, token: int) -> list[str]:
    """What an edit changed, and the download with it (without one: as it was found)."""
    return ["" if made is None else trace_views.edit_html(trace, made, token), _file(trace, made)]


def _file(trace: Trace, made: Rewritten | None = None) -> str:
    """The trace as a file that Gradio may hand out."""
    values = trace_values(trace, edit_json(made) if made is not None else None)
    return json_file("trace.json", values, indent=None)


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
                    f"the {html_parts.term('shuffled control')} is owed to what the neighbors say.</p>"
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
        return [html_parts.trace_speed(trace) if trace else "", *view.values(trace, name)]

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
                yield [html_parts.growing_text(writing), html_parts.writing_speed(writing), kept]

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
                yield [html_parts.writing_speed(last), html_parts.sides_html(written)]

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
            return [html_parts.note(NO_RUN), gr.Dropdown([], value=None)]
        workspace = Workspace.open(home, code)
        folder = service.corpus_of_run(workspace, name)[1]
        documents = gr.Dropdown(explained.held_out_documents(folder), value=None)
        return [trail_line(workspace, name), documents]

    @once_known
    def top_line(code: str, of_marge: bool, name: str | None, found: str | None) -> str:
        """The line at the top: it names the run of the way to write that is in view."""
        shown_run = found if of_marge else name
        return trail_line(Workspace.open(home, code), shown_run) if shown_run else html_parts.note(NO_RUN)

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
