"""Is the gain copying? Losses by how much of each chunk stands word for word in the database.

bpb(alpha) is the loss over the chunks whose longest common run covers at most alpha of them (RETRO
section 2.6 and 4.4): bpb(1) is the plain figure, and a gain that is left at small alpha is not copied.
Overlap is measured for the chunk that is predicted, against (a) the whole database: "was it leaked",
and (b) its own ten nearest neighbors, as the paper does.

Shapes: W windows, L chunks of a window, C chunk length.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retro_demo.arm_figures import Sums
from retro_demo.corpus import Chunks
from retro_demo.overlap import longest_in_neighbors, longest_in_text, share_in_common

ALPHAS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
ALPHA_NAMES = ("0", "1/16", "1/8", "1/4", "1/2", "1")
BUCKETS = (("0", 0, 0), ("1-4", 1, 4), ("5-8", 5, 8), ("9+", 9, 10**9))
FEW_CHUNKS = 30  # a bin with fewer chunks is greyed
CURVES = ("baseline", "off", "on")


def overlaps(
    chunks: Chunks, measured: np.ndarray, database: np.ndarray, neighbor_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Longest common runs, in tokens, of the measured chunk ids (W, L - 1), -1 = nothing: (W, L - 1) each.

    database: ids of the chunks in the index, as it is; neighbor_ids: (N, stored) of the retriever.
    """
    there = measured >= 0
    own = chunks.tokens[measured[there]]
    ids = np.sort(database)
    text = chunks.tokens[ids]
    # a border behind every chunk that is not followed by its own next one in the index
    ends = ~(chunks.has_continuation(ids) & np.isin(ids + 1, ids))
    lines = np.concatenate([text, np.zeros((len(text), 1), dtype=text.dtype)], axis=1).reshape(-1)
    kept = np.ones((len(text), text.shape[1] + 1), dtype=bool)
    kept[:, -1] = ends
    found = {
        "database": longest_in_text(own, lines[kept.reshape(-1)]),
        "neighbors": longest_in_neighbors(own, chunks.with_continuation(neighbor_ids[measured[there]])),
    }
    out = {}
    for name, longest in found.items():
        out[name] = np.zeros(measured.shape, dtype=np.int64)
        out[name][there] = longest
    return out


def leakage(sums: Sums, longest: np.ndarray, tokens: np.ndarray, arms: list[str]) -> dict[str, Any]:
    """The curve, its histogram and the gain by bucket, for the longest runs (count, L - 1) of chunks.

    tokens (>= count, L - 1, C) are those chunks.
    """
    tokens = tokens[: sums.count]
    there = (tokens != 0).any(axis=-1)
    share = share_in_common(longest.reshape(-1), tokens.reshape(-1, tokens.shape[-1])).reshape(longest.shape)
    below = [there & (share <= alpha) for alpha in ALPHAS]
    counts = [int(chunks.sum()) for chunks in below]
    curves = [arm for arm in CURVES if arm in arms]
    return {
        "alpha": list(ALPHAS),
        "alpha_names": list(ALPHA_NAMES),
        "chunks": counts,
        "chunks_per_bin": np.diff([0, *counts]).tolist(),
        "greyed": [count < FEW_CHUNKS for count in counts],
        "bpb": {arm: [_value(sums.bpb(arm, chunks).value) for chunks in below] for arm in curves},
        "mean_share": float(share[there].mean()) if there.any() else 0.0,
        "buckets": [_bucket(sums, there, longest, bucket, arms) for bucket in BUCKETS],
    }


def _bucket(
    sums: Sums, there: np.ndarray, longest: np.ndarray, bucket: tuple[str, int, int], arms: list[str]
) -> dict[str, Any]:
    """What retrieval is worth on the chunks whose longest run has so many tokens."""
    name, low, high = bucket
    chunks = there & (longest >= low) & (longest <= high)
    count = int(chunks.sum())
    gains: dict[str, Any] = {}
    if count and "on" in arms:
        gains = {
            reference: sums.difference(reference, "on", chunks).to_json()
            for reference in ("baseline", "off", "shuffled")
            if reference in arms
        }
    return {"tokens": name, "chunks": count, "greyed": count < FEW_CHUNKS, "gain": gains}


def _value(value: float) -> float | None:
    """A figure for JSON: nothing where no chunk is left."""
    return None if np.isnan(value) else value
