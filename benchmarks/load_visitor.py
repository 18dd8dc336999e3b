"""One visitor of benchmarks/load.py: what they ask for and in which order, and how an answer is judged.

An answer is a result, a clear refusal (one of REFUSALS), or a fault: any other sentence, and silence.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from retro_demo.pretrained.bases import available_bases
from retro_demo.server.workspace import new_code

POLL_SECONDS = 2.0
PATIENCE = 15.0  # seconds until a visitor who was refused asks again
SECONDS = 180.0  # without a word, after which a request counts as a fault
BUILD_SECONDS = 600.0  # of a build: it keeps its place in the queue while others take their turns
SHIPPED_RUN = "sample:factbook-smollm2" if available_bases() else "sample:factbook-retrofit"
"""That on which the page opens here."""
REFUSALS = (
    r"The queue is full",
    r"There were more than \d+ requests in a minute",
    r"wait in the queue, and at most \d+ jobs of a workspace may",
    r"The disk of this server is nearly full",
    r"Queue is full\. Max size is \d+",  # Gradio's own, for calls that wait for the writing lane
)
"""What a server that has much to do may say, and nothing else."""
PLACES = ("Arden", "Brill", "Corven", "Dunmore", "Elsay", "Farrow", "Gault", "Hesper", "Inver", "Jarrow")
GOODS = ("fish", "salt", "timber", "wool", "copper", "barley", "slate", "amber", "paper", "glass")


class Refused(Exception):
    """The server said no in a clear sentence."""


class Fault(Exception):
    """An answer that no visitor should get."""


class Over(Exception):
    """The time of the whole run is over."""


@dataclass
class Tally:
    """What became of all requests, by kind. Many threads write into it."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refusals: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(kind of request, what was wrong)"""
    done: Counter[str] = field(default_factory=Counter)
    """Jobs and visits by how they ended."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, kind: str, request: Callable[[], Any]) -> Any:
        """What `request` returns, its seconds kept; Refused and Fault are kept and passed on."""
        begun = time.perf_counter()
        try:
            answer = request()
        except Refused as refusal:
            with self.lock:
                self.refusals[kind][re.sub(r"\d[\d,.]*", "N", str(refusal))] += 1
            raise
        except (Fault, httpx.HTTPError, ValueError, KeyError) as error:
            words = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
            with self.lock:
                self.faults.append((kind, words[:300]))
            raise Fault(words) from error
        with self.lock:
            self.seconds[kind].append(time.perf_counter() - begun)
        return answer

    def count(self, what: str) -> None:
        with self.lock:
            self.done[what] += 1


def refuse(said: str) -> None:
    """Raise Refused where a sentence is one of REFUSALS, else Fault."""
    if any(re.search(refusal, said) for refusal in REFUSALS):
        raise Refused(said)
    raise Fault(f"said {said!r}" if said else "an error without words")


def checked(answer: httpx.Response) -> httpx.Response:
    """An answer with 200; raises Refused or Fault for another."""
    if answer.status_code in (429, 503, 507):
        with suppress(ValueError, KeyError, TypeError):
            refuse(str(answer.json()["detail"]))
    if answer.status_code != 200:
        raise Fault(f"HTTP {answer.status_code} {answer.text[:200]}")
    return answer


def a_document(rng: random.Random, sentences: int = 240) -> str:
    """Facts about places, in paragraphs; enough for a corpus of some dozens of chunks."""
    lines = [
        f"{rng.choice(PLACES)} sells {rng.randint(2, 99)} boats of {rng.choice(GOODS)} "
        f"to {rng.choice(PLACES)}."
        for _ in range(sentences)
    ]
    return "\n\n".join(" ".join(lines[at : at + 8]) for at in range(0, sentences, 8))


class PageEvent(NamedTuple):
    """An event of the page: its number, and how many values it takes."""

    number: int
    inputs: int


class Visitor:
    """One who comes again and again until `over`; all that they do follows from the seed."""

    def __init__(
        self, url: str, tally: Tally, seed: str, ends: float, handlers: tuple[PageEvent, PageEvent]
    ) -> None:
        self.url, self.tally, self.ends = url, tally, ends
        self.opening, self.looking = handlers
        self.rng = random.Random(seed)
        self.codes: list[str] = []
        """The workspaces that are not deleted yet."""

    def live(self) -> None:
        """Visit until the time is over, then delete what is left."""
        self._sleep(self.rng.uniform(0, 10), strict=False)
        while time.monotonic() < self.ends:
            with (
                suppress(Over, Refused, Fault),
                httpx.Client(base_url=self.url, timeout=SECONDS) as self.http,
            ):
                self._visit()
            self._sleep(self.rng.uniform(1, 5), strict=False)
        with httpx.Client(base_url=self.url, timeout=SECONDS) as self.http:
            for code in list(self.codes):
                self._delete(code)

    def _visit(self) -> None:
        """Upload, build, search, train, follow, write, and delete; some leave midway, some come back."""
        self.tally.ask("page", lambda: checked(self.http.get("")).content)
        comes_back = bool(self.codes) and self.rng.random() < 0.5
        self.session = secrets.token_hex(8)
        code = self.codes[-1] if comes_back else new_code()
        self.tally.count("visits of one who came back" if comes_back else "first visits")
        if not comes_back:
            self.codes.append(code)
        leaves = self.rng.random()
        corpus = self._patiently(lambda: self._build(code, leaves < 0.1))
        if corpus is None:
            self.tally.count("left during the build")
            return
        self._call("search", code, corpus, "boats of salt", 3, "dense")
        self._patiently(lambda: self._write(code))
        model = self.rng.choice(("lm", "retro"))
        begun = self._patiently(lambda: self._call("train", code, corpus, model, "tiny", 4, 0, ""))
        state = self._follow(code, begun["run"], leaves)
        self.tally.count(f"trainings {state}")
        if state == "left":
            return
        self._call("search", code, corpus, "copper", 3, "bm25-words")
        if self.rng.random() < 0.7:
            self._delete(code)
            self.tally.count("visits to their end")

    def _build(self, code: str, leaves: bool) -> str | None:
        """Upload a text and follow its build to the end; its id, None for one who leaves midway."""
        text = a_document(self.rng).encode()
        path = self.tally.ask("upload", lambda: self._upload(text))
        file = {"path": path, "orig_name": "places.txt", "meta": {"_type": "gradio.FileData"}}
        events = self._call("build_corpus", code, [file], "places", 16, 0.2, "static", leave=leaves)
        if leaves:
            return None
        if events["event"] != "finished":
            self._fault("build_corpus", f"the build ended with {events!r:.200}")
        self.tally.count("builds finished")
        return events["corpus"]

    def _upload(self, text: bytes) -> str:
        answer = self.http.post("gradio_api/upload", files={"files": ("places.txt", text)})
        return checked(answer).json()[0]

    def _write(self, code: str) -> None:
        how = (8, 0.8, 0, 0.95, 7, "on", "", "", "", "")  # tokens, temperature, top k, top p, seed, ...
        said = self._call("generate", code, SHIPPED_RUN, "Introduction", *how)
        if not said["done"] or not said["text"]:
            self._fault("generate", f"ended with {said!r:.200}")

    def _follow(self, code: str, run: str, leaves: float) -> str:
        """Look at a run every two seconds until it ends; its last state, or "left"."""
        looks = 0
        self._patiently(lambda: self.tally.ask("opening the tab", lambda: self._page(self.opening, code)))
        while True:
            self._sleep(POLL_SECONDS)
            self.tally.ask("look of the page", lambda: self._page(self.looking, code, run))
            status = self._call("run_status", code, run)
            looks += 1
            if status["state"] in ("failed", "interrupted"):
                self._fault("run_status", f"the run {status['state']}: {status['error']}")
            if status["state"] in ("finished", "stopped"):
                return status["state"]
            if looks == 3 and leaves < 0.2:
                return "left"
            if looks == 3 and leaves < 0.3:
                asked = self._call("stop_run", code, run)["asked"]
                if asked and status["state"] == "waiting":
                    return "stopped"  # it left the queue before it began

    def _page(self, event: PageEvent, *values: Any) -> None:
        """An event of the page with its first values, outside Gradio's queue."""
        data = [*values, *[None] * (event.inputs - len(values))]
        asked = {"fn_index": event.number, "data": data, "session_hash": self.session}
        answer = self.http.post("gradio_api/run/predict", json=asked)
        if answer.status_code == 500:
            refuse(str(answer.json().get("error") or ""))
        checked(answer)

    def _call(self, name: str, *values: Any, leave: bool = False) -> Any:
        """The last thing that a named endpoint says; with `leave` the first, and the line is cut."""

        def request() -> Any:
            asked = self.http.post(f"gradio_api/call/{name}", json={"data": values})
            place = f"gradio_api/call/{name}/{checked(asked).json()['event_id']}"
            last, event, heard = None, "", time.monotonic()
            patience = BUILD_SECONDS if name == "build_corpus" else SECONDS
            with self.http.stream("GET", place) as stream:
                for line in stream.iter_lines():
                    if time.monotonic() - heard > patience:
                        raise Fault(f"heartbeats alone for {patience:g} s")
                    if line.startswith("event: "):
                        event = line[7:]
                    elif line.startswith("data: ") and event != "heartbeat":
                        said, heard = json.loads(line[6:]), time.monotonic()
                        if event == "error":
                            words = said.get("error") if isinstance(said, dict) else said
                            refuse(str(words or ""))
                        last = said[0] if isinstance(said, list) and said else last
                        if leave:
                            return last
            if last is None:
                raise Fault("an answer without a word")
            return last

        return self.tally.ask(name, request)

    def _delete(self, code: str) -> None:
        """Delete a workspace, whatever the server has to do meanwhile."""
        for _ in range(20):
            try:
                self._call("delete_my_data", code, True)
                break
            except Refused:
                time.sleep(PATIENCE / 5)
            except Fault:
                break
        self.codes.remove(code)

    def _fault(self, kind: str, words: str) -> None:
        with self.tally.lock:
            self.tally.faults.append((kind, words[:300]))
        raise Fault(words)

    def _patiently(self, request: Callable[[], Any]) -> Any:
        """What a request returns at last: who is refused waits and asks again, until the time is over."""
        while True:
            try:
                return request()
            except Refused:
                self._sleep(PATIENCE * self.rng.uniform(0.5, 1.5))

    def _sleep(self, seconds: float, *, strict: bool = True) -> None:
        """Wait, but not past the end; then raise Over where `strict`."""
        left = self.ends - time.monotonic()
        time.sleep(max(0.0, min(seconds, left)))
        if strict and seconds >= left:
            raise Over
