"""The mean over seeds has an interval for other documents and other seeds, and the verdict keeps to it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from retro_demo.errors import UserError
from retro_demo.evaluation.losses import Estimate
from retro_demo.evaluation.over_seeds import STUDENT_T, average_of, averaged, verdict_over


def result(bpb: float, half: float = 0.01, **more: Any) -> dict[str, Any]:
    difference = {
        "nats": bpb,
        "nats_ci": [bpb - half, bpb + half],
        "bpb": bpb,
        "bpb_ci": [bpb - half, bpb + half],
    }
    counts = {"documents": 30, "tokens": 100, "held_out_tokens": 100, "database_tokens": 900, "k": 2}
    counts |= {"queries": 10, "queries_short": 0, "held_out_chunks_in_index": 0}
    arms = {"on": {"differences": {"baseline": difference, "shuffled": difference}}, "baseline": {"bpb": 2.0}}
    told = {"counts": counts, "arms": arms, "match": {"words": "", "unfit": ""}, "trained_on": ""}
    return told | {"verdict": "its own", "helps": True, "next": []} | more


def test_seeds_that_agree_leave_the_interval_of_the_documents():
    mean = averaged([Estimate(-0.1, -0.12, -0.09)] * 3)

    assert (mean.value, mean.low, mean.high) == pytest.approx((-0.1, -0.12, -0.09))


def test_seeds_that_differ_widen_it_by_students_t():
    mean = averaged([Estimate(value, value - 0.03, value + 0.03) for value in (0.0, 0.1, 0.2)])

    half = math.hypot(0.03, STUDENT_T[1] * 0.1 / math.sqrt(3))
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))


def test_without_an_interval_of_one_seed_there_is_none_and_too_many_seeds_are_refused():
    assert averaged([Estimate(0.1, None, None), Estimate(0.2, 0.1, 0.3)]).ci is None
    with pytest.raises(UserError, match="11 seeds"):
        averaged([Estimate(0.1, 0.0, 0.2)] * 11)


def test_one_seed_keeps_its_own_verdict():
    assert verdict_over([result(-0.1)]) == {"verdict": "its own", "helps": True, "next": []}


def test_retrieval_helps_where_the_seeds_agree_and_is_not_shown_to_where_they_do_not():
    agreed = verdict_over([result(-0.1), result(-0.101), result(-0.099)])
    split = verdict_over([result(-0.1), result(0.08), result(-0.12)])

    assert agreed["helps"] is True
    assert split["helps"] is None
    assert "Averaged over 3 seeds" in agreed["verdict"]
    assert not any("seeds" in step for step in agreed["next"])


def test_the_rival_of_several_seeds_is_that_of_each():
    match = {"words": "", "unfit": "", "rival": "fine-tuning without neighbors"}
    told = result(0.001, match=match)
    told["arms"]["on"]["differences"]["shuffled"] = result(-0.1)["arms"]["on"]["differences"]["shuffled"]

    assert "no better than fine-tuning without neighbors" in verdict_over([told] * 2)["verdict"]


def test_what_one_seed_did_not_measure_has_no_mean():
    assert average_of([result(-0.1), result(-0.1)], "on", "off") is None


def test_baselines_that_got_worse_than_their_base_are_no_proof_of_a_gain():
    def worse(seed: int) -> dict[str, Any]:
        told = result(-0.1 + seed / 1000)
        better = result(-0.12)["arms"]["on"]["differences"]["baseline"]  # before minus now
        same = result(0.0)["arms"]["on"]["differences"]["baseline"]  # before minus on
        told["arms"]["baseline_before"] = {"differences": {"baseline": better, "on": same}}
        return told

    said = verdict_over([worse(seed) for seed in range(3)])

    assert said["helps"] is None
    assert "what the baseline began from" in said["verdict"]
