"""Hostile input by the thousand: each must end in a result or in a UserError, and in nothing else.

    .venv/bin/python -m benchmarks.fuzz [--seed 0] [--count 300] [--only TARGET] [--first 0] [--http]

Each target takes `--count` inputs; --http also asks a running page for as many. An input depends on seed,
target and number alone, so `--only TARGET --first NUMBER --count 1` makes one again. A crash is any error
but UserError, a hang (over 20 s), or an answer of the page that shows a traceback, a folder of the server
or a fault of the program. Ends with a table; exit code 1 where anything crashed.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from retro_demo.errors import UserError

HANG_SECONDS = 20
MOST_BYTES = 6 << 30  # more than what is mapped before: an input that takes so much is a fault

Target = Callable[[random.Random, Path], object]
"""Makes an input of its own from the generator, in the folder, and gives it to what it tests."""


@dataclass
class Tally:
    """What became of the inputs of one target."""

    results: int = 0
    refusals: int = 0
    crashes: list[tuple[int, str]] = field(default_factory=list)
    """(number of the input, the end of its traceback)."""
    slowest: float = 0.0
    seconds: float = 0.0
    sentences: Counter[str] = field(default_factory=Counter)


def run_target(target: Target, name: str, seed: int, numbers: range, folder: Path) -> Tally:
    """Give a target the inputs of these numbers."""
    tally = Tally()
    for number in numbers:
        rng = random.Random(f"{seed} {name} {number}")
        begun = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory(dir=folder) as scratch, _no_hang():
                target(rng, Path(scratch))
            tally.results += 1
        except UserError as error:
            tally.refusals += 1
            tally.sentences[str(error)[:60]] += 1
        except KeyboardInterrupt:
            raise
        except BaseException:
            # also what a library written in Rust raises where it panics
            tally.crashes.append((number, "\n".join(traceback.format_exc().strip().splitlines()[-7:])))
        took = time.perf_counter() - begun
        tally.slowest, tally.seconds = max(tally.slowest, took), tally.seconds + took
    return tally


@contextmanager
def _no_hang() -> Iterator[None]:
    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"nothing for {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Within the block an input that takes gigabytes fails with MemoryError."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def table(tallies: Mapping[str, Tally]) -> str:
    """The tallies as a table in Markdown."""
    lines = [
        "| target | inputs | results | refused with a sentence | crashes | slowest, s |",
        "|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        inputs = tally.results + tally.refusals + len(tally.crashes)
        lines.append(
            f"| {name} | {inputs:,} | {tally.results:,} | {tally.refusals:,} | {len(tally.crashes)} | "
            f"{tally.slowest:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300, help="inputs for each target (default 300)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default 0)")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--http", action="store_true", help="also ask a running page")
    parser.add_argument("--show", action="store_true", help="also print what was refused how often")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        os.environ["RETRO_DEMO_HOME"] = str(folder / "home")
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        numbers = range(options.first, options.first + options.count)
        tallies = _all(options.seed, numbers, options.only, options.http, folder)
    for name, tally in tallies.items():
        for number, said in tally.crashes[:5]:
            print(f"\n{name}, input {number}:\n{said}", file=sys.stderr)
        if options.show:
            for sentence, count in tally.sentences.most_common(12):
                print(f"{name}: {count} x {sentence}", file=sys.stderr)
    print(f"seed {options.seed}, from input {options.first}\n\n{table(tallies)}")
    return 1 if any(tally.crashes for tally in tallies.values()) else 0


def _all(seed: int, numbers: range, only: str | None, http: bool, folder: Path) -> dict[str, Tally]:
    from benchmarks.fuzz_files import targets_of

    tallies = {}
    with bounded_memory():
        for name, target in targets_of(folder).items():
            if only in (None, name):
                print(f"{name} ...", file=sys.stderr, flush=True)
                tallies[name] = run_target(target, name, seed, numbers, folder)
    if http and (only is None or only.startswith("http")):
        from benchmarks.fuzz_http import ask_the_page

        tallies |= ask_the_page(seed, numbers, folder)
    return tallies


if __name__ == "__main__":
    sys.exit(main())
