"""Kill the worker or the server at random moments, and look after each kill whether anything is lost.

    .venv/bin/python -m benchmarks.soak [--kills 100] [--seed 0] [--steps 100]

Starts app.py on a free port with a data folder of its own and asks over HTTP for trainings and builds.
After each kill -9: events and weights agree and load, a corpus is whole or not yet there, nothing that is
dead says that it runs, the endpoints answer, and what was cut off is resumed. What ends is compared with a
run and a corpus that were never killed, bit for bit. Ends with a table; exit code 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, markdown, torch
from benchmarks.serving import ROOT, start_app
from retro_demo.corpus.store import is_built, load_corpus
from retro_demo.errors import UserError
from retro_demo.files import load_tensors
from retro_demo.jobs import lifecycle
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import LAST, STATE, load_model, read_any_config
from retro_demo.runs.resuming import saved_step
from retro_demo.server.workspace import Workspace, new_code

PATIENCE = 300.0  # seconds for anything to happen: this is no measurement of speed
SETTLED = 10.0  # seconds after which nothing that was killed may say that it runs
FIELDS = ("Area", "Population", "Coastline", "Irrigated land", "Roadways", "Electricity made", "Airports")


def wait_for(what: str, true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `true` gives as soon as it is something; TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.1)
    return found


def write_text(path: Path, documents: int = 40) -> Path:
    """Entries of made-up places, alike in form, as JSONL."""
    chance = random.Random(0)
    rows = []
    for number in range(documents):
        name = f"Place {number}"
        told = [f"{field} of {name}: {chance.randrange(100, 9999)}, estimated." for field in FIELDS]
        rows.append(json.dumps({"id": str(number), "title": name, "text": "\n".join(told)}) + "\n")
    path.write_text("".join(rows))
    return path


class Server:
    """app.py on a free port, as a process that can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.start()

    def start(self) -> None:
        from gradio_client import Client

        url, self.process = start_app(self.home)
        self.client = Client(url, verbose=False)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def problems_of_run(folder: Path, *, at_rest: bool) -> list[str]:
    """What is wrong with the files of a run; `at_rest`: nobody works on it while it is looked at."""
    try:
        events = lifecycle.status(folder).events
        every, told = read_any_config(folder).training.save_every, 0
        steps = [event["step"] for event in events if event["event"] == "step"]
        told = max((event["step"] for event in events if event["event"] == "saved"), default=0)
        state = saved_step(folder)
        if not state:
            return [f"the save of step {told} is gone"] if told else []
        kept, _ = load_tensors(folder / STATE)
        weights, about = load_tensors(folder / LAST)
        load_model(folder)
    except (UserError, ValueError, KeyError) as error:
        return [f"it cannot be read: {error}"]
    found, step = [], int(about["step"])
    if steps != list(range(1, len(steps) + 1)):
        found.append("a step is missing in its events, or there twice")
    if not told <= state <= step:
        found.append(f"events tell of a save at {told}, but the state is of {state}, the weights of {step}")
    if at_rest and step > told + every:
        found.append(f"weights of step {step}, though the last save in the events is of {told}")
    if at_rest and state == step:
        same = all(torch.equal(kept[f"model.{name}"], tensor) for name, tensor in weights.items())
        found += [] if same else ["weights and state differ"]
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        found.append("weights that are no numbers")
    return found


def problems_of_corpus(folder: Path, fingerprint: str) -> list[str]:
    """What is wrong with a corpus: it is the one that was never killed, or it is not there yet."""
    if not is_built(folder):
        return []
    try:
        corpus = load_corpus(folder)
    except (UserError, OSError, ValueError) as error:
        return [f"it cannot be read: {error}"]
    return [] if corpus.fingerprint == fingerprint else ["it is another than the one never killed"]


class Soak:
    """One visitor, one job at a time, and somebody who kills."""

    def __init__(self, home: Path, seed: int, steps: int, span: float) -> None:
        self.random, self.steps, self.span = random.Random(seed), steps, span
        self.server = Server(home)
        self.code, self.made = new_code(), 0
        self.space = Workspace.open(home, self.code)
        self.text = write_text(home / "places.jsonl")
        self.violations: list[str] = []
        self.compared: Counter[str] = Counter()
        self.folder: Path | None = None
        print("building the corpus and training the run that nobody kills", flush=True)
        self.base = self.built("whole")
        self.reference = self.trained_alone(home / "reference")

    def built(self, name: str) -> Path:
        folder = self.ask_for_build(name)
        wait_for("a corpus", lambda: is_built(folder) and not lifecycle.is_running(folder))
        return folder

    def ask_for_build(self, name: str) -> Path:
        from gradio_client import handle_file

        self.server.client.submit(
            self.code, [handle_file(str(self.text))], name, 16, api_name="/build_corpus"
        )
        return self.space.folder / "corpora" / name

    def trained_alone(self, folder: Path) -> dict[str, torch.Tensor]:
        command = [sys.executable, "-m", "retro_demo", "train", "retro", "--corpus", str(self.base)]
        command += ["--out", str(folder), "--preset", "tiny", "--seed", "0", "--steps", str(self.steps)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return load_tensors(folder / LAST)[0]

    def begin(self) -> Path:
        """Ask for a run, or now and then for a corpus, whose folder may not be there at once."""
        self.made += 1
        if self.random.random() < 0.25:
            return self.ask_for_build(f"cut-{self.made}")
        asked = self.server.client.predict(self.code, "whole", "retro", "tiny", self.steps, api_name="/train")
        return self.space.run(asked["run"])

    def is_run(self) -> bool:
        return self.folder is not None and self.folder.parent.name == "runs"

    def problems(self, *, at_rest: bool) -> list[str]:
        assert self.folder is not None
        if self.is_run():
            return problems_of_run(self.folder, at_rest=at_rest)
        return problems_of_corpus(self.folder, load_corpus(self.base).fingerprint)

    def state(self) -> str:
        """How the job stands: of a run as the endpoint says, of a corpus as its folder says."""
        assert self.folder is not None
        if self.is_run():
            said = self.server.client.predict(self.code, self.folder.name, api_name="/run_status")
            return said["state"]
        self.server.client.predict(self.code, "whole", "Area of Place 1", api_name="/search")  # it answers
        return lifecycle.status(self.folder).state if self.folder.exists() else "gone"

    def one_kill(self, number: int) -> tuple[str, str]:
        """Kill somebody who is at work; who it was, and how the job stood after that."""
        while True:
            self.folder = self.folder or self.begin()
            time.sleep(self.random.uniform(0, self.span))
            victim = self.random.choice(("worker", "server"))
            worker = lifecycle.worker_of(self.folder)
            if worker or victim == "server":
                break
            self.settle()  # it has ended meanwhile: begin another
        if victim == "server":
            self.server.kill()
        elif worker:
            os.killpg(os.getpgid(worker.number), signal.SIGKILL)
        found = self.problems(at_rest=victim == "worker") if self.folder.exists() else []
        if victim == "server":
            self.server.start()
        state = self.state_after(victim)
        self.violations += [f"kill {number} ({victim}, {self.folder.name}): {what}" for what in found]
        allowed = ("interrupted", "finished") if victim == "worker" else ("running", "waiting", "finished")
        if state not in allowed and self.folder_was_begun():
            self.violations.append(f"kill {number} ({victim}, {self.folder.name}): it is {state} after that")
        self.go_on(state)
        return victim, state

    def folder_was_begun(self) -> bool:
        """Whether the server had come so far as to start the job before it was killed."""
        return self.folder is not None and (self.folder / "log.txt").exists()

    def state_after(self, victim: str) -> str:
        deadline = time.monotonic() + SETTLED
        while (state := self.state()) == "running" and victim == "worker" and time.monotonic() < deadline:
            time.sleep(0.2)
        return state

    def go_on(self, state: str) -> None:
        """Resume what was cut off; look at what has ended; forget what was never begun."""
        assert self.folder is not None
        if state == "finished":
            self.settle()
        elif state in ("interrupted", "new") and (self.folder / "config.json").exists():
            self.resume()
        elif state not in ("running", "waiting"):
            self.folder = None

    def resume(self) -> None:
        assert self.folder is not None
        endpoint = "/resume_run" if self.is_run() else "/resume_build"
        asked = self.server.client.submit(self.code, self.folder.name, api_name=endpoint)
        if self.is_run():
            asked.result(PATIENCE)
        else:
            wait_for("a resumed build", lambda: lifecycle.is_running(self.folder) or is_built(self.folder))

    def settle(self) -> None:
        """Wait for the end of the job and compare what it made with what was never killed."""
        if self.folder is None or not (self.folder / "config.json").exists():
            self.folder = None
            return
        wait_for("the end of a job", lambda: self.state() not in ("running", "waiting"))
        state, name = self.state(), self.folder.name
        if state != "finished":
            self.violations.append(
                f"{name}: it is {state} at its end: {lifecycle.status(self.folder).log_tail}"
            )
        self.violations += [f"{name}, at its end: {what}" for what in self.problems(at_rest=True)]
        if self.is_run() and state == "finished":
            weights = load_tensors(self.folder / LAST)[0]
            if not all(torch.equal(weights[key], tensor) for key, tensor in self.reference.items()):
                self.violations.append(f"{name}: other weights than those of the run never killed")
        self.compared["runs" if self.is_run() else "corpora"] += 1
        shutil.rmtree(self.folder)
        self.folder = None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--steps", type=int, default=100, help="of each run, preset tiny (default 100)")
    parser.add_argument("--span", type=float, default=12.0, help="at most so many seconds between two kills")
    parser.add_argument("--minutes", type=float, default=0, help="stop killing after so many (0: never)")
    chosen = parser.parse_args()
    begun, rows = time.monotonic(), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="retro-demo-soak-") as folder:
        home = Path(folder)
        if (samples := data_home()[0] / "samples").is_dir():  # else the app builds them beside all this
            shutil.copytree(samples, home / "samples")
        soak = Soak(home, chosen.seed, chosen.steps, chosen.span)
        try:
            for number in range(1, chosen.kills + 1):
                if chosen.minutes and time.monotonic() - begun > 60 * chosen.minutes:
                    break
                row = soak.one_kill(number)
                rows[row] += 1
                print(
                    f"kill {number}: {row[0]}, then {row[1]}; {len(soak.violations)} violations", flush=True
                )
            soak.settle()
        finally:
            soak.server.kill()
    table = [(victim, state, count) for (victim, state), count in sorted(rows.items())]
    print("\n" + markdown(("killed", "the job after that", "times"), table))
    told = {"kills": sum(rows.values()), "compared": dict(soak.compared), "violations": soak.violations}
    told |= {"rows": table, "minutes": round((time.monotonic() - begun) / 60, 1)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(told, indent=1))
    print(
        f"\n{told['kills']} kills in {told['minutes']} minutes. Compared at their end with what was never "
        f"killed: {soak.compared['runs']} runs, {soak.compared['corpora']} corpora. "
        f"Violations: {len(soak.violations)}."
    )
    print("\n".join(soak.violations))
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
