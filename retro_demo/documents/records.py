"""Reads files of JSON records (.jsonl), and turns records of other kinds of file into rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import isfinite

from retro_demo.documents.reading_notes import listed
from retro_demo.documents.rows import (
    FIELDS,
    File,
    Row,
    find_column,
    no_column,
    note_case,
    shown_name,
    too_long,
)
from retro_demo.documents.text import TextReader
from retro_demo.errors import UserError

LARGEST_EXACT = 2**53  # from there on a float may stand for several whole numbers


class Keys(dict[str, object]):
    """A JSON object, and all values of the keys that it has more than once."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs) if len(self) < len(pairs) else Counter[str]()
        doubled = [key for key, count in counts.items() if count > 1]
        self.doubled = {key: [value for name, value in pairs if name == key] for key in doubled}


DECODER = json.JSONDecoder(object_pairs_hook=Keys)

Record = tuple[int, str, Mapping[str, object] | UserError]
"""Its number, how to speak of it, and its values by column, or why it has none."""


def read_jsonl(file: File) -> Iterator[Row]:
    """One document a line, each a JSON object."""
    text = TextReader(file)
    yield from record_rows(_lines(text, file.limits.document_chars), file)
    text.note_bad_bytes()


def _lines(text: TextReader, limit: int) -> Iterator[Record]:
    first = True
    for number, line in enumerate(text.lines(limit), start=1):
        if line.strip():
            where = f"Line {number} of {text.label}"
            try:
                yield number, where, _parse_object(line, where, first=first)
            except UserError as error:
                yield number, where, error
            first = False


def record_rows(records: Iterable[Record], file: File) -> Iterator[Row]:
    """The rows of records of any kind of file, each checked.

    Raises one UserError at the end where some cannot be read, with the numbers of all of them.
    """
    seen: dict[str, None] = {}
    first_error: UserError | None = None
    bad: list[str] = []  # numbers of further records
    alike: dict[str, str] = {}  # name that was looked for -> key that was taken instead

    @lru_cache(maxsize=1_000)
    def columns(keys: tuple[str, ...]) -> dict[str, str]:
        """Which key holds each of our fields in records of such keys."""
        found: dict[str, str] = {}
        for name in FIELDS:
            column = file.fields.get(name, name)
            if key := find_column(column, keys):
                found[name] = key
                if key != column:
                    alike[column] = key
        return found

    for number, where, record in records:
        try:
            if isinstance(record, UserError):
                raise record
            row = _row(record, columns(tuple(record)), file, where)
        except UserError as error:
            if first_error:
                bad.append(str(number))
            first_error = first_error or error
            continue
        seen.update(dict.fromkeys(record))
        yield Row(**row, number=number)
    if first_error:
        more = f" These cannot be read either: {listed(bad)}." if bad else ""
        raise UserError(f"{first_error}{more}")
    for name, column in file.fields.items():
        if seen and not find_column(column, list(seen)):
            raise no_column(name, column, sorted(seen), file.label)
    for column, key in alike.items():
        note_case(file, column, key)


def _row(record: Mapping[str, object], columns: Mapping[str, str], file: File, where: str) -> dict[str, str]:
    limit = file.limits.document_chars
    if "text" not in columns:
        raise no_column("text", file.fields.get("text", "text"), list(record), where)
    if isinstance(record, Keys) and (doubled := set(record.doubled) & set(columns.values())):
        raise key_twice(min(doubled), where)
    row = {name: _as_text(record[key], name, where) for name, key in columns.items()}
    if len(row["text"]) > limit:
        raise too_long(where, limit)
    return row


def key_twice(key: str, where: str) -> UserError:
    return UserError(f"{where} has the key {shown_name(key)} more than once: leave one of them.")


def too_odd(error: ValueError | RecursionError, where: str) -> UserError:
    """The error for what is JSON, but more than Python takes."""
    reason = "a number is too long" if isinstance(error, ValueError) else "nested too deeply"
    return UserError(f"{where} cannot be read as JSON ({reason}): correct it.")


def _parse_object(line: str, where: str, *, first: bool) -> Keys:
    """The object of a line; `first` = none was read yet, so the file may be of another kind."""
    try:
        value = DECODER.decode(line)
    except json.JSONDecodeError as error:
        if first and error.pos >= len(line.rstrip()) and line.lstrip()[:1] in ("{", "["):
            raise UserError(
                f"{where} ends within a JSON value, as where one is written over several lines: a .jsonl "
                "file holds one JSON object a line. If the file is an array of records, name it .json."
            ) from error
        raise UserError(
            f"{where} is not valid JSON ({error.msg}, character {error.colno}): "
            "a .jsonl file holds one JSON object a line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise too_odd(error, where) from error
    if isinstance(value, Keys):
        return value
    advice = 'write lines such as {"id": "1", "text": "..."}'
    if first and isinstance(value, list):
        advice = f"name the file .json, or {advice}"
    raise UserError(f"{where} holds {kind_of_value(value)}, not an object: {advice}.")


def _as_text(value: object, name: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name == "text":
        raise UserError(f"{where} has {kind_of_value(value)} as its text: it must be a string.")
    if isinstance(value, int) and not isinstance(value, bool):  # ids are often numbers
        return str(value)
    if isinstance(value, float) and isfinite(value):
        # 1.0 is what other programs make of 1 in a column with gaps
        whole = value.is_integer() and abs(value) < LARGEST_EXACT
        return str(int(value)) if whole else str(value)
    raise UserError(f"{where} has {kind_of_value(value)} as its {name}: it must be a string or a number.")


def kind_of_value(value: object) -> str:
    """What a JSON value is, with an article."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    if isinstance(value, float) and not isfinite(value):
        return json.dumps(value)
    names = {str: "a string", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "an object")
