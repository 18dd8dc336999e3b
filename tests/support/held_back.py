"""What has to be slow in a test is held back here and let go by the test: none hopes it is slow enough."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import Forked, Forks

from retro_demo.events import Finished, append_event
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.server.limits import Limits, keep_limits
from retro_demo.server.workspace import Workspace, new_code

PATIENCE = 240.0  # seconds for what comes in the end; a busy machine needs many times what a quiet one does


def wait_until(true, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def held_jobs() -> Iterator[None]:
    """Jobs that this process starts within the block stand still in their first moment, until it ends."""
    launched, held = lifecycle._launched, []

    def hold(*values) -> subprocess.Popen[bytes]:
        process = launched(*values)
        if not isinstance(process, Forked):
            process.send_signal(signal.SIGSTOP)
        held.append(process.pid)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, "_launched", hold)
        patch.setattr(Forks, "held", True)
        try:
            yield
        finally:
            for number in held:
                wait_until(lambda number=number: _told(number, "State", "T")[0] in "TZX")
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)


def _told(number: int, name: str, gone: str) -> str:
    """What the kernel says of a process, `gone` where it says nothing."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return gone
    return dict(line.split(":\t") for line in lines)[name]


@contextmanager
def held_job(folder: Path) -> Iterator[None]:
    """The job of a folder, whoever started it or is about to, stands still until the block ends."""
    wait_until(lambda: lifecycle.worker_of(folder))
    number = lifecycle.worker_of(folder).number  # pyright: ignore[reportOptionalMemberAccess]
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(number, signal.SIGCONT)


def is_asked_to_stop(folder: Path) -> bool:
    """Whether SIGTERM waits for the held job of a folder."""
    worker = lifecycle.worker_of(folder)
    pending = _told(worker.number, "ShdPnd", "0") if worker else "0"
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


@contextmanager
def no_place_free(home: Path, limits: Limits = Limits()) -> Iterator[None]:  # noqa: B008
    """One job may be at work, and somebody else's is: what comes waits."""
    keep_limits(home, replace(limits, running=1))
    other = Workspace.open(home, new_code())
    folder = other.folder / "corpora" / "busy"
    with lifecycle.claim(folder):
        with job_queue.queue_lock(home):
            job_queue.mark_started(job_queue.enqueue(home, folder, "build-corpus", other.folder.name))
        yield
    shutil.rmtree(other.folder)


@contextmanager
def leaving(folder: Path) -> Iterator[None]:
    """A job that has told its end and works on the folder until somebody has waited for it to leave."""
    told, waited = threading.Event(), threading.Event()

    def work() -> None:
        with lifecycle.claim(folder):
            append_event(folder / "events.jsonl", Finished())
            told.set()
            waited.wait(PATIENCE)

    def sleep(seconds: float) -> None:
        waited.set()
        time.sleep(seconds)

    thread = threading.Thread(target=work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifecycle, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        patch.setattr(lifecycle, "LEAVING", PATIENCE)
        thread.start()
        try:
            assert told.wait(PATIENCE)
            yield
            assert waited.is_set()  # or nobody cared that it was still there
        finally:
            waited.set()
            thread.join()


def train_and_kill(run: Path, event: str, step: int) -> None:
    """Train in a process of its own, which is killed (-9) where it tells this event of this step."""
    command = [sys.executable, "-m", "killed_training", str(run), event, str(step)]
    with open(os.devnull, "wb") as nowhere:
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = lifecycle.subprocess.Popen(command, stderr=nowhere, env=os.environ | path)
        assert process.wait() == -signal.SIGKILL
