"""Web pages -> text, and what all marked-up kinds share: running text and titles.

A web page (.html .xhtml) gives the text that a reader of the page would see. Nothing that it refers to is
opened or fetched, and no entity that it declares is expanded. CDATA sections are text in XHTML, which .xhtml
files and the pages of books are (XML 1.0, section 2.7); in HTML they are comments (WHATWG HTML, section
13.2.5.42).

`Flow` puts running text together piece by piece: it knows where lines, paragraphs and table cells end, and no
file format. The title of a text is its first heading, in Markdown, reStructuredText and similar kinds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from io import StringIO

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from retro_demo.documents.encodings import browsers_codec
from retro_demo.documents.rows import File, Part, Row, RowReader, too_long
from retro_demo.documents.text import TextReader, as_language
from retro_demo.errors import UserError

BLANKS = re.compile("[ \t\n\r\f\xa0]+")  # what a browser shows as one blank; the wide blanks of CJK are text
BORDER = "| "  # before a cell that is not the first of its row
TITLE_CHARS = 200


class Flow:
    """The text of one document. Breaks come into it only between two pieces of text."""

    def __init__(self, label: str, limit: int) -> None:
        """`label` names the file in errors; more than `limit` characters are refused."""
        self._label = label
        self._limit = limit
        self._written = StringIO()  # millions of short pieces would fill the memory
        self._num_chars = 0
        self._break = 0  # line ends before the next piece
        self._blank = False
        self._cells = 0  # that began in this row
        self._borders = 0  # between the last piece and the next
        self._in_row = False  # there is text in this row

    def text(self, data: str) -> None:
        """Add text in which any run of blanks and line ends is one blank."""
        data = BLANKS.sub(" ", data)
        bare = data.strip(" ")
        self._blank |= data.startswith(" ")
        if bare:
            self._put(bare)
            self._blank = data.endswith(" ")

    def verbatim(self, data: str) -> None:
        """Add text whose blanks and line ends count."""
        bare = data.strip("\n")
        if not bare:
            self.lines(len(data))
            return
        self.lines(len(data) - len(data.lstrip("\n")))
        self._put(bare)
        self.lines(len(data) - len(data.rstrip("\n")))

    def lines(self, count: int) -> None:
        """What follows stands at least `count` lines below; 2 begins a paragraph."""
        if not self._borders:  # no cell begins with line ends
            self._break = max(self._break, count)

    def line_end(self) -> None:
        """One line end more, as <br> is; two of them begin a paragraph."""
        if not self._borders:
            self._break = min(self._break + 1, 2)

    def row(self) -> None:
        """A row of a table begins or ends."""
        self._break = max(self._break, 1)
        self._cells = self._borders = 0
        self._in_row = False

    def cell(self) -> None:
        """A cell of a row begins."""
        self._cells += 1
        if self._cells > 1:
            self._borders += 1
            if self._in_row:
                self._break = 0

    def mark(self) -> int:
        """A place in the text, for `since`."""
        return self._num_chars

    def since(self, mark: int) -> str:
        """The text from a place on as a title: on one line, and not a whole page."""
        return as_title(self.whole()[mark:])

    def whole(self) -> str:
        return self._written.getvalue()

    def _put(self, piece: str) -> None:
        between = ""
        if self._num_chars and self._break:
            between = "\n" * self._break
        elif self._num_chars and (self._blank or self._borders):
            between = " "
        between += BORDER * self._borders
        self._num_chars += len(between) + len(piece)
        if self._num_chars > self._limit:
            raise too_long(self._label, self._limit, "several files")
        self._written.write(between)
        self._written.write(piece)
        self._break, self._blank, self._borders, self._in_row = 0, False, 0, self._cells > 0


def as_title(text: str) -> str:
    """Text on one line, cut where it is too long for a title."""
    text = BLANKS.sub(" ", text[: 8 * TITLE_CHARS]).strip()
    return text if len(text) <= TITLE_CHARS else f"{text[: TITLE_CHARS - 3].rstrip()}..."


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
XHTML_MARK = re.compile(r"<!--|<!\[CDATA\[")
ENDS = {"<!--": "-->", "<![CDATA[": "]]>"}
LONGEST_MARK = max(map(len, ENDS))


def read_html(file: File) -> Iterator[Row]:
    """The text of a page as one document; its title is that of the page, else its first heading."""
    yield _row(file, xhtml=False)


def read_xhtml(file: File) -> Iterator[Row]:
    """As `read_html`, with the text of CDATA sections."""
    yield _row(file, xhtml=True)


def _row(file: File, *, xhtml: bool) -> Row:
    flow = Flow(file.label, file.limits.document_chars)
    page = read_page(file, flow, xhtml=xhtml)
    return Row(flow.whole(), title=page.title or page.heading, lang=page.lang)


def read_page(file: File, flow: Flow, *, xhtml: bool) -> WebPage:
    """Read the page of a file into `flow`; what it has beside its text comes back."""
    text = TextReader(file, declared_encoding(file.stream.peek()))
    page = WebPage(flow)
    # huge_tree: data as long as a picture stands in attributes; all bytes are counted, and no tree is made.
    parser = etree.HTMLParser(target=page, huge_tree=True)
    fed = False
    try:
        blocks = iter(text.read, "")
        for block in without_cdata(blocks) if xhtml else blocks:
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
    return browsers_codec((found[1] or found[2]).decode("ascii")) if found else ""


def without_cdata(blocks: Iterable[str]) -> Iterator[str]:
    """The blocks of XHTML, each CDATA section in them as escaped text, which a parser of HTML reads as well.

    Comments stay as they are. A section that is not closed is text up to the end, rather than lost.
    """
    rest = end = ""  # end: what closes the open comment or section
    for block in blocks:
        rest += block
        while rest:
            found = rest.find(end) if end else -1
            mark = None if end else XHTML_MARK.search(rest)
            if end and found >= 0:
                yield _inside(rest[:found], end) + ("" if end == "]]>" else end)
                rest, end = rest[found + len(end) :], ""
            elif mark:
                yield rest[: mark.start()] + ("" if mark[0] == "<![CDATA[" else mark[0])
                rest, end = rest[mark.end() :], ENDS[mark[0]]
            else:  # a mark may be cut in two by the end of the block
                kept = len(rest) - LONGEST_MARK + 1
                if kept > 0:
                    yield _inside(rest[:kept], end)
                    rest = rest[kept:]
                break
    yield _inside(rest, end)


def _inside(text: str, end: str) -> str:
    return html.escape(text, quote=False) if end == "]]>" else text


class WebPage:
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


HEAD_CHARS = 1 << 16  # a heading further down is not that of the text
LINE_CHARS = 500  # nor is a longer line a heading
FENCE = re.compile(r" {0,3}(```+|~~~+)")
ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
FRONT_TITLE = re.compile(r"title:[ \t]*(.+)$")
IMAGE = re.compile(r"!\[[^\]\[]*\](?:\([^()]*\)|\[[^\]\[]*\])")
LINK = re.compile(r"\[([^\]\[]*)\](?:\([^()]*\)|\[[^\]\[]*\])")
EMPHASIS = re.compile(r"(\*\*?\*?|(?<!\w)__?(?=\S)|(?<=\S)__?(?!\w)|`+)")
UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1+$")
ASCIIDOC = re.compile(r"^=[ \t]+(.+)$", re.MULTILINE)
ORG = re.compile(r"^(?:#\+title:[ \t]*|\*+[ \t]+)(.+)$", re.MULTILINE | re.IGNORECASE)
LATEX = re.compile(r"^[^%\n]*\\(?:title|chapter\*?|section\*?)\{([^{}]+)\}", re.MULTILINE)


def titled(read: RowReader, title_of: Callable[[str], str]) -> RowReader:
    """`read`, whose documents get the title that `title_of` finds in the head of their text, or none."""

    def read_titled(file: File) -> Iterator[Row | Part]:
        for row in read(file):
            yield (
                replace(row, title=as_title(title_of(row.text[:HEAD_CHARS]))) if isinstance(row, Row) else row
            )

    return read_titled


def markdown_title(text: str) -> str:
    """The `title:` of the front matter, else the first heading with words in it; "" if there is none."""
    lines = text.splitlines()
    start = 0
    if lines and lines[0].rstrip() == "---":
        ends = (number for number, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "..."))
        start = next(ends, 0)
        for line in lines[1:start]:
            if found := FRONT_TITLE.match(line):
                return found[1].strip().strip("\"'")
        start += start > 0
    fence, above = "", ""
    for line in (line[:LINE_CHARS] for line in lines[start:]):
        if found := FENCE.match(line):
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence):
                fence = ""
            above = ""
        elif not fence:
            heading = found[1] if (found := ATX.match(line)) else above if SETEXT.match(line) else ""
            if title := _without_marks(heading):
                return title
            above = line.strip() if not line.startswith("    ") else ""
    return ""


def _without_marks(heading: str) -> str:
    """A heading of Markdown without its images, links and emphasis."""
    return EMPHASIS.sub("", LINK.sub(r"\1", IMAGE.sub("", heading))).strip()


def rst_title(text: str) -> str:
    """The first line with a line of punctuation below it that is as long; "" if there is none."""
    above = ""
    for line in map(str.rstrip, text.splitlines()):
        words = above.strip()
        if words and len(line) >= max(len(words), 3) and UNDERLINE.match(line) and not UNDERLINE.match(words):
            return words
        above = line
    return ""


def found_by(pattern: re.Pattern[str]) -> Callable[[str], str]:
    """Finds what the one group of a pattern finds first, or ""."""
    return lambda text: found[1] if (found := pattern.search(text)) else ""
