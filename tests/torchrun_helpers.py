"""Trainings as `torchrun` starts them, for tests: on this machine's CPU, by gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file


def torchrun(out: Path, processes: int, *more: str) -> list[str]:
    """The command line that trains the run `out` with so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "retro_demo", "train", "--json", "--out", str(out), *more]


def train_together(out: Path, processes: int, *more: str) -> list[dict]:
    """Train `out` to its end with so many processes; the events that were printed."""
    done = subprocess.run(torchrun(out, processes, *more), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs, of any one number."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
