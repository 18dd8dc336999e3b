"""The Generate tab: write a text or bring one, then look into it in the linked view (ui/linked_view.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain import rewriting
from retro_demo.explain import text as explained
from retro_demo.explain.text import write_sides
from retro_demo.explain.tracing import Trace
from retro_demo.render import html_parts
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server import workspace as kept_traces
from retro_demo.server.limits import checked_writing
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.run_actions import built_ones, prompts_for
from retro_demo.server.workspace import Workspace
from retro_demo.settings import MOST_NEIGHBORS, SEEDS, ExplainConfig, GenerateConfig
from retro_demo.ui import zero_gpu
from retro_demo.ui.evidence_reading import WritingView, wire_writing
from retro_demo.ui.form import (
    CHEAP,
    ON_PAGE,
    QUIET,
    Form,
    Values,
    first_of,
    into_view,
    named_runs,
    once_known,
    relisted,
    shows_errors,
)
from retro_demo.ui.linked_view import (
    ExplainHandlers,
    ExplainView,
    compare_with_off,
    growing,
    keep,
    wire_explaining,
)
from retro_demo.ui.origins_panel import origins_panel
from retro_demo.ui.visit import Lane, copy_link, run_breadcrumb

NO_RUN = "No run yet: train one on the Train tab."
OWN_CORPUS = "its own corpus"
PROMPT = "Geography\n\nLocation: Oceania, islands in the South Pacific Ocean"
EXAMPLES = [
    [PROMPT],
    ["Geography\n\nLocation: Western Africa, bordering the North Atlantic Ocean"],
    ["Economy - overview: The country exports coffee, tea and gold"],
    ["Government type: parliamentary democracy"],
]
GO, BUSY = "Generate", "Writing"
TO_RESULT = into_view("#result", "start")
PUT_BACK = """(kept, run, ...now) => {
  if (!kept) return now;
  const form = JSON.parse(kept), same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  if (run && run !== form.run) return now;
  return now.map((value, at) => same(value, form.begun[at]) ? form.filled[at] : value);
}"""
"""Fills the form as it made the text that the page opens on; what was changed while that came stays."""
SHUFFLED = "Shuffled: neighbors of other chunks, as a control."
AWAY = ["away"]  # a hidden column would keep its place (assets/style.css)
MOST_SHOWN = 48  # characters of a prompt on its button
READING = html_parts.status_line("Reading the text with and without neighbors.")


class GenerateView:
    """The components of the tab by name; to make one, inside its layout, builds them.

    The form stands left of the text that it makes, on a phone above it; the rest is folded below both.
    """

    def __init__(self) -> None:
        self.form, self.reading = Form(GenerateConfig), Form(ExplainConfig)
        self.trace_id = gr.BrowserState("", storage_key="retro-demo-trace", secret="only an id")
        self.token = gr.State("")  # of the text that this page asked for last
        self.put_back = gr.Textbox(visible="hidden")  # the form as it made the text that the page opens on
        self.of_marge = gr.State(False)  # whether the way to write that is in view is that of a MARGE
        if missing := service.missing_base():
            gr.HTML(html_parts.note(missing, "warning"), elem_id="no-base")
        with gr.Row(elem_id="screen"):
            with gr.Column(scale=1, min_width=300, elem_id="form"):
                self._form()
            with gr.Column(scale=2, min_width=320, elem_id="result") as self.below:
                self.speed = gr.HTML(elem_id="speed")
                self.text = ExplainView(self.trace_id, self.token, self.speed, self.go)
            with gr.Column(scale=2, min_width=320, elem_id="marge-result", elem_classes=AWAY) as self.beside:
                self.evidence.show_result()
        with gr.Column(elem_id="folds") as self.folds:
            self.text.fold()
            self._side_by_side()
            self.text.fold_numbers()

    def _form(self) -> None:
        with gr.Row(elem_classes="pair") as self.above:
            self.run = gr.Dropdown([], label="Run", elem_id="run", min_width=130)
            self.corpus = gr.Dropdown(
                [(OWN_CORPUS, "")], value="", label="Reads from", elem_id="reads-from", min_width=130
            )
        with gr.Tabs(elem_id="ways"):
            with gr.Tab("Write a text", id="write") as self.plain:
                self._write()
            with gr.Tab("Explain a given text", id="explain") as self.given_text:
                self._explain()
            with gr.Tab("From evidence (MARGE)", id="from-evidence") as self.inner:
                self.evidence = WritingView()

    def _write(self) -> None:
        self.prompt = gr.Textbox(PROMPT, label="Prompt", lines=3, max_lines=6, elem_id="prompt")
        settings = [name for name, one in self.form.fields.items() if one.metadata["main"]]
        self.form.show(main=True, without=[name for name in settings if name != "retrieval"])
        self.form.widgets["retrieval"].info = SHUFFLED
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button(GO, variant="primary", elem_id="generate")
            self.stop = gr.Button("Stop", elem_id="stop-generating", interactive=False)
        self.swap = gr.Button(visible=False, size="sm", elem_id="swap-edition")
        self.examples = gr.Dataset(
            components=["textbox"],
            samples=EXAMPLES,
            sample_labels=[short_prompt(row[0]) for row in EXAMPLES],
            label="Try a prompt",
            elem_id="examples",
            type="values",
        )
        with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row(elem_classes="knobs"):
            self.form.show(main=True)
            self.form.show(main=False)
        self.offered = gr.State([row[0] for row in EXAMPLES])  # the prompts to try
        linked = gr.HTML(render=False)
        copy_link("generate", self.run, linked)
        linked.render()

    def _side_by_side(self) -> None:
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
        self.given = gr.Textbox(label="Text", lines=6, max_lines=10, elem_id="given")
        # the document that is to stand in the box; it is kept in the page, whose script moves it there
        self.put_in = gr.Textbox(visible="hidden")
        with gr.Row(elem_classes="actions"):
            self.explain = gr.Button("Explain this text", variant="primary", elem_id="explain")
            self.again = gr.Button("Apply to the shown text", elem_id="again")
            self.stop_edit = gr.Button("Stop", elem_id="stop-edit", interactive=False)
        with gr.Accordion("How it is read", open=False), gr.Row(elem_classes="knobs"):
            self.reading.widgets["num_neighbors"] = _slider(self.reading)
            self.reading.show(main=True)

    @property
    def buttons(self) -> list[gr.Button]:
        """Generate, and Stop beside it and beside a given text, whose edits are written, too."""
        return [self.go, self.stop, self.stop_edit]


def short_prompt(prompt: str) -> str:
    """A prompt as a button shows it: its first line, and its last where it has more."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    words = lines[0] if len(lines) < 2 else f"{lines[0]} · {lines[-1]}"
    return words if len(words) <= MOST_SHOWN else f"{words[:MOST_SHOWN]}…"


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
        return {self.view.speed: ""} | self.view.text.values(trace, name)

    def restore(self, code: str, name: str, run: str | None) -> Values:
        """As `show`, with prompt and settings as they made it, for PUT_BACK; `run`: the one chosen by now."""
        workspace, form = Workspace.open(self.home, code), self.view.form
        trace = kept_traces.shown_trace(workspace, name)[1]
        if trace is not None and trace.about.get("given"):
            return self.show(code, name)
        begun = [PROMPT, *form.fill({})]
        if trace is None:
            first = next(iter(service.readable_runs(workspace)), "")
            filled = [self._prompts(workspace, first)[0], *begun[1:]]
        else:
            first, made_with = trace.about["run"], trace.about.get("written_with", trace.about["config"])
            filled = [trace.about["prompt"], *form.fill(made_with)]
        return self.show(code, name) | {
            self.view.put_back: json.dumps({"run": run or first, "begun": begun, "filled": filled})
        }

    def write(
        self, code: str, name: str, other: str, token: str, before: str, words: str, *values: Any
    ) -> Iterator[Values]:
        """`before`: the id of the text that is shown. Asked for once more, it gets the next seed; where no
        seed changes it, it is written as it was, and that is said."""
        view, config = self.view, checked_writing(self.home, **self.view.form.read(values))
        workspace = Workspace.open(self.home, code)
        shown = kept_traces.shown_trace(workspace, before)[1]
        if again := shown is not None and is_made_with(shown, name, other, words, config):
            config = replace(config, seed=next_seed(config))
        with self.lane.text(code, token) as stopped:
            loaded = yield from self._load(workspace, name, other, config.retriever)
            if again and config.temperature:
                yield {view.form.widgets["seed"]: config.seed}
            for writing in self.watch(loaded, name, words, config, stopped):
                step = growing(view.text.linked, view.speed, view.go, writing)
                if writing.trace is not None:
                    if again and shown is not None and writing.trace.ids == shown.ids:
                        writing.trace.about["again"] = True
                    step[view.trace_id] = keep(workspace, writing.trace, other)
                yield step

    def side_by_side(
        self, code: str, name: str, other: str, token: str, words: str, *values: Any
    ) -> Iterator[Values]:
        """Write with neighbors, without, and with shuffled ones."""
        view, config = self.view, checked_writing(self.home, **self.view.form.read(values))
        workspace = Workspace.open(self.home, code)
        with self.lane.text(code, token) as stopped:
            loaded = yield from self._load(workspace, name, other, config.retriever)
            if not loaded.database:
                raise UserError(
                    f"This run ({loaded.config.model}) reads no neighbors: there is no retrieval to compare."
                )
            for written in write_sides(loaded, name, words, config, stopped):
                last = list(written.values())[-1]
                yield {view.speed: html_parts.writing_speed(last), view.sides: html_parts.sides_html(written)}

    def explain_given(self, code: str, name: str, other: str, text: str, *values: Any) -> Iterator[Values]:
        view, config = self.view, ExplainConfig(**self.view.reading.read(values))
        workspace = Workspace.open(self.home, code)
        loaded = yield from self._load(workspace, name, other, config.retriever)
        yield {view.speed: READING}
        trace = explained.explain_text(loaded, name, text, config)
        yield {view.trace_id: keep(workspace, trace, other)}

    def explain_shown(self, code: str, kept: str, other: str, *values: Any) -> Iterator[Values]:
        """Explain the text that is shown with other settings."""
        view, config = self.view, ExplainConfig(**self.view.reading.read(values))
        workspace = Workspace.open(self.home, code)
        trace = kept_traces.shown_trace(workspace, kept)[1]
        if trace is None:
            raise UserError("There is no text below yet. Write or explain one first.")
        loaded = yield from self._load(workspace, trace.about["run"], other, config.retriever)
        yield {view.speed: READING}
        yield {view.trace_id: keep(workspace, explained.explain_again(loaded, trace, config), other)}

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
        return {
            **self.describe_run(code, chosen, other),
            self.view.run: relisted(named_runs(runs), now, chosen),
            self.breadcrumb: self.name_shown_run(code, of_marge, chosen, found),
        }

    def arrive(self, code: str, link: dict[str, str], *values: Any) -> Values:
        """As `refresh`; where a link opens another tab the line at the top is that one's."""
        shown = self.refresh(code, *values)
        if link["tab"] not in ("", "generate"):
            del shown[self.breadcrumb]
        return shown

    def describe_run(self, code: str, name: str | None, other: str = "") -> Values:
        """What belongs to the chosen run: its held-out documents, prompts to try, the line at the top."""
        if not name:
            return {self.breadcrumb: html_parts.note(NO_RUN), self.view.document: gr.Dropdown([], value=None)}
        workspace = Workspace.open(self.home, code)
        documents = explained.held_out_documents(service.corpus_of_run(workspace, name)[1])
        prompts = self._prompts(workspace, name)
        reads = read_any_config(workspace.run(name)).kind.retrieves
        return {
            self.breadcrumb: run_breadcrumb(workspace, name),
            self.view.document: gr.Dropdown(documents),
            self.view.corpus: self._reads_from(workspace, other, reads),
            self.view.form.widgets["retrieval"]: gr.Radio(interactive=reads),
            self.view.examples: gr.Dataset(
                samples=[[prompt] for prompt in prompts], sample_labels=[short_prompt(one) for one in prompts]
            ),
            self.view.offered: prompts,
            self.view.swap: self._swap_button(workspace, name, other),
        }

    def _reads_from(self, workspace: Workspace, other: str, reads: bool) -> gr.Dropdown:
        """The corpora to read from; a run that reads nothing has no choice."""
        corpora = list(dict.fromkeys([*built_ones(workspace), *service.editions()]))
        named = [(OWN_CORPUS, ""), *((service.corpus_title(c), c) for c in corpora)]
        return relisted(named, other, other if reads and other in corpora else "", interactive=reads)

    def choose_run(self, code: str, name: str | None, other: str, prompt: str, offered: list[str]) -> Values:
        """As `describe_run`; a prompt that was offered with the run before gives way to one of this run."""
        shown = self.describe_run(code, name, other)
        prompts = shown.get(self.view.offered, offered)
        return shown | ({self.view.prompt: prompts[0]} if prompt in offered and prompts != offered else {})

    def swap_edition(self, code: str, name: str | None, other: str) -> Values:
        """Read the other edition of the run's corpus, or its own again."""
        if not name:
            raise UserError(NO_RUN)
        workspace = Workspace.open(self.home, code)
        edition = service.edition_of(read_any_config(workspace.run(name)).corpus)
        read = "" if other == edition else edition
        return {
            self.view.corpus: gr.update(value=read),
            self.view.swap: self._swap_button(workspace, name, read),
        }

    def name_swap(self, code: str, name: str | None, other: str) -> Any:
        """The button that swaps, where the corpus was chosen by hand."""
        return self._swap_button(Workspace.open(self.home, code), name, other) if name else gr.skip()

    def _swap_button(self, workspace: Workspace, name: str, other: str) -> gr.Button:
        config = read_any_config(workspace.run(name))
        edition = service.edition_of(config.corpus) if config.retrieves else ""
        title = service.corpus_title(config.corpus if other == edition else edition)
        return gr.Button(f"Write it from the {title}", visible=bool(edition))

    def _prompts(self, workspace: Workspace, name: str) -> list[str]:
        return (prompts_for(workspace, name) if name else []) or [row[0] for row in EXAMPLES]

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
            view.below: gr.Column(visible=visible, elem_classes=AWAY if of_marge else []),
            view.beside: gr.Column(elem_classes=[] if of_marge else AWAY),
            view.folds: gr.Column(visible=visible),
            view.of_marge: of_marge,
        }

    def fill_document(self, code: str, name: str, number: int | None) -> Any:
        """The text of a held-out document."""
        if number is None or not name:
            return gr.skip()
        folder = service.corpus_of_run(Workspace.open(self.home, code), name)[1]
        text = explained.document_text(folder, int(number))
        return {self.view.put_in: text}

    def begin_with_document(self, code: str, name: str | None, given: str, put_in: str) -> Any:
        """A held-out document of the run's corpus to explain, unless the visitor gave a text of their own."""
        if not name or given not in ("", put_in):
            return gr.skip()
        folder = service.corpus_of_run(Workspace.open(self.home, code), name)[1]
        documents = explained.held_out_documents(folder)
        if not documents:
            return gr.skip()
        first = documents[0][1]
        return {
            self.view.document: gr.Dropdown(documents, value=first),
            **self.fill_document(code, name, first),
        }

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


def is_made_with(shown: Trace, name: str, other: str, prompt: str, config: GenerateConfig) -> bool:
    """Whether the run wrote the text from this prompt with these settings, reading `other` ("": its own)."""
    about = shown.about
    asked = name, other, prompt
    return (
        rewriting.is_written(shown)
        and "edited" not in about
        and (about["run"], about.get("corpus_id", ""), about["prompt"]) == asked
        and rewriting.settings_of_text(shown) == config
    )


def next_seed(config: GenerateConfig) -> int:
    """Another seed where chance has a say, after the largest one the first."""
    return (config.seed + 1) % (SEEDS[1] + 1) if config.temperature else config.seed


def generate_tab(
    tab: gr.Tab, cache: ModelCache, visitor: gr.BrowserState, arrival: Any, breadcrumb: gr.HTML
) -> None:
    """Build the tab and wire it; `arrival` is the event after which the visitor is known."""
    view = GenerateView()
    with view.folds:
        origins_panel(cache, visitor, view.trace_id, view.run, view.corpus)
    on = GenerateHandlers(cache, view, breadcrumb)
    wire_writing(view.inner, cache, view.evidence, visitor, arrival)
    inside = ExplainHandlers(cache, view.text, on.lane)
    _wire_texts(view, on, inside, visitor)
    _wire_choices(view, on, visitor)
    listed = [view.trace_id, view.run, view.corpus, view.of_marge, view.evidence.run]
    lists = [view.run, breadcrumb, *_of_run(view)]
    form = [view.prompt, *view.form.inputs]
    arrival = arrival.opening(tab, view.run)
    tab.select(once_known(on.refresh), [visitor, *listed], lists, **QUIET)
    arrival.then(once_known(on.arrive), [visitor, arrival.link, *listed], lists, **QUIET)
    everything = [view.speed, *view.text.outputs, view.put_back]
    shown = arrival.then(shows_errors(on.restore), [visitor, view.trace_id, view.run], everything, **QUIET)
    shown.success(None, [view.put_back, view.run, *form], form, js=PUT_BACK, **QUIET)
    compare_with_off(shown, inside, view.text, [visitor, view.trace_id])


def _wire_texts(
    view: GenerateView, on: GenerateHandlers, inside: ExplainHandlers, visitor: gr.BrowserState
) -> None:
    """What writes or reads a text; a corpus is waited for outside of the lane of models."""
    speed, trace_id, text, buttons = view.speed, view.trace_id, view.text, view.buttons
    wait, write = on.lane.waiting(), shows_errors(on.write)
    in_turn = ON_PAGE | {"trigger_mode": "multiple"}  # Enter while a text is written asks for the next one

    def waits(begun: Callable[..., Any]) -> Any:
        waiting = begun(wait, [visitor, view.run, view.corpus], [speed, view.token], **CHEAP)
        _fails(waiting, view)
        return waiting

    asked = [visitor, view.run, view.corpus, view.token, view.prompt, *view.form.inputs]
    anew = [*asked[:4], trace_id, *asked[4:]]
    given = [visitor, view.run, view.corpus, view.given, *view.reading.inputs]
    shown = [visitor, trace_id, view.corpus, *view.reading.inputs]
    written, read = [view.form.widgets["seed"], text.linked, speed, trace_id, view.go], [speed, trace_id]
    picked = view.examples.click(first_of, view.examples, view.prompt, **QUIET)
    swaps = [visitor, view.run, view.corpus]
    swapped = view.swap.click(shows_errors(on.swap_edition), swaps, [view.corpus, view.swap], **QUIET)
    swapped.failure(at_rest, None, buttons, **QUIET)
    pressed = [view.go.click, view.prompt.submit, view.examples.click, view.swap.click, view.compare.click]
    pressed += [text.linked.select, text.other.input]
    gr.on(pressed, lambda: begins(inside), None, buttons, **QUIET)
    texts = [
        waits(view.go.click).success(write, anew, written, **in_turn),
        waits(view.prompt.submit).success(write, anew, written, **in_turn),
        waits(picked.then).success(write, anew, written, **in_turn),
        waits(swapped.success).success(write, anew, written, **in_turn),
    ]
    # Stop is not for them: the text that is written meanwhile stays the one that this page asked for
    follows = view.explain.click(wait, [visitor, view.run, view.corpus], [speed, gr.State("")], **CHEAP)
    readings = [
        follows.success(shows_errors(on.explain_given), given, read, **ON_PAGE),
        view.again.click(shows_errors(on.explain_shown), shown, read, **ON_PAGE),
    ]
    for event in (follows, *readings):
        event.failure(lambda: "", None, speed, **QUIET)
    for button in (view.go, view.swap, view.explain, view.again):
        button.click(None, js=TO_RESULT)
    show, everything = shows_errors(on.show), [speed, *text.outputs]
    for begun in (*texts, *readings):
        seen = begun.success(show, [visitor, trace_id], everything, **CHEAP)
        compare_with_off(seen, inside, text, [visitor, trace_id])
    sides = waits(view.compare.click).success(
        shows_errors(on.side_by_side), asked, [speed, view.sides], **in_turn
    )
    held, edited = wire_explaining(inside, text, [visitor, trace_id])
    for begun in (*texts, sides, *held, *edited):
        _fails(begun, view)
    for begun in (*texts, sides, *edited):
        begun.success(resting(on.lane), view.token, buttons, **QUIET)
    for stop in (view.stop, view.stop_edit):
        stop.click(on.lane.stopping(), [visitor, view.token], None, **QUIET)


def _fails(event: Any, view: GenerateView) -> None:
    """Let the buttons rest where a text comes to nothing, whatever has failed."""
    event.failure(lambda: ["", *at_rest()], None, [view.speed, *view.buttons], **QUIET)


def resting(lane: Lane) -> Callable[[str], list[Any]]:
    """A handler that lets the buttons rest at the end of a text, unless the page asked for another since."""

    def rest(token: str) -> list[Any]:
        return [gr.skip()] * 3 if lane.expects(token) else at_rest()

    return rest


def begins(inside: ExplainHandlers) -> list[gr.Button]:
    """Generate and both Stops once a text is asked for."""
    inside.hurry()
    return [gr.Button(BUSY, interactive=False), gr.Button(interactive=True), gr.Button(interactive=True)]


def at_rest() -> list[gr.Button]:
    """Generate and both Stops while nothing is written."""
    return [gr.Button(GO, interactive=True), gr.Button(interactive=False), gr.Button(interactive=False)]


def _wire_choices(view: GenerateView, on: GenerateHandlers, visitor: gr.BrowserState) -> None:
    """What is chosen: a way to write, which has runs of its own where it is a MARGE's; a run; a document."""
    top_line = once_known(on.name_shown_run)
    named = [visitor, view.of_marge, view.run, view.evidence.run]
    for way in (view.plain, view.given_text, view.inner):
        hidden = [view.above, view.below, view.beside, view.folds, view.of_marge]
        turned = way.select(lambda own=way is view.inner: on.show_form(own), None, hidden, **QUIET)
        turned.then(top_line, named, on.breadcrumb, **QUIET)
    view.evidence.run.input(top_line, named, on.breadcrumb, **QUIET)
    described = [on.breadcrumb, *_of_run(view), view.prompt]
    chosen = [visitor, view.run, view.corpus, view.prompt, view.offered]
    named = view.run.input(once_known(on.choose_run), chosen, described, **QUIET)
    begun = [visitor, view.run, view.given, view.put_in], [view.document, view.put_in]
    moved = [view.given, view.put_in], view.given
    for event in (view.given_text.select, named.then):
        found = event(once_known(on.begin_with_document), *begun, **QUIET)
        found.success(None, *moved, js=put_in(over=False), **QUIET)
    view.corpus.input(once_known(on.name_swap), [visitor, view.run, view.corpus], view.swap, **QUIET)
    chosen = [visitor, view.run, view.document], view.put_in
    found = view.document.input(once_known(on.fill_document), *chosen, **QUIET)
    found.success(None, *moved, js=put_in(over=True), **QUIET)


def _of_run(view: GenerateView) -> list[Any]:
    """What `describe_run` fills beside the line at the top."""
    retrieval = view.form.widgets["retrieval"]
    return [view.document, view.corpus, retrieval, view.examples, view.offered, view.swap]


def put_in(*, over: bool) -> str:
    """A script that puts a document into the box of given texts: `over` what stands there, or only where that
    is nothing, or the document of before. What was typed while the document came is the visitor's."""
    return f"""(given, text) => {{
  const box = document.getElementById('given');
  const ours = {"true" if over else "!given || given === box.dataset.putIn"};
  if (ours) box.dataset.putIn = text;
  return ours ? text : given;
}}"""


def loading(other: str) -> str:
    """What is said while a run is loaded, with another corpus or that of its training."""
    longer = "; the first reading of another corpus takes longer" if other else ""
    return html_parts.status_line(f"Loading the run{longer}.")


def _slider(reading: Form) -> gr.Slider:
    meta = reading.fields["num_neighbors"].metadata
    return gr.Slider(
        0, MOST_NEIGHBORS, 0, step=1, label=meta["label"], info=meta["help"], elem_id="knob-read-neighbors"
    )
