"""Two torch threads beside a busy process: what it costs, ours against the reference, policy by policy.

    .venv/bin/python -m benchmarks.busy_neighbor [--models marge retro] [--rounds 3]

Idle OpenMP threads wait by spinning unless OMP_WAIT_POLICY is PASSIVE when torch is loaded; the app sets
that. So each policy has a process of its own, and both take turns, on a quiet machine and beside a process
that keeps one core busy. What that core explains: at worst it is lost as a whole, so two threads should not
take longer than one thread alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Ratio, Report, options, ratio, span, torch
from benchmarks.training_step import OURS, THEIRS, sides

ROOT = Path(__file__).resolve().parent.parent
POLICIES = {"PASSIVE, ours": "PASSIVE", "torch's default": ""}
SLACK = 1.05
WORKER = "import torch; from benchmarks.busy_neighbor import work; work()"  # torch first: it reads the policy


def work() -> None:
    """Answer lines `[side, threads]` with the seconds of a training step, until the input ends."""
    name, quick = sys.argv[1], sys.argv[2] == "quick"
    steps, _, _ = sides(name, quick=quick)
    for line in sys.stdin:
        side, threads = json.loads(line)
        torch.set_num_threads(threads)
        begun = time.perf_counter()
        steps[side]()
        print(time.perf_counter() - begun, flush=True)


class Worker:
    """A process with this policy; call it for the seconds of a step."""

    def __init__(self, policy: str, name: str, quick: bool) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, name, "quick" if quick else "whole"],
            env=environment | ({"OMP_WAIT_POLICY": policy} if policy else {}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, side: str, threads: int) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([side, threads]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the worker ended before it answered")
        return float(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Within the block another process keeps a core busy, where wanted."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def measure(name: str, chosen: Any, report: Report) -> None:
    """The table of one model."""
    workers = {policy: Worker(value, name, chosen.quick) for policy, value in POLICIES.items()}
    seconds: dict[tuple[str, str, str], list[float]] = {}
    try:
        for turn in range(-1, chosen.rounds):  # the first does not count
            for load in ("quiet", "busy"):
                with busy(load == "busy"):
                    for side in (THEIRS, OURS):
                        for policy, worker in workers.items():
                            took = worker(side, 2)
                            if turn >= 0:
                                seconds.setdefault((side, policy, load), []).append(took)
            if turn >= 0:
                alone = workers["PASSIVE, ours"]
                for side in (THEIRS, OURS):
                    seconds.setdefault((side, "one thread", "quiet"), []).append(alone(side, 1))
    finally:
        for worker in workers.values():
            worker.end()
    rows = []
    for side in (THEIRS, OURS):
        one = seconds[side, "one thread", "quiet"]
        for policy in POLICIES:
            quiet, loaded = seconds[side, policy, "quiet"], seconds[side, policy, "busy"]
            figures = (span(quiet), span(loaded), ratio(loaded, quiet), ratio(loaded, one))
            rows.append((side, policy, *figures))
        rows.append((side, "one thread alone", span(one), "", "", ""))
    report.table(
        f"Training step of {name}, two threads, quiet and beside a busy process, {chosen.rounds} rounds:",
        ("side", "policy", "quiet, s", "busy, s", "loss", "over one thread alone"),
        rows,
    )
    report.figures[name] = {", ".join(key): times for key, times in seconds.items()}
    if not chosen.quick:
        ours = seconds[OURS, "PASSIVE, ours", "busy"], seconds[OURS, "one thread", "quiet"]
        report.aim(f"{name}: two threads beside a busy process over one alone", ratio(*ours), most=SLACK)
        gain: Ratio = ratio(
            seconds[THEIRS, "torch's default", "busy"], seconds[OURS, "PASSIVE, ours", "busy"]
        )
        report.figures[name]["ours, PASSIVE, times the reference, default, both busy"] = gain
        middle = statistics.median(seconds[OURS, "torch's default", "quiet"])
        cost = statistics.median(seconds[OURS, "PASSIVE, ours", "quiet"]) / middle
        report.figures[name]["cost of PASSIVE when quiet"] = cost


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", default=["marge", "retro"], choices=["marge", "retro", "lm"])
    chosen = parser.parse_args()
    report = Report("busy_neighbor")
    for name in chosen.models:
        measure(name, chosen, report)
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
