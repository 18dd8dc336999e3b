"""What an import believes of texts only after a look: events of a training, documents, what a build keeps.

Every check reads a line at a time, and raises a UserError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from retro_demo.documents.documents import USES, Document
from retro_demo.errors import UserError
from retro_demo.events import ENDINGS, PARTS, wrong_with
from retro_demo.sharing.sharing import read_json, without_strings

MOST_NUMBER = 1 << 50
LINE_CHARS = 1_000_000
DOCUMENT_CHARS = 64_000_000
MOST_BARE = 1000  # bytes of a document outside of its texts: braces, colons and commas
MOST_FIGURE = 1e30
TRAINING = {"progress", "warned", "step", "evaluated", "reindexed", "saved", "started", *ENDINGS}
"""The events of a training."""


def check_events(path: Path) -> None:
    """Raise UserError where a line is no event of a training, has other fields, or numbers out of range."""
    for number, event in _lines(path, LINE_CHARS):
        if wrong := wrong_with(event) or _strange(event):
            raise UserError(f"Line {number} of {path.name} is no event of a training: {wrong}. Export anew.")


def _strange(event: dict[str, Any]) -> str:
    """Why an event is none of a training, "" = it is one."""
    kind = event["event"]
    if kind not in TRAINING or not is_plain(event):
        return "no training tells that"
    if kind == "finished":
        counts = [event.get("step", 0), event.get("parameters", 0)]
        return "" if all(type(one) is int and _in_range(one) for one in counts) else "a count is none"
    if set(event) - {"event", *(part.name for part in PARTS[kind])}:
        return "it has fields that no event has"
    numbers = [value for value in event.values() if isinstance(value, (int, float))]
    numbers += [value for arm in event.get("arms", {}).values() for value in arm.values()]
    return "" if all(map(_in_range, numbers)) else "a number is none"


def _in_range(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < (MOST_NUMBER if type(value) is int else MOST_FIGURE)


def is_plain(value: Any, depth: int = 6) -> bool:
    """Whether a value is figures and short texts, not nested deeply."""
    if isinstance(value, dict):
        return depth > 0 and all(len(n) <= 200 and is_plain(v, depth - 1) for n, v in value.items())
    if isinstance(value, list):
        return depth > 0 and len(value) <= 100_000 and all(is_plain(v, depth - 1) for v in value)
    return value is None or isinstance(value, (bool, int, float)) or len(value) <= 20_000


def check_documents(path: Path) -> tuple[int, int]:
    """The number of documents and the bytes of their texts; raises UserError where a line is none of ours."""
    names = {f.name for f in fields(Document)}
    needed = names - {"use"}
    count = held = 0
    for number, values in _lines(path, DOCUMENT_CHARS, MOST_BARE):
        if not needed <= set(values) <= names or not all(isinstance(v, str) for v in values.values()):
            raise UserError(f"Line {number} of {path.name} is no document. Export the corpus anew.")
        if values.get("use", "") not in ("", *USES):
            raise UserError(f"Line {number} of {path.name} has the use {values['use'][:40]!r}. Export anew.")
        count += 1
        try:
            held += len(values["text"].encode())
        except UnicodeEncodeError as error:
            raise UserError(f"Line {number} of {path.name} holds what is no text. Export anew.") from error
    return count, held


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


def _lines(path: Path, most: int, bare: int = LINE_CHARS) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each line, none longer than `most` bytes, or `bare` outside of its texts."""
    with path.open("rb") as file:
        for number in range(1, 1 << 40):
            line = file.readline(most + 1)
            if not line:
                return
            try:
                if len(line) > most:
                    raise ValueError(f"longer than {most:,} bytes")
                if len(line) > bare and len(without_strings(line)) > bare:
                    raise ValueError(f"more than {bare:,} bytes that are no text")
                values = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise UserError(f"Line {number} of {path.name} is no JSON ({error}). Export anew.") from error
            if not isinstance(values, dict):
                raise UserError(f"Line {number} of {path.name} is no JSON object. Export anew.")
            yield number, values
