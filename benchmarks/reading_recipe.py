"""What makes a network read its neighbors: the recipe, and the recipe with one part left out.

    .venv/bin/python -m benchmarks.reading_recipe BASE --out reading [--steps 200] [--seeds 0,1,2]

Each row is a retrofit of the run BASE (an `lm`) with the same steps and windows; measured are the
held-out arms off, on, shuffled and oracle (the best neighbor is the chunk with its true
continuation). "Reads" is off - oracle, in nats: a network that copies what it is shown saves much
there. Rows that are done are found in --out and not trained again. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.evaluation.arms import Arms, held_out_windows
from retro_demo.evaluation.losses import LossTable, read_arm
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import load_model, read_run_config
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.training.trainer import run_training

NO_LESSONS = {"reading": 0.0, "lessons_kept": 0.0}
PLAIN = {"shifted_keys": False, "copying_start": False}
ROWS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "lessons fade out to none": {"lessons_kept": 0.0},
    "no lessons": NO_LESSONS,
    "no shifted keys": {"shifted_keys": False},
    "no start as a copier": {"copying_start": False},
    "lessons alone (the paper's network)": PLAIN,
    "none of it (the paper's network)": PLAIN | NO_LESSONS,
}
ARMS = ("off", "on", "shuffled", "oracle_0")


def measure(run: Path, tokens: int) -> dict[str, float]:
    """Mean loss of each arm in nats on about so many held-out tokens."""
    config = read_run_config(run)
    corpus = load_corpus(corpus_folder(data_home()[0], config.corpus))
    windows = held_out_windows(corpus, config.training.seq_len // corpus.config.chunk_len, seed=0)
    tables = {"dense": corpus.neighbor_ids}
    arms = Arms(corpus, windows, tables, "dense", config.training.num_neighbors, 0)
    table = LossTable(windows, arms.tokens(np.arange(len(windows))), corpus.bytes_of_tokens())
    count = table.windows_for(tokens)
    model = load_model(run)
    for arm in ARMS:
        for which in np.array_split(np.arange(count), -(-count // 8)):
            table.add(arm, which, read_arm(model, arms, arm, which))
    there = table.there[:count]
    return {arm: float(table.losses[arm][:count][there].mean()) for arm in ARMS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="the lm to retrofit: a folder, or sample:NAME")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--tokens", type=int, default=17_000, help="held-out tokens to measure on")
    parser.add_argument("--corpus", default="sample:factbook2015")
    options = parser.parse_args()
    list(ensure_sample(options.corpus))
    results: dict[str, list[dict[str, float]]] = {}
    heads = ["what", *ARMS, "on - off", "reads (off - oracle)"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, changes in ROWS.items():
        for seed in map(int, options.seeds.split(",")):
            run = options.out / f"{name.split(' (')[0].replace(' ', '-')}-{seed}"
            settings = changes | {"steps": options.steps, "seed": seed, "eval_every": options.steps}
            prepare_run(run, plan_run("retrofit", options.corpus, settings=settings, base=options.base))
            begun = time.perf_counter()
            if saved_step(run) < options.steps:
                list(run_training(run, lambda: False))
            seconds = time.perf_counter() - begun
            results.setdefault(name, []).append(measure(run, options.tokens) | {"seconds": seconds})
        mean = {arm: statistics.fmean(result[arm] for result in results[name]) for arm in ARMS}
        cells = [f"{mean[arm]:.3f}" for arm in ARMS]
        cells += [f"{mean['on'] - mean['off']:+.3f}", f"{mean['off'] - mean['oracle_0']:.3f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(json.dumps({"base": options.base, "steps": options.steps, "seeds": options.seeds, "rows": results}))


if __name__ == "__main__":
    main()
