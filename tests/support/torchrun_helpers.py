"""Trainings as `torchrun` starts them, for tests: on this machine's CPU, by gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from held_back import PATIENCE
from safetensors.torch import load_file

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


def torchrun(out: Path, processes: int, *more: str) -> list[str]:
    """The command line that trains the run `out` with so many processes."""
    return [*LAUNCHER, str(processes), "-m", "retro_demo", "train", "--json", "--out", str(out), *more]


def train_together(out: Path, processes: int, *more: str) -> list[dict]:
    """Train `out` to its end with so many processes; the events that were printed."""
    done = subprocess.run(torchrun(out, processes, *more), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


SIGNALED = """
import os, sys
from itertools import count
from retro_demo.jobs.worker import stop_on_signal
stop = stop_on_signal()
from retro_demo.cli.main import main

out, after, number, *ranks = sys.argv[1:]
steps = count(1)

def asked():
    if next(steps) == int(after) and os.environ["RANK"] in ranks:
        os.kill(os.getpid(), int(number))
    return stop()

code = main(["train", "--json", "--out", out], stop=asked)
sys.stdout.flush()
os._exit(code)
"""


def train_until_signaled(out: Path, processes: int, after: int, number: int, ranks: list[int]) -> list[dict]:
    """Train together until these ranks get a signal after so many steps; the events of until then."""
    script = out.parent / "signaled.py"
    script.write_text(SIGNALED)
    command = [
        *LAUNCHER,
        str(processes),
        str(script),
        str(out),
        str(after),
        str(int(number)),
        *map(str, ranks),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs, of any one number."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)
