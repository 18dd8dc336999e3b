"""On the Evidence tab: what one target of a MARGE reads, an editor for its evidence, and writing a passage.

A passage is written from documents that the visitor chooses or that the encoder finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.events import Retrieved, Token
from retro_demo.explain.marge_history import reading_json
from retro_demo.explain.marge_reading import (
    MOST_EVIDENCE,
    Choices,
    EvidenceReading,
    MargeCorpus,
    documents_of,
    edit_evidence,
    example_evidence,
    targets_of,
)
from retro_demo.generation.retro import Written
from retro_demo.glossary import explain
from retro_demo.paths import SAMPLE
from retro_demo.render import html_parts, marge_views
from retro_demo.server import service
from retro_demo.server.model_cache import Library
from retro_demo.server.quotas import checked_writing
from retro_demo.server.workspace import Workspace, marge_runs
from retro_demo.settings import GenerateConfig
from retro_demo.ui import zero_gpu
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
from retro_demo.ui.visit import Lane

MEAN = "mean"
TARGETS = "First passages of documents."
TO_TARGET = "() => document.querySelector('#evidence-target')?.scrollIntoView({block: 'start'})"
ROWS = 48  # tokens of the target in one heatmap


@dataclass(frozen=True)
class EvidenceTarget:
    """The components of the view; `fresh` empties them for a run and offers its targets."""

    outputs: list[Any]

    def fresh(self, targets: Choices, source: MargeCorpus) -> list[Any]:
        """Values of `outputs`: nothing is read before it is asked for."""
        count = min(MOST_EVIDENCE, max(1, round(source.config.evidence.evidence_per_target)))
        network = source.config.network
        return [
            gr.Dropdown(
                targets.offered,
                value=targets.offered[0][1] if targets.offered else None,
                info=f"{TARGETS} {targets.cut} Choose languages above to see the others."
                if targets.cut
                else TARGETS,
            ),
            gr.Slider(value=count),
            gr.Dropdown([MEAN, *map(str, range(1, network.dec_depth + 1))], value=MEAN),
            gr.Dropdown([MEAN, *map(str, range(1, network.num_heads + 1))], value=MEAN),
            marge_views.target_html(None, source),
            gr.Column(visible=False),
        ]


def evidence_target(
    library: Library,
    visitor: gr.BrowserState,
    run: gr.Dropdown,
    documents: tuple[gr.Radio, gr.Dropdown],
    pickers: Sequence[gr.HTML],
) -> EvidenceTarget:
    """Build the view and wire it.

    `documents` say which targets are offered (kind, languages); a `select` of a picker names one of them
    (assets/matrix.js).
    """
    home = library.home
    with gr.Row(elem_classes="knobs"):
        target = gr.Dropdown([], label="Target", info=TARGETS, elem_id="evidence-target", min_width=260)
        count = gr.Slider(
            1,
            MOST_EVIDENCE,
            8,
            step=1,
            label="Pieces of evidence",
            info="How many it reads.",
            elem_id="evidence-count",
        )
        read = gr.Button("Find and read its evidence", variant="primary", elem_id="read-evidence")
    said = gr.HTML(elem_id="evidence-read", min_height=60)
    with gr.Column(visible=False) as inside:
        listing = gr.HTML(elem_id="evidence-pieces")
        with gr.Row(elem_classes="knobs"):
            layer = gr.Dropdown(
                [MEAN],
                value=MEAN,
                label="Layer",
                info=explain("layer"),
                elem_id="evidence-layer",
                min_width=120,
            )
            head = gr.Dropdown(
                [MEAN], value=MEAN, label="Head", info=explain("head"), elem_id="evidence-head", min_width=120
            )
            piece = gr.Dropdown(
                [],
                label="Piece of evidence",
                info="The one that is drawn.",
                elem_id="evidence-piece",
                min_width=260,
            )
            part = gr.Slider(
                1,
                2,
                1,
                step=1,
                label="Part of the target",
                info="A long one is drawn in parts.",
                visible=False,
                elem_id="evidence-part",
            )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                gr.HTML("<h3>Does attention follow relevance?</h3>")
                agreement = gr.Plot(show_label=False, container=False, elem_id="evidence-agreement")
                agreed = gr.HTML()
                with gr.Accordion("Relevance and attention as a table", open=False):
                    agreed_table = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                gr.HTML(
                    "<h3>What was read of this piece</h3><p class='caption'>Rows are the tokens of the "
                    "target as they were written, columns the tokens of the piece; languages and padding are "
                    "left out.</p>"
                )
                heat = gr.Plot(show_label=False, container=False, elem_id="evidence-heat")
        gr.HTML("<h3>Change or remove this piece</h3>")
        text = gr.Textbox(
            label="Its text",
            lines=3,
            max_lines=8,
            elem_id="evidence-text",
            info="It is cut into tokens anew and read in the same language; empty: the piece is removed.",
        )
        with gr.Row(elem_classes="actions"):
            change = gr.Button("Read this instead", variant="primary", elem_id="edit-evidence")
            remove = gr.Button("Read without it", elem_id="remove-evidence")
        changed = gr.HTML(elem_id="evidence-changed")
        download = gr.DownloadButton(
            "Download this reading with where it comes from (JSON)", size="sm", elem_id="reading-download"
        )

    def known(
        code: str, name: str | None, which: int | None, many: int
    ) -> tuple[MargeCorpus, EvidenceReading]:
        if not name or which is None:
            raise UserError("There is no target yet. Choose a run and a target first.")
        folder = Workspace.open(home, code).run(name)
        return library.marge_corpus(folder), library.evidence(folder, int(which), int(many))

    def attention(source: MargeCorpus, reading: EvidenceReading, *look: Any) -> list[Any]:
        """agreement, agreed, agreed_table, heat, for a layer, a head, a piece and a part of the target."""
        layer_of, head_of, at, page = look
        layers, heads = reading.weights.shape[:2]
        nth = int(layer_of) - 1 if (layer_of or "").isdecimal() and 0 < int(layer_of) <= layers else None
        one = int(head_of) - 1 if (head_of or "").isdecimal() and 0 < int(head_of) <= heads else None
        at = min(max(int(at or 0), 0), len(reading.ids) - 1)
        weights = reading.heat(at, nth, one)
        start = ROWS * (min(max(int(page), 1), _parts(reading)) - 1)
        rows = source.pieces(reading.tokens[1:])[start : start + ROWS]
        columns = source.pieces(reading.evidence[at][reading.evidence[at] != 0][1:])
        return [
            marge_views.agreement_figure(reading, source, nth),
            marge_views.agreement_html(reading, nth),
            marge_views.agreement_table(reading),
            marge_views.heat_figure(weights[start : start + ROWS], rows, columns, start + 1),
        ]

    @shows_errors
    def pick(code: str, name: str | None, how: str, some: list[str], event: gr.EventData) -> gr.Dropdown:
        """target: the one whose row was chosen, also where there are too many to list."""
        if not name:
            raise UserError("There is no run yet. Choose one first.")
        (which,) = clicked(event, "passage", "passage")
        source = library.marge_corpus(Workspace.open(home, code).run(name))
        offered = targets_of(source, held_out=how == "held-out", languages=some or []).offered
        if not 0 <= which < len(source.passages.tokens):
            raise UserError(f"There is no passage {which} in this corpus. Choose a target from the list.")
        if which not in [value for _, value in offered]:
            offered = [(source.about(which)["name"], which), *offered]
        return gr.Dropdown(offered, value=which)

    @once_known
    def look_up(code: str, name: str | None, which: int | None, many: int, *look: Any) -> Iterator[list[Any]]:
        waiting = (
            '<p class="speed" role="status">Embedding all passages, finding and reading the evidence.</p>'
        )
        yield [waiting, *[gr.skip()] * (len(shown) - 1)]
        source, reading = known(code, name, which, many)
        folder = Workspace.open(home, code).run(str(name))
        names = [source.about(int(i))["name"] for i in reading.ids]
        yield [
            marge_views.target_html(reading, source),
            gr.Column(visible=True),
            marge_views.evidence_table(reading, source),
            gr.Dropdown([(f"{i + 1} {words}", i) for i, words in enumerate(names)], value=0),
            gr.Slider(maximum=max(2, _parts(reading)), value=1, visible=_parts(reading) > 1),
            *attention(source, reading, *look, 0, 1),
            source.text(int(reading.ids[0])),
            "",
            json_file("evidence-reading.json", reading_json(folder, source, reading)),
        ]

    @once_known
    def look(code: str, name: str | None, which: int | None, many: int, *how: Any) -> list[Any]:
        return attention(*known(code, name, which, many), *how)

    @once_known
    def look_at_piece(code: str, name: str | None, which: int | None, many: int, *how: Any) -> list[Any]:
        source, reading = known(code, name, which, many)
        at = min(max(int(how[2] or 0), 0), len(reading.ids) - 1)
        return [*attention(source, reading, *how), source.text(int(reading.ids[at])), ""]

    @shows_errors
    def edit(code: str, name: str | None, which: int | None, many: int, at: int, words: str) -> str:
        _, reading = known(code, name, which, many)
        run_now = library.marge(Workspace.open(home, code).run(str(name)))
        return marge_views.edit_html(edit_evidence(run_now, reading, int(at or 0), words or ""))

    @shows_errors
    def without(code: str, name: str | None, which: int | None, many: int, at: int) -> str:
        return edit(code, name, which, many, at, "")

    asked = [visitor, run, target, count]
    pictures = [agreement, agreed, agreed_table, heat]
    shown = [said, inside, listing, piece, part, *pictures, text, changed, download]
    model = CHEAP | MODEL
    for begun in (read.click, target.input, count.release):
        begun(look_up, [*asked, layer, head], shown, **model).failure(lambda: "", None, said, **PRIVATE)
    for place in pickers:
        picked = place.select(pick, [visitor, run, *documents], target, **QUIET)
        picked.success(None, js=TO_TARGET).then(look_up, [*asked, layer, head], shown, **model).failure(
            lambda: "", None, said, **PRIVATE
        )
    looks = [*asked, layer, head, piece, part]
    gr.on([layer.input, head.input, part.input], look, looks, pictures, **model)
    piece.input(look_at_piece, looks, [*pictures, text, changed], **model)
    change.click(edit, [*asked, piece, text], changed, **model)
    remove.click(without, [*asked, piece], changed, **model)
    return EvidenceTarget([target, count, layer, head, said, inside])


def _parts(reading: EvidenceReading) -> int:
    """In how many heatmaps the tokens of a target are shown."""
    return -(-(len(reading.tokens) - 1) // ROWS)


KNOBS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
ALL = "every language"
KINDS = [("relevant", "on"), ("drawn at random", "shuffled"), ("none", "off")]
EXAMPLES = "Beginnings to try: a click writes on"
BEGINNINGS = [["Everyone has the right to"], ["No one shall be"], ["The family is"]]
LOADING = '<p class="speed" role="status">Loading the run and embedding its passages.</p>'
EVIDENCE = "All passages of these documents, held out or not. Empty: found by the run itself."


def evidence_writing(tab: gr.Tab, library: Library, visitor: gr.BrowserState, arrival: Any) -> gr.Dropdown:
    """Build the form and wire it; `tab` is the one that it stands in. Gives back the choice of the run."""
    home, write_from_evidence, lane = library.home, zero_gpu.marge_writer(library), Lane(library)
    form = Form(GenerateConfig, values={"max_new_tokens": 40}, only=KNOBS, prefix="marge-write-")
    gr.HTML(
        f"<p class='caption'>A {html_parts.term('marge', 'MARGE')} writes a passage from "
        f"{html_parts.term('evidence')}: from the documents that you choose, else from passages that its "
        "encoder finds for the beginning.</p>"
    )
    with gr.Row(elem_classes="knobs"):
        run = gr.Dropdown(
            [], label="MARGE", info="Which run writes.", elem_id="marge-write-run", min_width=220
        )
        language = gr.Dropdown(
            [], label="Language to write", info="Of those in training.", elem_id="marge-write-language"
        )
    with gr.Row(elem_classes="knobs"):
        among = gr.Dropdown(
            [ALL],
            value=ALL,
            label="Look among",
            info="Which documents the list beside this offers.",
            elem_id="marge-write-among",
            scale=1,
            min_width=180,
        )
        documents = gr.Dropdown(
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
    prompt = gr.Textbox(
        label="Beginning",
        lines=2,
        max_lines=6,
        elem_id="marge-write-prompt",
        info="How the passage begins; it may be empty.",
    )
    examples = gr.Dataset(
        components=["textbox"], samples=BEGINNINGS, label=EXAMPLES, elem_id="marge-examples", type="values"
    )
    with gr.Row(elem_classes="knobs"):
        kind = gr.Radio(
            KINDS,
            value="on",
            label="Kind of evidence",
            info="Drawn at random: as many passages, as a control.",
            elem_id="marge-write-kind",
        )
        count = gr.Slider(
            0,
            MOST_EVIDENCE,
            0,
            step=1,
            label="Pieces of evidence",
            info="Of those that it finds itself; 0: as in training.",
            elem_id="marge-write-count",
        )
        form.show(main=True)
    with gr.Accordion("More settings", open=False), gr.Row(elem_classes="knobs"):
        form.show(main=False)
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Write from evidence", variant="primary", elem_id="marge-write")
        stop = gr.Button("Stop", elem_id="marge-write-stop")
    said = gr.HTML(elem_id="marge-written")
    found = gr.HTML(elem_id="marge-write-evidence")

    @shows_errors
    def write(
        code: str,
        name: str | None,
        token: str,
        tongue: str | None,
        chosen: list[str],
        words: str,
        *values: Any,
    ) -> Iterator[list[Any]]:
        which, many, *others = values
        # what is chosen is neither counted nor left out by what else the form says
        chosen = [] if which == "off" else chosen or []
        count = 0 if chosen else int(many)
        config = checked_writing(home, **form.read(others), retrieval=which)
        config = replace(config, num_neighbors=count)  # pieces of evidence are no neighbors of each chunk
        workspace = Workspace.open(home, code)
        if not name:
            raise UserError("There is no MARGE yet. Train one on the Train tab.")
        service.check_ready(workspace, name)
        with lane.text(code, token) as stopped:
            yield [LOADING, gr.skip()]
            loaded, text = library.marge(workspace.run(name)), ""
            asked = {"language": tongue or "", "documents": chosen}
            for step in write_from_evidence(loaded, words or "", config, **asked):
                if isinstance(step, Retrieved):
                    yield [gr.skip(), marge_views.found_evidence(step.neighbors, step.ms)]
                elif isinstance(step, Token):
                    text += step.text
                    yield [marge_views.written_html(words or "", text), gr.skip()]
                elif isinstance(step, Written):
                    yield [marge_views.written_html(words or "", text, len(step.probabilities)), gr.skip()]
                if stopped():
                    return

    @once_known
    def offer(code: str, name: str | None) -> list[Any]:
        """language, among, documents, with an example; nothing while the corpus is not built."""
        workspace = Workspace.open(home, code)
        if not name or service.statistics(service.corpus_of_run(workspace, name)[1]) is None:
            return [gr.Dropdown([], value=None), gr.Dropdown([ALL], value=ALL), gr.Dropdown([], value=[])]
        source = library.marge_corpus(workspace.run(name))
        known = [(html_parts.language_name(each), each) for each in source.config.network.languages]
        tongue, chosen = example_evidence(source)
        return [
            gr.Dropdown(known, value=tongue),
            gr.Dropdown([ALL, *known], value=ALL),
            gr.Dropdown(**listed(source, ALL), value=chosen),
        ]

    def listed(source: MargeCorpus, tongue: str) -> dict[str, Any]:
        """Documents to choose from in a language, or in all, and what to say of those left out."""
        found = documents_of(source, None if tongue == ALL else tongue)
        more = f" {found.cut} Others: type their id." if found.cut else ""
        return {"choices": found.offered, "info": EVIDENCE + more}

    @once_known
    def narrow(code: str, name: str | None, tongue: str) -> Any:
        """documents: others to choose from; what is chosen stays."""
        if not name:
            return gr.skip()
        return gr.Dropdown(**listed(library.marge_corpus(Workspace.open(home, code).run(name)), tongue))

    @once_known
    def arrive(code: str, now: str | None) -> list[Any]:
        names = marge_runs(Workspace.open(home, code))
        chosen = now if now in names else next(iter(names), None)
        named = relisted([(each.removeprefix(SAMPLE), each) for each in names], now, chosen)
        return [named, *offer(code, chosen)]

    @once_known
    def refresh(code: str, now: str | None) -> list[Any]:
        """As `arrive`; for a run that is still there, what was chosen stays."""
        names = marge_runs(Workspace.open(home, code))
        if now not in names:
            return arrive(code, now)
        named = relisted([(each.removeprefix(SAMPLE), each) for each in names], now, now)
        return [named, gr.skip(), gr.skip(), gr.skip()]

    model = CHEAP | MODEL
    token = gr.State("")  # of the text that this page asked for last
    asked = [visitor, run, token, language, documents, prompt, kind, count, *form.inputs]
    picked = examples.click(first_of, examples, prompt, **QUIET)
    for begun in (go.click, picked.then):
        waits = begun(lane.waiting(), [visitor, run], [said, token], **CHEAP)
        for stage in (waits, waits.success(write, asked, [said, found], **model)):
            stage.failure(lambda: "", None, said, **QUIET)
    stop.click(lane.stopping(), [visitor, token], None, **QUIET)
    offered = [language, among, documents]
    arrival = arrival.opening(tab, run)
    run.input(offer, [visitor, run], offered, **QUIET)
    among.input(narrow, [visitor, run, among], documents, **QUIET)
    tab.select(refresh, [visitor, run], [run, *offered], **QUIET)
    arrival.then(arrive, [visitor, run], [run, *offered], **QUIET)
    return run
