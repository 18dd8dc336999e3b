"""Tables of rows and columns (.csv .tsv .parquet) -> rows, as spreadsheets write them.

A cell may stand in double quotes and then hold delimiters, line ends and doubled quotes (RFC 4180). Where
the quotes of a line do not follow that, they are letters: the line is read alone, and marked. So a quote
that somebody wrote into a text swallows no rows.

DuckDB reads .parquet: the columns that are asked for, a few rows at a time.
"""

from __future__ import annotations

import csv
import re
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retro_demo.documents.json_files import Record, record_rows
from retro_demo.documents.rows import (
    FIELDS,
    NAME_CHARS,
    File,
    Notes,
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

if TYPE_CHECKING:
    from _csv import Reader

QUOTE = '"'
TAB = "\t"


class Dialect(NamedTuple):
    """How the cells of a row are parted: by a delimiter, and perhaps blanks after it."""

    delimiter: str
    blanks: bool
    quotes: bool = True
    """Cells may stand in quotes; False = all quotes are letters."""


class Cells(NamedTuple):
    """The cells of a row that is not blank.

    line: that it ends in, from 1. odd: it has quotes that are letters, where a cell in quotes may begin.
    doubtful: it has several lines, and each of them could be a row.
    """

    cells: list[str]
    line: int
    odd: bool = False
    doubtful: bool = False


def records(lines: Iterable[str], dialect: Dialect, *, cut: bool = False) -> Iterator[Cells]:
    """The records of lines that have their ends; of `cut` ones the last record may be missing its end.

    A line that cannot be a record of its own by its quotes ends in several records. Raises csv.Error for a
    cell over csv's limit.
    """
    rest = iter(lines)
    ahead: deque[str] = deque()  # lines to be read again
    opened: list[str] = []  # of the record that is being read
    passed = width = 0  # lines of whole records; cells of the first of these

    ended = False

    def fed() -> Iterator[str]:
        nonlocal ended
        while (line := ahead.popleft() if ahead else next(rest, None)) is not None:
            opened.append(line)
            yield line
        ended = True

    while True:
        try:
            for cells in _reader(fed(), dialect):
                doubtful = len(opened) > 1 and _are_rows(opened, dialect, len(cells))
                if doubtful and (dialect.delimiter == TAB or not width):
                    break  # a tab within a cell is rare, and so is a name of a column over several lines
                passed += len(opened)
                opened.clear()
                if len(cells) > 1 or any(map(str.strip, cells)):
                    width = width or len(cells)
                    odd = not dialect.quotes and any(cell.startswith(QUOTE) for cell in cells)
                    yield Cells(cells, passed, odd, doubtful)
            else:
                return
        except csv.Error as error:
            if "field limit" in str(error):
                raise
            if ended and cut:
                return
            ended = False
        first, *others = opened
        ahead.extendleft(reversed(others))
        opened.clear()
        passed += 1
        cells = _alone(first.removesuffix("\n"), dialect, width)
        width = width or len(cells)
        yield Cells(cells, passed, odd=True)


def _reader(lines: Iterator[str], dialect: Dialect) -> Reader:
    quoting = csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE
    return csv.reader(
        lines, delimiter=dialect.delimiter, skipinitialspace=dialect.blanks, quoting=quoting, strict=True
    )


def _are_rows(lines: Sequence[str], dialect: Dialect, width: int) -> bool:
    """Whether each of several lines has as many cells by its delimiters as they have together."""
    return width > 1 and all(line.count(dialect.delimiter) == width - 1 for line in lines)


def _alone(line: str, dialect: Dialect, width: int) -> list[str]:
    """The cells of one line whose quotes are odd; of two ways the one that gives rather `width` cells.

    Either a cell in quotes ends where a delimiter follows its quote, whatever quotes it holds, or there is
    none. Tables parted by tabs have seldom any.
    """
    bare = line.split(dialect.delimiter)
    if dialect.blanks:
        bare = [cell.lstrip(" ") for cell in bare]
    if dialect.delimiter == TAB:
        return bare
    return min((_loosely(line, dialect), bare), key=lambda cells: abs(len(cells) - width))


def _loosely(line: str, dialect: Dialect) -> list[str]:
    closing = re.compile(f"{QUOTE} *(?={re.escape(dialect.delimiter)}|$)")
    cells: list[str] = []
    at, closes = 0, True  # closes: there may be a closing quote ahead
    while True:
        while dialect.blanks and line.startswith(" ", at):
            at += 1
        found = closing.search(line, at + 1) if closes and line.startswith(QUOTE, at) else None
        closes = closes and (found is not None or not line.startswith(QUOTE, at))
        if found:
            cells.append(line[at + 1 : found.start()].replace(QUOTE * 2, QUOTE))
            at = found.end()
        else:
            end = line.find(dialect.delimiter, at)
            cells.append(line[at:] if end < 0 else line[at:end])
            at = len(line) if end < 0 else end
        if at >= len(line):
            return cells
        at += 1


DELIMITERS = ",;\t|"
PARTED_BY = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
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
        self.parted_by = PARTED_BY.get(dialect.delimiter, repr(dialect.delimiter))
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

    def _counted(self) -> Iterator[Cells]:
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
    if delimiter == TAB and len(table.header) == 1:
        _check_parted(table.header[0], file)
    places = _places(table.header, file)
    uneven: list[str] = []
    short = Counted()
    for number, where, cells in table.rows():
        if len(cells) > len(table.header):
            quotes = ", and quotes that are not closed or not doubled" if table.odd else ""
            uneven.append(
                f"{where} has {len(cells)} columns where the header has {len(table.header)}{quotes}: "
                f"put values that hold {table.parted_by} or line ends in double quotes, and double the "
                "quotes within."
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


def _check_parted(header: str, file: File) -> None:
    """Raise UserError where a .tsv has no tabs, but a header whose names another delimiter parts."""
    column = file.fields.get("text", "text")
    if find_column(column, [header]):
        return
    for delimiter, name in PARTED_BY.items():
        if delimiter in header and find_column(column, header.split(delimiter)):
            raise UserError(
                f"{file.label} is parted by {name}, where its suffix tells of tabs: name it .csv, or part it "
                "by tabs."
            )


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

    def parted(dialect: Dialect) -> list[Cells]:
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


MAGIC = b"PAR1"
LOCKED = b"PARE"
MEMORY = "1GB"  # of DuckDB, which refuses what would take more
ROWS = 16
NESTED = ("STRUCT", "MAP", "UNION", "VARIANT")
PLAIN = (str, int, float, bool, type(None))
SETTINGS = {
    "threads": 1,
    "memory_limit": MEMORY,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def read_parquet(file: File) -> Iterator[Row]:
    """One document a row. Raises UserError for columns of nested values that are asked for."""
    start = file.stream.peek()[:4]
    if not start:
        return
    if start != MAGIC:
        reason = "it is encrypted" if start == LOCKED else "it does not begin as one"
        raise _unreadable(file.label, reason)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        with path.open("wb") as copy:
            shutil.copyfileobj(file.stream, copy)
        yield from record_rows(_records(path, file), file)


def _records(path: Path, file: File) -> Iterator[Record]:
    import duckdb  # takes 0.1 s, and most have no use for it

    names = {file.fields.get(name, name): name for name in FIELDS}
    # Older writers do not mark which of their bytes are text.
    table = "read_parquet(?, binary_as_string=true)"
    try:
        with duckdb.connect(":memory:", config=SETTINGS) as database:
            about = database.execute(f"DESCRIBE SELECT * FROM {table}", [str(path)]).fetchall()
            kinds = {column: kind for column, kind, *_ in about}
            asked = {find_column(column, list(kinds)): name for column, name in names.items()}
            asked.pop("", None)
            for column, name in asked.items():
                _check_kind(kinds[column], column, name, file.label)
            named = ", ".join('"' + column.replace('"', '""') + '"' for column in asked)
            rows = database.execute(f"SELECT {named or 'NULL'} FROM {table}", [str(path)])
            number = 0
            while block := rows.fetchmany(ROWS):
                for values in block:
                    number += 1
                    file.unpacker.count(sum(len(value) for value in values if isinstance(value, str)))
                    found = zip(asked, values[: len(asked)], strict=True)
                    yield (
                        number,
                        f"Row {number:,} of {file.label}",
                        dict.fromkeys(kinds) | {column: _plain(value) for column, value in found},
                    )
    except duckdb.OutOfMemoryException as error:
        raise UserError(
            f"{file.label} takes more than {MEMORY} of memory to read: write it with smaller row groups, "
            "or as .jsonl."
        ) from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200].replace(str(path), file.label)
        raise _unreadable(file.label, reason) from error


def _unreadable(label: str, reason: str) -> UserError:
    return UserError(f"{label} is not a .parquet file that can be read ({reason}).")


def _check_kind(kind: str, column: str, name: str, label: str) -> None:
    if kind.endswith("]") or kind.startswith(NESTED):
        raise UserError(
            f"{label} has nested values ({kind[:40]}) in its column {column!r}, the {name}: "
            f"name a plain column with --fields {name}=NAME."
        )


def _plain(value: object) -> object:
    """Dates, decimals and their like as text; what else there is stays what it is."""
    return value if isinstance(value, PLAIN) else str(value)
