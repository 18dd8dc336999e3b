"""Is retrieval worth it? A retrofit against its matched baseline, seed by seed and retriever by retriever.

    .venv/bin/python -m benchmarks.retrofit --out retrofits [--seeds 0,1,2] [--steps 300]
        [--base-steps 1500] [--retrievers dense,bm25] [--minilm DIR] [--warm]

For each seed: a base `lm`, the base trained on for --steps (the matched baseline), and for each retriever
a retrofit of the base for as many steps on the same windows. `--minilm` names the same sample built with
--embedder minilm; `--warm` adds a retro that begins with the base and freezes nothing. Every run is
measured on --tokens of the held-out text; intervals are of the paired bootstrap over documents. What is
done is found in --out and not done again. `--equal-time` also compares with the base trained on for as
long as the retrofit, by the clock: more steps than the matched baseline. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from retro_demo.corpus.sharding import ensure_sample
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import read_events
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import EvaluateConfig
from retro_demo.training.trainer import run_training

SAMPLE = "sample:factbook2015"


def trained(run: Path, model: str, corpus: str, base: Path | None = None, **settings: Any) -> Path:
    """The run, trained to its end."""
    wanted = plan_run(model, corpus, settings=settings, base=str(base) if base else "")
    prepare_run(run, wanted)
    if saved_step(run) < wanted.training.steps:
        for _ in run_training(run, lambda: False):
            pass
    return run


def seconds_of(run: Path) -> float:
    """Seconds of the optimizer steps alone."""
    tokens = 4 * 255
    return sum(
        tokens / e["tokens_per_second"] for e in read_events(run / "events.jsonl") if e["event"] == "step"
    )


def evaluated(run: Path, baseline: Path, tokens: int) -> dict[str, Any]:
    """All figures of a run against its baseline, on so many held-out tokens."""
    out = run / f"evaluation-{tokens}-{baseline.name}"
    settings = EvaluateConfig(
        max_tokens=tokens, first_tokens=tokens or 100_000, retrievers="", corruption=(0,), prepend="off"
    )
    if not (out / "table.npz").exists():
        prepare_evaluation(out, Request(str(run), str(baseline), settings=settings))
    begun = time.perf_counter()
    result: dict[str, Any] = {}
    for event in run_evaluation(out, lambda: False):
        told = event.to_json()
        result = told if told["event"] == "finished" else result
    return result | {"evaluation_seconds": time.perf_counter() - begun}


def row(seed: int, what: str, result: dict[str, Any], run: Path, baseline: Path) -> str:
    """A line of the table."""
    arms, change = result["arms"], result["arms"]["on"]["differences"]["baseline"]
    low, high = change["bpb_ci"]
    cells = [f"{seed}", what, *(f"{arms[a]['bpb']:.4f}" for a in ("on", "off", "shuffled", "oracle_0"))]
    cells += [f"{arms['baseline']['bpb']:.4f}", f"{change['bpb']:+.4f} [{low:+.4f}, {high:+.4f}]"]
    return f"| {' | '.join(cells)} | {seconds_of(run):.0f} / {seconds_of(baseline):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=60_000, help="held-out tokens; 0: all")
    parser.add_argument("--retrievers", default="dense,bm25")
    parser.add_argument("--minilm", default="", help="the sample, built with --embedder minilm")
    parser.add_argument("--equal-time", action="store_true", help="also a baseline of as many seconds")
    parser.add_argument("--warm", action="store_true", help="also train all weights on, with retrieval")
    options = parser.parse_args()
    list(ensure_sample(SAMPLE))
    heads = ["seed", "what", "on", "off", "shuffled", "oracle", "baseline", "on - baseline (bpb, 95%)", "s"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    kept = []
    for seed in map(int, options.seeds.split(",")):
        home, steps = options.out / f"seed{seed}", {"seed": seed, "steps": options.steps}
        corpora = {SAMPLE: ""} | ({options.minilm: "-minilm"} if options.minilm else {})
        base = trained(
            home / "base", "lm", SAMPLE, seed=seed, steps=options.base_steps, eval_every=options.base_steps
        )
        for corpus, mark in corpora.items():
            more = trained(home / f"more{mark}", "lm", corpus, base, **steps)
            plans = [("retrofit", name) for name in (["dense"] if mark else options.retrievers.split(","))]
            plans += [("retro", "dense")] if options.warm and not mark else []
            for model, retriever in plans:
                run = home / f"{model}-{retriever}{mark}"
                trained(run, model, corpus, base, retriever=retriever, **steps)
                baselines = {"": more}
                if options.equal_time:
                    longer = round(options.steps * seconds_of(run) / seconds_of(more))
                    longer = {"seed": seed, "steps": longer, "eval_every": longer}
                    timed = home / f"time-{model}-{retriever}{mark}"
                    baselines[", equal time"] = trained(timed, "lm", corpus, base, **longer)
                for against, baseline in baselines.items():
                    result = evaluated(run, baseline, options.tokens)
                    what = f"{model} {retriever}{mark}{against}"
                    print(row(seed, what, result, run, baseline), flush=True)
                    kept.append({"seed": seed, "what": what} | {k: result[k] for k in ("arms", "verdict")})
    print(json.dumps({"rows": kept}))


if __name__ == "__main__":
    main()
