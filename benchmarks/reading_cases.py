"""What a reader is asked: facts of the Factbook, and documents that are made up here; and where it looks.

A case is a prompt that ends right before a value, with the value under each database. Databases are corpora
in memory: all documents of an edition, the one that is asked for among them: looking it up is the point.

Shapes: Q looks, K neighbors, P tokens of a title, C chunk length, R = P + 2 C, N chunks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.hot_swap import FACTS
from retro_demo.corpus.chunks import cut
from retro_demo.corpus.samples import LookupConfig, find_facts, lookup_documents
from retro_demo.corpus.store import Corpus
from retro_demo.corpus.titled_retrieval import TitledRetriever, titled_terms
from retro_demo.documents.sources import Document
from retro_demo.evaluation.reading_ways import titled_texts
from retro_demo.retrieval.bm25 import LexicalIndex
from retro_demo.settings import CorpusConfig
from retro_demo.tokenizer import Tokenizer

MOST_PROMPT = 96  # tokens of a prompt that are read, behind the title where it is longer


@dataclass(frozen=True)
class Case:
    """One fact, asked in the words of one edition."""

    fact: str
    title: str  # of the document that the prompt is of
    group: str  # what intervals are drawn over: the same for all cases of a country
    edition: int  # whose words ask
    prompt: str
    values: tuple[str, ...]  # by database
    planted: tuple[str, ...]  # by database: a value of another document, for edits


@dataclass(frozen=True)
class Library:
    """A corpus that can be looked up in, held-out documents and all."""

    corpus: Corpus
    retriever: TitledRetriever
    title_len: int
    query_tokens: int

    def look(self, text: Sequence[int], title: str, k: int, own: int | None = None) -> np.ndarray:
        """Chunk ids (Q, k) found at the end of each whole chunk of a text, -1 = none.

        own: the first chunk of the document that may not be found.
        """
        chunk_len = self.corpus.config.chunk_len
        ends = range(chunk_len, len(text) + 1, chunk_len)
        queries = np.array([text[max(0, end - self.query_tokens) : end] for end in ends], np.int64)
        if not len(queries):
            return np.zeros((0, k), np.int64)
        mine = None if own is None else np.full(len(queries), own)
        return self.retriever.search(queries, k, own=mine, titles=[title] * len(queries)).ids

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Chunk ids (..., k) -> what a reader reads (..., k, R)."""
        return self.corpus.neighbor_rows(ids, self.title_len)

    def texts(self, ids: np.ndarray) -> list[tuple[str, str]]:
        """(title, text) of each of some chunks (k,) with its continuation; ("", "") of none."""
        return titled_texts(self.corpus, ids)


def library(
    corpus: Corpus, title_len: int, query_tokens: int, *, everything: bool, keep: Path | None = None
) -> Library:
    """A corpus made ready. `everything`: held-out documents can be found, too; `keep`: file of the index."""
    if everything:
        corpus = replace(corpus, held_out=np.zeros_like(corpus.held_out))
    rows = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
    index = LexicalIndex.load(keep, corpus.fingerprint) if keep else None
    if index is None:
        index = LexicalIndex.build(titled_terms(corpus)(rows), rows)
        if keep:
            keep.parent.mkdir(parents=True, exist_ok=True)
            index.save(keep, corpus.fingerprint)
    return Library(corpus, TitledRetriever(corpus, index), title_len, query_tokens)


def corpus_in_memory(name: str, documents: list[Document], tokenizer: Tokenizer, chunk_len: int) -> Corpus:
    """Documents as a corpus without a folder, none held out."""
    count = len(documents)
    none = np.full((0, 1), -1)
    return Corpus(
        folder=Path(name),
        config=CorpusConfig(chunk_len=chunk_len),
        tokenizer=tokenizer,
        documents=documents,
        chunks=cut(documents, tokenizer, chunk_len),
        cluster=np.arange(count),
        held_out=np.zeros(count, bool),
        database_only=np.zeros(count, bool),
        sections=False,
        neighbor_ids=none,
        neighbor_scores=none.astype(np.float32),
        manifest={"fingerprint": name},
    )


def prompt_ids(tokenizer: Tokenizer, prompt: str, title: str, chunk_len: int) -> list[int]:
    """The prompt as it is read: of a long one title and end; padding before, so that a look is at its end."""
    ids = tokenizer.encode(prompt)
    if len(ids) > MOST_PROMPT:
        ids = tokenizer.encode(f"{title}\n\n")[:MOST_PROMPT] + ids[-MOST_PROMPT:]
    return [0] * (-len(ids) % chunk_len) + ids


def reached(found: Sequence[tuple[str, str]], title: str, value: str) -> bool:
    """Whether a neighbor (title, text) of this document holds the value."""
    return any(value in text and of == title for of, text in found)


def drawn(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """So many of the cases at random, in their order; all where there are no more."""
    order = np.random.default_rng([seed, 11]).permutation(len(cases))[:count]
    return [cases[i] for i in sorted(order.tolist())]


def factbook_cases(
    old: Sequence[Document], new: Sequence[Document], held_out: np.ndarray, *, held: bool
) -> list[Case]:
    """Facts that both editions state, and state otherwise, of countries that are held out or are not."""
    by = {document.id: document for document in new} | {document.title: document for document in new}
    found: list[tuple[str, Document, Document, list[re.Match[str]]]] = []
    for document, out in zip(old, held_out, strict=True):
        other = by.get(document.title) or by.get(document.id)
        if out != held or other is None:
            continue
        for fact, patterns in FACTS.items():
            pair = zip(patterns, (document, other), strict=True)
            matches = [match for pattern, one in pair if (match := re.search(pattern, one.text, re.M))]
            if len(matches) == 2 and matches[0][1] != matches[1][1]:
                found.append((fact, document, other, matches))
    values: dict[str, list[tuple[str, ...]]] = {}
    for fact, _, _, matches in found:
        values.setdefault(fact, []).append(tuple(match[1] for match in matches))
    cases = []
    for fact, document, other, matches in found:
        own = tuple(match[1] for match in matches)
        planted = _another(values[fact], own)
        for edition, (match, of) in enumerate(zip(matches, (document, other), strict=True)):
            prompt = match.string[: match.start(1) - 1]
            cases.append(Case(fact, of.title, document.id, edition, prompt, own, planted))
    return cases


def _another(values: Sequence[tuple[str, ...]], own: tuple[str, ...]) -> tuple[str, ...]:
    """The values of another document: those after `own` in the list that differ from it in every edition."""
    start = values.index(own)
    for step in range(1, len(values)):
        other = values[(start + step) % len(values)]
        if all(one not in theirs and theirs not in one for one, theirs in zip(own, other, strict=True)):
            return other
    return ()


SHEETS = {
    "sheets": (
        "{0} {1}-{n} data sheet",
        ("Pump", "Valve", "Sensor", "Drive", "Filter", "Relay", "Motor", "Gauge"),
        {
            "Order number": "{L}{L}-{d4}-{d}",
            "Mass": "{d2}.{d} kg",
            "Rated power": "{d3} W",
            "Supply voltage": "{d2} V DC",
            "Maximum pressure": "{d}.{d2} bar",
            "Operating temperature": "-{d2} to +{d2} degrees",
            "Housing": "{material}",
            "Connection thread": "G {d}/{d}",
            "Responsible engineer": "{name}",
            "Manufactured in": "{place}",
            "Service interval": "{d4} hours",
            "Warranty": "{d2} months",
        },
    ),
    "recipes": (
        "{0} {1} no. {n}",
        ("Stew of", "Pie with", "Soup from", "Bread of", "Salad for", "Cake from"),
        {
            "Cook": "{name}",
            "Origin": "{place}",
            "Serves": "{d2} people",
            "Flour": "{d3} g",
            "Oven": "{d3} degrees for {d2} minutes",
            "Main ingredient": "{food}",
            "Spice": "{food}",
            "Rest before baking": "{d2} minutes",
            "Energy per portion": "{d3} kcal",
            "Goes with": "{food}",
            "Page in the cookbook": "{d3}",
        },
    ),
}
"""Corpus -> how its documents are called, words for that, and its fields with patterns of their values."""

WORDS = {
    "material": (
        "cast iron",
        "stainless steel",
        "brass",
        "polyamide",
        "die-cast aluminium",
        "bronze",
        "titanium",
    ),
    "food": ("fennel", "millet", "cardamom", "leek", "buckwheat", "plums", "saffron", "walnuts", "barley"),
}
SYLLABLES = (
    "ba",
    "ron",
    "tel",
    "mi",
    "sko",
    "var",
    "len",
    "du",
    "fi",
    "gor",
    "hal",
    "ne",
    "pet",
    "ru",
    "zan",
)


def made_sheets(kind: str, count: int = 60, seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Two editions of made-up documents: a title and fields in an order of their own, and other values."""
    title_form, firsts, fields = SHEETS[kind]
    editions: tuple[list[Document], list[Document]] = ([], [])
    for number in range(count):
        rng = np.random.default_rng([seed, 12, len(kind), number])
        words = firsts[int(rng.integers(len(firsts)))], _name(rng)
        title = title_form.format(*words, n=100 + 7 * number)
        names = list(fields)
        order = rng.permutation(len(names))[: len(names) - int(rng.integers(0, 3))]
        lines: list[list[str]] = [[], []]
        for place in order.tolist():
            name, before = names[place], ""
            for edition in (0, 1):
                value = before
                while value == before:
                    value = _value(fields[name], rng)
                lines[edition].append(f"{name}: {value}")
                before = value
        for edition in (0, 1):
            text = f"{title}\n\n" + "\n".join(lines[edition]) + "\n"
            editions[edition].append(Document(f"{kind}-{number}", title, "en", text))
    return editions


def _name(rng: np.random.Generator) -> str:
    return "".join(SYLLABLES[i] for i in rng.integers(0, len(SYLLABLES), 2)).capitalize()


def _value(pattern: str, rng: np.random.Generator) -> str:
    def fill(match: re.Match[str]) -> str:
        kind, digits = match[1], match[2]
        if kind == "d":
            count = int(digits or 1)
            return str(int(rng.integers(10 ** (count - 1), 10**count)))
        if kind == "L":
            return chr(65 + int(rng.integers(26)))
        if kind in WORDS:
            return WORDS[kind][int(rng.integers(len(WORDS[kind])))]
        return f"{_name(rng)} {_name(rng)}" if kind == "name" else _name(rng)

    return re.sub(r"\{([a-zA-Z]+?)(\d?)\}", fill, pattern)


def sheet_cases(editions: Sequence[Sequence[Document]]) -> list[Case]:
    """Every field of every document but its first, asked with what stands before it, under each edition.

    A value goes on to the end of its line, so that a value that is too long is wrong.
    """
    cases = []
    fields = [[dict(_lines(document)) for document in edition] for edition in editions]
    for number in range(len(editions[0])):
        for edition, documents in enumerate(editions):
            document = documents[number]
            names = [name for name, _ in _lines(document)]
            for name in names[1:]:
                values = tuple(of[number][name] + "\n" for of in fields)
                planted = _planted(fields, number, name, values)
                prompt = document.text[: document.text.index(f"\n{name}: ") + len(name) + 2]
                cases.append(Case(name, document.title, document.id, edition, prompt, values, planted))
    return cases


def _planted(
    fields: Sequence[Sequence[dict[str, str]]], number: int, name: str, values: tuple[str, ...]
) -> tuple[str, ...]:
    """The values of the next document that has the field and says otherwise in every edition, () = none."""
    count = len(fields[0])
    for other in ((number + step) % count for step in range(1, count)):
        if name in fields[0][other]:
            theirs = tuple(of[other][name] + "\n" for of in fields)
            if all(one != their for one, their in zip(values, theirs, strict=True)):
                return theirs
    return ()


def _lines(document: Document) -> list[tuple[str, str]]:
    body = document.text.split("\n\n", 1)[1].strip("\n")
    return [(name, value) for name, value in (line.split(": ", 1) for line in body.split("\n"))]


def world_documents(countries: int = 120, seed: int = 5) -> list[Document]:
    """A part of a lookup world: prose in five voices about countries that do not exist."""
    return list(lookup_documents(LookupConfig(countries=countries, held_out=1, seed=seed)))


def world_cases(documents: Sequence[Document]) -> list[Case]:
    """The third fact of each document and those behind it, asked with the text before them."""
    cases = []
    for document in documents:
        for fact in find_facts(document.text)[2:]:
            if document.text[fact.start - 1] == " ":
                prompt = document.text[: fact.start - 1]
                value = document.text[fact.start : fact.end + 1]
                cases.append(Case(fact.kind, document.title, document.group, 0, prompt, (value,), ()))
    return cases


PACKAGE_FIELDS = ("Installed-Size", "Version", "Maintainer", "Homepage", "Description", "Section", "Source")


def package_documents(status: Path, most: int = 400) -> list[Document]:
    """The records of a Debian machine's packages (its dpkg status file), one document each."""
    documents = []
    for record in status.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        lines = [line for line in record.split("\n") if line.split(":")[0] in PACKAGE_FIELDS and ": " in line]
        if record.startswith("Package: ") and len(lines) > 3:
            name = record.split("\n", 1)[0].removeprefix("Package: ")
            documents.append(
                Document(name, f"Package {name}", "en", f"Package {name}\n\n" + "\n".join(lines) + "\n")
            )
    return documents[:most]
