"""The suffix array finds every place of a run of tokens, and no other."""

from __future__ import annotations

import numpy as np
import pytest

from retro_demo.retrieval.suffix_array import SuffixArray, prefix_ranks


def places_by_hand(text: np.ndarray, row: np.ndarray) -> list[int]:
    return [at for at in range(len(text) - len(row) + 1) if (text[at : at + len(row)] == row).all()]


@pytest.mark.parametrize("seed", range(6))
def test_all_places_of_a_run_are_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 2 + seed, 120)
    array = SuffixArray(text, reach=16)

    for length in (1, 2, 3, 5, 16):
        for row in (text[40 : 40 + length], rng.integers(0, 2 + seed, length)):
            assert sorted(array.find(row).tolist()) == places_by_hand(text, row)


def test_suffixes_are_in_the_order_of_their_tokens_also_above_255():
    text = np.array([70_000, 3, 256, 255, 3, 1, 70_000])
    array = SuffixArray(text, reach=8)

    assert array.order.tolist() == sorted(range(7), key=lambda at: text[at:].tolist())


def test_of_a_block_only_what_begins_in_it_is_found_though_it_may_end_behind_it():
    text = np.array([1, 2, 3, 1, 2, 3])
    array = SuffixArray(text, reach=3, count=3)

    assert array.find(np.array([3, 1, 2])).tolist() == [2]
    assert array.find(np.array([1, 2])).tolist() == [0]


def test_ranks_double_until_all_prefixes_differ_or_the_reach_is_there():
    assert len(list(prefix_ranks(np.array([3, 1, 2]), reach=64))) == 1
    assert len(list(prefix_ranks(np.zeros(100, dtype=int), reach=8))) == 4


def test_in_no_text_nothing_is_found():
    assert SuffixArray(np.zeros(0, dtype=int), reach=4).find(np.array([1])).tolist() == []
