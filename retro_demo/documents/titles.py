"""The title that a text gives itself: the first heading of Markdown, reStructuredText and their like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from retro_demo.documents.flow import as_title
from retro_demo.documents.rows import File, Part, Reader, Row

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


def titled(read: Reader, title_of: Callable[[str], str]) -> Reader:
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
