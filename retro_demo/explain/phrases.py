"""Which neighbors a sentence owes itself to, and which sentences of theirs a phrase does.

Citations by sentence come from the ablations that a trace holds already: the Shapley values of its neighbors.
A phrase is attributed to sentences as ContextCite does (Cohen-Wang et al. 2024): each sentence is taken out
of the neighbors alone, and the few that matter most in every combination. To take one out is to pad it out,
so a retro, a retrofit and a reader are asked alike.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.explain.attribution import ROWS, attribute, read_losses
from retro_demo.explain.tracing import Trace
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO

CITED = 1.0  # nats: without the neighbor the sentence would be e times less likely
FEW = 4  # sentences whose every combination is read
MOST_SENTENCES = 16  # taken out one by one

# a sentence ends at its mark, or with its line; "e.g. the" goes on
_ENDS = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+(?=[^\sa-z])|[\u3002\uff01\uff1f]+[\u300d\u300f]?|\n\s*"
)


def sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of a text, as characters start to end - 1; together they are the text."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    ends = sorted({*ends, len(text)} - {0})
    return list(zip([0, *ends], ends, strict=False))


def cite(trace: Trace) -> list[dict[str, Any]]:
    """For each sentence of a text the documents that it owes itself to, most first.

    start, end: characters of the text; gain: nats that reading was worth; cited: documents whose neighbors
    lowered the loss of its tokens by CITED nats or more (sum of their Shapley values), with the places
    that were read: chunk of the text, neighbor, chunk of the corpus. Empty where the text has no neighbors.
    """
    if not trace.neighbors:
        return []
    text = "".join(trace.pieces)
    parts = sentences(text)
    which = _parts_of(trace.pieces, parts)
    rows = []
    for number, (start, end) in enumerate(parts):
        own = np.flatnonzero(which == number)
        effects: dict[str, dict[str, Any]] = {}
        for t, chunk in _readers(trace, own):
            for k, found in enumerate(trace.neighbors[chunk]):
                new = {"document": found["document"], "title": found["title"], "nats": 0.0, "places": []}
                one = effects.setdefault(found["document"], new)
                one["nats"] += float(trace.numbers.shapley[t - 1, k])
                place = {"chunk": chunk, "neighbor": k, "corpus_chunk": found["chunk"]}
                if place not in one["places"]:
                    one["places"].append(place)
        cited = sorted(
            (one for one in effects.values() if one["nats"] >= CITED), key=lambda one: -one["nats"]
        )
        gain = sum(float(trace.numbers.gain[t - 1]) for t, _ in _readers(trace, own))
        rows.append({"start": start, "end": end, "text": text[start:end], "gain": gain, "cited": cited})
    return rows


def _parts_of(pieces: Sequence[str], parts: Sequence[tuple[int, int]]) -> np.ndarray:
    """In which of the parts of "".join(pieces) each piece has its last character, int (T,)."""
    last = np.maximum(1, np.cumsum([len(piece) for piece in pieces])) - 1
    return np.minimum(np.searchsorted([end for _, end in parts], last, side="right"), len(parts) - 1)


def _readers(trace: Trace, tokens: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """(token, chunk) of those tokens that could read neighbors: those of the chunk before their own."""
    pairs = ((int(t), int(t) // trace.chunk_len - 1) for t in tokens)
    return [(t, chunk) for t, chunk in pairs if 0 <= chunk < len(trace.neighbors)]


@dataclass(frozen=True)
class SourceSentence:
    """A sentence of a document, as far as neighbors showed it.

    first, end: its tokens in the corpus, counted over all chunks (chunk C + place in it). places (3, n):
    chunk, neighbor and token, where these stand among the neighbors of the text (L, K, R); a token that
    several neighbors show stands there several times.
    """

    document: str
    title: str
    text: str
    first: int
    end: int
    places: np.ndarray


@dataclass(frozen=True)
class AttributionPlan:
    """What attributing a phrase will read, known before it begins.

    tokens: those of the phrase that could read neighbors. left_out: sentences that are not tried, of the
    neighbors that mattered least. few: of how many sentences every combination is read. readings: how often
    the first `length` tokens of the text are read.
    """

    start: int
    end: int
    tokens: list[int]
    sentences: list[SourceSentence]
    left_out: int
    few: int
    length: int

    @property
    def readings(self) -> int:
        return _cost(len(self.sentences), self.few)


def _cost(count: int, few: int) -> int:
    """Readings: as it is, without each sentence, and each other combination of the few."""
    few = min(few, count)
    return 1 + count + max(0, 2**few - 1 - few)


def find_phrase(text: str, phrase: str, occurrence: int = 1, where: str = "") -> tuple[int, int]:
    """Where a phrase stands in a text, characters start to end - 1; UserError where it does not.

    `where` says in an error which part of a longer text this is, as in " on page 1 of 2".
    """
    if not isinstance(phrase, str) or not phrase.strip():
        raise UserError("The phrase is empty. Give a few words of the text, as they stand there.")
    starts, at = [], text.find(phrase)
    while at >= 0 and len(starts) < occurrence:
        starts.append(at)
        at = text.find(phrase, at + 1)
    if not starts:
        raise UserError(
            f"The text{where} does not hold the phrase {phrase[:80]!r}. Copy it from the text as it stands."
        )
    if not 1 <= occurrence <= len(starts):
        raise UserError(
            f"The text{where} holds the phrase {len(starts)} times, and occurrence is {occurrence}."
        )
    return starts[occurrence - 1], starts[occurrence - 1] + len(phrase)


def plan_attribution(trace: Trace, start: int, end: int, most_tokens: int = 0) -> AttributionPlan:
    """How characters start to end - 1 of a text would be attributed to sentences of its neighbors.

    most_tokens: so many may be read in all, 0 for no limit; fewer sentences are tried then. Raises UserError
    where the text was read without neighbors, or none of these characters could read any.
    """
    if not trace.neighbors:
        raise UserError("This text was read without neighbors, so no sentence of theirs can be the cause.")
    ends = np.cumsum([len(piece) for piece in trace.pieces])
    begins = ends - [len(piece) for piece in trace.pieces]
    own = np.flatnonzero((begins < end) & (ends > start) & (ends > begins))
    readers = _readers(trace, own)
    if not readers:
        raise UserError(
            f"These words read no neighbors: neither do the first {trace.chunk_len} tokens of a text, nor "
            "those after the last chunk that found some. Choose other words."
        )
    length = readers[-1][0] + 1
    found = _by_effect(trace, readers)
    count, few = min(len(found), MOST_SENTENCES), FEW
    if most_tokens:
        while few and _cost(count, few) * length > most_tokens:
            few -= 1
        if _cost(count, few) * length > most_tokens:
            count = max(1, min(count, most_tokens // length - 1))
    tokens = [t for t, _ in readers]
    return AttributionPlan(
        int(begins[own[0]]), int(ends[own[-1]]), tokens, found[:count], len(found) - count, few, length
    )


def _by_effect(trace: Trace, readers: Sequence[tuple[int, int]]) -> list[SourceSentence]:
    """The sentences that these tokens could read, those of the neighbors with the largest effect first."""
    effects: dict[tuple[int, int], float] = {}
    for t, chunk in readers:
        for k in range(len(trace.neighbors[chunk])):
            effects[chunk, k] = effects.get((chunk, k), 0.0) + float(trace.numbers.shapley[t - 1, k])
    found = _source_sentences(trace, list(effects))
    return sorted(found, key=lambda one: -max(abs(effects[u, k]) for u, k in one.places[:2].T.tolist()))


def _source_sentences(trace: Trace, read: Sequence[tuple[int, int]]) -> list[SourceSentence]:
    """The sentences of the neighbors (chunk, neighbor), each once, whichever of them show it.

    Neighbors are stretches of documents and may overlap: they are laid over each other first.
    """
    pieces: dict[str, dict[int, str]] = {}
    places: dict[int, list[tuple[int, int, int]]] = {}
    titles: dict[str, str] = {}
    for u, k in read:
        found = trace.neighbors[u][k]
        titles[found["document"]] = found["title"]
        for r in np.flatnonzero(trace.neighbor_tokens[u, k]).tolist():
            at = found["chunk"] * trace.chunk_len + r
            pieces.setdefault(found["document"], {})[at] = found["pieces"][r]
            places.setdefault(at, []).append((u, k, r))
    sources = []
    for document, shown in pieces.items():
        ordered = np.array(sorted(shown))
        for run in np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1):
            run_pieces = [shown[at] for at in run.tolist()]
            parts = sentences("".join(run_pieces))
            which = _parts_of(run_pieces, parts)
            for number in range(len(parts)):
                own = run[which == number].tolist()
                text = "".join(shown[at] for at in own).strip()
                if text:
                    there = np.array([place for at in own for place in places[at]]).T
                    sources.append(
                        SourceSentence(document, titles[document], text, own[0], own[-1] + 1, there)
                    )
    return sources


@dataclass(frozen=True)
class PhraseAttribution:
    """Which sentences a phrase owes itself to, in nats of its log-probability, most first.

    alone (n,): what is lost without each sentence of the plan alone. shapley (n,): its Shapley value among
    the few that matter most, the others there; NaN for those others. together: what all neighbors were worth.
    """

    plan: AttributionPlan
    alone: np.ndarray
    shapley: np.ndarray
    together: float


def attribute_phrase(
    model: RETRO | Reader, trace: Trace, plan: AttributionPlan
) -> Iterator[Progress | PhraseAttribution]:
    """Read the text without sentences of its neighbors, as planned; the last that is yielded is the result.

    Source: Cohen-Wang et al. 2024 (ContextCite); Shapley 1953.
    """
    count = len(plan.sentences)
    lost: dict[frozenset[int], float] = {}
    targets = np.array(plan.tokens) - 1

    def read(removals: Sequence[frozenset[int]]) -> Iterator[Progress]:
        """Measure the phrase without these sentences."""
        for begin in range(0, len(removals), ROWS):
            some = removals[begin : begin + ROWS]
            reads = np.stack([_without(trace, plan, removed) for removed in some])
            losses = read_losses(model, np.array(trace.ids[: plan.length]), reads)[:, targets].sum(axis=1)
            lost.update(zip(some, losses.tolist(), strict=True))
            yield Progress("attribute", len(lost), plan.readings)

    yield from read([frozenset(), *(frozenset([one]) for one in range(count))])
    alone = np.array([lost[frozenset([one])] - lost[frozenset()] for one in range(count)])
    shapley = np.full(count, np.nan)
    few = np.argsort(-np.abs(alone), kind="stable")[: plan.few].tolist()
    if few:
        every = (frozenset(some) for size in range(2, len(few) + 1) for some in combinations(few, size))
        yield from read(list(every))

        def losses(wanted: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
            there = {coalition: {few[player] for player in coalition} for coalition in wanted}
            return {one: np.array([lost[frozenset(set(few) - kept)]]) for one, kept in there.items()}

        shapley[few] = attribute(len(few), losses, 1)[0][0]
    together = float(trace.numbers.gain[targets].sum())
    yield PhraseAttribution(plan, alone, shapley, together)


def _without(trace: Trace, plan: AttributionPlan, removed: frozenset[int]) -> np.ndarray:
    """What the text reads (L, K, P + R) with these sentences padded out, and a neighbor where all are."""
    rows = trace.rows.copy()
    titles = rows.shape[-1] - trace.neighbor_tokens.shape[-1]
    for one in removed:
        chunk, neighbor, token = plan.sentences[one].places
        rows[chunk, neighbor, titles + token] = 0
    gone = ~rows[..., titles:].any(axis=-1)
    rows[gone] = 0  # a title alone says nothing
    return rows[: plan.length // trace.chunk_len]


def phrase_json(trace: Trace, made: PhraseAttribution) -> dict[str, Any]:
    """An attribution for programs: its sentences in the order of what they were worth, and what it took."""
    plan, text = made.plan, "".join(trace.pieces)
    best = np.where(np.isnan(made.shapley), made.alone, made.shapley)
    return {
        "start": plan.start,
        "end": plan.end,
        "phrase": text[plan.start : plan.end],
        "gain": made.together,
        "sentences": [
            {
                "document": one.document,
                "title": one.title,
                "text": one.text,
                "first_token": one.first,
                "end_token": one.end,
                "alone": float(made.alone[at]),
                "shapley": None if np.isnan(made.shapley[at]) else float(made.shapley[at]),
                "places": sorted({(u, k) for u, k in one.places[:2].T.tolist()}),
            }
            for at in np.argsort(-best, kind="stable").tolist()
            for one in [plan.sentences[at]]
        ],
        "sentences_left_out": plan.left_out,
        "readings": plan.readings,
        "tokens_read": plan.readings * plan.length,
    }
