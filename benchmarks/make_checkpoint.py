"""Make the shipped checkpoint: train it on the shipped corpus, halve its weights, keep an example.

    .venv/bin/python -m benchmarks.make_checkpoint [--run FOLDER] [--threads 1]

Training resumes where it stands, so the command can be stopped and called again. The result lies in
checkpoints/factbook-retro: config, tokenizer, events, float16 weights, and one written example with
its attention, which the page shows before anybody has clicked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from retro_demo.checkpoint import load_model, read_run_config, save_weights, saved_step, write_run_config
from retro_demo.config import GenerateConfig
from retro_demo.events import read_events
from retro_demo.loading import load_run
from retro_demo.pipeline import ensure_sample, make_run_config, prepare_run, run_training
from retro_demo.workspace import CHECKPOINTS
from retro_demo.writing import watch_writing

CORPUS = "sample:factbook2015"
NAME = "factbook-retro"
SEED = 0
PROMPT = "Introduction\n\nBackground: The islands became independent in 1975."
EXAMPLE = GenerateConfig(max_new_tokens=160, seed=7)


def train(run: Path, threads: int) -> None:
    for event in ensure_sample(CORPUS):
        print(event)
    wanted = make_run_config("retro", CORPUS, preset="small", settings={"seed": SEED}, device="cpu")
    if not (run / "config.json").exists():
        prepare_run(run, replace(wanted, threads=threads or wanted.threads))
    for event in run_training(run, lambda: False):
        told = event.to_json()
        if told["event"] != "step" or told["step"] % 50 == 0:
            print(json.dumps(told)[:300], flush=True)


def ship(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = read_run_config(run)
    # every tenth step is enough to draw the curve of a run that nobody resumes
    kept = [e for e in read_events(run / "events.jsonl") if e["event"] != "step" or e["step"] % 10 == 0]
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in kept))
    write_run_config(out, config)
    shutil.copy(run / "tokenizer.json", out)
    save_weights(out, load_model(run), saved_step(run), torch.float16)
    loaded = load_run(out, "cpu")
    *_, last = watch_writing(loaded, f"sample:{NAME}", PROMPT, EXAMPLE, lambda: False)
    assert last.trace is not None
    last.trace.save(out / "example")
    print("".join(last.pieces))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--run", type=Path, default=Path(tempfile.gettempdir()) / NAME)
    options.add_argument("--out", type=Path, default=CHECKPOINTS / NAME)
    options.add_argument("--threads", type=int, default=0, help="0: as many as there are")
    chosen = options.parse_args()
    train(chosen.run, chosen.threads)
    ship(chosen.run, chosen.out)


if __name__ == "__main__":
    main()
