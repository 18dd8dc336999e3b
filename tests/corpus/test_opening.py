"""A document opens at the very place of a chunk, of some tokens, or of a span."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_jsonl

from retro_demo.corpus import opening
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.opening import open_document, place_in, place_of_chunk, place_of_tokens
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.corpus.verbatim import Place, VerbatimIndex
from retro_demo.errors import UserError
from retro_demo.settings import CorpusConfig

TEXTS = [
    "Cafe\u0301 \U0001f469\u200d\U0001f467 \u4e2d\u6587\u5b57\u5178 opens at 7. " * 6,
    "A plain document of several sentences. It goes on for a while, and then it ends. " * 3,
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03ba\u03b5\u03af\u03bc\u03b5\u03bd\u03b1 " * 10,
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("opened")
    rows = [{"id": f"d{at}", "title": f"T{at}", "text": text} for at, text in enumerate(TEXTS)]
    source = write_jsonl(folder / "rows.jsonl", rows)
    prepare_corpus(folder / "corpus", [source], CorpusConfig(chunk_len=8, vocab_size=300, holdout=0.0))
    list(build_corpus(folder / "corpus"))
    return load_corpus(folder / "corpus")


def test_each_chunk_opens_where_its_characters_stand(corpus):
    for chunk in range(len(corpus.chunks)):
        place = place_of_chunk(corpus, chunk)
        text = corpus.documents[place.document].text
        shown = corpus.tokenizer.decode(corpus.chunks.tokens[chunk].tolist())

        assert place.document == corpus.chunks.document[chunk]
        whole = shown.strip("\ufffd")  # a character that is cut by the border belongs to both
        assert whole in text[place.start : place.end]
        assert place.end - place.start - len(whole) <= 2


def test_the_chunks_of_a_document_cover_it_and_a_continuation_never_leaves_it(corpus):
    for number, text in enumerate(one.text for one in corpus.documents):
        own = np.flatnonzero(corpus.chunks.document == number)
        places = [place_of_chunk(corpus, int(chunk)) for chunk in own]
        assert (places[0].start, places[-1].end) == (0, len(text))
        assert place_of_chunk(corpus, int(own[-1]), 2) == places[-1]
        assert place_of_chunk(corpus, int(own[0]), 2).end == places[1].end
    first = int(np.flatnonzero(corpus.chunks.document == 1)[0]) * 8
    assert place_of_tokens(corpus, first, first + 1).start == 0


def test_a_span_opens_at_its_characters(corpus):
    text = "See: " + TEXTS[0][:30]
    (span,) = VerbatimIndex(corpus.documents).find(text).spans

    for place in span.places:
        shown = open_document(corpus, place)
        assert shown.text[shown.start : shown.end] == text[span.start : span.end]
        assert (shown.document, shown.title, shown.before, shown.after) == ("d0", "T0", 0, 0)


def test_of_a_very_long_document_what_lies_around_the_place_is_shown(corpus, monkeypatch):
    monkeypatch.setattr(opening, "MOST_SHOWN", 40)
    size = len(corpus.documents[1].text)

    for start in (0, size // 2, size - 5):
        shown = open_document(corpus, Place(1, start, start + 5))
        assert shown.text[shown.start : shown.end] == TEXTS[1][start : start + 5]
        assert len(shown.text) == 40
        assert shown.before + 40 + shown.after == size


@pytest.mark.parametrize("place", [Place(9, 0, 0), Place(-1, 0, 0), Place(0, 5, 4), Place(0, 0, 10**6)])
def test_no_document_opens_at_a_place_that_is_not_there(corpus, place):
    with pytest.raises(UserError):
        open_document(corpus, place)


def test_documents_are_named_by_id_or_title_and_chunks_by_number(corpus):
    assert place_in(corpus, "T2") == place_in(corpus, "d2") == Place(2, 0, 0)
    with pytest.raises(UserError, match="no document"):
        place_in(corpus, "nothing")
    for chunk in (-1, len(corpus.chunks)):
        with pytest.raises(UserError, match="no chunk"):
            place_of_chunk(corpus, chunk)
