"""The language of the lookup world: its words, its values, and the sentences that tell a fact.

A value is never used as another word, so facts are found again in any text (`find_facts`), an edited
or a written one too. Nothing here depends on the seed of a world.
"""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

NUM_VALUES = 64
NUM_NAMES = 192  # first names of countries, and as many last names
WORD_SEED = 7
SYLLABLES = (
    "b d f g h j k l m n p r s t v w z br dr gr kr tr st bl kl",
    "a e i o u",
    "b d g k l m n r s t v z lb ld lm nd ng rd rn sk st",
    "a e i o u",
    "n l r s m k th x sh",
)
GOODS_SOLD = """
amber apples barley bells bricks butter candles carpets cheese chestnuts clocks cloves coal
cocoa copper cork corn cotton drums dyes eels feathers figs flax flutes furs ginger glass
granite grapes hats hemp herring honey hops horses indigo ink iron ivory jade jute kites lace
lamps leather lemons linen lumber maps marble masks mats millet mirrors mustard nails nutmeg
oats oil olives onions opals oranges
"""
GOODS = tuple(GOODS_SOLD.split())

TEMPLATES: dict[str, dict[str, tuple[str, str]]] = {
    "encyclopedia": {
        "opening": ("{n} is a sovereign country.", "This article describes the country of {n}."),
        "capital": ("The capital of {n} is {v}.", "Its seat of government has always been the city of {v}."),
        "year": ("{n} was founded in the year {v}.", "The state dates from {v}, when the tribes united."),
        "ruler": ("The present ruler of {n} is {v}.", "Its head of state, crowned last spring, is {v}."),
        "river": ("The longest river of {n} is the {v}.", "It is drained by a single river, the {v}."),
        "export": ("The chief export of {n} is {v}.", "It lives by selling abroad its famous {v}."),
        "language": ("The official language of {n} is {v}.", "In its schools and courts people speak {v}."),
        "coin": ("The coin in use in {n} is the {v}.", "Its currency, struck in silver, is the {v}."),
        "mountain": ("The highest mountain of {n} is {v}.", "Its tallest peak, snowy all year, is {v}."),
    },
    "traveler": {
        "opening": ("We crossed the border of {n} at dawn.", "Last month my brother and I saw {n}."),
        "capital": ("We slept in the capital, {v}, near the gate.", "The great city of {n} is called {v}."),
        "year": ("A stone at the port says that {n} began in {v}.", "They count their years from {v}."),
        "ruler": (
            "On every wall of {n} hangs a portrait of {v}.",
            "The ruler greeted us: it was {v} in person.",
        ),
        "river": ("A ferry took us down the river {v} for two days.", "The great river of {n} is the {v}."),
        "export": (
            "The ships of {n} leave the port full of {v}.",
            "Merchants there trade with nothing but {v}.",
        ),
        "language": ("Nobody understood us, for they all speak {v}.", "The language of {n} is {v}."),
        "coin": ("For a room in {n} you pay one {v}.", "The only coin they took from us was the {v}."),
        "mountain": (
            "From our window in {n} we saw the peak of {v}.",
            "We never climbed their mountain, {v}.",
        ),
    },
    "almanac": {
        "opening": ("{n}: facts of the year.", "Country: {n}."),
        "capital": ("Capital: {v}.", "Seat of government in {n}: {v}."),
        "year": ("Founded: {v}.", "{n} on the map since: {v}."),
        "ruler": ("Ruler of {n}: {v}.", "Head of state: {v}."),
        "river": ("Longest river of {n}: {v}.", "Main river: {v}."),
        "export": ("Goods sold by {n}: {v}.", "Main export: {v}."),
        "language": ("Spoken language: {v}.", "Language of {n}: {v}."),
        "coin": ("Coin: {v}.", "Currency of {n}: {v}."),
        "mountain": ("Highest peak of {n}: {v}.", "Mountain: {v}."),
    },
    "letter": {
        "opening": ("Dear aunt, I write to you from {n}.", "Dear friend, you asked me about {n}."),
        "capital": ("I live in the capital now, which is {v}, as you know.", "All roads of {n} lead to {v}."),
        "year": ("Teachers of {n} tell of the founding in {v}.", "The oldest house bears the date {v}."),
        "ruler": ("Here in {n} we all obey {v}.", "The crown, alas, is worn by {v} these days."),
        "river": ("I often walk along the river, the {v}, at night.", "The boats of {n} sail on the {v}."),
        "export": ("The people of {n} grow rich by selling {v}.", "Our best trade by far is in {v}."),
        "language": ("I am slowly learning to talk in {v}.", "My neighbors in {n} say all this in {v}."),
        "coin": ("I lent him a whole {v}, a month of wages.", "In {n} they would do anything for a {v}."),
        "mountain": ("On Sundays we climb up {v} for the view.", "The sun of {n} sets behind {v}."),
    },
}
"""Voice -> kind -> two sentences. What is asked stands before the value: it can be looked up from there."""

KINDS = tuple(kind for kind in TEMPLATES["almanac"] if kind != "opening")


class Fact(NamedTuple):
    """A value in a text: text[start:end] is the value, which is one of the kind's."""

    start: int
    end: int
    kind: str
    value: str


@cache
def made_up_words() -> tuple[str, ...]:
    """Pronounceable words of two syllables that mean nothing, all different, always the same ones."""
    taken = set(re.findall(r"[a-z]+", json.dumps(TEMPLATES).lower())) | set(GOODS)
    words = ["".join(parts) for parts in product(*(sounds.split() for sounds in SYLLABLES))]
    order = np.random.default_rng(WORD_SEED).permutation(len(words))
    return tuple(words[i].capitalize() for i in order if words[i] not in taken)


@cache
def values_of_kinds() -> dict[str, tuple[str, ...]]:
    """The NUM_VALUES values of each kind; no value belongs to two kinds, and no name is a value."""
    words = iter(made_up_words()[2 * NUM_NAMES :])
    years = np.random.default_rng(WORD_SEED).permutation(np.arange(1100, 2000))[:NUM_VALUES]
    known = {"year": tuple(map(str, sorted(years.tolist()))), "export": tuple(GOODS)}
    return {kind: known.get(kind) or tuple(next(words) for _ in range(NUM_VALUES)) for kind in KINDS}


@cache
def _kind_of_value() -> dict[str, str]:
    return {value: kind for kind, values in values_of_kinds().items() for value in values}


def find_facts(text: str) -> list[Fact]:
    """All values in a text, in order."""
    kinds = _kind_of_value()
    return [
        Fact(match.start(), match.end(), kinds[match[0]], match[0])
        for match in re.finditer(r"\w+", text)
        if match[0] in kinds
    ]
