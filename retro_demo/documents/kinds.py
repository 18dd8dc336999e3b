"""The table of kinds: which reader turns the bytes of a file into rows.

It knows the file formats and the names of a document's fields, but makes no documents: ids,
titles and groups that are missing stay empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from retro_demo.documents.archives import Entry, ReadingLimits
from retro_demo.documents.docx_epub import read_docx, read_epub
from retro_demo.documents.html import (
    ASCIIDOC,
    LATEX,
    ORG,
    found_by,
    markdown_title,
    read_html,
    read_xhtml,
    rst_title,
    titled,
)
from retro_demo.documents.json_files import read_ipynb, read_json, read_jsonl
from retro_demo.documents.pdf import read_pdf
from retro_demo.documents.rows import File, Notes, Part, Row, RowReader
from retro_demo.documents.tables import read_csv, read_parquet, read_tsv
from retro_demo.documents.text import read_text

CODE = (
    ".py .js .ts .jsx .tsx .c .h .cpp .hpp .cc .cs .java .go .rs .rb .sh .sql .css .r .jl .kt .swift .scala "
    ".lua .pl .php .hs .ml .clj .ex .erl .f90 .m .vue .yaml .yml .toml .ini .cfg"
)
PLAIN_NAMES = (
    "authors changelog changes contributing contributors copying copyright credits dockerfile history "
    "install license licence makefile news notice readme thanks todo"
)
"""Files without a suffix that are text, in lower case."""


@dataclass(frozen=True)
class Group:
    """Kinds of file that a user thinks of as one."""

    name: str
    readers: Mapping[str, RowReader]
    """Suffix in lower case -> what reads files of that kind; the usual ones first."""
    columns: bool = False
    """Its files hold several documents, with fields that can be named."""


GROUPS = (
    Group(
        "text",
        {
            ".txt": read_text,
            ".md": titled(read_text, markdown_title),
            ".rst": titled(read_text, rst_title),
            ".log": read_text,
            ".markdown": titled(read_text, markdown_title),
            ".text": read_text,
            ".tex": titled(read_text, found_by(LATEX)),
            ".org": titled(read_text, found_by(ORG)),
            ".adoc": titled(read_text, found_by(ASCIIDOC)),
            ".srt": read_text,
            ".vtt": read_text,
        },
    ),
    Group("web pages", {".html": read_html, ".htm": read_html, ".xhtml": read_xhtml}),
    Group("Word", {".docx": read_docx, ".docm": read_docx}),
    Group("books", {".epub": read_epub}),
    Group("PDF", {".pdf": read_pdf}),
    Group("tables", {".csv": read_csv, ".tsv": read_tsv, ".parquet": read_parquet}, columns=True),
    Group("records", {".jsonl": read_jsonl, ".json": read_json, ".ndjson": read_jsonl}, columns=True),
    Group("notebooks", {".ipynb": read_ipynb}),
    Group("source code", dict.fromkeys(CODE.split(), read_text)),
)
"""What can be read, the table that all else is made from."""

READERS: Mapping[str, RowReader] = {
    suffix: read for group in GROUPS for suffix, read in group.readers.items()
}
"""Suffix in lower case -> what reads files of that kind."""

KIND_NAMES = ", ".join(group.name for group in GROUPS)
SHOWN_SUFFIXES = 3


def told_kinds() -> str:
    """The kinds in a phrase: of each group its name and the usual suffixes."""
    told = []
    for group in GROUPS:
        suffixes = list(group.readers)
        more = " ..." if len(suffixes) > SHOWN_SUFFIXES else ""
        told.append(f"{group.name} ({' '.join(suffixes[:SHOWN_SUFFIXES])}{more})")
    return ", ".join(told)


def can_read(entry: Entry) -> bool:
    """Whether a file is of a kind that is read, by its suffix or, without one, by its name."""
    return _reader_of(entry) is not None


def read_rows(
    entry: Entry, *, fields: Mapping[str, str], limits: ReadingLimits, notes: Notes
) -> Iterator[Row | Part]:
    """The rows of one file that `can_read`, and how much of it is read; tells `notes` what was mended.

    `fields` maps names in FIELDS to columns of files that have columns. Raises UserError.
    """
    read = _reader_of(entry)
    assert read is not None
    with entry.open() as stream:
        yield from read(File(stream, entry.label, fields, limits, notes, entry.unpacker))


def _reader_of(entry: Entry) -> RowReader | None:
    if entry.kind:
        return READERS.get(entry.kind)
    name = PurePosixPath(entry.name).name.lower().removesuffix(".gz")
    return read_text if name in PLAIN_NAMES.split() else None
