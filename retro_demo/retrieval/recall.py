"""How much of what an exact search finds an index finds: measured on the corpus itself, and tuned to it.

Source: the recall that Borgeaud et al. 2022 and InstructRetro (Wang et al. 2023) state of their indexes.

Shapes: Q queries, K neighbors, E vector width, N chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retro_demo.retrieval.index import SCAN_ROWS, VectorIndex, scan, search_allowed
from retro_demo.retrieval.index_parts import blocks_of, drawn, has_vector
from retro_demo.retrieval.neighbors import Neighbors

K = 4
QUERIES = 256
AIM = 0.965  # of the sample, so that 0.95 holds beyond it: on a million chunks 0.95 here was 0.938 for copies
FEWEST_PROBES = 16
TIE = 3e-6  # scores are rounded to 1e-6

Excluded = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recall:
    """recall: share of the k nearest allowed chunks by exact search that the index finds, a tie counting.

    self_recall: share of the stored chunks that come first, or tie, where they are looked for
    themselves. queries: how many chunks were looked for. probes: inverted lists looked into, 0 = all.
    """

    recall: float
    self_recall: float
    k: int
    queries: int
    probes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recall_words(values: dict[str, Any] | None) -> str:
    """A measured recall in a sentence for people; None: it was never measured."""
    if values is None:
        return "How much of an exact search its index finds was not measured when it was built."
    if not values["queries"]:
        return "Its index is empty: no chunk has a vector."
    return (
        f"Of the {values['k']} nearest chunks that an exact search finds, the index finds "
        f"{percent(values['recall'])}, and {percent(values['self_recall'])} of its chunks find themselves "
        f"(measured on {values['queries']} chunks)."
    )


def percent(share: float) -> str:
    """A share for people: 0% is nothing and 100% is all; near these, one place more."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{min(max(share, 0.001), 0.999):.{0 if 0.1 <= share <= 0.99 else 1}%}"


def measure_recall(
    index: VectorIndex, vectors: np.ndarray, rows: np.ndarray, excluded: Excluded, *, tune: bool
) -> Recall:
    """The recall of an index of the rows (n,) of vectors (N, E), which may lie on disk.

    All rows have a vector. Looked for are chunks drawn from all N, or from the rows where none of these has
    a vector, without what `excluded` (own (q,), candidates (q, k') -> bool) keeps from them. An index of
    nothing lacks nothing. `tune`: set the inverted lists to look into to the fewest that reach AIM.
    """
    if not len(rows):
        return Recall(1.0, 1.0, K, 0, index.probes)
    own = drawn(len(vectors), QUERIES, seed=0)
    own = own[has_vector(vectors[own])]
    if not len(own):
        own = rows[drawn(len(rows), QUERIES, seed=0)]
    sample = np.asarray(vectors[own])

    def exclude(places: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return excluded(own[places], candidates)

    exact = scan(_stored(vectors, rows), sample, K, lambda places, ids: (ids >= 0) & ~exclude(places, ids))
    wanted = exact.ids >= 0
    least = np.where(wanted, exact.scores, np.inf).min(axis=1, keepdims=True)

    def recall() -> float:
        found = search_allowed(index, sample, K, exclude)
        hits = wanted & (_true_scores(vectors, sample, found) >= least - TIE)
        return float(hits.sum() / wanted.sum()) if wanted.any() else 1.0

    if tune and index.lists:
        fewest = min(FEWEST_PROBES, index.lists)
        index.probe(fewest)
        while (reached := recall()) < AIM and index.probes < index.lists:
            index.probe(min(-(-3 * index.probes // 2), index.lists))
    else:
        reached = recall()
    stored = np.isin(own, rows)
    alone = _true_scores(vectors, sample[stored], index.search(sample[stored], 1))[:, 0]
    themselves = alone >= (sample[stored] ** 2).sum(axis=1) - TIE
    return Recall(reached, float(themselves.mean()) if len(themselves) else 1.0, K, len(own), index.probes)


def _stored(vectors: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows and their vectors, block by block."""
    for block in blocks_of(len(rows), SCAN_ROWS):
        yield rows[block], np.asarray(vectors[rows[block]])


def _true_scores(vectors: np.ndarray, queries: np.ndarray, found: Neighbors) -> np.ndarray:
    """The cosines (Q, K) of queries (Q, E) and what was found, by the vectors as they were indexed."""
    there = np.asarray(vectors[np.maximum(found.ids, 0).reshape(-1)])
    there = there.reshape(*found.ids.shape, vectors.shape[1])
    scores = np.einsum("qe,qke->qk", queries, there)
    return np.where(found.ids >= 0, scores, -np.inf)
