"""A long job as a process that works on a folder: lock it, start, stop and watch it, and keep its events.

The folder is the truth about its job. The process that works on it holds its lock, which the operating system
releases when the process dies, however it dies. Output goes to files, never to a pipe.

A process is known by its number and the moment of its start as the kernel keeps it, counted from the start of
the machine: process numbers are used again and clocks are set, so neither alone identifies it.

Events are read again and again while a job is watched: what was read of a file is not read twice. A failure
is an event, too.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from retro_demo.errors import MEMORY_ADVICE, UserError, describe_error, why_interrupted
from retro_demo.events import ENDINGS, Event, Failed, Stopped, append_event, drop_endings, events_of
from retro_demo.jobs import job_queue
from retro_demo.jobs.worker import UNLIMITED, Allowance, time_is_up

BOOT = Path("/proc/sys/kernel/random/boot_id")
PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process as it can be written down; `since` is when that was, on the clock of the machine's start."""

    number: int
    birth: str
    since: float

    @staticmethod
    def of(number: int) -> Process:
        """The process that has this number now."""
        return Process(number, birth(number), time.monotonic())

    @staticmethod
    def read(path: Path) -> Process | None:
        """What `write` wrote; None where nothing is written down, or by an earlier version."""
        try:
            number, born, since = path.read_text("utf-8").split()
            return Process(int(number), born, float(since))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, path: Path) -> None:
        path.write_text(f"{self.number} {self.birth or '-'} {self.since:.2f}\n", "utf-8")

    def is_alive(self) -> bool:
        """Whether this very process runs still, and not another that has its number."""
        return birth(self.number) == self.birth


def birth(number: int) -> str:
    """When a process started, in words without blanks: the same at each look and never another's.

    "" where no process has the number, or one that has ended and that nobody has collected.
    """
    try:
        state, *others = (PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if (PROC / "self" / "stat").exists() else _birth_by_ps(number)
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return "" if state in "ZX" else f"{others[18]}@{boot}"


def _birth_by_ps(number: int) -> str:
    """The same where there is no /proc, as on a Mac."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(number)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return "" if not said or said[0].startswith("Z") else "_".join(said[1:])


TAIL = 256  # bytes by which a file is known again, beside its number


@dataclass(frozen=True)
class _Seen:
    """What was read of a file: its number on the disk, how many bytes (whole lines), their end and events."""

    number: tuple[int, int] = (0, 0)
    size: int = 0
    tail: bytes = b""
    events: tuple[dict[str, Any], ...] = ()


class EventLog:
    """Files of events with what was read of them, together at most so many bytes of files.

    A file that grew is read from where it ended; one that was rewritten from its beginning. Losing all
    of this loses nothing.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._seen: OrderedDict[Path, _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> list[dict[str, Any]]:
        """As `read_events`. The events themselves are shared with other readers: do not change them."""
        with self._lock:
            before = self._seen.pop(path, _Seen())
        try:
            with path.open("rb") as file:
                seen = _read_on(file, before)
        except (FileNotFoundError, NotADirectoryError):
            return []
        with self._lock:
            self._seen[path] = seen
            while sum(one.size for one in self._seen.values()) > self.most_bytes:
                self._seen.popitem(last=False)
        return list(seen.events)


def _read_on(file: BinaryIO, before: _Seen) -> _Seen:
    status = os.fstat(file.fileno())
    number = (status.st_dev, status.st_ino)
    file.seek(before.size - len(before.tail))
    if number != before.number or file.read(len(before.tail)) != before.tail:
        before = _Seen(number)
    file.seek(before.size)
    come = file.read()
    whole = come[: come.rfind(b"\n") + 1]  # the next look finds the rest of a line that is being written
    if not whole:
        return before
    events = events_of(io.TextIOWrapper(io.BytesIO(whole), encoding="utf-8", errors="replace"))
    tail = (before.tail + whole)[-TAIL:]
    return _Seen(number, before.size + len(whole), tail, (*before.events, *events))


PATIENCE = 2.0  # seconds; a look (is_running) may hold a lock for an instant
LOOK_PATIENCE = 0.2  # likewise, where another look is the likely reason
LEAVING = 5.0  # seconds; a worker that has told its end is gone in less
LOG_TAIL = 4000
ASKED = "stop"  # a note in the folder of a driven job, which no signal can stop
BEFORE = "events.before"  # what was told of a job that is to begin again, until it starts
DRIVEN = "driven"  # stands in its pid file, in place of a number
LOG = EventLog(8_000_000)  # every page polls `status`; a memo of files, as an lru_cache would be


@contextmanager
def claim(folder: Path, *, patience: float = PATIENCE, driven: bool = False) -> Iterator[None]:
    """Hold the folder while working on it; raises UserError where another process does.

    `patience`: seconds to wait for that one, -1 for as long as it takes. `driven`: on behalf of processes
    that take turns, so that no signal is to reach this one (a server): `stop` leaves a note (`stop_asked`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(
            f"{folder} is being worked on by another process. Stop that one first, or wait."
        ) from None
    try:
        (folder / ASKED).unlink(missing_ok=True)
        if driven:
            (folder / "pid").write_text(DRIVEN)
        else:
            _note_process(folder, os.getpid())
        yield
    finally:
        (folder / "pid").unlink(missing_ok=True)
        lock.release()


@contextmanager
def asking(folder: Path) -> Iterator[None]:
    """Look at a folder, write down what is wanted of it and start the job, before anybody else may."""
    with FileLock(folder / "asking.lock"):
        yield


@contextmanager
def without_events(folder: Path) -> Iterator[None]:
    """Begin a job again in a folder, as one that nothing is told of yet; where that fails all stays told.

    What was told before is kept beside it until the job starts: it may leave the queue (`tell_as_before`).
    """
    path = folder / "events.jsonl"
    if path.exists():
        path.replace(folder / BEFORE)  # with its time, by which the latest evaluation is known
    try:
        yield
    except BaseException:
        tell_as_before(folder)
        raise


def tell_as_before(folder: Path) -> None:
    """Take back `without_events` where the job has not begun since."""
    with suppress(FileNotFoundError):
        (folder / BEFORE).replace(folder / "events.jsonl")


def start(folder: Path, verb: str, allowance: Allowance = UNLIMITED) -> None:
    """Start `python -m retro_demo VERB --out FOLDER` on its own; its config is in the folder."""
    already = UserError(f"{folder.name} is already running. Stop it first, or wait for its end.")
    if is_running(folder):
        raise already
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise already from None
    try:
        drop_endings(folder / "events.jsonl")  # from now on they are not the truth
        process = _launched(folder, verb, allowance)
        (folder / BEFORE).unlink(missing_ok=True)
        _note_process(folder, process.pid)  # before the process can claim the folder and do it
    finally:
        lock.release()
    threading.Thread(target=_see_off, args=(folder, process), daemon=True).start()


def _launched(folder: Path, verb: str, allowance: Allowance) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log, _without_sigterm():
        return subprocess.Popen(
            [sys.executable, "-m", "retro_demo", verb, "--out", str(folder), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the events are in events.jsonl
            stderr=log,
            start_new_session=True,  # a signal to the server is not one to the job
            env=os.environ
            | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(sys.path)}
            | allowance.to_environment(),
        )


@contextmanager
def _without_sigterm() -> Iterator[None]:
    """A process that is started within hears no SIGTERM until it can heed it (jobs/worker.py): else a stop
    in
    its first moment would be a kill."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _note_process(folder: Path, number: int) -> None:
    (folder / "signal").unlink(missing_ok=True)
    Process.of(number).write(folder / "pid")


def _see_off(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Collect the exit code of a job, so that no zombie stays; where a signal ended it, note which."""
    code = process.wait()
    noted = Process.read(folder / "pid")
    with suppress(OSError):  # the folder may be gone, the disk full
        if code < 0 and noted and noted.number == process.pid:
            (folder / "signal").write_text(str(-code))


def stop(folder: Path) -> bool:
    """Ask the job to save and leave (SIGTERM or a note), or to leave the queue; False: it does neither."""
    if job_queue.cancel(folder):
        return True
    if _is_driven(folder) and is_running(folder):
        (folder / ASKED).touch()
        return True
    worker = worker_of(folder)
    if worker is None:
        return False
    try:
        os.kill(worker.number, signal.SIGTERM)
    except ProcessLookupError:  # it ended between the look and the signal
        return False
    return True


def kill(folder: Path) -> None:
    """End a job and what it started at once; it loses what it did since its last save."""
    if worker := worker_of(folder):
        with suppress(ProcessLookupError):
            os.killpg(os.getpgid(worker.number), signal.SIGKILL)


def is_under_way(folder: Path) -> bool:
    """Whether a job is running in the folder or waits to."""
    return job_queue.waiting_entry(folder) is not None or is_running(folder)


def is_at_work(folder: Path) -> bool:
    """As `is_under_way`, but not for a process that has told its end: for that one this waits to leave."""
    let_leave(folder)
    return is_under_way(folder)


def let_leave(folder: Path) -> None:
    """Wait while a process that has told its end is still there: its visitor sees the end and goes on."""
    until = time.monotonic() + LEAVING
    while is_running(folder) and not status(folder).under_way and time.monotonic() < until:
        time.sleep(0.05)


def stop_asked(folder: Path) -> bool:
    """Whether somebody asked the driven job of this folder to stop."""
    return (folder / ASKED).exists()


def is_running(folder: Path) -> bool:
    """Whether a process works on the folder, or was started and is about to."""
    if not folder.is_dir() or not (folder / "pid").exists():
        return False
    if worker_of(folder) is not None:
        return True
    lock = FileLock(folder / "lock")  # of one that cannot be seen from here, as in another container
    try:
        lock.acquire(timeout=LOOK_PATIENCE)
    except Timeout:
        return True
    lock.release()
    return False


def worker_of(folder: Path) -> Process | None:
    """The living process that works on a folder or was started to, None where there is none to be seen."""
    noted = Process.read(folder / "pid")
    return noted if noted and noted.is_alive() else None


def seconds_at_work(folder: Path) -> float:
    """For how long a running job has been at work, whatever was done to the clock; 0 where none is."""
    worker = worker_of(folder)
    return time.monotonic() - worker.since if worker else 0.0


@dataclass(frozen=True)
class JobStatus:
    """A job as its folder tells it: state, all events, and where it failed the end of its log.

    `state` is waiting (at `queue_position` of `waiting` in the queue), running, finished, stopped, failed,
    interrupted (killed: it can go on; `why` says what is known of it) or new.
    """

    state: str
    events: list[dict[str, Any]]
    log_tail: str
    queue_position: int = 0
    waiting: int = 0
    why: str = ""

    @property
    def under_way(self) -> bool:
        return self.state in ("waiting", "running")

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def status(folder: Path) -> JobStatus:
    """Look at a job; asks the operating system and the folder, never anybody's memory."""
    # the position before the process, and both before the events: a job that leaves the queue in between is
    # seen at work, and one that ends shows its ending
    position, waiting = job_queue.queue_position(folder)
    running = is_running(folder)
    events = LOG.read(folder / "events.jsonl")
    last = events[-1]["event"] if events else ""
    if running:
        position, waiting = 0, 0
    if position:
        state = "waiting"
    elif running and last not in ENDINGS:
        state = "running"
    elif last in ENDINGS:
        # each turn of a driven job ends with a stop
        state = "running" if running and _is_driven(folder) else last
    else:
        begun = (folder / "log.txt").exists() and not (folder / BEFORE).exists()
        state = "interrupted" if events or begun else "new"
    log = folder / "log.txt"
    tail = (
        log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace")
        if state in ("failed", "interrupted") and log.exists()
        else ""
    )
    why = _why_interrupted(folder) if state == "interrupted" else ""
    return JobStatus(state, events, tail, position, waiting, why)


def _why_interrupted(folder: Path) -> str:
    number = 0
    with suppress(FileNotFoundError):  # it goes when the job starts again, also just now
        number = int((folder / "signal").read_text() or 0)
    return why_interrupted(number, shutil.disk_usage(folder).free)


def _is_driven(folder: Path) -> bool:
    try:
        return (folder / "pid").read_text() == DRIVEN
    except FileNotFoundError:
        return False


log = logging.getLogger(__name__)


def record(folder: Path, events: Iterable[Event], advice: str = MEMORY_ADVICE) -> Iterator[Event]:
    """Keep each event in the folder's events.jsonl, a failure too, and pass it on.

    This is the outermost frame of a job: a bug becomes one sentence here, and stays a bug above. A full disk
    or too little memory is no bug; `advice` says what needs less memory.
    """
    path = folder / "events.jsonl"
    try:
        for event in events:
            if isinstance(event, Stopped):
                event = replace(event, why=time_is_up())
            append_event(path, event)
            yield event
    except UserError as error:
        _tell(path, str(error))
        raise
    except Exception as error:
        if trouble := describe_error(error, advice):
            log.warning("job %s: %s", folder.name, error)
            _tell(path, trouble)
            raise UserError(trouble) from error
        number = secrets.token_hex(4)
        log.exception("job %s failed (log id %s)", folder.name, number)
        _tell(path, f"Something went wrong inside the program ({type(error).__name__}, log id {number}).")
        raise


def _tell(path: Path, sentence: str) -> None:
    try:
        append_event(path, Failed(sentence))
    except OSError as error:  # not even room for that: who looks at the job sees a full disk
        log.warning("the end of a job could not be kept (%s): %s", error, sentence)
