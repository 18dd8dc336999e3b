"""Numbers by ablation: the axioms of the Shapley value, and what each loss really left out."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_helpers import MODEL, C, text_and_neighbors  # noqa: F401

from retro_demo.evaluation.losses import helped_and_hurt
from retro_demo.explain import attribution
from retro_demo.explain.attribution import (
    EXACT,
    attribute,
    coalition_losses,
    log_probabilities,
    losses_of,
    measure,
    rank_correlation,
    read_losses,
)
from retro_demo.models.config import RetroConfig
from retro_demo.models.memory import retro_numbers


@pytest.mark.parametrize("k", [1, 3, EXACT + 2])
def test_the_shares_of_all_neighbors_add_up_to_the_gain_of_each_token(k):
    numbers = measure(MODEL, *text_and_neighbors(k))

    assert bool(numbers.permutations) == (k > EXACT)
    np.testing.assert_allclose(numbers.shapley[:-1].sum(axis=1), numbers.gain[:-1], atol=1e-9)
    assert np.abs(numbers.gain[C:-1]).max() > 1e-3


@pytest.mark.parametrize(("at_once", "expected"), [(1, [1] * 10), (3, [3, 3, 3, 1]), (10**6, [8, 2])])
def test_so_many_readings_are_made_in_one_forward_as_there_is_memory_for(monkeypatch, at_once, expected):
    tokens, neighbors = text_and_neighbors(2)
    reads = np.stack([np.roll(neighbors, turn, axis=0) for turn in range(10)])
    whole = read_losses(MODEL, tokens, reads)
    monkeypatch.setattr(attribution, "NUMBERS", at_once * retro_numbers(MODEL.config, len(tokens), 2))
    sizes = []
    hook = MODEL.register_forward_pre_hook(lambda _model, inputs: sizes.append(len(inputs[0])))

    losses = read_losses(MODEL, tokens, reads)

    hook.remove()
    assert sizes == expected
    np.testing.assert_allclose(losses, whole, atol=1e-5)


PEAK = """
import re, sys, numpy as np
from pathlib import Path
from retro_demo.explain import attribution
from retro_demo.models.retro import RETRO
from retro_demo.models.config import RetroConfig

def peak():  # kB; what resource tells begins with that of the parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

model, attribution.NUMBERS = RETRO(RetroConfig(**eval(sys.argv[1]))).eval(), 1
attribution.measure(model, np.arange(1, 9), np.ones((0, 0, 128), np.int64))  # what torch takes first
before = peak()
attribution.measure(model, np.ones(512, np.int64), np.ones((8, 1, 128), np.int64))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize(
    "shape",
    [
        {"dim": 32, "enc_dim": 32, "num_heads": 2, "vocab_size": 32_768},
        {"dim": 512, "enc_dim": 512, "num_heads": 64, "ff_mult": 16, "vocab_size": 300},
    ],
)
def test_a_reading_takes_no_more_memory_than_is_reckoned_and_not_far_less(shape):
    ended = subprocess.run([sys.executable, "-c", PEAK, repr(shape)], capture_output=True, text=True)

    reckoned = 4 * retro_numbers(RetroConfig(**shape), 512, 1)
    assert reckoned / 4 < 1024 * int(ended.stdout) < reckoned


def test_equal_neighbors_get_equal_shares():
    tokens, neighbors = text_and_neighbors(3)
    neighbors[:, 2] = neighbors[:, 0]

    shapley = measure(MODEL, tokens, neighbors).shapley[:-1]

    np.testing.assert_allclose(shapley[:, 0], shapley[:, 2], atol=1e-5)
    assert np.abs(shapley[:, 0] - shapley[:, 1]).max() > 1e-3


def test_a_neighbor_that_is_not_there_gets_nothing():
    tokens, neighbors = text_and_neighbors(3)
    neighbors[:, 1] = 0

    shapley = measure(MODEL, tokens, neighbors).shapley[:-1]

    assert np.abs(shapley[:, 1]).max() < 1e-5
    assert np.abs(shapley[:, 0]).max() > 1e-3


@pytest.mark.parametrize("k", [2, 4])
def test_exact_shares_are_the_mean_over_all_orders(k):
    rng = np.random.default_rng(5)
    worth: dict[tuple[int, ...], np.ndarray] = {}

    def losses(coalitions):
        for coalition in coalitions:
            worth.setdefault(coalition, rng.normal(size=3))
        return {coalition: worth[coalition] for coalition in coalitions}

    shares, orders = attribute(k, losses, 3)

    expected = np.zeros((3, k))
    all_orders = list(permutations(range(k)))
    for order in all_orders:
        for place, player in enumerate(order):
            before, after = (tuple(sorted(order[:n])) for n in (place, place + 1))
            expected[:, player] += (worth[before] - worth[after]) / len(all_orders)
    assert orders == 0
    np.testing.assert_allclose(shares, expected)


def test_sampled_shares_of_players_who_only_add_up_are_exact():
    k = EXACT + 3
    strength = np.arange(k, dtype=float)

    shares, orders = attribute(
        k, lambda wanted: {c: -strength[list(c)].sum(keepdims=True) for c in wanted}, 1
    )

    assert orders % 2 == 0
    np.testing.assert_allclose(shares[0], strength)


def test_a_coalition_reads_as_if_the_others_were_padding_in_encoder_and_cross_attention():
    tokens, neighbors = text_and_neighbors(3)
    padded = neighbors.copy()
    padded[:, 1] = 0

    losses = coalition_losses(MODEL, tokens, neighbors, [(0, 2), (1,), ()])

    expected = losses_of(log_probabilities(MODEL, tokens, padded[None]), tokens)[0]
    np.testing.assert_allclose(losses[(0, 2)][:-1], expected[:-1], atol=1e-5)
    off = losses_of(log_probabilities(MODEL, tokens, None), tokens)[0]
    np.testing.assert_allclose(losses[()][:-1], off[:-1], atol=1e-5)


def test_losses_are_those_of_the_model():
    tokens, neighbors = text_and_neighbors(2)
    text, read = torch.from_numpy(tokens)[None], torch.from_numpy(neighbors)[None]

    numbers = measure(MODEL, tokens, neighbors)

    with torch.inference_mode():
        on, off = MODEL.token_losses(text, read)[0], MODEL.token_losses(text)[0]
    np.testing.assert_allclose(numbers.loss_on[:-1], on.numpy(), atol=1e-5)
    np.testing.assert_allclose(numbers.loss_off[:-1], off.numpy(), atol=1e-5)
    assert np.isnan(numbers.loss_on[-1])


def test_tokens_before_the_last_of_the_first_chunk_gain_nothing():
    numbers = measure(MODEL, *text_and_neighbors(2))

    assert np.abs(numbers.gain[: C - 1]).max() == 0
    assert numbers.gain[C - 1] != 0


def test_the_arm_of_n_only_does_not_see_f_and_the_other_way_round():
    tokens, neighbors = text_and_neighbors(2)
    other_f, other_n = neighbors.copy(), neighbors.copy()
    other_f[..., C:] = 3
    other_n[..., :C] = 3

    numbers = measure(MODEL, tokens, neighbors)

    np.testing.assert_allclose(measure(MODEL, tokens, other_f).loss_n[:-1], numbers.loss_n[:-1], atol=1e-5)
    np.testing.assert_allclose(measure(MODEL, tokens, other_n).loss_f[:-1], numbers.loss_f[:-1], atol=1e-5)
    assert np.nanmax(np.abs(numbers.loss_n - numbers.loss_f)) > 1e-3


def test_the_likeliest_tokens_come_first_and_differ_only_where_neighbors_are_read():
    numbers = measure(MODEL, *text_and_neighbors(2))

    assert (np.diff(numbers.top_probabilities, axis=-1) <= 0).all()
    on, off = numbers.top_ids
    assert (on[: C - 1] == off[: C - 1]).all()
    assert (on[C - 1 :] != off[C - 1 :]).any()


def test_a_text_without_neighbors_has_losses_and_no_gain():
    tokens, _ = text_and_neighbors(1)

    numbers = measure(MODEL, tokens, np.zeros((0, 0, 2 * C), dtype=int))

    assert numbers.shapley.shape == (len(tokens), 0)
    assert np.nanmax(np.abs(numbers.gain)) == 0


def test_rank_correlation_is_spearmans():
    one = np.array([0.1, 0.5, 0.3, 0.3, 0.9])
    other = np.array([1.0, 7.0, 2.0, 5.0, 6.0])

    assert rank_correlation(one, 3 * one) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    # by hand: ranks 0 3 1.5 1.5 4 against 0 4 1 2 3
    ranks = np.corrcoef([0, 3, 1.5, 1.5, 4], [0, 4, 1, 2, 3])[0, 1]
    assert rank_correlation(one, other) == pytest.approx(ranks)


def test_rank_correlation_is_not_known_for_two_pairs_or_for_a_constant():
    assert rank_correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_helped_and_hurt_count_the_tokens_beyond_a_tenth_of_a_nat():
    found = helped_and_hurt(np.array([0.5, 0.05, -0.05, -0.2, np.nan]))

    assert (found["tokens"], found["helped"], found["hurt"]) == (4, 0.25, 0.25)
    assert found["mean_gain"] == pytest.approx(0.075)
