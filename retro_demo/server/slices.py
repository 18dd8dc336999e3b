"""Training in slices, where a GPU is lent for a call and taken back: a run folder advanced call by call.

Each call goes on from the last save, trains for so many seconds, saves and leaves. It runs in a forked
process, which brings nothing back but what it returns and what it wrote into the folder.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from retro_demo.devices import lent_device
from retro_demo.errors import UserError
from retro_demo.events import Finished
from retro_demo.jobs import jobs
from retro_demo.training.pipeline import run_training

SECONDS = 60.0  # of a call: the quota of an anonymous visitor is two of them a day
SHARE = 0.75  # of a call is for training; the rest is for loading, a last measurement and the save
LONGEST = 600.0
VARIABLE = "RETRO_DEMO_SLICE_SECONDS"
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Ended:
    """How a slice ended: finished, stopped (there is more to do) or failed, with the sentence why."""

    state: str
    error: str = ""


def slice_seconds(environment: Mapping[str, str]) -> float:
    """For how long a GPU is asked for; raises UserError where the environment says nonsense."""
    said = environment.get(VARIABLE, "")
    try:
        seconds = float(said or SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST:
        raise UserError(f"{VARIABLE} is {said[:80]!r}. Set it to seconds, above 0 and up to {LONGEST:g}.")
    return seconds


def advance(folder: str, seconds: float) -> Ended:
    """Advance the run in `folder` within a call of so many seconds; whoever calls holds the folder.

    At least one step is done, so that calls too short for anything else still come to an end.
    """
    out, until = Path(folder), time.monotonic() + SHARE * seconds

    def stop() -> bool:
        return time.monotonic() >= until or jobs.stop_asked(out)

    try:
        told = list(run_training(out, stop, device=lent_device(), hold=lambda _: nullcontext()))
    except UserError as error:
        return Ended("failed", str(error))
    return Ended("finished" if isinstance(told[-1], Finished) else "stopped")


def drive(folder: Path, call: Callable[[str, float], Ended], seconds: float, left: threading.Event) -> None:
    """Advance a run slice after slice until it ends, somebody stops it, or `left` is set.

    `call` is `advance` where it has a GPU. Raises UserError for what a slice failed with, and what `call`
    raises: the run stays as it was saved and can be gone on with.
    """
    with jobs.claim(folder, driven=True):
        while not (left.is_set() or jobs.stop_asked(folder)):
            ended = call(str(folder), seconds)
            if ended.state == "failed":
                raise UserError(ended.error)
            if ended.state == "finished":
                return


def driven(folder: Path, call: Callable[[str, float], Ended], seconds: float) -> Iterator[None]:
    """Drive a run for as long as somebody takes what this yields, about once a second.

    Who leaves stops it, without waiting: the slice saves and leaves in its own time. The driver is a thread
    with the context of the caller, because a GPU is lent to the visitor whose request stands there.
    """
    if jobs.is_running(folder):
        raise UserError(f"{folder.name} is already running. Stop it first, or wait for its end.")
    left, done, context = threading.Event(), Future[None](), contextvars.copy_context()

    def work() -> None:
        try:
            context.run(drive, folder, call, seconds, left)
            done.set_result(None)
        except BaseException as error:  # it belongs to whoever waits
            done.set_exception(error)

    threading.Thread(target=work, daemon=True, name=f"drive {folder.name}").start()
    try:
        while not wait([done], LOOK_SECONDS).done:
            yield
        done.result()
        yield
    finally:
        if not done.done():
            left.set()
            jobs.stop(folder)
