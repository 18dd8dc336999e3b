"""What an import believes of texts only after a look: events of a training, documents, what a build keeps.

Every check reads a line at a time, and raises a UserError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from retro_demo.documents import USES, Document
from retro_demo.errors import UserError
from retro_demo.events import (
    Evaluated,
    Event,
    Failed,
    Finished,
    Progress,
    Reindexed,
    Saved,
    Started,
    Step,
    Stopped,
    Warned,
)
from retro_demo.sharing import read_json

MOST_NUMBER = 1 << 50
LINE_CHARS = 1_000_000
DOCUMENT_CHARS = 64_000_000
KINDS: dict[str, type[Event]] = {
    kind.__name__.lower(): kind
    for kind in (Started, Progress, Warned, Step, Evaluated, Reindexed, Saved, Stopped, Failed, Finished)
}


def check_events(path: Path) -> None:
    """Raise UserError where a line is no event of a training, or has other fields than those have."""
    for number, values in _lines(path, LINE_CHARS):
        kind = KINDS.get(str(values.pop("event", "")))
        if kind is None or not is_plain(values):
            raise UserError(f"Line {number} of {path.name} is no event of a training. Export anew.")
        wanted = {f.name: str(f.type) for f in fields(kind)} if kind is not Finished else {}
        if kind is Finished:
            wanted = {name: "int" for name in ("step", "parameters") if name in values}
        if kind is not Finished and set(values) - set(wanted):
            raise UserError(f"Line {number} of {path.name} has fields that no event has. Export anew.")
        for name, type_ in wanted.items():
            if name in values and not _is_of(values[name], type_):
                raise UserError(f"Line {number} of {path.name}: {name} is not {type_}. Export anew.")
        required = {"step", "loss", "lr", "tokens_per_second"} if kind is Step else {"step", "arms"}
        if kind in (Step, Evaluated) and required - set(values):
            raise UserError(f"Line {number} of {path.name} lacks fields. Export anew.")
        for arm in values.get("arms", {}).values() if kind is Evaluated else ():
            if {"nats", "bpb"} - set(arm) or not all(_is_of(each, "float") for each in arm.values()):
                raise UserError(f"Line {number} of {path.name}: an arm has no figures. Export anew.")


def _is_of(value: Any, type_: str) -> bool:
    if type_ == "int":
        return type(value) is int and abs(value) < MOST_NUMBER
    if type_ == "float":
        return type(value) in (int, float) and abs(value) < 1e30
    if type_ == "str":
        return isinstance(value, str)
    if type_.startswith("dict[str, dict"):
        return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())
    return isinstance(value, dict)


def is_plain(value: Any, depth: int = 6) -> bool:
    """Whether a value is figures and short texts, not nested deeply."""
    if isinstance(value, dict):
        return depth > 0 and all(len(n) <= 200 and is_plain(v, depth - 1) for n, v in value.items())
    if isinstance(value, list):
        return depth > 0 and len(value) <= 100_000 and all(is_plain(v, depth - 1) for v in value)
    return value is None or isinstance(value, (bool, int, float)) or len(value) <= 20_000


def check_documents(path: Path) -> int:
    """The number of documents; raises UserError where a line is none of ours."""
    names = {f.name for f in fields(Document)}
    needed = names - {"use"}
    count = 0
    for number, values in _lines(path, DOCUMENT_CHARS):
        if not needed <= set(values) <= names or not all(isinstance(v, str) for v in values.values()):
            raise UserError(f"Line {number} of {path.name} is no document. Export the corpus anew.")
        if values.get("use", "") not in ("", *USES):
            raise UserError(f"Line {number} of {path.name} has the use {values['use'][:40]!r}. Export anew.")
        count += 1
    return count


def check_reading(path: Path, documents: int) -> None:
    """Raise UserError where reading.json is not what a build of so many documents keeps."""
    kept = read_json(path)
    held_out, history = kept.get("held_out", []), kept.get("history", [])
    fits = (
        set(kept) <= {"warnings", "sections", "held_out", "history"}
        and isinstance(kept.get("sections"), bool)
        and isinstance(kept.get("warnings"), list)
        and all(isinstance(text, str) and len(text) <= 2000 for text in kept["warnings"])
        and isinstance(held_out, list)
        and all(side in (True, False, None) for side in held_out)
        and len(held_out) in ((documents,) if "held_out" in kept else (0,))
        and isinstance(history, list)
        and all(isinstance(entry, dict) and is_plain(entry) for entry in history)
    )
    if not fits:
        raise UserError(f"{path.name} is not what a build of {documents} documents keeps. Export anew.")


def _lines(path: Path, most: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each line, none longer than `most` bytes."""
    with path.open("rb") as file:
        for number in range(1, 1 << 40):
            line = file.readline(most + 1)
            if not line:
                return
            try:
                if len(line) > most:
                    raise ValueError(f"longer than {most:,} bytes")
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"Line {number} of {path.name} is no JSON ({error}). Export anew.") from error
            if not isinstance(values, dict):
                raise UserError(f"Line {number} of {path.name} is no JSON object. Export anew.")
            yield number, values
