"""The corpora that ship with the code: where each is built, and the lookup world, which is generated.

The lookup world is made of countries whose facts can be looked up and cannot be guessed. Each country has one
value of every kind (capital, river ...), drawn uniformly from a known list, so without retrieval no model
does better than the floor: ln(values of the kind) nats a fact. Several documents tell each country in
paraphrases. Some countries are told in training documents only; the others are told once in a held-out
document and elsewhere in documents for the database alone, which no training batch reads (`Document.use`).

A value is never used as another word, so `find_facts` finds the facts in any text, an edited or a generated
one too. Words and values do not depend on the seed of a world.

This module writes text; it does not know tokens, chunks or models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retro_demo.corpus.building import write_corpus_config
from retro_demo.corpus.chunks import SHIPPED_TOKENIZERS
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.files import file_hash, replacing
from retro_demo.paths import ASSETS, SAMPLE, STATIC_FOLDER
from retro_demo.settings import SEEDS, CorpusConfig, check_ranges, setting

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


MAX_COUNTRIES = 20_000
WRITERS = (Path(__file__),)  # what a world depends on, beside its config


@dataclass(frozen=True)
class LookupConfig:
    """How large a world is. Every country is told by `tellings` documents, each in a voice of its own."""

    countries: int = setting(
        2400, "Countries", "Countries told in training documents.", within=(2, MAX_COUNTRIES)
    )
    held_out: int = setting(
        300, "Held out", "Countries no training batch tells of.", within=(1, MAX_COUNTRIES)
    )
    tellings: int = setting(3, "Tellings", "Documents that tell each country.", within=(2, len(TEMPLATES)))
    swaps: int = setting(2, "Swaps", "Neighboring facts that change places in each telling.", within=(0, 100))
    seed: int = setting(0, "Seed", "Of the countries and of their tellings.", within=SEEDS)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.countries + self.held_out > MAX_COUNTRIES:
            raise UserError(
                f"{self.countries} + {self.held_out} countries are too many: {MAX_COUNTRIES} have a name."
            )


def lookup_documents(config: LookupConfig) -> Iterator[Document]:
    """The documents of the world, voice by voice: no country's tellings stand near each other.

    The group of a document is its country.
    """
    rng = np.random.default_rng(config.seed)
    total = config.countries + config.held_out
    words, values = made_up_words(), values_of_kinds()
    names = [
        f"{words[i // NUM_NAMES]} {words[NUM_NAMES + i % NUM_NAMES]}"
        for i in rng.choice(NUM_NAMES**2, total, replace=False).tolist()
    ]
    drawn = rng.integers(NUM_VALUES, size=(total, len(KINDS))).tolist()
    records = [{kind: values[kind][v] for kind, v in zip(KINDS, row, strict=True)} for row in drawn]
    orders = [rng.permutation(len(KINDS)).tolist() for _ in range(total)]
    voices = [rng.permutation(len(TEMPLATES))[: config.tellings].tolist() for _ in range(total)]
    for number in range(config.tellings):
        for country in rng.permutation(total).tolist():
            use = "training" if country < config.countries else "database" if number else "held-out"
            voice = list(TEMPLATES)[voices[country][number]]
            name = names[country]
            text = _tell(name, records[country], orders[country], TEMPLATES[voice], config.swaps, rng)
            key = name.lower().replace(" ", "-")
            yield Document(f"{key}/{voice}", f"{name} ({voice})", "en", text, key, use)


def _tell(
    name: str,
    record: dict[str, str],
    order: list[int],
    sentences: dict[str, tuple[str, str]],
    swaps: int,
    rng: np.random.Generator,
) -> str:
    """One telling of a record: its facts in about the given order, each in one of two sentences.

    Of two sentences that follow each other at least one names the country, so that nearly every chunk
    says whom to look up.
    """
    order = list(order)
    for place in rng.integers(len(order) - 1, size=swaps).tolist():
        order[place : place + 2] = order[place : place + 2][::-1]
    kinds = ["opening", *(KINDS[i] for i in order)]
    told: list[str] = []
    for kind in kinds:
        sentence = sentences[kind][rng.integers(2)]
        if "{n}" not in sentence and told and name not in told[-1]:
            sentence = next(other for other in sentences[kind] if "{n}" in other)
        told.append(sentence.format(n=name, v=record.get(kind, "")))
    return " ".join(told)


def write_lookup_world(path: Path, config: LookupConfig) -> Path:
    """Write the world as JSONL that `build-corpus` reads, whole or not at all; returns the path."""
    lines = [json.dumps(asdict(document)) + "\n" for document in lookup_documents(config)]
    with replacing(path) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Sample:
    """A corpus that ships with the code: as a file, or as a world that is written when it is asked for."""

    title: str
    source: Path | LookupConfig
    config: CorpusConfig
    at_start: bool = True  # whether it is built before anybody asks
    edition: str = ""  # the sample that tells of the same things at another time
    prompts: tuple[str, ...] = ()  # of held-out documents, up to where the database holds what comes next


SAMPLES = {
    "factbook2015": Sample(
        "World Factbook 2015",
        ASSETS / "factbook2015" / "factbook2015.jsonl.gz",
        CorpusConfig(tokenizer="factbook", chunk_len=32, embedder="static"),
        edition="factbook2026",
        prompts=(
            "France\n\nGovernment\n\nExecutive branch:\nchief of state:",
            "Japan\n\nGovernment\n\nExecutive branch:\nchief of state:",
            "Germany\n\nGovernment\n\nExecutive branch:\nhead of government: Chancellor",
            "Kenya\n\nTransportation\n\nAirports:",
        ),
    ),
    "factbook2026": Sample(
        "World Factbook 2026",
        ASSETS / "factbook2026" / "factbook2026.jsonl.gz",
        CorpusConfig(tokenizer="factbook", chunk_len=32, embedder="static"),
        at_start=False,
        edition="factbook2015",
    ),
    "udhr44": Sample(
        "Human rights in 44 languages",
        ASSETS / "udhr44" / "udhr44.jsonl.gz",
        CorpusConfig(holdout=0.2, embedder="static"),
    ),
    "lookup": Sample(
        "Lookup world",
        LookupConfig(),
        CorpusConfig(chunk_len=32, vocab_size=4096, embedder="static"),
        at_start=False,
        prompts=(
            "Last month my brother and I saw Fuskix Laskath. For a room in Fuskix Laskath you pay one "
            "Pizel. The ruler greeted us: it was Tremin in person. A stone at the port says that Fuskix "
            "Laskath began in",
            "Last month my brother and I saw Wetux Broketh. They count their years from 1794. The great "
            "river of Wetux Broketh is the Nukul. We slept in the capital, Pikush, near the gate. The "
            "language of Wetux Broketh is",
            "Basuk Drirdus is a sovereign country. It is drained by a single river, the Hikix. Basuk Drirdus "
            "was founded in the year 1984. The present ruler of Basuk Drirdus is Drarnesh. In its schools "
            "and courts people speak",
        ),
    ),
}


def sample_folder(home: Path, name: str) -> Path:
    """Where the sample corpus `name` is built; another version of its source is another folder."""
    if name not in SAMPLES:
        raise UserError(f"There is no sample corpus {name}. There is: {', '.join(SAMPLES)}.")
    sample = SAMPLES[name]
    source = sample.source
    parts = [
        file_hash(source) if isinstance(source, Path) else repr((source, *map(file_hash, WRITERS))),
        file_hash(STATIC_FOLDER / "table.safetensors"),
        repr(sample.config),
    ]
    if sample.config.tokenizer in SHIPPED_TOKENIZERS:
        parts += [file_hash(SHIPPED_TOKENIZERS[sample.config.tokenizer])]
    return home / "samples" / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def prepare_sample(home: Path, name: str) -> Path:
    """The folder of a sample corpus, ready for `build_corpus` (which finds it done the second time)."""
    folder, sample = sample_folder(home, name), SAMPLES[name]
    if not (folder / "config.json").exists():
        source = sample.source
        if isinstance(source, LookupConfig):
            folder.mkdir(parents=True, exist_ok=True)
            source = write_lookup_world(folder / "world.jsonl", source)
        write_corpus_config(folder, [source], sample.config)
    return folder


def corpus_folder(home: Path, corpus: str) -> Path:
    """The folder that a run's config means by its corpus: a path, or "sample:NAME"."""
    if corpus.startswith(SAMPLE):
        return sample_folder(home, corpus.removeprefix(SAMPLE))
    return Path(corpus)
