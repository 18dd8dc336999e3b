"""The panel "Where did this come from?": its handlers as the page calls them, and its HTML."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from evaluation_helpers import make_run
from page_helpers import page_home

from retro_demo.corpus.opening import OpenedDocument
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.explain.text import explain_text
from retro_demo.render import origin_views
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, keep_trace, new_code
from retro_demo.settings import ExplainConfig
from retro_demo.ui.origins_panel import OriginsHandlers, OriginsView

HOSTILE = "<img src=x onerror=alert(1)> ${x} {{y}}"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("panel")) as folder:
        yield folder


@pytest.fixture(scope="module")
def on(home) -> OriginsHandlers:
    with gr.Blocks():
        return OriginsHandlers(ModelCache(home), OriginsView())


@pytest.fixture(scope="module")
def space(home, small_folder, on) -> Workspace:
    """A workspace with a run and a text that it read."""
    space = Workspace.open(home, new_code()).make()
    corpus = space.folder / "corpora" / "places"
    shutil.copytree(small_folder, corpus)
    folder = make_run(space.folder / "runs" / "reader", corpus, "retro", seq_len=64)
    text = load_corpus(corpus).documents[0].text[:140]
    keep_trace(space, "t1", explain_text(on.cache.run(folder), "reader", text, ExplainConfig()))
    return space


@pytest.fixture(scope="module")
def code(space) -> str:
    return space.folder.name


def event(**values: Any) -> Any:
    return SimpleNamespace(**values)


def test_opening_the_panel_shows_the_spans_of_the_text_and_what_opens_them(on, code, space):
    shown = on.trace_shown(code, "t1")

    assert "places" in shown[on.view.found]
    assert shown[on.view.target] == ("reader", "", False)
    assert 'data-document="arden"' in shown[on.view.found]
    assert set(shown) == set(on.outputs)


def test_a_click_opens_the_document_at_the_place_of_a_span_a_chunk_or_a_sentence(on, code, space):
    corpus = load_corpus(space.corpus("places"))
    target = ("reader", "", False)
    text = corpus.documents[0].text

    clicks = {
        text[5:25]: event(open="document", document=corpus.documents[0].id, first=5, end=25),
        corpus.tokenizer.decode(corpus.chunks.tokens[:2].reshape(-1).tolist()): event(
            open="chunk", first=0, end=0
        ),
        corpus.tokenizer.decode(corpus.chunks.tokens[0, 2:6].tolist()): event(open="tokens", first=2, end=6),
    }
    for wanted, click in clicks.items():
        shown = on.click(code, "t1", target, click)[on.view.document]
        assert f"<mark>{wanted}</mark>" in shown
    with pytest.raises(UserError):
        on.click(code, "t1", target, event(open="document", document="nobody", first=0, end=1))
    with pytest.raises(UserError):
        on.click(code, "t1", target, event(open="chunk", first="x"))


def test_the_cost_of_a_phrase_is_said_before_it_is_attributed(on, code, space):
    chosen = on.click(code, "t1", ("reader", "", False), event(open="phrase", first=60, end=75))

    assert "times" in chosen[on.view.cost]
    first, last = chosen[on.view.place]
    assert (first, last) == (60, 75)
    again = on.choose_words(code, "t1", ("reader", "", False), (60, 75), chosen[on.view.phrase])
    assert again[on.view.place] == (60, 75)

    begun, *_, ended = on.attribute(code, "t1", (60, 75))

    assert "Read 0 of" in begun[on.view.causes]
    assert "data-first" in ended[on.view.causes]
    with pytest.raises(UserError, match="No words"):
        list(on.attribute(code, "t1", (0, 0)))


def test_a_pasted_text_is_looked_for_in_the_corpus_of_the_chosen_run(on, code, space):
    text = load_corpus(space.corpus("places")).documents[3].text[:60]

    shown = on.look_for(code, "reader", "", text)

    assert shown[on.view.target] == ("reader", "", True)
    assert "in-span" in shown[on.view.found]
    assert on.click(code, "t1", ("reader", "", True), event(open="phrase", first=0, end=5)) == {
        on.view.document: gr.skip()
    }
    with pytest.raises(UserError, match="pasted"):
        on.choose_words(code, "t1", ("reader", "", True), (0, 0), "Area")
    for run, words in (("reader", ""), ("", text)):
        with pytest.raises(UserError):
            on.look_for(code, run, "", words)


def test_another_text_empties_the_panel_and_is_looked_for_where_it_is_open(on, code):
    cleared = on.clear()

    assert cleared[on.view.causes] == cleared[on.view.document] == cleared[on.view.found] == ""
    assert cleared[on.view.place] == (0, 0)
    assert on.trace_if_open(code, "t1", False) == {on.view.found: gr.skip()}
    assert on.trace_if_open(code, "t1", True) == on.trace_shown(code, "t1")


def test_text_of_others_is_never_html():
    shown = OpenedDocument(HOSTILE, HOSTILE, False, HOSTILE, 2, 9)
    place = {"document": HOSTILE, "title": HOSTILE, "held_out": True, "start": 0, "end": 9}
    span = {"start": 0, "end": len(HOSTILE), "text": HOSTILE, "words": 5, "times": 1, "documents": 3}
    cited = {
        "document": HOSTILE,
        "title": HOSTILE,
        "nats": 2.0,
        "places": [{"chunk": 0, "neighbor": 0, "corpus_chunk": 4}],
    }
    found = {
        "text": HOSTILE,
        "corpus": HOSTILE,
        "spans": [span | {"places": [place]}],
        "share_found": 1.0,
        "words": 5,
        "left_out": {"short": 2},
        "why_no_citations": HOSTILE,
        "citations": [{"start": 0, "end": len(HOSTILE), "text": HOSTILE, "cited": [cited]}],
    }
    sentence = {"text": HOSTILE, "title": HOSTILE, "document": "", "alone": 1.0, "shapley": None}
    phrase = {"phrase": HOSTILE, "gain": 1.0, "readings": 3}
    phrase["sentences"] = [sentence | {"first_token": 1, "end_token": 2}]

    pages = (
        origin_views.document_html(shown),
        origin_views.origins_html(found),
        origin_views.phrase_html(phrase),
    )
    for page in pages:
        assert "<img" not in page
        assert "{{" not in page
        assert "${" not in page
    assert 'data-chunk="4"' in pages[1]
    assert "and 2 more" in pages[1]
