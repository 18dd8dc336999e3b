"""How much of a text stands word for word in the database, and the loss by that share.

The share of a chunk is its longest common run of tokens, exactly. Overlap is measured for the chunk that is
predicted, against (a) the whole database ("was it leaked") and (b) the neighbors that are stored for it (ten
in RETRO section 2.6).

Is the gain copying? bpb(alpha) is the loss over the chunks whose longest common run covers at most alpha of
them (RETRO section 2.6 and 4.4): bpb(1) is the plain figure, and a gain that is left at small alpha is not
copied.

Here, too, are the spans that one text copied from its own neighbors (`copied_spans`, RETRO appendix E).

Shapes: W windows, L chunks of a window, Q query chunks, C chunk length, S tokens of the database, K
neighbors, R neighbor length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from retro_demo.corpus.store import Chunks
from retro_demo.evaluation.losses import Sums
from retro_demo.retrieval.suffix_array import prefix_ranks

PAD = 0
BLOCK = 4_000_000  # database tokens sorted at a time
PAIRS = 4_000_000  # token pairs compared at a time


def longest_in_text(chunks: np.ndarray, text: np.ndarray, *, block: int = BLOCK) -> np.ndarray:
    """Longest run of tokens of each chunk (Q, C), 0 = padding, that stands in text (S,): int (Q,).

    Exact. The suffixes of text and chunks are sorted by their first C tokens (prefix doubling); the
    text's suffix that shares most with a chunk's suffix is the nearest one above or below it. Long
    texts are sorted in blocks that overlap by C - 1 tokens, so no run is lost between two of them.
    """
    longest = np.zeros(len(chunks), dtype=np.int64)
    if not chunks.size:
        return longest
    step = max(block, chunks.shape[1])
    for start in range(0, len(text), step):
        part = text[start : start + step + chunks.shape[1] - 1]
        np.maximum(longest, _longest_in_block(chunks, part), out=longest)
    return longest


def _longest_in_block(chunks: np.ndarray, text: np.ndarray) -> np.ndarray:
    count, chunk_len = chunks.shape
    # a border after each chunk and padding match nothing in the text: -1 there, 0 here becomes -2
    queries = np.full((count, chunk_len + 1), -1, dtype=np.int64)
    queries[:, :-1] = np.where(chunks == PAD, -1, chunks)
    joined = np.concatenate([np.where(text == PAD, -2, text), [-2], queries.reshape(-1)])
    levels = list(prefix_ranks(joined, chunk_len))
    nearest = _nearest_of_text(levels[-1], len(text))
    places = np.arange(len(text) + 1, len(joined))
    best = np.zeros(len(places), dtype=np.int64)
    for beside in nearest:
        there = beside[places]
        common = _common_prefix(levels, places, np.maximum(there, 0))
        np.maximum(best, np.where(there >= 0, common, 0), out=best)
    return best.reshape(count, chunk_len + 1)[:, :-1].max(axis=1)


def _nearest_of_text(ranks: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each suffix the suffix of the text (the first `length` ones) next above and below; -1 = none."""
    order = np.argsort(ranks, kind="stable")
    index = np.arange(len(order))
    of_text = order < length
    above = np.maximum.accumulate(np.where(of_text, index, -1))
    below = np.minimum.accumulate(np.where(of_text, index, len(order))[::-1])[::-1]
    found = []
    for place in (above, below):
        there = (place >= 0) & (place < len(order))
        beside = np.empty(len(order), dtype=np.int64)
        beside[order] = np.where(there, order[np.where(there, place, 0)], -1)
        found.append(beside)
    return found[0], found[1]


def _common_prefix(levels: list[np.ndarray], ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tokens that the suffixes at `ones` and `others` (n,) begin with alike, by doubling down."""
    length = np.zeros(len(ones), dtype=np.int64)
    for level in reversed(range(len(levels))):
        ranks, width = levels[level], 1 << level
        here, there = ones + length, others + length
        inside = (here < len(ranks)) & (there < len(ranks))
        alike = inside & (ranks[np.where(inside, here, 0)] == ranks[np.where(inside, there, 0)])
        length += np.where(alike, width, 0)
    return length


def longest_in_neighbors(chunks: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Longest run of tokens of each chunk (Q, C) that stands in one of its neighbors (Q, K, R): int (Q,)."""
    longest = np.zeros(len(chunks), dtype=np.int64)
    rows = max(1, PAIRS // max(1, neighbors[0].size if len(neighbors) else 1))
    for start in range(0, len(chunks), rows):
        part = slice(start, start + rows)
        for ending in runs_ending(chunks[part, None], neighbors[part]):
            np.maximum(longest[part], ending.max(axis=(1, 2), initial=0), out=longest[part])
    return longest


def runs_ending(text: np.ndarray, source: np.ndarray) -> Iterator[np.ndarray]:
    """For each token t of text (..., T): how many tokens up to it equal those up to each of source (..., R).

    Yields T times an int16 (..., R), broadcast; padding equals nothing.
    """
    ending = np.zeros(np.broadcast_shapes(text.shape[:-1], source.shape[:-1]) + source.shape[-1:], np.int16)
    for place in range(text.shape[-1]):
        token = text[..., place, None]
        before = np.zeros_like(ending)
        before[..., 1:] = ending[..., :-1]
        ending = np.where((source == token) & (token != PAD), before + 1, 0).astype(np.int16)
        yield ending


def share_in_common(longest: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """r(C) of each chunk (Q, C): its longest common run over its length, in [0, 1]; 0 for an empty one."""
    return longest / np.maximum(1, (chunks != PAD).sum(axis=1))


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


LONG = 5  # from this many tokens on a span counts as copied (RETRO, appendix E)


@dataclass(frozen=True)
class Span:
    """Tokens start ... end - 1 of a text, equal to a neighbor's from `source` on.

    `chunk` is the chunk whose neighbor it is; the text stands in the chunk after it. `length` also
    counts equal tokens before that chunk, so it is at least end - start.
    """

    start: int
    end: int
    length: int
    chunk: int
    neighbor: int
    source: int


def suffixes(tokens: np.ndarray, neighbors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each token the longest suffix of the text, ending there, that its position could read.

    tokens (T,), neighbors (L, K, R), L = T // C: the tokens of chunk u + 1 are predicted by positions
    that read the neighbors of chunk u. Returns lengths, neighbor and place of its last token, each
    (T,); 0, -1, -1 where nothing equals. A tie goes to the better-ranked neighbor, then to its
    earlier place. Source: RETRO, appendix E (coloring by LCP with RET(C_{u-1})).
    """
    length, which, place = (np.full(len(tokens), value) for value in (0, -1, -1))
    num_chunks, num_neighbors, width = neighbors.shape
    chunk_len = width // 2
    for chunk in range(num_chunks if num_neighbors else 0):
        first = (chunk + 1) * chunk_len
        if first >= len(tokens):
            break  # the text ends with the chunk
        rows = np.arange(first, min(first + chunk_len, len(tokens)))
        begin = max(0, first - width)  # a neighbor is that long: nothing before can matter
        text = tokens[begin : first + chunk_len]
        runs = np.stack(list(runs_ending(text, neighbors[chunk])))  # (t, K, R)
        runs = runs[first - begin :].reshape(len(rows), -1)
        best = runs.argmax(axis=1)
        length[rows] = runs[np.arange(len(rows)), best]
        found = length[rows] > 0
        which[rows] = np.where(found, best // width, -1)
        place[rows] = np.where(found, best % width, -1)
    return length, which, place


def copied_spans(tokens: np.ndarray, neighbors: np.ndarray) -> list[Span]:
    """The copied stretches of a text, in order; they never overlap.

    A span ends where its suffix grows no further, and reaches back to the border of its chunk at
    most: what stands before was written with other neighbors in view.
    """
    chunk_len = neighbors.shape[2] // 2
    lengths, which, places = suffixes(tokens, neighbors)
    spans: list[Span] = []
    end = len(tokens)
    while end > chunk_len:
        length, border = int(lengths[end - 1]), (end - 1) // chunk_len * chunk_len
        if not length:
            end -= 1
            continue
        start = max(end - length, border)
        source = int(places[end - 1]) - (end - 1 - start)
        spans.append(Span(start, end, length, border // chunk_len - 1, int(which[end - 1]), source))
        end = start
    return spans[::-1]


def copy_ratio(spans: Sequence[Span], first: int, last: int, least: int = LONG) -> float:
    """Share of the tokens first ... last - 1 that lie in spans of at least `least` tokens."""
    if last <= first:
        return 0.0
    inside = [max(0, min(span.end, last) - max(span.start, first)) for span in spans if span.length >= least]
    return sum(inside) / (last - first)


def distinct(tokens: Sequence[int], n: int) -> float:
    """Different n-grams over all n-grams of a text: 1 where nothing repeats; 1 for a shorter text."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def shown_ahead(tokens: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """(L, K): the share of each next chunk that stands in one piece in a neighbor of the chunk before.

    1.0 means that the neighbor holds the very text that is still to be written. The longest common
    run over the length of the next chunk; 0 where the text ends with the chunk.
    """
    num_chunks, num_neighbors, width = neighbors.shape
    chunk_len = width // 2
    shares = np.zeros((num_chunks, num_neighbors))
    for chunk in range(num_chunks):
        following = tokens[(chunk + 1) * chunk_len : (chunk + 2) * chunk_len]
        for ending in runs_ending(following, neighbors[chunk]):
            np.maximum(shares[chunk], ending.max(axis=-1) / len(following), out=shares[chunk])
    return shares
