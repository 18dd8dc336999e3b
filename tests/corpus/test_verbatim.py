"""Spans that stand word for word in a corpus: all of them, of whole words, filtered, at the right place."""

from __future__ import annotations

import random

import pytest

from retro_demo.corpus import verbatim
from retro_demo.corpus.verbatim import MOST_CHARACTERS, VerbatimIndex, is_word, units_of
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.settings import OriginsConfig

ALL = OriginsConfig(least_words=1, max_frequency=10_000, max_density=1.0, max_documents=100)
ALPHABETS = (
    ["ab", "ba", "a", " ", ", ", "\n"],
    ["e\u0301", "e", "cafe\u0301", " ", "n\u0303"],  # combining marks
    ["\u4e2d", "\u6587", "\u5b57", "\u3002", "abc", " "],  # characters of Chinese
    [
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f469",
        "\U0001f44d\U0001f3fd",
        "\U0001f44d",
        " ",
        "ok",
    ],
    ["1,000", "1", ",", "000.5", " ", "3", "don't", "don", "'"],
    ["\U0001f1e9\U0001f1ea", "\U0001f1eb", "\U0001f1f7", " x "],  # flags and halves of them
)


def documents(*texts: str) -> list[Document]:
    return [Document(f"d{at}", f"Title {at}", "", text) for at, text in enumerate(texts)]


def borders(text: str) -> list[int]:
    at, found = 0, [0]
    for unit in units_of(text):
        at += len(unit)
        found.append(at)
    return found


def spans_by_hand(text: str, corpus: list[str]) -> dict[tuple[int, int], int]:
    """Every run of units that begins and ends with a word, looked for at every border of every document."""
    units, edges = units_of(text), borders(text)
    cut = [set(borders(one)) for one in corpus]
    found: dict[tuple[int, int], int] = {}
    for first in range(len(units)):
        for last in range(first, len(units)):
            if not (is_word(units[first]) and is_word(units[last])):
                continue
            wanted = text[edges[first] : edges[last + 1]]
            times = sum(
                one.startswith(wanted, at) and at in edge and at + len(wanted) in edge
                for one, edge in zip(corpus, cut, strict=True)
                for at in range(len(one))
            )
            if times:
                found[edges[first], edges[last + 1]] = times
    return {
        (a, b): times
        for (a, b), times in found.items()
        if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in found)
    }


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("seed", range(4))
def test_the_longest_spans_are_those_of_a_search_by_brute_force(seed, alphabet):
    drawn = random.Random(seed)
    corpus = ["".join(drawn.choices(alphabet, k=drawn.randint(0, 25))) for _ in range(6)]
    text = "".join(drawn.choices(alphabet, k=30)) + "z"

    found = VerbatimIndex(documents(*corpus)).find(text, ALL)

    assert {(span.start, span.end): span.times for span in found.spans} == spans_by_hand(text, corpus)


@pytest.mark.parametrize("seed", range(4))
def test_a_corpus_sorted_in_blocks_gives_the_same_spans(seed, monkeypatch):
    drawn = random.Random(seed)
    corpus = documents(*("".join(drawn.choices(["a", "b", " "], k=40)) for _ in range(5)))
    text = "".join(drawn.choices(["a", "b", " "], k=60))
    whole = VerbatimIndex(corpus).find(text, ALL)

    monkeypatch.setattr(verbatim, "BLOCK", 13)

    assert VerbatimIndex(corpus).find(text, ALL) == whole


def test_a_match_longer_than_the_reach_is_told_in_pieces(monkeypatch):
    monkeypatch.setattr(verbatim, "REACH", 8)
    text = " ".join(f"w{at}" for at in range(12))

    found = VerbatimIndex(documents(text)).find(text, ALL)

    assert sorted((span.start, text[span.start : span.end]) for span in found.spans) == [
        (0, "w0 w1 w2 w3"),
        (12, "w4 w5 w6 w7"),
        (24, "w8 w9 w10 w11"),
    ]
    assert found.words_found == found.words == 12


@pytest.mark.parametrize(
    "text",
    [
        "cafe\u0301 na\u00efve don't 1,000.5 km\u00b2\r\n",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea\U0001f1eb",
        "\u4e2d\u6587\uff0c\u0e01\u0e33\u0e25\u0e31\u0e07 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0301 lone mark, \ud800 lone half",
    ],
)
def test_units_joined_are_the_text_and_none_begins_with_a_mark_of_another(text):
    assert "".join(units_of(text)) == text
    assert not [unit for unit in units_of(text)[1:] if unit[0] in "\u0301\u200d\U0001f3fd\u0e31"]


def test_words_are_matched_whole_on_both_sides():
    index = VerbatimIndex(documents("the start of all parts", "cost 1,000,500 euros; re\u0301sume\u0301"))

    def found(text: str) -> list[str]:
        return [text[span.start : span.end] for span in index.find(text, ALL).spans]

    assert found("art of al") == ["of"]
    assert found("1,000") == []
    assert found("1,000,500") == ["1,000,500"]
    assert found("re") == []
    assert found("re\u0301sume\u0301") == ["re\u0301sume\u0301"]
    assert found("r\u00e9sum\u00e9") == []  # the same to the eye, in other characters


def test_a_span_never_runs_over_the_end_of_a_document():
    found = VerbatimIndex(documents("one two", "three four")).find("one two three four", ALL)

    assert sorted((span.start, span.end) for span in found.spans) == [(0, 7), (8, 18)]


def test_short_frequent_and_crowded_spans_are_left_out_and_counted():
    often = "the government of the republic"
    index = VerbatimIndex(documents(*[f"{often}." for _ in range(11)], "a rare sea of green glass", "x y"))
    text = f"{often} and a rare sea of green glass, x y"

    usual = index.find(text)
    assert [text[span.start : span.end] for span in usual.spans] == ["a rare sea of green glass"]
    assert usual.left_out == {"short": 1, "frequent": 1, "crowded": 0}

    all_of_it = index.find(text, OriginsConfig(least_words=2, max_frequency=11, max_density=0.1))
    assert [span.words for span in all_of_it.spans] == [6, 5]
    assert all_of_it.left_out == {"short": 0, "frequent": 0, "crowded": 1}


def test_each_place_holds_the_very_characters_of_the_span():
    first = "\U0001f469\u200d\U0001f467 says: cafe\u0301 \u4e2d\u6587 opens at 7"
    second = "It said cafe\u0301 \u4e2d\u6587 opens at 7, and cafe\u0301 \u4e2d\u6587 opens at 7"
    text = "Here cafe\u0301 \u4e2d\u6587 opens at 7"

    (span,) = VerbatimIndex(documents(first, "", second)).find(text).spans

    assert (span.times, span.documents) == (3, 2)
    assert [place.document for place in span.places] == [0, 2]
    for place, whole in zip(span.places, (first, second), strict=True):
        assert whole[place.start : place.end] == text[span.start : span.end]


def test_documents_listed_are_bounded_and_all_are_counted():
    index = VerbatimIndex(documents(*["five words that stand here"] * 4))

    (span,) = index.find("five words that stand here", OriginsConfig(max_documents=2)).spans

    assert (span.documents, len(span.places)) == (4, 2)


@pytest.mark.parametrize("text", ["", "  \n", None, "a " * MOST_CHARACTERS])
def test_an_empty_or_overlong_text_is_refused_in_a_sentence(text):
    with pytest.raises(UserError, match=r"text"):
        VerbatimIndex(documents("one")).find(text)


def test_signs_alone_make_no_span():
    found = VerbatimIndex(documents("= | = | = | = | -- ... ")).find("= | = | = | = | -- ... ", ALL)

    assert found.spans == []
    assert found.words == 0
