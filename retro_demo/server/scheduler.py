"""The scheduler: jobs wait in the queue, start when a slot is free, and end at their time limit.

The queue is on disk (jobs/job_queue.py), so a restarted server continues it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from retro_demo.devices import allowed_memory, choose_device, lends_gpu
from retro_demo.errors import UserError
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.jobs.job_queue import QueueEntry
from retro_demo.jobs.worker import Allowance
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.server.limits import ADDRESS, Limits, limits_of
from retro_demo.server.workspace import Workspace
from retro_demo.training.study import read_study

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
LEAST_MEMORY = 2_000_000_000  # bytes; a tiny run writes to 1.1 GB, a small one to 1.6
GRACE_SECONDS = 120  # to save and leave, before a job over its time is killed


def begin(workspace: Workspace, folder: Path, verb: str) -> None:
    """Start a job of a visitor, or let it wait for its place; a training only where it has a GPU then.

    Raises UserError where it is at work or waits already, and where the queue is full.
    """
    home, visitor, device = workspace.home, workspace.folder.name, ""
    limits = limits_of(home)
    if verb == "study":
        device = choose_device(read_study(folder).device)
    if verb == "train":
        device = read_any_config(folder).device
        if lends_gpu():
            return  # who stays on the page drives it (server/gpu_lending.py)
    lifecycle.let_leave(folder)
    with job_queue.queue_lock(home):
        if lifecycle.is_running(folder):
            raise UserError(f"{folder.name} is already running. Stop it first, or wait for its end.")
        if job_queue.waiting_entry(folder):
            raise UserError(f"{folder.name} waits in the queue already. It starts by itself.")
        _check_can_queue(home, limits, QueueEntry(folder, folder, verb, visitor, device))
        job_queue.enqueue(home, folder, verb, visitor, device, ADDRESS.get())
    try:
        start_next(home)
    except OSError as error:  # it has its queue entry, and is started in a moment
        log.warning("the queue stumbled: %s", error)


def check_can_queue(workspace: Workspace) -> None:
    """Raise UserError where a build of a visitor could neither start nor wait, before it takes any room."""
    home = workspace.home
    wanted = QueueEntry(home, home, "build-corpus", workspace.folder.name)
    with job_queue.queue_lock(home):
        _check_can_queue(home, limits_of(home), wanted)


def _check_can_queue(home: Path, limits: Limits, wanted: QueueEntry) -> None:
    known = _settled(home)
    if not _fits(limits, [entry for entry in known if entry.started], wanted):
        check_queue(limits, known, wanted.visitor, ADDRESS.get())


def check_queue(limits: Limits, known: Sequence[QueueEntry], visitor: str, address: str = "") -> None:
    """Raise UserError where no further job of a visitor, or from an address, may wait."""
    waiting = [entry for entry in known if not entry.started]
    from_there = sum(entry.address == address for entry in waiting) if address else 0
    if limits.waiting_per_address and from_there >= limits.waiting_per_address:
        raise UserError(
            f"{from_there} jobs that were asked for from your address wait in the queue, and at most "
            f"{limits.waiting_per_address} may. Try again later."
        )
    own = [entry.folder.name for entry in waiting if entry.visitor == visitor]
    if limits.waiting_per_visitor and len(own) >= limits.waiting_per_visitor:
        raise UserError(
            f"{' and '.join(own)} wait in the queue, and at most {limits.waiting_per_visitor} jobs of a "
            "workspace may. Wait until one starts, or stop one."
        )
    if limits.waiting and len(waiting) >= limits.waiting:
        raise UserError(
            f"The queue is full: {len(waiting)} jobs wait, at most {limits.waiting} may. Try again later."
        )


def start_next(home: Path) -> None:
    """Start the waiting jobs that there is a place for, in their turn; drop the entries of ended jobs."""
    limits = limits_of(home)
    with job_queue.queue_lock(home):
        known = _settled(home)
        at_work = [entry for entry in known if entry.started]
        for entry in at_work:
            _end_over_time(entry, limits)
        for entry in job_queue.in_order(known):
            if not _fits(limits, at_work, entry):
                continue
            try:
                lifecycle.start(entry.folder, entry.verb, _allowance(limits))
            except (OSError, UserError) as error:  # those behind it are not to wait for that
                _note_once(f"{entry.folder.name} waits on: {error}")
                continue
            job_queue.mark_started(entry)
            at_work.append(entry)


@lru_cache(maxsize=256)
def _note_once(words: str) -> None:
    """Log what each look, two a second, would find again."""
    log.warning("%s", words)


def _settled(home: Path) -> list[QueueEntry]:
    """The queue entries of jobs that are at work or wait; the others are dropped. The lock is held."""
    kept = []
    for entry in job_queue.read_queue(home):
        running = lifecycle.is_running(entry.folder)
        if running and not entry.started:  # a server was killed between the start and its note
            job_queue.mark_started(entry)
            entry = replace(entry, started=True)
        if running or (not entry.started and job_queue.waiting_entry(entry.folder) == entry):
            kept.append(entry)
        else:  # it ended, or its folder is gone
            job_queue.drop(entry)
    return kept


def _fits(limits: Limits, at_work: Sequence[QueueEntry], entry: QueueEntry) -> bool:
    """Whether there is a place for a job beside those at work."""
    own = sum(other.visitor == entry.visitor for other in at_work)
    beside = sum(other.device == entry.device for other in at_work if entry.device)
    return (
        _below(len(at_work), limits.running)
        and _below(own, limits.running_per_visitor)
        and _below(beside, limits.trainings_per_device)
    )


def _below(count: int, most: int) -> bool:
    return not most or count < most


def _allowance(limits: Limits) -> Allowance:
    # CUDA writes to host memory of its own, how much nobody has measured here: no limit there
    memory = 0
    if limits.memory_share and choose_device("auto") != "cuda":
        memory = max(LEAST_MEMORY, int(limits.memory_share * allowed_memory()))
    return Allowance(limits.minutes * 60, memory, limits.nice)


def _end_over_time(entry: QueueEntry, limits: Limits) -> None:
    """Kill a job that did not leave when its time was up."""
    seconds = lifecycle.seconds_at_work(entry.folder)
    if limits.minutes and seconds > limits.minutes * 60 + GRACE_SECONDS:
        log.warning("%s overstays after %.0f s and is killed", entry.folder.name, seconds)
        lifecycle.kill(entry.folder)
        with suppress(OSError), (entry.folder / "log.txt").open("a", encoding="utf-8") as told:
            told.write(
                f"The server ended it: it was at work for more than {limits.minutes} minutes and did not "
                "leave when asked. Resume it to go on from its last save.\n"
            )


def keep_dispatching(home: Path) -> threading.Thread:
    """Start what waits as places become free, beside the page and for as long as it is served."""

    def work() -> None:
        while True:
            try:
                start_next(home)
            except Exception:  # what one entry does wrong must not hold up all others for good
                log.exception("the queue stumbled")
            time.sleep(LOOK_SECONDS)

    thread = threading.Thread(target=work, daemon=True, name="dispatch")
    thread.start()
    return thread
