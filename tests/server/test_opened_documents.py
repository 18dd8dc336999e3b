"""What a visitor may ask of origins: of their own corpora and runs alone, within the limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl
from evaluation_helpers import visitor_with_runs
from page_helpers import page_home

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.server import origins
from retro_demo.server.limits import PRIVATE, Limits, keep_limits
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.origins import TraceTarget
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import CorpusConfig, ExplainConfig
from retro_demo.ui.endpoints import OriginEndpoints

SECRET = "The password of the lighthouse is seven green herrings. "


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("origins")) as folder:
        yield folder


@pytest.fixture(scope="module")
def mine(home, small_folder) -> Workspace:
    return visitor_with_runs(home, small_folder)


@pytest.fixture(scope="module")
def theirs(home, tmp_path_factory) -> Workspace:
    """A workspace of another visitor with a private corpus under the same name."""
    space = Workspace.open(home, new_code()).make()
    rows = [
        {"id": f"s{at}", "title": f"S{at}", "text": f"{SECRET} {word} " * 2} for at, word in enumerate("abcd")
    ]
    source = write_jsonl(tmp_path_factory.mktemp("secret") / "rows.jsonl", rows)
    prepare_corpus(space.folder / "corpora" / "places", [source], CorpusConfig(chunk_len=8, vocab_size=300))
    list(build_corpus(space.folder / "corpora" / "places"))
    return space


@pytest.fixture(scope="module")
def cache(home) -> ModelCache:
    return ModelCache(home)


def ended(steps) -> dict:
    *_, last = steps
    return last


def test_a_trace_never_finds_what_stands_in_the_corpus_of_another_visitor(cache, mine, theirs):
    own = ended(origins.trace(cache, theirs, TraceTarget(corpus="places"), SECRET))
    other = ended(origins.trace(cache, mine, TraceTarget(corpus="places"), SECRET))
    read = ended(origins.trace(cache, mine, TraceTarget(run="reader"), SECRET))

    assert own["words_found"] == own["words"] == 9
    assert other["spans"] == read["spans"] == []
    with pytest.raises(UserError):
        ended(origins.trace(cache, mine, TraceTarget(run=str(theirs.folder / "runs" / "reader")), SECRET))
    with pytest.raises(UserError):
        origins.open_at(cache, mine, TraceTarget(corpus="places"), "S0")


def test_an_index_is_made_once_and_again_after_the_corpus_changed(cache, mine):
    first = origins.searched(cache, mine, TraceTarget(run="plain"))

    assert origins.searched(cache, mine, TraceTarget(corpus="places")) is first
    manifest = mine.corpus("places") / "corpus.json"
    manifest.touch()
    assert origins.searched(cache, mine, TraceTarget(corpus="places")) is not first
    cache.forget(mine.folder)
    assert not [key for key in cache._searched if mine.folder in key[0].parents]


def test_a_neighbor_opens_at_its_characters_with_its_continuation(cache, mine):
    corpus = load_corpus(mine.corpus("places"))

    for chunk in (0, 5, len(corpus.chunks) - 1):
        shown = origins.open_chunk(cache, mine, TraceTarget(run="reader"), chunk)
        tokens = corpus.chunks.with_continuation(np.array(chunk)).tolist()
        assert shown.text[shown.start : shown.end] == corpus.tokenizer.decode(tokens)
        assert shown.document == corpus.documents[corpus.chunks.document[chunk]].id
    tokens = corpus.chunks.tokens.reshape(-1)
    shown = origins.open_tokens(cache, mine, TraceTarget(run="reader"), 3, 9)
    assert shown.text[shown.start : shown.end] == corpus.tokenizer.decode(tokens[3:9].tolist())


def test_of_a_phrase_no_more_is_read_than_the_limits_allow(cache, mine, home):
    text = load_corpus(mine.corpus("places")).documents[0].text[:140]
    keep_limits(home, Limits(weighed_tokens=120))
    try:
        steps = list(origins.trace(cache, mine, TraceTarget(run="reader"), text, phrase=text[-25:]))
        keep_limits(home, Limits(neighbors=2))
        many = ExplainConfig(num_neighbors=9)
        with pytest.raises(UserError, match="neighbors"):
            list(origins.trace(cache, mine, TraceTarget(run="reader"), text, explain=many))
    finally:
        keep_limits(home, PRIVATE)

    assert isinstance(steps[0], Progress)
    assert steps[-1]["phrase"]["tokens_read"] <= 120
    assert steps[-1]["phrase"]["sentences_left_out"] > 0


def test_the_endpoint_says_the_cost_first_and_opens_what_it_names(cache, mine):
    ends, code = OriginEndpoints(cache), mine.folder.name
    text = load_corpus(mine.corpus("places")).documents[0].text[:140]

    first, *_, last = ends.trace(code, text, run="reader", phrase=text[-9:])

    assert first == {"done": False, "read": 0, "readings": last["phrase"]["readings"]}
    assert last["done"] is True
    span = last["spans"][0]
    place = span["places"][0]
    shown = ends.open_document(
        code, run="reader", document=place["document"], start=place["start"], end=place["end"]
    )
    assert shown["text"][shown["start"] : shown["end"]] == span["text"]
    assert ends.open_document(code, corpus="places", chunk=0)["start"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "words of a text"},
        {"text": "", "corpus": "places"},
        {"text": "words", "corpus": "nothing"},
        {"text": "words", "run": "nothing"},
        {"text": "words", "run": "plain", "phrase": "words"},
        {"text": "words", "corpus": "places", "least_words": 0},
        {"text": "x " * 40_000, "corpus": "places"},
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_sentence(cache, mine, wrong):
    with pytest.raises(UserError):
        list(OriginEndpoints(cache).trace(mine.folder.name, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"document": "arden", "chunk": 1},
        {"document": "nobody"},
        {"chunk": 10**6},
        {"document": "Arden", "start": -1},
        {"document": "Arden", "end": 10**9},
    ],
)
def test_what_cannot_be_opened_is_refused_in_a_sentence(cache, mine, wrong):
    with pytest.raises(UserError):
        OriginEndpoints(cache).open_document(mine.folder.name, corpus="places", **wrong)
