"""Text files (.txt .md and similar), decoding for all kinds that hold text, and the names of languages.

Bytes that are no text are refused. Names of languages in files are brought to one form.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator

from retro_demo.documents.encodings import ESCAPE, SAMPLE_BYTES, WIDE, guess, name_of
from retro_demo.documents.rows import File, Row, too_long
from retro_demo.errors import UserError

BLOCK_BYTES = 1 << 16
BAD_SHARE = 0.1  # of the characters of a block that do not decode, above which it is not text
FEW_BAD = 1e-3  # of the characters that do not decode: so few are replaced where the encoding cannot be told
ALWAYS_FEW = 2
# Characters of UTF-8 for each bad byte, from which on it is UTF-8 that was damaged: other encodings have
# up to 0.45 by chance (EUC-JP), most of them none.
MIXED_SHARE = 0.5
BAD_BYTES = re.compile("[\udc80-\udcff]")  # as "surrogateescape" leaves them: no text holds these
CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x19\x1c-\x1f]")  # which no text has
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
BYTE_ORDER_MARK = "\ufeff"
PADDING = "\0\x1a \t\n"  # what may follow a text: zeros up to the end of a block, Ctrl-Z as its end in DOS
MOST_PADDING = 1 << 20
OTHER_LINE_ENDS = ("\r\n", "\r", "\x85", "\u2028", "\u2029")


def read_text(file: File) -> Iterator[Row]:
    """The whole file as one document."""
    text, limits = TextReader(file), file.limits
    blocks: list[str] = []
    num_chars = open_line = 0
    while block := with_newlines(text.read()):
        num_chars += len(block)
        if num_chars > limits.document_chars:
            raise too_long(text.label, limits.document_chars, "several files")
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


def with_newlines(text: str) -> str:
    """`text` with \\n wherever a line ends."""
    for end in OTHER_LINE_ENDS:
        text = text.replace(end, "\n")
    return text


class TextReader:
    """Decodes a stream: UTF-8, what a byte order mark says, or what documents/encodings.py tells of the other
    bytes.

    Line ends become \\n; byte order marks go, wherever files were joined, and so do zeros and Ctrl-Z at the
    end. Bytes that are none of the encoding become U+FFFD and are counted. Refuses what is not text.
    """

    def __init__(self, file: File, declared: str = "") -> None:
        """`declared` is the encoding that the file says it has, which a byte order mark overrules."""
        self.label = file.label
        self._declared = declared if declared not in ("utf-8", "utf8") else ""
        self._stream = file.stream
        self._notes = file.notes
        self._encoding = ""
        self._num_bad = 0
        self._blocks = self._without_padding()

    def read(self) -> str:
        """The next block of text, "" at the end."""
        return next(self._blocks, "")

    def lines(self, limit: int) -> Iterator[str]:
        """Lines with their ends, each of at most `limit` characters."""
        begun: list[str] = []
        length = 0
        for block in self._blocks:
            *whole, last = block.split("\n")
            for line in whole:
                yield "".join([*begun, self._within(line, length + 1, limit), "\n"])
                begun, length = [], 0
            length += len(last)
            begun.append(self._within(last, length - len(last), limit))
        if length:
            yield "".join(begun)

    def note_bad_bytes(self) -> None:
        """Say what did not decode; to be called at the end of the file."""
        encoding = self._encoding or "utf-8"
        if self._num_bad:
            self._notes.add(
                f"Not clean {name_of(encoding)}, invalid bytes were replaced by "
                "\N{REPLACEMENT CHARACTER}: {names}.",
                f"{self.label} ({self._num_bad:,})",
            )

    def _within(self, line: str, before: int, limit: int) -> str:
        if before + len(line) > limit:
            raise UserError(
                f"{self.label} has a line of more than {limit:,} characters: "
                "split that document into several."
            )
        return line

    def _without_padding(self) -> Iterator[str]:
        """The blocks of the text, none of them empty, without what only fills up its end."""
        held = ""
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        for block in self._decoded():
            text = held + newlines.decode(block).replace(BYTE_ORDER_MARK, "")
            end = len(text.rstrip(PADDING))
            marks = [at for at in (text.find("\0", end), text.find("\x1a", end)) if at >= 0]
            text, held = (text[: min(marks)], text[min(marks) :]) if marks else (text, "")
            if "\0" in text:
                raise self._no_text("it contains zero bytes")
            if "\0" in held:
                held = "\0"  # nothing but padding may follow
            elif len(held) > MOST_PADDING:
                text, held = text + held, ""
            if text:
                yield text
        if rest := newlines.decode("", final=True):
            yield rest

    def _decoded(self) -> Iterator[str]:
        """The blocks of the text as they are decoded, bad bytes replaced."""
        data = self._stream.read(BLOCK_BYTES)
        mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
        if mark:
            data = data[len(mark) :]
            if (encoding := MARKS[mark]) != "utf-8":
                yield from self._rest(data, encoding)
                return
        elif self._declared:
            yield from self._rest(data, self._declared)
            return
        elif b"\0" in data:
            sample = data + self._stream.read(SAMPLE_BYTES - len(data))
            if (found := guess(sample).encoding) in WIDE:
                self._note_encoding(found)
                yield from self._rest(sample, found)
                return
            data = sample
        pending, plain = b"", True
        while data:
            data = pending + data
            try:
                text, used = codecs.utf_8_decode(data, "strict", False)
            except UnicodeDecodeError:
                text, used = "", -1
            if used < 0 or (plain and ESCAPE in data):
                yield from self._other(data, plain)
                return
            pending, plain = data[used:], plain and text.isascii()
            yield text
            data = self._stream.read(BLOCK_BYTES)
        if pending:
            yield from self._rest(pending, "utf-8")

    def _other(self, data: bytes, plain: bool) -> Iterator[str]:
        """What begins with bytes that are no clean UTF-8; `plain` says that all before was ASCII."""
        sample = data + self._stream.read(max(SAMPLE_BYTES - len(data), 0))
        more = len(sample) >= SAMPLE_BYTES
        text = sample.decode("utf-8", "surrogateescape")
        num_bad = len(BAD_BYTES.findall(text))
        num_other = sum(map(len, re.findall(r"[^\x00-\x7f]+", text))) - num_bad
        if (plain and num_other < MIXED_SHARE * num_bad) or ESCAPE in sample:
            cut = max(sample.rfind(b"\n"), sample.rfind(b" ")) + 1 if more else 0
            judged = sample[: cut or len(sample)].rstrip(PADDING.encode())
            if b"\0" in judged:
                raise self._no_text("it contains zero bytes")
            found = guess(judged)
            if found.encoding:
                self._note_encoding(found.encoding)
                yield from self._rest(sample, found.encoding)
                return
            if num_bad > max(FEW_BAD * len(text), ALWAYS_FEW):
                wrong = f"{num_bad:,} of {len(text):,} characters are no UTF-8"
                if CONTROLS.search(judged):
                    raise self._no_text(f"it contains control characters, and {wrong}")
                could_be = f", perhaps {' or '.join(found.could_be)}" if found.could_be else ""
                raise UserError(
                    f"The encoding of {self.label} cannot be told ({wrong}{could_be}): save it in UTF-8."
                )
        yield from self._rest(sample, "utf-8")

    def _rest(self, data: bytes, encoding: str) -> Iterator[str]:
        """`data` and what follows it, in one encoding."""
        self._encoding = encoding
        utf8 = encoding == "utf-8"
        # Escaped bytes can be told from a U+FFFD that is really in the file.
        decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if utf8 else "replace")
        bad = BAD_BYTES if utf8 else re.compile("\ufffd")
        while data:
            text, num_bad = bad.subn("\ufffd", decoder.decode(data))
            self._judge(num_bad, len(text))
            yield text
            data = self._stream.read(BLOCK_BYTES)
        text, num_bad = bad.subn("\ufffd", decoder.decode(b"", final=True))
        self._num_bad += num_bad
        yield text

    def _judge(self, num_bad: int, num_chars: int) -> None:
        self._num_bad += num_bad
        if num_bad > max(BAD_SHARE * num_chars, ALWAYS_FEW):
            raise self._no_text(f"{num_bad:,} of {num_chars:,} characters are invalid")

    def _note_encoding(self, encoding: str) -> None:
        self._notes.add(f"Not UTF-8, so read as {name_of(encoding)}: {{names}}.", self.label)

    def _no_text(self, reason: str) -> UserError:
        return UserError(
            f"{self.label} does not look like text ({reason}): "
            "check that it is a text file and save it in UTF-8."
        )


LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_].*)?", re.IGNORECASE)


def as_language(tag: str) -> str:
    """`"en-US"` -> `"en"`, `"zh-hant-TW"` -> `"zh-Hant"` (BCP 47 without region); "" for what is none.

    A region makes no other language: passages of en-US and en-GB are not of two languages.
    """
    found = LANGUAGE.fullmatch(tag.strip())
    if not found:
        return ""
    return found[1].lower() + (f"-{found[2].title()}" if found[2] else "")
