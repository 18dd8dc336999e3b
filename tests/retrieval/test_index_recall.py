"""The measured recall of an index: true of what it measures, told to people, and reached where it can be."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from index_helpers import unit_vectors

from retro_demo.cli.printing import Printer
from retro_demo.corpus.building import open_index
from retro_demo.corpus.store import load_corpus
from retro_demo.events import Finished
from retro_demo.render.job_views import corpus_statistics
from retro_demo.retrieval.dense import AIM, VectorIndex, drawn, measure_recall, recall_words
from retro_demo.server.service import statistics


def own_only(own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return candidates == own[:, None]


def test_an_exact_index_finds_everything_and_itself():
    vectors = unit_vectors(2000)
    index = VectorIndex.build(vectors, np.arange(2000))

    measured = measure_recall(index, vectors, np.arange(2000), own_only, tune=True)

    assert (measured.recall, measured.self_recall, measured.probes) == (1, 1, 0)
    assert (measured.k, measured.queries) == (4, 256)


def test_equal_chunks_are_no_loss():
    vectors = np.repeat(unit_vectors(100), 20, axis=0)
    index = VectorIndex.build(vectors, np.arange(2000)[::-1].copy()[::-1])

    measured = measure_recall(index, vectors, np.arange(2000), own_only, tune=False)

    assert (measured.recall, measured.self_recall) == (1, 1)


def test_the_recall_is_that_of_counting_by_hand():
    vectors, rows = unit_vectors(3000), np.arange(3000)
    index = VectorIndex.build(vectors, rows, factory="IVF64,Flat")
    index.probe(3)

    measured = measure_recall(index, vectors, rows, own_only, tune=False)

    drawn = np.sort(np.random.default_rng(0).permutation(3000)[:256])
    scores = vectors[drawn] @ vectors.T
    scores[np.arange(256), drawn] = -2
    exact = np.argsort(-scores, axis=1)[:, :4]
    found = index.search(vectors[drawn], 20).ids  # as many as a search for 4 fetches
    found = np.array([[i for i in row if i != own][:4] for row, own in zip(found, drawn, strict=True)])
    by_hand = np.mean([len(set(a) & set(b)) for a, b in zip(exact, found, strict=True)]) / 4
    assert measured.recall == pytest.approx(by_hand, abs=0.02)
    assert measured.recall < 0.8


def test_lists_are_looked_into_until_the_aim_is_reached_and_no_further():
    vectors, rows = unit_vectors(6000), np.arange(6000)
    index = VectorIndex.build(vectors, rows, factory="IVF128,Flat")

    tuned = measure_recall(index, vectors, rows, own_only, tune=True)

    assert tuned.recall >= AIM
    assert tuned.probes == index.probes
    index.probe(index.probes // 2)
    assert measure_recall(index, vectors, rows, own_only, tune=False).recall < AIM


def test_an_index_of_other_vectors_shows_in_the_self_recall():
    vectors = unit_vectors(1000)
    index = VectorIndex.build(np.roll(vectors, 1, axis=0), np.arange(1000))

    measured = measure_recall(index, vectors, np.arange(1000), own_only, tune=False)

    assert measured.self_recall < 0.05
    assert measured.recall < 0.05


def test_a_built_corpus_keeps_its_recall_and_every_door_tells_it(small_folder):
    kept = load_corpus(small_folder).manifest["statistics"]
    sentence = recall_words(kept["recall"])

    assert kept["recall"]["recall"] == 1
    assert "the index finds 100%" in sentence
    assert sentence in corpus_statistics(statistics(small_folder))
    assert Printer().line(Finished(dict(kept))).endswith(sentence)


def test_a_search_uses_what_was_measured(small_folder, tmp_path):
    corpus = load_corpus(small_folder)
    rows = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
    vectors = np.load(small_folder / "vectors.npy")
    VectorIndex.build(vectors[rows], rows, factory="IVF4,Flat").save(tmp_path / "index.faiss")
    shutil.copyfile(small_folder / "corpus.json", tmp_path / "corpus.json")
    manifest = corpus.manifest | {"marks": {}}
    manifest["statistics"] = manifest["statistics"] | {"recall": {"probes": 3}}
    index = open_index(replace(corpus, folder=tmp_path, manifest=manifest | {"marks": {"index.faiss": None}}))

    assert index.probes == 3


def test_less_than_everything_is_never_shown_as_everything():
    values = {"recall": 0.99999, "self_recall": 1.0, "k": 4, "queries": 256, "probes": 0}

    assert "finds 99.9%" in recall_words(values)
    assert "was not measured" in recall_words(None)


def test_a_sample_of_very_many_takes_memory_for_itself_alone():
    tracemalloc.start()
    few = drawn(10**9, 1000, seed=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(np.unique(few)) == 1000
    assert few.min() >= 0
    assert few.max() < 10**9
    assert (np.diff(few) > 0).all()
    assert most < 1e6
    assert drawn(5, 9, seed=1).tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(few, drawn(10**9, 1000, seed=1))
