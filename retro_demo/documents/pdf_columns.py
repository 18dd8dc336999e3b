"""Two columns of prose that a PDF draws row by row, read one after the other.

Text in the order in which it is drawn then runs over the gap between the columns, half a sentence of one
after half a sentence of the other. Rows of a table are drawn in the same way and are right as they are: what
tells them from prose is that they are short. It knows nothing of PDFium.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top
Line = list[tuple[str, float]]  # characters and where they begin

LEAST_GAP = 8.0  # points between two columns
LEAST_ROWS = 8
MOST_FULL = 0.4  # of the rows, that run over both columns, as a heading does
LEAST_CHARS = 20  # of a row in a column, on the mean
LEAST_WORDS = 3.5


def gutter(boxes: Sequence[Box]) -> float | None:
    """Where the gap between two columns may be, by the pieces of text of a page in the order of drawing."""
    jumps = []
    for (_, low, end, high), (start, bottom, _, top) in zip(boxes, boxes[1:], strict=False):
        level = min(high, top) - max(low, bottom) > min(high - low, top - bottom) / 2
        if level and start - end > LEAST_GAP:
            jumps.append((end, start))
    if len(jumps) < LEAST_ROWS:
        return None
    # what begins a second column begins at one place; a gap within a line is anywhere
    begin = statistics.mode(round(start) for _, start in jumps)
    ends = [end for end, start in jumps if abs(start - begin) < LEAST_GAP]
    return begin - LEAST_GAP / 2 if len(ends) >= LEAST_ROWS else None


def by_columns(lines: Sequence[Line], middle: float) -> list[str] | None:
    """The lines of a page, those to the left of `middle` first; None where these are no columns of prose."""
    rows: list[tuple[str, str] | None] = []
    for line in lines:
        left = "".join(char for char, x in line if x < middle)
        right = "".join(char for char, x in line if x >= middle)
        last = max((x for char, x in line if x < middle and char.strip()), default=0.0)
        first = min((x for char, x in line if x >= middle and char.strip()), default=middle + LEAST_GAP)
        across = bool(left.strip() and right.strip()) and first - last < LEAST_GAP
        rows.append(None if across else (left.strip(), right.strip()))
    two = [row for row in rows if row and all(row)]
    full = rows.count(None)
    if len(two) < LEAST_ROWS or full > MOST_FULL * (full + len(two)):
        return None
    for side in zip(*two, strict=True):
        chars = statistics.mean(sum(char.isalpha() for char in cell) for cell in side)
        if chars < LEAST_CHARS or statistics.mean(len(cell.split()) for cell in side) < LEAST_WORDS:
            return None
    told: list[str] = []
    one: list[str] = []
    other: list[str] = []
    for line, row in zip(lines, rows, strict=True):
        if row:
            one.append(row[0])
            other.append(row[1])
        else:  # it ends the columns above it
            told += [*one, *other, "".join(char for char, _ in line).strip()]
            one, other = [], []
    return [line for line in [*told, *one, *other] if line]
