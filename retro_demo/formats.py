"""Turns the bytes of one file into rows: what .txt .md .jsonl .csv and .pdf hold.

It knows the file formats and the names of a document's fields, but makes no documents: ids,
titles and groups that are missing stay empty.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pypdf import PdfReader
from pypdf.errors import DependencyError, PyPdfError

from retro_demo.archives import Entry, ReadingLimits
from retro_demo.errors import UserError
from retro_demo.text_files import TextReader

KINDS = (".txt", ".md", ".jsonl", ".csv", ".pdf")
FIELDS = ("id", "title", "lang", "text", "group", "use")
# What pypdf raises on damaged files goes well beyond its own errors.
BROKEN_PDF = (
    PyPdfError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,  # RecursionError, NotImplementedError
    TypeError,
    ValueError,
    zlib.error,
)


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
    """Line in a .jsonl, data row in a .csv, from 1; 0 where the whole file is the document."""


def read_rows(
    entry: Entry, *, fields: Mapping[str, str], limits: ReadingLimits, warnings: list[str]
) -> Iterator[Row]:
    """The rows of one file of a kind in KINDS; appends to `warnings` what was mended.

    `fields` maps names in FIELDS to columns of .jsonl and .csv files. Raises UserError.
    """
    with entry.open() as stream:
        if entry.kind == ".pdf":
            yield _read_pdf(stream, entry.label, limits)
            return
        text = TextReader(stream, entry.label)
        if entry.kind == ".jsonl":
            yield from _read_jsonl(text, fields, limits)
        elif entry.kind == ".csv":
            yield from _read_csv(text, fields, limits)
        else:
            yield _read_text(text, limits)
        warnings += text.warnings()


def _read_text(text: TextReader, limits: ReadingLimits) -> Row:
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
    return Row("".join(blocks))


def _read_jsonl(text: TextReader, fields: Mapping[str, str], limits: ReadingLimits) -> Iterator[Row]:
    columns = {name: fields.get(name, name) for name in FIELDS}
    seen: set[str] = set()
    for number, line in enumerate(text.lines(limits.document_chars), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {text.label}"
        record = _parse_object(line, where)
        if columns["text"] not in record:
            raise _no_column("text", columns["text"], list(record), where)
        seen.update(record)
        row = {name: _as_text(record.get(columns[name]), name, where) for name in FIELDS}
        yield Row(**row, number=number)
    for name, column in fields.items():
        if seen and column not in seen:
            raise _no_column(name, column, sorted(seen), text.label)


def _parse_object(line: str, where: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not valid JSON ({error.msg}, character {error.colno}): "
            "a .jsonl file holds one JSON object a line."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = "a number is too long" if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{where} cannot be read as JSON ({reason}): correct it.") from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where} holds a JSON {type(record).__name__}, not an object: "
            'write lines such as {"id": "1", "text": "..."}.'
        )
    return record


def _as_text(value: object, name: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name != "text" and isinstance(value, int | float):  # ids are often numbers
        return str(value)
    raise UserError(f"{where} has a {type(value).__name__} as its {name}: it must be a string.")


def _read_csv(text: TextReader, fields: Mapping[str, str], limits: ReadingLimits) -> Iterator[Row]:
    # A setting of the whole process, so it only ever grows; our own limit is checked below.
    csv.field_size_limit(max(csv.field_size_limit(), limits.document_chars))
    lines = text.lines(limits.document_chars)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    else:
        return
    delimiter = max(",;\t|", key=head[-1].count)
    records = csv.reader(itertools.chain(head, lines), delimiter=delimiter, strict=True)
    try:
        named = ([name.strip() for name in record] for record in records)
        header = next((names for names in named if any(names)), [])
        columns = {name: fields.get(name, name) for name in FIELDS}
        for name in {"text": "", **fields}:
            if columns[name] not in header:
                raise _no_column(name, columns[name], header, text.label)
        places = {name: header.index(col) for name, col in columns.items() if col in header}
        number = 0
        for record in records:
            if not record:
                continue
            number += 1
            where = f"Row {number} of {text.label} (line {records.line_num})"
            if len(record) != len(header):
                raise UserError(
                    f"{where} has {len(record)} columns where the header has {len(header)}: "
                    "put values that hold commas or line ends in double quotes."
                )
            if len(record[places["text"]]) > limits.document_chars:
                raise UserError(
                    f"{where} has more than {limits.document_chars:,} characters of text, "
                    "too many for one document: split it."
                )
            yield Row(**{name: record[place] for name, place in places.items()}, number=number)
    except csv.Error as error:
        raise UserError(
            f"{text.label} is not a valid .csv file (line {records.line_num}: {error}): "
            "check its double quotes."
        ) from error


def _no_column(name: str, column: str, seen: list[str], where: str) -> UserError:
    shown = ", ".join(seen[:20]) or "none"
    return UserError(
        f"{where} has no field {column!r} (it has: {shown}): "
        f"name the field that holds the {name} with --fields {name}=NAME."
    )


def _read_pdf(stream: io.BufferedReader, label: str, limits: ReadingLimits) -> Row:
    data = stream.read(limits.pdf_bytes + 1)
    if len(data) > limits.pdf_bytes:
        raise UserError(f"{label} has more than {limits.pdf_bytes:,} bytes: split the PDF.")
    if not data:
        return Row("")
    # It remarks on every oddity of a file; what matters to the user is said here.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    pages: list[str] = []
    num_chars = 0
    try:
        reader = PdfReader(io.BytesIO(data))
        # Many encrypted files open with the empty password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError(f"{label} is encrypted: save the PDF without a password.")
        if len(reader.pages) > limits.pdf_pages:
            raise UserError(
                f"{label} has {len(reader.pages):,} pages, more than {limits.pdf_pages:,}: split the PDF."
            )
        for page in reader.pages:
            pages.append(page.extract_text())
            num_chars += len(pages[-1])
            if num_chars > limits.document_chars:
                raise UserError(
                    f"{label} has more than {limits.document_chars:,} characters of text: split the PDF."
                )
    except DependencyError as error:
        raise UserError(f"{label} is encrypted: save the PDF without a password.") from error
    except BROKEN_PDF as error:
        raise UserError(f"{label} is not a PDF that can be read ({error}).") from error
    return Row("\n\n".join(pages))
