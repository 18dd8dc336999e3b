"""A suffix array: where a run of tokens stands in a long row of tokens, and how often.

The suffixes are sorted by prefix doubling (Karp, Miller and Rosenberg 1972; Manber and Myers 1990), which
Evaluate uses, too, for the longest runs in common (evaluation/copied_text.py).

Shapes: S tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator

import numpy as np

TOKEN = np.dtype(">u4")  # rows of bytes in this form are ordered as the rows of their numbers


def prefix_ranks(tokens: np.ndarray, reach: int) -> Iterator[np.ndarray]:
    """Ranks int32 (S,) of all suffixes by their first 1, 2, 4, ... tokens, up to at least `reach` of them.

    Equal prefixes have equal ranks, and the order is that of the tokens' numbers. It ends early where all
    prefixes differ. The last level orders the suffixes.
    """
    ranks = np.unique(tokens, return_inverse=True)[1].astype(np.int32)
    yield ranks
    width = 1
    while width < reach and int(ranks.max(initial=0)) + 1 < len(ranks):
        pairs = ranks.astype(np.int64) * (len(ranks) + 1)
        pairs[:-width] += ranks[width:]
        pairs[:-width] += 1  # behind the end: before everything else
        ranks = np.unique(pairs, return_inverse=True)[1].astype(np.int32)
        yield ranks
        width *= 2


class SuffixArray:
    """All suffixes of tokens (S,), 0 or more each, in the order of their first `reach` tokens.

    Only those that begin within the first `count` tokens are listed: of a long row that is sorted block by
    block, each block is given with `reach` tokens of the next one, and no place is found twice.
    """

    def __init__(self, tokens: np.ndarray, reach: int, count: int | None = None) -> None:
        self.reach = reach
        ranks = deque(prefix_ranks(tokens, reach), maxlen=1).pop()  # one level at a time is held
        order = np.argsort(ranks, kind="stable").astype(np.int32)
        self.order = order if count is None else order[order < count]
        self._bytes = tokens.astype(TOKEN).tobytes()

    def find(self, tokens: np.ndarray) -> np.ndarray:
        """Where a row of 1 to `reach` tokens begins, int32 (n,), all places in no order."""
        size = TOKEN.itemsize
        wanted = tokens.astype(TOKEN).tobytes()

        def prefix(place: np.int32) -> bytes:
            start = size * int(place)
            return self._bytes[start : start + len(wanted)]

        low = bisect_left(self.order, wanted, key=prefix)
        high = bisect_right(self.order, wanted, lo=low, key=prefix)
        return self.order[low:high]
