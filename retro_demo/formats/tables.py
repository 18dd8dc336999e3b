"""Reads tables (.csv .tsv)."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator

from retro_demo.errors import UserError
from retro_demo.formats.rows import FIELDS, File, Row, no_column
from retro_demo.formats.text import TextReader


def read_tsv(file: File) -> Iterator[Row]:
    """As `read_csv`, with tabs between the values."""
    return read_csv(file, "\t")


def read_csv(file: File, delimiter: str = "") -> Iterator[Row]:
    """One document a row, below a header, which tells the `delimiter` where it is not given."""
    text, fields, limits = TextReader(file), file.fields, file.limits
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
    kind = ".tsv" if delimiter else ".csv"
    delimiter = delimiter or max(",;\t|", key=head[-1].count)
    records = csv.reader(itertools.chain(head, lines), delimiter=delimiter, strict=True)
    try:
        named = ([name.strip() for name in record] for record in records)
        header = next((names for names in named if any(names)), [])
        columns = {name: fields.get(name, name) for name in FIELDS}
        for name in {"text": "", **fields}:
            if columns[name] not in header:
                raise no_column(name, columns[name], header, text.label)
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
            f"{text.label} is not a valid {kind} file (line {records.line_num}: {error}): "
            "check its double quotes."
        ) from error
    text.note_bad_bytes()
