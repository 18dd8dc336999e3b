"""Relevance against hubs: how far a pair stands out from what is near to each of its two anyway.

Some passages are near to everything, and some languages to each other. The margin of a pair is 2 f - r - r
(cross-domain similarity local scaling; Lample et al. 2018): f its relevance, r how near a passage is on
average to its few nearest in the other one's language. Averages go by `vectors.narrow`, f itself is exact.

Shapes: P passages, L languages, Q queries, C candidates, K found of each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from retro_demo.evidence.vectors import Vectors, WordVectors, narrow
from retro_demo.retrieval.neighbors import SCORE_STEP, Neighbors

SCORES_AT_ONCE = 1 << 24  # of queries with candidates, written out
MORE = 24  # than are wanted are found by the sketch and scored exactly
WRITTEN_AT_ONCE = 32


def nearness(vectors: Vectors, language: np.ndarray, count: int, who: np.ndarray, k: int) -> np.ndarray:
    """float32 (P, L): mean relevance of each passage to its k nearest of each language, among `who` (P,).

    language (P,), of `count`. 0 for a language that none of them has.
    """
    small = torch.from_numpy(np.ascontiguousarray(narrow(vectors)))
    out = np.zeros((len(small), count), dtype=np.float32)
    for number in np.unique(language[who]):
        columns = small[torch.from_numpy(np.flatnonzero(who & (language == number)))]
        size = max(1, SCORES_AT_ONCE // len(columns))
        for start in range(0, len(small), size):
            scores = small[start : start + size] @ columns.T
            best = scores.topk(min(k, len(columns)), dim=1, sorted=False).values
            out[start : start + size, number] = best.mean(dim=1).numpy()
    return out


def search_by_margin(
    vectors: Vectors,
    own: np.ndarray,
    among: np.ndarray,
    k: int,
    forbidden: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    near: np.ndarray | None,
    language: np.ndarray,
) -> tuple[Neighbors, np.ndarray]:
    """The k candidates `among` (C,) with the largest margin of each passage `own` (Q,), and relevance (Q, K).

    Word vectors are searched by their sketch, MORE candidates than are wanted, and these are scored exactly:
    one that the sketch ranks far too low is missed. Relevance is a whole number of SCORE_STEP.
    forbidden(ids (q,), candidates (1, C)) says which may not be found; near: `nearness`, None: the margin is
    the relevance itself. Written out at once are SCORES_AT_ONCE scores, never those of all pairs.
    """
    small = narrow(vectors)
    columns = torch.from_numpy(np.ascontiguousarray(small[among]))
    ids = np.full((len(own), k), -1, dtype=np.int64)
    margins, relevance = (np.full((len(own), k), -np.inf, dtype=np.float32) for _ in range(2))
    size = max(1, SCORES_AT_ONCE // max(1, len(among)))
    wanted = min(len(among), k if isinstance(vectors, np.ndarray) else k + MORE)
    near_others = None if near is None else np.ascontiguousarray(near[among].T)  # (L, C)
    for start in range(0, len(own), size):
        rows = own[start : start + size]
        scores = (torch.from_numpy(small[rows]) @ columns.T).numpy()
        if near is not None and near_others is not None:
            scores *= 2
            scores -= near[rows].take(language[among], axis=1)
            scores -= near_others[language[rows]]
        scores[forbidden(rows, among[None])] = -np.inf
        best = torch.from_numpy(scores).topk(wanted, dim=1)
        found = np.where(best.values.isfinite().numpy(), among[best.indices.numpy()], -1)
        exact = _exactly(vectors, rows, found, best.values.numpy(), near is None)
        margin = exact = np.where(found < 0, -np.inf, np.rint(exact / SCORE_STEP) * SCORE_STEP)
        if near is not None:
            other = np.where(found < 0, 0, found)
            margin = 2 * exact - near[rows[:, None], language[other]] - near[other, language[rows[:, None]]]
            margin = np.rint(margin / SCORE_STEP)
        order = np.lexsort((found, -margin), axis=1)[:, :k]
        block = (slice(start, start + size), slice(0, order.shape[1]))
        for table, values in ((ids, found), (margins, margin), (relevance, exact)):
            table[block] = np.take_along_axis(values, order, axis=1)
    return Neighbors(ids, margins), relevance


def _exactly(
    vectors: Vectors, rows: np.ndarray, found: np.ndarray, scores: np.ndarray, are_cosines: bool
) -> np.ndarray:
    """Relevance (Q, K) of what was found."""
    if isinstance(vectors, WordVectors):
        parts = [
            vectors.against(
                vectors.written_out(rows[i : i + WRITTEN_AT_ONCE]), found[i : i + WRITTEN_AT_ONCE]
            )
            for i in range(0, len(rows), WRITTEN_AT_ONCE)
        ]
        return np.concatenate(parts)
    if are_cosines:
        return scores
    return np.einsum("qd,qkd->qk", vectors[rows], vectors[np.where(found < 0, 0, found)])
