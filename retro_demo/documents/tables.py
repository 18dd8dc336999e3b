"""Reads tables (.csv .tsv) as spreadsheets write them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from retro_demo.documents.cells import TAB, Dialect, Record, records
from retro_demo.documents.reading_notes import Notes
from retro_demo.documents.rows import (
    FIELDS,
    NAME_CHARS,
    File,
    Row,
    find_column,
    no_column,
    note_case,
    plain_name,
    shown_name,
    too_long,
)
from retro_demo.documents.text import TextReader
from retro_demo.errors import UserError

DELIMITERS = ",;\t|"
SAMPLE_LINES = 200  # that the delimiter is chosen by
SAMPLE_CHARS = 1 << 20
SEPARATOR = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)  # the first line, for spreadsheets
NUMBER = re.compile(r"[-+]?[\d., ]*\d%?$")


ODD = "Rows with quotes that do not follow the rules were read with these as letters: {names}."
DOUBTFUL = (
    "Cells over several lines that could be rows of their own were read as cells; if a quote stands there by "
    "mistake, double it: {names}."
)
SHORT = "Rows that end before their text were left out: {names}."


class Table:
    """The header of a table, and its records with their numbers."""

    def __init__(self, file: File, delimiter: str) -> None:
        """The `delimiter` that is usual for the kind of file, "" where it is to be found out."""
        self.line = 0
        self.odd = False
        """Of the row that was given last: the line that it ends in, and whether its quotes are odd."""
        limits = file.limits
        self._kind = ".tsv" if delimiter else ".csv"
        # A setting of the whole process, so it only ever grows; our own limit is checked below.
        csv.field_size_limit(max(csv.field_size_limit(), limits.document_chars))
        self.label = file.label
        self.text = TextReader(file)
        lines = self.text.lines(limits.document_chars)
        head, cut = _first_lines(lines)
        self._passed = next((at for at, line in enumerate(head) if line.strip()), len(head))
        head = head[self._passed :]
        if told := SEPARATOR.match(head[0]) if head else None:
            dialect = Dialect(told[1], blanks=False)
            self._passed, head = self._passed + 1, head[1:]
        else:
            dialect = _dialect(head, file, delimiter or DELIMITERS, cut=cut)
        self._records = records(chain(head, lines), dialect)
        self._odd, self._doubtful = Counted(), Counted()
        first = next(self._counted(), None)
        self.header = [cell.strip() for cell in first.cells] if first else []

    def rows(self) -> Iterator[tuple[int, str, list[str]]]:
        """The rows below the header: (number from 1, how to speak of it, cells); raises UserError.

        Empty cells beyond the header are cut off, and empty ones at the end of a row may be missing:
        spreadsheets write it so.
        """
        wide = len(self.header)
        for number, record in enumerate(self._counted(), start=1):
            cells = record.cells
            where = f"Row {number} of {self.label} (line {self.line})"
            yield number, where, cells if any(cells[wide:]) else cells[:wide]

    def note(self, notes: Notes) -> None:
        """Say what was mended; to be called at the end of the file."""
        self.text.note_bad_bytes()
        self._odd.note(notes, ODD, self.label)
        self._doubtful.note(notes, DOUBTFUL, self.label)

    def _counted(self) -> Iterator[Record]:
        try:
            for record in self._records:
                self.line = self._passed + record.line
                self.odd = record.odd
                if record.odd:
                    self._odd.add(self.line)
                if record.doubtful:
                    self._doubtful.add(self.line)
                yield record
        except csv.Error as error:
            raise UserError(
                f"{self.label} is not a valid {self._kind} file ({error}): check its double quotes."
            ) from error


class Counted:
    """How many rows there are of a sort, and where the first one ends."""

    def __init__(self) -> None:
        self._count = self._first = 0

    def add(self, line: int) -> None:
        self._first = self._first or line
        self._count += 1

    def note(self, notes: Notes, sentence: str, label: str) -> None:
        if self._count > 1:
            notes.add(sentence, f"{label} ({self._count:,}, the first in line {self._first:,})")
        elif self._count:
            notes.add(sentence, f"{label} (line {self._first:,})")


def _first_lines(lines: Iterator[str]) -> tuple[list[str], bool]:
    """Lines to choose the delimiter by, and all that stands above the first of them that is not blank; and
    whether there may be more lines."""
    head: list[str] = []
    filled = size = 0
    for line in lines:
        head.append(line)
        filled, size = filled + bool(line.strip()), size + len(line)
        if filled == SAMPLE_LINES or (filled and size > SAMPLE_CHARS):
            return head, True
    return head, False


def read_tsv(file: File) -> Iterator[Row]:
    """As `read_csv`, with tabs between the values."""
    return read_csv(file, TAB)


def read_csv(file: File, delimiter: str = "") -> Iterator[Row]:
    """One document a row, below a header; the `delimiter` is found out where it is not given."""
    table, limits = Table(file, delimiter), file.limits
    if not table.header:
        return
    places = _places(table.header, file)
    uneven: list[str] = []
    short = Counted()
    for number, where, cells in table.rows():
        if len(cells) > len(table.header):
            quotes = ", and quotes that are not closed or not doubled" if table.odd else ""
            uneven.append(
                f"{where} has {len(cells)} columns where the header has {len(table.header)}{quotes}: "
                "put values that hold commas or line ends in double quotes, and double the quotes within."
            )
        elif len(cells) <= places["text"]:
            short.add(table.line)
        elif len(cells[places["text"]]) > limits.document_chars:
            raise too_long(where, limits.document_chars)
        else:
            found = {name: cells[place] for name, place in places.items() if place < len(cells)}
            yield Row(**found, number=number)
    if uneven:
        more = f" So it is with {len(uneven) - 1:,} more rows." if len(uneven) > 1 else ""
        raise UserError(uneven[0] + more)
    table.note(file.notes)
    short.note(file.notes, SHORT, file.label)


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


def _dialect(head: Sequence[str], file: File, delimiters: str, *, cut: bool) -> Dialect:
    """How the first lines are parted: into the same number of cells in each row, the more the better.

    `cut` = there may be more lines than these.
    What stands in quotes is no delimiter; a file of one column has rows of one cell by any of them.
    """
    wanted = {plain_name(file.fields.get(name, name)) for name in FIELDS}

    def parted(dialect: Dialect) -> list[Record]:
        return list(records(head, dialect, cut=cut))

    def fit(dialect: Dialect) -> tuple[bool, float, int, int]:
        found = parted(dialect)
        if not found:
            return False, 0.0, 0, 0
        rows, odd = [record.cells for record in found], sum(record.odd for record in found)
        width = len(rows[0])
        even = sum(len(row) == width or not any(row[width:]) and len(row) > width for row in rows) / len(rows)
        named = any(plain_name(cell) in wanted for cell in rows[0])
        return named, even, width, -odd

    dialects = [Dialect(delimiter, blanks) for blanks in (False, True) for delimiter in delimiters]
    best = max(dialects, key=fit)
    # most programs that part by tabs have no quoting
    literal = best.delimiter == TAB and any(record.odd for record in parted(best))
    return best._replace(quotes=not literal)
