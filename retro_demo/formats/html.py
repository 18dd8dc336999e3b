"""Reads web pages (.html .xhtml): the text that a reader of the page would see.

What is asked of the page is its text alone: nothing that it refers to is opened or fetched, and no
entity that it declares is expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from retro_demo.errors import UserError
from retro_demo.formats.flow import Flow, as_title
from retro_demo.formats.languages import as_language
from retro_demo.formats.rows import File, Row
from retro_demo.formats.text import TextReader


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


HEADINGS = _names("h1 h2 h3 h4 h5 h6")
LISTS = _names("dl ol ul")
PARAGRAPHS = HEADINGS | _names(
    "address article aside blockquote center details fieldset figure footer form header hr main p pre "
    "section table"
)
LINES = _names("body caption dd div dt figcaption legend li optgroup summary tbody tfoot thead")
NO_TEXT = _names(
    "annotation annotation-xml audio button canvas datalist embed iframe input map noembed noframes noscript "
    "object rp rt script select style svg template textarea video"
)
"""Code, controls and what stands in for something else; the readings over words of Japanese too."""
VERBATIM = _names("listing plaintext pre xmp")
HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
LEFT_OUT = "Navigation and hidden parts of web pages were left out: {names}."

DECLARED = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{2,40})|<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""",
    re.IGNORECASE,
)
# What browsers take these names for (WHATWG, Encoding Standard); Python's codecs of these names are narrower.
WIDER = {
    "ascii": "cp1252",
    "us-ascii": "cp1252",
    "latin1": "cp1252",
    "latin-1": "cp1252",
    "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252",
    "iso-8859-9": "cp1254",
    "iso-8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "ks_c_5601": "cp949",
    "big5": "big5hkscs",
}
KNOWN = re.compile(
    r"cp(125\d|866|874|932|949)|windows-125\d|(iso-?8859-\d\d?)|koi8-[ru]|gb18030|big5(hkscs)?|euc-jp|iso-2022-jp"
    r"|macintosh|utf-8|utf8"
)


def read_html(file: File) -> Iterator[Row]:
    """The text of a page as one document; its title is that of the page, else its first heading."""
    flow = Flow(file.label, file.limits.document_chars)
    page = read_page(file, flow)
    yield Row(flow.whole(), title=page.title or page.heading, lang=page.lang)


def read_page(file: File, flow: Flow) -> Page:
    """Read the page of a file into `flow`; what it has beside its text comes back."""
    text = TextReader(file, declared_encoding(file.stream.peek()))
    page = Page(flow)
    # huge_tree: data as long as a picture stands in attributes; all bytes are counted, and no tree is made.
    parser = etree.HTMLParser(target=page, huge_tree=True)
    fed = False
    try:
        while block := text.read():
            parser.feed(block)
            fed = True
        if fed:  # it calls a page of nothing broken
            parser.close()
    except (etree.LxmlError, ValueError) as error:
        raise UserError(f"{file.label} is not a page that can be read ({error}).") from error
    text.note_bad_bytes()
    if page.left_out:
        file.notes.add(LEFT_OUT, file.label)
    return page


def declared_encoding(head: bytes) -> str:
    """The encoding that a page says it has, as a codec of Python; "" where it says none that is known."""
    found = DECLARED.search(head)
    name = (found[1] or found[2]).decode("ascii").lower() if found else ""
    name = WIDER.get(name, name)
    return name if KNOWN.fullmatch(name) else ""


class Page:
    """What the parser tells of a page, gathered: its text goes to a flow."""

    def __init__(self, flow: Flow) -> None:
        self.title = self.heading = self.lang = ""
        self.left_out = False
        """Navigation or hidden text was met."""
        self._flow = flow
        self._skipped = 0  # how many open elements deep in what is left out
        self._told = False  # what is left out here is text, if not of the document
        self._verbatim = self._lists = 0  # open elements of that kind
        self._titles: list[str] | None = None  # the pieces of an open <title>
        self._heading_from = -1

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._skipped:
            self._skipped += 1
            return
        navigation = tag == "nav" or bool(attributes) and _is_aside(attributes)
        if navigation or tag in NO_TEXT:
            self._skipped, self._told = 1, navigation
            return
        if tag == "br":
            self._flow.line_end()
        elif tag in ("td", "th"):
            self._flow.cell()
        elif tag == "tr":
            self._flow.row()
        elif tag == "title":
            self._titles = []
        elif tag == "html":
            self.lang = as_language(attributes.get("lang") or attributes.get("xml:lang") or "")
        else:
            self._edge(tag)
            self._lists += tag in LISTS
            self._verbatim += tag in VERBATIM
            if tag in HEADINGS and not self.heading:
                self._heading_from = self._flow.mark()

    def end(self, tag: str) -> None:
        if self._skipped:
            self._skipped -= 1
        elif tag == "tr":
            self._flow.row()
        elif tag == "title":
            self.title = self.title or as_title("".join(self._titles or []))
            self._titles = None
        else:
            self._lists -= tag in LISTS
            self._verbatim -= tag in VERBATIM
            if tag in HEADINGS and not self.heading:
                self.heading = self._flow.since(self._heading_from)
            self._edge(tag)

    def data(self, data: str) -> None:
        if self._skipped:
            self.left_out |= self._told and not data.isspace()
        elif self._titles is not None:
            self._titles.append(data)
        elif self._verbatim:
            self._flow.verbatim(data)
        else:
            self._flow.text(data.replace("\xad", ""))  # a place where a word may be cut

    def close(self) -> None:
        """The parser asks for it."""

    def _edge(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self._flow.lines(2)
        elif tag in LISTS:
            self._flow.lines(1 if self._lists else 2)  # a list within a list is part of it
        elif tag in LINES:
            self._flow.lines(1)


def _is_aside(attributes: Mapping[str, str]) -> bool:
    return (
        attributes.get("role") == "navigation"
        or "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or HIDDEN.search(attributes.get("style", "")) is not None
    )
