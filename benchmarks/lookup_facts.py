"""What a model makes of the facts of the lookup world: their loss by arm, and edited answers.

The floor of a fact is what it costs at least without retrieval: ln(values of its kind) nats, exactly,
as values are drawn uniformly. Only held-out facts that retrieval can reach are measured.

Shapes: N chunks of the corpus, C chunk length, W windows, L chunks of a window, K neighbors, R = 2 C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from retro_demo.corpus.samples import Fact, find_facts, values_of_kinds
from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import Arms
from retro_demo.evaluation.losses import read_arm
from retro_demo.explain.attribution import log_probabilities
from retro_demo.explain.edits import fit, replaced
from retro_demo.models.retro import RETRO

READ_WINDOWS = 32  # windows in one forward


def fact_floors(corpus: Corpus) -> np.ndarray:
    """The floor of each token of each chunk in nats, float32 (N, C); 0 where no fact stands.

    A value of several tokens shares its floor out evenly.
    """
    widths, floors = corpus.bytes_of_tokens(), np.zeros(corpus.chunks.tokens.shape, dtype=np.float32)
    first = np.searchsorted(corpus.chunks.document, np.arange(len(corpus.documents) + 1))
    for number, document in enumerate(corpus.documents):
        rows = slice(first[number], first[number + 1])
        ends = np.cumsum(widths[corpus.chunks.tokens[rows].reshape(-1)])
        of_document = floors[rows].reshape(-1)  # a view: rows lie one behind the other
        for fact in find_facts(document.text):
            start = len(document.text[: fact.start].encode())
            end = start + len(fact.value.encode())
            tokens = slice(np.searchsorted(ends, start, "right"), np.searchsorted(ends, end) + 1)
            values = len(values_of_kinds()[fact.kind])
            of_document[tokens] = math.log(values) / (tokens.stop - tokens.start)
    return floors


def reached_floors(arms: Arms, floors: np.ndarray) -> np.ndarray:
    """The floors of the tokens that retrieval can reach in each window: (W, (L - 1) C); 0 = no fact."""
    rows = arms.windows.rows[:, 1:]
    return np.where((rows >= 0)[..., None], floors[rows], 0).reshape(len(rows), -1)


def measure_facts(model: RETRO, arms: Arms, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Loss of each arm on the held-out facts: {"on": {nats, found}, ..., "floor": {nats, facts}}.

    nats are a token's; found is the share of the tokens that stand in the neighbors which reach them.
    The arm "off" of an `lm` is the matched baseline. Raises UserError where there are no facts.
    """
    floors = reached_floors(arms, fact_floors(arms.corpus))
    there = floors > 0
    if not there.any():
        raise UserError(
            f"No fact of the lookup world stands where retrieval reaches it in {arms.corpus.name}: "
            "measure on sample:lookup, or on a corpus of write_lookup_world."
        )
    model.eval()
    out = {"floor": {"nats": float(floors[there].mean()), "facts": float(there.sum())}}
    for name in names:
        losses = [read_arm(model, arms, name, which) for which in _parts(len(there))]
        found = [_found(arms, name, which) for which in _parts(len(there))]
        out[name] = {
            "nats": float(np.concatenate(losses)[there].mean()),
            "found": float(np.concatenate(found)[there].mean()),
        }
    return out


def _parts(count: int) -> Iterator[np.ndarray]:
    return (np.arange(i, min(i + READ_WINDOWS, count)) for i in range(0, count, READ_WINDOWS))


def _found(arms: Arms, name: str, which: np.ndarray) -> np.ndarray:
    """Whether each reached token stands among the neighbors shown to it: bool (w, (L - 1) C)."""
    chunk_len = arms.corpus.config.chunk_len
    shown = arms.neighbors(name, which)  # (w, L - 1, K, R)
    asked = arms.tokens(which)[:, chunk_len:].reshape(*shown.shape[:2], chunk_len, 1)
    return (asked == shown.reshape(*shown.shape[:2], 1, -1)).any(axis=-1).reshape(len(which), -1)


@dataclass(frozen=True)
class Flips:
    """How answers follow edited neighbors, in so many cases; an answer is the likeliest next token.

    right: the answer was the true value before any edit; followed: it is the planted value after the
    value was replaced by another of its kind; strayed: it changed although another fact was edited.
    """

    cases: int
    right: float
    followed: float
    strayed: float


def edit_flips(model: RETRO, arms: Arms, cases: int = 200, seed: int = 0) -> Flips:
    """Plant other values in the neighbors of held-out facts and see whether the answers follow.

    A case is a held-out fact whose value stands in its neighbors, which also hold another fact to edit
    as control. The neighbors' text is edited wherever the value stands, and tokenized anew. Raises
    UserError where there are fewer cases.
    """
    rng = np.random.default_rng([seed, 4])
    mask = reached_floors(arms, fact_floors(arms.corpus)) > 0
    chosen: list[tuple[bool, bool, bool]] = []
    for window, place in rng.permutation(np.argwhere(mask)):
        if len(chosen) == cases:
            break
        if (case := _try_edits(model, arms, int(window), int(place), rng)) is not None:
            chosen.append(case)
    if len(chosen) < cases:
        raise UserError(
            f"Only {len(chosen)} held-out facts stand in their neighbors beside another fact; ask for "
            f"{len(chosen)} cases instead of {cases}, or build a larger world."
        )
    right, followed, strayed = np.mean(chosen, axis=0).tolist()
    return Flips(cases, right, followed, strayed)


def _try_edits(
    model: RETRO, arms: Arms, window: int, place: int, rng: np.random.Generator
) -> tuple[bool, bool, bool] | None:
    """(right, followed, strayed) of the fact `place` tokens after a window's first chunk, None = no case."""
    tokenizer, chunk_len = arms.corpus.tokenizer, arms.corpus.config.chunk_len
    tokens = arms.tokens(np.array([window]))[0]
    neighbors = arms.neighbors("on", np.array([window]))[0]
    position, chunk = chunk_len + place, place // chunk_len  # chunk: whose neighbors reach the position
    asked = find_facts(tokenizer.decode(tokens[position : position + 1]))
    texts = [[tokenizer.decode(part) for part in row.reshape(2, -1)] for row in neighbors[chunk]]
    told = [fact for pair in texts for text in pair for fact in find_facts(text)]
    if not asked or asked[0].value not in {fact.value for fact in told}:
        return None  # of several tokens, or nothing to edit
    truth = asked[0]
    others = sorted({fact.value: fact for fact in told if fact.kind != truth.kind}.values())
    if not others:
        return None
    control = others[rng.integers(len(others))]
    versions = [neighbors]
    answers = [truth.value]
    for fact in (truth, control):
        planted = _another(fact, told, rng)
        answers.append(planted)
        version = neighbors
        for number, pair in enumerate(texts):
            edited = [_with_value(text, fact.value, planted) for text in pair]
            row, _ = fit([tokenizer.encode(text) for text in edited], chunk_len)
            if edited != pair:
                version = replaced(version, chunk, number, row)
        versions.append(version)
    text = tokens[:position]
    whole = len(text) // chunk_len
    likeliest = log_probabilities(model, text, np.stack(versions)[:, :whole])[:, -1].argmax(dim=-1).tolist()
    true_id, planted_id = (tokenizer.encode(f" {value}")[0] for value in answers[:2])
    return likeliest[0] == true_id, likeliest[1] == planted_id, likeliest[2] != likeliest[0]


def _another(fact: Fact, told: list[Fact], rng: np.random.Generator) -> str:
    """Another value of the fact's kind that none of the neighbors tells."""
    there = {one.value for one in told}
    free = [value for value in values_of_kinds()[fact.kind] if value not in there]
    return free[rng.integers(len(free))]


def _with_value(text: str, value: str, planted: str) -> str:
    """The text with `planted` wherever the value stands as a fact."""
    for fact in reversed(find_facts(text)):
        if fact.value == value:
            text = text[: fact.start] + planted + text[fact.end :]
    return text
