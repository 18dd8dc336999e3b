"""The linked view: a finished text, its neighbors, what was read, an editor for neighbors, the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain import rewriting
from retro_demo.explain.rewriting import Rewritten, edit_json
from retro_demo.explain.tracing import Trace
from retro_demo.explain.writing import trace_values
from retro_demo.glossary import explain
from retro_demo.paths import ASSETS, SAMPLE
from retro_demo.render import explain_views, reading_views, text_views, views
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import kept_traces, service
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import MODEL, PRIVATE, QUIET, clicked, json_file, once_known, shows_errors

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
            text_views.intro(trace, example=name.startswith(SAMPLE)),
            explain_views.linked(trace),
            gr.Dropdown([MEAN, *map(str, layers)], value=MEAN),
            gr.Dropdown([MEAN, *(str(i + 1) for i in range(heads))], value=MEAN),
            explain_views.heat(trace),
            gr.Accordion(open=False),
            "",
            reading_views.timeline_html(trace),
            explain_views.token_table(trace),
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
        f"<h2>What was read: {views.term('cross-attention')}</h2>"
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
        return explain_views.heat(trace, number, nth)

    @once_known
    def act(code: str, name: str, event: gr.EventData) -> list[Any]:
        """Open the editor on a neighbor; drop and swap are done at once."""
        trace = shown(code, name)
        chunk, neighbor, token = clicked(event, "neighbor of the text", "chunk", "neighbor", "token")
        kind = getattr(event, "act", "edit")
        rewriting.check_place(trace, chunk, neighbor)
        run = run_of(code, trace)
        choices = rewriting.candidates(run, trace, chunk)
        texts, made = rewriting.neighbor_texts(run, trace.neighbor_tokens[chunk, neighbor]), None
        if kind == "drop":
            made, texts = rewriting.rewrite(run, trace, chunk, neighbor, "", ""), ("", "")
        elif kind == "swap":
            if not choices:
                raise UserError("There is no other chunk of the corpus to read in its place.")
            made = rewriting.swap(run, trace, chunk, neighbor, choices[0]["chunk"])
            texts = rewriting.neighbor_texts(run, made.edit.after)
        title = trace.neighbors[chunk][neighbor]["title"]
        words = f"Neighbor {neighbor + 1} of chunk {chunk + 1}: {views.isolated(title)}"
        options = [
            (f"{one['title'] or one['document']} · {one['score']:.2f}", one["chunk"]) for one in choices
        ]
        taken = options[0][1] if kind == "swap" else None
        return [
            gr.Accordion(open=True),
            (chunk, neighbor, token),
            views.note(words),
            *texts,
            gr.Dropdown(options, value=taken),
            *_edited(trace, made, token),
        ]

    @shows_errors
    def read_instead(code: str, name: str, at: tuple[int, int, int], n: str, f: str) -> list[Any]:
        trace = shown(code, name)
        made = rewriting.rewrite(run_of(code, trace), trace, at[0], at[1], n or "", f or "")
        return _edited(trace, made, at[2])

    @shows_errors
    def read_other(code: str, name: str, at: tuple[int, int, int], chunk: int | None) -> list[Any]:
        if chunk is None:
            return [gr.skip()] * 4
        trace = shown(code, name)
        run = run_of(code, trace)
        made = rewriting.swap(run, trace, at[0], at[1], int(chunk))
        return [*rewriting.neighbor_texts(run, made.edit.after), *_edited(trace, made, at[2])]

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
    return ["" if made is None else reading_views.edit_html(trace, made, token), _file(trace, made)]


def _file(trace: Trace, made: Rewritten | None = None) -> str:
    """The trace as a file that Gradio may hand out."""
    values = trace_values(trace, edit_json(made) if made is not None else None)
    return json_file("trace.json", values, indent=None)
