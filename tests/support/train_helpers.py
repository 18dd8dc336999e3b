"""What tests of train share with others."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.training.trainer import run_training

SETTINGS = {
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "cca_layers": (2,),
    "enc_dim": 16,
    "seq_len": 32,
    "batch_size": 2,
    "steps": 12,
    "warmup": 3,
    "eval_every": 5,
    "eval_tokens": 200,
    "save_every": 4,
    "dropout": 0.1,
}


def prepare(out: Path, corpus: Path, model: str = "retro", **changes) -> Path:
    settings = SETTINGS | changes
    prepare_run(out, plan_run(model, str(corpus), settings=settings, device="cpu"))
    return out


def advance(out: Path, stop_after: int | None = None) -> list[dict]:
    events = []
    for event in run_training(out, lambda: stop_after is not None and len(steps(events)) >= stop_after):
        events.append(event.to_json())
    return events


def steps(events: list[dict]) -> list[dict]:
    return [event for event in events if event["event"] == "step"]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
