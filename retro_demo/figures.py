"""Loss curves and heatmaps as plotly figures that suit a light and a dark page. No gradio here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from retro_demo.jobs import JobStatus
from retro_demo.tracing import Trace, reading_tokens, shares
from retro_demo.views import color

MOST_POINTS = 1000
GRAY = "#808794"  # readable on white and on the dark page
GRID = "rgba(128,135,148,.22)"
FONT = {"color": GRAY, "size": 12, "family": "system-ui, sans-serif"}


def plain(text: str, most: int = 40) -> str:
    """A label that plotly takes as text: it reads pseudo-HTML and entities otherwise."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return short.replace("&", "＆").replace("<", "‹").replace(">", "›")


def thin(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Which of the values (N,) to draw: all, or evenly chosen ones with the last."""
    if len(values) <= most:
        return np.arange(len(values))
    return np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))


def smooth(values: np.ndarray) -> np.ndarray:
    """A running mean that looks back, over a twentieth of the values (at least 5)."""
    width = max(5, len(values) // 20)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _layout(figure: go.Figure, **more: Any) -> go.Figure:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=FONT,
        hoverlabel={"font": {"family": "ui-monospace, monospace", "size": 12}},
        **more,
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    return figure


def loss_curve(status: JobStatus, run: str) -> go.Figure:
    """Training loss thin and smoothed, held-out loss with retrieval on and off as dots."""
    done = status.of_kind("step")
    steps = np.array([step["step"] for step in done], dtype=np.float32)
    loss = np.array([step["loss"] for step in done], dtype=np.float32)
    few = thin(steps, MOST_POINTS // 2)
    figure = go.Figure()
    if len(steps):
        lines = {"mode": "lines", "hovertemplate": "step %{x}: %{y:.3f}<extra></extra>"}
        figure.add_scatter(
            x=steps[few], y=loss[few], name="train", line={"color": GRAY, "width": 1}, opacity=0.45, **lines
        )
        mean = smooth(loss).astype(np.float32)
        figure.add_scatter(
            x=steps[few], y=mean[few], name="train, smoothed", line={"color": GRAY, "width": 2.5}, **lines
        )
    measured = status.of_kind("evaluated")
    names = {"on": "held out, retrieval on", "off": "held out, retrieval off"}
    for place, (arm, name) in enumerate(names.items()):
        points = [(event["step"], event["arms"][arm]["nats"]) for event in measured if arm in event["arms"]]
        few = thin(np.arange(len(points)), MOST_POINTS // 4)
        if points:
            x, y = np.array(points, dtype=np.float32)[few].T
            figure.add_scatter(
                x=x,
                y=y,
                name=name,
                mode="markers",
                marker={"color": color(place), "size": 9, "symbol": ("circle", "diamond")[place]},
                hovertemplate=f"{arm}, step %{{x}}: %{{y:.4f}}<extra></extra>",
            )
    return _layout(
        figure,
        height=340,
        uirevision=run,
        margin={"l": 52, "r": 12, "t": 12, "b": 44},
        xaxis_title="step",
        yaxis_title="loss (nats a token)",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        showlegend=True,
    )


def _shade(of: str) -> list[list[Any]]:
    red, green, blue = (int(of[i : i + 2], 16) for i in (1, 3, 5))
    return [[0, f"rgba({red},{green},{blue},0.03)"], [1, f"rgba({red},{green},{blue},1)"]]


def heatmap(trace: Trace, chunk: int, weights: np.ndarray) -> go.Figure:
    """weights (rows, K, R) -> one panel a neighbor: rows are reading tokens, columns N | F tokens."""
    neighbors = trace.neighbors[chunk]
    tokens = reading_tokens(trace, chunk)
    rows = [f"{i + 1} {plain(trace.tokens[i], 12)}" for i in tokens]
    share = shares(weights)
    titles = [
        f"{place + 1} {plain(neighbor['title'] or neighbor['document'])} · mass {share[place]:.0%}"
        for place, neighbor in enumerate(neighbors)
    ]
    row_height = 13
    panel = max(len(tokens), 4) * row_height
    between = 92
    height = len(neighbors) * panel + (len(neighbors) - 1) * between + 34 + 70
    inner = height - 34 - 70
    figure = make_subplots(
        rows=len(neighbors),
        cols=1,
        subplot_titles=titles,
        vertical_spacing=between / inner if len(neighbors) > 1 else 0,
    )
    top = max(float(np.quantile(weights, 0.995)), 1e-6)
    for place, neighbor in enumerate(neighbors):
        _panel(figure, place, neighbor, weights[:, place], rows, trace.chunk_len, top)
    figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(rows))),
        ticktext=rows,
        tickfont={"size": 9},
        showgrid=False,
    )
    heads = figure.layout["annotations"]
    for place in range(len(neighbors)):
        heads[place].update(  # pyright: ignore[reportAttributeAccessIssue]
            font={"color": color(place), "size": 13}, x=0, xanchor="left", yshift=4
        )
    _layout(figure, height=height, margin={"l": 92, "r": 8, "t": 34, "b": 70}, showlegend=False)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def _panel(
    figure: go.Figure,
    place: int,
    neighbor: dict[str, Any],
    weights: np.ndarray,
    rows: Sequence[str],
    chunk_len: int,
    top: float,
) -> None:
    labels = [plain(text, 10) for text in neighbor["tokens"]]
    columns = [f"{'N' if i < chunk_len else 'F'} {label}" for i, label in enumerate(labels)]
    figure.add_heatmap(
        z=weights.astype(np.float32),
        customdata=[[f"{row} reads {column}" for column in columns] for row in rows],
        hovertemplate="%{customdata}: %{z:.4f}<extra></extra>",
        colorscale=_shade(color(place)),
        zmin=0,
        zmax=top,
        showscale=False,
        xgap=1,
        ygap=1,
        row=place + 1,
        col=1,
    )
    figure.add_vline(
        x=chunk_len - 0.5,
        line={"color": GRAY, "width": 1.5, "dash": "dot"},
        row=place + 1,  # pyright: ignore[reportArgumentType]
        col=1,  # pyright: ignore[reportArgumentType]
    )
    figure.update_xaxes(
        tickvals=list(range(len(labels))),
        ticktext=labels,
        tickangle=-90,
        tickfont={"size": 9},
        row=place + 1,
        col=1,
    )
