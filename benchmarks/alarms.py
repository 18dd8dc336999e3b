"""How often a training raises an alarm that does not come true: what the rules of runs/alarms.py were chosen
by.

    .venv/bin/python -m benchmarks.alarms [--out alarms] [--seeds 0,1,2] [--quick]

Trains small networks on texts of many sizes, at learning rates from timid to absurd, from scratch and from
the weights of another run, and measures each every 20 steps. The rules then see all measurements, every
second, third or fifth one. An alarm before the end is false where held-out loss later falls below what was
its best when the alarm was raised. Runs that are done are found in --out and not trained again. About half
an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.measuring import Report
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.events import read_events
from retro_demo.paths import ASSETS
from retro_demo.runs.alarms import (
    AT_ONCE,
    ERRORS,
    EXPLODED,
    EXPLODING,
    RISE,
    Point,
    Watch,
    has_risen,
    held_out,
)
from retro_demo.runs.checkpoint import BEST, LAST, RunConfig, load_model, read_run_config
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import CorpusConfig
from retro_demo.training.trainer import make_batches, run_training

NETWORK = {"dim": 64, "depth": 2, "num_heads": 2, "seq_len": 128, "batch_size": 4, "eval_tokens": 8000}
READER = {"cca_layers": (2,), "enc_dim": 64}
EVERY = 20
STRIDES = (1, 2, 3, 5)
TEXTS = {  # documents of the Factbook, characters of each
    "3 documents of 2,500": (3, 2500),
    "24 documents of 1,800": (24, 1800),
    "3 whole documents": (3, 10**9),
    "30 documents of 6,000": (30, 6000),
    "60 documents of 8,000": (60, 8000),
    "all 261 documents": (261, 10**9),
}


@dataclass(frozen=True, eq=False)
class Trial:
    """A run to train: on which text, which model, with which settings, from which other trial (name)."""

    name: str
    text: str
    model: str
    kind: str
    settings: dict[str, Any]
    base: str = ""


def trials(seeds: list[int]) -> Iterator[Trial]:
    """All of them, a base before what begins from it."""
    usual = {"steps": 400, "eval_every": EVERY, "save_every": 400}
    for seed in seeds:
        for place, text in enumerate(TEXTS):
            for lr in (1e-3, 4e-3, 2e-2):
                settings = usual | {"lr": lr, "seed": seed}
                yield Trial(f"{place}-lm-{lr}-{seed}", text, "lm", "from scratch", settings)
        for place in (1, 3, 4):
            text, settings = list(TEXTS)[place], usual | {"steps": 300, "seed": seed}
            yield Trial(f"{place}-retro-{seed}", text, "retro", "from scratch", settings)
            more = settings | {"warmup": 30, "lr": 1.3e-3}
            base = f"{place}-lm-0.004-{seed}"
            yield Trial(f"{place}-on-{seed}", text, "lm", "from a base", more, base)
            more = more | {"lr": 6e-3}
            yield Trial(f"{place}-retrofit-{seed}", text, "retrofit", "from a base", more, base)
            for lr in (0.1, 0.3, 1.0):
                settings = usual | {"steps": 200, "seed": seed, "lr": lr}
                yield Trial(f"{place}-wild-{lr}-{seed}", text, "lm", "learning rate of 0.1 to 1", settings)


def corpus_of(out: Path, text: str) -> Path:
    """A corpus of so many documents, cut to so many characters."""
    count, chars = TEXTS[text]
    folder = out / "corpora" / text.replace(" ", "-").replace(",", "")
    if not (folder / "corpus.json").exists():
        with gzip.open(ASSETS / "factbook2015" / "factbook2015.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        chosen = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))[:count]]
        source = folder.with_suffix(".jsonl")
        source.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row | {"text": row["text"][:chars]}) for row in chosen)
        source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        config = CorpusConfig(chunk_len=32, vocab_size=1024 if count * chars < 100_000 else 2048)
        prepare_corpus(folder, [source], config)
        list(build_corpus(folder))
    return folder


def trained(out: Path, trial: Trial) -> Path:
    """The run of a trial, trained to its end."""
    folder = out / "runs" / trial.name
    if not (folder / "config.json").exists():
        shape = {} if trial.base else {name: NETWORK[name] for name in ("dim", "depth", "num_heads")}
        shape |= READER if trial.model != "lm" else {}
        shape |= {name: NETWORK[name] for name in ("seq_len", "batch_size", "eval_tokens")}
        base = str(out / "runs" / trial.base) if trial.base else ""
        settings = shape | trial.settings
        corpus = str(corpus_of(out, trial.text))
        prepare_run(folder, plan_run(trial.model, corpus, settings=settings, device="cpu", base=base))
    if saved_step(folder) < trial.settings["steps"]:
        list(run_training(folder, lambda: False))
    return folder


def first_alarm(points: list[Point]) -> int | None:
    """The place of the measurement before the end at which a rise is told, None = at none."""
    return next((at for at in range(1, len(points) - 1) if has_risen(points[: at + 1])), None)


def explodes(config: RunConfig, events: list[dict[str, Any]], *, measured: bool = True) -> bool:
    """Whether the training would have told an explosion, by the rules as they are now.

    measured: whether its held-out text counts, or it is as if nothing were held out.
    """
    watch, said = Watch(config.training, curriculum_steps=config.lesson_steps), []
    for event in events:
        if event["event"] == "evaluated" and measured:
            said += watch.measured(event["step"], event["arms"])
        if event["event"] == "step":
            said += watch.stepped(event["step"], event["loss"])
    return any(warned.about == EXPLODING for warned in said)


def standard_error(run: Path) -> float:
    """That of best minus last held-out loss over the windows, in nats, times the root of the tokens."""
    config = read_run_config(run)
    batches = make_batches(config, load_corpus(Path(config.corpus)))
    losses, tokens = [], []
    for name in (BEST, LAST):
        model = load_model(run, weights=run / name)
        first, each = model.config.chunk_len - 1, []
        for _, batch in batches.held_out_batches(config.training.eval_tokens):
            with torch.inference_mode():
                read = model.token_losses(batch.tokens, batch.neighbors)
            each.append(read[:, first:].double().sum(dim=1).numpy())
            tokens.append((batch.tokens[:, 1:][:, first:] != 0).sum(dim=1).numpy())
        losses.append(np.concatenate(each))
    count = np.concatenate(tokens[: len(tokens) // 2]).astype(float)
    gap = losses[1] - losses[0]
    spread = gap - gap.sum() / count.sum() * count
    error = math.sqrt(len(gap) / (len(gap) - 1) * float((spread**2).sum())) / count.sum()
    return error * math.sqrt(count.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("alarms"), help="where the runs go")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="two runs only: to see that it works")
    parser.add_argument("--json", metavar="FILE", help="where the figures go (default: build/benchmarks)")
    options = parser.parse_args()
    chosen = list(trials([int(seed) for seed in options.seeds.split(",")]))
    chosen = chosen[:2] if options.quick else chosen
    report, curves, errors = Report("alarms"), {}, []
    exploded, unmeasured = {}, {}
    for trial in chosen:
        run = trained(options.out, trial)
        events = read_events(run / "events.jsonl")
        curves[trial] = held_out(event for event in events if event["event"] == "evaluated")
        config = read_run_config(run)
        exploded[trial] = explodes(config, events)
        unmeasured[trial] = explodes(config, events, measured=False)
        best, last = min(curves[trial], key=lambda point: point.nats), curves[trial][-1]
        if best.step and 0 < last.nats - best.nats < 0.05 * best.nats:
            errors.append(standard_error(run))
        print(f"{trial.name}: best {best.nats:.3f} at {best.step}, last {last.nats:.3f}", flush=True)
    rows = []
    for kind in dict.fromkeys(trial.kind for trial in chosen):
        for stride in STRIDES:
            rows.append(
                (kind, stride * EVERY, *counted([c for t, c in curves.items() if t.kind == kind], stride))
            )
    header = ("runs", "steps between", "how many", "risen at the end", "alarm before", "of these false")
    report.table("Held-out loss that rises", header, rows)
    rows = [
        (
            kind,
            len(them := [t for t in chosen if t.kind == kind]),
            sum(exploded[t] for t in them),
            sum(unmeasured[t] for t in them),
        )
        for kind in dict.fromkeys(trial.kind for trial in chosen)
    ]
    report.table("Loss that explodes", ("runs", "how many", "alarm", "alarm without held-out text"), rows)
    if errors:
        quarters = [round(float(value), 2) for value in np.percentile(errors, [25, 50, 75])]
        print(
            f"\nStandard error of a small rise times the root of the tokens, {len(errors)} runs: {quarters}"
        )
        report.figures["standard_error_times_root_of_tokens"] = quarters
    report.figures |= {"RISE": RISE, "ERRORS": ERRORS, "AT_ONCE": AT_ONCE, "EXPLODED": EXPLODED}
    report.figures["curves"] = {t.name: [(p.step, p.nats, p.tokens) for p in c] for t, c in curves.items()}
    report.publish(options.json)


def counted(curves: list[list[Point]], stride: int) -> tuple[int, int, int, int]:
    """Runs; those that had risen at their end; those with an alarm before; those where it was false."""
    risen = alarms = false = 0
    for whole in curves:
        points = whole[::stride] + ([whole[-1]] if (len(whole) - 1) % stride else [])
        risen += has_risen(points, ended=True)
        if (at := first_alarm(points)) is not None:
            alarms += 1
            false += min(p.nats for p in points[at:]) < min(p.nats for p in points[: at + 1])
    return len(curves), risen, alarms, false


if __name__ == "__main__":
    main()
