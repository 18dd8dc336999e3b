"""The Generate tab: write a text or bring one, then look into it in the linked view.

The linked view shows a finished text, its neighbors, its attention, an editor for neighbors, and the numbers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain import edits
from retro_demo.explain import text as explained
from retro_demo.explain.edits import Rewritten, edit_json
from retro_demo.explain.text import trace_values, write_sides
from retro_demo.explain.tracing import Trace
from retro_demo.paths import ASSETS, SAMPLE
from retro_demo.render import html_parts, trace_views
from retro_demo.render.wording import explain
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server import workspace as kept_traces
from retro_demo.server.limits import checked_writing
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.run_actions import built_ones
from retro_demo.server.workspace import Workspace
from retro_demo.settings import MOST_NEIGHBORS, ExplainConfig, GenerateConfig
from retro_demo.ui import zero_gpu
from retro_demo.ui.evidence_reading import WritingView, wire_writing
from retro_demo.ui.form import (
    CHEAP,
    MEAN,
    MODEL,
    ON_PAGE,
    PRIVATE,
    QUIET,
    Form,
    Values,
    chosen_index,
    clicked,
    first_of,
    json_file,
    once_known,
    relisted,
    relisted_runs,
    shows_errors,
)
from retro_demo.ui.visit import Lane, copy_link, run_breadcrumb

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


class ExplainView:
    """The components of the linked view by name: a text, its neighbors, what was read, an editor, numbers."""

    def __init__(self) -> None:
        self.intro = gr.HTML(elem_id="intro")
        self.linked = gr.HTML(elem_id="linked", js_on_load=(ASSETS / "explain.js").read_text("utf-8"))
        self.selection = gr.State((0, 0, 0))  # chunk, neighbor, token
        with gr.Accordion("Edit a neighbor", open=False, elem_id="editor") as self.editor:
            self._editor()
        gr.HTML(
            f"<h2>What was read: {html_parts.term('cross-attention')}</h2>"
            "<p class='caption'>Rows are the tokens of the chosen chunk as they were written, columns the "
            "tokens of each neighbor: N, then a dotted line, then its continuation F. Stronger color, more "
            "attention; one scale for all panels.</p>"
        )
        with gr.Row(elem_classes="knobs"):
            self.layer = gr.Dropdown(
                [MEAN], value=MEAN, label="Layer", info=explain("layer"), elem_id="layer", min_width=120
            )
            self.head = gr.Dropdown(
                [MEAN], value=MEAN, label="Head", info=explain("head"), elem_id="head", min_width=120
            )
        self.heatmap = gr.HTML(elem_id="heatmap", js_on_load=(ASSETS / "heatmap.js").read_text("utf-8"))
        with gr.Accordion("Retrieval, chunk by chunk", open=False, elem_id="timeline"):
            self.timeline = gr.HTML(elem_id="lookups")
        with gr.Accordion("All numbers as a table", open=False):
            self.numbers = gr.HTML(elem_id="numbers")
        self.download = gr.DownloadButton(
            "Download the text with all numbers, the edit and where they come from (JSON)",
            size="sm",
            elem_id="download",
        )

    def _editor(self) -> None:
        self.said = gr.HTML(
            "<p class='caption'>Choose edit, drop or swap on a neighbor: the text is read again with the "
            "other neighbor in its place.</p>"
        )
        with gr.Row():
            self.n_text = gr.Textbox(
                label="N: the neighbor", lines=4, max_lines=8, elem_id="edit-n", info=explain("N")
            )
            self.f_text = gr.Textbox(
                label="F: its continuation", lines=4, max_lines=8, elem_id="edit-f", info=explain("F")
            )
        with gr.Row(elem_classes="actions"):
            self.reread = gr.Button("Read this instead", variant="primary", elem_id="reread")
            self.other = gr.Dropdown(
                [],
                label="Or another chunk of the corpus",
                info="The nearest first; it is read at once.",
                elem_id="swap-with",
                min_width=260,
            )
        self.changed = gr.HTML(elem_id="changed", js_on_load=SHOW_POSITION)

    def values(self, trace: Trace | None, name: str) -> Values:
        """The view of a trace (None: there is none yet) and its id."""
        layers = trace.layers if trace else []
        heads = trace.weights.shape[2] if trace and trace.layers else 0
        return {
            self.intro: html_parts.intro(trace, example=name.startswith(SAMPLE)),
            self.linked: trace_views.linked(trace),
            self.layer: gr.Dropdown([MEAN, *map(str, layers)], value=MEAN),
            self.head: gr.Dropdown([MEAN, *(str(i + 1) for i in range(heads))], value=MEAN),
            self.heatmap: trace_views.heatmap(trace),
            self.editor: gr.Accordion(open=False),
            self.changed: "",
            self.timeline: trace_views.timeline_html(trace),
            self.numbers: trace_views.token_table(trace),
            self.download: _file(trace) if trace else None,
        }

    @property
    def outputs(self) -> list[Any]:
        """What `values` fills."""
        chosen = [self.layer, self.head, self.heatmap, self.editor, self.changed]
        return [self.intro, self.linked, *chosen, self.timeline, self.numbers, self.download]


class ExplainHandlers:
    """What happens inside the linked view."""

    def __init__(self, cache: ModelCache, view: ExplainView) -> None:
        self.cache, self.home, self.view = cache, cache.home, view

    def show_heatmap(self, code: str, name: str, which: str, one: str) -> str:
        """The heatmap of a layer and a head, or of their means."""
        trace = self._trace(code, name)
        number = int(which) if (which or "").isdecimal() and int(which) in trace.layers else None
        nth = chosen_index(one, trace.weights.shape[2])
        return trace_views.heatmap(trace, number, nth)

    def edit_from_text(self, code: str, name: str, event: gr.EventData) -> Values:
        """Open the editor on a neighbor; drop and swap are done at once."""
        trace = self._trace(code, name)
        chunk, neighbor, token = clicked(event, "neighbor of the text", "chunk", "neighbor", "token")
        kind = getattr(event, "act", "edit")
        edits.check_place(trace, chunk, neighbor)
        run = self._run_of(code, trace)
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
        return {
            self.view.editor: gr.Accordion(open=True),
            self.view.selection: (chunk, neighbor, token),
            self.view.said: html_parts.note(words),
            self.view.other: gr.Dropdown(options, value=options[0][1] if kind == "swap" else None),
            **self._texts(texts),
            **self._edited(trace, made, token),
        }

    def read_instead(self, code: str, name: str, at: tuple[int, int, int], n: str, f: str) -> Values:
        """Read the text again with these words in place of the neighbor in the editor."""
        trace = self._trace(code, name)
        made = edits.rewrite(self._run_of(code, trace), trace, at[0], at[1], n or "", f or "")
        return self._edited(trace, made, at[2])

    def read_other(self, code: str, name: str, at: tuple[int, int, int], chunk: int | None) -> Values:
        """Read the text again with another chunk of the corpus in place of the neighbor in the editor."""
        if chunk is None:
            return gr.skip()
        trace = self._trace(code, name)
        run = self._run_of(code, trace)
        made = edits.swap(run, trace, at[0], at[1], int(chunk))
        return self._texts(edits.neighbor_texts(run, made.edit.after)) | self._edited(trace, made, at[2])

    def _trace(self, code: str, name: str) -> Trace:
        trace = kept_traces.shown_trace(Workspace.open(self.home, code), name)[1]
        if trace is None:
            raise UserError("This text is gone. Write or explain one first.")
        return trace

    def _run_of(self, code: str, trace: Trace) -> LoadedRun:
        """The run that read a trace, with the corpus and retriever that it had."""
        workspace = Workspace.open(self.home, code)
        corpus = trace.about.get("corpus_id", "")
        service.check_ready(workspace, trace.about["run"], corpus)
        folder = service.built_corpus(workspace, corpus) if corpus else None
        return self.cache.run(workspace.run(trace.about["run"]), folder, trace.about["retriever"])

    def _texts(self, texts: tuple[str, str]) -> Values:
        return dict(zip((self.view.n_text, self.view.f_text), texts, strict=True))

    def _edited(self, trace: Trace, made: Rewritten | None, token: int) -> Values:
        """What an edit changed, and the download with it (without one: as it was found)."""
        changed = "" if made is None else trace_views.edit_html(trace, made, token)
        return {self.view.changed: changed, self.view.download: _file(trace, made)}


def _wire_explaining(on: ExplainHandlers, view: ExplainView, known: list[Any]) -> None:
    """`known`: the visitor, and the id of the text that is shown."""
    model = PRIVATE | MODEL
    texts, edited = [view.n_text, view.f_text], [view.changed, view.download]
    opened = view.linked.select(
        once_known(on.edit_from_text),
        known,
        [view.editor, view.selection, view.said, *texts, view.other, *edited],
        show_progress="hidden",
        **model,
    )
    opened.success(None, js=TO_EDITOR)
    view.reread.click(shows_errors(on.read_instead), [*known, view.selection, *texts], edited, **model)
    other = [*known, view.selection, view.other]
    view.other.input(shows_errors(on.read_other), other, [*texts, *edited], **model)
    drawn = [view.layer, view.head]
    gr.on([one.input for one in drawn], once_known(on.show_heatmap), [*known, *drawn], view.heatmap, **QUIET)


def _file(trace: Trace, made: Rewritten | None = None) -> str:
    """The trace as a file that Gradio may hand out."""
    values = trace_values(trace, edit_json(made) if made is not None else None)
    return json_file("trace.json", values, indent=None)


NO_RUN = "No run yet: train one on the Train tab."
OWN_CORPUS = "the corpus of its training"
PROMPT = "Geography\n\nLocation: Oceania, islands in the South Pacific Ocean"
EXAMPLES = [
    [PROMPT],
    ["Geography\n\nLocation: Western Africa, bordering the North Atlantic Ocean"],
    ["Economy - overview: The country exports coffee, tea and gold"],
    ["Government type: parliamentary democracy"],
]
READING = '<p class="speed" role="status">Reading the text with and without neighbors.</p>'


class GenerateView:
    """The components of the tab by name; to make one, inside its layout, builds them."""

    def __init__(self) -> None:
        self.form, self.reading = Form(GenerateConfig), Form(ExplainConfig)
        self.trace_id = gr.BrowserState("", storage_key="retro-demo-trace", secret="only an id")
        with gr.Row(elem_classes="knobs") as self.above:
            self.run = gr.Dropdown(
                [], label="Run", info="Which model writes or reads.", elem_id="run", min_width=220
            )
            self.corpus = gr.Dropdown(
                [(OWN_CORPUS, "")],
                value="",
                label="Reads from",
                info="Another corpus is a hot swap: the same weights, another database.",
                elem_id="reads-from",
                min_width=220,
            )
        with gr.Tabs(elem_id="ways"):
            with gr.Tab("Write a text", id="write") as self.plain:
                self._write()
            with gr.Tab("Explain a given text", id="explain") as self.given_text:
                self._explain()
            with gr.Tab("From evidence (MARGE)", id="from-evidence") as self.inner:
                self.evidence = WritingView()
        with gr.Column() as self.below:
            with gr.Row(elem_classes="actions"):
                self.speed = gr.HTML(elem_id="speed", min_height=28)
            self.text = ExplainView()
        self.token = gr.State("")  # of the text that this page asked for last
        self.of_marge = gr.State(False)  # whether the way to write that is in view is that of a MARGE

    def _write(self) -> None:
        self.prompt = gr.Textbox(
            PROMPT, label="Prompt", lines=2, max_lines=8, elem_id="prompt", info="How the text begins."
        )
        self.examples = gr.Dataset(
            components=["textbox"],
            samples=EXAMPLES,
            label="Prompts to try: a click writes on",
            elem_id="examples",
            type="values",
        )
        with gr.Row(elem_classes="knobs"):
            self.form.show(main=True)
        with gr.Accordion("More settings", open=False), gr.Row():
            self.form.show(main=False)
        linked = gr.HTML()
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button("Generate", variant="primary", elem_id="generate")
            self.stop = gr.Button("Stop", elem_id="stop-generating")
            copy_link("generate", self.run, linked)
        with gr.Accordion("Side by side: on, off, shuffled", open=False, elem_id="sides"):
            gr.HTML(
                f"<p class='caption'>The same prompt and seed three times. Only what on does better than "
                f"the {html_parts.term('shuffled control')} is owed to what the neighbors say.</p>"
            )
            with gr.Row(elem_classes="actions"):
                self.compare = gr.Button("Write all three", elem_id="compare")
            self.sides = gr.HTML(elem_id="compared")

    def _explain(self) -> None:
        self.document = gr.Dropdown(
            [], label="A held-out document of the corpus", elem_id="document", info="Fills the box below."
        )
        self.given = gr.Textbox(label="Text", lines=4, max_lines=10, elem_id="given", info="Paste any text.")
        with gr.Row(elem_classes="knobs"):
            self.reading.widgets["num_neighbors"] = _slider(self.reading)
            self.reading.show(main=True)
        with gr.Row(elem_classes="actions"):
            self.explain = gr.Button("Explain this text", variant="primary", elem_id="explain")
            self.again = gr.Button("Read the text below this way", elem_id="again")


class GenerateHandlers:
    """What happens on the tab: each takes plain values and gives new ones for components of the view.

    `breadcrumb` is the line at the top of the page; it names the run of the way to write that is in view.
    """

    def __init__(self, cache: ModelCache, view: GenerateView, breadcrumb: gr.HTML) -> None:
        self.cache, self.home, self.view, self.breadcrumb = cache, cache.home, view, breadcrumb
        self.watch, self.lane = zero_gpu.writer(cache), Lane(cache)

    def show(self, code: str, name: str) -> Values:
        """The view of a kept trace, else of the example that ships."""
        name, trace = kept_traces.shown_trace(Workspace.open(self.home, code), name)
        speed = html_parts.trace_speed(trace) if trace else ""
        return {self.view.speed: speed} | self.view.text.values(trace, name)

    def restore(self, code: str, name: str) -> Values:
        """As `show`, with prompt and settings as they made it; those of an example write another text."""
        shown_id, trace = kept_traces.shown_trace(Workspace.open(self.home, code), name)
        if trace is None or trace.about.get("given"):
            return self.show(code, name)
        made_with = trace.about.get("written_with", trace.about["config"])
        if shown_id.startswith(SAMPLE):  # it stands there already: a first click is to write a new one
            made_with = made_with | {"seed": made_with["seed"] + 1}
        form = self.view.form
        settings = dict(zip(form.inputs, form.fill(made_with), strict=True))
        return self.show(code, name) | {self.view.prompt: trace.about["prompt"]} | settings

    def write(
        self, code: str, name: str, other: str, token: str, words: str, *values: Any
    ) -> Iterator[Values]:
        view, config = self.view, checked_writing(self.home, **self.view.form.read(values))
        workspace = Workspace.open(self.home, code)
        with self.lane.text(code, token) as stopped:
            loaded = yield from self._load(workspace, name, other, config.retriever)
            for writing in self.watch(loaded, name, words, config, stopped):
                shown: Values = {
                    view.text.linked: html_parts.growing_text(writing),
                    view.speed: html_parts.writing_speed(writing),
                }
                if writing.trace is not None:
                    shown[view.trace_id] = self._keep(workspace, writing.trace, other)
                yield shown

    def side_by_side(
        self, code: str, name: str, other: str, token: str, words: str, *values: Any
    ) -> Iterator[Values]:
        """Write with neighbors, without, and with shuffled ones."""
        view, config = self.view, checked_writing(self.home, **self.view.form.read(values))
        workspace = Workspace.open(self.home, code)
        with self.lane.text(code, token) as stopped:
            loaded = yield from self._load(workspace, name, other, config.retriever)
            if not loaded.database:
                raise UserError("This run is a plain language model (lm): it has no retrieval to compare.")
            for written in write_sides(loaded, name, words, config, stopped):
                last = list(written.values())[-1]
                yield {view.speed: html_parts.writing_speed(last), view.sides: html_parts.sides_html(written)}

    def explain_given(self, code: str, name: str, other: str, text: str, *values: Any) -> Iterator[Values]:
        view, config = self.view, ExplainConfig(**self.view.reading.read(values))
        workspace = Workspace.open(self.home, code)
        loaded = yield from self._load(workspace, name, other, config.retriever)
        yield {view.speed: READING}
        trace = explained.explain_text(loaded, name, text, config)
        yield {view.trace_id: self._keep(workspace, trace, other)}

    def explain_shown(self, code: str, kept: str, other: str, *values: Any) -> Iterator[Values]:
        """Explain the text that is shown with other settings."""
        view, config = self.view, ExplainConfig(**self.view.reading.read(values))
        workspace = Workspace.open(self.home, code)
        trace = kept_traces.shown_trace(workspace, kept)[1]
        if trace is None:
            raise UserError("There is no text below yet. Write or explain one first.")
        loaded = yield from self._load(workspace, trace.about["run"], other, config.retriever)
        yield {view.speed: READING}
        yield {view.trace_id: self._keep(workspace, explained.explain_again(loaded, trace, config), other)}

    def refresh(
        self, code: str, kept: str, now: str | None, other: str, of_marge: bool, found: str | None
    ) -> Values:
        """What there is to choose from: a run, a corpus, a document."""
        workspace = Workspace.open(self.home, code)
        runs = service.readable_runs(workspace)
        chosen = now if now in runs else None
        if chosen is None:  # the run whose text is shown, else the first
            trace = kept_traces.shown_trace(workspace, kept)[1]
            shown_run = trace.about["run"] if trace else None
            chosen = shown_run if shown_run in runs else next(iter(runs), None)
        corpora = built_ones(workspace)
        reads = [(OWN_CORPUS, ""), *((service.corpus_title(c), c) for c in corpora)]
        return {
            **self.describe_run(code, chosen),
            self.view.run: relisted_runs(runs, now, chosen),
            self.view.corpus: relisted(reads, other, other if other in corpora else ""),
            self.breadcrumb: self.name_shown_run(code, of_marge, chosen, found),
        }

    def arrive(self, code: str, link: dict[str, str], *values: Any) -> Values:
        """As `refresh`; where a link opens another tab the line at the top is that one's."""
        shown = self.refresh(code, *values)
        if link["tab"] not in ("", "generate"):
            del shown[self.breadcrumb]
        return shown

    def describe_run(self, code: str, name: str | None) -> Values:
        """The held-out documents of the chosen run, and the line at the top."""
        if not name:
            return {self.breadcrumb: html_parts.note(NO_RUN), self.view.document: gr.Dropdown([], value=None)}
        workspace = Workspace.open(self.home, code)
        documents = explained.held_out_documents(service.corpus_of_run(workspace, name)[1])
        return {
            self.breadcrumb: run_breadcrumb(workspace, name),
            self.view.document: gr.Dropdown(documents, value=None),
        }

    def name_shown_run(self, code: str, of_marge: bool, name: str | None, found: str | None) -> str:
        """The line at the top, where a way to write comes into view or the run of a MARGE is chosen."""
        shown_run = found if of_marge else name
        workspace = Workspace.open(self.home, code)
        return run_breadcrumb(workspace, shown_run) if shown_run else html_parts.note(NO_RUN)

    def show_form(self, of_marge: bool) -> Values:
        """A MARGE has runs and texts of its own: those of the others are hidden, and stay as they are."""
        view, visible = self.view, "hidden" if of_marge else True
        return {
            view.above: gr.Row(visible=visible),
            view.below: gr.Column(visible=visible),
            view.of_marge: of_marge,
        }

    def fill_document(self, code: str, name: str, number: int | None) -> Any:
        """The text of a held-out document."""
        if number is None or not name:
            return gr.skip()
        folder = service.corpus_of_run(Workspace.open(self.home, code), name)[1]
        return explained.document_text(folder, int(number))

    def _load(
        self, workspace: Workspace, name: str, other: str, retriever: str
    ) -> Generator[Values, None, LoadedRun]:
        yield {self.view.speed: loading(other)}
        if not name:
            raise UserError("There is no run yet. Train one on the Train tab.")
        service.check_ready(workspace, name, other)
        workspace.make()  # for the text, which is not kept where all is deleted meanwhile
        swap = service.built_corpus(workspace, other) if other else None
        return self.cache.run(workspace.run(name), swap, retriever)

    def _keep(self, workspace: Workspace, trace: Trace, other: str) -> str:
        trace.about["corpus_id"] = other
        kept = time.strftime("t%Y%m%d-%H%M%S-") + secrets.token_hex(4)
        kept_traces.keep_trace(workspace, kept, trace)
        return kept


def generate_tab(
    tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any, breadcrumb: gr.HTML
) -> None:
    """Build the tab and wire it; `arrival` is the event after which the visitor is known."""
    view = GenerateView()
    on = GenerateHandlers(cache, view, breadcrumb)
    wire_writing(view.inner, cache, view.evidence, visitor, arrival)
    _wire_explaining(ExplainHandlers(cache, view.text), view.text, [visitor, view.trace_id])
    _wire_texts(view, on, visitor)
    _wire_choices(view, on, visitor)
    listed = [view.trace_id, view.run, view.corpus, view.of_marge, view.evidence.run]
    lists = [view.run, view.corpus, breadcrumb, view.document]
    everything = [view.speed, *view.text.outputs, view.prompt, *view.form.inputs]
    arrival = arrival.opening(tab, view.run)
    tab.select(once_known(on.refresh), [visitor, *listed], lists, **QUIET)
    arrival.then(once_known(on.arrive), [visitor, arrival.link, *listed], lists, **QUIET)
    arrival.then(shows_errors(on.restore), [visitor, view.trace_id], everything, **QUIET)


def _wire_texts(view: GenerateView, on: GenerateHandlers, visitor: gr.BrowserState) -> None:
    """What writes or reads a text; a corpus is waited for outside of the lane of models."""
    speed, trace_id, text = view.speed, view.trace_id, view.text
    wait, write = on.lane.waiting(), shows_errors(on.write)

    def waits(begun: Callable[..., Any]) -> Any:
        waiting = begun(wait, [visitor, view.run, view.corpus], [speed, view.token], **CHEAP)
        waiting.failure(lambda: "", None, speed, **QUIET)
        return waiting

    asked = [visitor, view.run, view.corpus, view.token, view.prompt, *view.form.inputs]
    given = [visitor, view.run, view.corpus, view.given, *view.reading.inputs]
    shown = [visitor, trace_id, view.corpus, *view.reading.inputs]
    written, read = [text.linked, speed, trace_id], [speed, trace_id]
    picked = view.examples.click(first_of, view.examples, view.prompt, **QUIET)
    texts = [
        waits(view.go.click).success(write, asked, written, **ON_PAGE),
        waits(picked.then).success(write, asked, written, **ON_PAGE),
        waits(view.explain.click).success(shows_errors(on.explain_given), given, read, **ON_PAGE),
        view.again.click(shows_errors(on.explain_shown), shown, read, **ON_PAGE),
    ]
    show, everything = shows_errors(on.show), [speed, *text.outputs]
    for begun in texts:
        begun.success(show, [visitor, trace_id], everything, **CHEAP)
        begun.failure(lambda: "", None, speed, **QUIET)
    sides = waits(view.compare.click).success(
        shows_errors(on.side_by_side), asked, [speed, view.sides], **ON_PAGE
    )
    sides.failure(lambda: "", None, speed, **QUIET)
    view.stop.click(on.lane.stopping(), [visitor, view.token], None, **QUIET)


def _wire_choices(view: GenerateView, on: GenerateHandlers, visitor: gr.BrowserState) -> None:
    """What is chosen: a way to write, which has runs of its own where it is a MARGE's; a run; a document."""
    describe_run, top_line = once_known(on.describe_run), once_known(on.name_shown_run)
    named = [visitor, view.of_marge, view.run, view.evidence.run]
    for way in (view.plain, view.given_text, view.inner):
        hidden = [view.above, view.below, view.of_marge]
        turned = way.select(lambda own=way is view.inner: on.show_form(own), None, hidden, **QUIET)
        turned.then(top_line, named, on.breadcrumb, **QUIET)
    view.evidence.run.input(top_line, named, on.breadcrumb, **QUIET)
    view.run.input(describe_run, [visitor, view.run], [on.breadcrumb, view.document], **QUIET)
    view.document.input(once_known(on.fill_document), [visitor, view.run, view.document], view.given, **QUIET)


def loading(other: str) -> str:
    """What is said while a run is loaded, with another corpus or that of its training."""
    longer = "; the first reading of another corpus takes longer" if other else ""
    return f'<p class="speed" role="status">Loading the run{longer}.</p>'


def _slider(reading: Form) -> gr.Slider:
    meta = reading.fields["num_neighbors"].metadata
    return gr.Slider(
        0, MOST_NEIGHBORS, 0, step=1, label=meta["label"], info=meta["help"], elem_id="knob-read-neighbors"
    )
