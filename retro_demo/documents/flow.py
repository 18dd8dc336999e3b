"""Running text put together piece by piece, as the readers of marked-up kinds meet it.

It knows where lines, paragraphs and cells of tables end, and nothing of any file format.
"""

from __future__ import annotations

import re
from io import StringIO

from retro_demo.documents.rows import too_long

BLANKS = re.compile("[ \t\n\r\f\xa0]+")  # what a browser shows as one blank; the wide blanks of CJK are text
BORDER = "| "  # before a cell that is not the first of its row
TITLE_CHARS = 200


class Flow:
    """The text of one document. Breaks come into it only between two pieces of text."""

    def __init__(self, label: str, limit: int) -> None:
        """`label` names the file in errors; more than `limit` characters are refused."""
        self._label = label
        self._limit = limit
        self._written = StringIO()  # millions of short pieces would fill the memory
        self._num_chars = 0
        self._break = 0  # line ends before the next piece
        self._blank = False
        self._cells = 0  # that began in this row
        self._borders = 0  # between the last piece and the next
        self._in_row = False  # there is text in this row

    def text(self, data: str) -> None:
        """Add text in which any run of blanks and line ends is one blank."""
        data = BLANKS.sub(" ", data)
        bare = data.strip(" ")
        self._blank |= data.startswith(" ")
        if bare:
            self._put(bare)
            self._blank = data.endswith(" ")

    def verbatim(self, data: str) -> None:
        """Add text whose blanks and line ends count."""
        bare = data.strip("\n")
        if not bare:
            self.lines(len(data))
            return
        self.lines(len(data) - len(data.lstrip("\n")))
        self._put(bare)
        self.lines(len(data) - len(data.rstrip("\n")))

    def lines(self, count: int) -> None:
        """What follows stands at least `count` lines below; 2 begins a paragraph."""
        if not self._borders:  # no cell begins with line ends
            self._break = max(self._break, count)

    def line_end(self) -> None:
        """One line end more, as <br> is; two of them begin a paragraph."""
        if not self._borders:
            self._break = min(self._break + 1, 2)

    def row(self) -> None:
        """A row of a table begins or ends."""
        self._break = max(self._break, 1)
        self._cells = self._borders = 0
        self._in_row = False

    def cell(self) -> None:
        """A cell of a row begins."""
        self._cells += 1
        if self._cells > 1:
            self._borders += 1
            if self._in_row:
                self._break = 0

    def mark(self) -> int:
        """A place in the text, for `since`."""
        return self._num_chars

    def since(self, mark: int) -> str:
        """The text from a place on as a title: on one line, and not a whole page."""
        return as_title(self.whole()[mark:])

    def whole(self) -> str:
        return self._written.getvalue()

    def _put(self, piece: str) -> None:
        between = ""
        if self._num_chars and self._break:
            between = "\n" * self._break
        elif self._num_chars and (self._blank or self._borders):
            between = " "
        between += BORDER * self._borders
        self._num_chars += len(between) + len(piece)
        if self._num_chars > self._limit:
            raise too_long(self._label, self._limit, "several files")
        self._written.write(between)
        self._written.write(piece)
        self._break, self._blank, self._borders, self._in_row = 0, False, 0, self._cells > 0


def as_title(text: str) -> str:
    """Text on one line, cut where it is too long for a title."""
    text = BLANKS.sub(" ", text[: 8 * TITLE_CHARS]).strip()
    return text if len(text) <= TITLE_CHARS else f"{text[: TITLE_CHARS - 3].rstrip()}..."
