"""What is read off a trace: each figure against the numbers that it stands for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from views_helpers import C, K, small_trace

from retro_demo.explain import tracing
from retro_demo.explain.tracing import Trace

TRACE = small_trace()


def test_the_summary_counts_only_tokens_that_could_read_a_neighbor():
    gain = TRACE.numbers.gain[C - 1 : -1]

    got = tracing.summary(TRACE)

    assert got["tokens"] == len(gain) == 7
    assert got["helped"] == pytest.approx((gain > 0.1).mean())
    assert got["hurt"] == pytest.approx((gain < -0.1).mean())
    assert got["mean_gain"] == pytest.approx(got["loss_off"] - got["loss_on"])


def test_each_pair_has_the_mean_mass_and_effect_of_the_tokens_that_read_it():
    rows = tracing.pairs(TRACE)

    assert [(row["chunk"], row["neighbor"]) for row in rows] == [(u, k) for u in range(2) for k in range(K)]
    readers = [C - 1 + C + i for i in range(3)]  # the last token of the text has no successor
    assert rows[3]["shapley"] == pytest.approx(TRACE.numbers.shapley[readers, 1].mean())
    mean = TRACE.weights.numpy().mean(axis=(0, 2))[1, :3, 1].sum(axis=-1).mean()
    assert rows[3]["mass"] == pytest.approx(mean, rel=1e-5)


def test_the_effects_of_a_chunks_neighbors_add_up_to_its_mean_gain():
    rows, lookups = tracing.pairs(TRACE), tracing.timeline(TRACE)

    for lookup in lookups:
        effects = sum(row["shapley"] for row in rows if row["chunk"] == lookup["chunk"])
        assert lookup["gain"] == pytest.approx(effects)


def test_attention_agrees_with_effect_where_their_orders_are_the_same():
    rows = tracing.pairs(TRACE)
    order = np.argsort(np.argsort([row["mass"] for row in rows]))
    shapley = np.zeros_like(TRACE.numbers.shapley)
    for row, rank in zip(rows, order, strict=True):
        readers = tracing.with_targets(TRACE, row["chunk"])
        shapley[readers, row["neighbor"]] = float(rank)
    vars(TRACE.numbers)["shapley"][:] = shapley

    try:
        assert tracing.agreement(TRACE) == pytest.approx(1)
    finally:
        vars(TRACE.numbers)["shapley"][:] = small_trace().numbers.shapley


def test_a_copied_token_names_the_neighbor_the_part_and_the_place_it_came_from():
    row = tracing.token_rows(TRACE)[6]

    assert row["copied"] == 3
    assert row["from"] == {"neighbor": 1, "part": "F", "place": 2}


def test_the_entropy_of_even_attention_is_the_logarithm_of_what_is_read():
    even = small_trace()
    even.weights[:] = 1 / (K * 2 * C)

    spread = tracing.entropy(even)

    assert spread[: C - 1].max() == 0
    np.testing.assert_allclose(spread[C - 1 :], np.log(K * 2 * C), rtol=1e-5)


def test_what_attention_lacks_to_one_is_the_mass_of_the_null_slot():
    with_null = small_trace(null_slot=True)
    with_null.weights[:] *= 0.75

    null = tracing.null_mass(with_null)

    assert null is not None
    np.testing.assert_allclose(null[C - 1 :], 0.25, rtol=1e-5)
    assert tracing.null_mass(TRACE) is None


def test_everything_is_plain_json_without_nan():
    text = json.dumps(tracing.as_json(TRACE), allow_nan=False)

    assert {"summary", "tokens", "spans", "chunks", "pairs", "top"} <= set(json.loads(text))


def test_a_trace_is_read_back_with_all_its_numbers_and_one_of_an_earlier_version_is_gone(tmp_path):
    TRACE.save(tmp_path / "t")

    again = Trace.load(tmp_path / "t")

    assert again is not None
    assert tracing.token_rows(again)[6]["gain"] == tracing.token_rows(TRACE)[6]["gain"]
    assert again.words == TRACE.words
    assert (again.neighbor_tokens == TRACE.neighbor_tokens).all()
    kept = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(kept | {"format": 1}))
    assert Trace.load(tmp_path / "t") is None
