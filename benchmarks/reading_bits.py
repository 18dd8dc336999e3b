"""Bits per byte of held-out windows with neighbors of several databases, for `benchmarks.reading`.

Shapes: W windows, T tokens, L looks, K neighbors, P tokens of a title, R tokens of a neighbor.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measuring import torch

import numpy as np  # isort: skip

from benchmarks.reading_arms import (
    off_logits,
    read_text,
    reader_logits,
)
from benchmarks.reading_cases import (
    Library,
    corpus_in_memory,
)
from benchmarks.reading_study import RESAMPLES, ROOT, Study
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.store import Corpus
from retro_demo.documents.sources import Document, read_documents
from retro_demo.evaluation.arms import held_out_windows
from retro_demo.evaluation.losses import draws, ratio
from retro_demo.models.reader import Reader
from retro_demo.training.lessons import Lessons, ReaderBatches, Texts
from retro_demo.training.reader_training import by_titles


@dataclass(frozen=True)
class Windowed:
    """Windows of text: tokens (W, T), titles (W, P), first chunks (W,), documents (W,)."""

    tokens: np.ndarray
    titles: np.ndarray
    first: np.ndarray
    documents: np.ndarray


def windows_of(study: Study, corpus: Corpus, count: int) -> Windowed:
    """The first full windows of held-out documents, one of each document before a second one."""
    windows = held_out_windows(corpus, study.config.training.seq_len // study.config.chunk_len, study.seed)
    rows = windows.rows[(windows.rows >= 0).all(axis=1)][:count]
    documents = corpus.chunks.document[rows[:, 0]]
    tokens = corpus.chunks.tokens[rows].reshape(len(rows), -1).astype(np.int64)
    titles = corpus.title_rows(study.config.network.title_len)[documents]
    return Windowed(tokens, titles, rows[:, 0], documents)


def found_for(
    study: Study,
    windows: Windowed,
    corpus: Corpus,
    database: Library,
    *,
    own: bool,
    every: int | None = None,
) -> np.ndarray:
    """The neighbors (W, L, K, R) of each look, of which one comes `every` so many tokens (None: a chunk);
    `own`: the window's own document is excluded."""
    chunk_len = study.config.chunk_len
    rows = []
    for tokens, first, document in zip(windows.tokens, windows.first, windows.documents, strict=True):
        title, excluded = corpus.documents[document].title, int(first) if own else None
        ends = range(chunk_len, len(tokens), every or chunk_len)
        ids = [
            database.look(tokens[end - chunk_len : end].tolist(), title, study.k, excluded) for end in ends
        ]
        rows.append(database.rows(np.concatenate(ids)))
    return np.stack(rows)


def bits_of(
    study: Study,
    windows: Windowed,
    neighbors: dict[str, np.ndarray],
    widths: np.ndarray,
    every: int | None = None,
) -> dict[str, np.ndarray]:
    """Arm -> nats (W,) of the tokens behind the first look; "bytes" beside them. `every`: see `found_for`."""
    chunk_len = study.config.chunk_len
    sums: dict[str, list[float]] = {}
    models = {"": study.model} | ({"tuned, ": study.tuned} if study.tuned is not None else {})
    for start in range(0, len(windows.tokens), 4):
        which = slice(start, start + 4)
        tokens = windows.tokens[which]
        text = read_text(study.model, tokens[:, :-1], windows.titles[which])
        places = torch.arange(chunk_len - 1, tokens.shape[1] - 1).expand(len(tokens), -1)
        targets = torch.from_numpy(tokens[:, chunk_len:])

        def nats(logits: torch.Tensor, targets: torch.Tensor = targets) -> list[float]:
            each = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), ignore_index=0, reduction="none"
            )
            return each.reshape(targets.shape).sum(1).tolist()

        sums.setdefault("bytes", []).extend(widths[tokens[:, chunk_len:]].sum(axis=1).tolist())
        for mark, model in models.items():
            off = off_logits(model, text, places)
            sums.setdefault(f"{mark}off", []).extend(nats(off))
            for name, rows in neighbors.items():
                arms = study.readers if not mark else [study.model.outputs]
                for arm in arms:  # one at a time: logits are large
                    read = reader_logits(model, text, rows[which], places, [arm], off, every)[arm]
                    sums.setdefault(f"{mark}{arm}, {name}", []).extend(nats(read))
    return {name: np.array(values) for name, values in sums.items()}


def show_bits(
    study: Study,
    name: str,
    documents: np.ndarray,
    sums: dict[str, np.ndarray],
    against: Sequence[str] = ("off", "tuned, off"),
) -> None:
    """The table of bits per byte with differences to those of `against` that are there."""
    _, place = np.unique(documents, return_inverse=True)
    drawn_ones = draws(place.max() + 1, RESAMPLES, 0)

    def by_document(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=values)

    size = by_document(sums["bytes"])
    references = [one for one in against if one in sums]
    rows, figures = [], {}
    for arm, nats in sums.items():
        if arm == "bytes":
            continue
        bits = ratio(by_document(nats) / math.log(2), size, drawn_ones)
        gaps = {
            one: ratio(by_document(nats - sums[one]) / math.log(2), size, drawn_ones)
            for one in references
            if one != arm
        }
        shown = [
            f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" if (gap := gaps.get(one)) and gap.ci else ""
            for one in references
        ]
        rows.append((arm, f"{bits.value:.3f}", *shown))
        figures[arm] = bits.to_json() | {"minus": {one: gap.to_json() for one, gap in gaps.items()}}
    title = f"{name}: bits per byte, {len(documents)} windows of {place.max() + 1} documents"
    study.report.table(title, ("arm", "bits per byte", *(f"minus {one}" for one in references)), rows)
    study.report.figures[name] = figures


def bits_part(study: Study, databases: Sequence[Library], options: argparse.Namespace) -> None:
    """Held-out windows with the neighbors of four databases."""
    windows = windows_of(study, study.own, options.windows)
    others = found_for(study, windows, study.own, study.library(study.own, everything=False), own=True)
    neighbors = {
        "other documents": others,
        "the other edition": found_for(study, windows, study.own, databases[1], own=False),
        "the same edition": found_for(study, windows, study.own, databases[0], own=False),
        "shuffled": np.roll(others, 1, axis=0),
    }
    sums = bits_of(study, windows, neighbors, study.own.bytes_of_tokens())
    show_bits(study, "bits", windows.documents, sums)


def stride_part(study: Study, databases: Sequence[Library], options: argparse.Namespace) -> None:
    """The same windows with a look at each chunk, half chunk, quarter and eighth (Ram et al. 2023)."""
    windows = windows_of(study, study.own, options.windows)
    others = study.library(study.own, everything=False)
    chunk_len, widths = study.config.chunk_len, study.own.bytes_of_tokens()
    for name, database, own in (
        ("other documents", others, True),
        ("the other edition", databases[1], False),
    ):
        sums: dict[str, np.ndarray] = {}
        for every in (chunk_len // part for part in (1, 2, 4, 8)):
            found = {f"every {every}": found_for(study, windows, study.own, database, own=own, every=every)}
            sums |= bits_of(replace(study, tuned=None), windows, found, widths, every)
        against = ("off", f"{study.model.outputs}, every {chunk_len}")
        show_bits(study, f"stride, {name}", windows.documents, sums, against)


def training_windows(study: Study) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Batches of windows of training documents by step; of a twentieth of them at negative steps."""
    corpus, texts = study.own, Texts(study.own)
    trained = np.flatnonzero(~(corpus.held_out | corpus.database_only))
    trained = np.random.default_rng([study.seed, 14]).permutation(trained)
    cut = max(1, len(trained) // 20)
    titles = corpus.title_rows(study.config.network.title_len)

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([study.seed, 15, step + 10])
        documents = rng.choice(trained[:cut] if step < 0 else trained[cut:], study.config.training.batch_size)
        tokens = texts.windows(documents.tolist(), study.config.training.seq_len, rng)
        return tokens, titles[documents]

    return batch


def taught_on(study: Study, tuned: Reader, edition: Corpus, seconds: float) -> Reader:
    """The reader with a fine-tuned base, after lessons with that base for so many processor seconds.

    What the null key and the gates learned of the base as it was is of no use to one that knows more.
    """
    config, training = study.config, study.config.training
    model = Reader(config.network).attach(tuned.base)
    model.load_state_dict(study.model.state_dict())
    sides = [by_titles(load_retriever(one, training.retriever, 0)) for one in (study.own, edition)]
    lessons = Lessons(
        study.own,
        sides[0],
        seq_len=training.seq_len,
        num_neighbors=training.num_neighbors,
        title_len=config.network.title_len,
        seed=study.seed + 100,  # other lessons than those that it had
        edition=(edition, sides[1]),
        query_tokens=training.query_tokens or config.chunk_len,
    )
    batches = ReaderBatches(
        lessons, model, count=config.lessons.lessons, batch_size=training.batch_size, room=0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr / 2, weight_decay=0.0)
    begun, steps = time.process_time(), 0
    while (spent := time.process_time() - begun) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = training.lr / 2 * min(1.0, (steps + 1) / 10) * max(0.05, 1 - spent / seconds)
        optimizer.zero_grad()
        model.loss(batches.train_batch(steps))[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        steps += 1
    print(f"\ntaught on with the fine-tuned base: {steps} steps, {spent:.0f} s of processor time")
    return model.eval()


def prose_part(study: Study, options: argparse.Namespace) -> None:
    """Reading prose with neighbors of the same prose: does it harm?"""
    texts = {"documentation": sections_of([ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])}
    for path in options.prose:
        reading = read_documents([path], fields={})
        texts[path.name.split(".")[0]] = [one for one in reading.documents if one.lang in ("", "en")]
    for name, documents in texts.items():
        corpus = corpus_in_memory(name, documents, study.tokenizer, study.config.chunk_len)
        asked = replace(corpus, held_out=np.ones(len(documents), bool))
        windows = windows_of(study, asked, options.windows)
        if len(windows.tokens) < 2:
            print(f"\n{name}: too short to measure on")
            continue
        database = study.library(corpus, everything=True)
        near = {"other documents": found_for(study, windows, corpus, database, own=True)}
        quiet = replace(study, tuned=None)
        sums = bits_of(quiet, windows, near, corpus.bytes_of_tokens())
        show_bits(study, f"prose, {name}", windows.documents, sums)
        arm = study.model.outputs
        if arm in study.readers:
            over = float(sums[f"{arm}, other documents"].sum() / sums["off"].sum() - 1)
            study.report.aim(f"prose, {name}: reading against off, percent more", 100 * over, most=0.5)


def sections_of(paths: Sequence[Path]) -> list[Document]:
    """The sections of Markdown files as documents."""
    documents = []
    for path in paths:
        for number, part in enumerate(path.read_text(encoding="utf-8").split("\n## ")):
            title = part.split("\n", 1)[0].lstrip("# ")
            documents.append(Document(f"{path.stem}-{number}", title, "en", part))
    return documents
