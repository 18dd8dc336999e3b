"""What share of a training step goes into retrieval.

    .venv/bin/python -m benchmarks.retrieval_share [--threads 2] [--rounds 20]

RETRO on the factbook: neighbors were found when the corpus was built, so a step only gathers their tokens.
"made" is all that stands between the step's number and its batch, the text's own tokens included. Beside it,
what searching anew for each batch would cost, and finding the neighbors of all chunks once.
MARGE on the UDHR: the batch as well, and its re-index spread over the steps until the next.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Report, at_threads, options, take_turns, torch
from benchmarks.peers import our_step
from retro_demo.corpus.retrievers import load_retriever, search_stored
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO
from retro_demo.paths import data_home
from retro_demo.runs.planning import plan_run
from retro_demo.settings import RETRIEVERS
from retro_demo.training.marge_batches import MargeBatches
from retro_demo.training.trainer import make_batches

FACTBOOK, RIGHTS = "sample:factbook2015", "sample:udhr44"
SAMPLE_CHUNKS = 2048  # whose search is timed
MOST = 0.02


def of_retro(preset: str, chosen: Any, report: Report) -> list[object]:
    """A row of the table: RETRO with this preset."""
    config = plan_run("retro", FACTBOOK, preset=preset)
    corpus = load_corpus(corpus_folder(data_home()[0], FACTBOOK))
    batches, steps = make_batches(config, corpus), itertools.count()
    finder = load_retriever(corpus, RETRIEVERS[0])
    chance, count = np.random.default_rng(0), config.training.num_neighbors
    live = config.training.batch_size * (config.training.seq_len // corpus.config.chunk_len - 1)
    ways = {
        "made": lambda: batches.train_batch(next(steps)),
        "searched": lambda: search_stored(corpus, finder, chance.choice(batches.rows, live), count),
        "step": our_step(RETRO(config.network), batches.train_batch(0)),
    }
    seconds = take_turns(ways, chosen.rounds, clock=chosen.clock)
    made, searched, step = (statistics.median(times) for times in seconds.values())
    stored = corpus.neighbor_ids.shape[1]
    rows = chance.choice(batches.rows, min(SAMPLE_CHUNKS, len(batches.rows)))
    alone = take_turns({"all": lambda: search_stored(corpus, finder, rows, stored)}, 1, clock=chosen.clock)[
        "all"
    ][0]
    once = alone / len(rows) * len(corpus.chunks.tokens)
    share = made / (made + step)
    report.figures[f"retro {preset}"] = {"seconds": seconds, "all_chunks_once": once}
    report.aim(f"retro {preset}: batch with neighbors, share of a step", share, most=MOST)
    name = f"{preset} ({len(corpus.chunks.tokens)} chunks)"
    anew = searched / (searched + made + step)
    return [name, ms(step), ms(made), f"{share:.2%}", f"{ms(searched)} ({anew:.1%})", f"{once:.1f} s"]


def of_marge(preset: str, chosen: Any, report: Report) -> list[object]:
    """A row of the table: MARGE with this preset."""
    torch.manual_seed(0)
    config = plan_run("marge", RIGHTS, preset=preset)
    corpus = load_corpus(corpus_folder(data_home()[0], RIGHTS))
    model = MARGE(config.network)
    batches = MargeBatches(
        corpus,
        config.network.languages,
        config.evidence,
        seed=0,
        steps=config.training.steps,
        reading_steps=config.lesson_steps,
        lessons_kept=config.training.lessons_kept,
    )
    with tempfile.TemporaryDirectory() as folder:
        again = {"re-index": lambda: batches.refresh(0, model, Path(folder))}
        found = take_turns(again, max(1, chosen.rounds // 10), warmup=0, clock=chosen.clock)["re-index"]
    steps = itertools.count()
    sizes = [batches.train_batch(step) for step in range(chosen.rounds)]
    typical = sorted(sizes, key=lambda batch: batch.evidence.numel())[len(sizes) // 2]
    ways = {"made": lambda: batches.train_batch(next(steps)), "step": our_step(model, typical)}
    seconds = take_turns(ways, chosen.rounds, clock=chosen.clock)
    made, step = (statistics.median(times) for times in seconds.values())
    spread = statistics.median(found) / config.evidence.refresh_every
    share = (made + spread) / (made + spread + step)
    report.figures[f"marge {preset}"] = {"seconds": seconds | {"re-index": found}}
    report.aim(f"marge {preset}: batch and re-index, share of a step", share, most=MOST)
    every = f"{statistics.median(found):.1f} s (each {config.evidence.refresh_every} steps)"
    name = f"{preset} ({len(batches.passages)} passages)"
    return [name, ms(step), ms(made), every, ms(spread), f"{share:.2%}"]


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def main() -> None:
    chosen = options(__doc__, rounds=20, threads=(2,)).parse_args()
    report = Report("retrieval_share")
    for sample in (FACTBOOK, RIGHTS):
        for _event in ensure_sample(sample):
            pass
    presets = ["tiny"] if chosen.quick else ["tiny", "small"]
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        at = f"{at_threads(threads, chosen.clock)}, medians of {chosen.rounds}"
        report.table(
            f"Retrieval in a training step of RETRO, {at}:",
            ("preset", "step", "batch made", "its share", "searched anew (its share)", "all chunks, once"),
            [of_retro(preset, chosen, report) for preset in presets],
        )
        report.table(
            f"Retrieval in a training step of MARGE, {at}:",
            ("preset", "step", "batch made", "a re-index", "of it a step", "share of both"),
            [of_marge(preset, chosen, report) for preset in presets],
        )
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
