"""Reads .json files that hold records: an array of objects, objects one after another, or one object
that has the array under a name of its own, as in {"data": [...]}.

Records are parsed one by one, so no file is in memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from retro_demo.documents.records import (
    DECODER,
    Keys,
    Record,
    key_twice,
    kind_of_value,
    record_rows,
    too_odd,
)
from retro_demo.documents.rows import File, Row, find_column, shown_names
from retro_demo.documents.text import TextReader
from retro_demo.errors import UserError

BLANKS = " \t\n\r"
NEAR_END = 16  # characters: an error so near to the end of what was read may mend when more is
WANTED = 'a .json file holds records, as in [{"id": "1", "text": "..."}]'


def read_json(file: File) -> Iterator[Row]:
    """One document a record. Raises UserError for .json files that hold something else."""
    text = TextReader(file)
    yield from record_rows(_records(_Values(text, file.limits.document_chars), file), file)
    text.note_bad_bytes()


def _records(values: _Values, file: File) -> Iterator[Record]:
    number = 0
    for number, value in enumerate(values, start=1):
        where = f"Record {number} of {file.label}"
        array = _array_within(_object(value, where), file)
        for place, record in enumerate(array, start=1):
            inside = f"Record {place} of {file.label}"
            yield place, inside, _object(record, inside)
        if not array:
            yield number, where, _object(value, where)
        elif values.more():
            raise UserError(f"{file.label} goes on after its records: {WANTED}.")


def _object(value: object, where: str) -> Keys:
    if isinstance(value, Keys):
        return value
    raise UserError(f"{where} is {kind_of_value(value)}, not an object: {WANTED}.")


def _array_within(value: Keys, file: File) -> list[object]:
    """The array of records that an object has under one of its names, empty where it is a record itself.

    Raises UserError where it has several: which of them are meant cannot be told.
    """
    if find_column(file.fields.get("text", "text"), list(value)):
        return []
    for key, values in value.doubled.items():
        if any(map(_holds_records, values)):
            raise key_twice(key, file.label)
    arrays = {key: one for key, one in value.items() if isinstance(one, list) and _holds_records(one)}
    if len(arrays) > 1:
        raise UserError(
            f"{file.label} holds {len(arrays)} arrays of records ({shown_names(list(arrays))}): "
            "leave one of them, or write each to a file of its own."
        )
    return next(iter(arrays.values()), [])


def _holds_records(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


class _Values:
    """The values of a JSON text, each parsed when it is asked for: items of an array, or all there are."""

    def __init__(self, text: TextReader, limit: int) -> None:
        self._text = text
        self._limit = limit
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._in_array = self._next() == "["
        self._at += self._in_array

    def __iter__(self) -> Iterator[object]:
        first = True
        while self.more():
            if self._in_array and not first:
                self._take(",")
            yield self._value()
            first = False
        if self._in_array:
            self._take("]")
            if self._next():
                raise UserError(f"{self._text.label} goes on after its array ({self._shown()}): {WANTED}.")

    def more(self) -> bool:
        """Whether another value follows."""
        return self._next() not in ("", "]" if self._in_array else "")

    def _next(self) -> str:
        """The next character that is no blank, "" at the end."""
        while True:
            rest = len(self._buffer)
            while self._at < rest and self._buffer[self._at] in BLANKS:
                self._at += 1
            if self._at < rest or not self._grow(1):
                return self._buffer[self._at : self._at + 1]

    def _take(self, mark: str) -> None:
        if self._next() != mark:
            raise UserError(
                f"{self._text.label} is not valid JSON ({mark!r} is expected where it has {self._shown()}): "
                f"{WANTED}."
            )
        self._at += 1

    def _value(self) -> object:
        label = self._text.label
        self._next()
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._buffer) - NEAR_END or error.msg.startswith("Unterminated")
                wanted = 2 * (len(self._buffer) - self._at)
                if cut and len(self._buffer) - self._at <= self._limit and self._grow(wanted):
                    continue
                if cut and not self._ended:
                    raise UserError(
                        f"{label} has a record of more than {self._limit:,} characters: "
                        "split it into several."
                    ) from error
                raise UserError(
                    f"{label} is not valid JSON ({error.msg} at {self._shown(error.pos)}): {WANTED}."
                ) from error
            except (ValueError, RecursionError) as error:
                raise too_odd(error, label) from error
            self._at = end
            return value

    def _grow(self, wanted: int) -> bool:
        """Read on until `wanted` characters are ahead; False where nothing more came."""
        pieces = [self._buffer[self._at :]]
        ahead = before = len(pieces[0])
        while ahead < max(wanted, before + 1) and not self._ended:
            pieces.append(self._text.read())
            ahead += len(pieces[-1])
            self._ended = not pieces[-1]
        self._buffer, self._at = "".join(pieces), 0
        return ahead > before

    def _shown(self, at: int | None = None) -> str:
        at = self._at if at is None else at
        return repr(self._buffer[at : at + 20]) if self._buffer[at:] else "the end of the file"
