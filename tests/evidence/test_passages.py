"""Documents cut into passages: nothing lost, nothing mixed, the same text known as the same."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.errors import UserError
from retro_demo.evidence.passages import cut_passages
from retro_demo.settings import CorpusConfig

TOLD = "One day all the birds met at the old well and spoke of the long winter that was to come."
HELD = " ".join(f"The {word} was found beside the river and nobody knew whose it was." for word in "abcdefgh")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Seven documents in three languages (one none), of which two are of one group and two of one text."""
    folder = tmp_path_factory.mktemp("corpora") / "tales"
    rows = [
        {"id": "1en", "text": TOLD, "lang": "en", "group": "one"},
        {"id": "1de", "text": "Eines Tages trafen sich alle Tiere.", "lang": "de", "group": "one"},
        {"id": "2", "text": "Das ist kurz.", "lang": "de"},
        {"id": "3", "text": "Das ist kurz.", "lang": ""},
        {"id": "4", "text": HELD, "lang": "en", "use": "held-out"},
        {"id": "5", "text": "A text to look things up in, and no more.", "lang": "en", "use": "database"},
        {"id": "6", "text": TOLD * 12, "lang": "en"},
    ]
    source = write_jsonl(folder.parent / "tales.jsonl", rows)
    prepare_corpus(folder, [source], CorpusConfig(chunk_len=8, vocab_size=300, num_neighbors=2))
    list(build_corpus(folder))
    return load_corpus(folder)


def texts(corpus: Corpus, passages) -> list[str]:
    """Each document's passages put together again."""
    rows = [passages.tokens[passages.document == d][:, 1:] for d in range(len(corpus.documents))]
    return [corpus.tokenizer.decode(part[part > 1].tolist()) for part in rows]


@pytest.mark.parametrize("passage_len", [8, 13, 4096])
def test_the_passages_of_a_document_hold_all_its_text_and_no_other(corpus, passage_len):
    passages = cut_passages(corpus, passage_len)

    assert texts(corpus, passages) == [document.text for document in corpus.documents]
    assert passages.tokens.shape == (len(passages), passage_len)
    for d in range(len(corpus.documents)):
        places = passages.position[passages.document == d]
        assert places.tolist() == list(range(len(places)))


@pytest.mark.parametrize("passage_len", range(8, 30))
def test_a_passage_is_full_or_the_last_of_its_document_and_never_the_end_alone(corpus, passage_len):
    passages = cut_passages(corpus, passage_len)
    eos = corpus.tokenizer.eos_id

    last = np.append(passages.document[1:] != passages.document[:-1], True)
    assert (passages.lengths[~last] == passage_len).all()
    assert (passages.lengths > 1).all()
    assert not (passages.tokens[:, 1] == eos).any()
    ended = (passages.tokens == eos).any(axis=1)
    assert not ended[~last].any()
    # only where the text fills its last passage does the end have no place
    assert (ended | (passages.lengths == passage_len))[last].all()


def test_a_passage_begins_with_the_token_of_its_language(corpus):
    passages = cut_passages(corpus, 16)

    assert passages.languages == ("", "de", "en")
    names = [passages.languages[i] for i in passages.tokens[:, 0] - corpus.tokenizer.vocab_size]
    assert names == [corpus.documents[d].lang for d in passages.document]


def test_a_run_keeps_the_numbers_of_its_languages_on_another_corpus(corpus):
    passages = cut_passages(corpus, 16, ("en", "fr", "", "de"))

    german = passages.language[passages.document == 1]
    assert passages.languages == ("en", "fr", "", "de")
    assert set(german.tolist()) == {3}
    assert set(passages.tokens[passages.document == 1, 0].tolist()) == {corpus.tokenizer.vocab_size + 3}


def test_a_language_that_the_run_does_not_know_is_refused_with_those_that_it_knows(corpus):
    with pytest.raises(UserError, match=r"no language \(none given\), de: it knows en, fr\."):
        cut_passages(corpus, 16, ("en", "fr"))


def test_documents_of_one_group_and_no_others_share_its_number(corpus):
    passages = cut_passages(corpus, 16)
    first = [passages.group[passages.document == d][0] for d in range(len(corpus.documents))]

    assert first[0] == first[1]
    assert len(set(first)) == len(corpus.documents) - 1


def test_the_same_text_has_one_number_in_whatever_document_language_or_place(corpus):
    passages = cut_passages(corpus, 64)
    content = [passages.content[passages.document == d].tolist() for d in range(len(corpus.documents))]
    rows = [tuple(row[row > 1]) for row in passages.tokens[:, 1:]]

    assert content[2] == content[3]
    assert content[0] != content[1]
    assert len(np.unique(passages.content)) == len(set(rows))


def test_text_that_ends_is_the_same_as_text_that_goes_on(corpus):
    length = int((corpus.chunks.tokens[corpus.chunks.document == 0] > 1).sum())
    passages = cut_passages(
        corpus, length + 1
    )  # the first passage of the last document is the first document

    assert passages.content[passages.document == 0][0] == passages.content[passages.document == 6][0]


def test_passages_know_what_their_document_is_for(corpus):
    passages = cut_passages(corpus, 16)

    assert set(passages.document[passages.held_out].tolist()) == {4}
    assert set(passages.document[passages.database_only].tolist()) == {5}


def test_lengths_count_the_token_of_the_language_but_no_padding(corpus):
    passages = cut_passages(corpus, 16)

    chunks = corpus.chunks
    of_text = np.bincount(chunks.document, (chunks.tokens > 1).sum(axis=1))
    ends = (passages.tokens == corpus.tokenizer.eos_id).any(axis=1)
    counted = np.bincount(passages.document, passages.lengths - 1 - ends)
    assert counted.tolist() == of_text.tolist()
