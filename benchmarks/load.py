"""Many visitors at once on a public page: how long they wait, what they are refused, what the server keeps.

    .venv/bin/python -m benchmarks.load [--visitors 50] [--minutes 30] [--seed 0]

Starts `app.py --public` on a free port with a data folder of its own, then as many visitors as threads
(load_visitor.py). Limits of an address are raised, because all come from one here: it gets the requests
of as many addresses, and any number of places in both queues. Exit code 1 where an answer was neither a
result nor a clear refusal, or where something is left in the queue or at work at the end. Linux only:
memory and open files come from /proc.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.load_visitor import PageEvent, Tally, Visitor
from benchmarks.measuring import Report, options
from benchmarks.serving import served_app
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.jobs.job_queue import read_queue
from retro_demo.runs.loading import prepare_shipped
from retro_demo.server.limits import PREFIX, PUBLIC

LOOK_SECONDS = 2.0
LEAVE_SECONDS = 60.0  # for what is still at work when the last visitor has gone
POLLS = ("look of the page", "run_status")
POLL_AIM = 1.0  # seconds, of the 95th percentile
GROWTH_AIM = 1.1  # last third against first


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    seconds: float
    megabytes: float
    """Resident, of the server alone."""
    anonymous: float
    """Those of them that are no mapped files, in MB."""
    files: int
    threads: int
    waiting: int
    """Jobs in the queue."""
    working: int


def percentile(seconds: Sequence[float], share: float) -> float:
    """The smallest of some seconds that `share` of them do not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def thirds(samples: Sequence[Sample], what: str) -> tuple[float, float]:
    """The medians of a figure over the first and over the last third of the time."""
    share = max(1, len(samples) // 3)
    values = [getattr(sample, what) for sample in samples]
    return statistics.median(values[:share]), statistics.median(values[-share:])


def sampled(pid: int, home: Path, begun: float) -> Sample:
    """Look at the server."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    entries = read_queue(home)
    return Sample(
        round(time.monotonic() - begun, 1),
        int(fields["VmRSS"].split()[0]) * 1.024e-3,
        int(fields["RssAnon"].split()[0]) * 1.024e-3,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(fields["Threads"]),
        sum(not entry.started for entry in entries),
        sum(entry.started for entry in entries),
    )


def workers(home: Path) -> list[int]:
    """The processes that work on a folder of this data folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:  # it ended
            continue
        if "retro_demo" in words and any(word.startswith(f"{home}/") for word in words):
            found.append(int(entry.parent.name))
    return found


def watch(pid: int, home: Path, begun: float, over: threading.Event, samples: list[Sample]) -> None:
    """Look at the server every two seconds until it is over."""
    while not over.wait(LOOK_SECONDS):
        try:
            samples.append(sampled(pid, home, begun))
        except (OSError, KeyError):  # the server is gone: the visitors will say so
            return


def handlers_of_the_page(url: str) -> tuple[PageEvent, PageEvent]:
    """Two events of the Train tab: opening it, which lists the runs, and its timer's look at one.

    A session may only look at a run that its list holds.
    """
    config = httpx.get(f"{url}config", timeout=60).json()
    kinds = {one["id"]: one["type"] for one in config["components"]}
    ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
    run, found = ids["train-run"], {}
    for handler in config["dependencies"]:
        for target, event in handler["targets"]:
            kind = (kinds.get(target), event)
            if kind == ("tabitem", "select") and {run, ids["runs"]} <= set(handler["outputs"]):
                found["open"] = PageEvent(handler["id"], len(handler["inputs"]))
            if kind == ("timer", "tick") and run in handler["inputs"] and ids["loss"] in handler["outputs"]:
                found["look"] = PageEvent(handler["id"], len(handler["inputs"]))
    if len(found) != 2:
        raise SystemExit(f"The page has changed: of the two events of its Train tab there is {found}.")
    return found["open"], found["look"]


def settle(home: Path) -> tuple[int, int]:
    """(tickets, processes) that are left when what was at work had time to leave."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while (left := (len(read_queue(home)), len(workers(home)))) != (0, 0):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return left


def tell(report: Report, tally: Tally, samples: Sequence[Sample], left: tuple[int, int], log: str) -> bool:
    """Fill the report; whether all was well but for the times."""
    kinds = sorted({*tally.seconds, *tally.refusals, *(kind for kind, _ in tally.faults)})
    rows, figures = [], {}
    for kind in kinds:
        times = tally.seconds.get(kind, [])
        counts = (len(times), sum(tally.refusals[kind].values()), sum(one == kind for one, _ in tally.faults))
        spread = [percentile(times, share) for share in (0.5, 0.95, 1.0)] if times else []
        rows.append((kind, *counts, *([f"{one:.3f}" for one in spread] or ["", "", ""])))
        figures[kind] = {"answered": counts[0], "refused": counts[1], "faults": counts[2], "seconds": spread}
    report.table(
        "Requests, in seconds (build_corpus is followed to its end, places in the queue and all):",
        ("", "answered", "refused clearly", "faults", "p50", "p95", "max"),
        rows,
    )
    said = [(kind, count, words) for kind in kinds for words, count in tally.refusals[kind].most_common()]
    if said:
        report.table("Clear refusals:", ("request", "times", "sentence"), said)
    report.table("What was done:", ("", "times"), sorted(tally.done.items()))
    grown = {}
    for what in ("megabytes", "anonymous", "files", "threads", "waiting") if samples else ():
        first, last = thirds(samples, what)
        grown[what] = (first, last, max(getattr(sample, what) for sample in samples))
    report.table(
        "The server, medians of the first and the last third of the time:",
        ("", "first", "last", "most"),
        [(what, *(f"{figure:.0f}" for figure in found)) for what, found in grown.items()],
    )
    for kind in POLLS:
        if tally.seconds.get(kind):
            report.aim(f"p95 of {kind}, s", percentile(tally.seconds[kind], 0.95), most=POLL_AIM)
    if grown:
        report.aim(
            "memory, last third to first", grown["megabytes"][1] / grown["megabytes"][0], most=GROWTH_AIM
        )
    report.figures |= {
        "requests": figures,
        "done": dict(tally.done),
        "refusals": {kind: dict(counts) for kind, counts in tally.refusals.items()},
        "faults": tally.faults,
        "left": {"tickets": left[0], "processes": left[1]},
        "samples": [asdict(sample) for sample in samples],
    }
    for kind, words in tally.faults[:20]:
        print(f"{kind}: {words}", file=sys.stderr)
    tracebacks = log.count("Traceback (most recent call last)")
    report.figures["tracebacks_in_log"] = tracebacks
    if tracebacks:
        print(f"The log of the server has {tracebacks} tracebacks:\n{log[-3000:]}", file=sys.stderr)
    print(f"\n{len(tally.faults)} faults; left in the queue {left[0]}, at work {left[1]}.")
    return not tally.faults and left == (0, 0) and not tracebacks


def main() -> int:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, metavar="HOME", help="take built samples from a data folder")
    chosen = parser.parse_args()
    visitors, minutes = (4, 1.0) if chosen.quick else (chosen.visitors, chosen.minutes)
    report, tally = Report("load"), Tally()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="retro_demo-load-", ignore_cleanup_errors=True) as scratch:
        home, log = Path(scratch) / "home", Path(scratch) / "server.log"
        home.mkdir(mode=0o700)
        os.environ["RETRO_DEMO_HOME"] = str(home)
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        if chosen.samples:
            shutil.copytree(chosen.samples / "samples", home / "samples")
        for name in ("factbook2015", "udhr44"):  # what the page would build at its start
            list(ensure_sample(f"sample:{name}"))
        list(prepare_shipped())
        rate = PUBLIC.requests_per_minute * visitors
        flags = ("--public", "--requests-per-minute", str(rate), "--waiting-per-address", "0")
        flags += ("--calls-per-address", "0", "--upload-megabytes-per-hour", "0")
        with log.open("wb") as told, served_app(home, *flags, told=told) as (url, server):
            begun, over = time.monotonic(), threading.Event()
            spying = threading.Thread(target=watch, args=(server.pid, home, begun, over, samples))
            spying.start()
            try:
                crowd(url, tally, visitors, chosen.seed, begun + 60 * minutes)
            finally:
                over.set()
                spying.join()
            left = settle(home)
        fine = tell(report, tally, samples, left, log.read_text("utf-8", "replace"))
    report.publish(chosen.json)
    return 0 if fine else 1


def crowd(url: str, tally: Tally, visitors: int, seed: int, ends: float) -> None:
    """Let the visitors come, each in a thread, until the last has gone."""
    handlers = handlers_of_the_page(url)
    with ThreadPoolExecutor(visitors) as threads:
        everybody = [Visitor(url, tally, f"{seed} {number}", ends, handlers) for number in range(visitors)]
        for visit in [threads.submit(visitor.live) for visitor in everybody]:
            visit.result()


if __name__ == "__main__":
    sys.exit(main())
