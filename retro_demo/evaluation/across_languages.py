"""How often a MARGE finds the same item in another language: untrained, by words alone, and trained.

    recall_at_1 ...     the trained encoder by the cosine (evidence/reindex.py: `recall_by`)
    untrained           as the network began, by the same seed
    words               by the words of texts alone (models/words.py), of which nothing is learned
    learned             by what is learned beside words, where that stands apart
    trained             all of it
    control             a run whose evidence was random, where one was named

Each of these holds same_script and all (recall@1), pool and chance, by what the run chooses evidence by:
`by` says margin or relevance, and `cosine` holds the two by the cosine alone. {} where no group has two
languages.

Shapes: P passages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import Corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.evidence.passages import Passages, cut_passages, some_passages
from retro_demo.evidence.reindex import begin_words, center_anew, embed_passages, recall, scripts_of
from retro_demo.evidence.vectors import Vectors, WordVectors, taken
from retro_demo.models.config import MargeConfig
from retro_demo.models.marge import MARGE
from retro_demo.runs.checkpoint import MargeRun, load_marge, read_marge_config
from retro_demo.runs.loading import load_own_corpus

WORDS_ALONE: Mapping[str, Any] = {
    "relevance_words": 0.5,
    "relevance_ngrams": 0.5,
    "relevance_table": 0,
    "center": True,
    "relevance": "cosine",
}
"""What words alone are where a network's relevance holds none."""


def recall_across_languages(
    run: Path,
    corpus: Corpus,
    passages: Passages,
    vectors: Vectors,
    left_out: np.ndarray,
    *,
    control: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """The figures, of passages (P,) that are held out and not `left_out`, bool (P,).

    vectors: the embeddings of all passages by the run. Raises UserError where the control is none.
    """
    config = read_marge_config(run)
    scripts = scripts_of(corpus, config.network.languages)
    firsts = np.flatnonzero(passages.position == 0)
    some, asking = some_passages(passages, firsts), (passages.held_out & ~left_out)[firsts]
    trained = taken(vectors, firsts)
    figures = recall(trained, some, asking, scripts)
    if not figures:
        return {}
    begun = _begun(run, config, config.network, some, device)
    ways: dict[str, Vectors] = {"untrained": begun, "words": _by_words(run, config, begun, some, device)}
    if isinstance(trained, WordVectors) and config.network.relevance_table:
        ways["learned"] = trained.learned_alone()
    ways["trained"] = trained
    if control is not None:
        check_control(run, control)
        ways["control"] = embed_passages(load_marge(control, choose_device(device)), some.tokens)
    hubs = config.evidence.hub_neighbors
    for name, way in ways.items():
        by_cosine = figures if name == "trained" else recall(way, some, asking, scripts)
        own = recall(way, some, asking, scripts, hub_neighbors=hubs) if hubs else by_cosine
        figures[name] = _short(own) | {
            "by": "margin" if hubs else "relevance",
            "cosine": {part: _short(by_cosine)[part] for part in ("same_script", "all")},
        }
    return figures


def check_control(run: Path, control: Path) -> None:
    """Raise UserError where a run is no MARGE that was trained as another, but with random evidence."""
    if unfit := unfit_marge_control(read_marge_config(run), read_marge_config(control)):
        raise UserError(
            f"The control {control.name} {unfit}. Name a run that was trained as this one, but with "
            "--evidence-source random."
        )


def unfit_marge_control(ours: MargeRun, theirs: MargeRun) -> str:
    """Why a MARGE is no control of another one; "" where it is. Their seeds may differ."""
    if theirs.evidence.evidence_source != "random":
        return "was trained with the evidence that it found"
    alike = {
        "corpus": (ours.corpus_fingerprint, theirs.corpus_fingerprint),
        "network": (ours.network, theirs.network),
        "training": (
            ours.training,
            replace(theirs.training, seed=ours.training.seed, keep=ours.training.keep),
        ),
        "rules of evidence": (ours.evidence, replace(theirs.evidence, evidence_source="retrieved")),
    }
    other = next((word for word, (one, another) in alike.items() if one != another), "")
    return f"has another {other} than the run" if other else ""


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """same_script (None: no two languages share a script), all, pool and chance."""
    return {
        "same_script": found.get("recall_at_1_same_script"),
        "all": found["recall_at_1"],
        "pool": found["pool"],
        "chance": found["chance"],
    }


def _begun(run: Path, config: MargeRun, network: MargeConfig, some: Passages, device: str) -> Vectors:
    """Embeddings of some passages by such a network as the run's training would have begun it."""
    torch.manual_seed(config.training.seed)
    model = MARGE(network)
    if model.words is not None:
        own = load_own_corpus(run, config)
        passages = cut_passages(own, config.evidence.passage_len, network.languages)
        begin_words(model, passages, own.tokenizer, config.training.seed)
        model.to(choose_device(device))
        center_anew(model, embed_passages(model, passages.tokens), ~passages.held_out)
    return embed_passages(model.to(choose_device(device)).eval(), some.tokens)


def _by_words(run: Path, config: MargeRun, begun: Vectors, some: Passages, device: str) -> Vectors:
    """Embeddings by words alone: those that the network began with, else of a network that has some."""
    if isinstance(begun, WordVectors) and any(begun.widths[:2]):
        return begun.part((0, 1))
    return _begun(run, config, replace(config.network, **WORDS_ALONE), some, device)
