"""The figures of a MARGE run over its steps, from its events: what its re-indexes found, what beta became."""

from __future__ import annotations

from typing import Any

from retro_demo.jobs.jobs import JobStatus

Series = dict[str, list[tuple[float, float]]]
"""By name: (step, value) of each measurement."""

FOUND = {
    "recall_at_1": "recall@1",
    "mrr": "MRR",
    "recall_at_1_same_script": "one script",
    "recall_at_1_other_script": "two scripts",
    "chance": "chance",
}
"""Figures of cross_lingual.recall that are drawn, and what they are called."""


def reindexes(status: JobStatus) -> list[dict[str, Any]]:
    """All re-indexes so far: step, figures of the pairs and, where it was measured, recall, side by side."""
    rows = []
    for event in status.of_kind("reindexed"):
        figures = dict(event["figures"])
        across = figures.pop("recall", None) or {}
        targets = figures["targets_with_evidence"] + figures["targets_resting"]
        figures["resting"] = figures["targets_resting"] / max(1, targets)
        recall = {key: across[key] for key in (*FOUND, "queries") if key in across}
        rows.append({"step": event["step"]} | figures | recall)
    return rows


def recall_series(rows: list[dict[str, Any]]) -> Series:
    """Does the encoder find the same item in another language: over the re-indexes, and untrained."""
    series = {FOUND[key]: _points(rows, key) for key in FOUND}
    if untrained := series["recall@1"][:1]:
        last = rows[-1]["step"]
        series["untrained"] = [(untrained[0][0], untrained[0][1]), (last, untrained[0][1])]
    return series


def pair_series(rows: list[dict[str, Any]]) -> Series:
    """What became of the pairs of target and evidence, as shares."""
    return {
        "churn": _points(rows, "churn"),
        "resting": _points(rows, "resting"),
        "across languages": _points(rows, "across_languages"),
        "one group": _points(rows, "same_group"),
        "one group by chance": _points(rows, "same_group_by_chance"),
    }


def beta_series(status: JobStatus) -> Series:
    """beta of each layer with evidence, at each measurement and re-index."""
    found: dict[int, list[float]] = {}
    for event in status.of_kind("reindexed"):
        found[event["step"]] = event["figures"].get("beta", [])
    for event in status.of_kind("evaluated"):
        found[event["step"]] = event.get("about", {}).get("beta", [])
    layers = max((len(betas) for betas in found.values()), default=0)
    return {
        f"layer {layer + 1}": [(step, betas[layer]) for step, betas in sorted(found.items()) if betas]
        for layer in range(layers)
    }


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]
