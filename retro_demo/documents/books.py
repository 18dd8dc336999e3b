"""Reads books (.epub): the pages of their spine, in its order, as one document.

A book is one document, as it is where it comes as a .txt or .pdf: so no chunk has its own book for a
neighbor, and a book is held out whole. Source: EPUB 3.3, sections 4 (container) and 5 (package document).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from retro_demo.documents.archives import Parts
from retro_demo.documents.flow import Flow, as_title
from retro_demo.documents.html import read_page
from retro_demo.documents.languages import as_language
from retro_demo.documents.packages import Element, first_text, named, place_of, tree
from retro_demo.documents.rows import File, Row
from retro_demo.errors import UserError

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html")
LEFT_OUT = "Chapters that are missing in their book, or are no text, were left out: {names}."


def read_epub(file: File) -> Iterator[Row]:
    """The whole book as one document, with the title and language that its package says."""
    with file.unpacker.parts(file.stream, "an .epub file") as parts:
        yield _read(parts, file)


def _read(parts: Parts, file: File) -> Row:
    package = _package(parts, file.label)
    root = tree(parts, package, file.label)
    locked = _locked(parts, file.label)
    flow = Flow(file.label, file.limits.document_chars)
    heading = lang = ""
    missing = 0
    for place, kind in _spine(root, package):
        if place in locked:
            raise UserError(f"{file.label} is protected against copying (DRM): its text cannot be read.")
        if place in parts and (kind in PAGES or place.lower().endswith((".xhtml", ".html", ".htm"))):
            with parts.open(place) as stream:
                flow.lines(2)
                of_page = replace(file, stream=stream, label=f"{place} in {file.label}")
                page = read_page(of_page, flow, xhtml=True)
            heading, lang = heading or page.heading, lang or page.lang
        elif not kind.startswith("image/"):
            missing += 1
    if missing:
        file.notes.add(LEFT_OUT, f"{file.label} ({missing:,})")
    title, language = as_title(first_text(root, "title")), as_language(first_text(root, "language"))
    return Row(flow.whole(), title=title or heading, lang=language or lang)


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
