"""What a MARGE run found at each re-index: samples, series over the steps, tables for download.

A sample is a few dozen documents of the run and how relevant they are to each other, read from what each
re-index saved (evidence/reindex.py), as is what each token weighs. The series come from the events: what
each re-index found, and how beta moved. No model is needed. Downloads are plain JSON, each with its origin.

Shapes: P passages, R passages whose embeddings are saved, N of the sample, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.errors import UserError
from retro_demo.evidence.passages import Passages, forbidden
from retro_demo.evidence.reindex import Reindexing
from retro_demo.explain.marge_reading import EvidenceReading, MargeCorpus
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.models.config import EvidenceConfig
from retro_demo.runs.checkpoint import versions
from retro_demo.runs.provenance import NOT_COMPARABLE, code_hash, folder_name, weights_of

MOST = 60  # documents of a sample
GROUPS = 6  # at least so many groups, where there are


@dataclass(frozen=True)
class PassageSample:
    """Passages in the order in which they are shown."""

    ids: np.ndarray
    """int (N,): passage ids"""
    order: str
    """group or language: what stands side by side"""

    def borders(self, passages: Passages) -> list[int]:
        """Places (0 < place < N) where another group, or language, begins; none where all stand alone."""
        of = (passages.group if self.order == "group" else passages.language)[self.ids]
        places = (1 + np.flatnonzero(of[1:] != of[:-1])).tolist()
        return [] if len(places) == len(of) - 1 else places


def choose_sample(
    passages: Passages, rows: np.ndarray, *, held_out: bool, order: str, languages: Sequence[str] = ()
) -> PassageSample:
    """Up to MOST documents, held out or not: whole groups in the same few languages, as far as there are.

    rows (R,): the passages whose embeddings are kept; a document is taken by the first of them.
    languages: those to take, "" for all. Raises UserError where no such document is.
    """
    rows = rows[passages.held_out[rows] == held_out]
    _, first = np.unique(passages.document[rows], return_index=True)
    ids = rows[np.sort(first)]
    if languages:
        wanted = [passages.languages.index(name) for name in languages if name in passages.languages]
        ids = ids[np.isin(passages.language[ids], wanted)]
    if not len(ids):
        kind = "held-out" if held_out else "training"
        among = f" in {', '.join(languages)}" if languages else ""
        raise UserError(f"There are no {kind} documents{among} to show. Choose other documents.")
    groups, sizes = np.unique(passages.group[ids], return_counts=True)
    if sizes.max() == 1:  # nothing belongs together
        ids = ids[_spread_of_sample(len(ids), MOST)]
    else:
        known = np.unique(passages.language[ids])
        count = min(len(groups), max(GROUPS, MOST // len(known)))
        shown = known[_spread_of_sample(len(known), MOST // count)]
        ids = ids[np.isin(passages.language[ids], shown)]
        groups, sizes = np.unique(passages.group[ids], return_counts=True)
        fullest = groups[np.lexsort((groups, -sizes))][:count]
        ids = ids[np.isin(passages.group[ids], fullest)]
    keys = (passages.language[ids], passages.group[ids])
    ordered = ids[np.lexsort((ids, *(keys if order == "group" else keys[::-1])))]
    return PassageSample(ordered[:MOST], order)


def _spread_of_sample(count: int, most: int) -> np.ndarray:
    """Which of `count` things to take, at most so many, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, max(1, most))).astype(int))


def vectors_of(found: Reindexing, ids: np.ndarray) -> np.ndarray:
    """Embeddings float32 (N, D), of length 1, of passages that are among the kept ones."""
    places = np.searchsorted(found.rows, ids)
    vectors = found.vectors[places].astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def relevance_matrix(
    found: Reindexing, sample: PassageSample, passages: Passages, config: EvidenceConfig
) -> np.ndarray:
    """Relevance of evidence (column) for target (row), float32 (N, N); NaN where it may be no evidence."""
    vectors = vectors_of(found, sample.ids)
    return np.where(forbidden(passages, config, sample.ids, sample.ids[None]), np.nan, vectors @ vectors.T)


def ranks(matrix: np.ndarray) -> np.ndarray:
    """Each row's ranks, 1 for the most relevant, NaN where there is none; equal values share the better."""
    better = (matrix[:, None, :] > matrix[:, :, None]).sum(axis=2)
    return np.where(np.isnan(matrix), np.nan, 1 + better).astype(np.float32)


def centered(matrix: np.ndarray) -> np.ndarray:
    """The matrix without what a row or a column has in common: minus their means, plus that of all."""
    there = ~np.isnan(matrix)
    filled = np.where(there, matrix, 0.0)

    def mean(axis: int | None) -> np.ndarray:
        return filled.sum(axis=axis, keepdims=True) / np.maximum(there.sum(axis=axis, keepdims=True), 1)

    return (matrix - mean(1) - mean(0) + mean(None)).astype(np.float32)


def nearest_of_group(matrix: np.ndarray, sample: PassageSample, passages: Passages) -> tuple[int, int]:
    """(targets whose most relevant document is of their own group, targets that have one to be found)."""
    group = passages.group[sample.ids]
    same = (group[:, None] == group) & ~np.isnan(matrix)
    asked = same.any(axis=1)
    best = np.where(np.isnan(matrix), -np.inf, matrix).argmax(axis=1)
    return int((asked & same[np.arange(len(group)), best]).sum()), int(asked.sum())


Series = dict[str, list[tuple[float, float]]]
"""By name: (step, value) of each measurement."""

MEASURED = (
    "recall_at_1",
    "mrr",
    "recall_at_1_same_script",
    "recall_at_1_other_script",
    "chance",
    "queries",
)
"""Figures of reindex.recall that stand in a row."""

PAPERS = {
    "recall_at_1": "recall@1",
    "recall_at_1_same_script": "one script",
    "recall_at_1_other_script": "two scripts",
    "chance": "chance",
}
"""What is drawn where relevance is the paper's, and what it is called."""

BY_WORDS = {
    "recall_at_1": "recall@1",
    "recall_at_1_learned": "learned part",
    "recall_at_1_words": "words alone",
}
"""What is drawn where relevance begins with words."""


def reindexes(status: JobStatus) -> list[dict[str, Any]]:
    """All re-indexes so far: step, figures of the pairs and, where it was measured, recall, side by side."""
    rows = []
    for event in status.of_kind("reindexed"):
        figures = dict(event["figures"])
        across = figures.pop("recall", None) or {}
        targets = figures["targets_with_evidence"] + figures["targets_resting"]
        figures["resting"] = figures["targets_resting"] / max(1, targets)
        recall = {key: across[key] for key in MEASURED if key in across}
        if "pairs" in across:
            recall["searches"] = across["pairs"]
        for part in ("learned", "words"):
            if alone := figures.get(f"recall_{part}"):
                recall[f"recall_at_1_{part}"] = alone["recall_at_1"]
        rows.append({"step": event["step"]} | figures | recall)
    return rows


def recall_series(rows: list[dict[str, Any]], control: list[dict[str, Any]] | None = None) -> Series:
    """Does the encoder find the same item in another language: over the re-indexes, and untrained.

    control: the re-indexes of a run whose evidence was random; its line is that of what it learned, or of
    all where nothing stands apart.
    """
    learned = any("recall_at_1_learned" in row for row in rows)
    drawn = BY_WORDS if any("recall_at_1_words" in row for row in rows) or learned else PAPERS
    series = {name: _points(rows, key) for key, name in drawn.items()}
    if control:
        beside = "recall_at_1_learned" if learned else "recall_at_1"
        series["control, learned part" if learned else "control"] = _points(control, beside)
    if drawn is PAPERS and (untrained := series["recall@1"][:1]):
        last = rows[-1]["step"]
        series["untrained"] = [(untrained[0][0], untrained[0][1]), (last, untrained[0][1])]
    return series


@dataclass(frozen=True)
class MovedTokens:
    """Tokens whose weight in relevance changed most, by what they spell: (text, weight before, now)."""

    rose: list[tuple[str, float, float]]
    fell: list[tuple[str, float, float]]


def moved_tokens(
    first: Reindexing, now: Reindexing, source: MargeCorpus, most: int = 12
) -> MovedTokens | None:
    """What learning did to the weights of tokens, by the ratio of now to the first re-index.

    Tokens that no passage in training holds did not learn, and those that spell no letter or digit say
    nothing. None where a re-index kept no weights: relevance is the paper's, or the run is of before.
    """
    if first.weights is None or now.weights is None:
        return None
    passages, tokenizer = source.passages, source.corpus.tokenizer
    before, after = first.weights, now.weights
    there = np.unique(passages.tokens[~passages.held_out])
    there = there[(there > 0) & (there < min(len(before), len(after), tokenizer.vocab_size))]
    ratio = np.log(after[there] / before[there])
    order = np.argsort(ratio, kind="stable")
    texts = tokenizer.token_texts(there.tolist())
    tells = [_spells_a_word(tokenizer.token_bytes(token)) for token in there.tolist()]

    def some(places: np.ndarray) -> list[tuple[str, float, float]]:
        return [(texts[at], float(before[there[at]]), float(after[there[at]])) for at in places[:most]]

    told = order[np.array(tells, dtype=bool)[order]]
    return MovedTokens(some(told[ratio[told] > 0][::-1]), some(told[ratio[told] < 0]))


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
        "config": asdict(config) | {"corpus": folder_name(config.corpus)},
        "corpus": folder_name(config.corpus),
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
    sample: PassageSample,
    first: Reindexing,
    now: Reindexing,
    reindexes: list[dict[str, Any]],
) -> dict[str, Any]:
    """The relevance matrix and what tokens weigh before step `now.step`; the figures of all re-indexes."""
    matrix = relevance_matrix(now, sample, source.passages, source.config.evidence)
    moved = moved_tokens(first, now, source, most=100)
    return {
        "step": now.step,
        "order": sample.order,
        "documents": [source.about(int(i)) for i in sample.ids],
        "relevance": _plain(matrix),
        "ranks": _plain(ranks(matrix)),
        "centered": _plain(centered(matrix)),
        "weights": asdict(moved) if moved else None,
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


def _spells_a_word(raw: bytes) -> bool:
    """Whether a token holds a letter or digit, and no half of one."""
    try:
        return any(map(str.isalnum, raw.decode()))
    except UnicodeDecodeError:
        return False


def _plain(matrix: np.ndarray) -> list[list[float | None]]:
    """Rounded, NaN as None."""
    return [[None if np.isnan(value) else round(float(value), 5) for value in row] for row in matrix]
