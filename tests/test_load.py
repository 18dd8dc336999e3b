"""The logic of `benchmarks.load`: how answers are judged, counted and summed up, and that it can fail."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from held_back import PATIENCE, wait_until
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from benchmarks import load_visitor
from benchmarks.load import Sample, percentile, sampled, tell, thirds, workers
from benchmarks.load_visitor import Fault, PageEvent, Refused, Tally, Visitor, a_document, checked, refuse
from benchmarks.measuring import Report
from retro_demo.errors import UserError
from retro_demo.jobs.job_queue import QueueEntry
from retro_demo.server.limits import Limits, keep_limits
from retro_demo.server.scheduler import check_queue
from retro_demo.ui.middleware import RateLimiter


def raised(error: Exception):
    def request() -> None:
        raise error

    return request


def page(_request) -> PlainTextResponse:
    return PlainTextResponse("a page")


def samples(megabytes: list[float]) -> list[Sample]:
    return [Sample(2.0 * at, size, size, 9, 9, 0, 0) for at, size in enumerate(megabytes)]


def entry(number: int, visitor: str) -> QueueEntry:
    return QueueEntry(Path(f"{number}.json"), Path(f"job-{number}"), "train", visitor)


@pytest.mark.parametrize(
    ("limits", "visitors"), [(Limits(waiting=2), "ab"), (Limits(waiting_per_visitor=2), "aa")]
)
def test_what_a_full_queue_says_is_a_clear_refusal(limits, visitors):
    with pytest.raises(UserError) as said:
        check_queue(limits, [entry(at, visitor) for at, visitor in enumerate(visitors, 1)], "a")

    with pytest.raises(Refused):
        refuse(str(said.value))


def test_what_the_doorman_says_is_a_clear_refusal(tmp_path):
    keep_limits(tmp_path, Limits(requests_per_minute=1))
    door = Starlette(middleware=[Middleware(RateLimiter, home=tmp_path)], routes=[Route("/", page)])

    with TestClient(door) as http:
        assert checked(http.get("/")).status_code == 200
        with pytest.raises(Refused, match="more than 1 requests in a minute"):
            checked(http.get("/"))


@pytest.mark.parametrize(
    "said",
    ["", "Something went wrong inside the program", "The build was interrupted.", "KeyError: 'corpus'"],
)
def test_any_other_sentence_and_none_is_a_fault(said):
    with pytest.raises(Fault):
        refuse(said)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_status_without_a_sentence_is_a_fault(status):
    with pytest.raises(Fault):
        checked(httpx.Response(status, text="no"))


def test_a_tally_keeps_results_refusals_and_faults_apart():
    tally = Tally()

    assert tally.ask("search", lambda: 7) == 7
    for number in (3, 14):
        with pytest.raises(Refused):
            tally.ask("train", raised(Refused(f"The queue is full: {number} jobs wait.")))
    with pytest.raises(Fault):
        tally.ask("train", raised(httpx.ReadTimeout("nothing")))

    assert {kind: len(seconds) for kind, seconds in tally.seconds.items()} == {"search": 1}
    assert dict(tally.refusals["train"]) == {"The queue is full: N jobs wait.": 2}
    assert tally.faults == [("train", "ReadTimeout: nothing")]


class Stuck(BaseHTTPRequestHandler):
    """A server that takes every call and then sends heartbeats for as long as anybody listens."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        said = b'{"event_id": "1"}'
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"event: heartbeat\ndata: {}\n\n")
                time.sleep(0.02)
        except OSError:  # nobody listens any more
            return

    def log_message(self, *_words: object) -> None:
        return


@pytest.fixture
def stuck() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stuck) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("name", ["generate", "build_corpus"])
@pytest.mark.parametrize("left", [-1.0, 60.0])  # of the whole run, in seconds
def test_a_call_that_is_answered_by_heartbeats_alone_is_a_fault_and_ends(stuck, monkeypatch, name, left):
    monkeypatch.setattr(load_visitor, "SECONDS", 0.2)
    monkeypatch.setattr(load_visitor, "BUILD_SECONDS", 0.2)
    tally = Tally()
    visitor = Visitor(stuck, tally, "0", time.monotonic() + left, (PageEvent(0, 1), PageEvent(0, 2)))

    with (
        httpx.Client(base_url=stuck, timeout=PATIENCE) as visitor.http,
        pytest.raises(Fault, match="heartbeats alone"),
    ):
        visitor._call(name, "code")

    assert tally.faults == [(name, "heartbeats alone for 0.2 s")]


def test_percentiles_are_figures_that_were_measured():
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.5, 0.95, 1.0)] == [2.0, 4.0, 4.0]
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([5.0], 0.5) == 5.0


def test_growth_is_of_medians_so_that_a_spike_is_none():
    assert thirds(samples([10, 900, 10, 10, 10, 10, 20, 20, 20]), "megabytes") == (10, 20)
    assert thirds(samples([10]), "megabytes") == (10, 10)


@pytest.mark.parametrize(
    ("faults", "left", "log", "fine"),
    [
        ([], (0, 0), "", True),
        ([("train", "HTTP 500")], (0, 0), "", False),
        ([], (1, 0), "", False),
        ([], (0, 1), "", False),
        ([], (0, 0), "Traceback (most recent call last):", False),
    ],
)
def test_a_fault_something_left_or_a_traceback_in_the_log_fails_the_run(faults, left, log, fine, capsys):
    tally = Tally(faults=list(faults))
    tally.ask("run_status", lambda: 1)

    assert tell(Report("load"), tally, samples([10, 20, 30]), left, log) is fine

    assert "| run_status | 1 | 0 | 0 |" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_the_server_is_sampled_and_its_workers_are_found(tmp_path):
    sample = sampled(os.getpid(), tmp_path, 0.0)
    job = tmp_path / "workspaces" / "code" / "runs" / "one"
    asleep = "import time; time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", asleep, "retro_demo", "train", "--out", str(job)])
    try:
        wait_until(lambda: workers(tmp_path) != [])  # until it has become the program that it is to be
        assert workers(tmp_path) == [worker.pid]
        assert workers(tmp_path / "workspaces" / "another") == []
    finally:
        worker.kill()
        worker.wait()

    assert sample.megabytes >= sample.anonymous > 10
    assert sample.files > 0
    assert (sample.waiting, sample.working) == (0, 0)


def test_the_same_seed_brings_the_same_texts():
    first, again, other = (a_document(random.Random(seed)) for seed in (1, 1, 2))

    assert first == again != other
    assert len(first) > 5000
