"""The verdict over several seeds: what was trained anew with each seed is measured on the same documents.

An evaluation has an interval over documents. Another seed gives other weights, and so another difference: how
far that moves the mean is an interval of its own. The interval here holds both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import AS_IT_IS
from retro_demo.evaluation.losses import Difference, Estimate
from retro_demo.evaluation.verdict import VerdictFigures, verdict

STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95% quantiles of Student's t for 1 to 9 degrees of freedom."""
BEFORE = "baseline_before"
"""The arm of what the baselines began from (evaluation/retro_measurement.py)."""
MOST_SEEDS = len(STUDENT_T) + 1


def averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of a figure over seeds, with a 95% interval for other documents and other seeds.

    The documents are the same for each seed, so their part does not shrink with more seeds: it is the mean
    distance of the interval's ends. The part of the seeds is t * s / sqrt(n). The two are independent, so
    their squares add up.
    """
    if len(estimates) > MOST_SEEDS:
        raise UserError(f"{len(estimates)} seeds are too many to average: give at most {MOST_SEEDS}.")
    values = [one.value for one in estimates]
    mean, count = fmean(values), len(values)
    if count == 1:
        return estimates[0]
    ends = [
        (one.value - one.low, one.high - one.value)
        for one in estimates
        if one.low is not None and one.high is not None
    ]
    if len(ends) < count:
        return Estimate(mean, None, None)
    of_seeds = STUDENT_T[count - 2] * stdev(values) / math.sqrt(count)
    below, above = (fmean(distances) for distances in zip(*ends, strict=True))
    return Estimate(mean, mean - math.hypot(below, of_seeds), mean + math.hypot(above, of_seeds))


def average_of(results: Sequence[Mapping[str, Any]], arm: str, other: str) -> Difference | None:
    """The mean difference of two arms over the results of evaluations; None where one did not measure it."""
    told = [result["arms"].get(arm, {}).get("differences", {}).get(other) for result in results]
    if not told or any(one is None for one in told):
        return None
    parts = [
        averaged([Estimate(one[unit], *(one[f"{unit}_ci"] or (None, None))) for one in told])
        for unit in ("nats", "bpb")
    ]
    return Difference(*parts)


def _turned(difference: Difference | None) -> Difference | None:
    """The difference of the same two arms, the other way round."""
    if difference is None:
        return None
    parts = (difference.nats, difference.bpb)
    return Difference(*(Estimate(-p.value, _minus(p.high), _minus(p.low)) for p in parts))


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def verdict_over(results: Sequence[Mapping[str, Any]], got_worse: Sequence[str] = ()) -> dict[str, Any]:
    """Verdict, helps and next over the results of evaluations that differ in their seed alone.

    `got_worse`: for each of them that its baseline got worse in training, in words, "" = it did not
    (`baselines.got_worse`). With one result its own verdict stands.
    """
    first = results[0]
    if len(results) == 1:
        return {name: first[name] for name in ("verdict", "helps", "next")}
    counts = first["counts"]
    match = first["match"] or {"words": "", "unfit": ""}
    if match.get("before") == "off":  # a pretrained model as it is, which the run is, too, with retrieval off
        was, on, base = AS_IT_IS, average_of(results, "on", "off"), average_of(results, "baseline", "off")
    else:
        was = "what the baseline began from"
        on, base = (_turned(average_of(results, BEFORE, arm)) for arm in ("on", "baseline"))
    baseline, oracle = (
        fmean(result["arms"].get(arm, {}).get("bpb", math.nan) for result in results)
        for arm in ("baseline", "oracle_0")
    )
    said = verdict(
        VerdictFigures(
            on_baseline=average_of(results, "on", "baseline"),
            on_shuffled=average_of(results, "on", "shuffled"),
            on_control=average_of(results, "on", "control_random"),
            baseline_bpb=baseline,
            documents=counts["documents"],
            tokens=counts["tokens"],
            held_out_tokens=counts["held_out_tokens"],
            database_tokens=counts["database_tokens"],
            k=counts["k"],
            share_short=counts["queries_short"] / max(1, counts["queries"]),
            match=match["words"],
            unfit=match["unfit"],
            leaked=counts["held_out_chunks_in_index"],
            trained_on=first["trained_on"],
            was=was if on is not None else "",
            baseline_on_was=base,
            on_was=on,
            got_worse=next(filter(None, got_worse), ""),
            rival=match.get("rival", VerdictFigures.rival),
            seeds=len(results),
            frozen=bool(match.get("frozen")),
            oracle_bpb=oracle,
        )
    )
    return {"verdict": said.sentence, "helps": said.helps, "next": list(said.next)}
