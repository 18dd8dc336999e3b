"""Long jobs as processes that advance a folder: claim one, start, stop and look at it.

A job's folder is the truth about it. Whoever works on a folder holds its lock, which the operating
system lets go when the process dies, however it dies. Output goes to files, never to a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retro_demo import tickets
from retro_demo.allowance import UNLIMITED, Allowance
from retro_demo.errors import UserError
from retro_demo.events import ENDINGS, read_events

STARTING_SECONDS = 60.0  # how long a new process may take to import and claim its folder
LOG_TAIL = 4000


@contextmanager
def claim(folder: Path, *, patience: float = 2) -> Iterator[None]:
    """Hold the folder while working on it; raises UserError where another process does.

    `patience`: seconds to wait for that one, -1 for as long as it takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=patience)  # a follower's look (is_running) holds it for an instant
    except Timeout:
        raise UserError(
            f"{folder} is being worked on by another process. Stop that one first, or wait."
        ) from None
    try:
        (folder / "pid").write_text(str(os.getpid()))
        yield
    finally:
        (folder / "pid").unlink(missing_ok=True)
        lock.release()


@contextmanager
def asking(folder: Path) -> Iterator[None]:
    """Look at a folder, write down what is wanted of it and start the job, before anybody else may."""
    with FileLock(folder / "asking.lock"):
        yield


def start(folder: Path, verb: str, allowance: Allowance = UNLIMITED) -> None:
    """Start `python -m retro_demo VERB --out FOLDER` on its own; its config is in the folder."""
    if is_running(folder):
        raise UserError(f"{folder.name} is already running. Stop it first, or wait for its end.")
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "retro_demo", verb, "--out", str(folder), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the events are in events.jsonl
            stderr=log,
            start_new_session=True,  # a signal to the server is not one to the job
            env=os.environ
            | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(sys.path)}
            | allowance.to_environment(),
        )
    (folder / "pid").write_text(str(process.pid))
    threading.Thread(target=process.wait, daemon=True).start()  # collects its exit code: no zombie


def stop(folder: Path) -> bool:
    """Ask the job to save and leave (SIGTERM), or to leave the queue; False where it does neither."""
    if tickets.cancel(folder):
        return True
    pid = _pid(folder)
    if pid is None or not is_running(folder):
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # it ended between the look and the signal
        return False
    return True


def kill(folder: Path) -> None:
    """End a job and what it started at once; it loses what it did since its last save."""
    pid = _pid(folder)
    if pid is not None and is_running(folder):
        with suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def seconds_at_work(folder: Path) -> float:
    """For how long a running job has been at work; 0 where none is."""
    try:
        return time.time() - (folder / "pid").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def is_under_way(folder: Path) -> bool:
    """Whether a job is running in the folder or waits to."""
    return tickets.waiting_ticket(folder) is not None or is_running(folder)


def is_running(folder: Path) -> bool:
    """Whether a process works on the folder, or was started a moment ago and is about to."""
    if not folder.is_dir() or not (folder / "pid").exists():
        return False
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    pid = _pid(folder)
    try:
        young = time.time() - (folder / "pid").stat().st_mtime < STARTING_SECONDS
    except FileNotFoundError:  # it ended between two looks
        return False
    return pid is not None and young and _alive(pid)


def _pid(folder: Path) -> int | None:
    try:
        return int((folder / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True)
class JobStatus:
    """A job as its folder tells it: state, all events, and where it failed the end of its log.

    `state` is waiting (for its `place` of `waiting` in the queue), running, finished, stopped, failed,
    interrupted (killed: it can go on) or new.
    """

    state: str
    events: list[dict[str, Any]]
    log_tail: str
    place: int = 0
    waiting: int = 0

    @property
    def under_way(self) -> bool:
        return self.state in ("waiting", "running")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def status(folder: Path) -> JobStatus:
    """Look at a job; asks the operating system and the folder, never anybody's memory."""
    running = is_running(folder)  # before the events: a job that ends in between shows its ending
    events = read_events(folder / "events.jsonl")
    last = events[-1]["event"] if events else ""
    place, waiting = (0, 0) if running else tickets.place(folder)
    if place:
        state = "waiting"
    elif running and last not in ENDINGS:
        state = "running"
    elif last in ENDINGS:
        state = "running" if running and _pid_is_newer(folder) else last
    else:
        state = "interrupted" if events or (folder / "log.txt").exists() else "new"
    log = folder / "log.txt"
    tail = (
        log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace")
        if state in ("failed", "interrupted") and log.exists()
        else ""
    )
    return JobStatus(state, events, tail, place, waiting)


def _pid_is_newer(folder: Path) -> bool:
    """Whether the process was started after the last event: it goes on from an ended job."""
    try:
        return (folder / "pid").stat().st_mtime >= (folder / "events.jsonl").stat().st_mtime
    except FileNotFoundError:
        return False
