"""Longest common runs of tokens: exact, whatever the lengths, borders and padding."""

from __future__ import annotations

import numpy as np
import pytest
from counted import calls_within

from retro_demo.evaluation.copied_text import longest_in_neighbors, longest_in_text, share_in_common


def longest_by_hand(chunk: np.ndarray, text: np.ndarray) -> int:
    """Every run of the chunk, looked for everywhere in the text."""
    chunk = chunk[chunk != 0]
    for length in range(len(chunk), 0, -1):
        runs = {tuple(chunk[i : i + length]) for i in range(len(chunk) - length + 1)}
        if any(tuple(text[i : i + length]) in runs for i in range(len(text) - length + 1)):
            return length
    return 0


def words(rng: np.random.Generator, *shape: int, kinds: int) -> np.ndarray:
    return rng.integers(1, kinds + 1, size=shape)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("chunk_len", [1, 3, 8, 13])
def test_the_longest_run_in_a_text_is_that_of_brute_force(seed, chunk_len):
    rng = np.random.default_rng(seed)
    text = words(rng, 200, kinds=2 + seed)
    chunks = words(rng, 25, chunk_len, kinds=3 + seed)
    chunks[0, chunk_len // 2 :] = 0  # a last chunk, padded

    found = longest_in_text(chunks, text)

    assert found.tolist() == [longest_by_hand(chunk, text) for chunk in chunks]


@pytest.mark.parametrize("block", [8, 9, 17, 64])
def test_a_run_across_two_blocks_of_the_text_is_not_lost(block):
    rng = np.random.default_rng(0)
    text, chunks = words(rng, 100, kinds=3), words(rng, 30, 8, kinds=3)

    assert longest_in_text(chunks, text, block=block).tolist() == longest_in_text(chunks, text).tolist()


def test_a_run_does_not_go_on_over_the_end_of_a_chunk_or_of_the_text():
    chunks = np.array([[5, 6, 7, 8], [9, 10, 11, 12]])

    assert longest_in_text(chunks, np.array([7, 8, 9, 10])).tolist() == [2, 2]
    assert longest_in_text(chunks[:1], np.array([1, 1, 5, 6])).tolist() == [2]


def test_padding_is_no_common_token():
    chunks = np.array([[5, 6, 0, 0], [0, 0, 0, 0]])

    assert longest_in_text(chunks, np.array([0, 0, 5, 0, 0, 0])).tolist() == [1, 0]
    assert longest_in_neighbors(chunks, np.array([[[0, 0, 6, 0]], [[0, 0, 0, 0]]])).tolist() == [1, 0]


def test_without_a_text_nothing_is_common():
    assert longest_in_text(np.array([[1, 2]]), np.zeros(0, dtype=int)).tolist() == [0]
    assert longest_in_text(np.zeros((0, 4), dtype=int), np.array([1, 2])).tolist() == []
    assert longest_in_neighbors(np.array([[1, 2]]), np.zeros((1, 0, 4), dtype=int)).tolist() == [0]


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_run_in_the_neighbors_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    chunks, neighbors = words(rng, 20, 8, kinds=4), words(rng, 20, 3, 16, kinds=4)
    neighbors[:4, 1, 8:] = 0  # a continuation that is missing

    found = longest_in_neighbors(chunks, neighbors)

    wanted = [
        max(longest_by_hand(chunk, one) for one in own) for chunk, own in zip(chunks, neighbors, strict=True)
    ]
    assert found.tolist() == wanted


def test_the_share_in_common_lies_between_0_and_1_and_is_1_for_a_copied_chunk():
    rng = np.random.default_rng(0)
    text = words(rng, 3000, kinds=50)
    copied = text[100:132].reshape(4, 8)
    padded = np.array([[*text[7:10], 0, 0, 0, 0, 0]])
    fresh = words(rng, 200, 8, kinds=50)
    chunks = np.concatenate([copied, padded, fresh, np.full((1, 8), 99)])

    share = share_in_common(longest_in_text(chunks, text), chunks)

    assert share.min() == 0 == share[-1]
    assert share[:5].tolist() == [1] * 5
    assert 0 < share[5:-1].mean() < 0.6


def test_neither_more_text_nor_more_chunks_take_more_steps_of_python():
    """A million tokens against thousands of chunks so take seconds."""
    rng = np.random.default_rng(0)

    def steps(tokens: int, count: int) -> int:
        text, chunks = words(rng, tokens, kinds=4096), words(rng, count, 32, kinds=4096)
        return calls_within(lambda: longest_in_text(chunks, text))

    assert steps(100_000, 1000) < 2 * steps(10_000, 100)
