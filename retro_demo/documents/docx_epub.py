"""Word files and books (.docx .epub), both zips of XML, -> text.

Of a Word file the body is read as it stands once all changes are accepted: inserted text is kept, deleted
text is not. A book is read page by page along its spine and becomes one document, as the same book does as
.txt or .pdf: so no chunk has a neighbor from its own book, and a book is held out whole.

The XML is not trusted: no entity is expanded, nothing outside the file is opened, and only small parts become
trees; the rest is read as a stream, by names without their namespaces (there are two sets of them).

Sources: ECMA-376, part 1, WordprocessingML; EPUB 3.3, sections 4 (container) and 5 (package document).
"""

from __future__ import annotations

import io
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from typing import Protocol
from urllib.parse import unquote

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from retro_demo.documents.archives import Parts
from retro_demo.documents.html import Flow, as_title, read_html, read_page, read_xhtml
from retro_demo.documents.rows import File, Row, too_long
from retro_demo.documents.text import as_language, read_text
from retro_demo.errors import UserError

TREE_BYTES = 4_000_000  # of a table of contents, a list of relations, a set of styles
BLOCK_BYTES = 1 << 16
WHERE = re.compile(r" \(<string>, line \d+\)$")  # as lxml ends its errors: there is no such file
SAFE = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}


class Element(Protocol):
    """What is asked of an element of a tree."""

    tag: object

    def get(self, name: str, default: str = "", /) -> str: ...
    def items(self) -> list[tuple[str, str]]: ...
    def iter(self) -> Iterator[Element]: ...
    def itertext(self) -> Iterator[str]: ...


class Target(Protocol):
    """What is told of a part, as it is parsed. Names are those of lxml: "{namespace}name"."""

    def start(self, tag: str, attributes: dict[str, str], /) -> None: ...
    def end(self, tag: str, /) -> None: ...
    def data(self, data: str, /) -> None: ...
    def doctype(self, *about: str | None) -> None: ...
    def close(self) -> None: ...


def local(tag: str) -> str:
    """`"{namespace}name"` -> `"name"`: a format has several namespaces for one thing."""
    return tag.rpartition("}")[2]


def feed(parts: Parts, name: str, label: str, target: Target) -> None:
    """Parse a part of any length into `target`, block by block. Raises UserError."""
    parser = etree.XMLParser(target=target, **SAFE)
    with parts.open(name) as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                parser.feed(block)
            parser.close()
        except etree.LxmlError as error:
            raise _no_xml(name, label, error) from error


def tree(parts: Parts, name: str, label: str) -> Element:
    """A small part as a tree. Raises UserError."""
    with parts.open(name) as stream:
        data = stream.read(TREE_BYTES + 1)
    if len(data) > TREE_BYTES:
        raise UserError(f"{name} in {label} has more than {TREE_BYTES:,} bytes, which no such file has.")
    try:
        root = etree.fromstring(data, etree.XMLParser(remove_comments=True, remove_pis=True, **SAFE))
    except etree.LxmlError as error:
        raise _no_xml(name, label, error) from error
    if root is None:
        raise _no_xml(name, label, None)
    return root


def named(root: Element, name: str) -> Iterator[Element]:
    """All elements below of that local name."""
    return (element for element in root.iter() if isinstance(element.tag, str) and local(element.tag) == name)


def first_text(root: Element, name: str) -> str:
    """The text of the first element of that local name that has any; "" if there is none."""
    texts = ("".join(element.itertext()).strip() for element in named(root, name))
    return next(filter(None, texts), "")


def place_of(target: str, beside: str) -> str:
    """The name of the part that `target` means where it stands in the part `beside`."""
    path = unquote(target.partition("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(beside), path)).lstrip("/")


class NoXml(UserError):
    """A part that is not XML."""


def _no_xml(name: str, label: str, error: Exception | None) -> NoXml:
    reason = WHERE.sub("", str(error or "it is empty"))
    return NoXml(f"{label} is broken: {name} in it is not XML that can be read ({reason}).")


OLD_OR_LOCKED = b"\xd0\xcf\x11\xe0"  # the container of .doc, and of a .docx with a password
GONE = ("del", "moveFrom", "Fallback", "pPrChange", "rt")
"""Deleted, moved away, said again for older programs, as it was before a change, or a reading over a word."""
NOTES = ("footnote", "endnote")
MARGINS_LEFT_OUT = "Headers, footers and comments of Word files were left out: {names}."
DRAWINGS_LEFT_OUT = "Words in diagrams (SmartArt) and charts of Word files were left out: {names}."
EMBEDDED_LEFT_OUT = "Files embedded in Word files as a part of their text were left out: {names}."
SIGNS_LEFT_OUT = "Signs of picture fonts in Word files, which are no characters, were left out: {names}."
EMBEDDED = {".html": read_html, ".htm": read_html, ".xhtml": read_xhtml, ".txt": read_text}
MAILED = (".mht", ".mhtml", ".eml")  # a page as a mail, which programs that turn HTML into .docx write
FONT_PLACES = range(0xF000, 0xF100)  # of the private area: what stands there is the font's to say
SYMBOL = (
    dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ", strict=True))  # noqa: RUF001
    | dict(zip("abcdefghijklmnopqrstuvwxyz", "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True))  # noqa: RUF001
    | {sign: sign for sign in "0123456789 !#%&()+,./:;<=>?[]_{|}"}
    | dict(zip("\xa3\xa5\xab\xac\xae\xb0\xb1\xb3\xb4\xb6\xb7\xb9\xba\xbb", "≤∞↔←→°±≥×∂•≠≡≈", strict=True))  # noqa: RUF001
    | dict(zip("-\xce\xd1\xd6\xe5\xf2", "−∈∇√∑∫", strict=True))  # noqa: RUF001
)
"""The font Symbol: what its places show, as characters."""


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
    lost = _Lost()
    for kind in NOTES:
        for name in related.get(f"{kind}s", ()):
            notes |= _story(parts, name, file, styles, {}, lost).notes
    body = _story(parts, main, file, styles, notes, lost)
    body.add_notes()
    others = [name for kind in ("header", "footer", "comments") for name in related.get(kind, ())]
    if any(_story(parts, name, file, styles, {}, _Lost()).flow.whole().strip() for name in others):
        file.notes.add(MARGINS_LEFT_OUT, file.label)
    drawings = [name for kind in ("diagramData", "chart", "chartEx") for name in related.get(kind, ())]
    if num_drawings := sum(_has_words(parts, name, file.label) for name in drawings):
        file.notes.add(DRAWINGS_LEFT_OUT, f"{file.label} ({num_drawings:,})")
    lost.note(file)
    title = lang = ""
    for name in package.get("core-properties", ())[:1]:
        core = tree(parts, name, file.label)
        title, lang = as_title(first_text(core, "title")), as_language(first_text(core, "language"))
    return Row(body.flow.whole(), title=title or body.heading, lang=lang)


def _relations(parts: Parts, part: str, label: str) -> dict[str, list[str]]:
    """The parts that a part (or "", the whole file) refers to, by what they are to it."""
    found: dict[str, list[str]] = {}
    for _, kind, target in _related(parts, part, label):
        found.setdefault(kind, []).append(target)
    return found


def _related(parts: Parts, part: str, label: str) -> Iterator[tuple[str, str, str]]:
    """(id, what it is to the part, its name) of each part that a part refers to."""
    folder, _, name = part.rpartition("/")
    place = f"{folder}/_rels/{name}.rels".lstrip("/")
    if place in parts:
        for relation in named(tree(parts, place, label), "Relationship"):
            target = place_of(relation.get("Target", ""), part)
            if relation.get("TargetMode") != "External" and target in parts:
                yield relation.get("Id", ""), relation.get("Type", "").rpartition("/")[2], target


def _embedded(parts: Parts, name: str, file: File) -> Row | None:
    """A file that stands in the text as a part of it; None where it is of a kind that is not read."""
    suffix = posixpath.splitext(name)[1].lower()
    if name not in parts or suffix not in (*EMBEDDED, *MAILED):
        return None
    label = f"{name} in {file.label}"
    with parts.open(name) as stream:
        if suffix in EMBEDDED:
            return next(EMBEDDED[suffix](replace(file, stream=stream, label=label)), None)
        data = stream.read(file.limits.document_chars + 1)
    if len(data) > file.limits.document_chars:
        raise too_long(label, file.limits.document_chars)
    for part in message_from_bytes(data).walk():
        read = {"text/html": read_html, "text/plain": read_text}.get(part.get_content_type())
        page = part.get_payload(decode=True) if read else None
        if read and isinstance(page, bytes):
            with suppress(LookupError, UnicodeDecodeError):  # a byte order mark overrules what the page says
                page = page.decode(part.get_content_charset("")).encode("utf-8-sig")
            stream = io.BufferedReader(io.BytesIO(page))  # pyright: ignore[reportArgumentType]
            return next(read(replace(file, stream=stream, label=label)), None)
    return None


@dataclass
class _Lost:
    """What of a Word file cannot be read, counted."""

    embedded: int = 0
    signs: int = 0

    def note(self, file: File) -> None:
        if self.embedded:
            file.notes.add(EMBEDDED_LEFT_OUT, f"{file.label} ({self.embedded:,})")
        if self.signs:
            file.notes.add(SIGNS_LEFT_OUT, f"{file.label} ({self.signs:,})")


def _sign(font: str, code: str) -> str:
    """The character that a sign of a font is, by the hexadecimal number of its place; "" for none."""
    try:
        place = int(code, 16)
        if font.lower() == "symbol" and (place in FONT_PLACES or place < 0x100):
            return SYMBOL.get(chr(place & 0xFF), "")
        sign = chr(place)
    except (ValueError, OverflowError):
        return ""
    return "" if unicodedata.category(sign)[0] == "C" else sign  # controls, halves, private and free places


def _has_words(parts: Parts, name: str, label: str) -> bool:
    """Whether a diagram or chart shows any text."""
    words = _Words()
    feed(parts, name, label, words)
    return words.any


class _Words:
    """Looks for the text of drawings: `t` of a diagram or title, `v` of a chart's labels and values."""

    def __init__(self) -> None:
        self.any = self._inside = False

    def doctype(self, *_about: str | None) -> None:
        """It changes nothing."""

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        self._inside = local(tag) in ("t", "v")

    def end(self, _tag: str) -> None:
        self._inside = False

    def data(self, data: str) -> None:
        self.any |= self._inside and not data.isspace()

    def close(self) -> None:
        """The parser asks for it."""


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


def _story(
    parts: Parts, name: str, file: File, styles: Mapping[str, str], notes: Mapping[str, str], lost: _Lost
) -> Story:
    targets = {key: target for key, kind, target in _related(parts, name, file.label) if kind == "aFChunk"}
    story = Story(file, styles, notes, lost, lambda key: _embedded(parts, targets.get(key, ""), file))
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

    def __init__(
        self,
        file: File,
        styles: Mapping[str, str],
        notes: Mapping[str, str],
        lost: _Lost,
        embedded: Callable[[str], Row | None],
    ) -> None:
        """`notes`: texts of what is referred to, by "footnote ID"; `embedded` reads the file of an id."""
        self.flow = self._new_flow(file)
        self.heading = ""
        self.notes: dict[str, str] = {}
        self._file = file
        self._styles = styles
        self._known = notes
        self._lost = lost
        self._embedded = embedded
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
        elif name == "sym":
            self._add_sign(attributes)
        elif name == "altChunk":
            self._embed(_value(attributes.items(), "id"))
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

    def _add_sign(self, attributes: Mapping[str, str]) -> None:
        sign = _sign(_value(attributes.items(), "font"), _value(attributes.items(), "char"))
        if sign:
            self._add(sign)
        else:
            self._lost.signs += 1

    def _embed(self, key: str) -> None:
        """Add the text of a file that stands here."""
        row = self._embedded(key)
        if row is None:
            self._lost.embedded += 1
            return
        self.heading = self.heading or row.title
        self.flow.lines(2)
        self.flow.verbatim(row.text.strip("\n"))
        self.flow.lines(2)

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


CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html")
DRAWING = "image/svg+xml"
CHAPTERS_LEFT_OUT = "Chapters that are missing in their book, or are no text, were left out: {names}."


def read_epub(file: File) -> Iterator[Row]:
    """The whole book as one document, with the title and language that its package says."""
    with file.unpacker.parts(file.stream, "an .epub file") as parts:
        yield _read_member(parts, file)


def _read_member(parts: Parts, file: File) -> Row:
    package = _package(parts, file.label)
    root = tree(parts, package, file.label)
    locked = _locked(parts, file.label)
    flow = Flow(file.label, file.limits.document_chars)
    heading = lang = ""
    missing = 0
    spine = list(_spine(root, package))
    if not spine and (num_pages := sum(item.get("media-type", "") in PAGES for item in named(root, "item"))):
        raise UserError(
            f"{file.label} holds {num_pages:,} pages, but its list of them in reading order (the spine) is "
            "empty: save the book anew in a program for e-books."
        )
    for place, kind in spine:
        if place in locked:
            raise UserError(f"{file.label} is protected against copying (DRM): its text cannot be read.")
        if place in parts and (kind in PAGES or place.lower().endswith((".xhtml", ".html", ".htm"))):
            with parts.open(place) as stream:
                flow.lines(2)
                of_page = replace(file, stream=stream, label=f"{place} in {file.label}")
                page = read_page(of_page, flow, xhtml=True)
            heading, lang = heading or page.heading, lang or page.lang
        elif place in parts and kind == DRAWING:
            missing += not _read_drawing(parts, place, file.label, flow)
        elif not kind.startswith("image/"):
            missing += 1
    if missing:
        file.notes.add(CHAPTERS_LEFT_OUT, f"{file.label} ({missing:,})")
    title, language = as_title(first_text(root, "title")), as_language(first_text(root, "language"))
    return Row(flow.whole(), title=title or heading, lang=language or lang)


def _read_drawing(parts: Parts, name: str, label: str, flow: Flow) -> bool:
    """Add the words of a page that is a drawing, one text a line; False where it cannot be read."""
    flow.lines(2)
    try:
        feed(parts, name, label, _Drawing(flow))
    except NoXml:
        return False
    flow.lines(2)
    return True


class _Drawing:
    """The words that a drawing (SVG) shows: its `text`, with the `tspan` within."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._depth = 0  # open elements from the text on

    def doctype(self, *_about: str | None) -> None:
        """Older drawings have that of SVG."""

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        if self._depth or local(tag) == "text":
            self._depth += 1

    def end(self, _tag: str) -> None:
        if self._depth:
            self._depth -= 1
            if not self._depth:
                self._flow.lines(1)

    def data(self, data: str) -> None:
        if self._depth:
            self._flow.text(data)

    def close(self) -> None:
        """The parser asks for it."""


def _package(parts: Parts, label: str) -> str:
    """The name of the file that says what the book is made of."""
    for rootfile in named(tree(parts, CONTAINER, label), "rootfile"):
        if place := rootfile.get("full-path"):
            return place_of(place, "")
    raise UserError(f"{label} is broken: {CONTAINER} in it names no book.")


def _spine(root: Element, package: str) -> Iterator[tuple[str, str]]:
    """Name and media type of each file in reading order, but the table of contents; each once."""
    items = {item.get("id", ""): item for item in named(root, "item")}
    seen: set[str] = set()
    for reference in named(root, "itemref"):
        item = items.get(reference.get("idref", ""))
        if item is None:
            yield "", ""
        elif "nav" not in item.get("properties", "").split():
            place = place_of(item.get("href", ""), package)
            if place not in seen:
                seen.add(place)
                yield place, item.get("media-type", "")


def _locked(parts: Parts, label: str) -> set[str]:
    """The files of the book that are encrypted."""
    if ENCRYPTION not in parts:
        return set()
    references = named(tree(parts, ENCRYPTION, label), "CipherReference")
    return {place_of(reference.get("URI", ""), "") for reference in references}
