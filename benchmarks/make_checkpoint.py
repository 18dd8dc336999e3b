"""Make the shipped runs: a reader of SmolLM2, and that base fine-tuned; a small lm, its matched baseline and
its retrofit; a RETRO that looks things up in the lookup world; a MARGE.

    .venv/bin/python -m benchmarks.make_checkpoint [--runs FOLDER] [--threads 1] [--only NAME] [--example]

Training resumes where it stands, so the command can be stopped and called again. Each run lands in
checkpoints/: config, tokenizer, events and weights in float16. The baseline and the retrofit begin with the
lm as it is shipped, so that anybody can repeat them; those that read neighbors also keep one written
example with its whole explanation, which the page shows before anybody has clicked. The MARGE brings what
its control with random evidence told, and its evaluation beside that; the reader brings its own beside the
fine-tuned base.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from retro_demo.corpus.samples import SAMPLES
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import read_events
from retro_demo.evidence.reindex import load_reindexing, reindexed_steps, save_reindexing
from retro_demo.explain.rewriting import write_off
from retro_demo.explain.text import watch_writing
from retro_demo.paths import CHECKPOINTS, SAMPLE
from retro_demo.runs.checkpoint import (
    MargeRun,
    load_marge,
    load_model,
    read_any_config,
    save_weights,
    write_run_config,
)
from retro_demo.runs.loading import load_run
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import EvaluateConfig, GenerateConfig
from retro_demo.training.trainer import run_training

CORPUS = "sample:factbook2015"
RIGHTS = "sample:udhr44"
SEED = 0
FINE = 256  # parts of 1 that shown embeddings are rounded to: they pack to half, and cosines move by 0.001
BRIEF = EvaluateConfig(max_tokens=3000, first_tokens=1000)  # of a reader, with all ways to read
WHOLE = ("started", "finished")  # of an evaluation: the rounds between say less


@dataclass(frozen=True)
class Shipped:
    """A run that ships with the code."""

    name: str
    model: str
    base: str = ""
    corpus: str = CORPUS
    preset: str = "small"
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""  # of the example that ships with it, "" = none
    writing: GenerateConfig = GenerateConfig()  # so a click on Generate writes the example again


BASE = Shipped("factbook-lm", "lm")
MORE = Shipped("factbook-lm-more", "lm", SAMPLE + BASE.name)
RETROFIT = Shipped(
    "factbook-retrofit",
    "retrofit",
    SAMPLE + BASE.name,
    prompt="Geography\n\nLocation: Oceania, islands in the South Pacific Ocean",
)
READER = Shipped(
    "factbook-smollm2",
    "retrofit",
    "smollm2",
    settings={"edition": "sample:factbook2026", "outputs": "both"},
    prompt="France\n\nGovernment\n\nExecutive branch:\nchief of state:",
    writing=GenerateConfig(max_new_tokens=96, temperature=0.0),
)
TUNED = Shipped("factbook-tuned", "lm", "smollm2")
LOOKUP = Shipped(
    "lookup-retro",
    "retro",
    corpus="sample:lookup",
    preset="lookup",
    prompt=SAMPLES["lookup"].prompts[0],
    writing=GenerateConfig(max_new_tokens=96, temperature=0.0),
)
# longer than the preset, and in shorter passages: the articles are found by their first line
LONGER = {"steps": 4500, "refresh_every": 1500, "eval_every": 1500, "passage_len": 96}
MARGE = Shipped("rights-marge", "marge", corpus=RIGHTS, settings=LONGER)
CONTROL = Shipped(
    "rights-marge-control", "marge", corpus=RIGHTS, settings={**LONGER, "evidence_source": "random"}
)


def train(wanted: Shipped, run: Path, threads: int) -> None:
    """Train one of them in `run` to its end, from wherever it stands."""
    config = plan_run(
        wanted.model,
        wanted.corpus,
        preset=wanted.preset,
        settings={"seed": SEED, **wanted.settings},
        device="cpu",
        base=wanted.base,
    )
    if not (run / "config.json").exists():
        prepare_run(run, replace(config, threads=threads or config.threads))
    for event in run_training(run, lambda: False):
        told = event.to_json()
        if told["event"] != "step" or told["step"] % 50 == 0:
            print(wanted.name, json.dumps(told)[:300], flush=True)


def ship(run: Path, out: Path) -> None:
    """Copy what is needed to use a run, with its weights in float16."""
    out.mkdir(parents=True, exist_ok=True)
    # every tenth step is enough to draw the curve of a run that nobody resumes
    kept = [e for e in read_events(run / "events.jsonl") if e["event"] != "step" or e["step"] % 10 == 0]
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in kept))
    config = read_any_config(run)
    write_run_config(out, config)
    shutil.copy(run / "tokenizer.json", out)
    model = load_marge(run) if isinstance(config, MargeRun) else load_model(run)
    save_weights(out, model, saved_step(run), torch.float16)
    if isinstance(config, MargeRun):  # what each re-index found is what there is to see
        shutil.rmtree(out / "evidence", ignore_errors=True)
        for step in reindexed_steps(run):
            if found := load_reindexing(run, step):
                rounded = np.rint(found.vectors.astype(np.float32) * FINE) / FINE
                save_reindexing(out, replace(found, vectors=rounded))


def ship_control(run: Path, control: Path, out: Path) -> None:
    """Put beside a shipped MARGE what its control told at each re-index, and an evaluation of both.

    The control's weights stay behind: nobody writes with them.
    """
    found = [event for event in read_events(control / "events.jsonl") if event["event"] == "reindexed"]
    (out / "control").mkdir(exist_ok=True)
    (out / "control" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in found))
    write_run_config(out / "control", read_any_config(control))
    request = Request(SAMPLE + out.name, control=str(control), settings=EvaluateConfig(max_tokens=0))
    ship_evaluation(request, run.parent / f"{run.name}-evaluation", out)


def ship_evaluation(request: Request, folder: Path, out: Path) -> None:
    """Measure what a request asks for in a folder, and put the figures beside the shipped run `out`."""
    prepare_evaluation(folder, request)
    for event in run_evaluation(folder, lambda: False):
        print(json.dumps(event.to_json())[:300], flush=True)
    shutil.rmtree(out / "evaluation", ignore_errors=True)
    (out / "evaluation").mkdir()
    told = []
    for event in read_events(folder / "events.jsonl"):
        if event["event"] in WHOLE:
            if origin := event.get("provenance"):  # no path of the machine that measured
                origin["command"] = "python " + origin["command"][origin["command"].index("-m retro_demo") :]
            told.append(json.dumps(event) + "\n")
    config = (folder / "config.json").read_text("utf-8")
    for file, text in (("config.json", config), ("events.jsonl", "".join(told))):
        named = text.replace(request.control, Path(request.control).name) if request.control else text
        (out / "evaluation" / file).write_text(named, "utf-8")


def write_example(shipped: Shipped) -> None:
    """Keep one text of a shipped run with its whole explanation: what the page shows before any click."""
    out, name = CHECKPOINTS / shipped.name, SAMPLE + shipped.name
    list(ensure_sample(shipped.corpus))
    run = load_run(out, "cpu")
    *_, last = watch_writing(run, name, shipped.prompt, shipped.writing, lambda: False)
    assert last.trace is not None
    last.trace.about["off"] = write_off(run, last.trace, lambda: False)
    origin = last.trace.about["provenance"]
    origin["command"] = re.sub(r"^.*?python(?= -m )", "python", origin["command"])  # not of this machine
    last.trace.save(out / "example")
    print("".join(last.pieces))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "retro_demo-shipped")
    options.add_argument("--threads", type=int, default=0, help="0: as many as there are")
    options.add_argument("--only", default="", help="a single run, such as rights-marge")
    options.add_argument("--example", action="store_true", help="only write the example anew")
    chosen = options.parse_args()
    if not chosen.example:
        for wanted in (BASE, MORE, RETROFIT, READER, TUNED, LOOKUP, MARGE):
            if chosen.only not in ("", wanted.name):
                continue
            list(ensure_sample(wanted.corpus))
            train(wanted, chosen.runs / wanted.name, chosen.threads)
            ship(chosen.runs / wanted.name, CHECKPOINTS / wanted.name)
        if chosen.only in ("", MARGE.name):
            train(CONTROL, chosen.runs / CONTROL.name, chosen.threads)
            ship_control(chosen.runs / MARGE.name, chosen.runs / CONTROL.name, CHECKPOINTS / MARGE.name)
        if chosen.only in ("", READER.name):
            request = Request(SAMPLE + READER.name, baseline=SAMPLE + TUNED.name, settings=BRIEF)
            folder = chosen.runs / f"{READER.name}-evaluation"
            ship_evaluation(request, folder, CHECKPOINTS / READER.name)
    for wanted in (RETROFIT, READER, LOOKUP):
        if chosen.only in ("", wanted.name):
            write_example(wanted)


if __name__ == "__main__":
    main()
