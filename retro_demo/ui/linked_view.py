"""The linked view: a finished text, its neighbors, what was read of them, an editor for them, the numbers."""

from __future__ import annotations

from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain import edits
from retro_demo.explain.edits import Rewritten, edit_json
from retro_demo.explain.text import trace_values
from retro_demo.explain.tracing import Trace
from retro_demo.paths import ASSETS, SAMPLE
from retro_demo.render import html_parts, trace_views
from retro_demo.render.wording import explain
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server import workspace as kept_traces
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import (
    MEAN,
    MODEL,
    PRIVATE,
    QUIET,
    Values,
    chosen_index,
    clicked,
    json_file,
    once_known,
    shows_errors,
)

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


def wire_explaining(on: ExplainHandlers, view: ExplainView, known: list[Any]) -> None:
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
