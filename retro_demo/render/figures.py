"""Loss curves as plotly figures that suit a light and a dark page. No gradio here."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from retro_demo.jobs.jobs import JobStatus
from retro_demo.render import plot_words
from retro_demo.render.views import color

MOST_POINTS = 1000
EVIDENCE_ARMS = {"on": "own", "off": "no", "random": "random"}
GRAY = "#808794"  # readable on white and on the dark page
GRID = "rgba(128,135,148,.22)"
FONT = {"color": GRAY, "size": 12, "family": "system-ui, sans-serif"}


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


def figure_layout(figure: go.Figure, **more: Any) -> go.Figure:
    """What all figures share: no ground of their own, gray lines and letters."""
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


def described(figure: go.Figure, words: str, **more: Any) -> go.Figure:
    """The figure with the sentence that assets/plots.js gives to those who cannot see it, and more."""
    return figure.update_layout(meta={"alt": words} | more)


def loss_curve(status: JobStatus, run: str) -> go.Figure:
    """Training loss thin and smoothed, held-out loss with retrieval on and off as dots."""
    done = status.of_kind("step")
    steps = np.array([step["step"] for step in done], dtype=np.float32)
    loss = np.array([step["loss"] for step in done], dtype=np.float32)
    few = thin(steps, MOST_POINTS // 2)
    figure = go.Figure()
    told: dict[str, list[tuple[float, float]]] = {}
    if len(steps):
        lines = {"mode": "lines", "hovertemplate": "step %{x}: %{y:.3f}<extra></extra>"}
        figure.add_scatter(
            x=steps[few], y=loss[few], name="train", line={"color": GRAY, "width": 1}, opacity=0.45, **lines
        )
        mean = smooth(loss).astype(np.float32)
        told["training, smoothed,"] = [(float(steps[at]), float(mean[at])) for at in (0, -1)]
        figure.add_scatter(
            x=steps[few], y=mean[few], name="train, smoothed", line={"color": GRAY, "width": 2.5}, **lines
        )
    measured = status.of_kind("evaluated")
    names = {"on": "held out, retrieval on", "off": "held out, retrieval off"}
    if any("random" in event["arms"] for event in measured):  # a MARGE
        names = {arm: f"held out, {kind} evidence" for arm, kind in EVIDENCE_ARMS.items()}
    for place, (arm, name) in enumerate(names.items()):
        points = [(event["step"], event["arms"][arm]["nats"]) for event in measured if arm in event["arms"]]
        few = thin(np.arange(len(points)), MOST_POINTS // 4)
        if points:
            told[name] = points
            x, y = np.array(points, dtype=np.float32)[few].T
            figure.add_scatter(
                x=x,
                y=y,
                name=name,
                mode="markers",
                marker={"color": color(place), "size": 9, "symbol": ("circle", "diamond", "square")[place]},
                hovertemplate=f"{arm}, step %{{x}}: %{{y:.4f}}<extra></extra>",
            )
    return figure_layout(
        described(figure, plot_words.lines_words("loss in nats a token", "step", told)),
        height=340,
        uirevision=run,
        margin={"l": 52, "r": 12, "t": 12, "b": 44},
        xaxis_title="step",
        yaxis_title="loss (nats a token)",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        showlegend=True,
    )
