"""ZeroGPU: a GPU that Hugging Face lends for a call, in a forked process, on the visitor's daily quota.

Elsewhere nothing here changes anything. ui/serve.py imports `spaces` before torch where it is needed.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.devices import lends_gpu, lent_device
from retro_demo.errors import UserError
from retro_demo.events import Event
from retro_demo.explain.text import Writing, watch_writing
from retro_demo.generation.marge import LoadedMarge, write_from_evidence
from retro_demo.generation.sampling import Written
from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import load_marge, load_model, read_any_config
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server.gpu_lending import Ended, advance, driven, prepare_forks, slice_seconds, warm_up
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace
from retro_demo.settings import GenerateConfig
from retro_demo.ui.form import CHEAP, shows_errors
from retro_demo.ui.gradio_patches import public

log = logging.getLogger(__name__)

WRITING_SECONDS = 30.0
LANE: dict[str, Any] = {"concurrency_id": "slices", "concurrency_limit": 8}
"""Who is on the page holds one of these places for as long as a run is driven."""


def get_ready(cache: ModelCache) -> None:
    """Before the page is made and its threads are at work: a call must not hang on what these do."""
    if lends_gpu():
        warm_up()
        prepare_forks(cache)


def lent(cache: ModelCache, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The function (or generator) with a GPU in each call of it; arguments and results are pickled."""
    borrowed = importlib.import_module("spaces").GPU(function, duration=math.ceil(seconds))

    def call(*values: Any) -> Any:
        # `spaces` is lent the GPU first and forks then: the fork, which waits until nothing is being loaded
        # (see server/gpu_lending.py), would do so on the visitor's quota
        cache.wait()
        return borrowed(*values)

    return call


def training(cache: ModelCache) -> Callable[[Path], Iterator[None]] | None:
    """What drives a run while somebody takes what it yields; None where a training is a process."""
    if not lends_gpu():
        return None
    seconds = slice_seconds(os.environ)
    borrowed = lent(cache, advance, seconds)

    def call(folder: str, span: float) -> Ended:
        try:
            return borrowed(folder, span)
        except gr.Error as error:  # no quota, no GPU, or the call was ended
            said = re.sub(r"<[^>]*>", "", str(error.message)).strip(" '").rstrip(".")
            raise UserError(f"The GPU is not lent any more: {said}. {KEPT}") from error
        except Exception as error:
            log.exception("a GPU call failed")
            raise UserError(f"The GPU call broke off ({type(error).__name__}). {KEPT}") from error

    return lambda folder: driven(folder, call, seconds)


KEPT = "The run keeps what was saved; Resume goes on from there, now or another day."


def writer(cache: ModelCache) -> Callable[..., Iterator[Writing]]:
    """`watch_writing`, within a call that is lent a GPU where they are."""
    if not lends_gpu():
        return watch_writing

    def write(
        folder: Path,
        place: Path | None,
        retriever: str,
        name: str,
        prompt: str,
        config: GenerateConfig,
        note: Path,
    ) -> Iterator[Writing]:
        try:
            there = cache.run(folder, place, retriever)  # the fork has what the page has loaded
            run = replace(there, model=load_model(folder, lent_device()))
            yield from watch_writing(run, name, prompt, config, note.exists)
        except UserError as error:  # the one kind of error whose sentence crosses from a fork
            raise gr.Error(str(error), print_exception=False) from None

    borrowed = lent(cache, write, WRITING_SECONDS)

    def watch(
        run: LoadedRun, name: str, prompt: str, config: GenerateConfig, stop: Callable[[], bool]
    ) -> Iterator[Writing]:
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "stop"
            call = borrowed(run.folder, run.corpus_folder, config.retriever, name, prompt, config, note)
            with closing(call) as pieces:
                for writing in pieces:
                    if stop():
                        note.touch()
                    yield writing

    return watch


def marge_writer(cache: ModelCache) -> Callable[..., Iterator[Event | Written]]:
    """`write_from_evidence`, within a call that is lent a GPU where they are; who stops taking ends it."""
    if not lends_gpu():
        return write_from_evidence

    def write_marge(
        folder: Path, prompt: str, config: GenerateConfig, language: str, documents: Sequence[str]
    ) -> Iterator[Event | Written]:
        try:
            run = replace(cache.marge(folder), model=load_marge(folder, lent_device()))
            yield from write_from_evidence(run, prompt, config, language=language, documents=documents)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    borrowed = lent(cache, write_marge, WRITING_SECONDS)

    def watch(
        run: LoadedMarge,
        prompt: str,
        config: GenerateConfig,
        *,
        language: str = "",
        documents: Sequence[str] = (),
    ) -> Iterator[Event | Written]:
        with closing(borrowed(run.folder, prompt, config, language, [*documents])) as events:
            yield from events

    return watch


def drive_after(events: Sequence[Any], cache: ModelCache, visitor: Any, run: Any, timer: gr.Timer) -> None:
    """After these events drive the chosen run for as long as the visitor stays, where runs are driven.

    The timer follows it, or whatever is looked at instead.
    """
    drive = training(cache)
    if drive is None:
        return

    @shows_errors
    def train_on(code: str, one: str) -> Iterator[Any]:
        folder = service.own_run(Workspace.open(cache.home, code), one or "")
        for looks, _ in enumerate(drive(folder)):
            # again and again: a look at another run, or one that came too early, puts the timer to rest
            yield gr.skip() if looks % 3 else gr.Timer(active=True)

    for begun in events:
        begun.success(train_on, [visitor, run], timer, **CHEAP | LANE)


def add_endpoint(cache: ModelCache) -> None:
    """Publish `advance` where runs are driven; call inside the Blocks of the page."""
    drive = training(cache)
    if drive is None:
        return

    def advance(workspace: str, run: str) -> Iterator[dict]:
        """Train a run that /train made or that was stopped, on lent GPUs, for as long as you listen. Yields
        {"run", "state", "step", "steps"} about once a second. Leave, and it stops and can be gone on with."""
        folder = service.own_run(Workspace.open(cache.home, workspace), run)
        for _ in drive(folder):
            status = lifecycle.status(folder)
            done = status.of_kind("step")
            step = {"step": done[-1]["step"] if done else 0, "steps": read_any_config(folder).training.steps}
            yield {"run": run, "state": status.state} | step

    publish = gr.api  # pyright: ignore[reportPrivateImportUsage]
    publish(public(advance), api_name="advance", **LANE)
