"""What an evaluation has to say: all its figures as one plain dict, ready for JSON.

arms          {name: {nats, bpb, ci, tokens, differences: {reference: {nats, nats_ci, bpb, bpb_ci}}}}
verdict       the sentence; helps (true, false, null) and next stand beside it
counts        documents, tokens, bytes, database_tokens, k, queries, queries_short ...
trained_on    what was left out because a training held it, or could not be checked, in words
tokens_moved  {reference: {helped, hurt, mean, threshold}}
leakage       {"database": ..., "neighbors": ...}: bpb by overlap, see evaluation/leakage.py
curves        loss by the size of the database and by k, where they were measured
provenance    see runs/provenance.py; added by evaluation/evaluating.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.evaluate_config import EvaluateConfig
from retro_demo.evaluation.arm_figures import Sums, arm_figures, tokens_moved
from retro_demo.evaluation.arms import Arms, neighbors_missing
from retro_demo.evaluation.leakage import Overlaps, leakage
from retro_demo.evaluation.loss_table import LossTable
from retro_demo.evaluation.matching import Match
from retro_demo.evaluation.smaller_databases import Part
from retro_demo.evaluation.trained_on import Known
from retro_demo.evaluation.verdict import Evidence, verdict

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


def _evidence(study: Study, sums: Sums, names: list[str], counts: dict[str, Any]) -> Evidence:
    against = {
        other: sums.difference("on", other) if other in names else None
        for other in ("baseline", "shuffled", "control_random", WAS)
    }
    return Evidence(
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


def curves(study: Study, count: int, parts: dict[str, Part]) -> dict[str, Any]:
    """Loss by database size and by k on the first `count` windows, beside off and baseline."""
    sums = Sums(study.table, count, resamples=study.config.resamples, seed=study.config.seed)
    known = [name for name in ("baseline", "off", "on") if sums.has(name)]
    reference = known[0]

    def point(arm: str) -> dict[str, Any]:
        return {
            "bpb": sums.bpb(arm).value,
            "difference": sums.difference(arm, reference).to_json(),
        }

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
