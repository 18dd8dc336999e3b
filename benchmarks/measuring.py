"""What the benchmarks share: taking turns, ratios with their range, the machine, tables and JSON.

Import this before torch: idle threads are to sleep, as in the app.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

RESULTS = Path(__file__).resolve().parent.parent / "build" / "benchmarks"


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Wall time is what counts; with one thread, time on the CPU says the same on a machine that is shared."""


class Ratio(NamedTuple):
    """How many times as long one way takes as another: of medians, and the range over the rounds."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 2 if self.middle < 10 else 1
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def take_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each way in each round, A B A B ..., after `warmup` rounds that do not count.

    `clock` is one of CLOCKS; on a GPU it waits for the work to be done.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + rounds):
        for name, way in ways.items():
            begun = now()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(now() - begun)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Seconds of two ways that took turns -> how many times as long the first takes."""
    each = [one / other for one, other in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(slow) / statistics.median(fast), min(each), max(each))


def span(seconds: Sequence[float], digits: int = 3) -> str:
    """Median and range of some seconds, for a table."""
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


class Others:
    """How many cores other processes use, from now until it is asked; None where nothing tells."""

    def __init__(self) -> None:
        self.begun = self._clocks()

    @staticmethod
    def _clocks() -> tuple[float, float, float] | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        except OSError:
            return None
        ticks = [int(part) / os.sysconf("SC_CLK_TCK") for part in fields]
        user, nice, system, _, _, irq, softirq, steal = ticks[:8]
        return time.perf_counter(), user + nice + system + irq + softirq + steal, sum(os.times()[:4])

    def cores(self) -> float | None:
        """Mean number of cores that were busy with anything but this process and its finished children."""
        now = self._clocks()
        if now is None or self.begun is None:
            return None
        wall, busy, own = (late - early for late, early in zip(now, self.begun, strict=True))
        return round(max(0.0, busy - own) / wall, 2)


class Aim(NamedTuple):
    """What was aimed at, what was measured, and whether that is enough."""

    what: str
    aim: str
    measured: str
    met: bool


@dataclass
class Report:
    """What a benchmark found: tables to print, aims to check, and figures for the JSON file."""

    name: str
    tables: list[str] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    others: Others = field(default_factory=Others)
    begun: float = field(default_factory=time.perf_counter)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table in Markdown under a line that says what it shows; print it at once."""
        text = f"{title}\n\n{markdown(header, rows)}"
        self.tables.append(text)
        print(f"\n{text}", flush=True)

    def aim(self, what: str, measured: Ratio | float, *, least: float = 0.0, most: float = 0.0) -> None:
        """Note whether a figure reaches `least`, or stays within `most`."""
        figure = measured.middle if isinstance(measured, Ratio) else measured
        words, met = (f">= {least:g}", figure >= least) if least else (f"<= {most:g}", figure <= most)
        shown = str(measured) if isinstance(measured, Ratio) else f"{measured:.3g}"
        self.aims.append(Aim(what, words, shown, met))

    def publish(self, path: str | None) -> None:
        """Print the aims and the machine, and write everything to `path` or build/benchmarks/NAME.json."""
        if self.aims:
            rows = [(*aim[:3], "yes" if aim.met else "no") for aim in self.aims]
            print(f"\n{markdown(('aim', 'wanted', 'measured', 'met'), rows)}")
        about = machine() | {
            "seconds": round(time.perf_counter() - self.begun, 1),
            "cores_used_by_others": self.others.cores(),
            "command": shown_command(self.name),
        }
        print(f"\n{about['command']}: {about['seconds']} s. {describe(about)}")
        goal = Path(path) if path else RESULTS / f"{self.name}.json"
        goal.parent.mkdir(parents=True, exist_ok=True)
        aims = [aim._asdict() for aim in self.aims]
        saved = {"about": about, "aims": aims, "tables": self.tables, "figures": self.figures}
        goal.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {goal}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """What was measured on."""
    cores = os.cpu_count()
    try:
        text = Path("/proc/cpuinfo").read_text()
        lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
        names = {name.strip(): value.strip() for name, value in lines.items()}
        processor = f"{names.get('model name', '?')} family {names.get('cpu family', '?')}"
    except OSError:
        processor = platform.processor()
    about: dict[str, Any] = {"processor": processor, "cores": cores, "torch": torch.__version__}
    about |= {"simd": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version()}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def describe(about: Mapping[str, Any]) -> str:
    """The machine in a sentence."""
    where = about.get("gpu") or f"{about['cores']} cores ({about['processor']}, {about['simd']})"
    busy = about["cores_used_by_others"]
    shared = "" if busy is None else f"; other processes used {busy} cores meanwhile"
    return f"{where}, torch {about['torch']}, Python {about['python']}{shared}."


def shown_command(name: str) -> str:
    return " ".join([f".venv/bin/python -m benchmarks.{name}", *sys.argv[1:]])


def at_threads(threads: int, clock: str) -> str:
    """The part of a title that says how many threads, and which seconds where they are not of the wall."""
    return f"{threads} thread{'s' * (threads > 1)}" + ", seconds on the CPU" * (clock == "cpu")


def options(description: str | None, *, rounds: int, threads: Sequence[int] = ()) -> argparse.ArgumentParser:
    """The flags that all benchmarks have; those about `threads` where they matter."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="measured turns of each way")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it works, no figures")
    parser.add_argument("--json", metavar="FILE", help="where the figures go (default: build/benchmarks)")
    if threads:
        parser.add_argument("--threads", type=int, nargs="+", default=list(threads), help="one table each")
        parser.add_argument(
            "--clock", default="wall", choices=list(CLOCKS), help="cpu: time on the CPU, for a shared machine"
        )
    return parser
