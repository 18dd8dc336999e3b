"""What tests of marge training share with others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig
from retro_demo.training.trainer import run_training

SETTINGS = {
    "dim": 16,
    "num_heads": 2,
    "enc_depth": 2,
    "retrieval_depth": 1,
    "base_depth": 1,
    "dec_depth": 1,
    "passage_len": 24,
    "refresh_every": 4,
    "batch_tokens": 160,
    "evidence_per_target": 3.0,
    "steps": 10,
    "warmup": 2,
    "lr": 2e-3,
    "eval_every": 5,
    "eval_tokens": 200,
    "save_every": 3,
    "dropout": 0.1,
}


def rows() -> list[dict[str, str]]:
    """The same 24 items in two languages that share names and figures, and nothing else."""
    rng = random.Random(0)
    words = {lang: ["".join(rng.choices("bdfgklmnprst", k=4)) for _ in range(40)] for lang in ("xx", "yy")}
    made = []
    for item in range(24):
        names = [f"N{rng.randrange(1000)}" for _ in range(6)]
        for lang, own in words.items():
            text = " ".join(f"{rng.choice(own)} {name} {rng.choice(own)}" for name in names)
            made.append({"id": f"{item}-{lang}", "lang": lang, "group": str(item), "text": text})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two-languages")
    config = CorpusConfig(chunk_len=16, vocab_size=400, holdout=0.25)
    prepare_corpus(out / "corpus", [write_jsonl(out / "rows.jsonl", rows())], config)
    list(build_corpus(out / "corpus"))
    return out / "corpus"


def prepare(out: Path, corpus: Path, **changes) -> Path:
    prepare_run(out, plan_run("marge", str(corpus), settings=SETTINGS | changes, device="cpu"))
    return out


def advance(out: Path, stop_after: int | None = None) -> list[dict]:
    events: list[dict] = []
    for event in run_training(out, lambda: stop_after is not None and len(of(events, "step")) >= stop_after):
        events.append(event.to_json())
    return events


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]
