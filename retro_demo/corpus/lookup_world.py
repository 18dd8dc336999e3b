"""The lookup world: made-up countries whose facts can be looked up and cannot be guessed.

Each country has one value of every kind (capital, river ...), drawn uniformly from a known list, so
that without retrieval no model can do better than the floor: ln(values of the kind) nats a fact. Each
country is told by several documents in paraphrases. Some countries are told in training documents
only; the others are told once in a held-out document and elsewhere in documents that are in the
database alone, which no training batch reads (`Document.use`).

This module writes text; it knows nothing of tokens, chunks or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from retro_demo.corpus import lookup_language
from retro_demo.corpus.lookup_language import (
    KINDS,
    NUM_NAMES,
    NUM_VALUES,
    TEMPLATES,
    made_up_words,
    values_of_kinds,
)
from retro_demo.documents.documents import Document
from retro_demo.errors import UserError
from retro_demo.knobs import check_ranges, knob
from retro_demo.whole_files import replacing

MAX_COUNTRIES = 20_000
WRITERS = (Path(__file__), Path(lookup_language.__file__))  # what a world depends on, beside its config


@dataclass(frozen=True)
class LookupConfig:
    """How large a world is. Every country is told by `tellings` documents, each in a voice of its own."""

    countries: int = knob(
        2400, "Countries", "Countries told in training documents.", low=2, high=MAX_COUNTRIES
    )
    held_out: int = knob(300, "Held out", "Countries no training batch tells of.", low=1, high=MAX_COUNTRIES)
    tellings: int = knob(3, "Tellings", "Documents that tell each country.", low=2, high=len(TEMPLATES))
    swaps: int = knob(2, "Swaps", "Neighboring facts that change places in each telling.", low=0, high=100)
    seed: int = knob(0, "Seed", "Of the countries and of their tellings.", low=0, high=2**31 - 1)

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
