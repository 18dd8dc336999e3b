"""Three short documents, and a run that learns two of them by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl
from train_helpers import advance, prepare

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.settings import CorpusConfig

OVERFIT = {
    "dim": 32,
    "enc_dim": 32,
    "dropout": 0.0,
    "lr": 3e-2,
    "warmup": 5,
    "steps": 60,
    "eval_every": 10,
    "eval_tokens": 2000,
    "num_neighbors": 1,
}


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A corpus of three short documents of words that mean nothing; do not change it."""
    rng = np.random.default_rng(0)
    names = ("one", "two", "three")
    words = {name: ["".join(rng.choice(list("abcdefghijklmnop"), 4)) for _ in range(40)] for name in names}
    rows = [{"id": name, "title": name, "text": " ".join(words[name])} for name in names]
    folder = tmp_path_factory.mktemp("corpora") / "three"
    source = write_jsonl(folder.parent / "three.jsonl", rows)
    prepare_corpus(folder, [source], CorpusConfig(chunk_len=8, vocab_size=300, num_neighbors=2))
    list(build_corpus(folder))
    return folder


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory, three) -> Path:
    """A RETRO whose held-out loss is best at step 10 of 60; do not change it."""
    run = prepare(tmp_path_factory.mktemp("runs") / "overfitted", three, **OVERFIT)
    advance(run)
    return run
