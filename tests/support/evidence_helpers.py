"""A small corpus of the same texts in three made-up languages, and runs of MARGE on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig
from retro_demo.training.trainer import run_training

LANGUAGES = ("ka", "lo", "mi")
HOSTILE = '<img src=x onerror="window.canary=1">{{canary}}${canary}'
TINY: dict[str, Any] = {
    "dim": 16,
    "num_heads": 2,
    "enc_depth": 2,
    "retrieval_depth": 1,
    "base_depth": 1,
    "dec_depth": 2,
    "passage_len": 24,
    "batch_tokens": 256,
    "refresh_every": 3,
    "steps": 6,
    "warmup": 1,
    "eval_every": 3,
    "eval_tokens": 200,
    "save_every": 3,
    "evidence_per_target": 3.0,
}


def translated(groups: int = 10) -> list[dict[str, str]]:
    """Texts of numbers that all languages write alike, between words of their own; titles are hostile."""
    rng = np.random.default_rng(3)
    rows = []
    for group in range(groups):
        facts = rng.integers(100, 999, size=8).tolist()
        for language in LANGUAGES:
            words = [f"{language}{number % 5} {number}" for number in facts]
            rows.append(
                {
                    "id": f"g{group}/{language}",
                    "title": f"Text {group} {HOSTILE}",
                    "text": " ".join(words),
                    "lang": language,
                    "group": f"g{group}",
                }
            )
    return rows


def build_translated(folder: Path, holdout: float = 0.4) -> Path:
    """The corpus of `translated`, built in `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = write_jsonl(folder.parent / f"{folder.name}.jsonl", translated())
    config = CorpusConfig(chunk_len=8, vocab_size=300, num_neighbors=2, holdout=holdout)
    prepare_corpus(folder, [source], config)
    list(build_corpus(folder))
    return folder


def train_marge_run(folder: Path, corpus: Path, **settings: Any) -> Path:
    """A run of MARGE, trained for a few steps."""
    config = plan_run("marge", str(corpus), preset="tiny", settings=TINY | settings, device="cpu")
    prepare_run(folder, config)
    list(run_training(folder, lambda: False))
    return folder
