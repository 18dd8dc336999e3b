"""Finds documents that are copies or near-copies of each other, by their token ids.

Near-copies are what RETRO's authors remove from their training data (Borgeaud et al. 2022, section
2.6): a Jaccard similarity of the sets of 13-grams of 0.8 or more. This module does not know text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from retro_demo.corpus.store import root_of

GRAM = 13
THRESHOLD = 0.8
SKETCH = 128  # smallest gram hashes kept of each document
# Of the 128 smallest hashes of two sets' union, each is in both with the probability of their
# Jaccard similarity: 102 +- 4.5 at 0.8. Fewer than 77 (0.6) come once in 10 million such pairs.
MIN_OVERLAP = 0.6
# Where more documents share a gram, each is compared with the first and the next 31 of them only,
# which still joins a family of near-copies without trying all of its pairs.
CROWD = 32
CACHED_GRAMS = 16_000_000  # 128 MB of hashes kept while pairs are compared
# Of a multilinear hash modulo 2 ** 64, fixed for determinism.
WEIGHTS = np.random.default_rng(GRAM).integers(1 << 63, size=GRAM, dtype=np.uint64) * 2 + 1


@dataclass(frozen=True)
class Duplicates:
    """Which documents are copies of each other.

    cluster: int32 (D,), equal for copies and near-copies, numbered from 0 by first appearance.
    exact: how many documents have the very tokens of an earlier one.
    near: how many more documents joined an earlier cluster as near-copies.
    pairs: (document, later document, Jaccard similarity), sorted: one for each joining, so that
        there are `exact + near` of them, which link each cluster together.
    """

    cluster: np.ndarray
    exact: int
    near: int
    pairs: list[tuple[int, int, float]]


def find_duplicates(tokens: Sequence[np.ndarray] | Sequence[Sequence[int]]) -> Duplicates:
    """Exact and near-duplicates among D documents of token ids, each compared with all others.

    Similarities are computed on the full sets of 64-bit gram hashes; a pair that is just above the
    threshold is overlooked with a probability below 1e-6. Documents of fewer than 13 tokens are
    compared for equality only.
    """
    arrays = [np.asarray(ids, dtype=np.int32) for ids in tokens]
    parent = list(range(len(arrays)))
    pairs: list[tuple[int, int, float]] = []
    originals: dict[bytes, int] = {}
    for index, ids in enumerate(arrays):
        first = originals.setdefault(hashlib.blake2b(ids.tobytes()).digest(), index)
        if first != index:
            parent[index] = first
            pairs.append((first, index, 1.0))
    exact = len(pairs)

    jaccard_of = _jaccard(arrays)
    for left, right in _candidates(arrays, list(originals.values())):
        left_root, right_root = root_of(parent, left), root_of(parent, right)
        if left_root != right_root and (jaccard := jaccard_of(left, right)) >= THRESHOLD:
            parent[max(left_root, right_root)] = min(left_root, right_root)
            pairs.append((left, right, jaccard))

    roots = np.array([root_of(parent, index) for index in range(len(arrays))], dtype=np.int64)
    # A root is the first of its cluster, so the order of roots is that of first appearance.
    cluster = np.unique(roots, return_inverse=True)[1].astype(np.int32)
    return Duplicates(cluster, exact=exact, near=len(pairs) - exact, pairs=sorted(pairs))


def _gram_hashes(ids: np.ndarray) -> np.ndarray:
    """int32 (T,) -> uint64 (at most T - 12,): the sorted set of the hashes of all 13-grams."""
    if len(ids) < GRAM:
        return np.empty(0, dtype=np.uint64)
    mixed = np.correlate(ids.astype(np.uint64) + np.uint64(1), WEIGHTS)
    # The lower bits of a multilinear hash are weak, but sketches pick by the whole value: mix it
    # (the finalizer of splitmix64).
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.unique(mixed ^ (mixed >> np.uint64(31)))


def _jaccard(arrays: list[np.ndarray]) -> Callable[[int, int], float]:
    """The function that compares two documents by their indices."""
    num_tokens = sum(map(len, arrays))

    @lru_cache(maxsize=max(64, CACHED_GRAMS * len(arrays) // max(num_tokens, 1)))
    def grams(index: int) -> np.ndarray:
        return _gram_hashes(arrays[index])

    def jaccard(left: int, right: int) -> float:
        both = np.sort(np.concatenate([grams(left), grams(right)]))
        shared = np.count_nonzero(both[1:] == both[:-1])
        return float(shared / (len(both) - shared))

    return jaccard


def _candidates(arrays: list[np.ndarray], documents: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs (left < right) of `documents`, sorted, whose sketches overlap by MIN_OVERLAP."""
    ranks, sizes = _sketches([arrays[index] for index in documents])
    needed = np.maximum(np.ceil(MIN_OVERLAP * sizes), 1).astype(np.int64)
    lefts, rights = _pairs_with_a_rare_gram(ranks, sizes, prefix=sizes - needed + 1)
    in_left = np.zeros(ranks.max(initial=0) + 1, dtype=bool)
    bounds = np.flatnonzero(np.diff(lefts, prepend=-1, append=-1))
    for start, end in pairwise(bounds):
        left, others = lefts[start], rights[start:end]
        shared = ranks[left][ranks[left] > 0]
        in_left[shared] = True
        overlap = in_left[ranks[others]].sum(axis=1)
        in_left[shared] = False
        for right in others[overlap >= np.maximum(needed[left], needed[others])]:
            yield documents[left], documents[right]


def _sketches(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The SKETCH smallest gram hashes of each document, as ranks of how rare they are.

    -> int32 (D, SKETCH), each row rising: 0 for a hash that no other sketch has and for none at
    all, then 1 for the rarest of the shared ones; int64 (D,): how many hashes there are.
    """
    sketches = [_gram_hashes(ids)[:SKETCH].copy() for ids in arrays]
    sizes = np.array([len(sketch) for sketch in sketches], dtype=np.int64)
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *sketches])
    del sketches
    ordered = np.sort(hashes)
    shared, counts = np.unique(ordered[1:][ordered[1:] == ordered[:-1]], return_counts=True)
    by_rarity = np.empty(len(shared), dtype=np.int32)
    by_rarity[np.argsort(counts, kind="stable")] = np.arange(1, len(shared) + 1)
    places = np.searchsorted(shared, hashes)
    is_shared = np.searchsorted(shared, hashes, side="right") > places
    flat = np.zeros(len(hashes), dtype=np.int32)
    flat[is_shared] = by_rarity[places[is_shared]]
    ranks = np.zeros((len(arrays), SKETCH), dtype=np.int32)
    ranks[np.arange(SKETCH) >= SKETCH - sizes[:, None]] = flat
    ranks.sort(axis=1)
    return ranks, sizes


def _pairs_with_a_rare_gram(
    ranks: np.ndarray, sizes: np.ndarray, *, prefix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted pairs (left < right) that share one of their `prefix` rarest hashes; int64 (P,) each.

    ranks (D, SKETCH), sizes (D,), prefix (D,). Two sketches that share MIN_OVERLAP of the larger
    one share one of the rarest hashes of each (the prefix filter of Chaudhuri, Ganti and Kaushik
    2006). Boilerplate common to many documents stays outside the prefixes and suggests no pairs.
    """
    num_documents = len(ranks)
    ends = (SKETCH - sizes + prefix)[:, None]  # rows are filled up at their start
    holders, columns = np.nonzero((np.arange(SKETCH) < ends) & (ranks > 0))
    values = ranks[holders, columns]
    order = np.argsort(values, kind="stable")
    values, holders = values[order], holders[order]
    first = holders[np.searchsorted(values, values)]
    codes = np.unique(first * num_documents + holders)
    for step in range(1, CROWD):
        same = np.flatnonzero(values[step:] == values[:-step])
        if not len(same):
            break
        codes = np.union1d(codes, holders[same] * num_documents + holders[same + step])
    lefts, rights = np.divmod(codes, max(num_documents, 1))
    return lefts[lefts < rights], rights[lefts < rights]
