"""What a batch holds, and what it must never show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from retro_demo.errors import UserError
from retro_demo.training.retro_batches import RetroBatches


def batches(corpus, **changes) -> RetroBatches:
    settings = {"seq_len": 32, "batch_size": 3, "num_neighbors": 2, "retrieves": True, "seed": 0} | changes
    return RetroBatches(corpus, **settings)


def test_the_same_seed_and_step_give_the_same_batch_and_others_another(small_corpus):
    first, again, later = (batches(small_corpus).train_batch(step) for step in (3, 3, 4))

    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.neighbors, again.neighbors)
    assert not torch.equal(first.tokens, later.tokens)
    assert not torch.equal(first.tokens, batches(small_corpus, seed=1).train_batch(3).tokens)


def test_a_batch_has_the_shapes_that_the_model_reads(small_corpus):
    batch = batches(small_corpus).train_batch(0)

    assert batch.tokens.shape == (3, 32)  # T + 1
    assert batch.neighbors.shape == (3, 3, 2, 16)  # the whole chunks of T tokens


def test_an_epoch_reads_each_window_once(small_corpus):
    source = batches(small_corpus)

    windows = [tuple(source._window(i)) for i in range(source.windows_per_epoch)]

    assert len(set(windows)) == len(windows)
    assert len({row for window in windows for row in window}) == len(windows) * 4


def test_no_held_out_chunk_is_ever_trained_on(small_corpus):
    source = batches(small_corpus)
    rows = np.concatenate([source._window(i) for i in range(200)])

    assert not small_corpus.held_out[small_corpus.chunks.document[rows[rows >= 0]]].any()


def test_neighbors_in_a_window_come_from_no_document_in_it(small_corpus):
    source = batches(small_corpus, num_neighbors=4)
    document = small_corpus.chunks.document
    for draw in range(100):
        rows = source._window(draw)
        ids = source._neighbors(rows[None])[0]
        assert not set(document[ids[ids >= 0]]) & set(document[rows])


def test_the_last_chunk_of_a_document_shows_no_neighbors_to_the_document_packed_after_it(small_corpus):
    source = batches(small_corpus)
    document = small_corpus.chunks.document
    seen_border = False
    for draw in range(100):
        rows = source._window(draw)
        ids = source._neighbors(rows[None])[0]
        ends = np.flatnonzero(document[rows[:-1]] != document[rows[1:]])
        assert (ids[ends] == -1).all()
        seen_border |= len(ends) > 0

    assert seen_border


def test_forbidden_neighbors_are_replaced_by_the_next_best_allowed_ones(small_corpus):
    source = batches(small_corpus)
    rows = source._window(0)[None]
    stored = small_corpus.neighbor_ids[rows]
    allowed = ~source._shown_in_window(rows, stored) & (stored >= 0)

    ids = source._neighbors(rows)

    for place in range(rows.shape[1] - 1):
        if small_corpus.chunks.has_continuation(rows[0, place : place + 1])[0]:
            expected = stored[0, place][allowed[0, place]][:2]
            assert ids[0, place][: len(expected)].tolist() == expected.tolist()


def test_in_a_corpus_of_sections_no_neighbor_shows_a_chunk_of_its_window(small_corpus):
    corpus = replace(small_corpus, sections=True)
    rows = np.arange(10, 14)[None]
    ids = np.array([[[9, 10, 13, 14, 20]] * 4])

    shown = batches(corpus)._shown_in_window(rows, ids)

    assert shown[0, 0].tolist() == [True, True, True, False, False]  # 9 continues in 10


def test_held_out_batches_read_held_out_documents_one_a_window(small_corpus):
    read = list(batches(small_corpus).held_out_batches(10_000))

    assert read
    for documents, batch in read:
        assert small_corpus.held_out[documents].all()
        assert batch.neighbors.shape[0] == len(documents) == len(batch.tokens)


def test_a_context_that_is_no_multiple_of_the_chunk_is_refused(small_corpus):
    with pytest.raises(UserError, match="multiple of 8"):
        batches(small_corpus, seq_len=20)


def test_more_neighbors_than_are_stored_are_refused(small_corpus):
    with pytest.raises(UserError, match="stores 4"):
        batches(small_corpus, num_neighbors=5)
