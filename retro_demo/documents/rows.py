"""What a reader of a kind of file gets and gives: a file, its rows, and notes on what was mended or left out.

Notes count: one sentence for each kind of mend, however many files needed it.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from retro_demo.documents.archives import ReadingLimits, Unpacker
from retro_demo.errors import UserError

FIRST_NAMES = 5


class Notes:
    """Warnings about files, gathered by kind, in the order in which each kind first came up."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, sentence: str, name: str) -> None:
        """Note that `sentence`, which holds "{names}" once, is true of the file or document `name`."""
        self._names.setdefault(sentence, []).append(name)

    def take(self, other: Notes) -> None:
        """Note all that another collector has noted."""
        for sentence, names in other._names.items():
            self._names.setdefault(sentence, []).extend(names)

    def sentences(self) -> list[str]:
        """One sentence a kind, with the first names and their number where there are more."""
        return [sentence.replace("{names}", listed(names)) for sentence, names in self._names.items()]


def listed(names: Sequence[str], first: int = FIRST_NAMES) -> str:
    """`["a", "b"]` -> `"a, b"`; of many the `first` few and how many there are."""
    more = len(names) - first
    if more <= 0:
        return ", ".join(names)
    return f"{', '.join(names[:first])} and {more:,} more ({len(names):,} in all)"


FIELDS = ("id", "title", "lang", "text", "group", "use")
"""The names of a document's fields."""
NAME_CHARS = 60  # of a column's name that are shown
SHOWN_NAMES = 10
CONTROLS = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")  # as Ctrl-Z, where a file of DOS ended


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


class RowReader(Protocol):
    """Reads one kind of file; raises UserError where the file cannot be read."""

    def __call__(self, file: File, /) -> Iterator[Row | Part]: ...


def find_column(column: str, there: Sequence[str]) -> str:
    """The one of the columns that is meant: of that very name, else the only one whose name differs from it
    in case, blanks and quotes at its ends alone, "" = none."""
    if column in there:
        return column
    alike = [name for name in there if plain_name(name) == plain_name(column)]
    return alike[0] if len(alike) == 1 else ""


def plain_name(name: str) -> str:
    """A column's name, without what does not tell it from others."""
    return " ".join(CONTROLS.sub("", name).strip(' \n"').split()).casefold()


def note_case(file: File, column: str, found: str) -> None:
    """Say that a column was taken whose name differs in more than blanks from the one looked for."""
    if " ".join(found.split()) != column:
        note = "Columns whose names differ from those looked for in case or quotes alone were taken: {names}."
        file.notes.add(note, f"{shown_name(found)} as {column} in {file.label}")


def no_column(name: str, column: str, seen: Sequence[str], where: str) -> UserError:
    """The error for a field whose column is not among those seen."""
    near = difflib.get_close_matches(column, [one for one in seen if len(one) <= NAME_CHARS], n=1)
    hint = f" Do you mean {near[0]!r}?" if near else ""
    return UserError(
        f"{where} has no field {column[:NAME_CHARS]!r} (it has: {shown_names(seen)}): "
        f"name the field that holds the {name} with --fields {name}=NAME.{hint}"
    )


def too_long(what: str, limit: int, split: str = "") -> UserError:
    """The error for a document of more than `limit` characters; `split` = into what it can be split."""
    into = f" into {split}" if split else ""
    return UserError(f"{what} has more than {limit:,} characters, too many for one document: split it{into}.")


def shown_names(names: Sequence[str]) -> str:
    """The first names of columns, none of them long."""
    shown = ", ".join(map(shown_name, names[:SHOWN_NAMES])) or "none"
    return shown + (f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else "")


def shown_name(name: str) -> str:
    """A column's name as it can be shown: cut, on one line, and in quotes where it holds a comma."""
    line = " ".join(CONTROLS.sub("", name).split())
    line = line if len(line) <= NAME_CHARS else f"{line[: NAME_CHARS - 3]}..."
    return f'"{line}"' if "," in line or not line else line
