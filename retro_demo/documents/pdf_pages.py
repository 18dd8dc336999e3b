"""The process that reads a PDF's pages: PDFium, columns, broken words, doubtful pages.

`python -m retro_demo.documents.pdf_pages` gets the bytes of a file on its standard input and answers with one
JSON object a line: first the number of pages, then each page, at the end the pages whose content is damaged.
PDFium is written in C++: a hostile file can crash it, or make it take any amount of memory or time. So
documents/pdf.py bounds this process, and this module imports nothing that is slow to start.

A PDF says where glyphs are drawn, not which words there are. Letters are brought to the form in which people
search for them, words broken at line ends are joined (HYPHEN stands for a hyphen there), and a page whose
text is doubtful says so. Text may be drawn row by row across two columns, half a sentence of one after half
a sentence of the other: columns are read one after the other. Rows of a table are drawn in the same way and
are right as they are; they differ from prose in that they are short.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import re
import signal
import statistics
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

HYPHEN = "\x02"
"""Stands in a page's text for a hyphen at a line end, of which only the whole document tells what it is."""

LETTER = r"[^\W\d_]"
ALPHABETIC = "A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff\u1e00-\u1fff"
CONTROL = "\0\x01\x03-\x08\x0b-\x1f\x7f-\x9f"

# Radicals and compatibility forms of Chinese characters, ligatures, presentation forms of Armenian, Hebrew
# and Arabic, letters of formulas.
FORMS = re.compile("[\u2f00-\u2fd5\uf900-\ufaff\ufb00-\ufdff\ufe70-\ufefc\U0001d400-\U0001d7ff]+")
BLANKS = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f]")
INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\ufffe\uffff]")
# TeX's older fonts keep their ligatures among the control characters, and tell no Unicode of them.
TEX_LIGATURES = dict(
    zip("\x0b\x0c\r\x0e\x0f\x1b\x1c\x1d\x1e\x1f", ["ff", "fi", "fl", "ffi", "ffl"] * 2, strict=True)
)
TEX_LIGATURE = re.compile(f"[\x0b-\x0f\x1b-\x1f](?=[a-z])|[\x0b\x1b](?<={LETTER}.)(?![^\\W_])")
# What is rare stands first in a pattern and what is before it behind: that is several times as fast.
# A hyphen at a line end that PDFium did not take for one: another character, or a line far away.
LINE_END = re.compile(f"[\u2010\u00ad-](?<={LETTER}.)\n(?=[a-z\u00df-\u00f6\u00f8-\u00ff\u0430-\u045f])")
LONGEST = 80  # letters of half a word
TAIL = re.compile(f"{LETTER}{{1,{LONGEST}}}$")
HEAD = re.compile(f"\\A[^\\W_]{{1,{LONGEST}}}")

# within a word, or at its end
UNREADABLE = re.compile(f"[\ue000-\uf8ff\ufffd](?<={LETTER}.)|[{CONTROL}](?<={LETTER}{{2}}.)(?={LETTER})")
# Names of commands and fields are long, and of any letters.
WORD = re.compile(rf"[{ALPHABETIC}](?<![\\\w@.:/-].)[{ALPHABETIC}]{{3,}}")
VOWELS = frozenset("aeiouy" + "аеиоуыэюяіє" + "αεηιουω")
GLUED_WORD = 20  # letters
MOST_RANGES = 8


def spelled(page: str) -> str:
    """The text of a page in the letters that searches spell; control characters that say nothing go."""
    page = TEX_LIGATURE.sub(lambda found: TEX_LIGATURES[found[0]], page)
    page = FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), page)
    page = LINE_END.sub(HYPHEN, page)
    page = INVISIBLE.sub("", BLANKS.sub(" ", page))
    return unicodedata.normalize("NFC", re.sub(f"[{CONTROL}]", "", page)).strip()


def doubt_of_page(page: str, unmapped: float, numbers: float = 0.0) -> str:
    """ "garbled" or "glued" where the text of a page is likely to be that, else "".

    unmapped: the share of its characters for which the file names no Unicode, so that they are guesses;
    numbers: of those that are more than a byte, which are numbers of glyphs. The bounds hold for 29,944 pages
    of Debian's manuals in 20 languages (docs/formats.md): none that is right is taken for bad.
    """
    page = TEX_LIGATURE.sub(lambda found: TEX_LIGATURES[found[0]], page)
    words = WORD.findall(page)
    letters = "".join(words)
    unreadable = len(UNREADABLE.findall(page))
    if unreadable >= 3 and unreadable >= len(words) / 100:
        return "garbled"
    strange = len(re.findall(f"[{CONTROL}\u0100-\uffff]", page))
    if numbers > 0.08 or (unmapped > 0.3 and strange > max(50, 0.3 * len(page))):
        return "garbled"  # a guess is good for the letters of ASCII alone
    if len(letters) < 200:
        return ""
    if sum("\u00c0" <= letter <= "\u00ff" for letter in letters) > 0.3 * len(letters):
        return "garbled"  # another alphabet, read as that of Western Europe
    vowels = sum(letter in VOWELS for letter in unicodedata.normalize("NFD", letters.casefold()))
    few, least = (20, 0.28) if unmapped > 0.3 else (100, 0.25)
    if len(set(words)) >= few and vowels < least * len(letters):
        return "garbled"
    small = [word for word in words if word.islower()]
    long = sum(len(word) for word in small if len(word) >= GLUED_WORD and len(set(word)) > 6)
    return "glued" if long > 0.5 * len("".join(small)) else ""


def join_broken_words(text: str) -> str:
    """`text` with each word that a line end broke in one piece, and compounds with their hyphens.

    Which is which the rest of the document tells; where it is silent a hyphen stays before a capital or a
    digit, and between two words of which the first begins other compounds.
    """
    pieces = text.split(HYPHEN)
    if len(pieces) == 1:
        return text
    # the halves are no words of the document
    parts = [pieces[0], *(HEAD.sub("", piece, count=1) for piece in pieces[1:])]
    ends = [TAIL.search(part[-LONGEST:]) for part in parts[:-1]]
    whole = [part[: -len(end[0])] if end else part for part, end in zip(parts, [*ends, None], strict=True)]
    found = "\n".join(whole).casefold()
    words = Counter(re.findall(f"{LETTER}+", found))
    compounds = Counter(re.findall(rf"(?<!{LETTER})(?=({LETTER}+-[^\W_]+))", found))
    beginnings = {compound.partition("-")[0] for compound in compounds}

    def hyphen(one: str, other: str) -> str:
        small, small_other = one.casefold(), other.casefold()
        joined, hyphenated = words[small + small_other], compounds[f"{small}-{small_other}"]
        if joined == hyphenated:
            capital = other[0].isdigit() or (other[0].isupper() and not (one + other).isupper())
            stands = small in beginnings and words[small] and words[small_other]
            return "-" if capital or stands else ""
        return "-" if hyphenated > joined else ""

    made, last = [pieces[0]], pieces[0][-LONGEST:]
    for piece in pieces[1:]:
        one, other = TAIL.search(last), HEAD.match(piece)
        made += [hyphen(one[0], other[0]) if one and other else "-", piece]
        last = (last + "".join(made[-2:]))[-LONGEST:]
    return "".join(made)


def ranges(numbers: Iterable[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"; of many the first."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    told = [f"{first}-{last}" if last > first else str(first) for first, last in parts[:MOST_RANGES]]
    return ", ".join(told + ["..."] * (len(parts) > MOST_RANGES))


Box = tuple[float, float, float, float]  # left, bottom, right, top
Line = list[tuple[str, float]]  # characters and where they begin

LEAST_GAP = 8.0  # points between two columns
LEAST_ROWS = 8
MOST_FULL = 0.4  # of the rows, that run over both columns, as a heading does
LEAST_CHARS = 20  # of a row in a column, on the mean
LEAST_WORDS = 3.5


def gutter(boxes: Sequence[Box]) -> float | None:
    """Where the gap between two columns may be, by the pieces of text of a page in the order of drawing."""
    jumps = []
    for (_, low, end, high), (start, bottom, _, top) in zip(boxes, boxes[1:], strict=False):
        level = min(high, top) - max(low, bottom) > min(high - low, top - bottom) / 2
        if level and start - end > LEAST_GAP:
            jumps.append((end, start))
    if len(jumps) < LEAST_ROWS:
        return None
    # what begins a second column begins at one place; a gap within a line is anywhere
    begin = statistics.mode(round(start) for _, start in jumps)
    ends = [end for end, start in jumps if abs(start - begin) < LEAST_GAP]
    return begin - LEAST_GAP / 2 if len(ends) >= LEAST_ROWS else None


def by_columns(lines: Sequence[Line], middle: float) -> list[str] | None:
    """The lines of a page, those to the left of `middle` first; None where these are no columns of prose."""
    rows: list[tuple[str, str] | None] = []
    for line in lines:
        left = "".join(char for char, x in line if x < middle)
        right = "".join(char for char, x in line if x >= middle)
        last = max((x for char, x in line if x < middle and char.strip()), default=0.0)
        first = min((x for char, x in line if x >= middle and char.strip()), default=middle + LEAST_GAP)
        across = bool(left.strip() and right.strip()) and first - last < LEAST_GAP
        rows.append(None if across else (left.strip(), right.strip()))
    two = [row for row in rows if row and all(row)]
    full = rows.count(None)
    if len(two) < LEAST_ROWS or full > MOST_FULL * (full + len(two)):
        return None
    for side in zip(*two, strict=True):
        chars = statistics.mean(sum(char.isalpha() for char in cell) for cell in side)
        if chars < LEAST_CHARS or statistics.mean(len(cell.split()) for cell in side) < LEAST_WORDS:
            return None
    told: list[str] = []
    one: list[str] = []
    other: list[str] = []
    for line, row in zip(lines, rows, strict=True):
        if row:
            one.append(row[0])
            other.append(row[1])
        else:  # it ends the columns above it
            told += [*one, *other, "".join(char for char, _ in line).strip()]
            one, other = [], []
    return [line for line in [*told, *one, *other] if line]


ACCENTS = {
    ord(drawn): combining
    for drawn, combining in zip("`^~¨¯´¸ˆˇ˘˙˚˛˜˝", "\u0300\u0302\u0303\u0308\u0304\u0301\u0327"
                                "\u0302\u030c\u0306\u0307\u030a\u0328\u0303\u030b", strict=True)
}  # fmt: skip
"""Accents that fonts have as characters of their own -> the same as a part of a letter."""

FLATE = ("/FlateDecode", ["/FlateDecode"])
STREAM = re.compile(rb"/FlateDecode[^<>]{0,500}(?:<<[^<>]{0,500}>>[^<>]{0,500}){0,4}>>\s{0,9}stream\r?\n")
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7af\uf900-\ufaff]"
)
GLYPHWISE = 5  # characters for each object of a page, below which its letters are placed one by one
WORD_GAP = 0.08  # of the font's size; a narrow space before a kerned letter is 0.09, other kerning below 0.05
SAMPLE = 200  # characters of a page that are asked whether the file maps them to Unicode
DRAWN_TEXT = 50  # objects of a page that has no text, from which it is more than a line or an ornament
INFLATED = 1 << 30  # bytes to unpack in search of damage, beyond which the search is given up


def read_pages(data: bytes, most_pages: int) -> Iterator[dict[str, Any]]:
    """{"pages"} or {"refused"} first; a dict for each page; {"damaged"} at the end, numbers from 1.

    Of a page: its text, in which U+0002 stands for a hyphen at a line end; where that is empty whether there
    is anything to see; whether it failed; the share of its characters that the file maps to no Unicode, and
    of those that are numbers of more than a byte; the values of its form, and what was typed onto it; how
    many comments there are.
    """
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        reasons = {pdfium.FPDF_ERR_PASSWORD: "password", pdfium.FPDF_ERR_SECURITY: "encryption"}
        yield {"refused": reasons.get(error.err_code or 0, "format")}
        return
    form = pdf.get_formtype()
    if form != pdfium.FORMTYPE_NONE:
        with contextlib.suppress(pypdfium2.PdfiumError):  # what is drawn can be read all the same
            pdf.init_forms()
    if len(pdf) > most_pages:
        yield {"refused": "pages", "pages": len(pdf)}
        return
    yield {"pages": len(pdf), "xfa": form in (pdfium.FORMTYPE_XFA_FULL, pdfium.FORMTYPE_XFA_FOREGROUND)}
    told: set[tuple[str, str]] = set()
    for number in range(len(pdf)):
        try:
            page = pdf[number]
            text = page.get_textpage()
        except pypdfium2.PdfiumError:
            yield {"failed": True}
            continue
        values = _form_values(pdf, page, told) if pdf.formenv else []
        written, num_comments = _annotations(pdf, page)
        yield _read_page(page, text) | {"form": values + written, "comments": num_comments}
        text.close()
        page.close()
    yield {"damaged": damaged_pages(data)}


def _read_page(page: pypdfium2.PdfPage, text: pypdfium2.PdfTextPage) -> dict[str, Any]:
    code_of, handle = pdfium.FPDFText_GetUnicode, text.raw  # looked up once: this is most of the work
    codes = [code_of(handle, i) for i in range(text.count_chars())]
    num_objects = pdfium.FPDFPage_CountObjects(page)
    if not any(code > 32 for code in codes):
        return {"text": "", "seen": _is_seen(page, num_objects)}
    chars = [chr(code) if code else "" for code in codes]
    for i, code in enumerate(codes):
        if code == 2 and pdfium.FPDFText_IsHyphen(text, i) != 1:
            chars[i] = ""
        elif code in ACCENTS:
            _put_on_letter(text, chars, i)
    if num_objects * GLYPHWISE > len(codes):
        _part_words(text, codes, chars)
    sample = range(0, len(codes), 1 + len(codes) // SAMPLE)
    unmapped = [codes[i] for i in sample if pdfium.FPDFText_HasUnicodeMapError(handle, i) == 1]
    joined = _in_columns(text, chars) or "".join(chars).replace("\r\n", "\n")
    whole = joined.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    numbers = sum(code > 0xFF for code in unmapped)
    return {"text": whole, "unmapped": len(unmapped) / len(sample), "numbers": numbers / len(sample)}


def _in_columns(text: pypdfium2.PdfTextPage, chars: list[str]) -> str:
    """The text of a page one column after the other, where it draws two of them row by row; else ""."""
    boxes = []
    for i in range(text.count_rects()):
        left, bottom, right, top = text.get_rect(i)
        boxes.append((left, bottom, right, top))
    middle = gutter(boxes)
    if middle is None:
        return ""
    x, y = ctypes.c_double(), ctypes.c_double()
    lines: list[Line] = [[]]
    for i, char in enumerate(chars):
        if char == "\n":
            lines.append([])
        elif char != "\r":
            pdfium.FPDFText_GetCharOrigin(text, i, x, y)
            before = lines[-1][-1][1] if lines[-1] else x.value
            lines[-1].append(("-" if char == HYPHEN else char, before if char == " " else x.value))
            if char == HYPHEN:
                lines.append([])
    return "\n".join(by_columns(lines, middle) or [])


def _is_seen(page: pypdfium2.PdfPage, num_objects: int) -> bool:
    """Whether a page without text shows an image, or as many lines and curves as drawn letters take."""
    kinds = (pdfium.FPDFPageObj_GetType(pdfium.FPDFPage_GetObject(page, i)) for i in range(num_objects))
    return num_objects >= DRAWN_TEXT or bool(
        {pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_FORM} & set(kinds)
    )


def _put_on_letter(text: pypdfium2.PdfTextPage, chars: list[str], accent: int) -> None:
    """Make one letter of an accent and the letter that it is drawn over, as older TeX fonts need them."""
    left, right = _sides(text, accent)
    after = next((i for i in range(accent + 1, min(accent + 4, len(chars))) if chars[i].strip()), None)
    before = accent - 1 if accent and chars[accent - 1].strip() else None
    for letter in (after, before):
        if letter is None:
            continue
        start, end = _sides(text, letter)
        plain = {"\u0131": "i", "\u0237": "j"}.get(chars[letter], chars[letter])
        made = unicodedata.normalize("NFC", plain + ACCENTS[ord(chars[accent])])
        if start < (left + right) / 2 < end and len(made) == 1 and made.isalpha():
            chars[letter] = made
            for i in range(min(accent, letter + 1), max(accent + 1, letter)):
                chars[i] = ""  # the accent, and blanks that were put between the two
            return


def _sides(text: pypdfium2.PdfTextPage, char: int) -> tuple[float, float]:
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    pdfium.FPDFText_GetCharBox(text, char, left, right, bottom, top)
    return left.value, right.value


def _part_words(text: pypdfium2.PdfTextPage, codes: list[int], chars: list[str]) -> None:
    """Put the spaces back that PDFium leaves out where each letter is placed on its own (Apache FOP does).

    It takes a gap for a space from half a narrow letter on, and a narrow space is less.
    """
    box = pdfium.FS_RECTF()
    gaps: list[tuple[int, float]] = []
    end = base = 0.0
    for i, code in enumerate(codes):
        visible = code > 32 and not SPACELESS.match(chr(code))
        if visible:
            pdfium.FPDFText_GetLooseCharBox(text, i, box)
            size = pdfium.FPDFText_GetFontSize(text, i) or 1.0
            if i and codes[i - 1] > 32 and chars[i] and chars[i - 1] and abs(box.bottom - base) < size / 10:
                gaps.append((i, (box.left - end) / size))
            end, base = box.right, box.bottom
        else:
            base = float("inf")
    usual = max(statistics.median(gap for _, gap in gaps), 0.0) if gaps else 0.0
    for i, gap in gaps:
        if gap > usual + WORD_GAP:
            chars[i] = " " + chars[i]


def _form_values(
    pdf: pypdfium2.PdfDocument, page: pypdfium2.PdfPage, told: set[tuple[str, str]]
) -> list[str]:
    """What is filled in on a page, as "label: value"; a field with several places is told once."""
    kinds = (pdfium.FPDF_FORMFIELD_TEXTFIELD, pdfium.FPDF_FORMFIELD_COMBOBOX, pdfium.FPDF_FORMFIELD_LISTBOX)
    boxes = (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON)
    values = []
    for i in range(pdfium.FPDFPage_GetAnnotCount(page)):
        field = pdfium.FPDFPage_GetAnnot(page, i)
        kind = pdfium.FPDFAnnot_GetFormFieldType(pdf.formenv, field) if field else -1
        if kind in kinds or (kind in boxes and pdfium.FPDFAnnot_IsChecked(pdf.formenv, field)):
            name, label, value = (
                _string(get, pdf, field)
                for get in (
                    pdfium.FPDFAnnot_GetFormFieldName,
                    pdfium.FPDFAnnot_GetFormFieldAlternateName,
                    pdfium.FPDFAnnot_GetFormFieldValue,
                )
            )
            if value.strip() and (name, value) not in told:
                told.add((name, value))
                values.append(f"{label.strip() or name.rpartition('.')[2]}: {value.strip()}")
        if field:
            pdfium.FPDFPage_CloseAnnot(field)
    return values


COMMENTS = (
    pdfium.FPDF_ANNOT_TEXT,
    pdfium.FPDF_ANNOT_LINE,
    pdfium.FPDF_ANNOT_SQUARE,
    pdfium.FPDF_ANNOT_CIRCLE,
    pdfium.FPDF_ANNOT_POLYGON,
    pdfium.FPDF_ANNOT_POLYLINE,
    pdfium.FPDF_ANNOT_HIGHLIGHT,
    pdfium.FPDF_ANNOT_UNDERLINE,
    pdfium.FPDF_ANNOT_SQUIGGLY,
    pdfium.FPDF_ANNOT_STRIKEOUT,
    pdfium.FPDF_ANNOT_STAMP,
    pdfium.FPDF_ANNOT_CARET,
    pdfium.FPDF_ANNOT_INK,
)
"""Kinds of annotation whose contents stand beside the page, as a reader's notes."""


def _annotations(pdf: pypdfium2.PdfDocument, page: pypdfium2.PdfPage) -> tuple[list[str], int]:
    """The texts that were typed onto a page, which it shows (FreeText), and the number of its comments."""

    def contents(_form: Any, annotation: Any, buffer: Any, length: int) -> int:
        return pdfium.FPDFAnnot_GetStringValue(annotation, b"Contents", buffer, length)

    typed, num_comments = [], 0
    for i in range(pdfium.FPDFPage_GetAnnotCount(page)):
        if not (annotation := pdfium.FPDFPage_GetAnnot(page, i)):
            continue
        kind = pdfium.FPDFAnnot_GetSubtype(annotation)
        hidden = pdfium.FPDFAnnot_GetFlags(annotation) & pdfium.FPDF_ANNOT_FLAG_HIDDEN
        if kind in (pdfium.FPDF_ANNOT_FREETEXT, *COMMENTS) and not hidden:
            text = _string(contents, pdf, annotation).strip()
            if text and kind == pdfium.FPDF_ANNOT_FREETEXT:
                typed.append(text)
            num_comments += bool(text) and kind in COMMENTS
        pdfium.FPDFPage_CloseAnnot(annotation)
    return typed, num_comments


def _string(get: Any, pdf: pypdfium2.PdfDocument, field: Any) -> str:
    length = get(pdf.formenv, field, None, 0)
    buffer = ctypes.create_string_buffer(length)
    get(pdf.formenv, field, ctypes.cast(buffer, ctypes.POINTER(pdfium.FPDF_WCHAR)), length)
    return buffer.raw.decode("utf-16-le", "replace").rstrip("\0")


def damaged_pages(data: bytes) -> list[int]:
    """The pages, from 1, whose content does not unpack whole: PDFium shows what comes before, or nothing.

    It says nothing of that, so pypdf, which gives the raw content, is asked where anything is damaged at all.
    What is encrypted, or too damaged for it, is not looked at.
    """
    if not _has_damage(data):
        return []
    from pypdf import PdfReader
    from pypdf.generic import ArrayObject, StreamObject

    damaged = []
    with contextlib.suppress(Exception):
        # what it raises on damaged files goes well beyond its own errors, and this is a second opinion
        for number, page in enumerate(PdfReader(io.BytesIO(data)).pages, start=1):
            content = page["/Contents"].get_object() if "/Contents" in page else []
            parts = [part.get_object() for part in content] if isinstance(content, ArrayObject) else [content]
            streams = [part for part in parts if isinstance(part, StreamObject)]
            packed = [part._data for part in streams if part.get("/Filter") in FLATE]
            if not all(map(_unpacks, packed)):
                damaged.append(number)
    return damaged


def _has_damage(data: bytes) -> bool:
    """Whether any packed stream of the file does not unpack; False for encrypted files."""
    if b"/Encrypt" in data:
        return False
    left = INFLATED
    for start in STREAM.finditer(data):
        unpacker = zlib.decompressobj()
        packed, at = b"", start.end()
        try:
            while not unpacker.eof and at < len(data) and left > 0:
                packed = unpacker.unconsumed_tail or data[at : at + 65536]
                at += 0 if unpacker.unconsumed_tail else len(packed)
                left -= len(unpacker.decompress(packed, 1 << 20))
        except zlib.error:
            return True
    return False


def _unpacks(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        while packed and not unpacker.eof:
            unpacker.decompress(packed, 1 << 20)
            packed = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return True


def main() -> int:
    """`pdf_pages MOST_PAGES MEMORY`: bytes of a PDF in, a JSON object a line out."""
    most_pages, memory = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)  # what matters to the user is said elsewhere
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for who started this, and ends it
    with contextlib.suppress(ImportError, ValueError):  # Windows has no such limits; lower ones may hold
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        for record in read_pages(sys.stdin.buffer.read(), most_pages):
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()
    except MemoryError:
        os.abort()  # as PDFium does
    except BrokenPipeError:
        os._exit(0)  # whoever asked is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
