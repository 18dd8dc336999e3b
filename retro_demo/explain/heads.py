"""What each head of each layer read of the neighbors of a text: shares, and a small map of where it looked.

A head is known by its pattern (Clark et al. 2019; Vig 2019): one that reads along the continuation draws a
diagonal, one that always looks at the same place an upright line, one that abstains leaves its share to the
null key. Shapes as in tracing.py: L chunks, C chunk length, K neighbors, R = 2 C, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.explain.tracing import Trace, reading_tokens

FINE, COARSE, MANY = 8, 4, 64  # bins of a side of a small map; coarse ones for more heads than that


@dataclass(frozen=True)
class Head:
    """One head, over all tokens that read neighbors.

    layer: as in the trace; number: of the head, from 1; shares (K): of its attention, on each neighbor; null:
    on nothing, None where there is no null key; small (rows, K, columns): shares by the place of the
    reading token in its chunk and the place in the neighbor, N and then F.
    """

    layer: int
    number: int
    shares: list[float]
    null: float | None
    small: np.ndarray


def heads(trace: Trace) -> list[list[Head]]:
    """The heads of each layer; empty where nothing was read."""
    weights = trace.weights.numpy()  # (layers, L, H, C, K, R)
    reads = reading(trace)
    if not reads.any():
        return []
    layers, _, count, *_ = weights.shape
    bins = FINE if layers * count <= MANY else COARSE
    at = reads[None, :, None, :, None, None]
    read = np.where(at, weights, 0)
    by_place = read.sum(axis=1) / np.maximum(reads.sum(axis=0), 1)[:, None, None]
    shares = read.sum(axis=(1, 3, 5)) / reads.sum()  # (layers, H, K)
    null = 1 - shares.sum(axis=-1) if trace.about.get("null_slot") else None
    small = _pooled(by_place, bins)  # (layers, H, rows, K, columns)
    return [
        [
            Head(
                layer,
                h + 1,
                shares[row, h].tolist(),
                None if null is None else max(0.0, float(null[row, h])),
                small[row, h],
            )
            for h in range(count)
        ]
        for row, layer in enumerate(trace.layers)
    ]


def reading(trace: Trace) -> np.ndarray:
    """Which rows of the weights belong to a token that read a neighbor, bool (L, C)."""
    reads = np.zeros((len(trace.neighbors), trace.chunk_len), dtype=bool)
    for chunk, found in enumerate(trace.neighbors):
        reads[chunk, : len(reading_tokens(trace, chunk))] = bool(found)
    return reads


def _pooled(by_place: np.ndarray, bins: int) -> np.ndarray:
    """(layers, H, C, K, R) -> (layers, H, rows, K, columns): the mean over rows of what columns add up to."""
    rows = np.array_split(np.arange(by_place.shape[2]), min(bins, by_place.shape[2]))
    columns = np.array_split(np.arange(by_place.shape[4]), min(bins, by_place.shape[4]))
    pooled = np.stack([by_place[:, :, part].mean(axis=2) for part in rows], axis=2)
    return np.stack([pooled[..., part].sum(axis=-1) for part in columns], axis=-1)


def head_rows(trace: Trace) -> list[dict[str, Any]]:
    """One row for each head: its share of attention on each neighbor, and on nothing (null: no null key)."""
    return [
        {
            "layer": one.layer,
            "head": one.number,
            "neighbors": [round(share, 5) for share in one.shares],
            "nothing": None if one.null is None else round(one.null, 5),
        }
        for layer in heads(trace)
        for one in layer
    ]
