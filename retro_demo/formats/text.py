"""Reads text files (.txt .md), and decodes the bytes of all kinds that hold text; refuses what is no text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from retro_demo.errors import UserError
from retro_demo.formats.rows import File, Row

BLOCK_CHARS = 1 << 16
BAD_SHARE = 0.1  # of the characters of a block that do not decode, above which it is not text


def read_text(file: File) -> Iterator[Row]:
    """The whole file as one document."""
    text, limits = TextReader(file), file.limits
    blocks: list[str] = []
    num_chars = open_line = 0
    while block := text.read():
        num_chars += len(block)
        if num_chars > limits.document_chars:
            raise UserError(
                f"{text.label} has more than {limits.document_chars:,} characters, "
                "too many for one document: split it into several files."
            )
        lengths = [len(line) for line in block.split("\n")]
        lengths[0] += open_line
        open_line = lengths[-1]
        if max(lengths) > limits.line_chars:
            raise UserError(
                f"{text.label} has a line of more than {limits.line_chars:,} characters: "
                "break its text into lines, or give it as .jsonl."
            )
        blocks.append(block)
    text.note_bad_bytes()
    yield Row("".join(blocks))


class TextReader:
    """Decodes a stream (UTF-8, or UTF-16 and UTF-32 with a byte order mark), counting bad bytes.

    Line ends become \\n, bad bytes U+FFFD. Refuses what is not text.
    """

    def __init__(self, file: File, declared: str = "") -> None:
        """`declared` is the encoding that the file says it has, which a byte order mark overrules."""
        head = file.stream.peek()
        start = head[:4]
        if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
            self._encoding = "utf-32"
        elif start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self._encoding = "utf-16"
        elif declared in ("", "utf-8", "utf8") or start[:3] == b"\xef\xbb\xbf":
            self._encoding = "utf-8-sig"
        else:
            self._encoding = declared
        # Escaped bytes can be told from a U+FFFD that is really in the file.
        utf8 = self._encoding == "utf-8-sig"
        self._bad = re.compile("[\udc80-\udcff]" if utf8 else "\ufffd")
        errors = "surrogateescape" if utf8 else "replace"
        self._decoded = io.TextIOWrapper(file.stream, encoding=self._encoding, errors=errors)
        self.label = file.label
        self._notes = file.notes
        self._num_bad = 0
        if utf8:  # judged before a parser can stumble over its first line
            self._judge(head.decode("utf-8", errors="surrogateescape"))

    def read(self) -> str:
        """The next block of text, "" at the end."""
        return self._checked(self._decoded.read(BLOCK_CHARS))

    def lines(self, limit: int) -> Iterator[str]:
        """Lines with their ends, each of at most `limit` characters."""
        while line := self._checked(self._decoded.readline(limit + 1)):
            if len(line) > limit:
                raise UserError(
                    f"{self.label} has a line of more than {limit:,} characters: "
                    "split that document into several."
                )
            yield line

    def _checked(self, piece: str) -> str:
        if len(piece) == BLOCK_CHARS or "\0" in piece:
            self._judge(piece)
        piece, num_bad = self._bad.subn("\ufffd", piece)
        self._num_bad += num_bad
        return piece

    def _judge(self, sample: str) -> None:
        num_bad = len(self._bad.findall(sample))
        if "\0" in sample:
            reason = "it contains zero bytes"
        elif num_bad > max(BAD_SHARE * len(sample), 3):  # the head may end within a character
            reason = f"{num_bad:,} of {len(sample):,} characters are invalid"
        else:
            return
        raise UserError(
            f"{self.label} does not look like text ({reason}): "
            "check that it is a text file and save it in UTF-8."
        )

    def note_bad_bytes(self) -> None:
        """Say what did not decode; to be called at the end of the file."""
        if self._num_bad:
            encoding = self._encoding.removesuffix("-sig").upper()
            self._notes.add(
                f"Not clean {encoding}, invalid bytes were replaced by \N{REPLACEMENT CHARACTER}: {{names}}.",
                f"{self.label} ({self._num_bad:,})",
            )
