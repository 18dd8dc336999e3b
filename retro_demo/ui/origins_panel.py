"""The panel "Where did this come from?": spans, citations and the causes of a phrase.

One call, `origins_panel`, builds and wires it. Nothing is computed before it is opened or asked: spans and
citations need no run, a phrase reads the text several times in the lane of models, and says so before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from retro_demo.corpus.opening import OpenedDocument
from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.explain.origins import cited_json, trace_spans
from retro_demo.explain.phrases import (
    AttributionPlan,
    PhraseAttribution,
    attribute_phrase,
    find_phrase,
    phrase_json,
    plan_attribution,
)
from retro_demo.explain.tracing import Trace
from retro_demo.paths import ASSETS
from retro_demo.render import html_parts, origin_views
from retro_demo.runs.checkpoint import read_run_config
from retro_demo.server import origins, service
from retro_demo.server import workspace as kept_traces
from retro_demo.server.limits import limits_of, weighed_tokens
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.origins import TraceTarget
from retro_demo.server.workspace import Workspace
from retro_demo.settings import OriginsConfig
from retro_demo.ui.form import HIDDEN, LOOKS, MODEL, PRIVATE, QUIET, Values, clicked, once_known, shows_errors

PASTED = (
    "These words are of a pasted text, which no run has read. Read it under “Explain a given text”, then "
    "open this again."
)


class OriginsView:
    """The components of the panel by name."""

    def __init__(self) -> None:
        with gr.Accordion("Where did this come from?", open=False, elem_id="origins") as self.panel:
            self.found = gr.HTML(
                elem_id="origins-found", js_on_load=(ASSETS / "origins.js").read_text("utf-8")
            )
            with gr.Row(elem_classes="actions"):
                self.phrase = gr.Textbox(
                    label="Words of the text",
                    info="Select them above, or copy them here.",
                    elem_id="origins-words",
                    max_lines=2,
                    min_width=240,
                )
                self.ask = gr.Button("Which sentences caused these words?", elem_id="origins-ask")
            self.cost = gr.HTML(elem_id="origins-cost")
            script = (ASSETS / "origins.js").read_text("utf-8")
            self.causes = gr.HTML(elem_id="origins-phrase", js_on_load=script)
            self.document = gr.HTML(elem_id="origins-document", js_on_load=script)
            with gr.Row(elem_classes="actions"):
                self.pasted = gr.Textbox(
                    label="Another text",
                    info="Paste any text: it is looked for in the corpus of the chosen run.",
                    lines=2,
                    max_lines=8,
                    elem_id="origins-text",
                    min_width=240,
                )
                self.look = gr.Button("Look for this text", elem_id="origins-look")
        self.target = gr.State(("", "", False))  # run and corpus of what is shown here; whether it was pasted
        self.place = gr.State((0, 0))  # the phrase in it
        self.opened = gr.State(False)


class OriginsHandlers:
    """What happens in the panel."""

    def __init__(self, cache: ModelCache, view: OriginsView) -> None:
        self.cache, self.home, self.view = cache, cache.home, view

    def trace_shown(self, code: str, name: str) -> Values:
        """Spans and citations of the text that is shown."""
        workspace = Workspace.open(self.home, code)
        trace = self._trace(workspace, name)
        target = _target(trace)
        searched = origins.searched(self.cache, workspace, target)
        found = trace_spans(searched, "".join(trace.pieces), OriginsConfig()) | cited_json(trace)
        found["corpus"] = self._title(workspace, target)
        return self._shown(found, (target.run, target.corpus, False))

    def look_for(self, code: str, run: str | None, corpus: str, text: str) -> Values:
        """Spans of a pasted text in the corpus of a run, or in the one that it reads."""
        target = TraceTarget(run or "", corpus or "")
        workspace = Workspace.open(self.home, code)
        searched = origins.searched(self.cache, workspace, target)
        found = trace_spans(searched, text or "", OriginsConfig())
        found["corpus"] = self._title(workspace, target)
        found["why_no_citations"] = (
            "For citations read it under “Explain a given text”, then open this again."
        )
        return self._shown(found, (target.run, target.corpus, True))

    def clear(self) -> Values:
        """Another text is shown: what was found belongs to it no longer."""
        return self._emptied() | {self.view.found: ""}

    def trace_if_open(self, code: str, name: str, opened: bool) -> Values:
        """As `trace_shown`, for somebody who looks at the panel."""
        return self.trace_shown(code, name) if opened else {self.view.found: gr.skip()}

    def click(self, code: str, name: str, target: tuple[str, str, bool], event: gr.EventData) -> Values:
        """Open a document, or take the selected words as the phrase."""
        first, end = clicked(event, "place", "first", "end")  # raises for what is no click of the panel
        kind = str(getattr(event, "open", ""))
        workspace = Workspace.open(self.home, code)
        if kind == "phrase":
            if target[2]:
                return {self.view.document: gr.skip()}  # words of a pasted text may be selected to be copied
            return self._chosen(workspace, self._trace(workspace, name), first, end)
        asked = TraceTarget(*target[:2])
        shown: OpenedDocument
        if kind == "chunk":
            shown = origins.open_chunk(self.cache, workspace, asked, first)
        elif kind == "tokens":
            shown = origins.open_tokens(self.cache, workspace, asked, first, end)
        else:
            shown = origins.open_at(
                self.cache, workspace, asked, str(getattr(event, "document", "")), first, end
            )
        return {self.view.document: origin_views.document_html(shown)}

    def choose_words(
        self, code: str, name: str, target: tuple[str, str, bool], place: tuple[int, int], phrase: str
    ) -> Values:
        """The typed words as the phrase, with what asking would cost; selected ones stay where they are."""
        if target[2]:
            raise UserError(PASTED)
        workspace = Workspace.open(self.home, code)
        trace = self._trace(workspace, name)
        text = "".join(trace.pieces)
        if text[place[0] : place[1]] != phrase or not phrase:
            place = find_phrase(text, phrase)
        return self._chosen(workspace, trace, *place)

    def attribute(self, code: str, name: str, place: tuple[int, int]) -> Iterator[Values]:
        """The sentences of the neighbors that the phrase owes itself to; says how far the reading is."""
        workspace = Workspace.open(self.home, code)
        trace = self._trace(workspace, name)
        if place[1] <= place[0]:
            raise UserError("No words are chosen. Select some in the text above, or copy them into the box.")
        plan = self._plan(workspace, trace, *place)
        yield {self.view.causes: _progress(Progress("attribute", 0, plan.readings))}
        run = origins.loaded(self.cache, workspace, _target(trace), trace.about["retriever"])
        if run is None:
            raise UserError("The run of this text reads no neighbors.")
        for step in attribute_phrase(run.model, trace, plan):
            if isinstance(step, PhraseAttribution):
                yield {self.view.causes: origin_views.phrase_html(phrase_json(trace, step))}
            else:
                yield {self.view.causes: _progress(step)}

    def _chosen(self, workspace: Workspace, trace: Trace, first: int, end: int) -> Values:
        phrase = "".join(trace.pieces)[first:end]
        plan = self._plan(workspace, trace, first, end)
        return {
            self.view.phrase: phrase,
            self.view.place: (first, end),
            self.view.cost: origin_views.plan_html(plan, phrase),
        }

    def _plan(self, workspace: Workspace, trace: Trace, first: int, end: int) -> AttributionPlan:
        config = read_run_config(workspace.run(trace.about["run"]))
        return plan_attribution(trace, first, end, weighed_tokens(limits_of(self.home), config))

    def _title(self, workspace: Workspace, target: TraceTarget) -> str:
        """What people call the corpus that is searched."""
        if target.corpus:
            return service.corpus_title(target.corpus)
        return service.corpus_of_run(workspace, target.run)[0]

    def _trace(self, workspace: Workspace, name: str) -> Trace:
        trace = kept_traces.shown_trace(workspace, name)[1]
        if trace is None:
            raise UserError("There is no text above yet. Write or explain one first.")
        return trace

    def _shown(self, found: dict[str, Any], target: tuple[str, str, bool]) -> Values:
        shown = {self.view.found: origin_views.origins_html(found), self.view.target: target}
        return self._emptied() | shown

    def _emptied(self) -> Values:
        view = self.view
        return {part: "" for part in (view.phrase, view.cost, view.causes, view.document)} | {
            view.place: (0, 0)
        }

    @property
    def outputs(self) -> list[Any]:
        """What showing a text fills."""
        view = self.view
        return [view.found, view.target, view.phrase, view.cost, view.causes, view.document, view.place]


def _target(trace: Trace) -> TraceTarget:
    """The run and the corpus that a text was read with."""
    return TraceTarget(str(trace.about["run"]), str(trace.about.get("corpus_id", "")))


def _progress(step: Progress) -> str:
    return html_parts.bar(step.done / max(1, step.total), f"Read {step.done} of {step.total} times")


def origins_panel(
    cache: ModelCache,
    visitor: gr.BrowserState,
    trace_id: gr.BrowserState,
    run: gr.Dropdown,
    corpus: gr.Dropdown,
) -> None:
    """Build the panel where it is called and wire it; it follows the text, run and corpus of the page."""
    view = OriginsView()
    on = OriginsHandlers(cache, view)
    known, model = [visitor, trace_id], PRIVATE | MODEL | HIDDEN
    view.panel.expand(once_known(on.trace_shown), known, on.outputs, **LOOKS)
    view.panel.expand(lambda: True, None, view.opened, **QUIET)
    view.panel.collapse(lambda: False, None, view.opened, **QUIET)
    cleared = trace_id.change(on.clear, None, on.outputs, **QUIET)
    cleared.then(once_known(on.trace_if_open), [*known, view.opened], on.outputs, **LOOKS)
    view.look.click(shows_errors(on.look_for), [visitor, run, corpus, view.pasted], on.outputs, **LOOKS)
    chosen = [view.phrase, view.place, view.cost]
    for shown in (view.found, view.causes):
        shown.select(once_known(on.click), [*known, view.target], [*chosen, view.document], **LOOKS)
    typed = [*known, view.target, view.place, view.phrase]
    view.phrase.submit(shows_errors(on.choose_words), typed, chosen, **QUIET)
    asked = view.ask.click(shows_errors(on.choose_words), typed, chosen, **QUIET)
    asked.success(shows_errors(on.attribute), [*known, view.place], view.causes, **model)
