"""Metrics of a run for TensorBoard and Trackio, made from its events.

The events of a run (events.jsonl) are the only record. An export is made from them whole: what was told
before a training goes on, and each event as it comes. So a finished run is exported like one that is just
trained, and an export that is made again replaces the one before of the same name.

Losses are in nats a token; names are grouped by a slash, as both programs expect.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retro_demo.errors import UserError
from retro_demo.events import Event, Started, read_events

Write = Callable[[int, Mapping[str, float]], None]
"""Takes the metrics of a step."""

SUFFIX = ".retro_demo"  # of the event files that are ours to replace


def metrics_of(event: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that an event in JSON tells, by name; none of most events."""
    if event["event"] == "step":
        return {
            "train/loss": event["loss"],
            "train/learning_rate": event["lr"],
            "train/gradient_norm": event["grad_norm"],
            "train/tokens_per_second": event["tokens_per_second"],
        }
    if event["event"] == "evaluated":
        arms = event["arms"].items()
        nats = {f"held_out/{arm}": figures["nats"] for arm, figures in arms}
        return nats | {f"bits_per_byte/{arm}": figures["bpb"] for arm, figures in arms}
    if event["event"] == "reindexed":
        figures = event["figures"].items()
        return {f"reindex/{name}": value for name, value in figures if isinstance(value, (int, float))}
    return {}


def check_exports(tensorboard: Path | None, trackio: str | None) -> None:
    """Raise UserError where a program that an export is for is not installed."""
    for flag, wanted in {"tensorboard": tensorboard, "trackio": trackio}.items():
        if wanted is not None and find_spec(flag) is None:
            raise UserError(
                f"--{flag} needs the package {flag}, which is not installed. Run: pip install {flag}"
                f" (for an installed package: pip install 'retro_demo[{flag}]'), or leave --{flag} out."
            )
    if trackio is not None and not trackio.strip():
        raise UserError("--trackio is empty. Name the project that the run is to stand in.")


def export_metrics(
    events: Iterable[Event], run: Path, *, tensorboard: Path | None = None, trackio: str | None = None
) -> Iterator[Event]:
    """Pass the events of a training on, and write its metrics; raises UserError as `check_exports`.

    `tensorboard`: the folder in which the run gets a folder of its own; `trackio`: the project.
    """
    check_exports(tensorboard, trackio)
    with ExitStack() as open_exports:
        writers: list[Write] = []
        for event in events:
            if isinstance(event, Started) and not writers:
                if tensorboard is not None:
                    writers.append(open_exports.enter_context(_tensorboard(tensorboard / run.resolve().name)))
                if trackio is not None:
                    writers.append(open_exports.enter_context(_trackio(trackio, run)))
                for told in read_events(run / "events.jsonl"):
                    _write(writers, told)
            else:
                _write(writers, event.to_json())
            yield event


def _write(writers: Iterable[Write], event: Mapping[str, Any]) -> None:
    if metrics := metrics_of(event):
        for write in writers:
            write(event["step"], metrics)


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Write]:
    """A file of events that TensorBoard reads, in place of an earlier one of ours."""
    from torch.utils.tensorboard import SummaryWriter  # here: it imports the package tensorboard

    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    try:
        writer = SummaryWriter(str(folder), filename_suffix=SUFFIX, flush_secs=5)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}). Choose another --tensorboard.") from error

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    with contextlib.closing(writer):
        yield write


@contextlib.contextmanager
def _trackio(project: str, run: Path) -> Iterator[Write]:
    """A run of a Trackio project on this machine, in place of an earlier one of its name."""
    client: Any = import_module("trackio")
    name = run.resolve().name
    with _quietly():  # what it prints would stand among our lines
        with contextlib.suppress(ValueError):  # the project is new
            for earlier in client.Api().runs(project):
                if earlier.name == name:
                    earlier.delete()
        client.init(project=project, name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)
    try:
        yield lambda step, metrics: client.log(dict(metrics), step=step)
    finally:
        with _quietly():
            client.finish()


def _quietly() -> AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())
