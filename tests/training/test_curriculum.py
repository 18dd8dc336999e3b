"""Neighbors that hold the answer: what they hold, and when they stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retro_demo.training.retro_batches import (
    RetroBatches,
    corrupt,
    curriculum_share,
    true_continuations,
    with_oracle_neighbors,
)

C = 4


def text(batch: int = 2, length: int = 16) -> np.ndarray:
    return np.arange(1, batch * length + 1).reshape(batch, length)


def test_the_true_continuation_of_a_chunk_is_the_chunk_and_what_follows_it():
    found = true_continuations(text(1), 3, C)

    assert found[0].tolist() == [list(range(1, 9)), list(range(5, 13)), list(range(9, 17))]


@pytest.mark.parametrize("shift", [-6, -1, 0, 3, 9])
def test_a_shifted_view_equals_a_slow_loop_and_ends_in_padding(shift):
    tokens = text()
    found = true_continuations(tokens, 4, C, shift)

    for b in range(2):
        for u in range(4):
            for r in range(2 * C):
                place = u * C + shift + r
                assert found[b, u, r] == (tokens[b, place] if 0 <= place < 16 else 0)


def test_corruption_strikes_the_share_asked_for_and_never_padding():
    neighbors = np.ones((200, 50), dtype=np.int64)
    neighbors[:, 40:] = 0

    struck = corrupt(neighbors, 0.3, 1000, np.random.default_rng(0))

    assert (struck[:, 40:] == 0).all()
    assert (struck[:, :40] > 0).all()
    assert abs((struck[:, :40] != 1).mean() - 0.3) < 0.02
    assert np.array_equal(corrupt(neighbors, 0.0, 1000, np.random.default_rng(0)), neighbors)


def test_the_share_of_lessons_falls_from_all_to_none():
    assert curriculum_share(0, 10) == 1.0
    assert curriculum_share(5, 10) == 0.5
    assert curriculum_share(10, 10) == curriculum_share(99, 10) == 0.0
    assert curriculum_share(0, 0) == 0.0
    assert curriculum_share(0, 10, 0.2) == 1.0
    assert curriculum_share(10, 10, 0.2) == curriculum_share(5, 0, 0.2) == 0.2


def test_a_lesson_takes_one_place_of_a_chunk_and_leaves_the_others():
    tokens = np.random.default_rng(0).integers(1, 100, (8, 16))
    real = np.full((8, 3, 3, 2 * C), 500)

    taught = with_oracle_neighbors(real, tokens, C, 100, 1.0, np.random.default_rng(1))

    changed = (taught != 500).any(axis=-1)
    assert (changed.sum(axis=-1) == 1).all()
    assert changed.any(axis=(0, 1)).all()  # each place is taken now and then
    assert np.array_equal(with_oracle_neighbors(real, tokens, C, 100, 0.0, np.random.default_rng(1)), real)


def test_no_neighbor_acts_for_the_last_chunk_of_a_document_not_even_a_lesson(small_corpus):
    settings = {"seq_len": 32, "batch_size": 8, "num_neighbors": 2, "retrieves": True, "seed": 0}
    taught = RetroBatches(small_corpus, **settings, reading_steps=1000)
    chunks = small_corpus.chunks
    last = np.unique(chunks.tokens[~chunks.has_continuation(np.arange(len(chunks)))], axis=0)
    ended = 0

    for step in range(6):
        batch = taught.train_batch(step)
        own = batch.tokens.numpy().reshape(8, 4, 8)[:, :-1]
        ends = (own[:, :, None] == last).all(axis=-1).any(axis=-1)
        read = (batch.neighbors.numpy() != 0).any(axis=(-1, -2))
        assert (read == ~ends).all()
        ended += ends.sum()
    assert ended > 3


def test_lessons_stop_at_their_last_step_and_are_a_function_of_seed_and_step(small_corpus):
    settings = {"seq_len": 32, "batch_size": 3, "num_neighbors": 2, "retrieves": True, "seed": 0}
    plain = RetroBatches(small_corpus, **settings)
    taught = RetroBatches(small_corpus, **settings, reading_steps=5)

    assert not torch.equal(taught.train_batch(0).neighbors, plain.train_batch(0).neighbors)
    assert torch.equal(taught.train_batch(2).neighbors, taught.train_batch(2).neighbors)
    assert torch.equal(taught.train_batch(5).neighbors, plain.train_batch(5).neighbors)
    assert torch.equal(taught.train_batch(0).tokens, plain.train_batch(0).tokens)


def test_what_is_measured_on_never_holds_the_answer(small_corpus):
    settings = {"seq_len": 32, "batch_size": 3, "num_neighbors": 2, "retrieves": True, "seed": 0}
    plain = RetroBatches(small_corpus, **settings)
    taught = RetroBatches(small_corpus, **settings, reading_steps=1000, noise=0.5)

    for (_, one), (_, other) in zip(plain.held_out_batches(1000), taught.held_out_batches(1000), strict=True):
        assert torch.equal(one.neighbors, other.neighbors)


def test_noise_replaces_about_its_share_of_the_neighbors_by_chunks_of_the_database(small_corpus):
    settings = {"seq_len": 32, "batch_size": 16, "num_neighbors": 2, "retrieves": True, "seed": 0}
    plain = RetroBatches(small_corpus, **settings)
    noisy = RetroBatches(small_corpus, **settings, noise=0.5)

    changed = []
    for step in range(20):
        one, other = plain.train_batch(step).neighbors, noisy.train_batch(step).neighbors
        there = (one != 0).any(dim=-1)
        changed.append((one != other).any(dim=-1)[there].float().mean())
        assert ((other != 0).any(dim=-1) & ~there).sum() == 0  # nothing stands where nothing was found
    assert 0.35 < np.mean(changed) < 0.6


def test_random_neighbors_have_nothing_to_do_with_what_was_retrieved(small_corpus):
    settings = {"seq_len": 32, "batch_size": 16, "num_neighbors": 2, "retrieves": True, "seed": 0}
    plain = RetroBatches(small_corpus, **settings)
    control = RetroBatches(small_corpus, **settings, neighbor_source="random")

    same = []
    for step in range(20):
        one, other = plain.train_batch(step).neighbors, control.train_batch(step).neighbors
        same.append((one == other).all(dim=-1)[(one != 0).any(dim=-1)].float().mean())
    assert np.mean(same) < 0.2
    held = [batch.neighbors for _, batch in control.held_out_batches(1000)]
    again = [batch.neighbors for _, batch in control.held_out_batches(1000)]
    assert all(torch.equal(a, b) for a, b in zip(held, again, strict=True))


def test_random_neighbors_come_from_no_document_of_their_window_and_from_no_held_out_one(small_corpus):
    source = RetroBatches(
        small_corpus,
        seq_len=32,
        batch_size=4,
        num_neighbors=2,
        retrieves=True,
        seed=0,
        neighbor_source="random",
    )
    chunks = small_corpus.chunks
    documents_of = {}  # a chunk's tokens -> the documents that have them
    for tokens, document in zip(chunks.tokens, chunks.document, strict=True):
        documents_of.setdefault(tokens.tobytes(), set()).add(int(document))
    for step in range(60):
        batch = source.train_batch(step)
        for row in range(4):
            inside = set(chunks.document[source._window(step * 4 + row)].tolist())
            shown = batch.neighbors[row, ..., :8].reshape(-1, 8).numpy().astype(np.int32)
            for tokens in shown[shown.any(axis=1)]:
                known = documents_of[tokens.tobytes()]
                assert not known <= inside
                assert not small_corpus.held_out[list(known)].all()


def test_the_control_with_random_neighbors_gets_no_lessons(small_corpus):
    settings = {"seq_len": 32, "batch_size": 3, "num_neighbors": 2, "retrieves": True, "seed": 0}
    control = RetroBatches(small_corpus, **settings, neighbor_source="random")
    asked = RetroBatches(
        small_corpus, **settings, neighbor_source="random", reading_steps=10, lessons_kept=0.5
    )

    for step in (0, 5, 20):
        assert torch.equal(control.train_batch(step).neighbors, asked.train_batch(step).neighbors)
