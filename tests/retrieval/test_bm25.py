"""BM25 and the hybrid: as bm25s scores, honest about what is excluded, repeatable, kept once."""

from __future__ import annotations

from dataclasses import replace

import bm25s
import numpy as np
import pytest
from conftest import SMALL, records, write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever, search
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.retrieval.bm25 import (
    CANDIDATES,
    HybridRetriever,
    LexicalIndex,
    LexicalRetriever,
    token_terms,
    word_terms,
)
from retro_demo.retrieval.dense import DenseRetriever, VectorIndex
from retro_demo.retrieval.neighbors import rank
from retro_demo.settings import RETRIEVERS

VOCAB = 60


def random_chunks(num: int, length: int = 12, seed: int = 0) -> np.ndarray:
    """Token ids from 2 on, the smaller the more frequent, as in a text."""
    rng = np.random.default_rng(seed)
    return np.minimum(2 + rng.geometric(0.12, (num, length)), VOCAB).astype(np.int32)


def index_of(tokens: np.ndarray, ids: np.ndarray | None = None) -> LexicalIndex:
    return LexicalIndex.build(
        [token_terms(row) for row in tokens], np.arange(len(tokens)) if ids is None else ids
    )


def same_document(documents: np.ndarray):
    return lambda own, candidates: documents[own][:, None] == documents[candidates]


def retriever_over(tokens: np.ndarray, documents: np.ndarray) -> LexicalRetriever:
    return LexicalRetriever(index_of(tokens), token_terms, same_document(documents))


def exact(tokens: np.ndarray, documents: np.ndarray, own: np.ndarray, k: int):
    """Every chunk scored by bm25s itself, then masked and ranked: slow and plain."""
    counted = [row[row > 1].tolist() for row in tokens]
    model = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    model.index((counted, {i: i for i in range(VOCAB + 1)}), create_empty_token=False, show_progress=False)
    scores = np.array([model.get_scores_from_ids(sorted(counted[i])) for i in own])
    forbidden = (documents[own][:, None] == documents[None, :]) | (scores <= 0)
    return rank(np.where(forbidden, -1, np.arange(len(tokens))), scores, k)


def test_neighbors_and_scores_are_those_of_bm25s_over_all_allowed_chunks():
    tokens, documents = random_chunks(600), np.arange(600) // 20
    own = np.arange(0, 600, 7)

    found = retriever_over(tokens, documents).search(tokens[own], 5, own=own)

    wanted = exact(tokens, documents, own, 5)
    assert np.allclose(found.scores, wanted.scores, atol=1e-4)
    # the terms are numbered otherwise there, so float noise may swap what is all but equal
    differs = found.ids != wanted.ids
    assert differs.mean() < 0.02
    assert np.allclose(found.scores[differs], wanted.scores[differs], atol=1e-4)


def test_scores_fall_and_equal_scores_stand_in_the_order_of_the_ids():
    tokens = np.repeat(random_chunks(3), 50, axis=0)

    found = retriever_over(tokens, np.arange(150)).search(tokens[:1], 150)

    assert (np.diff(found.scores) <= 0).all()
    tied = np.diff(found.scores) == 0
    assert tied.sum() >= 140
    assert (np.diff(found.ids)[tied] > 0).all()


def test_of_many_equal_chunks_the_smallest_ids_are_found():
    tokens = np.repeat(random_chunks(2), [500, 20], axis=0)

    found = retriever_over(tokens, np.arange(520)).search(tokens[:1], 3, own=np.array([1]))

    assert found.ids.tolist() == [[0, 2, 3]]


def test_a_stored_chunk_with_a_rare_word_finds_itself_first():
    tokens = np.column_stack([random_chunks(300), 100 + np.arange(300)])

    found = retriever_over(tokens, np.arange(300)).search(tokens, 1)

    assert np.array_equal(found.ids[:, 0], np.arange(300))


def test_the_own_document_is_never_found():
    tokens, documents, own = random_chunks(400), np.arange(400) // 40, np.arange(400)

    found = retriever_over(tokens, documents).search(tokens, 4, own=own)

    assert (found.ids < 0).sum() == 0
    assert (documents[found.ids] != documents[own][:, None]).all()


@pytest.mark.parametrize("num_own", [100, 3000])
def test_all_neighbors_are_found_behind_thousands_of_nearer_own_chunks(num_own):
    near = np.tile([5, 6, 7, 8], (num_own, 1))
    far = np.array([[5, 20, 21, 22], [6, 30, 31, 32]])
    documents = np.array([0] * num_own + [1, 2])
    tokens = np.concatenate([near, far])
    own = np.arange(5)

    found = retriever_over(tokens, documents).search(tokens[own], 2, own=own)

    assert np.array_equal(np.sort(found.ids, axis=1), np.tile([num_own, num_own + 1], (5, 1)))


def test_a_query_that_shares_nothing_or_is_empty_has_no_neighbors():
    retriever = retriever_over(np.array([[2, 3], [3, 4]]), np.arange(2))

    found = retriever.search(np.array([[9, 9], [0, 0], [1, 0], [4, 0]]), 2)

    assert found.ids.tolist() == [[-1, -1], [-1, -1], [-1, -1], [1, -1]]
    assert (found.ids < 0).sum() == 7
    assert np.isneginf(found.scores[:3]).all()


def test_chunks_without_any_term_are_stored_and_never_found():
    retriever = retriever_over(np.array([[1, 0], [0, 0]]), np.arange(2))

    assert (retriever.search(np.array([[1, 0], [5, 6]]), 2).ids < 0).sum() == 4


def test_the_answer_to_a_query_does_not_depend_on_its_batch_nor_on_the_order_of_its_words():
    tokens, documents = random_chunks(900), np.arange(900) // 30
    retriever = retriever_over(tokens, documents)
    own = np.arange(0, 900, 50)

    together = retriever.search(tokens[own], 3, own=own)
    alone = [retriever.search(tokens[[i]], 3, own=np.array([i])).ids[0] for i in own]
    turned = retriever.search(tokens[own][:, ::-1], 3, own=own)

    assert np.array_equal(together.ids, alone)
    assert np.array_equal(together.ids, turned.ids)
    assert np.array_equal(together.scores, turned.scores)


def test_a_score_beyond_thousands_keeps_its_value():
    retriever = retriever_over(random_chunks(50), np.arange(50))
    once = retriever.search(np.array([[12]]), 1)

    often = retriever.search(np.full((1, 5000), 12), 1)

    assert often.ids[0, 0] == once.ids[0, 0]
    assert often.scores[0, 0] == pytest.approx(5000 * once.scores[0, 0], rel=1e-3)
    assert often.scores[0, 0] > 2500


def test_an_index_is_read_back_as_it_was_saved_and_the_same_chunks_make_the_same_file(tmp_path):
    tokens = random_chunks(200)
    index_of(tokens, np.arange(200) * 3).save(tmp_path / "one", "a corpus")
    index_of(tokens, np.arange(200) * 3).save(tmp_path / "two", "a corpus")

    again = LexicalIndex.load(tmp_path / "one", "a corpus")

    assert again is not None
    query = token_terms(tokens[3])
    assert np.array_equal(again.scores(query), index_of(tokens).scores(query))
    assert np.array_equal(again.ids, np.arange(200) * 3)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


def test_an_index_that_is_missing_torn_or_of_another_corpus_is_not_read(tmp_path):
    index_of(random_chunks(50)).save(tmp_path / "whole", "a corpus")
    (tmp_path / "torn").write_bytes((tmp_path / "whole").read_bytes()[:700])

    assert LexicalIndex.load(tmp_path / "missing", "a corpus") is None
    assert LexicalIndex.load(tmp_path / "torn", "a corpus") is None
    assert LexicalIndex.load(tmp_path / "whole", "another corpus") is None


def test_words_are_cut_and_lower_cased_as_for_duplicates(small_corpus):
    ids = small_corpus.tokenizer.encode("Area of ARDEN: 1,234 km²; 東京")

    assert word_terms(small_corpus.tokenizer)(np.array([*ids, 1, 0, 0])) == (
        ["area", "of", "arden", "1", "234", "km²", "東", "京"]
    )


def test_the_hybrid_gives_the_dense_candidates_in_the_order_of_bm25(small_corpus):
    dense, bm25, hybrid = (load_retriever(small_corpus, name) for name in ("dense", "bm25", "hybrid"))
    own = np.arange(len(small_corpus.chunks))
    tokens = small_corpus.chunks.tokens

    found = hybrid.search(tokens, 3, own=own)

    candidates = dense.search(tokens, CANDIDATES, own=own)
    assert isinstance(bm25, LexicalRetriever)
    assert np.array_equal(found.ids, bm25.rescore(tokens, candidates, 3).ids)
    assert (found.ids[:, :, None] == candidates.ids[:, None, :]).any(axis=2)[found.ids >= 0].all()
    assert (found.ids != candidates.ids[:, :3]).any(), "BM25 changed no order"
    assert (np.diff(np.maximum(found.scores, -1), axis=1) <= 0).all()


def test_a_dense_candidate_without_a_common_word_stays_at_the_end():
    class Planes:
        name, dim, fingerprint = "planes", 2, "none"

        def embed(self, texts):
            return np.tile(np.array([1, 0], np.float32), (len(texts), 1))

    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    excluded = same_document(np.arange(3))
    dense = DenseRetriever(VectorIndex.build(vectors, np.arange(3)), Planes(), str, excluded)
    lexical = LexicalRetriever(index_of(np.array([[8, 9], [2, 3], [8, 9]])), token_terms, excluded)

    found = HybridRetriever(dense, lexical).search(np.array([[2, 3]]), 3)

    assert found.ids.tolist() == [[1, 0, 2]]
    assert found.scores[0, 0] > 0
    assert found.scores[0, 1:].tolist() == [0, 0]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A corpus in which two documents under other ids are the same but for one word."""
    folder = tmp_path_factory.mktemp("planted") / "corpus"
    rows = records()
    rows.append(rows[0] | {"id": "twin", "title": "Twin", "text": rows[0]["text"] + " Indeed."})
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], SMALL)
    list(build_corpus(folder))
    return load_corpus(folder)


@pytest.mark.parametrize("name", RETRIEVERS)
def test_no_retriever_finds_the_own_document_nor_a_planted_duplicate_of_it(planted, name):
    own = np.arange(len(planted.chunks))

    found = load_retriever(planted, name).search(planted.chunks.tokens, 4, own=own)

    there = found.ids >= 0
    document = planted.chunks.document
    assert there.mean() > 0.9
    assert not (planted.cluster[document[found.ids]] == planted.cluster[document[own]][:, None])[there].any()
    twins = [place for place, document in enumerate(planted.documents) if document.id in ("arden", "twin")]
    assert planted.cluster[twins[0]] == planted.cluster[twins[1]]


@pytest.mark.parametrize("name", RETRIEVERS)
def test_held_out_documents_are_in_no_index(small_corpus, name):
    retriever = load_retriever(small_corpus, name)
    held_out = small_corpus.held_out[small_corpus.chunks.document]

    # even asked from outside with their very words, for all that there is
    found = retriever.search(small_corpus.chunks.tokens[held_out], 100)

    assert held_out.any()
    assert (found.ids >= 0).any()
    assert not held_out[found.ids[found.ids >= 0]].any()


@pytest.mark.parametrize("name", RETRIEVERS)
def test_a_held_out_document_smuggled_into_the_index_is_found_at_once(tmp_path, small_corpus, name):
    leaked = int(small_corpus.held_out.argmax())
    smuggled = tmp_path / "smuggled"
    rows = write_jsonl(tmp_path / "rows.jsonl", records())
    prepare_corpus(smuggled, [rows], replace(SMALL, holdout=0.0))
    (smuggled / "tokenizer.json").write_bytes((small_corpus.folder / "tokenizer.json").read_bytes())
    list(build_corpus(smuggled))
    queries = small_corpus.chunks.tokens[small_corpus.chunks.document == leaked]

    def found(corpus) -> set[int]:
        ids = load_retriever(corpus, name).search(queries, 1).ids[:, 0]
        return set(corpus.chunks.document[ids].tolist())

    assert leaked not in found(small_corpus)
    assert found(load_corpus(smuggled)) == {leaked}


@pytest.mark.parametrize("name", RETRIEVERS)
def test_a_search_takes_typed_text_of_any_length_for_every_retriever(small_corpus, name):
    found = search(small_corpus, load_retriever(small_corpus, name), "Coastline of Galt, km. " * 20, 3)

    assert len(found) == 3
    assert any("Galt" in neighbor["text"] or "Coastline" in neighbor["text"] for neighbor in found)


def test_an_unknown_retriever_is_refused_with_the_names_there_are(small_corpus):
    with pytest.raises(
        UserError, match="There is no retriever 'tfidf'; choose one of dense, bm25, bm25-words"
    ):
        load_retriever(small_corpus, "tfidf")
