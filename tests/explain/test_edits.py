"""Editing a neighbor: what moves, and that nothing before its readers does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from explain_helpers import MODEL, VOCAB, C, text_and_neighbors

from retro_demo.explain.edits import edit_neighbor, fit, replaced, write_on

EOS = 1


@pytest.mark.parametrize("chunk", range(3))
def test_an_edit_moves_its_readers_and_nothing_before_them(chunk):
    tokens, neighbors = text_and_neighbors(2)
    after = np.roll(neighbors[chunk, 1], 3)

    edit = edit_neighbor(MODEL, tokens, neighbors, chunk, 1, after)

    assert edit.first == (chunk + 1) * C - 1
    assert (edit.moved_before, edit.largest_before) == (0, 0)
    assert edit.kl[edit.first] > 1e-8
    assert edit.kl[: edit.first].max(initial=0) == 0


def test_the_proof_counts_what_moved_before_the_readers():
    """A model that peeks ahead is caught: here the neighbors act one chunk too early."""
    tokens, neighbors = text_and_neighbors(2)
    after = np.roll(neighbors[1, 0], 3)

    class Peeking(torch.nn.Module):
        config = MODEL.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = MODEL

        def forward(self, text, read):
            return self.inner(text, None if read is None else read.roll(-1, dims=1))

    edit = edit_neighbor(Peeking(), tokens, neighbors, 1, 0, after)  # pyright: ignore[reportArgumentType]

    assert edit.moved_before == C
    assert edit.largest_before > 1e-3


def test_the_same_text_again_changes_nothing():
    tokens, neighbors = text_and_neighbors(2)

    edit = edit_neighbor(MODEL, tokens, neighbors, 0, 0, neighbors[0, 0])

    assert edit.kl.max() == 0
    assert (edit.top_ids[0] == edit.top_ids[1]).all()


def test_the_divergence_is_that_of_the_two_predictions():
    tokens, neighbors = text_and_neighbors(2)
    after = np.roll(neighbors[0, 0], 2)

    edit = edit_neighbor(MODEL, tokens, neighbors, 0, 0, after)

    text = torch.from_numpy(tokens)[None]
    with torch.inference_mode():
        old, new = (
            MODEL(text, torch.from_numpy(read)[None])[0].log_softmax(-1)
            for read in (neighbors, replaced(neighbors, 0, 0, after))
        )
    expected = torch.nn.functional.kl_div(new, old, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(edit.kl, expected.numpy(), atol=1e-5)


def test_deleting_every_neighbor_leaves_what_is_expected_without_retrieval():
    tokens, neighbors = text_and_neighbors(1, length=C)

    edit = edit_neighbor(MODEL, tokens, neighbors, 0, 0, np.zeros(2 * C, dtype=int))

    np.testing.assert_allclose(edit.top_probabilities[1], edit.top_probabilities[2], atol=1e-6)


def test_a_text_is_cut_or_padded_to_the_length_of_n_and_of_f():
    row, cut = fit([[5, 6], list(range(10, 10 + C + 3))], C)

    assert row.tolist() == [5, 6, 0, 0, 10, 11, 12, 13]
    assert cut == [0, 3]


@pytest.mark.parametrize("chunk", range(3))
def test_writing_on_takes_the_likeliest_tokens_that_a_whole_forward_gives(chunk):
    tokens, neighbors = text_and_neighbors(2)
    versions = np.stack([neighbors, replaced(neighbors, chunk, 0, np.roll(neighbors[chunk, 0], 3))])

    written = write_on(MODEL, tokens, versions, chunk, C, eos=VOCAB)

    for read, one in zip(versions, written, strict=True):
        text = tokens[: (chunk + 1) * C].tolist()
        for token in one:
            whole = torch.tensor([text])
            with torch.inference_mode():
                there = torch.from_numpy(read[: chunk + 1])[None]
                logits = MODEL(whole, there)[0, -1].clone()
            logits = logits.index_fill(0, torch.tensor([0]), float("-inf"))
            assert token == int(logits.argmax())
            text.append(token)
    assert len(written[0]) == C


def test_writing_on_ends_at_the_end_of_text():
    tokens, neighbors = text_and_neighbors(2)
    free = write_on(MODEL, tokens, neighbors[None], 0, C, eos=VOCAB)[0]

    assert write_on(MODEL, tokens, neighbors[None], 0, C, eos=free[1])[0] == free[: free.index(free[1])]
