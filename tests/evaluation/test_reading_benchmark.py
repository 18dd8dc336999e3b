"""What `benchmarks.reading` asks and how it scores: cases, prompts, kNN-LM; its arms are the reader's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.reading_arms import fine_tuned, in_context, off_logits, read_text, reader_logits
from benchmarks.reading_cases import (
    corpus_in_memory,
    factbook_cases,
    library,
    made_sheets,
    prompt_ids,
    reached,
    sheet_cases,
    world_cases,
    world_documents,
)
from benchmarks.reading_study import donor_of, hits_of, share
from retro_demo.corpus.chunks import SHIPPED_TOKENIZERS
from retro_demo.documents.sources import Document
from retro_demo.evaluation.reading_ways import KnnFormat, PromptFormat, knn_mix, plain_logits
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.reader import Reader
from retro_demo.models.reader_config import ReaderConfig
from retro_demo.tokenizer import Tokenizer

CHUNK, TITLE, VOCAB = 4, 3, 96


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(SHIPPED_TOKENIZERS["factbook"])


@pytest.fixture(scope="module")
def model() -> Reader:
    torch.manual_seed(0)
    base = Llama(LlamaConfig(VOCAB, 32, 6, 4, 2, 8, 48))
    shape = ReaderConfig(
        vocab_size=VOCAB,
        dim=32,
        depth=6,
        chunk_len=CHUNK,
        title_len=TITLE,
        match_layers=(2, 3),
        write_layers=(3, 5),
        match_dim=16,
    )
    found = Reader(shape).attach(base)
    found.fit(torch.randint(1, VOCAB, (4, 30)))
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
        found.look.null_bias.fill_(0.1)
    return found.eval()


def test_a_fact_is_asked_in_both_editions_where_they_differ_and_ends_before_its_value():
    old = [
        Document("br", "Brazil", "en", "Brazil\n\nTotal fertility rate: 1.79 children born\n"),
        Document("pe", "Peru", "en", "Peru\n\nTotal fertility rate: 2.2 children born\n"),
        Document("cl", "Chile", "en", "Chile\n\nTotal fertility rate: 1.5 children born\n"),
    ]
    new = [
        replace(old[0], text="Brazil\n\nTotal fertility rate: 1.6 children born\n"),
        replace(old[1], text="Peru\n\nTotal fertility rate: 2.0 children born\n"),
        old[2],
    ]

    cases = factbook_cases(old, new, np.array([True, True, True]), held=True)

    assert [(case.title, case.edition) for case in cases] == [
        ("Brazil", 0),
        ("Brazil", 1),
        ("Peru", 0),
        ("Peru", 1),
    ]
    assert cases[0].prompt == "Brazil\n\nTotal fertility rate:"
    assert cases[0].values == ("1.79 children", "1.6 children")
    assert cases[0].planted == ("2.2 children", "2.0 children")
    assert factbook_cases(old, new, np.array([True, True, True]), held=False) == []


def test_made_up_editions_are_the_same_for_a_seed_and_differ_in_every_value():
    old, new = made_sheets("sheets", 5, seed=3)
    cases = sheet_cases((old, new))

    assert made_sheets("sheets", 5, seed=3) == (old, new)
    assert [one.title for one in old] == [one.title for one in new]
    assert cases
    assert all(one.values[0] != one.values[1] for one in cases)
    for one in cases:
        text = (old, new)[one.edition][int(one.group.split("-")[1])].text
        assert f"{one.prompt} {one.values[one.edition]}" in text


def test_facts_of_the_lookup_world_follow_their_prompt():
    documents = world_documents(countries=3)
    texts = {one.title: one.text for one in documents}

    cases = world_cases(documents)

    assert cases
    assert all(texts[one.title].startswith(f"{one.prompt} {one.values[0]}") for one in cases)


def test_a_value_is_reached_where_a_neighbor_of_its_own_document_holds_it():
    found = [("Peru", "Mass: 3 kg"), ("Brazil", "Mass: 4 kg")]

    assert reached(found, "Brazil", "4 kg")
    assert not reached(found, "Brazil", "3 kg")


def test_a_sheet_is_found_by_its_title_and_its_field(tokenizer: Tokenizer):
    documents, _ = made_sheets("sheets", 8)
    corpus = corpus_in_memory("sheets", documents, tokenizer, 32)
    there = library(corpus, 12, 16, everything=True)
    case = sheet_cases((documents,))[20]
    prompt = prompt_ids(tokenizer, case.prompt, case.title, 32)

    ids = there.look(prompt, case.title, 2)
    without = there.look(prompt, case.title, 2, own=int(ids[-1, 0]))

    assert len(prompt) % 32 == 0
    assert ids.shape == (len(prompt) // 32, 2)
    assert reached(there.texts(ids[-1]), case.title, case.values[0].strip("\n"))
    assert case.title not in [title for title, _ in there.texts(without[-1])]
    assert there.rows(ids).shape == (*ids.shape, 12 + 64)


@pytest.mark.parametrize("style", ["plain", "titles", "instruction"])
def test_neighbors_stand_before_the_prompt_in_the_order_that_is_asked_for(tokenizer: Tokenizer, style: str):
    near = [("Peru", "Mass: 3 kg"), ("Chile", "Mass: 4 kg"), ("", "")]
    prompt = [0, 0, *tokenizer.encode("Peru\n\nMass:")]

    def text(**changes: object) -> str:
        return tokenizer.decode(in_context(tokenizer, PromptFormat(style, **changes), near, prompt))  # pyright: ignore[reportArgumentType]

    assert text().endswith("Peru\n\nMass:")
    assert text().index("4 kg") < text().index("3 kg")
    assert text(nearest_last=False).index("3 kg") < text(nearest_last=False).index("4 kg")
    assert "4 kg" not in text(count=1)
    assert ("Chile" in text()) == (style != "plain")
    assert in_context(tokenizer, PromptFormat(style), [("", "")], prompt) == prompt[2:]


def test_knn_lm_mixes_what_followed_like_states_into_the_distribution():
    logits = torch.zeros(1, 5)
    keys = torch.eye(3)
    tokens = torch.tensor([1, 2, 2])

    mixed = knn_mix(logits, keys[:1], keys, tokens, KnnFormat(0, 100.0, 0.5)).exp()

    assert torch.allclose(mixed, torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1]]), atol=1e-4)
    flat = knn_mix(logits, keys[:1], keys, tokens, KnnFormat(0, 0.0, 0.5)).exp()
    assert torch.allclose(flat, torch.tensor([[0.1, 0.1 + 0.5 / 3, 0.1 + 1 / 3, 0.1, 0.1]]), atol=1e-4)
    assert torch.allclose(
        knn_mix(logits, keys[:1], keys[:0], tokens[:0], KnnFormat()).exp().sum(), torch.ones(())
    )


@pytest.mark.parametrize("arm", ["attention", "copy", "both"])
def test_the_arms_are_the_readers_own_logits(model: Reader, arm: str):
    tokens = torch.randint(1, VOCAB, (2, 14), generator=torch.Generator().manual_seed(1))
    rows = torch.randint(1, VOCAB, (2, 3, 2, TITLE + 2 * CHUNK), generator=torch.Generator().manual_seed(2))
    tokens[1, :2] = 0  # padding before a prompt
    places = torch.tensor([[1, 7, 13], [4, 8, 12]])

    with torch.no_grad():
        whole = model.writing_by(arm)(tokens, rows)
    text = read_text(model, tokens.numpy())
    read = reader_logits(model, text, rows.numpy(), places, [arm])[arm]
    off = off_logits(model, text, places)

    wanted = whole.gather(1, places[..., None].expand(-1, -1, VOCAB))
    same = read.log_softmax(-1) - wanted.log_softmax(-1)
    assert same.abs().max() < 1e-4
    with torch.no_grad():
        base = model(tokens).gather(1, places[..., None].expand(-1, -1, VOCAB))
    assert (off - base).abs().max() < 1e-4


def test_the_base_alone_is_read_in_batches_of_any_lengths(model: Reader):
    texts = [[5, 6, 7, 8], [9, 10]]

    both = plain_logits(model.base, 0, texts, [2, 1])

    alone = [plain_logits(model.base, 0, [text], [n])[0] for text, n in zip(texts, (2, 1), strict=True)]
    assert [tuple(one.shape) for one in both] == [(2, VOCAB), (1, VOCAB)]
    assert all((one - other).abs().max() < 1e-4 for one, other in zip(both, alone, strict=True))


def test_fine_tuning_leaves_the_readers_base_as_it_was(model: Reader):
    rng = np.random.default_rng(0)
    windows = np.tile(rng.integers(1, VOCAB, (1, 4)), (2, 5))
    before = {name: weight.clone() for name, weight in model.base.named_parameters()}

    tuned = fine_tuned(model, lambda step: (windows, np.zeros((2, TITLE), np.int64)), 0.5, lr=1e-2)

    assert tuned.after < tuned.before
    assert all(torch.equal(weight, before[name]) for name, weight in model.base.named_parameters())
    assert not any(weight.requires_grad for weight in tuned.base.parameters())


def test_a_hit_needs_every_token_and_padding_is_never_the_likeliest():
    logits = torch.full((3, 6), -1.0)
    logits[0, 4] = logits[1, 2] = 1.0
    logits[:2, 0] = 9.0

    assert hits_of(logits, [4, 2])
    assert not hits_of(logits, [4, 3])


def test_a_share_is_of_the_chosen_and_its_interval_over_groups():
    hits, groups = np.array([True, True, False, True]), ["a", "a", "b", "c"]

    assert share(hits, groups).value == 0.75
    assert share(hits, groups, np.array([True, False, True, False])).value == 0.5


def test_shuffled_neighbors_are_those_of_another_document():
    class One:
        def __init__(self, group: str) -> None:
            self.case = type("", (), {"group": group})()

    questions = [One("a"), One("a"), One("b")]

    assert [donor_of(questions, i) for i in range(3)] == [2, 2, 0]  # pyright: ignore[reportArgumentType]
