"""Intervals over documents: paired, seeded, and wide where there is little to go by."""

from __future__ import annotations

import numpy as np
import pytest

from retro_demo.evaluation.losses import draws, ratio, tail


def documents(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sums of nats and tokens of documents that differ in length and difficulty."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(100, 2000, count)
    return tokens * rng.normal(2.0, 0.6, count), tokens


def test_the_figure_is_the_mean_over_tokens_not_over_documents():
    assert ratio(np.array([10.0, 1.0]), np.array([1, 9]), draws(2, 200, 0)).value == pytest.approx(1.1)


def test_the_interval_is_that_of_a_plain_loop_over_resamples():
    nats, tokens = documents(30)
    drawn = draws(30, 500, seed=3)
    values = []
    for counts in drawn.astype(int):
        chosen = np.repeat(np.arange(30), counts)
        values.append(nats[chosen].sum() / tokens[chosen].sum())

    found = ratio(nats, tokens, drawn)

    assert found.low == pytest.approx(np.percentile(values, 2.5))
    assert found.high == pytest.approx(np.percentile(values, 97.5))


def test_about_95_of_100_intervals_hold_the_truth():
    hits = 0
    for seed in range(200):
        nats, tokens = documents(40, seed)
        found = ratio(nats, tokens, draws(40, 400, seed))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 2.0 <= found.high

    assert 176 <= hits <= 198  # percentile intervals of 40 documents are a little short


@pytest.mark.parametrize("count", [6, 10])
def test_about_95_of_100_intervals_of_few_documents_hold_the_truth(count):
    hits = short = 0
    for seed in range(400):
        values = np.random.default_rng(seed).normal(2.0, 0.6, count)
        drawn = draws(count, 2000, seed)
        found = ratio(values, np.ones(count), drawn)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 2.0 <= found.high
        low, high = np.percentile(drawn @ values / count, [2.5, 97.5])
        short += low <= 2.0 <= high

    assert 368 <= hits <= 392
    assert short < hits - 10  # plain percentiles promise too much


def test_the_tail_of_six_documents_is_that_of_the_table_of_t():
    # t(5) = 2.5706, t(9) = 2.2622: Phi(-sqrt(6 / 5) t) and Phi(-sqrt(10 / 9) t)
    assert tail(6) == pytest.approx(0.2432, rel=0.02)
    assert tail(10) == pytest.approx(0.8545, rel=0.01)
    assert tail(20) == 2.5


def test_a_paired_difference_is_far_sharper_than_the_figures_it_is_between():
    nats, tokens = documents(30)
    better = nats - 0.05 * tokens
    drawn = draws(30, 1000, 0)
    apart = ratio(nats, tokens, drawn)
    between = ratio(better - nats, tokens, drawn)

    assert between.high is not None
    assert between.low is not None
    assert apart.high is not None
    assert apart.low is not None
    assert between.high < 0
    assert between.high - between.low < 0.01 * (apart.high - apart.low)


def test_the_same_seed_draws_the_same():
    assert (draws(9, 50, 1) == draws(9, 50, 1)).all()
    assert not (draws(9, 50, 1) == draws(9, 50, 2)).all()
    assert (draws(9, 50, 1).sum(axis=1) == 9).all()


def test_one_document_has_no_interval_and_nothing_at_all_has_no_figure():
    assert ratio(np.array([3.0]), np.array([2]), draws(1, 200, 0)).ci is None
    assert np.isnan(ratio(np.zeros(3), np.zeros(3), draws(3, 200, 0)).value)


def test_draws_that_hold_none_of_a_rare_kind_do_not_spoil_its_interval():
    found = ratio(np.array([0.0] * 9 + [4.0]), np.array([0] * 9 + [2]), draws(10, 500, 0))

    assert found.ci == [2.0, 2.0]
