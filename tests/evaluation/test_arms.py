"""Each arm shows the neighbors that its name says, and nothing of what it must not show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retro_demo.corpus.store import Corpus
from retro_demo.evaluation.arms import Arms, Windows, held_out_windows, neighbors_missing, reach

LENGTH, K = 4, 2
NAMES = ["on", "random", "shuffled", "wrong_order", "n_only", "f_only", "k1", "k3", "bm25"]


@pytest.fixture(scope="module")
def arms(half_held_out) -> Arms:
    corpus: Corpus = half_held_out
    table = corpus.neighbor_ids.astype(np.int64)
    windows = held_out_windows(corpus, LENGTH, seed=0)
    return Arms(corpus, windows, {"dense": table, "bm25": table[:, ::-1].copy()}, "dense", K, seed=0)


def everything(arms: Arms) -> np.ndarray:
    return np.arange(len(arms.windows))


def test_every_held_out_chunk_but_the_first_of_a_document_is_measured_once(arms):
    corpus, measured = arms.corpus, arms.windows.rows[:, 1:]
    held = np.flatnonzero(corpus.held_out[corpus.chunks.document])
    first = np.flatnonzero(np.diff(corpus.chunks.document, prepend=-1))

    assert sorted(measured[measured >= 0]) == sorted(set(held) - set(first))


def test_a_window_is_consecutive_text_of_one_document(arms):
    for rows, document in zip(arms.windows.rows, arms.windows.document, strict=True):
        there = rows[rows >= 0]
        assert (np.diff(there) == 1).all()
        assert set(arms.corpus.chunks.document[there]) == {document}


def test_the_first_windows_are_one_of_each_document(arms):
    documents = int(arms.corpus.held_out.sum())

    assert len(set(arms.windows.document[:documents])) == documents
    assert len(set(arms.windows.document[documents : 2 * documents])) == documents


def test_another_seed_measures_in_another_order_and_the_same_seed_in_the_same(arms):
    again = held_out_windows(arms.corpus, LENGTH, seed=0)
    other = held_out_windows(arms.corpus, LENGTH, seed=1)

    assert (again.rows == arms.windows.rows).all()
    assert not (other.rows == arms.windows.rows).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_arm_but_the_oracle_shows_held_out_text(arms, name):
    ids = arms.ids(name, everything(arms))

    assert (ids >= 0).any()
    assert not arms.corpus.held_out[arms.corpus.chunks.document[ids[ids >= 0]]].any()


@pytest.mark.parametrize("name", [*NAMES, "oracle_0", "oracle_50", "off"])
def test_what_an_arm_shows_does_not_depend_on_what_is_read_beside_it(arms, name):
    together = arms.neighbors(name, everything(arms))
    alone = np.concatenate([arms.neighbors(name, np.array([one])) for one in everything(arms)])

    assert (together == alone).all()


def test_off_shows_nothing(arms):
    assert (arms.neighbors("off", everything(arms)) == 0).all()


def test_on_shows_the_best_neighbors_of_each_chunk_with_their_continuations(arms):
    ids, chunks = arms.ids("on", everything(arms)), arms.windows.rows[:, :-1]
    tokens = arms.neighbors("on", everything(arms))
    whole = arms.corpus.chunks.has_continuation(chunks)

    assert (ids[whole] == arms.tables["dense"][chunks[whole]][:, :K]).all()
    assert (ids[~whole] == -1).all()
    assert (tokens[..., :8][ids >= 0] == arms.corpus.chunks.tokens[ids[ids >= 0]]).all()


def test_n_only_and_f_only_share_the_neighbors_between_them(arms):
    on, n, f = (arms.neighbors(name, everything(arms)) for name in ("on", "n_only", "f_only"))

    assert (n + f == on).all()
    assert (n[..., 8:] == 0).all()
    assert (f[..., :8] == 0).all()


def test_random_chunks_are_drawn_for_each_chunk_and_without_repetition(arms):
    ids = arms.ids("random", everything(arms))
    shown = ids[(ids >= 0).all(axis=-1)]

    assert (shown[:, 0] != shown[:, 1]).all()
    assert len(np.unique(shown)) > len(arms.database) / 4
    assert not (ids == arms.ids("on", everything(arms)))[ids >= 0].all()


def test_shuffled_neighbors_are_those_of_the_same_places_of_another_document(arms):
    which = everything(arms)
    own, other = arms.windows.rows[:, :-1], arms.another_sequence(which)
    document = arms.corpus.chunks.document
    shown = arms.ids("shuffled", which)

    assert (document[other[own >= 0]] != document[own[own >= 0]]).all()
    whole = arms.corpus.chunks.has_continuation(own) & arms.corpus.chunks.has_continuation(other)
    assert whole.any()
    assert (shown[whole] == arms.tables["dense"][other[whole]][:, :K]).all()


@pytest.mark.parametrize("length", range(2, 10))
def test_in_wrong_order_a_chunk_gets_the_neighbors_of_another_one_but_never_of_the_next(arms, length):
    rows = np.arange(100, 100 + length)[None]
    windows = Windows(rows, arms.corpus.chunks.document[rows[:, 0]])
    table = np.repeat(np.arange(len(arms.corpus.chunks))[:, None], K, axis=1)  # each its own neighbor
    one = Arms(arms.corpus, windows, {"dense": table}, "dense", K, seed=0)
    whole = arms.corpus.chunks.has_continuation(rows[0, :-1])
    shown = one.ids("wrong_order", np.array([0]))[0, :, 0]

    given = whole & (shown >= 0)
    assert given.sum() >= whole.sum() - 1
    assert np.isin(shown[given], rows[0, :-1][whole]).all()
    assert not np.isin(shown[given] - rows[0, :-1][given], [0, 1]).any()


def test_the_oracle_shows_the_chunk_with_its_true_continuation_and_then_the_best_neighbor(arms):
    chunks = arms.windows.rows[:, :-1]
    whole = arms.corpus.chunks.has_continuation(chunks)
    tokens = arms.neighbors("oracle_0", everything(arms))[whole]
    on = arms.neighbors("on", everything(arms))[whole]

    assert (tokens[:, 0, :8] == arms.corpus.chunks.tokens[chunks[whole]]).all()
    assert (tokens[:, 0, 8:] == arms.corpus.chunks.tokens[chunks[whole] + 1]).all()
    assert (tokens[:, 1] == on[:, 0]).all()


@pytest.mark.parametrize("percent", [20, 50])
def test_a_corrupted_oracle_keeps_the_other_tokens_and_its_padding(arms, percent):
    plain = arms.neighbors("oracle_0", everything(arms))[:, :, 0]
    struck = arms.neighbors(f"oracle_{percent}", everything(arms))[:, :, 0]

    assert ((struck == 0) == (plain == 0)).all()
    changed = (struck != plain)[plain != 0].mean()
    assert abs(changed - percent / 100) < 0.08  # a few draws hit the token that was there


def test_an_arm_of_k_neighbors_shows_the_first_k(arms):
    which = everything(arms)

    assert (arms.ids("k2", which) == arms.ids("on", which)).all()
    assert (arms.ids("k4", which)[..., :2] == arms.ids("on", which)).all()
    assert arms.ids("k4", which).shape[-1] == 4


@pytest.mark.parametrize("name", ["hybrid", "db5", "onn", "baseline"])
def test_an_arm_without_a_table_is_an_error_and_not_the_runs_own_retriever(arms, name):
    with pytest.raises(KeyError, match=name):
        arms.ids(name, everything(arms))


def test_queries_with_fewer_than_k_neighbors_are_counted(arms):
    table = arms.tables["dense"].copy()
    chunk = arms.windows.rows[0, 0]
    table[chunk, 1:] = -1
    short = Arms(arms.corpus, arms.windows, {"dense": table}, "dense", K, seed=0)
    before, asked = neighbors_missing(arms, everything(arms))

    assert neighbors_missing(short, everything(arms)) == (before + 1, asked)
    assert asked == arms.corpus.chunks.has_continuation(arms.windows.rows[:, :-1]).sum()


def test_a_single_held_out_document_is_shuffled_with_training_text(half_held_out):
    corpus = half_held_out
    windows = held_out_windows(corpus, LENGTH, seed=0)
    alone = windows.__class__(
        *(part[windows.document == windows.document[0]] for part in (windows.rows, windows.document))
    )
    table = corpus.neighbor_ids.astype(np.int64)
    arms = Arms(corpus, alone, {"dense": table}, "dense", K, seed=0)
    other = arms.another_sequence(np.arange(len(alone)))

    assert not corpus.held_out[corpus.chunks.document[other[alone.rows[:, :-1] >= 0]]].any()


def test_reach_is_all_of_what_an_oracle_shows_and_nothing_of_no_neighbors(arms):
    which = everything(arms)
    following = arms.tokens(which).reshape(len(which), LENGTH, -1)[:, 1:, :4]
    looks = int((following != 0).all(axis=-1).sum())

    assert looks > 0
    assert reach(arms, "oracle_0", which) == (looks, looks)
    assert reach(arms, "off", which) == (0, looks)
    assert 0 <= reach(arms, "shuffled", which)[0] < looks


def test_reach_wants_the_tokens_in_one_piece(arms):
    which = everything(arms)
    split = replace(arms, title_len=0)
    shown = arms.neighbors("oracle_0", which)
    shown[..., shown.shape[-1] // 2 + 2] = 1  # one of the next four is another token
    object.__setattr__(split, "neighbors", lambda name, which: shown)

    assert reach(split, "oracle_0", which)[0] < reach(arms, "oracle_0", which)[0]
