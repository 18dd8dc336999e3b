"""The pictures of a MARGE run as plotly figures that suit a light and a dark page. No gradio here.

A table with the same numbers stands behind each in render/evidence_views.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from retro_demo.explain.evidence_reading import EvidenceReading
from retro_demo.explain.evidence_run import MargeCorpus
from retro_demo.explain.evidence_sample import Sample
from retro_demo.render import plot_words
from retro_demo.render.figures import GRAY, described, figure_layout
from retro_demo.render.views import color, label, language_name

BLUE = [[0.0, "rgba(47,111,190,.03)"], [0.35, "rgba(47,111,190,.28)"], [1.0, "rgba(47,111,190,1)"]]
TWO_SIDED = [[0.0, "rgba(214,103,28,1)"], [0.5, "rgba(128,135,148,.04)"], [1.0, "rgba(47,111,190,1)"]]
LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
MARGINS = {"l": 54, "r": 12, "t": 12, "b": 44}


def matrix_figure(
    values: np.ndarray, relevance: np.ndarray, sample: Sample, source: MargeCorpus, *, kind: str, top: float
) -> go.Figure:
    """Targets (rows) x evidence (columns) as ranks (dark: 1) or centered values (full color at `top`)."""
    count = len(sample.ids)
    names = [label(source.about(int(i))["name"]) for i in sample.ids]
    if kind == "ranks":
        ticks = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= count]
        z, limits, scale = -np.log2(values), (-float(np.log2(max(2, count))), 0.0), BLUE
        bar = {"tickvals": [-float(np.log2(n)) for n in ticks], "ticktext": [str(n) for n in ticks]}
        told = "rank %{customdata[0]:.0f}"
    else:
        z, limits, scale, bar, told = values, (-top, top), TWO_SIDED, {}, "centered %{customdata[0]:+.4f}"
    figure = go.Figure(
        go.Heatmap(
            z=z.astype(np.float32),
            x=names,
            y=names,
            zmin=limits[0],
            zmax=limits[1],
            colorscale=scale,
            customdata=np.dstack([values, relevance]).astype(np.float32),
            hovertemplate="target %{y}<br>evidence %{x}<br>"
            + told
            + ", f = %{customdata[1]:.4f}<extra></extra>",
            colorbar=bar | {"thickness": 10, "outlinewidth": 0, "title": {"text": kind, "side": "right"}},
        )
    )
    borders = sample.borders(source.passages)
    for place in borders:
        line = {"color": GRAY, "width": 1}
        figure.add_shape(type="line", x0=place - 0.5, x1=place - 0.5, y0=-0.5, y1=count - 0.5, line=line)
        figure.add_shape(type="line", y0=place - 0.5, y1=place - 0.5, x0=-0.5, x1=count - 0.5, line=line)
    ends = [0, *borders, count]
    starts, middles = ends[:-1], [(a + b - 1) / 2 for a, b in zip(ends[:-1], ends[1:], strict=True)]
    words = [block_name(source, sample, start) for start in starts] if borders else []
    axis = {
        "type": "category",
        "tickmode": "array",
        "tickvals": middles if borders else [],
        "ticktext": [label(word) for word in words],
        "range": [-0.5, count - 0.5],
    }
    figure_layout(figure, height=560, margin={"l": 74, "r": 8, "t": 12, "b": 74}, showlegend=False)
    figure.update_xaxes(**axis, title="evidence", tickangle=-45, showgrid=False)
    figure.update_yaxes(**axis | {"range": [count - 0.5, -0.5]}, title="target", showgrid=False)
    plain = [source.about(int(i))["name"] for i in sample.ids]
    # a click on a row shows that target (assets/plots.js, assets/matrix.js)
    return described(figure, plot_words.matrix_words(relevance, plain), targets=sample.ids.tolist())


def full_color(values: np.ndarray) -> float:
    """Where the colors of centered values are full: 99 of 100 of them stay below."""
    known = np.abs(values[~np.isnan(values)])
    return max(float(np.quantile(known, 0.99)), 1e-6) if len(known) else 1.0


def block_name(source: MargeCorpus, sample: Sample, place: int) -> str:
    """What the block that begins at a place of the sample is called: its group or language."""
    about = source.about(int(sample.ids[place]))
    name = about["group"] if sample.order == "group" else language_name(about["language"])
    return name if len(name) <= 14 else "…" + name[-13:]


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str, key: str
) -> go.Figure:
    """Lines with dots; gray and named at the line are those of chance (dotted) and the untrained (dashed)."""
    figure = go.Figure()
    drawn = 0
    for name, points in series.items():
        if not points:
            continue
        plain = "chance" in name or name.startswith("untrained")
        x, y = np.array(points, dtype=np.float32).T
        figure.add_scatter(
            x=x,
            y=y,
            name=label(name),
            mode="lines" if plain else "lines+markers",
            line={
                "color": GRAY if plain else color(drawn),
                "width": 1.5,
                "dash": "solid" if not plain else "dot" if "chance" in name else "dash",
            },
            marker={"size": 7, "symbol": SYMBOLS[drawn % len(SYMBOLS)]},
            hovertemplate=f"{label(name)}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            showlegend=not plain,
        )
        drawn += not plain
        if plain:  # a legend of all lines would leave little of the picture on a phone
            at, side = (-1, "right") if "chance" in name else (0, "left")
            figure.add_annotation(
                x=x[at], y=y[at], text=label(name), xanchor=side, yanchor="bottom", showarrow=False
            )
    figure.update_yaxes(automargin=True)
    return figure_layout(
        described(figure, plot_words.lines_words(y_title, x_title, series)),
        height=260,
        uirevision=key,
        margin=MARGINS,
        xaxis_title=x_title,
        yaxis_title=y_title,
        legend=LEGEND,
        showlegend=True,
    )


def map_figure(moved: Mapping[str, Any], sample: Sample, source: MargeCorpus, by: str) -> go.Figure:
    """The sample where it lies now, an arrow from where each document lay at the first re-index."""
    before, after = moved["before"], moved["after"]
    figure = go.Figure()
    about = [source.about(int(i)) for i in sample.ids]
    kinds = [one[by] for one in about]
    if len(set(kinds)) == len(kinds):  # nothing belongs together: one color for all
        kinds = ["documents"] * len(kinds)
    for place, one in enumerate(dict.fromkeys(kinds)):
        mine = [i for i, kind in enumerate(kinds) if kind == one]
        tint = color(place)
        arrows = np.full((3 * len(mine), 2), np.nan)  # a gap after each
        arrows[0::3], arrows[1::3] = before[mine], after[mine]
        title = label(language_name(one) if by == "language" else one)
        figure.add_scatter(
            x=arrows[:, 0],
            y=arrows[:, 1],
            mode="lines",
            line={"color": tint, "width": 1},
            opacity=0.35,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=title,
        )
        figure.add_scatter(
            x=after[mine, 0],
            y=after[mine, 1],
            mode="markers",
            name=title,
            legendgroup=title,
            marker={"color": tint, "size": 8, "symbol": SYMBOLS[place // 6 % len(SYMBOLS)]},
            text=[label(about[i]["name"]) for i in mine],
            hovertemplate="%{text}<extra></extra>",
        )
    return figure_layout(
        described(figure, plot_words.map_words(after, moved["moved"])),
        height=420,
        margin=MARGINS,
        xaxis_title="first axis",
        yaxis_title="second axis",
        legend=LEGEND,
        showlegend=True,
    )


def agreement_figure(reading: EvidenceReading, source: MargeCorpus, layer: int | None) -> go.Figure:
    """Relevance of each piece of evidence against the attention that it received."""
    names = [label(source.about(int(i))["name"]) for i in reading.ids]
    figure = go.Figure()
    figure.add_scatter(
        x=reading.relevance,
        y=reading.mass_of(layer),
        mode="markers+text",
        text=[str(place + 1) for place in range(len(names))],
        textposition="top center",
        customdata=names,
        marker={"color": color(0), "size": 10},
        hovertemplate="%{customdata}<br>f = %{x:.4f}, mass %{y:.1%}<extra></extra>",
    )
    figure_layout(
        figure,
        height=300,
        margin=MARGINS,
        xaxis_title="relevance f",
        yaxis_title="share of attention",
        showlegend=False,
    )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    words = plot_words.agreement_words(reading.relevance, reading.mass_of(layer), reading.agreement(layer))
    return described(figure, words)


def heat_figure(weights: np.ndarray, rows: Sequence[str], columns: Sequence[str], first: int) -> go.Figure:
    """Attention (tokens written, tokens of the evidence); rows are numbered from `first`."""
    figure = go.Figure(
        go.Heatmap(
            z=weights.astype(np.float32),
            colorscale=BLUE,
            zmin=0,
            zmax=max(float(weights.max(initial=0)), 1e-6),
            x=[f"{place + 1} {label(piece)}" for place, piece in enumerate(columns)],
            y=[f"{first + place} {label(piece)}" for place, piece in enumerate(rows)],
            hovertemplate="writing %{y}<br>reads %{x}<br>%{z:.4f} of its attention<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0},
        )
    )
    figure_layout(
        figure, height=120 + 15 * len(rows), margin={"l": 96, "r": 8, "t": 8, "b": 90}, showlegend=False
    )
    plain = {
        "type": "category",
        "showgrid": False,
        "tickfont": {"size": 10, "family": "ui-monospace, monospace"},
    }
    figure.update_xaxes(**plain, tickangle=-60)
    figure.update_yaxes(**plain, autorange="reversed")
    return described(figure, plot_words.heat_words(weights, rows, columns))
