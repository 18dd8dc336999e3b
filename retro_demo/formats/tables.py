"""Reads tables (.csv .tsv) as spreadsheets write them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from retro_demo.errors import UserError
from retro_demo.formats.rows import (
    FIELDS,
    NAME_CHARS,
    File,
    Row,
    find_column,
    no_column,
    note_case,
    shown_name,
)
from retro_demo.formats.text import TextReader

if TYPE_CHECKING:
    from _csv import Reader  # what csv.reader gives; csv names it from Python 3.13 on only

DELIMITERS = ",;\t|"
SAMPLE_LINES = 200  # that the delimiter is chosen by
SAMPLE_CHARS = 1 << 20
SEPARATOR = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)  # the first line, for spreadsheets
NUMBER = re.compile(r"[-+]?[\d., ]*\d%?$")


class Dialect(NamedTuple):
    """How the cells of a row are parted: by a delimiter, and perhaps blanks after it."""

    delimiter: str
    blanks: bool


class Table:
    """The header of a table, and its records with their numbers."""

    def __init__(self, file: File, delimiter: str) -> None:
        """The `delimiter` that is usual for the kind of file, "" where it is to be found out."""
        limits = file.limits
        self._kind = ".tsv" if delimiter else ".csv"
        # A setting of the whole process, so it only ever grows; our own limit is checked below.
        csv.field_size_limit(max(csv.field_size_limit(), limits.document_chars))
        self.label = file.label
        self.text = TextReader(file)
        lines = self.text.lines(limits.document_chars)
        head = _first_lines(lines)
        self._passed = next((at for at, line in enumerate(head) if line.strip()), len(head))
        head = head[self._passed :]
        if told := SEPARATOR.match(head[0]) if head else None:
            dialect = Dialect(told[1], blanks=False)
            self._passed, head = self._passed + 1, head[1:]
        else:
            dialect = _dialect(head, file, delimiter or DELIMITERS)
        self._records = _reader(chain(head, lines), dialect)
        self.header = [name.strip() for name in next(self._filled(), [])]

    def records(self) -> Iterator[tuple[int, str, list[str]]]:
        """The rows below the header: (number from 1, how to speak of it, cells); raises UserError.

        Empty cells beyond the header are cut off: spreadsheets write them.
        """
        wide = len(self.header)
        for number, record in enumerate(self._filled(), start=1):
            where = f"Row {number} of {self.label} (line {self._line})"
            yield number, where, record if any(record[wide:]) else record[:wide]

    @property
    def _line(self) -> int:
        return self._passed + self._records.line_num

    def _filled(self) -> Iterator[list[str]]:
        """The records but blank lines."""
        try:
            yield from filter(_is_filled, self._records)
        except csv.Error as error:
            raise UserError(
                f"{self.label} is not a valid {self._kind} file (line {self._line}: {error}): "
                "check its double quotes."
            ) from error


def _first_lines(lines: Iterator[str]) -> list[str]:
    """Lines to choose the delimiter by, and all that stands above the first of them that is not blank."""
    head: list[str] = []
    filled = size = 0
    for line in lines:
        head.append(line)
        filled, size = filled + bool(line.strip()), size + len(line)
        if filled == SAMPLE_LINES or (filled and size > SAMPLE_CHARS):
            break
    return head


def _reader(lines: Iterable[str], dialect: Dialect) -> Reader:
    return csv.reader(lines, delimiter=dialect.delimiter, skipinitialspace=dialect.blanks, strict=True)


def _is_filled(record: Sequence[str]) -> bool:
    return len(record) > 1 or any(map(str.strip, record))


def read_tsv(file: File) -> Iterator[Row]:
    """As `read_csv`, with tabs between the values."""
    return read_csv(file, "\t")


def read_csv(file: File, delimiter: str = "") -> Iterator[Row]:
    """One document a row, below a header; the `delimiter` is found out where it is not given."""
    table, limits = Table(file, delimiter), file.limits
    if not table.header:
        return
    places = _places(table.header, file)
    uneven: list[str] = []
    for number, where, record in table.records():
        if len(record) != len(table.header):
            uneven.append(
                f"{where} has {len(record)} columns where the header has {len(table.header)}: "
                "put values that hold commas or line ends in double quotes."
            )
            continue
        if len(record[places["text"]]) > limits.document_chars:
            raise UserError(
                f"{where} has more than {limits.document_chars:,} characters of text, "
                "too many for one document: split it."
            )
        yield Row(**{name: record[place] for name, place in places.items()}, number=number)
    if uneven:
        more = f" So it is with {len(uneven) - 1:,} more rows." if len(uneven) > 1 else ""
        raise UserError(uneven[0] + more)
    table.text.note_bad_bytes()


def _places(header: Sequence[str], file: File) -> dict[str, int]:
    """Where the columns of our fields stand; UserError where one that is wanted is not there, or is twice."""
    places = {}
    for name in FIELDS:
        column = file.fields.get(name, name)
        found = find_column(column, header)
        if not found and (name == "text" or name in file.fields):
            error = no_column(name, column, header, file.label)
            raise UserError(f"{error} {_NO_HEADER}") if _is_data(header) else error
        if found:
            if (count := list(header).count(found)) > 1:
                raise UserError(
                    f"{file.label} has {count} columns named {shown_name(found)}: "
                    "give all but one of them another name."
                )
            note_case(file, column, found)
            places[name] = list(header).index(found)
    return places


_NO_HEADER = (
    "Its first row looks like data: if it has no header, put one above it, a row of names such as id,text."
)


def _is_data(header: Sequence[str]) -> bool:
    """Whether a first row is no header, but holds numbers, long texts or the same twice."""
    named = [name for name in header if name]
    return (
        any(NUMBER.match(name) or len(name) > NAME_CHARS or len(name.split()) > 3 for name in named)
        or max(Counter(named).values(), default=0) > 1
    )


def _dialect(head: Sequence[str], file: File, delimiters: str) -> Dialect:
    """How the first lines are parted: into the same number of cells in each row, the more the better.

    What stands in quotes is no delimiter; a file of one column has rows of one cell by any of them.
    """
    wanted = {file.fields.get(name, name).strip().casefold() for name in FIELDS}

    def fit(dialect: Dialect) -> tuple[bool, float, int]:
        rows = _parsed(head, dialect)
        if not rows:
            return False, 0.0, 0
        width = len(rows[0])
        even = sum(len(row) == width or not any(row[width:]) and len(row) > width for row in rows) / len(rows)
        named = any(name.strip().casefold() in wanted for name in rows[0])
        return named, even, width

    dialects = [Dialect(delimiter, blanks) for blanks in (False, True) for delimiter in delimiters]
    return max(dialects, key=fit)


def _parsed(head: Sequence[str], dialect: Dialect) -> list[list[str]]:
    """The records of the first lines; none where they cannot be parted so."""
    reader = _reader(head, dialect)
    rows: list[list[str]] = []
    try:
        for row in filter(_is_filled, reader):
            rows.append(row)
    except csv.Error:
        # the last line may end within quotes, because the sample does
        return rows if reader.line_num >= len(head) else []
    return rows
