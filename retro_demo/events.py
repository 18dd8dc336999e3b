"""Typed events of the long jobs, and the append-only file that keeps them.

Every long job yields these; the command line prints them, the page draws them, tests list them.
In JSON an event is its fields and its class name in lower case under "event".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from retro_demo.files import append_line, replacing


@dataclass(frozen=True)
class Event:
    """Something that a job has to tell; its name on the wire is written out, whatever the class is called."""

    NAME: ClassVar[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.NAME = name

    def to_json(self) -> dict[str, Any]:
        return {"event": self.NAME, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Started(Event, name="started"):
    """A job begins, or goes on (`step` > 0)."""

    job: str
    step: int = 0
    about: dict[str, Any] = field(default_factory=dict)


MEASURING = "measuring held-out loss, tokens"  # the stage of a run between its steps


@dataclass(frozen=True)
class Progress(Event, name="progress"):
    """A job without steps moves on: `done` of `total` units of `stage`."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Warned(Event, name="warned"):
    """Something that the user should know and that does not stop the job.

    `about`: what kind of alarm a training raises (runs/alarms.py), after which `step`.
    """

    text: str
    about: str = ""
    step: int = 0


@dataclass(frozen=True)
class Step(Event, name="step"):
    """One optimizer step; loss in nats a token, gradient norm before clipping."""

    step: int
    loss: float
    lr: float
    tokens_per_second: float
    grad_norm: float


@dataclass(frozen=True)
class Evaluated(Event, name="evaluated"):
    """Held-out loss of each arm at a step: {"on": {"nats": ..., "bpb": ..., "tokens": ...}, ...}.

    `sample` is what the model writes then; `about` what else it tells of itself.
    """

    step: int
    arms: dict[str, dict[str, float]]
    sample: str = ""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reindexed(Event, name="reindexed"):
    """MARGE embedded all passages again before the batch of a step (from 0), and found their evidence."""

    step: int
    figures: dict[str, Any]


@dataclass(frozen=True)
class Refined(Event, name="refined"):
    """An evaluation after a round: `result` is what `finished` will hold, from the text read so far."""

    round: int
    rounds: int
    result: dict[str, Any]


@dataclass(frozen=True)
class Saved(Event, name="saved"):
    """The state up to and including this step is on disk."""

    step: int


@dataclass(frozen=True)
class Retrieved(Event, name="retrieved"):
    """The neighbors of one generated or given chunk; `neighbors` are plain dicts (generation/retro.py)."""

    chunk: int
    neighbors: list[dict[str, Any]]
    ms: float


@dataclass(frozen=True)
class Token(Event, name="token"):
    """One written token with the text it adds and the model's probability of it."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Stopped(Event, name="stopped"):
    """The job was asked to stop and has saved what it had; `why`: where its limits asked."""

    step: int = 0
    why: str = ""


@dataclass(frozen=True)
class Failed(Event, name="failed"):
    """The job ended with an error, said in one sentence."""

    error: str


@dataclass(frozen=True)
class Finished(Event, name="finished"):
    """The job is done; `result` holds its figures."""

    result: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The figures stand beside "event", not below it: they are what callers read."""
        return {"event": "finished", **self.result}


ENDINGS = ("finished", "stopped", "failed")


def append_event(path: Path, event: Event) -> None:
    """Write the event as one line at the end of the file."""
    append_line(path, json.dumps(event.to_json()))


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of the file as JSON objects; a line torn by a kill, and what is no event, is skipped."""
    return list(_whole_lines(path))


def cut_back(path: Path, step: int, *, goes_on: bool = False) -> None:
    """Drop what was written after the save of `step`, so that each step stands in the file once.

    `goes_on`: there are steps to come, and the re-index before the next one comes again.
    """
    kept = []
    for event in _whole_lines(path):
        again = step == 0 and event["event"] != "started"  # nothing was saved: all of it comes again
        again = again or (goes_on and event["event"] == "reindexed" and event["step"] >= step)
        if again or event["event"] in ENDINGS or event.get("step", 0) > step:
            continue
        kept.append(event)
    _rewrite(path, kept)


def drop_endings(path: Path) -> None:
    """Take away how a job ended, where it begins again: killed at once, it is neither finished nor failed."""
    events = read_events(path)
    if kept := [event for event in events if event["event"] not in ENDINGS]:
        _rewrite(path, kept)
    else:
        path.unlink(missing_ok=True)


def _rewrite(path: Path, events: list[dict[str, Any]]) -> None:
    with replacing(path) as beside:
        beside.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from events_of(file)


def events_of(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events of lines; one without its end, and what is no event, is skipped."""
    for line in lines:
        if line.endswith("\n") and (event := _event_of(line)) is not None:
            yield event


def _event_of(line: str) -> dict[str, Any] | None:
    """The event of a line; None for what is none: the two halves of a line torn by a kill, or a forgery."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and not wrong_with(event) else None


def wrong_with(event: dict[str, Any]) -> str:
    """Why a JSON object is no event, as "loss is not float"; "" = it is one."""
    parts = PARTS.get(str(event.get("event")))
    if parts is None:
        return "there is no such event"
    for part in parts:
        if part.name in event and not _is_a(event[part.name], str(part.type)):
            return f"{part.name} is not {part.type}"
        if part.name not in event and part.default is part.default_factory is dataclasses.MISSING:
            return f"{part.name} is not there"
    return ""


def _is_a(value: Any, kind: str) -> bool:
    if kind == "float":
        return isinstance(value, float) or _is_a(value, "int")
    if kind == "int":
        return type(value) is int and abs(value) < 2**63
    if kind == "str":
        return isinstance(value, str)
    if kind == "dict[str, dict[str, float]]":
        return isinstance(value, dict) and all(
            isinstance(one, dict) and all(_is_a(one.get(name), "float") for name in ("nats", "bpb", "tokens"))
            for one in value.values()
        )
    return isinstance(value, list if kind.startswith("list") else dict)


PARTS: dict[str, tuple[dataclasses.Field[Any], ...]] = {
    kind.NAME: dataclasses.fields(kind) for kind in Event.__subclasses__()
}
PARTS["finished"] = ()  # its figures are what the job makes them
