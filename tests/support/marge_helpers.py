"""A corpus whose held-out texts stand almost word for word in another language, and runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.models.marge import MARGE
from retro_demo.runs.checkpoint import save_weights, write_run_config
from retro_demo.runs.planning import plan_run
from retro_demo.settings import CorpusConfig

WORDS = [a + b + c for a in "bdfgklmnpr" for b in "aeiou" for c in ("nan", "s")]
LANGUAGES = ("aa", "bb", "cc")
SHAPE: dict[str, Any] = {
    "dim": 64,
    "num_heads": 2,
    "enc_depth": 2,
    "retrieval_depth": 1,
    "base_depth": 1,
    "dec_depth": 2,
    "passage_len": 32,
    "evidence_per_target": 2.0,
    "copying_start": True,
    "scale_embeddings": False,
    "steps": 10,
    "shifted_keys": False,
    "abstain": False,
    "beta_start": 1.0,
}


def translated(groups: int = 24, seed: int = 0, held_out: int = 10) -> list[dict[str, str]]:
    """Texts of random words in three languages, which differ in one word; the first groups are held out."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        words = rng.choice(WORDS, 16)
        for language in LANGUAGES:
            text = " ".join([language * 2, *words])
            use = "held-out" if group < held_out else "training"
            name = f"{language}-{seed}-{group}"
            rows.append(
                {
                    "id": name,
                    "title": name,
                    "lang": language,
                    "group": f"{seed}-{group}",
                    "text": text,
                    "use": use,
                }
            )
    return rows


def built(folder: Path, rows: list[dict[str, str]]) -> Corpus:
    config = CorpusConfig(chunk_len=16, vocab_size=400, num_neighbors=2)
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], config)
    list(build_corpus(folder))
    return load_corpus(folder)


def make_marge_run(folder: Path, corpus: Path, *, reads: bool = True, **settings: Any) -> Path:
    """A run as if it had been trained for its steps.

    One that `reads` writes the words that stand in its evidence, in any order, the more relevant a
    passage the more; else its weights are fresh.
    """
    config = plan_run("marge", str(corpus), settings=SHAPE | settings, device="cpu")
    write_run_config(folder, config)
    (folder / "tokenizer.json").write_bytes((corpus / "tokenizer.json").read_bytes())
    torch.manual_seed(config.training.seed)
    model = MARGE(config.network)
    if reads:
        with torch.no_grad():
            model.embedding.weight.normal_(std=0.7)
            for layer in model.evidence_layers():
                layer.read.to_q.weight.zero_()  # all tokens of a passage are alike: relevance alone decides
                layer.read.to_out.weight *= 20
                layer.read.beta.fill_(20)
    save_weights(folder, model, config.training.steps)
    return folder
