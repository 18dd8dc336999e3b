"""A re-index of MARGE over many passages: seconds of each part and the most memory it takes.

    .venv/bin/python -m benchmarks.marge_scale [--sizes 3000,100000] [--threads 1] [--json FILE]

The passages are those of the Universal Declaration in 44 languages and, where a size wants more, copies of
them in which half of the tokens are those of another passage of the language, drawn with a seed. Copies of
one article with one number are a group in all languages; every fifth group is held out. The settings are
the preset's (`small`): relevance by words, margins against hubs, one shard. Each size runs in a process of
its own. Memory is the largest resident set, and what of it was there before the re-index began.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.measuring import Report, torch
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.evidence.passages import Passages, cut_passages, languages_of, random_pairs
from retro_demo.evidence.reindex import begin_words, center_anew, embed_passages, reindex, scripts_of
from retro_demo.models.marge import MARGE
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import MargeRun
from retro_demo.runs.planning import plan_run
from retro_demo.training.marge_batches import make_batches_of_subgraphs

SAMPLE = "sample:udhr44"
REPLACED = 0.5
HELD_OUT = 5  # every so-manieth group


def many(corpus: Corpus, passage_len: int, count: int) -> Passages:
    """So many passages: those of the corpus, and perturbed copies of them."""
    whole = cut_passages(corpus, passage_len, languages_of(corpus))
    rng = np.random.default_rng(0)
    copies = -(-count // len(whole))
    ids = np.tile(np.arange(len(whole)), copies)[:count]
    number = np.arange(count) // len(whole)
    tokens = whole.tokens[ids]
    for language in np.unique(whole.language):
        own, rows = (np.flatnonzero(one == language) for one in (whole.language, whole.language[ids]))
        others = whole.tokens[rng.choice(own, len(rows))]
        changed = (rng.random(others.shape) < REPLACED) & (others != 0) & (tokens[rows] != 0)
        changed &= (number[rows] > 0)[:, None]
        changed[:, 0] = False  # the language's own token
        tokens[rows] = np.where(changed, others, tokens[rows])
    group = number * (int(whole.group.max()) + 1) + whole.group[ids]
    _, content = np.unique(tokens[:, 1:], axis=0, return_inverse=True)
    return Passages(
        tokens=tokens,
        document=number * len(corpus.documents) + whole.document[ids],
        position=whole.position[ids],
        language=whole.language[ids],
        group=group,
        content=content.reshape(-1),
        held_out=group % HELD_OUT == 0,
        database_only=np.zeros(count, dtype=bool),
        languages=whole.languages,
    )


@contextmanager
def timed(name: str, seconds: dict[str, list[float]]) -> Iterator[None]:
    """Note seconds by the wall and of all cores, and the most memory (MB) up to the end of the block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent = [time.perf_counter() - wall, time.process_time() - cpu, most_megabytes()]
    seconds[name] = [round(one, 1) for one in spent]


def most_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int, threads: int) -> dict[str, object]:
    """One re-index of so many passages, and an epoch of batches from it."""
    torch.set_num_threads(threads)
    list(ensure_sample(SAMPLE))
    corpus = load_corpus(corpus_folder(data_home()[0], SAMPLE))
    run = plan_run("marge", SAMPLE, preset="small", device="cpu")
    assert isinstance(run, MargeRun)
    passages, seconds = many(corpus, run.evidence.passage_len, count), {}
    torch.manual_seed(0)
    model = MARGE(run.network).eval()
    targets = ~passages.held_out
    with timed("weights and table", seconds):
        begin_words(model, passages, corpus.tokenizer, 0)
    before = most_megabytes()
    with timed("embedding", seconds):
        vectors = embed_passages(model, passages.tokens)
    with timed("centering", seconds):
        vectors = center_anew(model, vectors, targets)
    with timed("sketch", seconds):
        _ = vectors.sketch  # type: ignore[union-attr]
    with timed("pairs and figures", seconds):
        found = reindex(
            0,
            vectors,
            passages,
            run.evidence,
            targets=targets,
            candidates=targets,
            scripts=scripts_of(corpus, passages.languages),
            seed=0,
            before=None,
        )
    with timed("an epoch of batches", seconds):
        batches = make_batches_of_subgraphs(found.pairs, passages, run.evidence, 0)
    with timed("random pairs (the control)", seconds):
        random_pairs(found.pairs, passages, run.evidence, candidates=targets, shard_seed=0, seed=0)
    return {
        "passages": len(passages),
        "pairs": len(found.pairs),
        "same_group": found.figures["same_group"],
        "recall": found.figures["recall"]["recall_at_1"],
        "batches": len(batches),
        "parts": seconds,
        "before_mb": round(before),
        "most_mb": round(most_megabytes()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="3000,100000", help="passages")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.threads)))
        return
    report = Report("marge_scale")
    for size in chosen.sizes.split(","):
        command = [sys.executable, "-m", "benchmarks.marge_scale", "--one", size]
        command += ["--threads", str(chosen.threads)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(told.splitlines()[-1])
        rows = [(part, *spent) for part, spent in found["parts"].items()]
        title = f"{found['passages']:,} passages, {found['pairs']:,} pairs, {found['batches']:,} batches: "
        title += f"{found['most_mb']:,} MB at most, {found['before_mb']:,} MB before"
        report.table(title, ("part", "seconds", "CPU seconds", "most MB so far"), rows)
        report.figures[size] = found
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
