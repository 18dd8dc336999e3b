"""The Generate tab: a prompt, the text as it grows, its neighbors and what was read of them."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from retro_demo import figures, job_views, jobs, service, tracing, views
from retro_demo.config import GenerateConfig
from retro_demo.errors import UserError
from retro_demo.library import Library
from retro_demo.tracing import Trace
from retro_demo.ui.form import CHEAP, PRIVATE, QUIET, Form, once_known, shows_errors
from retro_demo.workspace import SAMPLE, Workspace
from retro_demo.writing import export_trace, watch_writing

MEAN = "mean"
PROMPT = "Introduction\n\nBackground: The islands became independent in 1975."

# A click or a key on a chunk marks it and the tokens that read its neighbors, and tells the server.
# Nothing is drawn anew for that, so that focus and place stay where they are.
CHOOSE_CHUNK = """
const mark = (chosen) => {
  const u = Number(chosen.dataset.chunk), c = Number(chosen.dataset.len);
  element.querySelectorAll('.chunk').forEach(b => {
    b.classList.toggle('chosen', b === chosen);
    b.setAttribute('aria-pressed', b === chosen);
  });
  element.querySelectorAll('[data-t]').forEach(t => {
    const i = Number(t.dataset.t) - ((u + 1) * c - 1);
    t.classList.toggle('reads', i >= 0 && i < c);
  });
};
const choose = (chosen) => { mark(chosen); trigger('select', {chunk: Number(chosen.dataset.chunk)}); };
const fresh = () => {
  const chosen = element.querySelector('.chunk.chosen');
  if (chosen && !element.querySelector('.reads[data-t]')) mark(chosen);
};
element.addEventListener('click', e => {
  const chosen = e.target.closest('.chunk');
  if (chosen) choose(chosen);
});
element.addEventListener('keydown', e => {
  const here = e.target.closest('.chunk');
  if (!here) return;
  if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); choose(here); }
  const next = {ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling'}[e.key];
  if (next && here[next]) { e.preventDefault(); here[next].focus(); choose(here[next]); }
});
new MutationObserver(fresh).observe(element, {childList: true, subtree: true});
fresh();
"""


def generate_tab(
    tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any, trail: gr.HTML
) -> None:
    """Build the tab and wire it; `arrival` is the event after which the visitor is known."""
    home = library.home
    form = Form(GenerateConfig)
    trace_id = gr.BrowserState("", storage_key="retro-demo-trace", secret="only an id")
    chunk = gr.State(0)
    intro = gr.HTML(elem_id="intro")
    with gr.Group():
        prompt = gr.Textbox(
            PROMPT, label="Prompt", lines=2, max_lines=8, elem_id="prompt", info="How the text begins."
        )
        with gr.Row(elem_classes="knobs"):
            run = gr.Dropdown(
                [], label="Run", info="Which model writes.", elem_id="run", min_width=200, scale=2
            )
            form.show(main=True)
        with gr.Accordion("More settings", open=False), gr.Row():
            form.show(main=False)
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Generate", variant="primary", elem_id="generate")
        stop = gr.Button("Stop", elem_id="stop-generating")
        speed = gr.HTML(elem_id="speed", min_height=28)
    with gr.Row(elem_id="linked"):
        with gr.Column(scale=3, min_width=320):
            gr.HTML("<h2>Text</h2>")
            text = gr.HTML(elem_id="text", js_on_load=CHOOSE_CHUNK)
        with gr.Column(scale=2, min_width=320):
            gr.HTML("<h2>Neighbors of the chosen chunk</h2>")
            cards = gr.HTML(elem_id="neighbors")
    gr.HTML(
        f"<h2>What was read: {views.term('cross-attention')}</h2>"
        "<p class='caption'>Rows are the tokens that read, columns the tokens of each neighbor: N, then a "
        "dotted line, then its continuation F. Stronger color, more attention; one scale for all panels.</p>"
    )
    with gr.Row(elem_classes="knobs"):
        layer = gr.Dropdown([MEAN], value=MEAN, label="Layer", elem_id="layer", min_width=120)
        head = gr.Dropdown([MEAN], value=MEAN, label="Head", elem_id="head", min_width=120)
    nothing = gr.HTML(elem_id="nothing")
    heatmap = gr.Plot(show_label=False, container=False, elem_id="heatmap")
    with gr.Accordion("The same numbers as a table", open=False):
        numbers = gr.HTML(elem_id="numbers")
    download = gr.DownloadButton("Download this text with its trace (JSON)", size="sm", elem_id="download")
    explained = [cards, nothing, heatmap, numbers]
    everything = [intro, text, speed, chunk, layer, head, download, *explained]

    def explain(trace: Trace, number: int, which: str, one: str) -> list[Any]:
        """Values of `explained` for a chunk, layer and head."""
        if reason := tracing.why_nothing(trace, number):
            return [views.neighbors_html(trace, number, None), views.note(reason), gr.Plot(visible=False), ""]
        weights = tracing.attention(
            trace,
            number,
            int(which) if which.isdigit() and int(which) in trace.layers else None,
            int(one) - 1 if one.isdigit() and 0 < int(one) <= trace.weights.shape[2] else None,
        )
        return [
            views.neighbors_html(trace, number, weights),
            "",
            gr.Plot(figures.heatmap(trace, number, weights), visible=True),
            views.attention_table(trace, number, weights),
        ]

    def show(code: str, name: str) -> list[Any]:
        """Values of `everything` for a kept trace, else for the example that ships."""
        workspace = Workspace.open(home, code)
        name, trace = service.shown_trace(workspace, name)
        if trace is None:
            empty = views.text_html([], 0, 1, going=False)
            hidden = gr.Plot(visible=False)
            start = [views.intro(None, example=False), empty, "", 0, gr.skip(), gr.skip(), None]
            return [*start, "", "", hidden, ""]
        first = tracing.best_chunk(trace)
        heads = [MEAN, *(str(i + 1) for i in range(trace.weights.shape[2] if trace.layers else 0))]
        return [
            views.intro(trace, example=name.startswith(SAMPLE)),
            views.trace_text(trace, first),
            views.trace_speed(trace),
            first,
            gr.Dropdown([MEAN, *map(str, trace.layers)], value=MEAN),
            gr.Dropdown(heads, value=MEAN),
            _file(trace),
            *explain(trace, first, MEAN, MEAN),
        ]

    def restore(code: str, name: str) -> list[Any]:
        """`everything`, then prompt and knobs as they made it: one click makes it again."""
        workspace = Workspace.open(home, code)
        trace = service.shown_trace(workspace, name)[1]
        if trace is None:
            return [*show(code, name), *[gr.skip()] * (1 + len(form.inputs))]
        return [
            *show(code, name),
            trace.about.get("prompt", PROMPT),
            *form.fill(trace.about.get("config", {})),
        ]

    @once_known
    def choose(code: str, name: str, which: str, one: str, event: gr.EventData) -> list[Any]:
        number = max(0, int(event.chunk))
        return [number, *look(code, name, number, which, one)]

    @once_known
    def look(code: str, name: str, number: int, which: str, one: str) -> list[Any]:
        trace = service.shown_trace(Workspace.open(home, code), name)[1]
        return [gr.skip()] * 4 if trace is None else explain(trace, int(number), which, one)

    @shows_errors
    def write(code: str, name: str, words: str, *values: Any) -> Iterator[list[Any]]:
        workspace = Workspace.open(home, code)
        if not name:
            raise UserError("There is no run to write with. Train one on the Train tab.")
        config = GenerateConfig(**form.read(values))
        library.forget_stop(code)
        folder = workspace.run(name)
        for status in service.wait_for_corpus(workspace, name):
            yield [gr.skip(), job_views.waiting(status, "The corpus is being prepared"), gr.skip()]
        yield [gr.skip(), '<p class="speed" role="status">Loading the run.</p>', gr.skip()]
        loaded = library.run(folder)
        kept = ""
        for writing in watch_writing(loaded, name, words, config, lambda: library.stop_asked(code)):
            if writing.trace is not None:
                kept = time.strftime("t%Y%m%d-%H%M%S-") + secrets.token_hex(4)
                service.keep_trace(workspace, kept, writing.trace)
            yield [views.writing_html(writing), views.writing_speed(writing), kept or gr.skip()]

    @once_known
    def refresh(code: str, now: str | None) -> list[Any]:
        workspace = Workspace.open(home, code)
        runs = [r for r in workspace.runs() if (workspace.run(r) / "model.safetensors").exists()]
        chosen = now if now in runs else next(iter(runs), None)
        choices = [(r.removeprefix(SAMPLE), r) for r in runs]
        return [gr.Dropdown(choices, value=chosen), *place(code, chosen)]

    @once_known
    def place(code: str, name: str | None) -> list[Any]:
        """The line at the top, for the chosen run."""
        if not name:
            return [views.note("No run yet: train one on the Train tab.")]
        workspace = Workspace.open(home, code)
        title, corpus = service.corpus_of_run(workspace, name)
        gap = job_views.gap_of(jobs.status(workspace.run(name)))
        return [views.trail(title, service.statistics(corpus), name, gap)]

    shown = [visitor, trace_id]
    writes = go.click(
        write,
        [visitor, run, prompt, *form.inputs],
        [text, speed, trace_id],
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="hidden",
        **PRIVATE,
    )
    written = writes.success(shows_errors(show), shown, everything, **CHEAP)
    writes.failure(lambda: "", None, speed, **QUIET)
    written.success(place, [visitor, run], [trail], **QUIET)
    stop.click(lambda code: library.ask_to_stop(code), visitor, None, **QUIET)
    text.select(choose, [*shown, layer, head], [chunk, *explained], **QUIET)
    gr.on([layer.input, head.input], look, [*shown, chunk, layer, head], explained, **QUIET)
    run.input(place, [visitor, run], [trail], **QUIET)
    for begun in (arrival.then, tab.select):
        begun(refresh, [visitor, run], [run, trail], **QUIET)
    arrival.then(shows_errors(restore), shown, [*everything, prompt, *form.inputs], **QUIET)


def _file(trace: Trace) -> str:
    """The trace as a file that Gradio may hand out: it must lie among its own uploads."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=folder)) / "trace.json"
    export_trace(trace, path)
    return str(path)
