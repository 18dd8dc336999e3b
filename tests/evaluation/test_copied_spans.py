"""Copied spans against a search that tries everything."""

from __future__ import annotations

import numpy as np
import pytest

from retro_demo.evaluation.copied_text import (
    Span,
    copied_spans,
    copy_ratio,
    distinct,
    runs_ending,
    shown_ahead,
    suffixes,
)

C = 4


def occurs(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_suffix_is_that_of_a_search_that_tries_every_length(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 4, size=4 * C + 2)
    neighbors = rng.integers(0, 4, size=(4, 2, 2 * C))

    lengths, which, places = suffixes(tokens, neighbors)

    for t in range(C, len(tokens)):
        found = neighbors[t // C - 1]
        longest = max(
            (
                n
                for n in range(1, 2 * C + 1)
                for one in found
                if n <= t + 1
                and 0 not in tokens[t + 1 - n : t + 1]
                and occurs(tokens[t + 1 - n : t + 1].tolist(), one.tolist())
            ),
            default=0,
        )
        assert lengths[t] == longest
        if longest:
            end = places[t] + 1
            assert (found[which[t], end - longest : end] == tokens[t + 1 - longest : t + 1]).all()
    assert lengths[:C].max() == 0


def test_a_planted_copy_is_found_with_its_neighbor_and_its_place():
    tokens = np.arange(10, 10 + 3 * C)
    neighbors = np.full((3, 2, 2 * C), 5)
    neighbors[0, 1, 3:6] = tokens[C + 1 : C + 4]

    assert copied_spans(tokens, neighbors) == [Span(C + 1, C + 4, 3, 0, 1, 3)]


def test_a_copy_that_begins_before_its_chunk_counts_whole_but_is_marked_from_the_border_on():
    tokens = np.arange(10, 10 + 2 * C)
    neighbors = np.full((2, 1, 2 * C), 5)
    neighbors[0, 0, 0:6] = tokens[2:8]

    assert copied_spans(tokens, neighbors) == [Span(C, 2 * C, 6, 0, 0, 2)]


def test_a_chunk_never_copies_from_neighbors_found_with_itself_or_later():
    tokens = np.arange(10, 10 + 2 * C)
    neighbors = np.zeros((2, 1, 2 * C), dtype=int)
    neighbors[1, 0, :C] = tokens[C:]

    assert copied_spans(tokens, neighbors) == []


def test_padding_equals_nothing():
    assert all(ending.max() == 0 for ending in runs_ending(np.array([0, 0]), np.array([0, 0])))


def test_spans_do_not_overlap_and_cover_exactly_the_tokens_that_equal_something():
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 6, size=40)
    neighbors = rng.integers(1, 6, size=(10, 3, 2 * C))

    spans = copied_spans(tokens, neighbors)

    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
    covered = {t for span in spans for t in range(span.start, span.end)}
    assert covered == set(np.flatnonzero(suffixes(tokens, neighbors)[0]))
    for span in spans:
        source = neighbors[span.chunk, span.neighbor, span.source : span.source + span.end - span.start]
        assert (source == tokens[span.start : span.end]).all()


def test_the_copy_ratio_counts_the_tokens_of_long_spans_within_the_given_range():
    spans = [Span(4, 10, 6, 0, 0, 0), Span(12, 14, 2, 1, 0, 0)]

    assert copy_ratio(spans, 0, 20) == 6 / 20
    assert copy_ratio(spans, 8, 12) == 2 / 4
    assert copy_ratio(spans, 0, 20, least=1) == 8 / 20
    assert copy_ratio(spans, 5, 5) == 0


def test_distinct_is_one_without_repetition_and_falls_with_it():
    assert distinct([1, 2, 3, 4], 2) == 1
    assert distinct([1, 2, 1, 2, 1], 2) == 2 / 4
    assert distinct([1], 2) == 1


def test_a_neighbor_that_holds_the_next_chunk_shows_all_of_it():
    tokens = np.arange(10, 10 + 3 * C)
    neighbors = np.zeros((3, 2, 2 * C), dtype=int)
    neighbors[0, 1, C:] = tokens[C : 2 * C]
    neighbors[1, 0, 0] = tokens[2 * C]

    shares = shown_ahead(tokens, neighbors)

    assert shares.tolist() == [[0, 1], [1 / C, 0], [0, 0]]
