"""What a picture shows, in a sentence with its figures: for those who cannot see it. No plotly, no gradio.

Each function takes what its figure is drawn from; the figure carries the sentence (figures.described).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def map_words(after: np.ndarray, moved: float) -> str:
    """Where documents lie now (N, 2), and how far they moved on average."""
    (left, low), (right, high) = after.min(axis=0), after.max(axis=0)
    return (
        f"Map of {len(after)} documents, the first axis from {left:.2f} to {right:.2f}, the second from "
        f"{low:.2f} to {high:.2f}; since the first re-index they moved by {moved:.2f} on average."
    )


def agreement_words(relevance: np.ndarray, mass: np.ndarray, rho: float | None) -> str:
    """Relevance (M,) against the share of attention (M,) of each piece of evidence."""
    told = ", ".join(
        f"piece {place} f {f:.4f} and {share:.1%}"
        for place, (f, share) in enumerate(zip(relevance, mass, strict=True), 1)
    )
    agree = "" if rho is None else f"; their rank correlation is {rho:+.2f}"
    return f"Relevance and share of attention of {len(mass)} pieces of evidence: {told}{agree}."


def heat_words(weights: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Attention (tokens written, tokens of the evidence)."""
    said = f"Attention of {len(rows)} tokens of the target to {len(columns)} tokens of the evidence"
    if not weights.size:
        return f"{said}."
    row, column = divmod(int(weights.argmax()), weights.shape[1])
    return (
        f"{said}: the highest weight is {weights[row, column]:.4f}, of “{rows[row]}” on “{columns[column]}”; "
        f"a token reads {weights.sum(axis=1).mean():.1%} of its attention here on average."
    )
