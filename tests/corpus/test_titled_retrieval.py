"""Retrieval with titles, and the titles that stand before neighbors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl
from reader_helpers import QUERY, TITLE, countries, make_base, read_corpus

from retro_demo.corpus.changes import carry_out, prepare_change
from retro_demo.corpus.retrievers import load_retriever, neighbor_table
from retro_demo.corpus.store import Corpus, derived_folder, load_corpus
from retro_demo.corpus.titled_retrieval import TitledRetriever, about, labels_of
from retro_demo.paths import data_home
from retro_demo.retrieval.neighbors import EndOfQuery
from retro_demo.tokenizer import WORD


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, base) -> Corpus:
    return read_corpus(tmp_path_factory.mktemp("corpora") / "countries", countries(), base)


def query(corpus: Corpus, text: str) -> np.ndarray:
    return np.array([corpus.tokenizer.encode(text)])


def documents(corpus: Corpus, ids: np.ndarray) -> list[str]:
    return [corpus.documents[corpus.chunks.document[one]].title for one in ids if one >= 0]


def in_database(corpus: Corpus) -> list[str]:
    return [
        one.title for one, held in zip(corpus.documents, corpus.held_out.tolist(), strict=True) if not held
    ]


def test_a_title_that_is_asked_about_decides_between_chunks_of_the_same_words(corpus):
    whole = load_retriever(corpus, "bm25-titles")

    for title in in_database(corpus)[:3]:
        found = about(whole, title).search(query(corpus, "Population:"), 1).ids[0]
        assert documents(corpus, found) == [title]


FIELDS = {
    "Faiths": "of the lake, of the hills, of the old river and of the sea",
    "Harvest": "people, people reap rye",
    "People": "{0} in all, and more",
    "Trade": "people, people sell rye",
}


def moved_fields(order: list[str]) -> list[dict[str, str]]:
    """Entries with the same fields in another order, one of them a number of the document's own."""
    rows = []
    for number, row in enumerate(countries()[:6]):
        lines = [f"{name}: {FIELDS[name].format(700 + number)}" for name in order]
        rows.append(row | {"text": "\n".join([row["title"], "", *lines])})
    return rows


def test_a_field_that_stands_elsewhere_in_the_database_is_found_by_its_label(tmp_path, base):
    corpus = read_corpus(tmp_path / "moved", moved_fields(["People", "Trade", "Harvest", "Faiths"]), base)
    finder = load_retriever(corpus, "bm25-titles")
    title = in_database(corpus)[0]
    asked = query(corpus, f"{FIELDS['Faiths']}\nPeople:")

    found = about(finder, title).search(asked, 2).ids[0]

    texts = [corpus.tokenizer.decode(corpus.chunks.with_continuation(one).tolist()) for one in found]
    assert documents(corpus, found) == [title] * 2
    assert any("People: 70" in text for text in texts)
    # and the other one was found by the words of the field before it
    assert any(word in text for text in texts for word in ("lake", "hills", "river"))


@pytest.mark.parametrize("inside", [False, True], ids=["from outside", "chunks of the corpus"])
def test_the_first_neighbors_of_many_are_those_of_few_and_scores_fall(corpus, inside):
    finder = load_retriever(corpus, "bm25-titles")
    rows = np.random.default_rng(0).choice(len(corpus.chunks), 40, replace=False)
    asked, own = corpus.chunks.tokens[rows], rows if inside else None

    whole = finder.search(asked, len(corpus.chunks), own=own)

    assert (np.diff(np.where(whole.ids < 0, -1, whole.scores)) <= 0).all()
    for one in whole.ids:
        assert len(set(one[one >= 0])) == (one >= 0).sum()
    for k in (1, 2, 5, 30):  # fewer are fetched than there are
        assert (finder.search(asked, k, own=own).ids == whole.ids[:, :k]).all()


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Population: 77\nArea:\nland: 3 km", ["population:", "area:", "land:"]),
        ("souls\n\nPeople: many, as follows: all", ["people:"]),
        ("lation: 77", ["lation:"]),  # a chunk may begin within a label
        ("人口：77 万", ["人口："]),
        ("no label here\n: nor here", []),
        (f"{'far ' * 20}from its colon: 7", []),
    ],
)
def test_a_label_is_what_stands_before_a_colon_where_a_line_begins(text, labels):
    assert labels_of(text) == labels


def test_a_query_without_labels_is_asked_once(corpus):
    finder = about(load_retriever(corpus, "bm25-titles"), in_database(corpus)[1])
    asked = query(corpus, "souls and farmers of the republic, 812 km of coast")
    words = WORD.findall("souls and farmers of the republic, 812 km of coast".lower())
    title = WORD.findall(in_database(corpus)[1].lower())

    found = finder.search(asked, 5)

    scores = finder.index.scores(words + title * 2)
    assert found.scores[0].tolist() == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=1e-5)


def test_a_query_without_a_word_or_label_of_the_corpus_has_no_neighbor(corpus):
    finder = load_retriever(corpus, "bm25-titles")

    assert (finder.search(query(corpus, "??? ???"), 2).ids == -1).all()
    assert (finder.search(query(corpus, "Population:"), 2).ids >= 0).all()


def test_a_query_of_the_corpus_has_the_title_of_its_own_document(corpus):
    finder = load_retriever(corpus, "bm25-titles")
    assert isinstance(finder, TitledRetriever)
    row = int(np.flatnonzero(corpus.held_out[corpus.chunks.document])[2])
    own, tokens = np.array([row]), corpus.chunks.tokens[[row]]
    title = corpus.documents[corpus.chunks.document[row]].title

    found = finder.search(tokens, 3, own=own)

    assert (found.ids == finder.search(tokens, 3, own=own, titles=[title]).ids).all()
    assert (found.scores != finder.search(tokens, 3, own=own, titles=[""]).scores).any()


def test_no_chunk_finds_its_own_document(corpus):
    table = neighbor_table(corpus, "bm25-titles", QUERY)

    own = corpus.chunks.document[:, None]
    assert (corpus.chunks.document[table] != own)[table >= 0].all()
    assert (table >= 0).any()


def test_tables_of_whole_chunks_and_of_their_ends_are_kept_apart(corpus):
    whole, ends = (neighbor_table(corpus, "bm25-titles", count) for count in (0, 3))

    assert (whole != ends).any()
    assert (neighbor_table(corpus, "bm25-titles") == whole).all()


def test_other_retrievers_know_no_titles(corpus):
    plain = load_retriever(corpus, "bm25-words")

    assert about(plain, "Republic of Arden") is plain


def test_the_index_is_kept_and_made_again_for_another_state(corpus, monkeypatch):
    load_retriever(corpus, "bm25-titles")
    path = derived_folder(data_home()[0], corpus.folder, corpus.fingerprint) / "bm25-titles.safetensors"
    kept = path.stat().st_mtime_ns

    load_retriever(corpus, "bm25-titles")
    assert path.stat().st_mtime_ns == kept
    path.write_bytes(b"torn")
    found = load_retriever(corpus, "bm25-titles").search(query(corpus, "Population:"), 1)
    assert path.stat().st_size > 100
    assert found.ids[0, 0] >= 0


class Listening:
    """A retriever that remembers what it was asked."""

    def search(self, tokens, k, *, own=None):
        self.tokens = tokens
        return k


def test_the_end_of_a_query_is_its_last_tokens_without_padding():
    whole = Listening()

    EndOfQuery(whole, 3).search(np.array([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [0, 0, 0, 8, 9]]), 1)

    assert [set(row) - {0} for row in whole.tokens.tolist()] == [{3, 4, 5}, {6, 7}, {8, 9}]


def test_a_title_is_asked_about_through_the_end_of_a_query(corpus):
    finder = about(load_retriever(corpus, "bm25-titles", 4), "Republic of Arden")

    assert isinstance(finder, EndOfQuery)
    assert isinstance(finder.whole, TitledRetriever)
    assert (finder.count, finder.whole.title) == (4, "Republic of Arden")


def test_titles_stand_at_the_right_and_end_with_a_blank_line(corpus):
    rows = corpus.title_rows(40)

    assert corpus.tokenizer.decode(rows[0].tolist()) == f"{corpus.documents[0].title}\n\n"
    assert rows[0, 0] == 0
    assert rows[0, -1] != 0
    short = corpus.title_rows(TITLE)
    assert (
        corpus.tokenizer.decode(short[0].tolist()) == "Republic of \n\n"
    )  # cut behind, as one byte is one token


@pytest.mark.parametrize("length", [0, 1, 2])
def test_titles_that_have_no_room_are_cut_to_it(corpus, length):
    assert corpus.title_rows(length).shape == (len(corpus.documents), length)


def test_a_document_without_a_title_has_none_before_its_chunks(corpus):
    nameless = replace(corpus, documents=[replace(one, title=" ") for one in corpus.documents], _titles={})

    assert not nameless.title_rows(TITLE).any()
    found = load_retriever(nameless, "bm25-titles")
    assert found.search(query(corpus, "Population:"), 1).ids[0, 0] >= 0


def test_titles_of_other_scripts_keep_their_letters_whole(corpus):
    other = replace(
        corpus, documents=[replace(one, title="東京都 Österreich") for one in corpus.documents], _titles={}
    )

    assert other.tokenizer.decode(other.title_rows(60)[0].tolist()) == "東京都 Österreich\n\n"


def test_a_neighbor_is_its_title_its_chunk_and_what_follows_and_none_is_padding(corpus):
    row = corpus.neighbor_rows(np.array([[0, -1]]), TITLE)

    assert row.shape == (1, 2, TITLE + 2 * corpus.config.chunk_len)
    assert (row[0, 0, :TITLE] == corpus.title_rows(TITLE)[corpus.chunks.document[0]]).all()
    assert (row[0, 0, TITLE:] == corpus.chunks.with_continuation(np.array(0))).all()
    assert not row[0, 1].any()


def test_a_document_that_joins_is_found_by_its_title(tmp_path, base):
    old = read_corpus(tmp_path / "old", countries()[:6], base)
    load_retriever(old, "bm25-titles")
    new = {"id": "zeta", "title": "Principality of Zeta", "text": "Population: 77 souls. " * 4}

    prepare_change(old.folder, tmp_path / "new", add=[write_jsonl(tmp_path / "more.jsonl", [new])])
    list(carry_out(tmp_path / "new"))
    corpus = load_corpus(tmp_path / "new")

    found = about(load_retriever(corpus, "bm25-titles"), "Zeta").search(query(corpus, "Population"), 1)
    assert documents(corpus, found.ids[0]) == ["Principality of Zeta"]
