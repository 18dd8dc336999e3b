"""Reads what a user gave into documents with unique ids.

It knows nothing of tokens, chunks or where a corpus is kept. What lies in archives and file formats
is the business of `archives.py` and `formats/`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from retro_demo.archives import DEFAULT_LIMITS, Entry, ReadingLimits, open_sources, size_of
from retro_demo.errors import UserError
from retro_demo.events import Event
from retro_demo.formats.reader import can_read, read_rows, told_kinds
from retro_demo.formats.rows import FIELDS, WHOLE, Part, Row
from retro_demo.output_folder import kind_of
from retro_demo.reading_notes import Notes
from retro_demo.reading_progress import ReadingProgress, read_event

__all__ = ["Document", "Reading", "ReadingLimits", "follow_reading", "parse_fields", "read_documents"]

MIN_SECTIONS = 4
USUAL_SECTIONS = 8
MIN_SECTION_CHARS = 600
USUAL_SECTION_CHARS = 4_000
# A cut may move by this share of a section, to the best place near; a section whose two ends move
# inward keeps 1 - 2/6 of its length, hence the even share that MIN_SECTION_CHARS asks for.
CUT_REACH = 1 / 6
MIN_SHARE_CHARS = round(MIN_SECTION_CHARS / (1 - 2 * CUT_REACH))
USES = ("training", "held-out", "database")
CUT_MARKS = ("\n\n", "\n", ". ", "\N{IDEOGRAPHIC FULL STOP}", " ")  # the best first


@dataclass(frozen=True)
class Document:
    """One text of the corpus.

    group: names the same content in another form or language; the unit of splits. Default: the id.
    use: one of USES where the source says what the text is for ("database": it can be a neighbor, but
        no training batch reads it); "" leaves it to the split.
    """

    id: str
    title: str
    lang: str
    text: str
    group: str = ""
    use: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)


@dataclass(frozen=True)
class Reading:
    """What was read. sections: one document was split, so its documents are parts of one text."""

    documents: list[Document]
    warnings: list[str]
    sections: bool


def parse_fields(fields: str) -> dict[str, str]:
    """`"text=body,title=name"` -> `{"text": "body", "title": "name"}`: our names to the user's.

    Raises UserError.
    """
    columns: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in fields.split(","))):
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (equals and column):
            raise UserError(f"{pair!r} names no field: write pairs such as text=body,title=name.")
        if name in columns:
            raise UserError(f"The field {name!r} is given twice in {fields!r}: name it once.")
        columns[name] = column
    _check_names(columns)
    return columns


def read_documents(
    sources: Sequence[Path],
    *,
    fields: Mapping[str, str],
    limits: ReadingLimits = DEFAULT_LIMITS,
    least: int = 2,
) -> Reading:
    """The documents of files and folders, of any kind in `formats/reader.py`, also in .zip and .gz.

    The order is that of the sources, within a folder or archive that of the sorted names. A single
    document (fewer than `least`) is split into sections, with a warning. Raises UserError on anything
    that cannot be read; what could be mended or was left out is said in the warnings.
    """
    reading = follow_reading(sources, fields=fields, limits=limits, least=least)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value


def follow_reading(
    sources: Sequence[Path],
    *,
    fields: Mapping[str, str],
    limits: ReadingLimits = DEFAULT_LIMITS,
    least: int = 2,
) -> Generator[Event, None, Reading]:
    """As `read_documents`, yielding how many kilobytes are read."""
    _check_names(fields)
    if not sources:
        raise UserError(f"There is nothing to read: give files or folders of {told_kinds()}.")
    for source in sources:
        _refuse_output(source)
    notes = Notes()
    progress = ReadingProgress(sum(size_of(one, skipped=lambda f: bool(kind_of(f))) for one in sources))
    entries = open_sources(sources, limits, skipped=partial(_is_output, notes, sources))
    documents: list[Document] = []
    for one in _documents(_rows(entries, fields, limits, notes), notes):
        if isinstance(one, Document):
            documents.append(one)
        elif event := progress.passed(*one):
            yield event
    yield read_event(progress.total, progress.total)
    warnings = notes.sentences()
    if not documents:
        names = ", ".join(source.name or str(source) for source in sources[:5])
        raise UserError(" ".join([f"No text was found in {names}.", *warnings]))
    if len(documents) >= least:
        return Reading(documents, warnings, sections=False)
    sections = _split(documents[0])
    warnings.append(
        f"Only one document was found ({documents[0].id}), so it was split into {len(sections)} "
        "sections; neighbors from an exclusion window around each query will be left out, because "
        "the text beside a passage gives away what follows it. More documents make a better corpus."
    )
    return Reading(sections, warnings, sections=True)


def _refuse_output(source: Path) -> None:
    """Raise UserError where a source is a folder that this program made: its files are no documents."""
    kind = kind_of(source)
    if kind == "corpus":
        raise UserError(
            f"{source} is a built corpus, not a source. To build anew from its text name the file "
            f"{source / 'documents.jsonl'}; to let documents join it use add-documents."
        )
    if kind:
        raise UserError(
            f"{source} holds no documents: this program keeps something of its own there (kind: {kind}). "
            "Name files, or a folder of them."
        )


def _is_output(notes: Notes, sources: Sequence[Path], folder: Path) -> bool:
    """Whether this program made a folder below the sources, as one that holds a run: that is noted."""
    if not kind_of(folder):
        return False
    inside = next(source for source in sources if folder.is_relative_to(source))
    notes.add(
        "Left out, as folders of this program (corpora, runs, evaluations, exports): {names}.",
        folder.relative_to(inside).as_posix(),
    )
    return True


def _check_names(names: Iterable[str]) -> None:
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise UserError(f"There is no field {unknown[0]!r}: the fields are {', '.join(FIELDS)}.")


def _rows(
    entries: Iterable[Entry], fields: Mapping[str, str], limits: ReadingLimits, notes: Notes
) -> Iterator[tuple[Entry, Row | Part]]:
    for entry in entries:
        if can_read(entry):
            empty = True
            for row in read_rows(entry, fields=fields, limits=limits, notes=notes):
                empty = empty and not isinstance(row, Row)
                yield entry, row
            if empty:
                yield entry, Row("")
        elif entry.chosen:
            kind = entry.kind or "without a suffix"
            raise UserError(
                f"{entry.label} is of a kind that cannot be read ({kind}): "
                f"give {told_kinds()}, also as .gz or in a .zip."
            )
        else:
            notes.add("Skipped, as of a kind that cannot be read: {names}.", entry.label)
        yield entry, WHOLE


def _documents(
    rows: Iterable[tuple[Entry, Row | Part]], notes: Notes
) -> Iterator[Document | tuple[Entry, Part]]:
    """The documents, and between them how much of which file is read."""
    used: dict[str, int] = {}  # id -> how many documents asked for it
    for entry, row in rows:
        if isinstance(row, Part):
            yield entry, row
            continue
        place = f"{entry.name}#{row.number}" if row.number else entry.name
        text = _clean(row.text).strip()
        if not text:
            scan = " (a PDF without text: it may be a scan, which needs text recognition first)"
            notes.add("Left out, as empty: {names}.", place + (scan if entry.kind == ".pdf" else ""))
            continue
        wanted = _clean(row.id).strip() or _clean(place)
        name = wanted
        while name in used:
            used[wanted] += 1
            name = f"{wanted}~{used[wanted]}"
        if name != wanted:
            notes.add("Renamed, as their ids stood there already: {names}.", f"{wanted} -> {name}")
        used[name] = 1
        title = _clean(row.title).strip() or wanted
        use = row.use.strip()
        if use and use not in USES:
            raise UserError(
                f"{place} has the use {use[:40]!r}: it can be {', '.join(USES)} or empty. "
                "A column that means something else needs another name."
            )
        yield Document(name, title, _clean(row.lang).strip(), text, _clean(row.group).strip(), use)


def _clean(text: str) -> str:
    """`text` with \\n as its line end, and without what UTF-8 cannot hold."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\r\n", "\n"))


def _split(document: Document) -> list[Document]:
    """Sections of about equal length, cut at the paragraph, line or sentence end that is nearest.

    Each has at least MIN_SECTION_CHARS characters (blanks at its ends included).
    """
    text = document.text
    most = len(text) // MIN_SHARE_CHARS
    num_sections = min(max(USUAL_SECTIONS, len(text) // USUAL_SECTION_CHARS), most)
    size = len(text) / max(num_sections, 1)
    inner = [_best_cut(text, round(i * size), size) for i in range(1, num_sections)]
    parts = [text[start:end].strip() for start, end in pairwise([0, *inner, len(text)])]
    parts = [part for part in parts if part]
    if len(parts) < MIN_SECTIONS:
        raise UserError(
            f"The only document, {document.id}, has {len(text):,} characters, which is too short "
            f"to split into sections (at least {MIN_SECTIONS * MIN_SHARE_CHARS:,} are needed for "
            f"{MIN_SECTIONS}): give more documents, or a longer one."
        )
    return [
        Document(f"{document.id}#{i}", f"{document.title}, section {i}", document.lang, part)
        for i, part in enumerate(parts, start=1)
    ]


def _best_cut(text: str, ideal: int, size: float) -> int:
    reach = int(size * CUT_REACH)
    window = text[ideal - reach : ideal + reach]
    for mark in CUT_MARKS:
        ends = [match.end() for match in re.finditer(re.escape(mark), window)]
        if ends:
            return ideal - reach + min(ends, key=lambda end: abs(end - reach))
    return ideal
