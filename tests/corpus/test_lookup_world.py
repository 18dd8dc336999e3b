"""The lookup world: what it tells, what it never gives away, and how its facts are measured."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lookup_facts import edit_flips, fact_floors, measure_facts, reached_floors
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.samples import (
    KINDS,
    NUM_NAMES,
    NUM_VALUES,
    SAMPLES,
    TEMPLATES,
    LookupConfig,
    find_facts,
    lookup_documents,
    made_up_words,
    prepare_sample,
    values_of_kinds,
    write_lookup_world,
)
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import Arms, held_out_windows
from retro_demo.models.config import RetroConfig
from retro_demo.models.retro import RETRO
from retro_demo.paths import CHECKPOINTS
from retro_demo.runs.checkpoint import load_model
from retro_demo.settings import CorpusConfig
from retro_demo.tokenizer import Tokenizer

PROMPT = SAMPLES["lookup"].prompts[0]
SMALL = LookupConfig(countries=150, held_out=30)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(lookup_documents(SMALL))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("worlds") / "small"
    source = write_lookup_world(folder.with_suffix(".jsonl"), SMALL)
    prepare_corpus(folder, [source], CorpusConfig(chunk_len=32, vocab_size=4096))
    list(build_corpus(folder))
    return load_corpus(folder)


def arms_of(corpus: Corpus, k: int = 2) -> Arms:
    return Arms(corpus, held_out_windows(corpus, 4, 0), {"dense": corpus.neighbor_ids}, "dense", k, 0)


def test_the_same_seed_tells_the_same_world_and_another_seed_another(documents):
    assert documents == list(lookup_documents(SMALL))
    assert documents != list(lookup_documents(LookupConfig(150, 30, seed=1)))


def test_every_telling_of_a_country_tells_the_same_facts_once_each(documents):
    told = defaultdict(list)
    for document in documents:
        facts = find_facts(document.text)
        assert sorted(fact.kind for fact in facts) == sorted(KINDS)
        told[document.group].append({fact.kind: fact.value for fact in facts})

    assert len(told) == SMALL.countries + SMALL.held_out
    for facts in told.values():
        assert len(facts) == SMALL.tellings
        assert all(one == facts[0] for one in facts)


def test_no_country_is_both_in_training_and_held_out_and_each_held_out_one_is_in_the_database(documents):
    uses = defaultdict(Counter)
    for document in documents:
        uses[document.group][document.use] += 1

    kinds = Counter(tuple(sorted(counter.items())) for counter in uses.values())
    assert kinds == {(("training", 3),): 150, (("database", 2), ("held-out", 1)): 30}


def test_the_tellings_of_a_country_are_paraphrases_in_other_voices(documents):
    voices = defaultdict(list)
    for document in documents:
        voices[document.group].append(document)
    for tellings in voices.values():
        assert len({document.id.split("/")[1] for document in tellings}) == len(tellings)
        for one, other in zip(tellings, tellings[1:], strict=False):
            facts = {fact.value for fact in find_facts(one.text)}
            name = set(one.title.split()[:2])
            sentences = [set(document.text.split(". ")) for document in (one, other)]
            assert not sentences[0] & sentences[1]
            shared = set(re.findall(r"\w+", one.text)) & set(re.findall(r"\w+", other.text))
            assert facts | name <= shared


def test_values_are_drawn_uniformly_and_independently_of_each_other():
    counts = defaultdict(Counter)
    pairs = Counter()
    for document in lookup_documents(LookupConfig(3000, 1, tellings=2)):
        facts = {fact.kind: fact.value for fact in find_facts(document.text)}
        for kind, value in facts.items():
            counts[kind][value] += 1
        pairs[facts["capital"], facts["river"]] += 1

    for kind in KINDS:
        entropy = -sum(n / 6002 * math.log(n / 6002) for n in counts[kind].values())
        assert entropy == pytest.approx(math.log(NUM_VALUES), abs=0.02)
    assert max(pairs.values()) <= 14  # 3001 countries over 4096 pairs, each told twice


def test_a_value_is_no_other_word_of_the_world_and_belongs_to_one_kind():
    values = [value for known in values_of_kinds().values() for value in known]
    templates = set(re.findall(r"\w+", json.dumps(TEMPLATES)))

    assert len(set(values)) == len(values) == NUM_VALUES * len(KINDS)
    assert not set(values) & templates
    assert not set(values) & set(made_up_words()[: 2 * NUM_NAMES])


def test_what_is_asked_stands_before_the_value_in_every_sentence():
    for voice in TEMPLATES.values():
        for kind in KINDS:
            for sentence in voice[kind]:
                cue = sentence.split("{v}")[0].replace("{n}", "").strip()
                assert len(re.findall(r"[A-Za-z]+", cue)) >= 1
                others = [s.split("{v}")[0] for k in KINDS if k != kind for s in voice[k]]
                assert sentence.split("{v}")[0] not in others


def test_of_two_sentences_at_least_one_names_the_country(documents):
    for document in documents[:200]:
        name = " ".join(document.title.split()[:2])
        sentences = re.split(r"(?<=\.) ", document.text)
        for one, other in zip(sentences, sentences[1:], strict=False):
            assert name in one + other


def test_database_documents_are_neighbors_but_stand_in_no_training_batch(world):
    from retro_demo.training.retro_batches import RetroBatches

    batches = RetroBatches(world, seq_len=128, batch_size=2, num_neighbors=2, retrieves=True, seed=0)
    held = np.flatnonzero(world.held_out[world.chunks.document])
    found = world.neighbor_ids[held]

    assert world.database_only.sum() == 60
    assert not world.database_only[world.chunks.document[batches.rows]].any()
    assert not world.held_out[world.chunks.document[batches.rows]].any()
    assert world.database_only[world.chunks.document[found[found >= 0]]].any()


def test_no_training_window_holds_two_tellings_of_a_country(world):
    from retro_demo.training.retro_batches import RetroBatches

    batches = RetroBatches(world, seq_len=256, batch_size=1, num_neighbors=2, retrieves=True, seed=0)
    group = np.array([document.group for document in world.documents])
    for start in range(len(batches.rows) - batches.window):
        documents = np.unique(world.chunks.document[batches.rows[start : start + batches.window]])
        assert len(np.unique(group[documents])) == len(documents)


def test_the_retriever_finds_the_right_country_and_its_answer(world):
    group = np.array([document.group for document in world.documents])[world.chunks.document]
    asking = np.flatnonzero(world.held_out[world.chunks.document])
    asking = asking[world.chunks.has_continuation(asking)]
    found = world.neighbor_ids[asking][:, :2]
    right = (group[found] == group[asking][:, None]) & (found >= 0)

    model = RETRO(RetroConfig(vocab_size=world.tokenizer.vocab_size, chunk_len=32, dim=16, depth=1,
                              num_heads=2, cca_layers=(1,), enc_dim=16))  # fmt: skip
    told = measure_facts(model, arms_of(world), ["on", "shuffled"])

    assert right.any(axis=1).mean() > 0.85
    assert told["on"]["found"] > 0.8
    assert told["shuffled"]["found"] < 0.1


def test_the_answer_stands_at_many_distances_in_the_neighbors(world):
    arms = arms_of(world)
    shown = arms.neighbors("on", np.arange(len(arms.windows)))  # (W, L - 1, K, R)
    asked = arms.tokens(np.arange(len(arms.windows)))[:, 32:].reshape(*shown.shape[:2], 32)
    facts = reached_floors(arms, fact_floors(world)).reshape(asked.shape) > 0
    distances = Counter()
    for w, u, place in np.argwhere(facts):
        for where in np.flatnonzero(shown[w, u] == asked[w, u, place]):
            distances[int(where % 64) - (32 + int(place))] += 1

    assert distances.most_common(1)[0][1] < 0.1 * sum(distances.values())


def test_the_mask_marks_exactly_the_tokens_of_values(world):
    mask, known = fact_floors(world) > 0, {value for kind in values_of_kinds().values() for value in kind}
    texts = [world.tokenizer.decode([token]).strip() for token in world.chunks.tokens[mask]]
    whole = [text for text in texts if text in known]

    assert len(whole) > 0.95 * len(texts)  # a rare value of a small world may be two tokens
    unmarked = {world.tokenizer.decode([token]).strip() for token in np.unique(world.chunks.tokens[~mask])}
    assert not unmarked & known


def test_the_floor_of_a_fact_is_the_entropy_of_its_draw(world):
    floors = fact_floors(world)

    assert floors.sum() == pytest.approx(len(world.documents) * len(KINDS) * math.log(NUM_VALUES), rel=1e-5)
    assert (floors > 0).sum() >= len(world.documents) * len(KINDS)


class Reader(RETRO):
    """Reads by rule: the likeliest next token is the neighbors' value of the kind that is asked."""

    def __init__(self, corpus: Corpus, follows: bool) -> None:
        super().__init__(RetroConfig(vocab_size=corpus.tokenizer.vocab_size, chunk_len=32, dim=8, depth=1,
                                     num_heads=1, cca_layers=(1,), enc_dim=8))  # fmt: skip
        self.corpus, self.follows = corpus, follows
        self.names = sorted({document.title.split(" (")[0] for document in corpus.documents})

    def forward(self, tokens: torch.Tensor, neighbors: torch.Tensor | None = None) -> torch.Tensor:
        decode = self.corpus.tokenizer.decode
        logits = torch.zeros(*tokens.shape, self.config.vocab_size)
        assert neighbors is not None
        for row, text in enumerate(tokens):
            read = decode(text.tolist())
            country = max(self.names, key=read.rfind)
            shown = [decode(one.tolist()) for one in neighbors[row, len(text) // 32 - 1]]
            facts = [f for told in shown if country in told for f in find_facts(told)]
            values = [fact.value for fact in facts if fact.kind == self._kind(read.replace(country, "{n}"))]
            answer = values[0] if self.follows and values else values_of_kinds()["capital"][0]
            logits[row, -1, self.corpus.tokenizer.encode(" " + answer)[0]] = 1
        return logits

    def _kind(self, text: str) -> str:
        """The kind whose sentence the text breaks off in, just before the value."""
        ends = [
            (len(part), kind)
            for voice in TEMPLATES.values()
            for kind in KINDS
            for sentence in voice[kind]
            if text.endswith(part := sentence.split("{v}")[0].rstrip())
        ]
        return max(ends, default=(0, ""))[1]


def test_one_who_reads_follows_every_edit_and_strays_at_none(world):
    flips = edit_flips(Reader(world, follows=True), arms_of(world), cases=60)

    assert flips.right > 0.8
    assert flips.followed > 0.8
    assert flips.strayed < 0.05


def test_one_who_does_not_read_follows_no_edit(world):
    flips = edit_flips(Reader(world, follows=False), arms_of(world), cases=60)

    assert flips.followed < 0.05
    assert flips.strayed == 0


def test_more_cases_than_there_are_is_said(world):
    with pytest.raises(UserError, match="held-out facts stand in their neighbors"):
        edit_flips(Reader(world, follows=False), arms_of(world), cases=100_000)


def test_a_corpus_without_facts_is_said(small_corpus):
    model = RETRO(RetroConfig(vocab_size=small_corpus.tokenizer.vocab_size, chunk_len=8))
    arms = Arms(small_corpus, held_out_windows(small_corpus, 4, 0), {"dense": small_corpus.neighbor_ids},
                "dense", 2, 0)  # fmt: skip

    with pytest.raises(UserError, match="No fact of the lookup world"):
        measure_facts(model, arms, ["off"])


def test_the_sample_is_written_when_it_is_asked_for_and_only_once(tmp_path):
    folder = prepare_sample(tmp_path, "lookup")
    written = (folder / "world.jsonl").stat().st_mtime_ns

    assert prepare_sample(tmp_path, "lookup") == folder
    assert (folder / "world.jsonl").stat().st_mtime_ns == written
    assert not SAMPLES["lookup"].at_start
    lines = (folder / "world.jsonl").read_text().splitlines()
    assert len(lines) == 3 * (2400 + 300)


def test_too_many_countries_are_refused():
    with pytest.raises(UserError, match="are too many"):
        LookupConfig(countries=20_000, held_out=1)


def rows_with(uses: list[str], folder: Path) -> Path:
    from conftest import records, write_jsonl

    rows = [row | {"use": use} for row, use in zip(records(), uses, strict=False)]
    return write_jsonl(folder / "rows.jsonl", rows)


def test_documents_that_say_what_they_are_for_are_split_as_they_say(tmp_path):
    source = rows_with(["held-out", "database", *["training"] * 5, *[""] * 7], tmp_path)
    prepare_corpus(tmp_path / "c", [source], CorpusConfig(chunk_len=8, vocab_size=400))
    finished = list(build_corpus(tmp_path / "c"))[-1].to_json()

    corpus = load_corpus(tmp_path / "c")
    assert np.flatnonzero(corpus.held_out).tolist() == [0]
    assert np.flatnonzero(corpus.database_only).tolist() == [1]
    assert finished["database_documents"] == 1


@pytest.mark.parametrize(
    ("uses", "sentence"),
    [
        (["held-out", "databse"], "has the use 'databse'"),
        (["held-out"] * 14, "there is nothing to train on"),
        (["database"] * 14, "there is nothing to train on"),
    ],
)
def test_a_use_that_makes_no_sense_is_refused(tmp_path, uses, sentence):
    prepare_corpus(tmp_path / "c", [rows_with(uses, tmp_path)], CorpusConfig(chunk_len=8, vocab_size=400))

    with pytest.raises(UserError, match=sentence):
        list(build_corpus(tmp_path / "c"))


def test_a_twin_of_a_held_out_document_elsewhere_is_warned_of(tmp_path):
    from conftest import records, write_jsonl

    rows = [records()[0] | {"id": "twin"}, *(row | {"use": ""} for row in records())]
    rows[0]["use"] = "held-out"
    prepare_corpus(tmp_path / "c", [write_jsonl(tmp_path / "r.jsonl", rows)],
                   CorpusConfig(chunk_len=8, vocab_size=400))  # fmt: skip

    warnings = list(build_corpus(tmp_path / "c"))[-1].to_json()["warnings"]

    assert any("may be known by heart" in warning for warning in warnings)


def test_texts_without_a_use_are_stored_as_before_there_was_one(small_folder):
    stored = [json.loads(line) for line in (small_folder / "documents.jsonl").read_text().splitlines()]

    assert all(list(row) == ["id", "title", "lang", "text", "group"] for row in stored)


def test_the_shipped_prompts_end_where_the_database_holds_what_comes_next():
    documents = list(lookup_documents(LookupConfig()))
    held_out = [one for one in documents if one.use == "held-out"]
    told = {one.group: one.text for one in documents if one.use == "database"}

    for prompt in SAMPLES["lookup"].prompts:
        one = next(one for one in held_out if one.text.startswith(prompt))
        value = find_facts(one.text[len(prompt) :])[0]
        assert value.start == 1
        assert value.value in told[one.group]


def test_the_shipped_run_of_the_lookup_world_says_what_its_neighbor_says():
    run = CHECKPOINTS / "lookup-retro"
    model, tokenizer = load_model(run), Tokenizer.load(run / "tokenizer.json")
    chunk_len = model.config.chunk_len
    documents = list(lookup_documents(LookupConfig()))
    held_out = next(d for d in documents if d.use == "held-out" and d.text.startswith(PROMPT))
    telling = next(d.text for d in documents if d.use == "database" and d.group == held_out.group)
    fact = find_facts(held_out.text[len(PROMPT) :])[0]
    (there,) = (one for one in find_facts(telling) if one.kind == fact.kind)
    tokens = torch.tensor([tokenizer.encode(PROMPT)])
    assert chunk_len <= tokens.shape[1] < 2 * chunk_len

    def said(value: str) -> int:
        before = len(tokenizer.encode(telling[: there.start].rstrip()))
        whole = tokenizer.encode(telling[: there.start] + value + telling[there.end :])
        row = whole[max(0, before - chunk_len) :][: 2 * chunk_len]
        neighbors = torch.zeros(1, 1, 1, 2 * chunk_len, dtype=torch.int64)
        neighbors[0, 0, 0, : len(row)] = torch.tensor(row)
        with torch.no_grad():
            return int(model(tokens, neighbors)[0, -1].argmax())

    for value in (fact.value, *(one for one in values_of_kinds()[fact.kind][:4])):
        assert said(value) == tokenizer.encode(f" {value}")[0]
