"""What a reader of a kind of file is given, and the rows that it gives back."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from retro_demo.archives import ReadingLimits, Unpacker
from retro_demo.errors import UserError
from retro_demo.reading_notes import Notes

FIELDS = ("id", "title", "lang", "text", "group", "use")
"""The names of a document's fields."""


@dataclass(frozen=True)
class Row:
    """One document as the file has it; an empty string is a field that is not there."""

    text: str
    id: str = ""
    title: str = ""
    lang: str = ""
    group: str = ""
    use: str = ""
    number: int = 0
    """Line, row or record in a file of several, from 1; 0 where the whole file is the document."""


@dataclass(frozen=True)
class Part:
    """How much of a file is read: told between rows of a file that takes long."""

    done: int
    total: int


WHOLE = Part(1, 1)
"""A file has been read, or passed over."""


@dataclass(frozen=True)
class File:
    """A file to read: its unpacked bytes, how to speak of it, and what holds for all files of a call."""

    stream: io.BufferedReader
    label: str
    fields: Mapping[str, str]
    """Names in FIELDS -> columns of files that have columns."""
    limits: ReadingLimits
    notes: Notes
    """Where a reader says what it mended."""
    unpacker: Unpacker
    """For kinds that are packed inside."""


class Reader(Protocol):
    """Reads one kind of file; raises UserError where the file cannot be read."""

    def __call__(self, file: File, /) -> Iterator[Row | Part]: ...


def no_column(name: str, column: str, seen: Sequence[str], where: str) -> UserError:
    """The error for a field whose column is not among those seen."""
    shown = ", ".join(seen[:20]) or "none"
    return UserError(
        f"{where} has no field {column!r} (it has: {shown}): "
        f"name the field that holds the {name} with --fields {name}=NAME."
    )
