"""The FAISS index and the dense retriever: exact, honest about what is excluded, repeatable."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from index_helpers import recall, unit_vectors  # noqa: F401

from retro_demo.errors import UserError
from retro_demo.paths import STATIC_FOLDER
from retro_demo.retrieval.dense import DenseRetriever, VectorIndex, choose_factory, gpu_available
from retro_demo.retrieval.embedders import StaticEmbedder
from retro_demo.retrieval.neighbors import Neighbors, rank

WORDS = ["oil", "river", "king", "tax", "rain", "army", "ship", "coffee", "copper", "school"]


class WordCounts:
    """An embedder that counts the ten words above."""

    name = "word-counts"
    dim = len(WORDS)
    fingerprint = "none"

    def embed(self, texts):
        counts = np.array([[text.split().count(word) for word in WORDS] for text in texts])
        lengths = np.linalg.norm(counts, axis=1, keepdims=True)
        return (counts / np.maximum(lengths, 1e-9)).astype(np.float32)


def decode(tokens: list[int]) -> str:
    return " ".join(WORDS[token - 1] for token in tokens)


def same_document(documents: np.ndarray):
    return lambda own, candidates: documents[own][:, None] == documents[candidates]


def retriever_over(vectors: np.ndarray, documents: np.ndarray, *, factory: str = "Flat") -> DenseRetriever:
    index = VectorIndex.build(vectors, np.arange(len(vectors)), factory=factory)
    embedder = WordCounts()
    embedder.dim = vectors.shape[1]
    return DenseRetriever(index, embedder, decode, same_document(documents))


def brute_force(vectors: np.ndarray, documents: np.ndarray, own: np.ndarray, k: int) -> Neighbors:
    scores = vectors[own] @ vectors.T
    same = documents[own][:, None] == documents[None, :]
    return rank(np.where(same, -1, np.arange(len(vectors))), scores, k)


def test_flat_search_equals_brute_force():
    vectors, queries = unit_vectors(500), unit_vectors(40, seed=1)
    ids = np.arange(500) * 7 + 3

    found = VectorIndex.build(vectors, ids).search(queries, 5)

    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1)[:, :5]
    assert np.array_equal(found.ids, ids[order])
    assert np.allclose(found.scores, np.take_along_axis(scores, order, axis=1), atol=2e-6)


def test_scores_fall_and_equal_scores_stand_in_the_order_of_the_ids():
    vectors = np.repeat(unit_vectors(3), 50, axis=0)

    found = VectorIndex.build(vectors, np.arange(150)[::-1]).search(unit_vectors(4, seed=1), 150)

    assert (np.diff(found.scores, axis=1) <= 0).all()
    tied = np.diff(found.scores, axis=1) == 0
    assert tied.sum() == 4 * 147
    assert (np.diff(found.ids, axis=1)[tied] > 0).all()


def test_more_neighbors_than_vectors_are_none_and_counted():
    found = VectorIndex.build(unit_vectors(3), np.arange(3)).search(unit_vectors(2, seed=1), 5)

    assert (found.ids[:, 3:] == -1).all()
    assert np.isneginf(found.scores[:, 3:]).all()
    assert (found.ids < 0).sum() == 4


def test_a_stored_chunk_finds_itself_first():
    vectors = unit_vectors(300)

    found = VectorIndex.build(vectors, np.arange(300)).search(vectors, 1)

    assert np.array_equal(found.ids[:, 0], np.arange(300))
    assert np.allclose(found.scores, 1, atol=1e-5)


def test_a_stored_text_as_query_equals_its_key():
    embedder = StaticEmbedder(STATIC_FOLDER)
    tokens = np.random.default_rng(0).integers(1, 11, (50, 12))
    keys = embedder.embed([decode(row.tolist()) for row in tokens])
    index = VectorIndex.build(keys, np.arange(50))

    found = DenseRetriever(index, embedder, decode, same_document(np.arange(50))).search(tokens, 1)

    assert np.array_equal(found.ids[:, 0], np.arange(50))


def test_padding_is_not_part_of_a_query():
    retriever = retriever_over(np.eye(10, dtype=np.float32), np.arange(10))

    found = retriever.search(np.array([[3, 0, 0], [3, 3, 3]]), 1)

    assert found.ids.tolist() == [[2], [2]]


def test_a_query_with_nothing_known_has_no_neighbors():
    retriever = retriever_over(np.eye(10, dtype=np.float32), np.arange(10))

    found = retriever.search(np.array([[0, 0], [4, 0]]), 2)

    assert found.ids[0].tolist() == [-1, -1]
    assert found.ids[1, 0] == 3


def test_the_own_document_is_never_found():
    vectors, documents = unit_vectors(400), np.arange(400) // 10
    own = np.arange(400)

    found = retriever_over(vectors, documents).search_vectors(vectors, 4, own=own)

    assert (documents[found.ids] != documents[own][:, None]).all()
    assert np.array_equal(found.ids, brute_force(vectors, documents, own, 4).ids)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
@pytest.mark.parametrize("num_own", [100, 700, 3000])
def test_all_neighbors_are_found_behind_thousands_of_nearer_own_chunks(factory, num_own):
    # The own document lies close around one point, the only two others far away from it.
    rng = np.random.default_rng(0)
    near = np.eye(1, 16) + 0.01 * rng.standard_normal((num_own, 16))
    far = -np.eye(1, 16) + 0.01 * rng.standard_normal((2, 16))
    vectors = np.concatenate([near, far]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = np.array([0] * num_own + [1, 2])
    own = np.arange(5)

    retriever = retriever_over(vectors, documents, factory=factory)
    found = retriever.search_vectors(vectors[own], 2, own=own)

    assert (found.ids < 0).sum() == 0
    assert np.array_equal(np.sort(found.ids, axis=1), np.tile([num_own, num_own + 1], (5, 1)))


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8"])
def test_fewer_valid_chunks_than_k_are_none_and_counted(factory):
    vectors, documents = unit_vectors(600), np.array([0] * 597 + [1] * 3)

    retriever = retriever_over(vectors, documents, factory=factory)
    found = retriever.search_vectors(vectors[:10], 4, own=np.arange(10))

    assert (found.ids < 0).sum() == 10
    assert (found.ids[:, 3] == -1).all()
    assert np.array_equal(np.sort(found.ids[:, :3], axis=1), np.tile([597, 598, 599], (10, 1)))


def test_a_corpus_of_one_document_has_no_neighbors_of_its_own():
    vectors = unit_vectors(60)

    retriever = retriever_over(vectors, np.zeros(60, int))
    found = retriever.search_vectors(vectors, 2, own=np.arange(60))

    assert (found.ids < 0).sum() == 120


def test_a_query_from_outside_may_find_every_chunk():
    vectors = unit_vectors(60)

    found = retriever_over(vectors, np.zeros(60, int)).search_vectors(vectors, 1)

    assert np.array_equal(found.ids[:, 0], np.arange(60))


def test_of_many_equal_chunks_the_smallest_ids_are_found():
    vectors = np.repeat(np.eye(2, 16, dtype=np.float32), [500, 20], axis=0)

    found = retriever_over(vectors, np.arange(520)).search_vectors(vectors[:1], 3, own=np.array([1]))

    assert found.ids.tolist() == [[0, 2, 3]]


def test_the_answer_to_a_query_does_not_depend_on_its_batch():
    vectors, documents = unit_vectors(900), np.arange(900) // 30
    retriever = retriever_over(vectors, documents)
    own = np.arange(0, 900, 50)

    together = retriever.search_vectors(vectors[own], 3, own=own)

    alone = [retriever.search_vectors(vectors[[i]], 3, own=np.array([i])).ids[0] for i in own]
    assert np.array_equal(together.ids, alone)


def test_ivf_recall_against_exact_is_at_least_nine_tenths():
    # Real vectors cluster; these do too, around 50 points. 64 of 256 lists are probed.
    rng = np.random.default_rng(0)
    vectors = unit_vectors(50, 32)[rng.integers(0, 50, 20_000)]
    vectors = vectors + 0.15 * rng.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(len(vectors))

    exact = VectorIndex.build(vectors, ids, factory="Flat").search(vectors[:500], 4)
    found = VectorIndex.build(vectors, ids, factory="IVF256,SQ8").search(vectors[:500], 4)

    assert 0.9 <= recall(found, exact) <= 1


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,SQ8"])
def test_a_saved_and_loaded_index_gives_the_same_neighbors(tmp_path, factory):
    index = VectorIndex.build(unit_vectors(1000), np.arange(1000) + 5, factory=factory)
    index.save(tmp_path / "index.faiss")

    loaded = VectorIndex.load(tmp_path / "index.faiss")

    before, after = (each.search(unit_vectors(50, seed=1), 4) for each in (index, loaded))
    assert np.array_equal(before.ids, after.ids)
    assert np.array_equal(before.scores, after.scores)
    assert (loaded.factory, loaded.dim, len(loaded)) == (factory, 16, 1000)
    assert [file.name for file in tmp_path.iterdir()] == ["index.faiss"]


def test_the_same_vectors_build_the_same_file(tmp_path):
    for name in ("one", "two"):
        index = VectorIndex.build(unit_vectors(1000), np.arange(1000), factory="IVF16,SQ8")
        index.save(tmp_path / name)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_missing_or_torn_index_file_is_refused(tmp_path):
    VectorIndex.build(unit_vectors(100), np.arange(100)).save(tmp_path / "whole")
    (tmp_path / "torn").write_bytes((tmp_path / "whole").read_bytes()[:900])

    for name in ("missing", "torn"):
        with pytest.raises(UserError, match=f'{name}" cannot be read. Build the corpus again'):
            VectorIndex.load(tmp_path / name)


def test_vectors_that_are_not_of_length_one_are_refused_as_damaged():
    with pytest.raises(UserError, match="neither 1 nor 0"):
        VectorIndex.build(2 * unit_vectors(10), np.arange(10))


@pytest.mark.parametrize(
    ("num", "device", "factory"),
    [
        (1_000, "cpu", "Flat"),
        (100_000, "cpu", "Flat"),
        (300_000, "cpu", "IVF1024,Flat"),
        (1_000_000, "cpu", "IVF4096,SQ8"),
        (10_000_000, "cpu", "IVF16384_HNSW32,SQ8"),
        (1_000_000, "cuda", "Flat"),
        (4_000_000, "cuda", "IVF4096,Flat"),
        (10_000_000, "cuda", "IVF16384,SQ8"),
    ],
)
def test_the_factory_follows_size_and_device(num, device, factory):
    assert choose_factory(num, device) == factory


def test_a_gpu_that_is_not_there_is_refused_not_replaced():
    if gpu_available()[0]:
        pytest.skip("this machine has a GPU")

    with pytest.raises(UserError, match='Choose the device "cpu"'):
        VectorIndex.build(unit_vectors(10), np.arange(10), device="cuda")


def test_whether_a_gpu_searches_is_said_in_a_sentence():
    usable, sentence = gpu_available()

    assert sentence.startswith("FAISS searches on " + ("" if usable else "the CPU: "))
    assert sentence.endswith(".")


def test_a_faiss_without_gpu_code_is_said_to_be_one(monkeypatch):
    for name in ("get_num_gpus", "StandardGpuResources"):
        monkeypatch.delattr(faiss, name, raising=False)

    usable, sentence = gpu_available()

    assert not usable
    assert "built without GPU code" in sentence


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,SQ8"])
def test_a_gpu_finds_what_the_cpu_finds(factory, tmp_path):
    usable, sentence = gpu_available()
    if not usable:
        pytest.skip(sentence)
    vectors = unit_vectors(5000)
    cpu = VectorIndex.build(vectors, np.arange(5000), factory=factory)
    gpu = VectorIndex.build(vectors, np.arange(5000), device="cuda", factory=factory)

    # Sums run in another order there, so near-ties may swap; 3,000 is beyond the GPU's limit.
    for k in (4, 2048, 3000):
        assert recall(gpu.search(vectors[:50], k), cpu.search(vectors[:50], k)) > 0.99
    gpu.save(tmp_path / "index.faiss")
    assert len(VectorIndex.load(tmp_path / "index.faiss")) == 5000
