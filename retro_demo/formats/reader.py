"""The table of kinds: which reader turns the bytes of a file into rows.

It knows the file formats and the names of a document's fields, but makes no documents: ids,
titles and groups that are missing stay empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from retro_demo.archives import Entry, ReadingLimits
from retro_demo.formats.pdf import read_pdf
from retro_demo.formats.records import read_jsonl
from retro_demo.formats.rows import File, Reader, Row
from retro_demo.formats.tables import read_csv
from retro_demo.formats.text import read_text
from retro_demo.reading_notes import Notes

READERS: Mapping[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".pdf": read_pdf,
}
"""Suffix in lower case -> what reads files of that kind."""

KINDS = tuple(READERS)


def read_rows(
    entry: Entry, *, fields: Mapping[str, str], limits: ReadingLimits, notes: Notes
) -> Iterator[Row]:
    """The rows of one file of a kind in KINDS; tells `notes` what was mended.

    `fields` maps names in FIELDS to columns of files that have columns. Raises UserError.
    """
    with entry.open() as stream:
        yield from READERS[entry.kind](File(stream, entry.label, fields, limits, notes))
