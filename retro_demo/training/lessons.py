"""What a reader learns from: windows of text with neighbors that hold what the text says next, or do not.

A real neighbor seldom holds what follows, so a network that sees nothing else learns slowly to read. A lesson
is a window of a training document with the neighbors of one of these kinds:

- **others**: found among the other documents, as RETRO trains. Only form and wording carry over.
- **oracle**: the own document may be found, too, so that a neighbor holds the continuation word for word.
- **counterfactual**: the same, but values (numbers digit by digit, names, what stands behind "field:") are
  changed in text and neighbor alike. What the base knows by heart is of no use: the values can only be read.
  In half of these lessons the neighbors are partly overwritten, so that places alone do not give the answer
  away.
- **edition**: the neighbors come from another edition of the corpus, and the text says what they say wherever
  both name the same field: the words of one edition, the values of the other, either way round.
- **shuffled**: the neighbors of another document's window, without the own document. Nothing is to be read.

Lessons are a function of the seed and their number. Those of a corpus without another edition are the first
three and the last kind. Loss weighs the values of fields more than other words.

Shapes: T tokens of a window, L looks, C chunk length, K neighbors, P tokens of a title, R = P + 2 C.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import Corpus
from retro_demo.corpus.titled_retrieval import TitledRetriever
from retro_demo.errors import UserError
from retro_demo.models.reader import Ahead, Reader, ReaderBatch
from retro_demo.runs.alarms import passes_of

SHARES = {"others": 0.45, "oracle": 0.05, "counterfactual": 0.30, "shuffled": 0.20}
SHARES_OF_EDITIONS = {
    "others": 0.16,
    "oracle": 0.05,
    "counterfactual": 0.33,
    "edition": 0.38,
    "shuffled": 0.08,
}
VALUE_WEIGHT = 4.0
MOST_OVERWRITTEN = 0.3
CHANGED = 0.7  # of the values of a document

NUMBER = re.compile(rb"\d[\d.,]*\d|\d")
NAME = re.compile(
    rb"(?<![A-Za-z\x80-\xff])[A-Z][A-Za-z\x80-\xff'-]+(?: (?:[A-Z][A-Za-z\x80-\xff'-]+|de|of|the|al))*"
)
FIELD = re.compile(rb"^([^\n:]{2,60}):[ \t]+([^\n]{1,200})$", re.M)
HEADER = re.compile(rb"^([^\n:]{2,60}):[ \t]*$", re.M)


@dataclass(frozen=True)
class Edited:
    """A document with other values: tokens (N',), where token i of the original went (N + 1,), and which of
    the new tokens are values (N',)."""

    tokens: np.ndarray
    moved: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Lesson:
    """tokens (T + 1,), title (P,), neighbors (L, K, R), weights (T,)."""

    kind: str
    document: int
    of_own: bool  # whether it is a document of the corpus itself, and not of its other edition
    tokens: np.ndarray
    title: np.ndarray
    neighbors: np.ndarray
    weights: np.ndarray


class Texts:
    """The documents of a corpus as tokens and bytes, and its fields."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        chunks = corpus.chunks
        ends = np.flatnonzero(np.diff(chunks.document, append=-1))
        starts = np.concatenate([[0], ends[:-1] + 1])
        self.first_chunk = {int(chunks.document[s]): int(s) for s in starts}
        self.tokens = {
            int(chunks.document[s]): _real(chunks.tokens[s : e + 1].reshape(-1))
            for s, e in zip(starts, ends, strict=True)
        }
        self._width = corpus.bytes_of_tokens()
        self._bytes = corpus.tokenizer.token_bytes

    def places(self, document: int) -> np.ndarray:
        """Where each token of a document begins in its bytes, and its end (N + 1,)."""
        return np.concatenate([[0], self._width[self.tokens[document]].cumsum()])

    def data(self, document: int) -> bytes:
        """The bytes of a document."""
        return b"".join(map(self._bytes, self.tokens[document].tolist()))

    def edited(self, document: int, changes: Sequence[tuple[int, int, bytes]]) -> Edited:
        """The document with bytes [a, b) replaced, for each of some changes in order."""
        tokens, places, data = self.tokens[document], self.places(document), self.data(document)
        moved = np.zeros(len(tokens) + 1, np.int64)
        parts: list[np.ndarray] = []
        values: list[np.ndarray] = []
        length = at = 0

        def keep(end: int) -> None:
            nonlocal length, at
            if end > at:
                parts.append(tokens[at:end])
                values.append(np.zeros(end - at, bool))
                moved[at:end] = length + np.arange(end - at)
                length += end - at
                at = end

        for a, b, new in changes:
            start = int(np.searchsorted(places, a, side="right")) - 1
            end = int(np.searchsorted(places, b, side="left"))
            if start < at or end <= start:
                continue
            keep(start)
            text = data[places[start] : a] + new + data[b : places[end]]
            ids = np.array(self.corpus.tokenizer.encode(text.decode("utf-8", "ignore")), np.int32)
            parts.append(ids)
            values.append(np.ones(len(ids), bool))
            moved[start:end] = length + np.minimum(np.arange(end - start), max(0, len(ids) - 1))
            length, at = length + len(ids), end
        keep(len(tokens))
        moved[len(tokens)] = length
        return Edited(np.concatenate(parts), moved, np.concatenate(values))

    def to_learn_from(self) -> tuple[np.ndarray, np.ndarray]:
        """The training documents of more than two chunks (n,), and the share that each has of their text.

        Raises UserError where there is none.
        """
        corpus, shortest = self.corpus, 2 * self.corpus.config.chunk_len
        trained = np.flatnonzero(~(corpus.held_out | corpus.database_only)).tolist()
        lengths = {d: len(self.tokens[d]) for d in trained if d in self.tokens}
        long = {d: length for d, length in lengths.items() if length > shortest}
        if not long:
            raise UserError(
                f"No training document of {corpus.name} has more than {shortest} tokens, and what is learned "
                "is how a text goes on. Build a corpus of longer documents."
            )
        sizes = np.array(list(long.values()), float)
        return np.array(list(long), np.int64), sizes / sizes.sum()

    def windows(self, documents: Sequence[int], length: int, rng: np.random.Generator) -> np.ndarray:
        """A window of each document with the token behind it (n, length + 1), begun anywhere; 0 behind its
        end."""
        rows = np.zeros((len(documents), length + 1), np.int64)
        for row, document in zip(rows, documents, strict=True):
            text = self.tokens[document]
            start = int(rng.integers(0, max(1, len(text) - length)))
            part = text[start : start + length + 1]
            row[: len(part)] = part
        return rows

    def whole(self, document: int) -> Edited:
        """The document as it is."""
        tokens = self.tokens[document]
        return Edited(tokens, np.arange(len(tokens) + 1), np.zeros(len(tokens), bool))


def _real(tokens: np.ndarray) -> np.ndarray:
    return tokens[tokens != 0]


def other_number(number: bytes, rng: np.random.Generator) -> bytes:
    """The number with other digits; as many, the first one no 0 unless it was one."""
    drawn = rng.integers(0, 10, len(number))
    out = bytearray(number)
    for i, digit in enumerate(number):
        if 48 <= digit <= 57:
            out[i] = 48 + int(drawn[i] if i or digit == 48 else max(1, drawn[i]))
    return bytes(out)


def fields_of(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Field -> the place [a, b) of its value, the first where it stands in several lines (one a year).

    A field is its name with the header above it and, where a name stands under one header only, its name.
    """
    headers = [(match.start(), match[1]) for match in HEADER.finditer(data)]
    starts = [start for start, _ in headers]
    found: dict[bytes, tuple[int, int]] = {}
    under: dict[bytes, set[bytes]] = {}
    for match in FIELD.finditer(data):
        above = int(np.searchsorted(starts, match.start())) - 1
        name = re.sub(rb"[\d()]+", b"", match[1]).strip().lower()
        header = headers[above][1].strip().lower() if above >= 0 else b""
        under.setdefault(name, set()).add(header)
        for key in (header + b"/" + name, name):
            found.setdefault(key, match.span(2))
    return {key: span for key, span in found.items() if len(under.get(key, ())) <= 1}


class Side:
    """A corpus as lessons use it: searched, and as texts with their titles."""

    def __init__(self, corpus: Corpus, retriever: TitledRetriever, title_len: int) -> None:
        self.corpus, self.retriever = corpus, retriever
        self.texts, self.titles = Texts(corpus), corpus.title_rows(title_len)


def _with_values_of(source: Side, document: int, database: Side, twin: int) -> Edited:
    """A document with the values of its twin in another edition, wherever both name the same field."""
    data, other = source.texts.data(document), database.texts.data(twin)
    theirs = fields_of(other)
    changes: dict[tuple[int, int], bytes] = {}
    for field, place in fields_of(data).items():
        if field in theirs and place not in changes:  # with its header first
            a, b = theirs[field]
            changes[place] = other[a:b]
    return source.texts.edited(document, [(a, b, new) for (a, b), new in sorted(changes.items())])


class Lessons:
    """All lessons of a run, by number."""

    def __init__(
        self,
        corpus: Corpus,
        retriever: TitledRetriever,
        *,
        seq_len: int,
        num_neighbors: int,
        title_len: int,
        seed: int,
        edition: tuple[Corpus, TitledRetriever] | None = None,
        query_tokens: int,
    ) -> None:
        self.own = Side(corpus, retriever, title_len)
        self.other = Side(*edition, title_len) if edition else self.own
        self.seq_len, self.k, self.title_len, self.seed = seq_len, num_neighbors, title_len, seed
        self.query_tokens, self.chunk_len = query_tokens, corpus.config.chunk_len
        self.texts = self.own.texts
        self.documents, self.weights = self.texts.to_learn_from()
        place = (
            {document.title: i for i, document in enumerate(self.other.corpus.documents)} if edition else {}
        )
        twins = {d: place.get(corpus.documents[d].title, -1) for d in self.documents.tolist()}
        self.twins = [(d, twin) for d, twin in sorted(twins.items()) if twin >= 0]  # (own, of the edition)
        self.shares = SHARES_OF_EDITIONS if self.twins else SHARES

    def lesson(self, number: int) -> Lesson:
        """The lesson of this number."""
        rng = np.random.default_rng([self.seed, 7, number])
        names = list(self.shares)
        kind = names[int(rng.choice(len(names), p=list(self.shares.values())))]
        source = database = self.own
        if kind == "edition":  # either edition may be the one that is written in
            document, twin = self.twins[int(rng.integers(len(self.twins)))]
            database = self.other
            if rng.random() < 0.5:
                source, database, document, twin = database, source, twin, document
            text = _with_values_of(source, document, database, twin)
        else:
            document = int(rng.choice(self.documents, p=self.weights))
            changed = kind == "counterfactual"
            text = self._counterfactual(document, rng) if changed else self.texts.whole(document)
        start = self._start(text, rng)
        tokens = np.zeros(self.seq_len + 1, np.int64)
        part = text.tokens[start : start + self.seq_len + 1]
        tokens[: len(part)] = part
        neighbors = self._neighbors(kind, source, database, document, text, start, rng)
        weights = np.zeros(self.seq_len, np.float32)
        values = text.values[start + 1 : start + self.seq_len + 1]
        weights[: len(part) - 1] = 1.0
        weights[: len(values)] += (VALUE_WEIGHT - 1) * values
        weights[: self.chunk_len - 1] = 0.0  # nothing is read there
        title = source.titles[document]
        return Lesson(kind, document, source is self.own, tokens, title, neighbors, weights)

    def _start(self, text: Edited, rng: np.random.Generator) -> int:
        """Where a window begins: anywhere, or so that a look comes right before a value."""
        most = max(0, len(text.tokens) - self.seq_len - 1)
        begun = np.flatnonzero(text.values & ~np.roll(text.values, 1))
        if len(begun) and rng.random() < 0.7:
            look = int(rng.integers(1, max(2, -(-self.seq_len // self.chunk_len))))
            start = int(rng.choice(begun)) - look * self.chunk_len
            return min(max(0, start), most)
        return int(rng.integers(0, most + 1))

    def _counterfactual(self, document: int, rng: np.random.Generator) -> Edited:
        """The document with other values: of fields those of another document, numbers and names anew."""
        data = self.texts.data(document)
        other = self.texts.data(int(rng.choice(self.documents)))
        theirs = fields_of(other)
        names = [match[0] for match in NAME.finditer(other)] or [b"Somebody Else"]
        drawn: dict[bytes, bytes] = {}
        whole: dict[tuple[int, int], bytes] = {}
        if rng.random() < 0.5:  # whole values of another document, or new numbers and names within
            for field, (a, b) in fields_of(data).items():
                if field in theirs and (a, b) not in whole and rng.random() < CHANGED:
                    c, d = theirs[field]
                    if other[c:d] != data[a:b]:
                        whole[a, b] = other[c:d]
        changes = [(a, b, new) for (a, b), new in whole.items()]
        for pattern in (NUMBER, NAME):
            for match in pattern.finditer(data):
                if rng.random() > CHANGED:
                    continue
                new = drawn.get(match[0])
                if new is None:
                    new = (
                        other_number(match[0], rng) if pattern is NUMBER else names[rng.integers(len(names))]
                    )
                    drawn[match[0]] = new
                changes.append((*match.span(), new))
        kept: list[tuple[int, int, bytes]] = []
        for a, b, new in sorted(changes, key=lambda one: (one[0], -one[1])):
            inside = any(c <= a and b <= d and (a, b) != (c, d) for c, d in whole)
            if not inside and (not kept or a >= kept[-1][1]):
                kept.append((a, b, new))
        return self.texts.edited(document, kept)

    def _neighbors(
        self,
        kind: str,
        source: Side,
        database: Side,
        document: int,
        text: Edited,
        start: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """(L, K, R): what is found at each look of the window that begins at token `start` of `text`."""
        looks, corpus = self.seq_len // self.chunk_len, database.corpus
        rows = np.zeros((looks, self.k, self.title_len + 2 * self.chunk_len), np.int64)
        kept = np.zeros(rows.shape, bool)  # values that are to be read are never overwritten
        asking = document
        if kind == "shuffled":
            others = self.documents[self.documents != document]
            asking = int(rng.choice(others if len(others) else self.documents))
            length = len(self.texts.tokens[asking])
            ends = int(rng.integers(0, max(1, length - self.seq_len))) + self._ends()
        else:  # the index holds the text as it was
            ends = start + self._ends()
            ends = np.searchsorted(text.moved, ends[ends <= len(text.tokens)], side="left")
        tokens = source.texts.tokens[asking]
        ends = ends[ends <= len(tokens)]
        if not len(ends):
            return rows
        queries = np.stack([_last(tokens[:end], self.query_tokens) for end in ends])
        own = self.texts.first_chunk[asking] + (ends - 1) // self.chunk_len if kind == "others" else None
        title = source.corpus.documents[asking].title
        found = database.retriever.search(queries, self.k, own=own, titles=[title] * len(queries)).ids
        for look, rank in np.argwhere(found >= 0).tolist():
            chunk = int(found[look, rank])
            of = int(corpus.chunks.document[chunk])
            if kind == "shuffled" and of == document:
                continue
            rows[look, rank, : self.title_len] = database.titles[of]
            content = rows[look, rank, self.title_len :]
            if kind == "counterfactual" and of == document:
                at = int(text.moved[(chunk - self.texts.first_chunk[of]) * self.chunk_len])
                part = text.tokens[at : at + 2 * self.chunk_len]
                content[: len(part)] = part
                kept[look, rank, self.title_len :][: len(part)] = text.values[at : at + len(part)]
            else:
                content[:] = corpus.chunks.with_continuation(np.array(chunk))
        if kind == "counterfactual" and rng.random() < 0.5:
            kept[..., : self.title_len] = True
            self._overwrite(rows, kept, rng)
        return rows

    def _ends(self) -> np.ndarray:
        """Behind which token of a window each look comes (L,)."""
        return self.chunk_len * np.arange(1, self.seq_len // self.chunk_len + 1)

    def _overwrite(self, rows: np.ndarray, kept: np.ndarray, rng: np.random.Generator) -> None:
        """Put some document's tokens over up to MOST_OVERWRITTEN of rows (L, K, R) that are not `kept`."""
        struck = rng.random((len(rows), 1, 1)) * MOST_OVERWRITTEN
        hit = (rng.random(rows.shape) < struck) & (rows != 0) & ~kept
        pool = self.texts.tokens[int(rng.choice(self.documents))]
        rows[...] = np.where(hit, rng.choice(pool, rows.shape), rows)


def _last(tokens: np.ndarray, count: int) -> np.ndarray:
    """The last `count` tokens, padded before with 0."""
    part = tokens[-count:]
    return np.pad(part, (count - len(part), 0))


class ReaderBatches:
    """Batches of lessons: `lessons` different ones, in a new order each time around.

    What the frozen layers make of a lesson is kept while there is room, so that the next time is cheap; it is
    always made for one lesson alone, and so the same whenever it is made.
    """

    def __init__(self, lessons: Lessons, model: Reader, *, count: int, batch_size: int, room: int) -> None:
        self.lessons, self.model, self.count, self.batch_size = lessons, model, count, batch_size
        self.room = room
        self.windows_per_epoch = count
        self._kept: dict[int, ReaderBatch] = {}
        self._bytes = 0
        self._last_order = -1, np.zeros(0, np.int64)

    def one(self, number: int) -> ReaderBatch:
        """A lesson as a batch of one, with what the frozen layers make of it."""
        if number in self._kept:
            return self._kept[number]
        lesson = self.lessons.lesson(number)
        tokens, title, neighbors, weights = (
            torch.from_numpy(part)[None].to(self.model.device)
            for part in (lesson.tokens, lesson.title.astype(np.int64), lesson.neighbors, lesson.weights)
        )
        ahead = self.model.read_ahead(tokens[:, :-1], title, neighbors, keep=False)
        ahead = Ahead(ahead.stream, ahead.start, ahead.queries.half(), ahead.keys.half())
        batch = ReaderBatch(tokens, title, neighbors, weights, ahead)
        size = sum(part.numel() * part.element_size() for part in (*batch[:4], *ahead))
        if self._bytes + size <= self.room:
            self._kept[number] = batch
            self._bytes += size
        return batch

    def keep(self, number: int) -> bool:
        """Prepare a lesson before it is needed; False where there is no room to keep it."""
        self.one(number)
        return number in self._kept

    def lessons_of(self, steps: range) -> list[int]:
        """The lessons of some steps, each once, in the order in which they come."""
        return list(dict.fromkeys(number for step in steps for number in self._numbers(step)))

    def _numbers(self, step: int) -> list[int]:
        draws = (
            divmod(draw, self.count) for draw in range(step * self.batch_size, (step + 1) * self.batch_size)
        )
        return [int(self._order(around)[place]) for around, place in draws]

    def _order(self, around: int) -> np.ndarray:
        """The order of the lessons in the so-many-th time around."""
        if around != self._last_order[0]:
            order = np.random.default_rng([self.lessons.seed, 8, around]).permutation(self.count)
            self._last_order = around, order
        return self._last_order[1]

    def train_batch(self, step: int) -> ReaderBatch:
        """The batch of optimizer step `step`."""
        return joined([self.one(number) for number in self._numbers(step)])


def joined(batches: Sequence[ReaderBatch]) -> ReaderBatch:
    """Batches of one as one batch; streams are padded to the longest."""
    aheads = [batch.ahead for batch in batches if batch.ahead is not None]
    longest = max(ahead.stream.shape[1] for ahead in aheads)
    streams = [
        torch.nn.functional.pad(ahead.stream, (0, 0, 0, longest - ahead.stream.shape[1])) for ahead in aheads
    ]
    rest = [torch.cat(parts) for parts in zip(*(ahead[1:] for ahead in aheads), strict=True)]
    tokens, titles, neighbors, weights = (
        torch.cat(parts) for parts in zip(*(batch[:4] for batch in batches), strict=True)
    )
    start, queries, keys = rest
    return ReaderBatch(tokens, titles, neighbors, weights, Ahead(torch.cat(streams), start, queries, keys))


def reader_passes(corpus: Path, settings: Mapping[str, Any]) -> float:
    """Passes over its lessons that the training of a reader makes."""
    return passes_of(settings["steps"], settings["batch_size"], max(1, settings["lessons"]))
