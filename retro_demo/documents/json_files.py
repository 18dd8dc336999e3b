"""Files of JSON (.jsonl .json .ipynb) -> rows.

A .json file holds records as an array of objects, as objects one after another, or as one object with the
array under a name of its own, as in {"data": [...]}. Records are parsed one by one, so no file is in
memory as a whole. `record_rows` turns records of other kinds of file into rows, too.

A Jupyter notebook gives text and code of its cells, without what the code printed. Source: nbformat 4 (a list
of cells) and 3 (cells within worksheets).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import isfinite

from retro_demo.documents.html import as_title, markdown_title
from retro_demo.documents.rows import (
    FIELDS,
    File,
    Row,
    find_column,
    listed,
    no_column,
    note_case,
    shown_name,
    shown_names,
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
            record = _object(value, where)
            if number == 1 and not (values.in_array or values.more()):
                _check_alone(record, file)
            yield number, where, record
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


def _check_alone(value: Keys, file: File) -> None:
    """Raise UserError where the only object of a file has a text, and records whose texts are no part of it:
    which are meant cannot be told."""
    column = file.fields.get("text", "text")
    own = find_column(column, list(value))
    if not own:
        return
    whole = " ".join(str(value[own]).split())
    for key, one in value.items():
        for item in one if key != own and isinstance(one, list) else ():
            inner = find_column(column, list(item)) if isinstance(item, Keys) else ""
            text = item[inner] if inner else ""
            if isinstance(text, str) and " ".join(text.split()) not in whole:
                raise UserError(
                    f"{file.label} has a text itself ({shown_name(own)}) and holds records with texts "
                    f"({shown_name(key)}), so which are meant cannot be told: write each to a file of its "
                    "own, or leave one of them."
                )


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
        self.in_array = self._next() == "["
        self._at += self.in_array

    def __iter__(self) -> Iterator[object]:
        first = True
        while self.more():
            if self.in_array and not first:
                self._take(",")
            yield self._value()
            first = False
        if self.in_array:
            self._take("]")
            if self._next():
                raise UserError(f"{self._text.label} goes on after its array ({self._shown()}): {WANTED}.")

    def more(self) -> bool:
        """Whether another value follows."""
        return self._next() not in ("", "]" if self.in_array else "")

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


CELL_KEYS = ("source", "input", "cell_type")
LEFT_OUT = "Outputs of notebook cells were left out: {names}."


def read_ipynb(file: File) -> Iterator[Row]:
    """All cells in their order as one document; its title is the first heading."""
    text, limit = TextReader(file), file.limits.document_chars
    blocks: list[str] = []
    num_chars = 0
    while block := text.read():
        num_chars += len(block)
        blocks.append(block)
        if num_chars > limit:
            raise UserError(
                f"{file.label} has more than {limit:,} characters: clear the outputs of its cells, save it."
            )
    text.note_bad_bytes()
    if not num_chars:
        return
    cells = list(_cells(_parsed("".join(blocks), file.label), file.label))
    sources, title, outputs = [], "", 0
    for cell in cells:
        source = _source(cell, file.label)
        if source.strip():
            sources.append(source.strip("\n"))
        if cell.get("cell_type") == "heading":  # of nbformat 3
            title = title or source.strip()
        elif cell.get("cell_type") == "markdown":
            title = title or markdown_title(source)
        outputs += bool(cell.get("outputs"))
    if outputs:
        file.notes.add(LEFT_OUT, f"{file.label} ({outputs:,})")
    yield Row("\n\n".join(sources), title=as_title(title))


def _parsed(text: str, label: str) -> dict[str, object]:
    try:
        notebook = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{label} is not a notebook: it is not valid JSON ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise too_odd(error, label) from error
    if not isinstance(notebook, dict):
        raise UserError(f"{label} is not a notebook: it holds {kind_of_value(notebook)}.")
    return notebook


def _check_once(value: object, keys: Sequence[str], where: str) -> None:
    """Raise UserError where an object has one of these keys more than once: its other value would be lost."""
    if isinstance(value, Keys) and (twice := [key for key in keys if key in value.doubled]):
        raise key_twice(twice[0], where)


def _cells(notebook: dict[str, object], label: str) -> Iterator[dict[str, object]]:
    _check_once(notebook, ("cells", "worksheets"), label)
    worksheets = notebook.get("worksheets")
    holders = worksheets if isinstance(worksheets, list) else [notebook]
    for holder in holders:
        _check_once(holder, ("cells",), label)
        cells = holder.get("cells") if isinstance(holder, dict) else None
        if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
            raise UserError(f"{label} is not a notebook: it has no list of cells.")
        yield from cells


def _source(cell: dict[str, object], label: str) -> str:
    """The text of a cell, which is a string or a list of lines."""
    _check_once(cell, CELL_KEYS, f"A cell of {label}")
    source = cell.get("source", cell.get("input", ""))
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(
            f"{label} has a cell whose source is {kind_of_value(source)}, not text: save it anew."
        )
    return "".join(lines)
