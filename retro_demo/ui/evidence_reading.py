"""On the Evidence tab: what one target of a MARGE reads, an editor for its evidence, and writing a passage.

A passage is written from documents that the visitor chooses or that the encoder finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.events import Retrieved, Token
from retro_demo.explain.marge_history import reading_json
from retro_demo.explain.marge_reading import (
    Choices,
    EvidenceReading,
    MargeCorpus,
    documents_of,
    edit_evidence,
    example_evidence,
    targets_of,
)
from retro_demo.generation.sampling import Written
from retro_demo.models.memory import MOST_EVIDENCE
from retro_demo.render import html_parts, marge_views
from retro_demo.render.wording import explain
from retro_demo.server import service
from retro_demo.server.limits import READS, checked_writing
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, marge_runs
from retro_demo.settings import GenerateConfig
from retro_demo.ui import zero_gpu
from retro_demo.ui.form import (
    CHEAP,
    MEAN,
    ON_PAGE,
    PRIVATE,
    QUIET,
    Form,
    Values,
    chosen_index,
    clicked,
    first_of,
    into_view,
    json_file,
    once_known,
    relisted_runs,
    shows_errors,
)
from retro_demo.ui.visit import Lane

TARGETS = "First passages of documents."
AS_IT_IS = "as it stands"
TO_TARGET = "() => document.querySelector('#evidence-target')?.scrollIntoView({block: 'start'})"
SEARCHING = html_parts.status_line("Embedding all passages, finding and reading the evidence.")
ROWS = 48  # tokens of the target in one heatmap


class TargetView:
    """The components of one target and what it reads, by name; to make one builds them."""

    def __init__(self) -> None:
        with gr.Row(elem_classes="knobs"):
            self.target = gr.Dropdown(
                [], label="Target", info=TARGETS, elem_id="evidence-target", min_width=260
            )
            self.count = gr.Slider(
                1,
                MOST_EVIDENCE,
                8,
                step=1,
                label="Pieces of evidence",
                info="How many it reads.",
                elem_id="evidence-count",
            )
            self.tongue = gr.Dropdown(
                [],
                label="Read it in",
                info="The same texts in a language of yours.",
                elem_id="evidence-tongue",
                min_width=160,
            )
            self.read = gr.Button("Find and read its evidence", variant="primary", elem_id="read-evidence")
        self.said = gr.HTML(elem_id="evidence-read", min_height=60)
        with gr.Column(visible=False) as self.inside:
            self.listing = gr.HTML(elem_id="evidence-pieces")
            self._settings()
            self._attention()
            self._editor()

    def _settings(self) -> None:
        named: dict[str, Any] = {"value": MEAN, "min_width": 120}
        with gr.Row(elem_classes="knobs"):
            self.layer = gr.Dropdown(
                [MEAN], label="Layer", info=explain("layer"), elem_id="evidence-layer", **named
            )
            self.head = gr.Dropdown(
                [MEAN], label="Head", info=explain("head"), elem_id="evidence-head", **named
            )
            self.piece = gr.Dropdown(
                [],
                label="Piece of evidence",
                info="The one that is drawn.",
                elem_id="evidence-piece",
                min_width=260,
            )
            self.part = gr.Slider(
                1,
                2,
                1,
                step=1,
                label="Part of the target",
                info="A long one is drawn in parts.",
                visible=False,
                elem_id="evidence-part",
            )

    def _attention(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                gr.HTML("<h3>Does attention follow relevance?</h3>")
                self.agreement = gr.Plot(show_label=False, container=False, elem_id="evidence-agreement")
                self.agreed = gr.HTML()
                with gr.Accordion("Relevance and attention as a table", open=False):
                    self.agreed_table = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                gr.HTML(
                    "<h3>What was read of this piece</h3><p class='caption'>Rows are the tokens of the "
                    "target as they were written, columns the tokens of the piece; languages and padding are "
                    "left out.</p>"
                )
                self.heatmap = gr.Plot(show_label=False, container=False, elem_id="evidence-heat")

    def _editor(self) -> None:
        gr.HTML("<h3>Change or remove this piece</h3>")
        self.text = gr.Textbox(
            label="Its text",
            lines=3,
            max_lines=8,
            elem_id="evidence-text",
            info="It is cut into tokens anew and read in the same language; empty: the piece is removed.",
        )
        with gr.Row(elem_classes="actions"):
            self.change = gr.Button("Read this instead", variant="primary", elem_id="edit-evidence")
            self.remove = gr.Button("Read without it", elem_id="remove-evidence")
        self.changed = gr.HTML(elem_id="evidence-changed")
        self.download = gr.DownloadButton(
            "Download this reading with where it comes from (JSON)", size="sm", elem_id="reading-download"
        )

    @property
    def outputs(self) -> list[Any]:
        """What `fresh` fills."""
        return [self.target, self.count, self.tongue, self.layer, self.head, self.said, self.inside]

    @property
    def pictures(self) -> list[Any]:
        return [self.agreement, self.agreed, self.agreed_table, self.heatmap]

    def fresh(self, targets: Choices, source: MargeCorpus) -> Values:
        """The targets of a run; nothing is read before it is asked for."""
        count = min(MOST_EVIDENCE, max(1, round(source.config.evidence.evidence_per_target)))
        network = source.config.network
        others = f" {targets.cut} Choose languages above to see the others." if targets.cut else ""
        english = [which for _, which in targets.offered if source.about(which)["language"] == "en"]
        first = next(iter(english + [which for _, which in targets.offered]), None)
        tongues = [(name, name) for name in source.passages.languages if name]
        read_in = liked_language(READS.get(), source.passages.languages)
        return {
            self.target: gr.Dropdown(targets.offered, value=first, info=TARGETS + others),
            self.count: gr.Slider(value=count),
            self.tongue: gr.Dropdown([(AS_IT_IS, ""), *tongues], value=read_in),
            self.layer: gr.Dropdown([MEAN, *map(str, range(1, network.dec_depth + 1))], value=MEAN),
            self.head: gr.Dropdown([MEAN, *map(str, range(1, network.num_heads + 1))], value=MEAN),
            self.said: marge_views.target_html(None, source),
            self.inside: gr.Column(visible=False),
        }


@dataclass(frozen=True)
class AttentionLook:
    """Which attention is drawn: of a layer and a head (MEAN: of all), to a piece (from 0), in a part of the
    target (from 1)."""

    layer: str | None
    head: str | None
    piece: int | None = 0
    part: int = 1


class TargetHandlers:
    """What happens in the view of one target: a run, a target and how many pieces name one reading.

    Gradio passes values by position: `look` are those of the fields of an AttentionLook.
    """

    def __init__(self, cache: ModelCache, view: TargetView) -> None:
        self.cache, self.home, self.view = cache, cache.home, view

    def choose_target(
        self, code: str, name: str | None, how: str, some: list[str], event: gr.EventData
    ) -> gr.Dropdown:
        """target: the one whose row was chosen, also where there are too many to list."""
        if not name:
            raise UserError("There is no run yet. Choose one first.")
        (which,) = clicked(event, "passage", "passage")
        source = self.cache.marge_corpus(Workspace.open(self.home, code).run(name))
        offered = targets_of(source, held_out=how == "held-out", languages=some or []).offered
        if not 0 <= which < len(source.passages.tokens):
            raise UserError(f"There is no passage {which} in this corpus. Choose a target from the list.")
        if which not in [value for _, value in offered]:
            offered = [(source.about(which)["name"], which), *offered]
        return gr.Dropdown(offered, value=which)

    def show_in(self, code: str, name: str | None, which: int | None, many: int, tongue: str | None) -> str:
        """The target and its evidence in another language."""
        source, reading = self._reading(code, name, which, many)
        return marge_views.target_html(reading, source, tongue or "")

    def read_evidence(
        self, code: str, name: str | None, which: int | None, many: int, tongue: str | None, *look: Any
    ) -> Iterator[Values]:
        """Find and read the evidence of a target, and show the first piece of it."""
        view = self.view
        yield {view.said: SEARCHING}
        source, reading = self._reading(code, name, which, many)
        folder = Workspace.open(self.home, code).run(str(name))
        pieces = [(f"{n} {source.about(int(i))['name']}", n - 1) for n, i in enumerate(reading.ids, 1)]
        parts = _parts(reading)
        yield {
            view.said: marge_views.target_html(reading, source, tongue or ""),
            view.inside: gr.Column(visible=True),
            view.listing: marge_views.evidence_table(reading, source),
            view.piece: gr.Dropdown(pieces, value=0),
            view.part: gr.Slider(maximum=max(2, parts), value=1, visible=parts > 1),
            view.text: source.text(int(reading.ids[0])),
            view.changed: "",
            view.download: json_file("evidence-reading.json", reading_json(folder, source, reading)),
            **self._attention(source, reading, AttentionLook(*look)),
        }

    def show_attention(self, code: str, name: str | None, which: int | None, many: int, *look: Any) -> Values:
        return self._attention(*self._reading(code, name, which, many), AttentionLook(*look))

    def show_piece(self, code: str, name: str | None, which: int | None, many: int, *look: Any) -> Values:
        """As `show_attention`, with the text of the piece to change."""
        (source, reading), asked = self._reading(code, name, which, many), AttentionLook(*look)
        text = source.text(int(reading.ids[_piece(asked, reading)]))
        return self._attention(source, reading, asked) | {self.view.text: text, self.view.changed: ""}

    def edit_piece(
        self, code: str, name: str | None, which: int | None, many: int, at: int, words: str
    ) -> str:
        """What changes where a piece has other words; without any it is removed."""
        _, reading = self._reading(code, name, which, many)
        run = self.cache.marge(Workspace.open(self.home, code).run(str(name)))
        return marge_views.edit_html(edit_evidence(run, reading, int(at or 0), words or ""))

    def remove_piece(self, code: str, name: str | None, which: int | None, many: int, at: int) -> str:
        return self.edit_piece(code, name, which, many, at, "")

    def _reading(
        self, code: str, name: str | None, which: int | None, many: int
    ) -> tuple[MargeCorpus, EvidenceReading]:
        if not name or which is None:
            raise UserError("There is no target yet. Choose a run and a target first.")
        folder = Workspace.open(self.home, code).run(name)
        return self.cache.marge_corpus(folder), self.cache.evidence(folder, int(which), int(many))

    def _attention(self, source: MargeCorpus, reading: EvidenceReading, look: AttentionLook) -> Values:
        """The pictures of attention."""
        layers, heads = reading.weights.shape[:2]
        nth, at = chosen_index(look.layer, layers), _piece(look, reading)
        weights = reading.attention_scores(at, nth, chosen_index(look.head, heads))
        start = ROWS * (min(max(int(look.part), 1), _parts(reading)) - 1)
        rows = source.pieces(reading.tokens[1:])[start : start + ROWS]
        columns = source.pieces(reading.evidence[at][reading.evidence[at] != 0][1:])
        return {
            self.view.agreement: marge_views.agreement_figure(reading, source, nth),
            self.view.agreed: marge_views.agreement_html(reading, nth),
            self.view.agreed_table: marge_views.agreement_table(reading),
            self.view.heatmap: marge_views.heatmap_figure(
                weights[start : start + ROWS], rows, columns, start + 1
            ),
        }


def wire_target(
    cache: ModelCache,
    view: TargetView,
    chosen: Sequence[Any],
    documents: Sequence[Any],
    pickers: Sequence[Any],
) -> None:
    """Wire the view of one target.

    `chosen` are the visitor and the run. `documents` say which targets are offered (kind, languages); a
    `select` of a picker names one of them (assets/matrix.js).
    """
    on = TargetHandlers(cache, view)
    asked = [*chosen, view.target, view.count]
    edited = [*view.pictures, view.text, view.changed]
    shown = [view.said, view.inside, view.listing, view.piece, view.part, *edited, view.download]
    look_up, draw = once_known(on.read_evidence), once_known(on.show_attention)
    picks = [
        place.select(shows_errors(on.choose_target), [*chosen, *documents], view.target, **QUIET)
        for place in pickers
    ]
    scrolled = [picked.success(None, js=TO_TARGET).then for picked in picks]
    for begun in (view.read.click, view.target.input, view.count.release, *scrolled):
        reading = begun(look_up, [*asked, view.tongue, view.layer, view.head], shown, **ON_PAGE)
        reading.failure(lambda: "", None, view.said, **PRIVATE)
    view.tongue.input(once_known(on.show_in), [*asked, view.tongue], view.said, **ON_PAGE)
    looks = [*asked, view.layer, view.head, view.piece, view.part]
    gr.on([view.layer.input, view.head.input, view.part.input], draw, looks, view.pictures, **ON_PAGE)
    view.piece.input(once_known(on.show_piece), looks, edited, **ON_PAGE)
    view.change.click(shows_errors(on.edit_piece), [*asked, view.piece, view.text], view.changed, **ON_PAGE)
    view.remove.click(shows_errors(on.remove_piece), [*asked, view.piece], view.changed, **ON_PAGE)


def _piece(look: AttentionLook, reading: EvidenceReading) -> int:
    """The piece of evidence that is chosen, or the nearest one."""
    return min(max(int(look.piece or 0), 0), len(reading.ids) - 1)


def _parts(reading: EvidenceReading) -> int:
    """In how many heatmaps the tokens of a target are shown."""
    return -(-(len(reading.tokens) - 1) // ROWS)


def liked_language(accepted: str, known: Sequence[str]) -> str:
    """The first language of an Accept-Language header that is known, else English, else "" (none of them).

    "pt-BR" is also found as "pt".
    """
    wishes = []
    for place, part in enumerate(accepted.split(",")):
        name, _, weight = part.strip().partition(";q=")
        share = float(weight) if re.fullmatch(r"[01](\.[0-9]{1,3})?", weight) else 1.0
        wishes.append((-share, place, name.lower()))
    by_lower = {one.lower(): one for one in known if one}
    for _, _, name in [*sorted(wishes), (0, 0, "en")]:
        for one in (name, name.partition("-")[0]):
            if one in by_lower:
                return by_lower[one]
    return ""


SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
ALL = "every language"
KINDS = [("relevant", "on"), ("drawn at random", "shuffled"), ("none", "off")]
EXAMPLES = "Try a beginning"
BEGINNINGS = [["Everyone has the right to"], ["No one shall be"], ["The family is"]]
TO_WRITTEN = into_view("#marge-written", "center")
CAN_WRITE = (
    "So small a model writes set phrases of its training texts, and repeats itself. It does not translate: "
    "at best it takes names and numbers from its evidence."
)
LOADING = html_parts.status_line("Loading the run and embedding its passages.")
EVIDENCE = "All passages of these documents, held out or not. Empty: found by the run itself."


class WritingView:
    """The components of the form that writes from evidence, by name; to make one builds them."""

    def __init__(self) -> None:
        self.form = Form(GenerateConfig, values={"max_new_tokens": 40}, only=SETTINGS, prefix="marge-write-")
        gr.HTML(
            f"<p class='caption'>A {html_parts.term('marge', 'MARGE')} writes a passage from "
            f"{html_parts.term('evidence')}: from the documents that you choose, else from passages that its "
            "encoder finds for the beginning.</p>"
        )
        self._evidence()
        self.prompt = gr.Textbox(
            label="Beginning",
            lines=2,
            max_lines=6,
            elem_id="marge-write-prompt",
            info="How the passage begins; it may be empty.",
        )
        self.examples = gr.Dataset(
            components=["textbox"],
            samples=BEGINNINGS,
            label=EXAMPLES,
            elem_id="marge-examples",
            type="values",
        )
        self._settings()
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button("Write from evidence", variant="primary", elem_id="marge-write")
            self.stop = gr.Button("Stop", elem_id="marge-write-stop", interactive=False)
        self.token = gr.State("")  # of the text that this page asked for last

    def show_result(self) -> None:
        """What is written, and from what; it stands beside the form."""
        self.said = gr.HTML(elem_id="marge-written")
        gr.HTML(f"<p class='caption'>{CAN_WRITE}</p>")
        self.found = gr.HTML(elem_id="marge-write-evidence")

    def _evidence(self) -> None:
        with gr.Row(elem_classes="knobs"):
            self.run = gr.Dropdown(
                [], label="MARGE", info="Which run writes.", elem_id="marge-write-run", min_width=220
            )
            self.language = gr.Dropdown(
                [], label="Language to write", info="Of those in training.", elem_id="marge-write-language"
            )
        with gr.Row(elem_classes="knobs"):
            self.among = gr.Dropdown(
                [ALL],
                value=ALL,
                label="Look among",
                info="Which documents the list offers.",
                elem_id="marge-write-among",
                scale=1,
                min_width=180,
            )
            self.documents = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                label="Evidence",
                info=EVIDENCE,
                elem_id="marge-write-documents",
                scale=3,
                min_width=260,
            )

    def _settings(self) -> None:
        with gr.Row(elem_classes="knobs"):
            self.kind = gr.Radio(
                KINDS,
                value="on",
                label="Kind of evidence",
                info="Drawn at random: as many passages, as a control.",
                elem_id="marge-write-kind",
            )
            self.count = gr.Slider(
                0,
                MOST_EVIDENCE,
                0,
                step=1,
                label="Pieces of evidence",
                info="Of those that it finds itself; 0: as in training.",
                elem_id="marge-write-count",
            )
            self.form.show(main=True)
        with gr.Accordion("More settings", open=False), gr.Row(elem_classes="knobs"):
            self.form.show(main=False)


class WritingHandlers:
    """What happens in the form that writes from evidence."""

    def __init__(self, cache: ModelCache, view: WritingView) -> None:
        self.cache, self.home, self.view = cache, cache.home, view
        self.write_from_evidence, self.lane = zero_gpu.marge_writer(cache), Lane(cache)

    def write(
        self,
        code: str,
        name: str | None,
        token: str,
        tongue: str | None,
        chosen: list[str],
        words: str,
        *values: Any,
    ) -> Iterator[Values]:
        said, found = self.view.said, self.view.found
        which, many, *others = values
        # what is chosen is neither counted nor left out by what else the form says
        chosen = [] if which == "off" else chosen or []
        config = checked_writing(self.home, **self.view.form.read(others), retrieval=which)
        # pieces of evidence are no neighbors of each chunk
        config = replace(config, num_neighbors=0 if chosen else int(many))
        workspace = Workspace.open(self.home, code)
        if not name:
            raise UserError("There is no MARGE yet. Train one on the Train tab.")
        service.check_ready(workspace, name)
        with self.lane.text(code, token) as stopped:
            yield {said: LOADING}
            loaded, text, read = self.cache.marge(workspace.run(name)), "", list[str]()
            asked = {"language": tongue or "", "documents": chosen}
            for step in self.write_from_evidence(loaded, words or "", config, **asked):
                if isinstance(step, Retrieved):
                    read = [str(one["text"]) for one in step.neighbors]
                    yield {found: marge_views.found_evidence(step.neighbors, step.ms)}
                elif isinstance(step, Token):
                    text += step.text
                    yield {said: marge_views.written_html(words or "", text, read)}
                elif isinstance(step, Written):
                    yield {said: marge_views.written_html(words or "", text, read, len(step.probabilities))}
                if stopped():
                    return

    def offer_choices(self, code: str, name: str | None) -> Values:
        """Languages and documents of a run, with an example; nothing while its corpus is not built."""
        view, workspace = self.view, Workspace.open(self.home, code)
        if not name or service.statistics(service.corpus_of_run(workspace, name)[1]) is None:
            return {
                view.language: gr.Dropdown([], value=None),
                view.among: gr.Dropdown([ALL], value=ALL),
                view.documents: gr.Dropdown([], value=[]),
            }
        source = self.cache.marge_corpus(workspace.run(name))
        known = [(html_parts.language_name(each), each) for each in source.config.network.languages]
        tongue, chosen = example_evidence(source)
        return {
            view.language: gr.Dropdown(known, value=tongue),
            view.among: gr.Dropdown([ALL, *known], value=ALL),
            view.documents: gr.Dropdown(**_listed(source, ALL), value=chosen),
        }

    def list_documents(self, code: str, name: str | None, tongue: str) -> Any:
        """documents: others to choose from; what is chosen stays."""
        if not name:
            return gr.skip()
        source = self.cache.marge_corpus(Workspace.open(self.home, code).run(name))
        return gr.Dropdown(**_listed(source, tongue))

    def arrive(self, code: str, now: str | None) -> Values:
        """The runs to choose from, and what one of them offers."""
        names = marge_runs(Workspace.open(self.home, code))
        chosen = now if now in names else next(iter(names), None)
        return {self.view.run: relisted_runs(names, now, chosen)} | self.offer_choices(code, chosen)

    def refresh(self, code: str, now: str | None) -> Values:
        """As `arrive`; for a run that is still there, what was chosen stays."""
        names = marge_runs(Workspace.open(self.home, code))
        if now not in names:
            return self.arrive(code, now)
        return {self.view.run: relisted_runs(names, now, now)}


def _listed(source: MargeCorpus, tongue: str) -> dict[str, Any]:
    """Documents to choose from in a language, or in all, and what to say of those left out."""
    found = documents_of(source, None if tongue == ALL else tongue)
    more = f" {found.cut} Others: type their id." if found.cut else ""
    return {"choices": found.offered, "info": EVIDENCE + more}


def wire_writing(
    tab: gr.Tab, cache: ModelCache, view: WritingView, visitor: gr.BrowserState, arrival: Any
) -> None:
    """Wire the form; `tab` is the one that it stands in."""
    on, known = WritingHandlers(cache, view), [visitor, view.run]
    given = [view.token, view.language, view.documents, view.prompt, view.kind, view.count]
    wait, write = on.lane.waiting(), shows_errors(on.write)
    picked = view.examples.click(first_of, view.examples, view.prompt, **QUIET)
    for begun in (view.go.click, picked.then):
        waits = begun(wait, known, [view.said, view.token], **CHEAP)
        asked = [*known, *given, *view.form.inputs]
        writes = waits.success(write, asked, [view.said, view.found], **ON_PAGE)
        for stage in (waits, writes):
            stage.failure(lambda: ["", gr.Button(interactive=False)], None, [view.said, view.stop], **QUIET)
        writes.success(lambda: gr.Button(interactive=False), None, view.stop, **QUIET)
    pressed = [view.go.click, view.examples.click]
    gr.on(pressed, lambda: gr.Button(interactive=True), None, view.stop, js=TO_WRITTEN, **QUIET)
    view.stop.click(on.lane.stopping(), [visitor, view.token], None, **QUIET)
    offered = [view.language, view.among, view.documents]
    arrival = arrival.opening(tab, view.run)
    view.run.input(once_known(on.offer_choices), known, offered, **QUIET)
    view.among.input(once_known(on.list_documents), [*known, view.among], view.documents, **QUIET)
    tab.select(once_known(on.refresh), known, [view.run, *offered], **QUIET)
    arrival.then(once_known(on.arrive), known, [view.run, *offered], **QUIET)
