"""The figures of a MARGE run's evidence as plain JSON, each with where it comes from (papers.md 4.12)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.evidence.evidence_store import Reindexing
from retro_demo.explain.evidence_reading import EvidenceReading
from retro_demo.explain.evidence_run import MargeCorpus
from retro_demo.explain.evidence_sample import Sample, centered, movement, ranks, relevance_matrix
from retro_demo.runs.checkpoint import versions
from retro_demo.runs.provenance import NOT_COMPARABLE, code_hash, place_name, weights_of


def evidence_origin(folder: Path, source: MargeCorpus) -> dict[str, Any]:
    """Where figures about the run in `folder` come from."""
    config = source.config
    steps, parameters = weights_of(folder)
    return {
        "run": folder.name,
        "model": config.model,
        "seed": config.training.seed,
        "steps": steps,
        "parameters": parameters,
        "trained_on": {"device": config.device, "threads": config.threads, "versions": config.versions},
        "config": asdict(config) | {"corpus": place_name(config.corpus)},
        "corpus": place_name(config.corpus),
        "corpus_fingerprint": config.corpus_fingerprint,
        "documents": len(source.corpus.documents),
        "held_out_documents": int(source.corpus.held_out.sum()),
        "passages": len(source.passages),
        "code": code_hash(),
        "versions": versions(),
        "note": NOT_COMPARABLE,
    }


def matrix_json(
    folder: Path,
    source: MargeCorpus,
    sample: Sample,
    first: Reindexing,
    now: Reindexing,
    reindexes: list[dict[str, Any]],
) -> dict[str, Any]:
    """The relevance matrix and the map before step `now.step`, and the figures of all re-indexes."""
    matrix = relevance_matrix(now, sample, source.passages, source.config.evidence)
    moved = movement(first, now, sample)
    return {
        "step": now.step,
        "order": sample.order,
        "documents": [source.about(int(i)) for i in sample.ids],
        "relevance": _plain(matrix),
        "ranks": _plain(ranks(matrix)),
        "centered": _plain(centered(matrix)),
        "map": {
            name: value.round(5).tolist() if isinstance(value, np.ndarray) else value
            for name, value in moved.items()
        },
        "reindexes": reindexes,
        "provenance": evidence_origin(folder, source),
    }


def reading_json(folder: Path, source: MargeCorpus, reading: EvidenceReading) -> dict[str, Any]:
    """One target and its evidence: relevance, attention and losses."""
    return {
        "target": source.about(reading.target) | {"text": source.text(reading.target)},
        "loss": reading.loss,
        "loss_without_any": reading.loss_none,
        "loss_with_random_evidence": reading.loss_random,
        "beta": reading.betas,
        "evidence": [
            source.about(int(passage))
            | {
                "text": source.text(int(passage)),
                "relevance": float(reading.relevance[place]),
                "mass_by_layer": reading.mass[:, place].tolist(),
                "loss_without_it": float(reading.without[place]),
            }
            for place, passage in enumerate(reading.ids)
        ],
        "spearman_by_layer": [reading.agreement(layer) for layer in range(len(reading.mass))],
        "spearman": reading.agreement(None),
        "provenance": evidence_origin(folder, source),
    }


def _plain(matrix: np.ndarray) -> list[list[float | None]]:
    """Rounded, NaN as None."""
    return [[None if np.isnan(value) else round(float(value), 5) for value in row] for row in matrix]
