"""Stretches of a text that stand word for word anywhere in a whole corpus, held-out documents included.

As in OLMoTrace (Liu et al. 2025): the longest matches are found by a suffix array, they begin and end with
whole words, and what is short, frequent or crowded is left out. Nothing is normalized: word for word means
the same characters, blanks and marks included. All offsets count characters (code points) of a text.

Both texts are cut into units: a word with its combining marks, a number such as 1,000.5, a single character
of a script without spaces between words, or a single other character. So a match of units is one of whole
words, on both sides.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.retrieval.suffix_array import SuffixArray
from retro_demo.settings import OriginsConfig

REACH = 4096  # units: a longer match is told in pieces
BLOCK = 2_000_000  # units that are sorted at a time, which takes about 60 bytes each
MOST_CHARACTERS = 50_000  # of a text that is looked for
END = 0  # the unit behind each document
UNKNOWN = 2**32 - 1  # a unit that no document has
WORDS = ("L", "N", "So")  # categories of characters that make a unit a word: letters, numbers, emoji
ALONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"  # scripts without spaces, as in WORD


@lru_cache(maxsize=1)
def _unit() -> re.Pattern[str]:
    """The pattern of one unit; it matches at every place of a text.

    A character and what extends it (marks, joiners, tones of skin) stay together, as do pairs that are a
    flag, and a word with an apostrophe inside (after Unicode Standard Annex 29).
    """
    marks = (chr(code) for code in range(0x300, sys.maxunicode + 1))
    starts = [one for one in marks if unicodedata.category(one)[0] == "M"]
    extend = f"[{''.join(starts)}\u200c\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
    extends = f"(?:(?=[^\0-\u02ff]){extend})*"  # the look ahead passes most characters quickly
    flag = "[\U0001f1e6-\U0001f1ff]"
    letters = rf"[^\W{ALONE}]+{extends}"
    word = rf"{letters}(?:{letters}|['\u2019](?=[^\W{ALONE}])|(?<=\d)[.,](?=\d))*"
    return re.compile(f"{word}|{flag}{flag}|.{extends}(?:(?<=\u200d)\\W{extends})*", re.DOTALL)


def units_of(text: str) -> list[str]:
    """The units of a text; joined they are the text."""
    return _unit().findall(text)


@lru_cache(maxsize=100_000)
def is_word(unit: str) -> bool:
    """Whether a unit counts as a word, rather than as a blank, a sign or punctuation."""
    return any(unicodedata.category(one).startswith(WORDS) for one in unit)


@dataclass(frozen=True)
class Place:
    """Characters start to end - 1 of a document, by its number in the corpus."""

    document: int
    start: int
    end: int


@dataclass(frozen=True)
class VerbatimSpan:
    """Characters start to end - 1 of a text, which stand word for word in documents.

    times: how often, in how many documents; places: one in each of the first few documents.
    """

    start: int
    end: int
    words: int
    times: int
    documents: int
    places: list[Place]


@dataclass(frozen=True)
class Origins:
    """The spans of a text that count, longest first, and how many were left out for what reason.

    words: of the text; words_found: those that lie in one of the spans. left_out: {"short", "frequent",
    "crowded"}. Spans may overlap; none lies within another one.
    """

    spans: list[VerbatimSpan]
    words: int
    words_found: int
    left_out: dict[str, int]


class VerbatimIndex:
    """The suffix array of all documents of a corpus.

    It takes 8 bytes for each unit, and about 60 more for each of the BLOCK units that are being sorted.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self._numbers: dict[str, int] = {}
        rows = [self._encoded(one.text) for one in documents]
        lengths = np.array([len(unit) for unit in self._numbers], dtype=np.int64)
        self._lengths = np.concatenate([[0], lengths])  # of END first
        self._units = np.concatenate([np.zeros(0, np.uint32), *rows])
        self._starts = np.cumsum([0, *map(len, rows)])  # of the documents, in units
        self._blocks: list[tuple[int, SuffixArray]] = []
        for start in range(0, len(self._units), BLOCK):
            part = self._units[start : start + BLOCK + REACH]
            self._blocks.append((start, SuffixArray(part, REACH, BLOCK)))

    def _encoded(self, text: str) -> np.ndarray:
        """The units of a document by number, new ones numbered on from 1, and END behind them."""
        numbers = self._numbers
        units = [numbers.setdefault(unit, len(numbers) + 1) for unit in units_of(text)]
        return np.array([*units, END], dtype=np.uint32)

    def find(self, text: str, config: OriginsConfig | None = None) -> Origins:
        """The longest stretches of a text that stand in documents.

        Raises UserError for a text that is empty or longer than MOST_CHARACTERS.
        """
        config = config or OriginsConfig()
        check_text(text)
        units = units_of(text)
        offsets = np.cumsum([0, *map(len, units)])
        words = np.cumsum([0, *map(is_word, units)])  # before each unit
        left_out = {"short": 0, "frequent": 0, "crowded": 0}
        spans: list[VerbatimSpan] = []
        for first, last, places in self._maximal(units):
            count = int(words[last] - words[first])
            if count < config.least_words:
                left_out["short"] += 1
            elif len(places) > config.max_frequency:
                left_out["frequent"] += 1
            else:
                start, end = int(offsets[first]), int(offsets[last])
                documents, shown = self._described(places, end - start, config.max_documents)
                spans.append(VerbatimSpan(start, end, count, len(places), documents, shown))
        spans.sort(key=lambda span: (-span.words, span.times, span.start))
        most = max(1, math.ceil(config.max_density * int(words[-1])))
        left_out["crowded"] = len(spans[most:])
        covered = np.zeros(len(text), dtype=bool)
        for span in spans[:most]:
            covered[span.start : span.end] = True
        found = sum(
            bool(covered[at]) and is_word(unit) for at, unit in zip(offsets.tolist(), units, strict=False)
        )
        return Origins(spans[:most], int(words[-1]), found, left_out)

    def _maximal(self, units: Sequence[str]) -> Iterator[tuple[int, int, np.ndarray]]:
        """Each stretch of units, first to last - 1, that begins and ends with a word, stands in a document
        and lies within no longer one that does; and all places (n,) where it stands."""
        row = np.array([self._numbers.get(unit, UNKNOWN) for unit in units], dtype=np.uint32)
        content = np.flatnonzero([is_word(unit) for unit in units])
        reached = trimmed = resume = 0
        for first in content.tolist():
            least = max(first, reached) + 1
            if least > len(row):
                break  # whatever begins here lies within the last match
            if first < resume or not len(self._places(row[first:least])):
                continue
            reached = self._longest(row, first, least)
            if reached == first + REACH:
                resume = reached
            last = int(content[np.searchsorted(content, reached) - 1]) + 1
            if last > trimmed:
                trimmed = last
                yield first, last, self._places(row[first:last])

    def _longest(self, row: np.ndarray, first: int, end: int) -> int:
        """How far a match from `first` goes on, which reaches `end` at least: steps double, then halve."""
        most, step, growing = min(len(row), first + REACH), 1, True
        while step:
            if end + step <= most and len(self._places(row[first : end + step])):
                end += step
                step *= 2 if growing else 1
            else:
                growing = False
                step //= 2
        return end

    def _places(self, row: np.ndarray) -> np.ndarray:
        """Where a row of units begins, int64 (n,) over all documents, rising."""
        if len(row) > REACH or UNKNOWN in row:
            return np.zeros(0, dtype=np.int64)
        return np.sort(
            np.concatenate([start + block.find(row).astype(np.int64) for start, block in self._blocks])
        )

    def _described(self, places: np.ndarray, length: int, most: int) -> tuple[int, list[Place]]:
        """In how many documents the places are, and the first one in each of the first `most`."""
        document = np.searchsorted(self._starts, places, side="right") - 1
        each, at = np.unique(document, return_index=True)
        shown = []
        for number, place in zip(each[:most].tolist(), places[at[:most]].tolist(), strict=True):
            start = int(self._lengths[self._units[self._starts[number] : place]].sum())
            shown.append(Place(number, start, start + length))
        return len(each), shown


def check_text(text: str) -> None:
    """Raise UserError for a text that holds no word, or more than MOST_CHARACTERS."""
    if not isinstance(text, str) or not text.strip():
        raise UserError("There is no text to trace. Paste a few sentences, or write a text first.")
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"The text has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are traced at a time. "
            "Give a part of it."
        )
