"""Reads Word files (.docx): the text of the body as it stands once all changes are accepted.

Their XML is read as a stream, from its names without their namespaces, of which there are two. Deleted
text is left out, inserted text is not. Source: ECMA-376, part 1, WordprocessingML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from retro_demo.documents.archives import Parts
from retro_demo.documents.flow import Flow, as_title
from retro_demo.documents.languages import as_language
from retro_demo.documents.packages import feed, first_text, local, named, place_of, tree
from retro_demo.documents.rows import File, Row
from retro_demo.errors import UserError

OLD_OR_LOCKED = b"\xd0\xcf\x11\xe0"  # the container of .doc, and of a .docx with a password
GONE = ("del", "moveFrom", "Fallback", "pPrChange", "rt")
"""Deleted, moved away, said again for older programs, as it was before a change, or a reading over a word."""
NOTES = ("footnote", "endnote")
LEFT_OUT = "Headers, footers and comments of Word files were left out: {names}."


def read_docx(file: File) -> Iterator[Row]:
    """The body as one document, then its footnotes and endnotes, numbered in the order of their places."""
    if file.stream.peek().startswith(OLD_OR_LOCKED):
        raise UserError(
            f"{file.label} has a password, or is an older Word file under another name: "
            "save it as .docx without a password."
        )
    with file.unpacker.parts(file.stream, "a .docx file") as parts:
        yield _read(parts, file)


def _read(parts: Parts, file: File) -> Row:
    package = _relations(parts, "", file.label)
    main = package.get("officeDocument", ["word/document.xml"])[0]
    related = _relations(parts, main, file.label)
    styles, notes = dict[str, str](), dict[str, str]()
    for name in related.get("styles", ()):
        styles |= _styles(parts, name, file.label)
    for kind in NOTES:
        for name in related.get(f"{kind}s", ()):
            notes |= _story(parts, name, file, styles, {}).notes
    body = _story(parts, main, file, styles, notes)
    body.add_notes()
    others = [name for kind in ("header", "footer", "comments") for name in related.get(kind, ())]
    if any(_story(parts, name, file, styles, {}).flow.whole().strip() for name in others):
        file.notes.add(LEFT_OUT, file.label)
    title = lang = ""
    for name in package.get("core-properties", ())[:1]:
        core = tree(parts, name, file.label)
        title, lang = as_title(first_text(core, "title")), as_language(first_text(core, "language"))
    return Row(body.flow.whole(), title=title or body.heading, lang=lang)


def _relations(parts: Parts, part: str, label: str) -> dict[str, list[str]]:
    """The parts that a part (or "", the whole file) refers to, by what they are to it."""
    folder, _, name = part.rpartition("/")
    place = f"{folder}/_rels/{name}.rels".lstrip("/")
    found: dict[str, list[str]] = {}
    if place in parts:
        for relation in named(tree(parts, place, label), "Relationship"):
            target = place_of(relation.get("Target", ""), part)
            if relation.get("TargetMode") != "External" and target in parts:
                found.setdefault(relation.get("Type", "").rpartition("/")[2], []).append(target)
    return found


def _styles(parts: Parts, name: str, label: str) -> dict[str, str]:
    """What paragraphs of a style are: "heading", "list" or "". Its name is English whatever its id is."""
    kinds = {}
    for style in named(tree(parts, name, label), "style"):
        called = next((_value(child.items()) for child in named(style, "name")), "").lower()
        heading = called == "title" or called.startswith("heading ")
        is_list = any(True for _ in named(style, "numPr"))
        kinds[_value(style.items(), "styleId")] = "heading" if heading else "list" if is_list else ""
    return kinds


def _value(attributes: Iterable[tuple[str, str]], name: str = "val") -> str:
    return next((value for key, value in attributes if local(key) == name), "")


def _story(parts: Parts, name: str, file: File, styles: Mapping[str, str], notes: Mapping[str, str]) -> Story:
    story = Story(file, styles, notes)
    feed(parts, name, file.label, story)
    return story


@dataclass
class _Paragraph:
    kind: str = ""
    begun: bool = False
    """It has text."""
    mark: int = 0
    boxes: list[str] = field(default_factory=list)
    """Text boxes that hang on it."""


class Story:
    """One part of a Word file as the parser tells it: its text, and that of the notes in it."""

    def __init__(self, file: File, styles: Mapping[str, str], notes: Mapping[str, str]) -> None:
        """`notes` has the text of what is referred to, by "footnote ID"."""
        self.flow = self._new_flow(file)
        self.heading = ""
        self.notes: dict[str, str] = {}
        self._file = file
        self._styles = styles
        self._known = notes
        self._numbers: dict[str, int] = {}  # of the notes referred to
        self._outside: list[tuple[Flow, _Paragraph, str]] = []  # what goes on after an open box or note
        self._paragraph = _Paragraph()
        self._last_kind = ""
        self._skipped = 0  # how many open elements deep in what is gone
        self._in_text = self._in_properties = False
        self._cells = 0  # that are open

    def doctype(self, *_about: str | None) -> None:
        raise UserError(f"{self._file.label} is no Word file: it declares a document type of its own.")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = local(tag)
        if self._skipped or name in GONE:
            self._skipped += 1
        elif name == "t":
            self._in_text = True
        elif name == "p":
            self._paragraph = _Paragraph()
        elif name == "pPr":
            self._in_properties = True
        elif name == "pStyle":
            self._paragraph.kind = self._styles.get(_value(attributes.items()), "")
        elif name == "numPr":
            self._paragraph.kind = self._paragraph.kind or "list"
        elif name == "tab" and not self._in_properties:
            self._add("\t")
        elif name in ("br", "cr"):
            self.flow.line_end()
        elif name == "noBreakHyphen":
            self._add("-")
        elif name in ("footnoteReference", "endnoteReference"):
            self._refer(f"{name.removesuffix('Reference')} {_value(attributes.items(), 'id')}")
        elif name == "tc":
            self._cells += 1
            self.flow.cell()
        elif name == "tr":
            self.flow.row()
        elif name == "tbl":
            self.flow.lines(2)
        elif name == "txbxContent" or name in NOTES:
            what = f"{name} {_value(attributes.items(), 'id')}" if name in NOTES else ""
            separator = "type" in map(local, attributes)  # what stands between the text and its notes
            self._outside.append((self.flow, self._paragraph, "separator" if separator else what))
            self.flow = self._new_flow(self._file)

    def end(self, tag: str) -> None:
        name = local(tag)
        if self._skipped:
            self._skipped -= 1
        elif name == "t":
            self._in_text = False
        elif name == "pPr":
            self._in_properties = False
        elif name == "p":
            self._end_paragraph()
        elif name == "tc":
            self._cells -= 1
        elif name == "tr":
            self.flow.row()
        elif name == "tbl":
            self.flow.lines(2)
        elif name == "txbxContent" or name in NOTES:
            text = self.flow.whole().strip()
            self.flow, self._paragraph, what = self._outside.pop()
            if what:
                self.notes[what] = text
            else:
                self._paragraph.boxes.append(text)

    def data(self, data: str) -> None:
        if self._in_text and not self._skipped:
            self._add(data)

    def close(self) -> None:
        """The parser asks for it."""

    def add_notes(self) -> None:
        """Add the notes that the text refers to below it."""
        self.flow.lines(2)
        for what, number in self._numbers.items():
            self.flow.verbatim(f"[{number}] {self._known[what]}\n")

    def _refer(self, what: str) -> None:
        if what in self._known:
            self._add(f"[{self._numbers.setdefault(what, len(self._numbers) + 1)}]")

    def _add(self, text: str) -> None:
        paragraph = self._paragraph
        if not paragraph.begun:
            close = self._cells or paragraph.kind == self._last_kind == "list"
            self.flow.lines(1 if close else 2)
            paragraph.begun, paragraph.mark = True, self.flow.mark()
        self.flow.verbatim(text)

    def _end_paragraph(self) -> None:
        paragraph = self._paragraph
        if paragraph.begun:
            self._last_kind = paragraph.kind
            if paragraph.kind == "heading" and not self.heading:
                self.heading = self.flow.since(paragraph.mark)
        self.flow.lines(1)
        for text in paragraph.boxes:
            self.flow.lines(2)
            self.flow.verbatim(text)
            self.flow.lines(2)

    @staticmethod
    def _new_flow(file: File) -> Flow:
        return Flow(file.label, file.limits.document_chars)
