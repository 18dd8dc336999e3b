"""Sentences that cite neighbors, and phrases attributed to sentences of neighbors."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from explain_helpers import MODEL
from torch import Tensor, nn

from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.explain.attribution import measure, read_losses
from retro_demo.explain.phrases import (
    CITED,
    FEW,
    PhraseAttribution,
    _cost,
    attribute_phrase,
    cite,
    find_phrase,
    phrase_json,
    plan_attribution,
    sentences,
)
from retro_demo.explain.tracing import Trace
from retro_demo.models.config import RetroConfig

C = 8
NAMES = ["The", "capital", "of", "Arden", "Corvo", "is", "Gulm", "Lorn", "river", "runs", "by", "hills"]
WORDS = ["", "\n", *(f" {name}" for name in NAMES), ".", " It", " A", " far"]
NUMBER = {word: at for at, word in enumerate(WORDS)}


class Copier(nn.Module):
    """A network that is known: a token that follows the last two in a neighbor of the chunk before is e^6
    times as likely as the others."""

    def __init__(self) -> None:
        super().__init__()
        self.config = RetroConfig(vocab_size=len(WORDS), chunk_len=C, dim=16, num_heads=2, enc_dim=16)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, neighbors: Tensor | None = None) -> Tensor:
        logits = torch.zeros(*tokens.shape, len(WORDS))
        if neighbors is None:
            return logits
        for b, t in np.ndindex(*tokens.shape):
            chunk = (t + 1) // C - 1
            if 0 <= chunk < neighbors.shape[1] and t:
                pair = tokens[b, t - 1 : t + 1].tolist()
                for row in neighbors[b, chunk].tolist():
                    for at in range(len(row) - 2):
                        if row[at : at + 2] == pair and row[at + 2]:
                            logits[b, t, row[at + 2]] = 6.0
        return logits


def ids(text: str, length: int) -> list[int]:
    rest, found = text, []
    while rest:
        word = next(one for one in sorted(WORDS[1:], key=len, reverse=True) if rest.startswith(one))
        found.append(NUMBER[word])
        rest = rest[len(word) :]
    return found + [0] * (length - len(found))


def neighbor(document: str, chunk: int, text: str) -> tuple[dict[str, Any], list[int]]:
    row = ids(text, 2 * C)
    pieces = [WORDS[one] for one in row]
    return {
        "document": document,
        "title": document.upper(),
        "chunk": chunk,
        "score": 1.0,
        "pieces": pieces,
    }, row


def made(text: str, found: list[list[tuple[dict[str, Any], list[int]]]], model: Any) -> Trace:
    """A trace of a text with these neighbors of each chunk, measured."""
    tokens = ids(text, 0)
    read = np.array([[row for _, row in one] for one in found], dtype=np.int64)
    pieces = [WORDS[one] for one in tokens]
    return Trace(
        {}, C, 0, tokens, pieces, pieces, [], [[one for one, _ in chunk] for chunk in found], [], {},
        torch.zeros(0), read, measure(model, np.array(tokens), read),
    )  # fmt: skip


FACTS = " A river runs by hills. The capital of Arden is Gulm."
OTHERS = " It runs far. The capital of Corvo is Lorn."
TEXT = " It is far. A river. The capital of Arden is Gulm. It runs"


@pytest.fixture(scope="module")
def lookup() -> tuple[Copier, Trace]:
    model = Copier()
    facts, others = neighbor("facts", 10, FACTS), neighbor("others", 40, OTHERS)
    return model, made(TEXT, [[others, facts]], model)


def attributed(model: Any, trace: Trace, phrase: str, most: int = 0) -> PhraseAttribution:
    plan = plan_attribution(trace, *find_phrase("".join(trace.pieces), phrase), most)
    *steps, found = attribute_phrase(model, trace, plan)
    assert isinstance(found, PhraseAttribution)
    assert steps
    assert isinstance(steps[-1], Progress)
    assert (steps[-1].done, steps[-1].total) == (plan.readings, plan.readings)
    return found


def test_a_copied_value_is_attributed_to_the_sentence_that_holds_it(lookup):
    found = phrase_json(lookup[1], attributed(*lookup, " Gulm"))

    first, *rest = found["sentences"]
    assert first["text"] == "The capital of Arden is Gulm."
    assert first["document"] == "facts"
    assert first["alone"] > 2
    assert first["shapley"] == pytest.approx(first["alone"], abs=1e-4)
    assert len(rest) == 3
    for other in rest:
        assert abs(other["alone"]) < 1e-5
    assert found["gain"] == pytest.approx(first["alone"], abs=1e-4)
    assert found["phrase"] == " Gulm"


def test_two_sentences_that_say_the_same_share_what_neither_loses_alone():
    model = Copier()
    one, other = (
        neighbor("one", 10, FACTS),
        neighbor("other", 40, " The capital of Arden is Gulm. It runs far."),
    )
    found = phrase_json(trace := made(TEXT, [[one, other]], model), attributed(model, trace, " Gulm"))

    shares = {row["document"]: row for row in found["sentences"] if "Gulm" in row["text"]}
    assert set(shares) == {"one", "other"}
    for row in shares.values():
        assert abs(row["alone"]) < 1e-5
        assert row["shapley"] == pytest.approx(found["gain"] / 2, abs=1e-4)


def test_a_sentence_that_two_neighbors_show_is_one_and_is_taken_out_of_both():
    model = Copier()
    row = ids(FACTS, 2 * C)
    half = {"document": "facts", "title": "F", "score": 1.0}
    first = ({**half, "chunk": 10, "pieces": [WORDS[i] for i in row]}, row)
    later = row[C:] + [0] * C
    second = ({**half, "chunk": 11, "pieces": [WORDS[i] for i in later]}, later)
    trace = made(TEXT, [[first, second]], model)

    found = attributed(model, trace, " Gulm")

    texts = [one.text for one in found.plan.sentences]
    assert sorted(texts) == ["A river runs by hills.", "The capital of Arden is Gulm."]
    assert found.alone[texts.index("The capital of Arden is Gulm.")] > 2


def test_a_sentence_cites_the_document_whose_neighbor_made_it_likely(lookup):
    rows = {row["text"].strip(): row for row in cite(lookup[1])}

    (cited,) = rows["The capital of Arden is Gulm."]["cited"]
    assert cited["document"] == "facts"
    assert cited["places"] == [{"chunk": 0, "neighbor": 1, "corpus_chunk": 10}]
    assert cited["nats"] >= CITED
    assert rows["It is far."]["cited"] == []
    assert "".join(TEXT[row["start"] : row["end"]] for row in rows.values()) == TEXT


@pytest.fixture(scope="module")
def random_trace() -> Trace:
    """Many short sentences, read by a small network with random weights."""
    config = MODEL.config
    rng = np.random.default_rng(3)
    names = [["X. ", "A", " b", "C. "][at % 4] for at in range(config.vocab_size)]
    tokens = rng.integers(2, config.vocab_size, 4 * config.chunk_len)
    read = rng.integers(2, config.vocab_size, (4, 3, 2 * config.chunk_len))
    found = [
        [
            {
                "document": f"d{k}",
                "title": "",
                "chunk": 100 * u + 10 * k,
                "pieces": [names[i] for i in read[u, k]],
            }
            for k in range(3)
        ]
        for u in range(4)
    ]
    pieces = [names[i] for i in tokens]
    return Trace(
        {}, config.chunk_len, 0, tokens.tolist(), pieces, pieces, [], found, [], {}, torch.zeros(0), read,
        measure(MODEL, tokens, read),
    )  # fmt: skip


def test_what_a_sentence_is_worth_is_the_loss_with_it_padded_out_of_the_neighbors(random_trace):
    ends = np.cumsum([len(piece) for piece in random_trace.pieces])
    plan = plan_attribution(random_trace, int(ends[8]), int(ends[10]))
    *_, found = attribute_phrase(MODEL, random_trace, plan)
    assert isinstance(found, PhraseAttribution)
    reads = [random_trace.rows]
    for one in plan.sentences:
        changed = random_trace.rows.copy()
        changed[tuple(one.places)] = 0
        reads.append(changed)

    losses = read_losses(MODEL, np.array(random_trace.ids), np.stack(reads))
    told = losses[:, np.array(plan.tokens) - 1].sum(axis=1)

    assert plan.tokens == [9, 10]
    assert len(plan.sentences) > FEW
    np.testing.assert_allclose(found.alone, told[1:] - told[0], atol=1e-4)
    few = np.flatnonzero(~np.isnan(found.shapley))
    without_few = random_trace.rows.copy()
    for one in few:
        without_few[tuple(plan.sentences[one].places)] = 0
    gone = read_losses(MODEL, np.array(random_trace.ids), without_few[None])[
        0, np.array(plan.tokens) - 1
    ].sum()
    assert len(few) == FEW
    assert found.shapley[few].sum() == pytest.approx(gone - told[0], abs=1e-4)


@pytest.mark.parametrize("most", [40, 100, 200, 10_000])
def test_no_more_is_read_than_is_allowed_and_the_plan_says_how_much_before(random_trace, most):
    ends = np.cumsum([len(piece) for piece in random_trace.pieces])
    plan = plan_attribution(random_trace, int(ends[8]), int(ends[10]), most)
    calls: list[int] = []
    hook = MODEL.register_forward_pre_hook(lambda _model, inputs: calls.append(inputs[0].numel()))

    *_, _last = attribute_phrase(MODEL, random_trace, plan)

    hook.remove()
    whole = plan_attribution(random_trace, int(ends[8]), int(ends[10]))
    assert sum(calls) == plan.readings * plan.length <= max(most, 2 * plan.length)
    assert len(plan.sentences) + plan.left_out == len(whole.sentences) + whole.left_out
    assert (plan.readings == whole.readings) == (most == 10_000)


def test_the_reckoned_readings_are_all_sets_that_are_taken_out():
    for count in range(1, 9):
        few = min(FEW, count)
        sets = {frozenset(), *(frozenset([one]) for one in range(count))}
        sets |= {frozenset(some) for size in range(few + 1) for some in combinations(range(few), size)}
        assert _cost(count, FEW) == len(sets)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three? four", ["One. ", "Two! ", "Three? four"]),
        ("Capital: Gulm\nArea: 3.5 km\n\nEnd", ["Capital: Gulm\n", "Area: 3.5 km\n\n", "End"]),
        (
            "He said \u201cno.\u201d Then left, e.g. by car.",
            ["He said \u201cno.\u201d ", "Then left, e.g. by car."],
        ),
        ("\u4e2d\u6587\u3002\u5b57\u5178\u3002", ["\u4e2d\u6587\u3002", "\u5b57\u5178\u3002"]),
        ("", []),
    ],
)
def test_sentences_end_at_their_marks_and_lines_and_together_are_the_text(text, parts):
    assert [text[start:end] for start, end in sentences(text)] == parts


def test_phrases_that_are_not_there_or_read_nothing_are_refused(lookup):
    trace = lookup[1]
    for phrase, nth in (("", 1), (" ", 1), ("no such words", 1), (" Gulm", 2), (" Gulm", 0)):
        with pytest.raises(UserError):
            find_phrase(TEXT, phrase, nth)
    assert find_phrase("a b a b", "a b", 2) == (4, 7)
    with pytest.raises(UserError, match="no neighbors"):
        plan_attribution(trace, *find_phrase(TEXT, " It is"))
    bare = replace(trace, neighbors=[])
    assert cite(bare) == []
    with pytest.raises(UserError, match="without neighbors"):
        plan_attribution(bare, 0, 5)
