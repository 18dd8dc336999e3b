"""Parts the lines of a table into records of cells, whatever its quotes are.

A cell may stand in double quotes and then hold delimiters, line ends and doubled quotes (RFC 4180). Where
the quotes of a line do not follow that, they are letters: the line is read alone, and marked. So a quote
that somebody wrote into a text swallows no rows.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _csv import Reader  # what csv.reader gives; csv names it from Python 3.13 on only

QUOTE = '"'
TAB = "\t"


class Dialect(NamedTuple):
    """How the cells of a row are parted: by a delimiter, and perhaps blanks after it."""

    delimiter: str
    blanks: bool
    quotes: bool = True
    """Cells may stand in quotes; False = all quotes are letters."""


class Record(NamedTuple):
    """The cells of a row that is not blank.

    line: that it ends in, from 1. odd: it has quotes that are letters, where a cell in quotes may begin.
    doubtful: it has several lines, and each of them could be a row.
    """

    cells: list[str]
    line: int
    odd: bool = False
    doubtful: bool = False


def records(lines: Iterable[str], dialect: Dialect, *, cut: bool = False) -> Iterator[Record]:
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
                    yield Record(cells, passed, odd, doubtful)
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
        yield Record(cells, passed, odd=True)


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
