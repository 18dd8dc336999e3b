"""One target of a MARGE run on the Evidence tab: its evidence, what it reads of it, and an editor for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.explain.evidence_export import reading_json
from retro_demo.explain.evidence_reading import MOST_EVIDENCE, EvidenceReading, edit_evidence
from retro_demo.explain.evidence_run import Choices, MargeCorpus, targets_of
from retro_demo.glossary import explain
from retro_demo.render import evidence_figures, evidence_views
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import CHEAP, MODEL, PRIVATE, QUIET, clicked, json_file, once_known, shows_errors

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
            evidence_views.target_html(None, source),
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
            evidence_figures.agreement_figure(reading, source, nth),
            evidence_views.agreement_html(reading, nth),
            evidence_views.agreement_table(reading),
            evidence_figures.heat_figure(weights[start : start + ROWS], rows, columns, start + 1),
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
            evidence_views.target_html(reading, source),
            gr.Column(visible=True),
            evidence_views.evidence_table(reading, source),
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
        return evidence_views.edit_html(edit_evidence(run_now, reading, int(at or 0), words or ""))

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
