"""Loss curves and evaluations as plotly figures, each with a text alternative for people who cannot see it.

Figures suit a light and a dark page. Those of an evaluation draw from the plain dict of
evaluation/runner.py; render/evaluation_views.py has the tables with the same numbers. Each `*_words`
function takes what its figure is drawn from and gives the sentence with its numbers; `described` puts it
into the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from retro_demo.evaluation.arms import arm_name, arms_in_order, names_of
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.render.evaluation_views import baseline_of
from retro_demo.render.html_parts import color, label

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
    for index, (arm, name) in enumerate(names.items()):
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
                marker={"color": color(index), "size": 9, "symbol": ("circle", "diamond", "square")[index]},
                hovertemplate=f"{arm}, step %{{x}}: %{{y:.4f}}<extra></extra>",
            )
    return figure_layout(
        described(figure, lines_words("loss in nats a token", "step", told)),
        height=340,
        uirevision=run,
        margin={"l": 52, "r": 12, "t": 12, "b": 44},
        xaxis_title="step",
        yaxis_title="loss (nats a token)",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        showlegend=True,
    )


Points = Sequence[tuple[float, float]]


def lines_words(what: str, x: str, series: Mapping[str, Points]) -> str:
    """Lines of (x, y) points: where each begins and ends."""
    ends = {name: (points[0], points[-1]) for name, points in series.items() if len(points)}
    told = [
        f"{name} from {first[1]:.3f} at {x} {first[0]:g} to {last[1]:.3f} at {x} {last[0]:g}"
        for name, (first, last) in ends.items()
    ]
    return f"Lines of {what} by {x}: {'; '.join(told)}." if told else f"Lines of {what} by {x}; no point yet."


def arms_words(arms: Mapping[str, float], line: str) -> str:
    """Bits per byte of each arm, by what it is called, and the arm that the dashed line is."""
    told = ", ".join(f"{name} {value:.4f}" for name, value in arms.items())
    return f"Bits per byte of {len(arms)} arms, lower is better: {told}. The dashed line is {line}."


def overlap_words(at_most: Sequence[str], bpb: Mapping[str, Sequence[float | None]], chunks: int) -> str:
    """Bits per byte by arm on the chunks that overlap at most so much (A)."""
    told = []
    for name, values in bpb.items():
        known = [(words, value) for words, value in zip(at_most, values, strict=True) if value is not None]
        if known:
            (least, low), (most, high) = known[0], known[-1]
            told.append(f"{name} {low:.4f} where at most {least} overlaps and {high:.4f} at most {most}")
    return f"Bits per byte by overlap, over {chunks:,} chunks: {'; '.join(told)}."


def gains_words(buckets: Sequence[Mapping[str, Any]], reference: str) -> str:
    """What retrieval is worth by the longest shared run of tokens."""
    told = [
        f"{one['gain'][reference]['nats']:+.4f} at {one['tokens']} shared tokens ({one['chunks']:,} chunks)"
        for one in buckets
        if reference in one["gain"]
    ]
    return f"Bars of the gain in nats a token against {reference}: {', '.join(told) or 'none measured'}."


def points_words(what: str, points: Mapping[str, float], flat: Mapping[str, float]) -> str:
    """Bits per byte at each measured point, beside the lines that do not change."""
    told = ", ".join(f"{value:.4f} at {name}" for name, value in points.items())
    beside = ", ".join(f"{name} {value:.4f}" for name, value in flat.items())
    return f"Line of bits per byte by {what}: {told}. Dashed beside it: {beside}."


def matrix_words(relevance: np.ndarray, names: Sequence[str]) -> str:
    """Relevance (N, N), NaN where a document may be no evidence."""
    count = len(names)
    if np.isnan(relevance).all():
        return f"Matrix of {count} targets and as many documents; none of them may be evidence."
    row, column = divmod(int(np.nanargmax(relevance)), relevance.shape[1])
    return (
        f"Matrix of {count} targets (rows) and as many documents as evidence (columns): relevance f from "
        f"{np.nanmin(relevance):.4f} to {np.nanmax(relevance):.4f}, highest for target {names[row]} and "
        f"evidence {names[column]}."
    )


def agreement_words(relevance: np.ndarray, mass: np.ndarray, rho: float | None) -> str:
    """Relevance (M,) against the share of attention (M,) of each piece of evidence."""
    told = ", ".join(
        f"piece {index} f {f:.4f} and {share:.1%}"
        for index, (f, share) in enumerate(zip(relevance, mass, strict=True), 1)
    )
    agree = "" if rho is None else f"; their rank correlation is {rho:+.2f}"
    return f"Relevance and share of attention of {len(mass)} pieces of evidence: {told}{agree}."


def heatmap_words(weights: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Attention (tokens written, tokens of the evidence)."""
    said = f"Attention of {len(rows)} tokens of the target to {len(columns)} tokens of the evidence"
    if not weights.size:
        return f"{said}."
    row, column = divmod(int(weights.argmax()), weights.shape[1])
    return (
        f"{said}: the highest weight is {weights[row, column]:.4f}, of “{rows[row]}” on “{columns[column]}”; "
        f"a token reads {weights.sum(axis=1).mean():.1%} of its attention here on average."
    )


ARM_COLORS = {"on": color(0), "off": color(1), "baseline": GRAY, "shuffled": color(2)}
CURVE_NAMES = {"baseline": "matched baseline", "off": "retrieval off", "on": "retrieval on"}


def arms_figure(result: Mapping[str, Any]) -> go.Figure:
    """Each arm as a dot in bits per byte, the baseline (else "off") as a line.

    The bar around a dot is the interval of its difference to the line, from the same documents.
    """
    arms, reference = result["arms"], baseline_of(result)
    shown, called = arms_in_order(result), names_of(result)
    figure = go.Figure()
    line = arms[reference]["bpb"]
    for name in shown:
        arm, words = arms[name], label(arm_name(name, called))
        difference = arm["differences"].get(reference)
        ci = difference and difference["bpb_ci"]
        own = "own interval {:.4f} to {:.4f}".format(*arm["ci"]) if arm["ci"] else "no interval"
        against = "{:+.4f}".format(difference["bpb"]) if difference else "the line"
        figure.add_scatter(
            x=[arm["bpb"]],
            y=[words],
            mode="markers",
            marker={"size": 11, "color": ARM_COLORS.get(name, "#7a6fd0"), "symbol": _symbol(name)},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [line + ci[1] - arm["bpb"]] if ci else [0],
                "arrayminus": [arm["bpb"] - line - ci[0]] if ci else [0],
                "thickness": 1.6,
                "width": 4,
                "color": GRAY,
            },
            hovertemplate=f"{words}: %{{x:.4f}} bits per byte<br>{against} to the line<br>{own}"
            "<extra></extra>",
        )
    figure.add_vline(x=line, line={"color": GRAY, "width": 1.5, "dash": "dash"})
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    told = {arm_name(name, called): arms[name]["bpb"] for name in shown}
    return _layout(
        described(figure, arms_words(told, arm_name(reference, called))),
        height=64 + 26 * len(shown),
        margin={"l": 8, "r": 14, "t": 8, "b": 44},
        xaxis_title="bits per byte",  # longer words are cut on a phone
        showlegend=False,
    )


def _symbol(name: str) -> str:
    return "diamond" if name.startswith("oracle") else "square" if name in ("baseline", "off") else "circle"


def leakage_figure(leakage: Mapping[str, Any]) -> go.Figure:
    """bpb(alpha), its differences to a reference, and how many chunks each step of alpha adds.

    The curves lie within a percent of each other, so it is the differences that show which is lower. Few
    chunks are greyed.
    """
    names = [label(name) for name in leakage["alpha_names"]]
    heights = [0.34, 0.4, 0.26]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.05)
    reference, differences = leakage_differences(leakage)
    for arm, values in leakage["bpb"].items():
        figure.add_scatter(
            x=names,
            y=values,
            name=CURVE_NAMES[arm],
            mode="lines+markers",
            line={"color": ARM_COLORS[arm], "width": 2},
            marker={"size": 8, "opacity": [0.35 if few else 1.0 for few in leakage["greyed"]]},
            hovertemplate="overlap at most %{x}: %{y:.4f} bits per byte<extra></extra>",
            row=1,
            col=1,
        )
    for arm, values in differences.items():
        figure.add_scatter(
            x=names,
            y=values,
            name=f"{CURVE_NAMES[arm]}, difference",
            mode="lines+markers",
            line={"color": ARM_COLORS[arm], "width": 2},
            marker={"size": 8, "opacity": [0.35 if few else 1.0 for few in leakage["greyed"]]},
            hovertemplate=f"overlap at most %{{x}}: %{{y:+.4f}} to {CURVE_NAMES[reference]}<extra></extra>",
            showlegend=False,
            row=2,
            col=1,
        )
    figure.add_scatter(
        x=names,
        y=[0] * len(names),
        mode="lines",
        line={"color": ARM_COLORS[reference], "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
        row=2,
        col=1,
    )
    figure.add_bar(
        x=names,
        y=leakage["chunks_per_bin"],
        marker={"color": [GRID if few else color(0) for few in leakage["greyed"]]},
        hovertemplate="%{y} chunks<extra></extra>",
        showlegend=False,
        row=3,
        col=1,
    )
    figure.update_yaxes(title_text="bits per byte", row=1, col=1)
    figure.update_yaxes(title_text="minus baseline" if reference == "baseline" else "minus off", row=2, col=1)
    figure.update_yaxes(title_text="chunks", row=3, col=1)
    figure.update_yaxes(title_standoff=4)
    figure.update_xaxes(title_text="overlap at most", row=3, col=1)
    figure.update_xaxes(type="category")
    told = {CURVE_NAMES[arm]: values for arm, values in leakage["bpb"].items()}
    described(figure, overlap_words(names, told, sum(leakage["chunks_per_bin"])))
    return _layout(figure, height=500, margin={"l": 56, "r": 12, "t": 64, "b": 48}, legend=LEGEND)


def leakage_differences(leakage: Mapping[str, Any]) -> tuple[str, dict[str, list[float | None]]]:
    """The arm to compare with (the baseline, else off) and what each other arm needs more at each alpha."""
    reference = "baseline" if "baseline" in leakage["bpb"] else "off"
    lines = leakage["bpb"][reference]
    return reference, {
        arm: [
            None if value is None or line is None else value - line
            for value, line in zip(values, lines, strict=True)
        ]
        for arm, values in leakage["bpb"].items()
        if arm != reference
    }


LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}


def buckets_figure(leakage: Mapping[str, Any]) -> go.Figure:
    """What retrieval is worth by the longest run that a chunk shares, with intervals; above 0 it helps."""
    figure = go.Figure()
    buckets: Sequence[Mapping[str, Any]] = leakage["buckets"]
    for reference in ("baseline", "off"):
        shown = [bucket for bucket in buckets if reference in bucket["gain"]]
        if not shown:
            continue
        gains = [bucket["gain"][reference] for bucket in shown]
        figure.add_bar(
            x=[f"{label(bucket['tokens'])} tokens<br>{bucket['chunks']:,} chunks" for bucket in shown],
            y=[gain["nats"] for gain in gains],
            name=f"against {CURVE_NAMES[reference]}",
            marker={
                "color": ARM_COLORS[reference],
                "opacity": [0.3 if bucket["greyed"] else 0.85 for bucket in shown],
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [(gain["nats_ci"] or [0, gain["nats"]])[1] - gain["nats"] for gain in gains],
                "arrayminus": [gain["nats"] - (gain["nats_ci"] or [gain["nats"]])[0] for gain in gains],
                "color": GRAY,
                "thickness": 1.4,
            },
            hovertemplate="%{x}: %{y:+.4f} nats a token<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": GRAY, "width": 1})
    told = "baseline" if any("baseline" in bucket["gain"] for bucket in buckets) else "off"
    return _layout(
        described(figure, gains_words(buckets, told)),
        height=300,
        margin={"l": 60, "r": 12, "t": 30, "b": 48},
        yaxis_title="gain (nats a token)",
        barmode="group",
        legend=LEGEND,
        showlegend=True,
    )


def curve_figure(curves: Mapping[str, Any], kind: str) -> go.Figure:
    """Loss by database size ("database_sizes") or by k ("neighbor_counts"), beside off and baseline."""
    points: Sequence[Mapping[str, Any]] = curves[kind]
    by_size = kind == "database_sizes"
    x = [point["percent"] if by_size else point["k"] for point in points]
    figure = go.Figure()
    reference = curves["flat"][curves["reference"]]
    highs = [reference + (point["difference"]["bpb_ci"] or [0, 0])[1] for point in points]
    lows = [reference + (point["difference"]["bpb_ci"] or [0, 0])[0] for point in points]
    y = [point["bpb"] for point in points]
    figure.add_scatter(
        x=x,
        y=y,
        name=CURVE_NAMES["on"],
        mode="lines+markers",
        line={"color": ARM_COLORS["on"], "width": 2},
        marker={"size": 8},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - value for high, value in zip(highs, y, strict=True)],
            "arrayminus": [value - low for low, value in zip(lows, y, strict=True)],
            "color": GRAY,
            "thickness": 1.4,
        },
        hovertemplate="%{x}: %{y:.4f} bits per byte<extra></extra>",
    )
    for arm in ("baseline", "off"):
        if arm in curves["flat"]:
            figure.add_hline(
                y=curves["flat"][arm],
                line={"color": ARM_COLORS[arm], "width": 1.4, "dash": "dash"},
                annotation_text=CURVE_NAMES[arm],
                annotation_font_color=GRAY,
            )
    last = len(points) - 1
    figure.add_scatter(
        x=[x[last]],
        y=[y[last]],
        mode="markers",
        marker={"size": 16, "color": "rgba(0,0,0,0)", "line": {"color": ARM_COLORS["on"], "width": 2}},
        hoverinfo="skip",
    )
    figure.update_xaxes(type="log" if by_size else "linear", tickvals=x, ticktext=[label(v) for v in x])
    told = {f"{v}%" if by_size else f"k = {v}": value for v, value in zip(x, y, strict=True)}
    beside = {CURVE_NAMES.get(str(arm), str(arm)): value for arm, value in curves["flat"].items()}
    what = "database size" if by_size else "number of neighbors"
    return _layout(
        described(figure, points_words(what, told, beside)),
        height=380,
        margin={"l": 60, "r": 12, "t": 52, "b": 60},
        title={"text": chosen_words(points[last], curves, by_size), "font": {"size": 12}, "x": 0.02},
        sliders=[curve_slider(points, curves, by_size, ring=1)],  # the lines are no traces
        xaxis_title="% of the database" if by_size else "neighbors of each chunk (k)",
        yaxis_title="bits per byte",
        showlegend=False,
    )


def chosen_words(point: Mapping[str, Any], curves: Mapping[str, Any], by_size: bool) -> str:
    """What a point of a curve says, in one line."""
    what = f"{label(point['percent'])}% of the database" if by_size else f"k = {label(point['k'])}"
    low, high = point["difference"]["bpb_ci"] or (None, None)
    span = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
    against = label(CURVE_NAMES.get(curves["reference"], curves["reference"]))
    return f"{what}: {point['bpb']:.4f} bits per byte<br>{point['difference']['bpb']:+.4f}{span} to {against}"


def curve_slider(
    points: Sequence[Mapping[str, Any]], curves: Mapping[str, Any], by_size: bool, ring: int
) -> dict[str, Any]:
    """A slider over the measured points: it moves the ring (a trace of this number) and says the figures."""
    return {
        "active": len(points) - 1,
        "currentvalue": {"visible": False},
        "pad": {"t": 58},
        "steps": [
            {
                "label": f"{label(point['percent'])}%" if by_size else label(point["k"]),
                "method": "update",
                "args": [
                    {"x": [[point["percent"] if by_size else point["k"]]], "y": [[point["bpb"]]]},
                    {"title.text": chosen_words(point, curves, by_size)},
                    [ring],
                ],
            }
            for point in points
        ],
    }


def _layout(figure: go.Figure, **more: Any) -> go.Figure:
    figure.update_layout(
        template="none", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font=FONT, **more
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID, automargin=True)
    return figure
