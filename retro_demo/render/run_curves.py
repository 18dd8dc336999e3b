"""Loss curves of several runs over each other, by steps, tokens or time of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.render.html_parts import color
from retro_demo.render.plots import MOST_POINTS, described, figure_layout, lines_words, smooth, thin

AXES = {"steps": "step", "tokens": "tokens read", "time": "minutes at work on steps"}
"""What the runs can be laid over each other by, and what the axis says."""


@dataclass(frozen=True)
class Curve:
    """One run to draw: its name, its events, and the tokens that a step reads (of a MARGE at most)."""

    name: str
    status: JobStatus
    tokens_a_step: int


def places(curve: Curve, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,) of a run, and where each stands on an axis of AXES (N,).

    Time is that of the steps alone, from their speed: measurements and waits are no part of it.
    """
    done = curve.status.of_kind("step")
    steps = np.array([event["step"] for event in done], dtype=np.float64)
    if by == "tokens":
        return steps, steps * curve.tokens_a_step
    if by == "time":
        speeds = np.array([max(event["tokens_per_second"], 1e-9) for event in done])
        return steps, np.cumsum(curve.tokens_a_step / speeds) / 60
    return steps, steps


def curves_over(curves: Sequence[Curve], by: str) -> go.Figure:
    """Training loss, smoothed, as lines and held-out loss as dots; each run has one color."""
    figure, told = go.Figure(), {}
    for index, curve in enumerate(curves):
        steps, at = places(curve, by)
        if not len(steps):
            continue
        loss = smooth(np.array([event["loss"] for event in curve.status.of_kind("step")]))
        few = thin(steps, MOST_POINTS // 2)
        look = {"legendgroup": curve.name, "name": curve.name}
        told[curve.name] = [(float(at[i]), float(loss[i])) for i in (0, -1)]
        figure.add_scatter(
            x=at[few].astype(np.float32),
            y=loss[few].astype(np.float32),
            mode="lines",
            line={"color": color(index), "width": 2},
            hovertemplate="%{x:.4g}: %{y:.3f}<extra></extra>",
            **look,
        )
        measured = [event for event in curve.status.of_kind("evaluated") if event["arms"]]
        nats = [event["arms"].get("on", event["arms"].get("off", {})).get("nats") for event in measured]
        where = np.interp([event["step"] for event in measured], [0, *steps], [0, *at])
        kept = thin(np.arange(len(measured)), MOST_POINTS // 4)
        figure.add_scatter(
            x=where[kept].astype(np.float32),
            y=[nats[i] for i in kept],
            mode="markers",
            marker={"color": color(index), "size": 8},
            showlegend=False,
            hovertemplate="held out, %{x:.4g}: %{y:.4f}<extra></extra>",
            **look,
        )
    return figure_layout(
        described(figure, lines_words("training loss in nats a token (dots: held-out loss)", AXES[by], told)),
        height=340,
        uirevision=" ".join([by, *(curve.name for curve in curves)]),
        margin={"l": 52, "r": 12, "t": 12, "b": 44},
        xaxis_title=AXES[by],
        yaxis_title="loss (nats a token); dots: held out",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        showlegend=True,
    )
