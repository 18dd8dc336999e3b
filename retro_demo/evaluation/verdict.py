"""Does retrieval help? One sentence that claims no more than the controls allow.

"Retrieval helps" is said only where the run with its neighbors beats a matched baseline and the
neighbors of another sequence, each by an interval that excludes 0: the first says that
it is useful, the second that the content of the neighbors is the reason. This module knows only figures; the
verdict on a MARGE stands in evaluation/marge_measurement.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.corpus.store import MIN_DOCUMENTS
from retro_demo.evaluation.losses import LEVEL, Difference
from retro_demo.runs.alarms import RISE


@dataclass(frozen=True)
class VerdictFigures:
    """What the verdict stands on; differences are arm "on" minus the other, None = not measured.

    `match` says in words how run and baseline compare, `unfit` why the baseline is no match ("" = it
    is one), `swapped` names a corpus that the run was not trained on. `was` says in words what the
    baseline was before, where that was measured too: what it began from, or a save that was better.
    """

    on_baseline: Difference | None
    on_shuffled: Difference | None
    on_control: Difference | None  # a run trained with random neighbors, reading random ones
    baseline_bpb: float
    documents: int
    tokens: int
    held_out_tokens: int
    database_tokens: int
    k: int
    share_short: float  # of the queries, those with fewer than k neighbors
    match: str = ""
    unfit: str = ""
    swapped: str = ""
    leaked: int = 0  # held-out chunks that stand in the index
    trained_on: str = ""  # of another corpus: what the training held of it, in words
    was: str = ""
    baseline_on_was: Difference | None = None
    on_was: Difference | None = None
    got_worse: str = ""  # that the training of the baseline tells so, in words
    seeds: int = 1  # trainings that the differences are averaged over
    rival: str = "the same model without it"  # what the baseline is, in a student's words
    oracle_bpb: float | None = None  # of the run with a neighbor that holds what comes next
    frozen: bool = False  # whether the run is, without neighbors, what it began with: so reading alone gained


@dataclass(frozen=True)
class Verdict:
    """helps: True, False, or None where a control is missing; the sentences; what would change them.

    `title` says the same in a student's words, without figures; "" = as the sentence begins.
    """

    helps: bool | None
    sentence: str
    next: tuple[str, ...]
    title: str = ""


def verdict(evidence: VerdictFigures) -> Verdict:
    """The verdict with its intervals, what it was measured on, and which control is missing."""
    helps, title, claim = _claim(evidence)
    parts = (claim, _on_baseline_before(evidence), _measured_on(evidence))
    return Verdict(helps, " ".join(filter(None, parts)), _next(evidence, helps), title)


NO_GAIN = "No measurable benefit: retrieval did no better than"


def _claim(e: VerdictFigures) -> tuple[bool | None, str, str]:
    """Whether retrieval helps, the title, and the claim with its figures."""
    if e.leaked:
        return (
            None,
            "Not decided: the index holds text that is measured",
            (
                f"Not decided: {e.leaked:,} held-out chunks stand in the index, so retrieval can look up the "
                "text that is measured."
            ),
        )
    if e.documents < MIN_DOCUMENTS:
        return (
            None,
            "Not decided: too few held-out documents",
            (
                f"Not decided: {e.documents} held-out documents are too few for an interval; "
                f"at least {MIN_DOCUMENTS} are needed."
            ),
        )
    if e.on_shuffled is None:
        words = "Not decided: the neighbors of another sequence (shuffled) were not measured."
        return None, "Not decided: neighbors of another text were not measured", words
    if more(e.on_shuffled):
        return (
            False,
            "No benefit: neighbors of another text did better",
            (
                "Retrieval does not help: the neighbors of another sequence do better than the right ones "
                f"(difference {with_interval(e.on_shuffled)}), so what the neighbors say is not used."
            ),
        )
    hurts = e.on_baseline is not None and not e.unfit and more(e.on_baseline)
    if not less(e.on_shuffled) and not hurts:
        return (
            None,
            "No measurable benefit: neighbors of another text did as well",
            (
                "No measurable benefit: the neighbors did no better than those of another sequence "
                f"(difference {with_interval(e.on_shuffled)}, which holds 0), so it is not shown that "
                "what they say is used."
            ),
        )
    if e.on_baseline is None:
        return (
            None,
            "Not decided: only a matched baseline shows what retrieval is worth",
            (
                "Not decided: no matched baseline yet. The neighbors beat those of another sequence "
                f"({with_interval(e.on_shuffled)}), which shows that they are read, not that reading them is "
                "better than a plain model."
            ),
        )
    if e.unfit:
        words = f"Not decided: the baseline is no match, {e.unfit}. Against it {_against_baseline(e)}."
        return None, "Not decided: the baseline is no match", words
    return _beside_baseline(e, hurts=hurts)


def _beside_baseline(e: VerdictFigures, *, hurts: bool) -> tuple[bool | None, str, str]:
    """As `_claim`, where there is a baseline that matches and shuffled neighbors decide nothing."""
    assert e.on_baseline is not None
    assert e.on_shuffled is not None
    if hurts and e.frozen and e.on_was is not None and less(e.on_was) and less(e.on_shuffled):
        return (
            False,
            f"Retrieval helped, but less than {e.rival}",
            f"Retrieval helped less than {e.rival}: the run did better than {e.was} "
            f"({with_interval(e.on_was)}) and the neighbors better than those of another sequence "
            f"({with_interval(e.on_shuffled)}), but {_against_baseline(e)}.",
        )
    if not less(e.on_baseline):
        claim = (
            f"Retrieval does not help, it hurts: {_against_baseline(e)}."
            if hurts
            else f"No measurable benefit: retrieval did no better than {e.rival} "
            f"(difference {with_interval(e.on_baseline)}, which holds 0)."
        )
        return (
            False if hurts else None,
            f"Retrieval hurts: it did worse than {e.rival}" if hurts else f"{NO_GAIN} {e.rival}",
            f"{claim} {_against_shuffled(e.on_shuffled)}",
        )
    if (was := _worse_than(e)) and not less(was):
        if more(was):
            told = f"does better (difference {with_interval(was)})"
            words = f"Retrieval does not help: {_against_baseline(e)}, but {e.was} {told}."
            return False, f"No benefit: {e.was} did better", words
        told = f"the run did no better than {e.was} (difference {with_interval(was)}, which holds 0)"
        words = f"No measurable benefit: {_against_baseline(e)}, but {told}."
        return None, f"{NO_GAIN} {e.was}", words
    if e.on_control is not None and more(e.on_control):
        return (
            False,
            "No benefit: a run trained with random neighbors did better",
            (
                f"Retrieval does not help: {_against_baseline(e)}, but a run trained with random neighbors "
                f"does better (difference {with_interval(e.on_control)}), so it is not what they say that "
                "helps."
            ),
        )
    if e.on_control is not None and not less(e.on_control):
        return (
            None,
            f"{NO_GAIN} random neighbors",
            (
                f"No measurable benefit: {_against_baseline(e)}, but the run did no better "
                f"than one trained with random neighbors (difference {with_interval(e.on_control)}, which "
                "holds 0), so it is not shown that what they say helps."
            ),
        )
    control = ""
    if e.on_control is not None:
        control = f", and a run trained with random neighbors ({with_interval(e.on_control)})"
    return (
        True,
        f"Retrieval helps: it did better than {e.rival}",
        (
            f"Retrieval helps: {_against_baseline(e)}. The neighbors also beat those of another sequence "
            f"({with_interval(e.on_shuffled)}){control}."
        ),
    )


def less(difference: Difference) -> bool:
    """Whether the whole interval is below 0."""
    return difference.bpb.high is not None and difference.bpb.high < 0


def more(difference: Difference) -> bool:
    """Whether the whole interval is above 0."""
    return difference.bpb.low is not None and difference.bpb.low > 0


def with_interval(difference: Difference) -> str:
    """The difference in bits per byte with its interval, in words."""
    bpb = difference.bpb
    return f"{bpb.value:+.4f}, {LEVEL}% interval {bpb.low:+.4f} to {bpb.high:+.4f} bits per byte"


def _against_baseline(e: VerdictFigures) -> str:
    """How the run compares with the baseline, in words."""
    assert e.on_baseline is not None
    share = e.on_baseline.bpb.value / e.baseline_bpb
    if less(e.on_baseline) or more(e.on_baseline):
        words = f"the run needs {abs(share):.1%} {'fewer' if share < 0 else 'more'} bits per byte than"
        return f"{words} the baseline ({with_interval(e.on_baseline)})"
    return (
        f"the run did no better than the baseline (difference {with_interval(e.on_baseline)}, which holds 0)"
    )


def _worse_than(e: VerdictFigures) -> Difference | None:
    """The run minus what the baseline was before, where the baseline has got worse since; else None."""
    if e.baseline_on_was is None or e.documents < MIN_DOCUMENTS:
        return None
    return e.on_was if more(e.baseline_on_was) else None


def _on_baseline_before(e: VerdictFigures) -> str:
    """That the baseline has got worse, so that what a run gains on it may be its loss; "" = it has not.

    What this measurement cannot tell, for it has too few documents or too wide an interval, the record of
    the baseline's own training may.
    """
    now = e.baseline_on_was
    if (was := _worse_than(e)) is not None:
        assert now is not None
        return (
            f"The baseline got worse in training: its difference to {e.was} is {with_interval(now)}, so "
            "what the run gains on it may be its loss. The run's difference to the same is "
            f"{with_interval(was)}."
        )
    if e.got_worse and (now is None or not less(now)):
        return e.got_worse
    if now is None or e.documents >= MIN_DOCUMENTS or now.bpb.value <= RISE * e.baseline_bpb:
        return ""
    return (
        f"The baseline measures worse than {e.was}, by {now.bpb.value:.4f} bits per byte (so few documents "
        "give no interval), so what the run gains on it may be its loss."
    )


def _against_shuffled(difference: Difference) -> str:
    """What the neighbors are worth beside those of another sequence, where that makes no gain."""
    if less(difference):
        beaten = f"The neighbors do beat those of another sequence ({with_interval(difference)})"
        return f"{beaten}, but that alone is no gain."
    return (
        f"The neighbors did no better than those of another sequence ({with_interval(difference)}, "
        "which holds 0)."
    )


def _measured_on(e: VerdictFigures) -> str:
    part = "all" if e.tokens >= e.held_out_tokens else f"{e.tokens / e.held_out_tokens:.0%}"
    words = (
        f"Measured on {e.documents:,} held-out documents ({e.tokens:,} tokens, {part} of them), with "
        f"k = {e.k} neighbors from a database of {e.database_tokens:,} tokens; {e.share_short:.1%} of the "
        f"queries found fewer than {e.k}. "
        + ("One seed." if e.seeds == 1 else f"Averaged over {e.seeds} seeds, each trained anew.")
    )
    if e.match and e.on_baseline is not None:
        words += f" {e.match}."
    if e.swapped:
        words += f" Hot swap: the run was trained on another corpus than {e.swapped}."
    if e.trained_on:
        words += f" {e.trained_on}"
    return words


def _next(e: VerdictFigures, helps: bool | None) -> tuple[str, ...]:
    """What would change the verdict, the missing controls first."""
    steps = []
    if e.leaked:
        steps.append("A clean index: build the corpus anew.")
    if e.on_baseline is None:
        steps.append(
            "A matched baseline: train the same decoder, or fine-tune the same pretrained base, without "
            "neighbors on the same corpus for as many steps."
        )
    elif e.unfit:
        steps.append(f"A baseline that matches: this one does not, {e.unfit}.")
    if _on_baseline_before(e):
        steps.append("A baseline at its best: train it with --keep best, or for fewer steps.")
    if e.documents < MIN_DOCUMENTS:
        steps.append(f"More held-out documents: at least {MIN_DOCUMENTS}.")
    if e.on_control is None:
        steps.append(
            "A stricter control: a run trained with random neighbors has the same network and work, but "
            "nothing to read."
        )
    if e.tokens < e.held_out_tokens:
        steps.append("More held-out tokens: the intervals become narrower.")
    if helps is not False and e.seeds < 3:
        steps.append("Other seeds: one training may be lucky; three would tell.")
    no_gain = helps is False or (e.on_shuffled is not None and not less(e.on_shuffled))
    if no_gain and e.oracle_bpb is not None and e.oracle_bpb < e.baseline_bpb:
        steps.append(
            "A database that holds what the texts say: with a neighbor that holds what comes next (the "
            f"oracle arm) the run needs {e.oracle_bpb:.3f} bits per byte, the baseline {e.baseline_bpb:.3f}."
        )
    elif no_gain:
        steps.append("A run that has learned to read: the oracle arm shows whether it can copy at all.")
    return tuple(steps)
