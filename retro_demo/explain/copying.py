"""What a text has in common with the neighbors that it could read: copied spans, and repetition.

Token ids in, numbers out. It knows neither models nor text.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_demo.evaluation.overlap import runs_ending

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
