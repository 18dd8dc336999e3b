"""The overview of attention to neighbors as HTML: a small picture for each head of each layer.

Each picture is a button that opens the heatmap of that layer and head (assets/heads.js); heads of rows and
columns open means. BertViz's model view (Vig 2019) is the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retro_demo.explain.heads import Head, heads
from retro_demo.explain.tracing import Trace
from retro_demo.render.html_parts import esc, neighbor_color, saved_as, term

ALL = 0
"""Stands for all layers, or all heads of a layer, which count from 1."""
FAINT = 0.02  # of the strongest: what is weaker is not drawn


def heads_html(trace: Trace | None) -> str:
    """Rows are layers, columns heads; "" where nothing was read."""
    rows = heads(trace) if trace is not None else []
    if not rows or trace is None:
        return ""
    top = max(float(one.small.max()) for row in rows for one in row) or 1.0
    if len(rows) == len(rows[0]) == 1:
        return _framed(
            trace, rows[0][0], f"<table><tr><td>{_picture(rows[0][0], top, pressed=True)}</td></tr></table>"
        )
    names = "".join(
        f"<th scope='col'>{_opens(ALL, one.number, f'head {one.number}')}</th>" for one in rows[0]
    )
    body = "".join(
        f"<tr><th scope='row'>{_opens(row[0].layer, ALL, f'layer {row[0].layer}')}</th>"
        f"{''.join(f'<td>{_picture(one, top)}</td>' for one in row)}</tr>"
        for row in rows
    )
    table = (
        f"<table><thead><tr><td>{_opens(ALL, ALL, 'mean', pressed=True)}</td>{names}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    return _framed(trace, rows[0][0], table)


def _framed(trace: Trace, one: Head, table: str) -> str:
    """The pictures with the words that explain them."""
    return (
        f'<div class="heads" data-picture="heads"><p class="caption">{_caption(trace, one)}</p>'
        f'<div class="scroll" role="group" aria-label="Heads by layer: the arrow keys go from one to the '
        f'next">{table}</div>{saved_as()}</div>'
    )


def _caption(trace: Trace, one: Head) -> str:
    """How to read the pictures, and for a reader what its one look-up serves."""
    number = (
        f"The number: its share on neighbors; the rest fell on nothing ({term('null key')})."
        if one.null is not None
        else "The number: the neighbor that it read most, with its share."
    )
    said = (
        "Each picture: where a head looked, over the whole text. Down: the place of the token in its chunk; "
        f"across: N and F of each neighbor. {number} Choose one for its heatmap."
    )
    use = trace.about.get("look_up")
    return f"{said} {_look_up_words(use)}" if isinstance(use, Mapping) else said


def _look_up_words(use: Mapping[str, Any]) -> str:
    """What the one look-up of a reader serves: layers, each with its gate, and the copy head."""
    layers = [f"{esc(layer)} (gate {float(gate):.2f})" for layer, gate in use["gates"].items()]
    serves = [f"cross-attention after layers {', '.join(layers)} of the base"] if layers else []
    serves += ["the copy head"] if use["copy_head"] else []
    return f"A reader looks up once, for {' and '.join(serves)}."


def _opens(layer: int, head: int, words: str, *, pressed: bool = False) -> str:
    """A button for a mean, with its words."""
    return f'<button type="button" data-layer="{layer}" data-head="{head}" {_state(pressed)}>{words}</button>'


def _picture(one: Head, top: float, *, pressed: bool = False) -> str:
    """A head as a button: its small map, its shares as a bar, and one number."""
    parts = [f"{share:.0%} on neighbor {k + 1}" for k, share in enumerate(one.shares)]
    parts += [f"{one.null:.0%} on nothing"] if one.null is not None else []
    most = int(np.argmax(one.shares))
    number = f"{most + 1}: {one.shares[most]:.0%}" if one.null is None else f"{sum(one.shares):.0%}"
    bar = "".join(
        f'<i style="width:{100 * share:.1f}%;--own:{neighbor_color(k)}"></i>'
        for k, share in enumerate(one.shares)
    )
    said = f"Layer {one.layer}, head {one.number}: {', '.join(parts)}"
    return (
        f'<button type="button" data-layer="{one.layer}" data-head="{one.number}" {_state(pressed)} '
        f'aria-label="{said}">{_small_map(one.small, top)}<span class="shares">{bar}</span>'
        f"<b>{number}</b></button>"
    )


def _state(pressed: bool) -> str:
    """Of the buttons the Tab key stops at the one that is chosen."""
    return f'aria-pressed="{str(pressed).lower()}" tabindex="{0 if pressed else -1}"'


def _small_map(small: np.ndarray, top: float) -> str:
    """small (rows, K, columns) as SVG: a panel for each neighbor, darker where more was read."""
    rows, count, columns = small.shape
    drawn = []
    for row, k, column in zip(*np.nonzero(small >= FAINT * top), strict=True):
        share = (float(small[row, k, column]) / top) ** 0.5  # most is weak, and not nothing
        drawn.append(
            f'<rect x="{k * (columns + 1) + column}" y="{row}" width="1" height="1" '
            f'fill="{neighbor_color(int(k))}" fill-opacity="{share:.2f}"/>'
        )
    wide = count * (columns + 1) - 1
    return (
        f'<svg viewBox="0 0 {wide} {rows}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="--count:{count}">{"".join(drawn)}</svg>'
    )
