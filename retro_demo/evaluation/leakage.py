"""Is the gain copying? Losses by how much of each chunk stands word for word in the database.

bpb(alpha) is the loss over the chunks whose longest common run covers at most alpha of them (RETRO
section 2.6 and 4.4): bpb(1) is the plain figure, and a gain that is left at small alpha is not copied.
Overlap is measured for the chunk that is predicted, against (a) the whole database: "was it leaked",
and (b) the neighbors that are stored for it (ten in the paper).

Shapes: W windows, L chunks of a window, C chunk length.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from retro_demo.corpus.corpus import Chunks
from retro_demo.evaluation.arm_figures import Sums
from retro_demo.evaluation.overlap import longest_in_neighbors, longest_in_text, share_in_common

ALPHAS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
ALPHA_NAMES = ("0", "1/16", "1/8", "1/4", "1/2", "1")
BUCKETS = (("0", 0, 0), ("1-4", 1, 4), ("5-8", 5, 8), ("9+", 9, 10**9))
FEW_CHUNKS = 30  # a bin with fewer chunks is greyed
CURVES = ("baseline", "off", "on")
NOT_FOUND_YET = -1


class Overlaps:
    """Longest common runs, in tokens, of measured chunks; each is found once, however often it is asked for.

    measured (W, L - 1): chunk ids, -1 = nothing. database: ids of the chunks in the index, as it is.
    """

    def __init__(self, chunks: Chunks, measured: np.ndarray, database: np.ndarray) -> None:
        self._chunks, self._measured, self._database = chunks, measured, database
        self._neighbors = np.full(measured.shape, NOT_FOUND_YET, dtype=np.int64)

    def of(self, count: int, neighbor_ids: np.ndarray) -> dict[str, np.ndarray]:
        """For the first `count` windows: (count, L - 1) each; neighbor_ids (N, stored) of the retriever."""
        measured = self._measured[:count]
        new = (measured >= 0) & (self._neighbors[:count] == NOT_FOUND_YET)
        own, chunks = measured[new], self._chunks
        shown = chunks.with_continuation(neighbor_ids[own])
        self._neighbors[:count][new] = longest_in_neighbors(chunks.tokens[own], shown)
        neighbors = np.where(measured >= 0, self._neighbors[:count], 0)
        return {"database": self._in_database[:count], "neighbors": neighbors}

    @cached_property
    def _in_database(self) -> np.ndarray:
        """Those of all windows at once: it is the database that takes long to sort."""
        chunks, ids = self._chunks, np.sort(self._database)
        text = chunks.tokens[ids]
        # a border behind every chunk that is not followed by its own next one in the index
        ends = ~(chunks.has_continuation(ids) & np.isin(ids + 1, ids))
        lines = np.concatenate([text, np.zeros((len(text), 1), dtype=text.dtype)], axis=1).reshape(-1)
        kept = np.ones((len(text), text.shape[1] + 1), dtype=bool)
        kept[:, -1] = ends
        there = self._measured >= 0
        longest = np.zeros(there.shape, dtype=np.int64)
        longest[there] = longest_in_text(chunks.tokens[self._measured[there]], lines[kept.reshape(-1)])
        return longest


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
