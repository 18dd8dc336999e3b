"""What is done to the text of a PDF's pages: letters as searches spell them, whole words, doubts said.

A PDF says where glyphs are drawn, not what words there are. It knows nothing of PDFium: pages are strings in
which HYPHEN stands for a hyphen at a line end.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

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
