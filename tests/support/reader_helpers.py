"""A small pretrained base with random weights, and corpora of two editions, for readers of neighbors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import PLACES, write_jsonl

from benchmarks.made_bases import FAMILIES, write_base
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig
from retro_demo.training.lessons import Lessons
from retro_demo.training.reader_training import by_titles

CHUNK, TITLE, QUERY, LENGTH = 16, 12, 20, 64
SHAPE = {"chunk_len": CHUNK, "title_len": TITLE, "match_dim": 16}
TRAINING = {"seq_len": LENGTH, "query_tokens": QUERY, "num_neighbors": 2, "lessons": 6, "batch_size": 2}


def countries(edition: int = 0) -> list[dict[str, str]]:
    """Entries of made-up countries with named fields; another edition has other values."""
    rng = np.random.default_rng([3, edition])
    rows = []
    for place in PLACES:
        title, head = f"Republic of {place}", rng.choice(PLACES)
        fields = [f"{name}: {rng.integers(100, 9999)} km" for name in ("Area", "Coast", "Roads", "Rivers")]
        people = [f"{name}: {rng.integers(100, 9999)} souls" for name in ("Population", "Farmers")]
        text = "\n".join([title, "", "Geography:", *fields, "", "People:", *people, f"Leader: Anna {head}"])
        rows.append({"id": place.lower(), "title": title, "text": text})
    return rows


def make_base(folder: Path) -> Path:
    write_base(folder, FAMILIES["smollm2"] | {"max_position_embeddings": 400})
    return folder


def make_corpus(folder: Path, rows: list[dict[str, str]], tokenizer: Path | None = None) -> Path:
    """A built corpus, in the tokens of a base or in its own."""
    config = CorpusConfig(
        chunk_len=CHUNK,
        vocab_size=300,
        num_neighbors=4,
        tokenizer=str(tokenizer / "tokenizer.json") if tokenizer else "train",
    )
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], config)
    list(build_corpus(folder))
    return folder


def read_corpus(folder: Path, rows: list[dict[str, str]], tokenizer: Path) -> Corpus:
    return load_corpus(make_corpus(folder, rows, tokenizer))


def make_lessons(corpus: Corpus, edition: Corpus | None = None, **changes: Any) -> Lessons:
    def finder(one: Corpus):
        return by_titles(load_retriever(one, "bm25-titles", QUERY))

    how: dict[str, Any] = {"seq_len": LENGTH, "num_neighbors": 2, "title_len": TITLE, "seed": 0}
    how |= {"query_tokens": QUERY, "edition": (edition, finder(edition)) if edition else None}
    return Lessons(corpus, finder(corpus), **how | changes)


def prepare_reader(out: Path, corpus: Path, base: Path, **changes: Any) -> Path:
    """A run of kind reader that is to be trained."""
    settings = SHAPE | TRAINING | {"steps": 4, "eval_every": 4, "save_every": 2, "eval_tokens": 100} | changes
    prepare_run(out, plan_run("retrofit", str(corpus), settings=settings, device="cpu", base=str(base)))
    return out
