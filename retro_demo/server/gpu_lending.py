"""Training in slices, where a GPU is lent for a call: a run folder advanced call by call in forked processes.

Each call resumes from the last save, trains for so many seconds, saves and ends. It returns only its result
and what it wrote into the folder.

A fork has all memory of its parent, but of its threads only the one that forked. A lock that another thread
held at that moment is held in the fork for good, and whoever asks for it hangs. `prepare_forks` makes sure
that no such lock is held.
"""

from __future__ import annotations

import contextvars
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from retro_demo.devices import lent_device
from retro_demo.errors import UserError
from retro_demo.events import Finished
from retro_demo.evidence.passages import Passages
from retro_demo.jobs import lifecycle
from retro_demo.models.config import RetroConfig
from retro_demo.models.memory import count_parameters
from retro_demo.models.retro import RETRO
from retro_demo.runs.loading import LoadedRun
from retro_demo.server.model_cache import ModelCache
from retro_demo.settings import TrainConfig
from retro_demo.training.loop import clip_gradients, make_optimizer
from retro_demo.training.trainer import run_training

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
        return time.monotonic() >= until or lifecycle.stop_asked(out)

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
    with lifecycle.claim(folder, driven=True):
        while not (left.is_set() or lifecycle.stop_asked(folder)):
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
    if lifecycle.is_running(folder):
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
            lifecycle.stop(folder)


SMALL = RetroConfig(vocab_size=8, dim=8, depth=1, num_heads=1, chunk_len=4, cca_layers=(1,), enc_dim=8)


def warm_up() -> None:
    """Do what a training does, on the CPU and before anything else runs, so that no fork does it first.

    torch imports its compiler with the first network, which takes seconds, in which the lock of that import
    is held: a fork that was made meanwhile, and makes a network, waits for it without end. Other calls pay
    those seconds from the quota of a visitor. Files of tensors hold a lock of their own for the blink of
    their first opening, one for each kind of array. There is no backward pass: from the first one on
    autograd may have threads, and refuses to work in a fork of their process.
    """
    _open_tensors()
    count_parameters(SMALL)
    model = RETRO(SMALL)
    optimizer = make_optimizer(model, TrainConfig())
    tokens = torch.ones(1, 2 * SMALL.chunk_len, dtype=torch.long)
    model(tokens, torch.ones(1, 2, 1, 2 * SMALL.chunk_len, dtype=torch.long))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    clip_gradients(model, 1.0)
    optimizer.step()


def _open_tensors() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.safetensors"
        save_file({"any": torch.zeros(1)}, path)
        for arrays in ("pt", "numpy"):
            with safe_open(path, arrays) as file:
                file.get_tensor("any")


def prepare_forks(cache: ModelCache) -> None:
    """From now on a fork waits until the library loads nothing, and finds its locks free."""
    os.register_at_fork(before=cache.hold, after_in_parent=cache.release, after_in_child=cache.release)
    os.register_at_fork(after_in_child=_free_properties)


def _free_properties() -> None:
    """Until Python 3.12 each cached property has a lock, held for as long as a thread works it out."""
    for owner in (LoadedRun, Passages):
        for value in vars(owner).values():
            if isinstance(value, cached_property) and "lock" in vars(value):
                vars(value)["lock"] = threading.RLock()
