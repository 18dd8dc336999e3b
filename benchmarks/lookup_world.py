"""Does a model look facts up that it cannot know? The lookup world, trained, measured and edited.

    .venv/bin/python -m benchmarks.lookup_world [--seeds 0 1 2] [--runs FOLDER] [--cases 200] [--out FILE]

For each seed a `retro` and its matched baseline `lm` are trained with preset `lookup` on the sample
`lookup` (minutes on two cores), and their loss is measured on the facts of held-out documents, which no
training batch tells: without retrieval nothing beats the floor of ln 64 nats. Training resumes where it
stands, so the command can be stopped and called again. A table is printed, then one JSON line with all
figures and their origin.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.lookup_facts import edit_flips, measure_facts
from retro_demo.corpus.retrievers import neighbor_table
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.evaluation.arms import Arms, held_out_windows
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import load_model, read_run_config
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.provenance import provenance
from retro_demo.training.trainer import run_training

CORPUS, PRESET = "sample:lookup", "lookup"
ARMS = ("off", "on", "n_only", "f_only", "random", "shuffled", "wrong_order", "oracle_20", "oracle_0")
LEAST_GAIN = 0.5  # nats a fact token that retrieval has to be worth, against off and shuffled
LEAST_FOLLOWED, MOST_STRAYED = 0.8, 0.1


def train(model: str, seed: int, out: Path) -> Path:
    """A run of preset lookup in `out`, trained to its end; returns its folder."""
    if not (out / "config.json").exists():
        prepare_run(out, plan_run(model, CORPUS, preset=PRESET, settings={"seed": seed}))
    for event in run_training(out, lambda: False):
        told = event.to_json()
        if told["event"] in ("step", "evaluated") and told["step"] % 50 == 0:
            print(json.dumps(told)[:200], flush=True)
    return out


def measure(run: Path, baseline: Path, cases: int, command: str) -> dict[str, Any]:
    """The figures of one seed: nats by arm on held-out facts, edited answers, and their origin."""
    begun = time.perf_counter()
    config = read_run_config(run)
    corpus = load_corpus(corpus_folder(data_home()[0], config.corpus))
    longest = max(int((corpus.chunks.document == one).sum()) for one in corpus.held_out.nonzero()[0])
    arms = Arms(
        corpus,
        held_out_windows(corpus, longest, seed=0),
        {config.training.retriever: neighbor_table(corpus, config.training.retriever)},
        config.training.retriever,
        config.training.num_neighbors,
        seed=0,
    )
    model = load_model(run)
    facts = measure_facts(model, arms, ARMS)
    facts["lm"] = measure_facts(load_model(baseline), arms, ["off"])["off"]
    flips = edit_flips(model, arms, cases)
    return {
        "seed": config.training.seed,
        "facts": facts,
        "flips": vars(flips),
        "claims": claims(facts, vars(flips)),
        "provenance": [
            provenance(one, command=command, seconds=time.perf_counter() - begun, settings={"cases": cases})
            for one in (run, baseline)
        ],
    }


def claims(facts: dict[str, dict[str, float]], flips: dict[str, float]) -> dict[str, bool]:
    """What has to hold of one seed, by name."""
    nats = {name: told["nats"] for name, told in facts.items()}
    return {
        f"on is below off by {LEAST_GAIN} nats": nats["on"] <= nats["off"] - LEAST_GAIN,
        f"on is below shuffled by {LEAST_GAIN} nats": nats["on"] <= nats["shuffled"] - LEAST_GAIN,
        f"on is below the matched baseline by {LEAST_GAIN} nats": nats["on"] <= nats["lm"] - LEAST_GAIN,
        "oracle is no worse than on": nats["oracle_0"] <= nats["on"],
        "nothing beats the floor without retrieval": min(nats["off"], nats["lm"]) > nats["floor"] - 0.05,
        "answers follow the edit": flips["followed"] >= LEAST_FOLLOWED,
        "answers stay where another fact is edited": flips["strayed"] < MOST_STRAYED,
    }


def show(results: list[dict[str, Any]]) -> None:
    names = ["floor", "lm", *ARMS]
    print(f"{'arm':12} {'found':>6}  nats a fact token, seeds {[one['seed'] for one in results]}")
    for name in names:
        told = [one["facts"][name] for one in results]
        found = f"{told[0]['found']:6.1%}" if "found" in told[0] else ""
        print(f"{name:12} {found:>6}  " + "  ".join(f"{one['nats']:.3f}" for one in told))
    for name in ("right", "followed", "strayed"):
        print(f"{name:12} {'':6}  " + "  ".join(f"{one['flips'][name]:.1%}" for one in results))
    for claim in results[0]["claims"]:
        print(f"{'yes' if all(one['claims'][claim] for one in results) else 'NO ':3}  {claim}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a model look facts up that it cannot know?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--runs", type=Path, help="where runs are trained and kept; default: a passing folder"
    )
    parser.add_argument("--cases", type=int, default=200, help="edited neighbors for each seed")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON, too")
    options = parser.parse_args()
    runs = options.runs or Path(tempfile.mkdtemp(prefix="lookup-"))
    command = f"python -m benchmarks.lookup_world --seeds {' '.join(map(str, options.seeds))}"
    for event in ensure_sample(CORPUS):
        print(event)
    results = []
    for seed in options.seeds:
        run, baseline = (train(model, seed, runs / f"{model}-{seed}") for model in ("retro", "lm"))
        results.append(measure(run, baseline, options.cases, command))
    show(results)
    figures = json.dumps({"benchmark": "lookup_world", "results": results})
    print(figures)
    if options.out:
        options.out.write_text(figures + "\n")


if __name__ == "__main__":
    main()
