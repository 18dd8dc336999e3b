"""The linked view: a finished text, its neighbors, which can be edited, what was read of them, numbers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from retro_demo.errors import UserError
from retro_demo.explain import edits, rewriting
from retro_demo.explain.edits import Rewritten, edit_json
from retro_demo.explain.rewriting import EditedRow, is_written
from retro_demo.explain.text import Writing, trace_values
from retro_demo.explain.tracing import Trace
from retro_demo.paths import ASSETS, SAMPLE
from retro_demo.render import first_look, html_parts, trace_views
from retro_demo.render.heads_view import ALL, heads_html
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server import workspace as kept_traces
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import (
    CHEAP,
    ON_PAGE,
    QUIET,
    Values,
    clicked,
    json_file,
    once_known,
    shows_errors,
)
from retro_demo.ui.visit import Lane

REREADING = html_parts.status_line("Reading the text with the edited neighbor.")
MOST_TYPED = 10_000  # characters of N or F; a neighbor takes the first few
HOW_IT_WORKS = (
    "<a class='to-form' href='#form'>Write your own</a>"  # on a phone, where the form stands below
    "<button type='button' class='open'>How it works</button><dialog aria-label='How it works'></dialog>"
)

# behind an edit its card can be sent again: where the text stays, or the edit failed, nothing is drawn anew
TAKE_BACK = """(...known) => {
  document.querySelectorAll('#linked .card.sent').forEach(card => {
    card.classList.remove('sent');
    card.removeAttribute('aria-busy');
    card.querySelector('.waits')?.remove();
    card.querySelectorAll('textarea').forEach(area => { area.readOnly = false; });
  });
  document.querySelectorAll('#linked .told.busy').forEach(told => told.remove());
  document.querySelectorAll('#linked [data-act="try"]').forEach(button => { button.disabled = false; });
  return known;
}"""

# while an edit waits, its card says what for in the words of the line above the text
IN_CARD = """html => {
  const says = document.querySelector('#linked .card.sent .waits');
  const words = new DOMParser().parseFromString(html ?? '', 'text/html').body.textContent;
  if (says && words) says.textContent = words;
}"""

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
    """The components of the linked view by name: a text and its neighbors at once, the rest in folds.

    To make one builds what stands beside the form; `fold` builds the rest, below both.
    """

    def __init__(self, trace_id: gr.BrowserState, token: gr.State, speed: gr.HTML, go: gr.Button) -> None:
        """trace_id: the id of the text that is shown; token: that of the text that the page asked for last;
        speed and go: the line and the button that say how far it is."""
        self.trace_id, self.token, self.speed, self.go = trace_id, token, speed, go
        with gr.Row(elem_classes="headline"):
            self.intro = gr.HTML(elem_id="intro")
            gr.HTML(HOW_IT_WORKS, elem_id="walk", js_on_load=(ASSETS / "walk.js").read_text("utf-8"))
        self.findings = gr.HTML(elem_id="findings")
        self.linked = gr.HTML(elem_id="linked", js_on_load=(ASSETS / "explain.js").read_text("utf-8"))
        self.selection = gr.State((0, 0, 0))  # chunk, neighbor, token
        self.wish = gr.State(None)  # the edit that the page asked for last
        self.other = gr.Dropdown(
            [],
            label="Or another chunk of the corpus",
            info="The nearest first.",
            elem_id="swap-with",
            visible=False,
        )
        self.changed = gr.HTML(elem_id="changed", js_on_load=SHOW_POSITION)
        self.download = gr.DownloadButton("Download", size="sm", elem_id="download")

    def fold(self) -> None:
        """What was read, and all numbers."""
        with gr.Accordion("Attention", open=False, elem_id="attention"):
            gr.HTML(
                f"<p class='caption'>Which {html_parts.term('token', 'tokens')} of each neighbor (columns: "
                "N, a dotted line, F) the chosen chunk read while it was written (rows). Stronger color, "
                f"more {html_parts.term('cross-attention', 'attention')}; one scale for all panels.</p>"
            )
            self.heads = gr.HTML(elem_id="heads", js_on_load=(ASSETS / "heads.js").read_text("utf-8"))
            self.heatmap = gr.HTML(elem_id="heatmap", js_on_load=(ASSETS / "heatmap.js").read_text("utf-8"))

    def fold_numbers(self) -> None:
        """Each look-up and each token in numbers, and all of it as a file."""
        with gr.Accordion("Numbers", open=False, elem_id="all-numbers"):
            gr.HTML("<h3>Retrieval, chunk by chunk</h3>")
            self.timeline = gr.HTML(elem_id="lookups")
            gr.HTML("<h3>Token by token</h3>")
            self.numbers = gr.HTML(elem_id="numbers")

    def values(self, trace: Trace | None, name: str, before: Sequence[int] | None = None) -> Values:
        """The view of a trace (None: there is none yet) and its id; `before`: the tokens it had before an
        edit."""
        return {
            self.intro: html_parts.intro(trace, example=name.startswith(SAMPLE)),
            self.findings: first_look.findings(trace, known_off(trace)),
            self.linked: trace_views.linked(trace, before=before),
            self.heads: heads_html(trace),
            self.heatmap: trace_views.heatmap(trace),
            self.other: gr.Dropdown(visible=False),
            self.changed: "",
            self.timeline: trace_views.timeline_html(trace),
            self.numbers: trace_views.token_table(trace),
            self.download: _file(trace) if trace else None,
        }

    @property
    def outputs(self) -> list[Any]:
        """What `values` fills."""
        chosen = [self.heads, self.heatmap, self.other, self.changed]
        first = [self.intro, self.findings, self.linked]
        return [*first, *chosen, self.timeline, self.numbers, self.download]


def known_off(trace: Trace | None) -> list[int] | None:
    """The tokens that the run wrote without neighbors; empty where it is still to write them, None where the
    text was given and there are none."""
    return trace.about.get("off", []) if trace is not None and is_written(trace) else None


class ExplainHandlers:
    """What happens inside the linked view."""

    def __init__(self, cache: ModelCache, view: ExplainView, lane: Lane) -> None:
        """lane: that of the texts of this page, so that Stop ends what an edit writes, too."""
        self.cache, self.home, self.view, self.lane = cache, cache.home, view, lane
        self.hurries = 0  # how often somebody asked for a text

    def show_again(self, code: str, name: str) -> str:
        """The text as it stood before an edit that failed."""
        return trace_views.linked(kept_traces.shown_trace(Workspace.open(self.home, code), name)[1])

    def show_heatmap(self, code: str, name: str, event: gr.EventData) -> str:
        """The heatmap of a layer and a head, or of their means."""
        trace = self._trace(code, name)
        layer, head = clicked(event, "head of this text", "layer", "head")
        count = trace.weights.shape[2] if trace.layers else 0
        if layer not in (ALL, *trace.layers) or not ALL <= head <= count:
            raise UserError(
                f"This text was read by no head {head} of layer {layer}. Choose one of the picture."
            )
        return trace_views.heatmap(trace, layer or None, head - 1 if head else None)

    def ask_edit(self, code: str, name: str, event: gr.EventData) -> Iterator[Values]:
        """A neighbor in other words, without any, or another chunk in its place: wait until all is made that
        the run reads, outside of the lane."""
        trace = self._trace(code, name)
        chunk, neighbor, token = clicked(event, "neighbor of the text", "chunk", "neighbor", "token")
        edits.check_place(trace, chunk, neighbor)
        act = getattr(event, "act", "write")
        texts = _given_texts(event) if act == "write" else ("", "")
        yield from self._asked(code, trace, Wish(name, (chunk, neighbor, token), act, texts))

    def ask_other(
        self, code: str, name: str, at: tuple[int, int, int], chunk: int | None
    ) -> Iterator[Values]:
        """As `ask_edit`: another chunk of the corpus in place of the neighbor that was edited."""
        trace = self._trace(code, name)
        edits.check_place(trace, at[0], at[1])
        yield from self._asked(code, trace, Wish(name, at, "other", other=chunk))

    def _asked(self, code: str, trace: Trace, wish: Wish) -> Iterator[Values]:
        view, token = self.view, self.lane.ask(code)
        yield {view.wish: wish, view.token: token, view.selection: wish.at}
        if wish.act == "undo":  # what is kept is shown
            return
        run, corpus = trace.about["run"], trace.about.get("corpus_id", "")
        for said in self.lane.until_ready(code, token, run, corpus):
            yield {view.speed: said}

    def edit(self, code: str, wish: Wish | None, token: str) -> Iterator[Values]:
        """Write the text anew with what was asked for."""
        if wish is None:
            return
        trace = self._trace(code, wish.name)
        with self.lane.text(code, token) as stopped:
            if wish.act == "undo":
                yield self._back(code, trace)
                return
            editing = Editing(code, wish.name, self._run_of(code, trace), trace, *wish.at, stopped)
            if wish.act in ("swap", "other"):
                yield from self._swapped(editing, wish)
                return
            row, cut = edits.worded_row(editing.run, trace, *wish.at[:2], *wish.texts)
            yield from self._edited(editing, row, cut)

    def hurry(self) -> None:
        """A text is asked for: what is written for a meter only gives way to it."""
        self.hurries += 1

    def write_off(self, code: str, name: str) -> Iterator[Values]:
        """What the run writes without neighbors, for the meter beside that of the text that is shown.

        Nobody asked for it: where the run cannot write just now, or a text of anybody is asked for meanwhile,
        there is no such meter, and no complaint.
        """
        workspace = Workspace.open(self.home, code)
        name, trace = kept_traces.shown_trace(workspace, name)
        if trace is None or known_off(trace) != [] or not trace.neighbors or name.startswith(SAMPLE):
            yield {self.view.findings: gr.skip()}  # the page takes nothing at all for an empty value
            return
        asked = self.hurries
        try:
            off = rewriting.write_off(self._run_of(code, trace), trace, lambda: self.hurries > asked)
        except UserError:
            off = []
        if not off:  # it cannot, or gave way to somebody's text: nobody waits for a meter that will not come
            yield {self.view.findings: first_look.findings(trace, None)}
            return
        trace.about["off"] = off
        kept_traces.keep_trace(workspace, name, trace)
        yield {self.view.findings: first_look.findings(trace, off)}

    def _swapped(self, editing: Editing, wish: Wish) -> Iterator[Values]:
        """With the nearest other chunk in place of the neighbor, or the one that was chosen."""
        choices = edits.candidates(editing.run, editing.trace, editing.chunk)
        if not choices:
            raise UserError("There is no other chunk of the corpus to read in its place.")
        chosen = choices[0]["chunk"] if wish.act == "swap" else wish.other
        other = next((one for one in choices if one["chunk"] == chosen), None)
        if other is None:
            raise UserError(
                f"Chunk {chosen} of the corpus is none of those that can be swapped in. Choose another."
            )
        options = [
            (f"{one['title'] or one['document']} · {one['score']:.2f}", one["chunk"]) for one in choices
        ]
        offered = gr.Dropdown(options, value=chosen, visible=True)
        place = editing.chunk, editing.neighbor
        row = edits.swapped_row(editing.run, editing.trace, *place, other["chunk"])
        for shown in self._edited(editing, row, [0, 0], other):
            yield shown | {self.view.other: offered}

    def _edited(
        self, editing: Editing, row: np.ndarray, cut: list[int], other: dict[str, Any] | None = None
    ) -> Iterator[Values]:
        """A written text as it is written anew, then what the edit changed and the download with it.

        A given text stays as it is: only what changed is shown. Stop ends its reading, and what was written
        until then is read to its end.
        """
        view, run, trace, made = self.view, editing.run, editing.trace, None
        stop = editing.stopped
        place = editing.chunk, editing.neighbor
        if rewriting.left_to_write(trace, editing.chunk):
            for writing in rewriting.write_anew(run, trace, EditedRow(*place, row, other), editing.stopped):
                made = writing.trace
                if made is None:
                    yield growing(view.linked, view.speed, view.go, writing)
            stop = edits.never
        else:
            yield {view.speed: REREADING}
        reread = edits.reread(run, trace, *place, row, cut, stop)
        shown: Values = {
            view.speed: "",
            view.changed: trace_views.edit_html(trace, reread, editing.token),
            view.download: _file(made or trace, reread),
        }
        if made is not None:
            workspace = Workspace.open(self.home, editing.code)
            workspace.make()
            made.about["edited"]["from"] = editing.name
            kept = keep(workspace, made, trace.about.get("corpus_id", ""))
            shown = view.values(made, kept, trace.ids) | shown | {view.trace_id: kept}
        yield shown

    def _back(self, code: str, trace: Trace) -> Values:
        """The text that an edited one was made from."""
        before = trace.about.get("edited", {}).get("from", "")
        name, shown = kept_traces.shown_trace(Workspace.open(self.home, code), before)
        return {self.view.speed: ""} | self.view.values(shown, name, trace.ids) | {self.view.trace_id: before}

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


@dataclass(frozen=True)
class Wish:
    """An edit that a visitor asked for: the id of the text, where (chunk, neighbor, token that is looked at,
    from 0), what (write, drop, swap, other, undo), the words of N and F, or a chunk of the corpus."""

    name: str
    at: tuple[int, int, int]
    act: str
    texts: tuple[str, str] = ("", "")
    other: int | None = None


@dataclass(frozen=True)
class Editing:
    """Whose text is edited (its id and trace), the run that read it, where (as in `Wish`), and what says
    whether its visitor wants it to end."""

    code: str
    name: str
    run: LoadedRun
    trace: Trace
    chunk: int
    neighbor: int
    token: int
    stopped: Callable[[], bool]


def growing(text: gr.HTML, speed: gr.HTML, go: gr.Button, writing: Writing) -> Values:
    """A text while it is written, and how far it is."""
    return {
        text: html_parts.growing_text(writing),
        speed: html_parts.writing_speed(writing),
        go: f"Writing {writing.new_tokens}/{writing.most}",
    }


def _given_texts(event: gr.EventData) -> tuple[str, str]:
    """The words of N and F that came from a card of the page, or from a stranger's program."""
    texts = [getattr(event, part, "") for part in "nf"]
    if not all(isinstance(one, str) and len(one) <= MOST_TYPED for one in texts):
        raise UserError(f"A neighbor is two texts of at most {MOST_TYPED:,} characters each.")
    return texts[0], texts[1]


def keep(workspace: Workspace, trace: Trace, other: str) -> str:
    """Keep a text of a visitor, read from that corpus ("": that of the run's training); returns its id."""
    trace.about["corpus_id"] = other
    kept = time.strftime("t%Y%m%d-%H%M%S-") + secrets.token_hex(4)
    kept_traces.keep_trace(workspace, kept, trace)
    return kept


def wire_explaining(on: ExplainHandlers, view: ExplainView, known: list[Any]) -> tuple[list[Any], list[Any]]:
    """`known`: the visitor, and the id of the text that is shown. Returns the events that wait until an edit
    can be written, and those that write it."""
    visitor = known[0]
    asked = [view.wish, view.token, view.selection, view.speed]
    anew = [*view.outputs, view.trace_id, view.speed, view.go]
    waits = [
        view.linked.select(once_known(on.ask_edit), known, asked, **CHEAP),
        view.other.input(shows_errors(on.ask_other), [*known, view.selection, view.other], asked, **CHEAP),
    ]
    # what is chosen while an edit is written comes behind it
    in_turn = ON_PAGE | {"trigger_mode": "multiple"}
    written = [
        begun.success(once_known(on.edit), [visitor, view.wish, view.token], anew, **in_turn)
        for begun in waits
    ]
    for begun in (*waits, *written):
        begun.failure(once_known(on.show_again), known, view.linked, js=TAKE_BACK, **QUIET)
    for begun in written:
        begun.success(None, None, None, js=TAKE_BACK, **QUIET)  # a given text is not drawn anew
        compare_with_off(begun, on, view, known)
    view.speed.change(None, view.speed, None, js=IN_CARD, **QUIET)
    view.heads.select(once_known(on.show_heatmap), known, view.heatmap, **QUIET)
    return waits, written


def compare_with_off(begun: Any, on: ExplainHandlers, view: ExplainView, known: list[Any]) -> None:
    """After a text came into view let the run write it without neighbors, for the meter."""
    begun.success(once_known(on.write_off), known, view.findings, **ON_PAGE)


def _file(trace: Trace, made: Rewritten | None = None) -> str:
    """The trace as a file that Gradio may hand out."""
    values = trace_values(trace, edit_json(made) if made is not None else None)
    return json_file("trace.json", values, indent=None)
