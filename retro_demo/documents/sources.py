"""What a user gave -> documents with unique ids, with progress as events.

Progress counts the kilobytes that files take on disk. Archives are documents/archives.py, file formats
documents/kinds.py. This module does not know tokens, chunks or where a corpus is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from retro_demo.documents.archives import (
    DEFAULT_LIMITS,
    BadFile,
    Entry,
    OverLimit,
    ReadingLimits,
    find_files,
    open_files,
)
from retro_demo.documents.encodings import name_of
from retro_demo.documents.kinds import can_read, read_rows, told_kinds
from retro_demo.documents.rows import CONTROLS, FIELDS, WHOLE, Notes, Part, Row, listed
from retro_demo.documents.text import BYTE_ORDER_MARK, with_newlines
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress, Warned
from retro_demo.output_folder import kind_of

__all__ = ["Document", "Reading", "ReadingLimits", "follow_reading", "parse_fields", "read_documents"]

STEPS = 20  # events of a reading, at most
LEAST_STEP = 50_000  # bytes; what is smaller is read in no time


def read_event(done: int, total: int) -> Progress:
    """`done` of `total` bytes are read."""
    return Progress("read", -(-done // 1000), -(-total // 1000))


class ReadingProgress:
    """Counts files as they are read; tells of it seldom, and the same for the same files."""

    def __init__(self, total: int) -> None:
        """total: bytes of all files together."""
        self.total = total
        self._before = self._told = 0
        """Bytes of the files before the one that is being read, and of what was told last."""

    def passed(self, entry: Entry, part: Part) -> Progress | None:
        """A part of a file, or all of it, is read: the event that tells of it, where it is time for one."""
        now = self._before + entry.size * part.done // max(part.total, 1)
        if part is WHOLE:
            self._before += entry.size
        if now - self._told < max(LEAST_STEP, self.total // STEPS) or now >= self.total:
            return None
        self._told = now
        return read_event(now, self.total)


MIN_SECTIONS = 4
USUAL_SECTIONS = 8
MIN_SECTION_CHARS = 600
USUAL_SECTION_CHARS = 4_000
# A cut may move by this share of a section, to the best place near; a section whose two ends move
# inward keeps 1 - 2/6 of its length, hence the even share that MIN_SECTION_CHARS asks for.
CUT_REACH = 1 / 6
MIN_SHARE_CHARS = round(MIN_SECTION_CHARS / (1 - 2 * CUT_REACH))
USES = ("training", "held-out", "database")
NOTHING = Row("")  # of a file that holds none, to be told as empty
MOST_LEFT_OUT = 20  # files that cannot be read, in the warning about them
MOST_REASONS = 5  # there
PAIR = re.compile(
    r"""(?P<name>[^=,]*)(?P<equals>=?)\s*(?:(?P<quoted>"(?:[^"]|"")*")\s*(?=,|$)|(?P<bare>[^,]*))"""
)
OURS = "Left out, as folders of this program (corpora, runs, evaluations, exports): {names}."
HIDDEN = "Hidden files and folders were left out: {names}."
SURROGATE = re.compile("[\ud800-\udfff]")
TEXT_CONTROLS = re.compile("[\0-\x08\x0e-\x1f\x7f]")  # but tabs, line ends and page ends
ODD = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
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
    """`'text="Body, English",id=no'` -> `{"text": "Body, English", "id": "no"}`: our names to the user's.

    The name of a column may stand in double quotes, and must where it holds a comma; a quote within is
    doubled. Raises UserError.
    """
    columns: dict[str, str] = {}
    rest = fields
    while rest := rest.lstrip(" \t\r\n,"):
        pair = PAIR.match(rest)
        assert pair, "an empty name and an unquoted column match whatever comes"
        name, quoted, bare = pair["name"].strip(), pair["quoted"], (pair["bare"] or "").strip()
        column = quoted[1:-1].replace('""', '"') if quoted else bare
        if not column or bare.startswith('"') or not pair["equals"]:
            raise UserError(
                f"{pair[0].strip()[:80]!r} names no field: write pairs such as text=body,title=name, and "
                'double quotes around a name that holds a comma, as in text="Body, English".'
            )
        if name in columns:
            raise UserError(f"The field {name!r} is given twice in {fields!r}: name it once.")
        columns[name] = column
        rest = rest[pair.end() :]
    _check_names(columns)
    return columns


def read_documents(
    sources: Sequence[Path],
    *,
    fields: Mapping[str, str],
    limits: ReadingLimits = DEFAULT_LIMITS,
    least: int = 2,
) -> Reading:
    """The documents of files and folders, of any kind in `documents/kinds.py`, also in .zip and .gz.

    The order is that of the sources, within a folder or archive that of the sorted names. A single
    document (fewer than `least`) is split into sections, with a warning. Raises one UserError about all
    files named here that cannot be read; what was mended, or left out of folders and archives, is said
    in the warnings.
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
    notes, unread = Notes(), Unread()
    hidden = partial(notes.add, HIDDEN)
    files = find_files(sources, skipped=partial(_is_output, notes, sources), hidden=hidden)
    progress = ReadingProgress(sum(file.size for file in files))
    entries = open_files(files, limits, hidden=hidden, output=partial(notes.add, OURS))
    documents: list[Document] = []
    for one in _documents(_rows(entries, fields, limits, notes, unread), notes):
        if isinstance(one, Document):
            documents.append(one)
        elif event := progress.passed(*one):
            yield event
    if unread.any_chosen():
        yield from map(Warned, notes.sentences() + unread.warnings())
    unread.raise_chosen()
    yield read_event(progress.total, progress.total)
    warnings = notes.sentences() + unread.warnings()
    if not documents:
        names = ", ".join(source.name or str(source) for source in sources[:5])
        raise UserError(" ".join([f"No text was found in {names}.", *warnings]))
    if len(documents) >= least:
        return Reading(documents, warnings, sections=False)
    sections = _split(documents[0], warnings)
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
    notes.add(OURS, folder.relative_to(inside).as_posix())
    return True


def _check_names(names: Iterable[str]) -> None:
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise UserError(f"There is no field {unknown[0]!r}: the fields are {', '.join(FIELDS)}.")


class Unread:
    """The files that cannot be read, with their errors: those the user named, and those beside others."""

    def __init__(self) -> None:
        self._chosen: list[tuple[str, UserError]] = []
        self._found: list[tuple[str, UserError]] = []

    def add(self, entry: Entry, error: UserError) -> None:
        (self._chosen if entry.chosen else self._found).append((entry.label, error))

    def any_chosen(self) -> bool:
        """Whether a file that was given by name cannot be read."""
        return bool(self._chosen)

    def raise_chosen(self) -> None:
        """Raise one UserError that names all files that were given by name and cannot be read."""
        if len(self._chosen) == 1:
            raise self._chosen[0][1]
        if self._chosen:
            told = []
            for sentence, others in _reasons(self._chosen).items():
                told += [sentence, f"So it is with {', '.join(others)}."] if others else [sentence]
            raise UserError(f"{len(self._chosen)} of the files given cannot be read. {' '.join(told)}")

    def warnings(self) -> list[str]:
        """What was left out of folders and archives: a sentence for each reason that files share."""
        notes, own = Notes(), []
        for label, error in self._found:
            if isinstance(error, BadFile):
                notes.add(f"Left out, as {error.what}: {{names}} ({error.advice}).", label)
            else:
                own.append((label, error))
        if not own:
            return notes.sentences()
        names = listed([label for label, _ in own], MOST_LEFT_OUT)
        reasons = list(_reasons(own))[:MOST_REASONS]
        return [*notes.sentences(), f"Left out, as they cannot be read: {names}. {' '.join(reasons)}"]


def _reasons(unread: Sequence[tuple[str, UserError]]) -> dict[str, list[str]]:
    """Each reason once: the sentence about the first file -> the others of which it is true."""
    first: dict[str, str] = {}  # a sentence without its file -> with it
    others: dict[str, list[str]] = {}
    for label, error in unread:
        sentence = first.setdefault(str(error).replace(label, ""), str(error))
        if sentence in others:
            others[sentence].append(label)
        else:
            others[sentence] = []
    return others


def _rows(
    entries: Iterable[Entry], fields: Mapping[str, str], limits: ReadingLimits, notes: Notes, unread: Unread
) -> Iterator[tuple[Entry, Row | Part]]:
    """The rows of all files that can be read whole; of the others none, but their errors in `unread`."""
    for entry in entries:
        if entry.trouble:
            unread.add(entry, entry.trouble)
        elif can_read(entry):
            of_file = Notes()  # which are said only where the file is read
            rows: list[Row] = []
            try:
                for row in read_rows(entry, fields=fields, limits=limits, notes=of_file):
                    if isinstance(row, Part):
                        yield entry, row
                    else:
                        _check_use(row, _place(entry, row))
                        rows.append(row)
            except OverLimit:
                raise
            except UserError as error:
                unread.add(entry, error)
            else:
                notes.take(of_file)
                if entry.guessed:
                    encoding = name_of(entry.guessed)
                    told = f"Names in archives were read as {encoding}, which fits best: {{names}}."
                    notes.add(told, entry.label)
                if not (rows or of_file.sentences()):
                    rows = [NOTHING]
                yield from ((entry, row) for row in rows)
        elif entry.chosen:
            kind = entry.kind or "without a suffix"
            error = UserError(
                f"{entry.label} is of a kind that cannot be read ({kind}): "
                f"give {told_kinds()}, also as .gz or in a .zip."
            )
            unread.add(entry, error)
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
        place = _place(entry, row)
        text = _clean(row.text).strip()
        if not text:
            scan = " (a PDF without text: it may be a scan, which needs text recognition first)"
            may_be = entry.kind == ".pdf" and row is not NOTHING
            notes.add("Left out, as empty: {names}.", place + (scan if may_be else ""))
            continue
        if not _can_be_seen(text):
            notes.add("Left out, as none of their characters can be seen: {names}.", place)
            continue
        _note_odd(row, place, notes)
        wanted = _clean_name(row.id) or _clean_name(place)
        name = wanted
        while name in used:
            used[wanted] += 1
            name = f"{wanted}~{used[wanted]}"
        if name != wanted:
            notes.add("Renamed, as their ids stood there already: {names}.", f"{wanted} -> {name}")
        used[name] = 1
        title = _clean_name(row.title) or wanted
        yield Document(name, title, _clean_name(row.lang), text, _clean_name(row.group), row.use.strip())


def _note_odd(row: Row, place: str, notes: Notes) -> None:
    """Say what `_clean` takes for something else, or drops."""
    names = (row.title, row.id, row.lang, row.group)
    if not any(map(ODD.search, (row.text, *names))):
        return
    if halves := sum(len(SURROGATE.findall(field)) for field in (row.text, *names)):
        notes.add(
            "Halves of surrogate pairs, which are no characters, were replaced by "
            "\N{REPLACEMENT CHARACTER}: {names}.",
            f"{place} ({halves:,})",
        )
    controls = len(TEXT_CONTROLS.findall(row.text)) + sum(len(CONTROLS.findall(name)) for name in names)
    if controls:
        told = "Control characters, which no text has, were dropped: {names}."
        notes.add(told, f"{_clean_name(place)} ({controls:,})")


def _place(entry: Entry, row: Row) -> str:
    """Where a row stands: its file, and its number where the file has several."""
    return f"{entry.name}#{row.number}" if row.number else entry.name


def _check_use(row: Row, place: str) -> None:
    use = row.use.strip()
    if use and use not in USES:
        raise UserError(
            f"{place} has the use {use[:40]!r}: it can be {', '.join(USES)} or empty. "
            "A column that means something else needs another name."
        )


def _clean(text: str, controls: re.Pattern[str] = TEXT_CONTROLS) -> str:
    """`text` with \\n as its line end, without what UTF-8 cannot hold, what marks where a file begins, and
    control characters."""
    text = with_newlines(text).replace(BYTE_ORDER_MARK, "")
    if ODD.search(text):
        text = controls.sub("", SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text))
    return text


def _clean_name(name: str) -> str:
    """The same of an id, title or their like."""
    return _clean(name, CONTROLS).strip()


def _can_be_seen(text: str) -> bool:
    """Whether a text has more than blanks, controls and formats such as zero-width spaces."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def _split(document: Document, warnings: Sequence[str]) -> list[Document]:
    """Sections of about equal length, cut at the paragraph, line or sentence end that is nearest.

    Each has at least MIN_SECTION_CHARS characters (blanks at its ends included). Raises UserError where
    the document is too short, with the warnings: they say why it is the only one.
    """
    text = document.text
    most = len(text) // MIN_SHARE_CHARS
    num_sections = min(max(USUAL_SECTIONS, len(text) // USUAL_SECTION_CHARS), most)
    size = len(text) / max(num_sections, 1)
    inner = [_best_cut(text, round(i * size), size) for i in range(1, num_sections)]
    parts = [text[start:end].strip() for start, end in pairwise([0, *inner, len(text)])]
    parts = [part for part in parts if part]
    if len(parts) < MIN_SECTIONS:
        too_short = (
            f"The only document, {document.id}, has {len(text):,} characters, which is too short "
            f"to split into sections (at least {MIN_SECTIONS * MIN_SHARE_CHARS:,} are needed for "
            f"{MIN_SECTIONS}): give more documents, or a longer one."
        )
        raise UserError(" ".join([too_short, *warnings]))
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
