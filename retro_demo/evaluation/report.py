"""The result of an evaluation as one plain dict, ready for JSON, for RETRO and for MARGE.

arms          {name: {nats, bpb, ci, tokens, differences: {reference: {nats, nats_ci, bpb, bpb_ci}}}}
verdict       the sentence; helps (true, false, null) and next stand beside it
counts        documents, tokens, bytes, database_tokens, k, queries, queries_short ...
trained_on    what was left out because a training held it, or could not be checked, in words
tokens_moved  {reference: {helped, hurt, mean, threshold}}
provenance    see runs/provenance.py; added by evaluation/runner.py

Of a RETRO only:
leakage       {"database": ..., "neighbors": ...}: bpb by overlap, see evaluation/copied_text.py
curves        loss by the size of the database and by k, where they were measured

Of a MARGE only:
names               what people call the arms, in the order to show them in
references          the arms that the others are compared with on the page, the line of the picture first
across_languages    recall, pool and chance of evidence/reindex.py; {} where no group has two languages
beta                of each layer that reads evidence

The verdict on a MARGE stands here: "Its own evidence helps" only where it beats evidence drawn at random
and none at all, each by an interval that excludes 0. The first says that the model reads what was
retrieved, the second that reading it is worth something. Groups are drawn, not documents: translations of
one text are alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.corpus.store import MIN_DOCUMENTS
from retro_demo.evaluation.arms import ARMS, TARGETS, Arms, EvidenceArms, neighbors_missing
from retro_demo.evaluation.baselines import Known, Match, SmallerDatabase
from retro_demo.evaluation.copied_text import Overlaps, leakage
from retro_demo.evaluation.losses import LEVEL, Difference, LossTable, Sums, arm_figures, tokens_moved
from retro_demo.evaluation.verdict import Verdict, VerdictFigures, less, more, verdict, with_interval
from retro_demo.settings import EvaluateConfig

WAS = "baseline_before"
"""The arm of what the baseline was before: what it began from, or a better save of it."""


@dataclass(frozen=True)
class Study:
    """What is being measured: the arms and their table, and the database as the index has it."""

    arms: Arms
    table: LossTable
    config: EvaluateConfig
    database: np.ndarray  # chunk ids in the index
    match: Match | None  # of the baseline, None = there is none
    swapped: str
    known: Known
    overlaps: Overlaps
    was: str = ""  # what the baseline was before, where that is measured too
    got_worse: str = ""  # that the training of the baseline tells that it was better, in words


def report(study: Study, names: list[str], count: int) -> dict[str, Any]:
    """The figures of these arms on the first `count` windows, which all of them were measured on."""
    arms, table, corpus = study.arms, study.table, study.arms.corpus
    sums = Sums(table, count, resamples=study.config.resamples, seed=study.config.seed)
    figures = arm_figures(sums, names)
    if arms.own not in figures:
        figures[arms.own] = figures["on"] | {"same_as": "on"}
    short, asked = neighbors_missing(arms, np.arange(count))
    counts = {
        "documents": len(sums.documents),
        "held_out_documents": len(np.unique(table.windows.document)),
        "known_documents": study.known.count,
        "windows": count,
        "tokens": int(sums.tokens().sum()),
        "held_out_tokens": int(table.there.sum()),
        "bytes": int(sums.bytes().sum()),
        "chunks": int((table.windows.rows[:count, 1:] >= 0).sum()),
        "database_documents": len(np.unique(corpus.chunks.document[study.database])),
        "database_chunks": len(study.database),
        "database_tokens": int((corpus.chunks.tokens[study.database] != 0).sum()),
        "held_out_chunks_in_index": int(corpus.held_out[corpus.chunks.document[study.database]].sum()),
        "k": arms.k,
        "queries": asked,
        "queries_short": short,
        "retriever": arms.own,
    }
    said = verdict(_evidence(study, sums, names, counts))
    tokens = table.tokens.reshape(len(table.windows), -1, table.chunk_len)[:, 1:]
    moved = {other: tokens_moved(sums, other) for other in ("off", "baseline") if other in names}
    longest = study.overlaps.of(count, arms.tables[arms.own])
    found = {name: leakage(sums, runs, tokens, names) for name, runs in longest.items()}
    return without_nan(
        {
            "verdict": said.sentence,
            "helps": said.helps,
            "next": list(said.next),
            "counts": counts,
            "arms": figures,
            "tokens_moved": moved,
            "leakage": found,
            "curves": {},
            "trained_on": study.known.words,
            "match": {"words": study.match.words, "unfit": study.match.unfit} if study.match else None,
        }
    )


def _evidence(study: Study, sums: Sums, names: list[str], counts: dict[str, Any]) -> VerdictFigures:
    against = {
        other: sums.difference("on", other) if other in names else None
        for other in ("baseline", "shuffled", "control_random", WAS)
    }
    return VerdictFigures(
        on_baseline=against["baseline"],
        on_shuffled=against["shuffled"],
        on_control=against["control_random"],
        baseline_bpb=sums.bpb("baseline").value if "baseline" in names else float("nan"),
        documents=counts["documents"],
        tokens=counts["tokens"],
        held_out_tokens=counts["held_out_tokens"],
        database_tokens=counts["database_tokens"],
        k=counts["k"],
        share_short=counts["queries_short"] / max(1, counts["queries"]),
        match=study.match.words if study.match else "",
        unfit=study.match.unfit if study.match else "",
        swapped=study.swapped,
        leaked=counts["held_out_chunks_in_index"],
        trained_on=study.known.words,
        was=study.was,
        baseline_on_was=sums.difference("baseline", WAS) if WAS in names else None,
        on_was=against[WAS],
        got_worse=study.got_worse,
    )


def curves(study: Study, count: int, parts: dict[str, SmallerDatabase]) -> dict[str, Any]:
    """Loss by database size and by k on the first `count` windows, beside off and baseline."""
    sums = Sums(study.table, count, resamples=study.config.resamples, seed=study.config.seed)
    known = [name for name in ("baseline", "off", "on") if sums.has(name)]
    reference = known[0]

    def point(arm: str) -> dict[str, Any]:
        return {"bpb": sums.bpb(arm).value, "difference": sums.difference(arm, reference).to_json()}

    sizes = [
        {"percent": int(name[2:]), "documents": part.documents, "tokens": part.tokens} | point(name)
        for name, part in parts.items()
        if sums.has(name)
    ]
    numbers = sorted(set(study.config.neighbor_counts))
    return without_nan(
        {
            "reference": reference,
            "tokens": int(sums.tokens().sum()),
            "documents": len(sums.documents),
            "flat": {name: sums.bpb(name).value for name in known},
            "database_sizes": sizes,
            "neighbor_counts": [{"k": k} | point(f"k{k}") for k in numbers if sums.has(f"k{k}")],
        }
    )


def without_nan(value: Any) -> Any:
    """The same with None where a number is none (an empty bin), so that it is JSON."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


REFERENCES = ("on", "random", "off")
NAMES = {
    "on": "its own evidence",
    "own": "own evidence only",
    "random": "random evidence",
    "off": "no evidence",
    "beta_0": "beta 0",
    "uniform": "uniform relevance",
    "shuffled": "shuffled relevance",
    "same_document": "with the own document",
    "other_documents": "without the own document",
}


@dataclass(frozen=True)
class MargeStudy:
    """What is being measured: the arms, the table to fill, and what was found about the encoder."""

    arms: EvidenceArms
    table: LossTable
    config: EvaluateConfig
    betas: list[float]
    across: dict[str, Any]
    swapped: str
    known: Known

    @property
    def measured(self) -> list[str]:
        """The arms that are read; the others have the figures of their twins."""
        return [arm for arm in ARMS if not self.arms.twin(arm)]


def marge_report(study: MargeStudy, count: int) -> dict[str, Any]:
    """The figures of all arms on the first `count` held-out passages."""
    arms, table = study.arms, study.table
    sums = Sums(table, count, resamples=study.config.resamples, seed=study.config.seed)
    measured = arm_figures(sums, study.measured, REFERENCES)
    figures = {}
    for arm in ARMS:
        twin = arms.twin(arm)
        figures[arm] = measured[twin] | {"same_as": twin} if twin else measured[arm]
    found = arms.evidence("on", np.arange(count))
    counts = {
        "passages": count,
        "groups": len(sums.documents),
        "documents": len(np.unique(arms.passages.document[arms.targets[:count]])),
        "held_out_passages": len(arms.targets),
        "held_out_groups": len(np.unique(table.windows.document)),
        "known_documents": study.known.count,
        "tokens": int(sums.tokens().sum()),
        "held_out_tokens": int(table.there.sum()),
        "bytes": int(sums.bytes().sum()),
        "k": arms.k,
        "candidates": len(arms.passages),
        "targets_of_a_batch": TARGETS,
        "short_of_evidence": int((found < 0).any(axis=1).sum()),
    }
    against = {
        other: sums.difference("on", other) for other in ("random", "off", "own", "beta_0", "shuffled")
    }
    conclusion = marge_verdict(against, counts, swapped=study.swapped, trained_on=study.known.words)
    return without_nan(
        {
            "verdict": conclusion.sentence,
            "helps": conclusion.helps,
            "next": list(conclusion.next),
            "counts": counts,
            "arms": figures,
            "names": NAMES,
            "references": list(REFERENCES[:2]),
            "tokens_moved": {other: tokens_moved(sums, other) for other in ("off", "random")},
            "across_languages": study.across,
            "beta": study.betas,
            "trained_on": study.known.words,
            "swapped": study.swapped,
        }
    )


def marge_verdict(
    against: dict[str, Difference], counts: dict[str, Any], *, swapped: str = "", trained_on: str = ""
) -> Verdict:
    """The verdict; `against` holds "on" minus each of the arms random, off, own, beta_0 and shuffled."""
    decided = counts["groups"] >= MIN_DOCUMENTS
    if not decided:
        helps = None
        claim = (
            f"Not decided: {counts['groups']} held-out groups are too few for an interval; "
            f"at least {MIN_DOCUMENTS} are needed."
        )
    else:
        helps, claim = _claim(against["random"], against["off"])
        claim += f" {_relevance(against)} {_sharing(against['own'])}"
    sentence = f"{claim} {_measured_on(counts)}"
    if swapped:
        sentence += f" Hot swap: the run was trained on another corpus than {swapped}."
    return Verdict(helps, f"{sentence} {trained_on}".strip(), _next(helps, against, counts))


def _claim(on_random: Difference, on_off: Difference) -> tuple[bool | None, str]:
    if more(on_random):
        return False, (
            f"Its own evidence hurts: passages drawn at random do better "
            f"(difference {with_interval(on_random)})."
        )
    if not less(on_random):
        return None, (
            "Its own evidence is not shown to help: it cannot be told from passages drawn at random "
            f"(difference {with_interval(on_random)}, which holds 0)."
        )
    beats = f"It does beat evidence drawn at random ({with_interval(on_random)}), but that alone is no gain."
    if more(on_off):
        return (
            False,
            f"Its own evidence hurts: no evidence at all does better ({with_interval(on_off)}). {beats}",
        )
    if not less(on_off):
        return None, (
            "Its own evidence is not shown to help: it cannot be told from no evidence at all "
            f"(difference {with_interval(on_off)}, which holds 0). {beats}"
        )
    return True, (
        f"Its own evidence helps: it beats evidence drawn at random ({with_interval(on_random)}) and no "
        f"evidence at all ({with_interval(on_off)})."
    )


def _relevance(against: dict[str, Difference]) -> str:
    """Whether it matters how relevant the model holds its evidence."""
    flat, mixed = against["beta_0"], against["shuffled"]
    figures = f"on minus beta 0: {with_interval(flat)}; minus shuffled relevance: {with_interval(mixed)}"
    if less(flat) and less(mixed):
        return f"The learned relevance matters ({figures})."
    if less(flat) or less(mixed):
        which = "without any (beta 0)" if less(flat) else "with that of other passages (shuffled)"
        return f"The learned relevance matters in part: it is worse only {which} ({figures})."
    if more(flat) or more(mixed):
        return f"The learned relevance is of no use, and in part harmful ({figures})."
    return f"The learned relevance is not shown to matter ({figures})."


def _sharing(on_own: Difference) -> str:
    """Whether it matters that a target reads the evidence of the whole batch."""
    if less(on_own):
        return (
            f"Reading the evidence of the whole batch helps, against the own alone ({with_interval(on_own)})."
        )
    if more(on_own):
        return (
            f"Reading the evidence of the whole batch hurts, against the own alone ({with_interval(on_own)})."
        )
    return (
        "Whether a target reads its own evidence alone makes no difference that shows "
        f"({with_interval(on_own)})."
    )


def _measured_on(counts: dict[str, Any]) -> str:
    share = counts["tokens"] / counts["held_out_tokens"]
    part = "all" if share == 1 else f"{share:.0%}"
    short = counts["short_of_evidence"] / counts["passages"]
    return (
        f"Measured on {counts['groups']:,} held-out groups ({counts['passages']:,} passages, "
        f"{counts['tokens']:,} tokens, {part} of them), with k = {counts['k']} passages of evidence for each "
        f"from {counts['candidates']:,} candidates ({short:.1%} found fewer) and {TARGETS} targets a batch; "
        f"{LEVEL}% intervals by a paired bootstrap over groups. One seed."
    )


def _next(helps: bool | None, against: dict[str, Difference], counts: dict[str, Any]) -> tuple[str, ...]:
    """What would change the verdict."""
    steps = []
    if counts["groups"] < MIN_DOCUMENTS:
        steps.append(f"More held-out groups: at least {MIN_DOCUMENTS}.")
    if counts["tokens"] < counts["held_out_tokens"]:
        steps.append("More held-out tokens: the intervals become narrower.")
    if helps is not True:
        steps.append("A longer training: it takes many re-indexes until evidence is worth reading.")
    if helps is not True and not less(against["beta_0"]):
        steps.append("Fewer candidates of no use: evidence in other languages only, or a smaller k.")
    if helps is not False:
        steps.append("Other seeds: one training may be lucky; three would tell.")
    return tuple(steps)
