"""Reads files of JSON records (.jsonl), and turns records of other kinds of file into rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from retro_demo.errors import UserError
from retro_demo.formats.rows import FIELDS, File, Row, no_column
from retro_demo.formats.text import TextReader

Record = tuple[int, str, Mapping[str, object]]
"""Its number, how to speak of it, and its values by column."""


def read_jsonl(file: File) -> Iterator[Row]:
    """One document a line, each a JSON object."""
    text = TextReader(file)
    yield from record_rows(_lines(text, file.limits.document_chars), file)
    text.note_bad_bytes()


def _lines(text: TextReader, limit: int) -> Iterator[Record]:
    for number, line in enumerate(text.lines(limit), start=1):
        if line.strip():
            where = f"Line {number} of {text.label}"
            yield number, where, _parse_object(line, where)


def record_rows(records: Iterable[Record], file: File) -> Iterator[Row]:
    """The rows of records of any kind of file, each checked. Raises UserError."""
    fields, limit = file.fields, file.limits.document_chars
    columns = {name: fields.get(name, name) for name in FIELDS}
    seen: set[str] = set()
    for number, where, record in records:
        if columns["text"] not in record:
            raise no_column("text", columns["text"], list(record), where)
        seen.update(record)
        row = {name: _as_text(record.get(columns[name]), name, where) for name in FIELDS}
        if len(row["text"]) > limit:
            raise UserError(
                f"{where} has more than {limit:,} characters, too many for one document: split it."
            )
        yield Row(**row, number=number)
    for name, column in fields.items():
        if seen and column not in seen:
            raise no_column(name, column, sorted(seen), file.label)


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
