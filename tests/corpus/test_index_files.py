"""The index on disk: in blocks, in shards that answer as one, mapped, and never a stranger's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from index_helpers import recall, unit_vectors

from retro_demo.corpus import building
from retro_demo.corpus.building import (
    build_corpus,
    bytes_per_vector,
    index_names,
    open_files,
    open_index,
    plan_index,
    write_index,
)
from retro_demo.corpus.retrievers import load_retriever, search_stored
from retro_demo.corpus.store import load_corpus
from retro_demo.devices import allowed_memory
from retro_demo.errors import UserError
from retro_demo.files import load_array
from retro_demo.paths import STATIC_FOLDER
from retro_demo.retrieval.dense import VectorIndex, gpu_available, search_allowed
from retro_demo.retrieval.embedders import StaticEmbedder

PLENTY = 1 << 34


def written(
    folder: Path, vectors: np.ndarray, rows: np.ndarray, factory: str, *, shards: int = 1
) -> VectorIndex:
    """An index of the rows in about so many shards, opened from disk."""
    folder.mkdir(exist_ok=True)
    memory = PLENTY
    if shards > 1:
        memory = 4 * bytes_per_vector(factory, vectors.shape[1]) * (len(rows) // shards + 1)
    done = list(write_index(folder, vectors, rows, "cpu", memory=memory, factory=factory))
    assert done[-1] == len(rows)
    return open_files(folder, "cpu")


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,SQ8"])
def test_shards_answer_as_one_index(tmp_path, factory):
    vectors, rows = unit_vectors(3000), np.arange(1, 3000, 2)
    whole = written(tmp_path / "whole", vectors, rows, factory)
    parts = written(tmp_path / "parts", vectors, rows, factory, shards=4)

    assert (whole.shards, parts.shards) == (1, 4)
    for k in (1, 5, 100):
        one, four = whole.search(vectors[:200], k), parts.search(vectors[:200], k)
        assert np.array_equal(one.ids, four.ids)
        assert np.array_equal(one.scores, four.scores)
    assert len(parts) == len(rows)
    assert np.array_equal(np.sort(parts.ids), rows)


def test_shards_are_scanned_to_the_end_for_the_last_allowed_chunk(tmp_path):
    vectors = unit_vectors(900)
    parts = written(tmp_path / "parts", vectors, np.arange(900), "IVF16,Flat", shards=3)

    found = search_allowed(parts, vectors[:3], 1, lambda own, ids: ids != 899)

    assert found.ids[:, 0].tolist() == [899] * 3


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_an_index_written_in_blocks_from_disk_is_the_one_built_in_memory(tmp_path, monkeypatch, factory):
    monkeypatch.setattr(building, "ADD_ROWS", 77)
    vectors = unit_vectors(1000)
    np.save(tmp_path / "vectors.npy", vectors)

    index = written(
        tmp_path / "i", load_array(tmp_path / "vectors.npy", mapped=True), np.arange(1000), factory
    )

    VectorIndex.build(vectors, np.arange(1000), factory=factory).save(tmp_path / "memory.faiss")
    assert (tmp_path / "i" / "index.faiss").read_bytes() == (tmp_path / "memory.faiss").read_bytes()
    assert len(index) == 1000


BUILD = """
import resource, sys
import numpy as np
from dataclasses import replace
from pathlib import Path
from retro_demo.corpus.building import open_files, write_index
vectors = np.load(sys.argv[1], mmap_mode="r")
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = anonymous()
most = 0
for _ in write_index(Path(sys.argv[2]), vectors, np.arange(len(vectors)), "cpu", memory=int(sys.argv[3])):
    most = max(most, anonymous() - before)
index = open_files(Path(sys.argv[2]), "cpu")
index.search(np.array(vectors[:4]), 4)
print(most, anonymous() - before, index.shards)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_index_larger_than_the_memory_allowed_is_built_and_searched(tmp_path):
    """80 MB of vectors where 20 MB may be used: neither building nor searching holds them all."""
    rows = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, (80_000, 256))
    for start in range(0, 80_000, 10_000):
        rows[start : start + 10_000] = unit_vectors(10_000, 256, seed=start)
    rows.flush()
    (tmp_path / "index").mkdir()
    command = [sys.executable, "-c", BUILD, str(tmp_path / "v.npy"), str(tmp_path / "index"), "80000000"]

    done = subprocess.run(command, check=True, capture_output=True, text=True)

    most, searching, shards = map(int, done.stdout.split())
    assert shards == 5
    assert most < 60e6  # a shard of 17 MB, a block on its way in, and what the allocator keeps
    assert searching < 60e6


def test_an_earlier_index_leaves_no_shard_behind(tmp_path):
    vectors = unit_vectors(800)
    written(tmp_path, vectors, np.arange(800), "Flat", shards=3)

    index = written(tmp_path, vectors, np.arange(800), "Flat")

    assert [path.name for path in tmp_path.glob("*.faiss")] == index_names(1)
    assert len(index) == 800


def test_a_corpus_in_shards_gives_the_neighbors_of_one_index(tmp_path, small_folder, monkeypatch):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    for name in ("neighbor_ids.npy", "neighbor_scores.npy", "corpus.json", "index.json"):
        (folder / name).unlink()
    monkeypatch.setattr("retro_demo.corpus.building.allowed_memory", lambda: 500_000)

    list(build_corpus(folder))

    corpus, whole = load_corpus(folder), load_corpus(small_folder)
    assert corpus.manifest["statistics"]["shards"] == 2
    assert np.array_equal(corpus.neighbor_ids, whole.neighbor_ids)
    query = np.array([corpus.tokenizer.encode("Coastline of Arden")])
    assert np.array_equal(
        load_retriever(corpus).search(query, 5).ids, load_retriever(whole).search(query, 5).ids
    )


@pytest.mark.parametrize(
    ("total", "memory", "shards", "kind", "size"),
    [
        (1_000_000, PLENTY, 1, "Flat", 1_000_000),  # of the GPU
        (1_000_000, PLENTY, 4, "IVF4096,SQ8", 250_000),
        (4_000_000, PLENTY, 1, "IVF4096,SQ8", 4_000_000),  # the lists of the GPU would not fit in one
        (40_000_000, PLENTY, 1, "IVF16384_HNSW32,SQ8", 10_000_000),
    ],
)
def test_what_is_cut_into_shards_is_of_the_kind_that_suits_the_cpu_which_searches_it(
    total, memory, shards, kind, size
):
    assert plan_index(total, 384, "cuda", memory=memory, shards=shards) == (kind, size)


def test_a_corpus_in_shards_is_never_said_to_be_searched_on_a_gpu(tmp_path, small_folder, monkeypatch):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    for name in ("neighbor_ids.npy", "neighbor_scores.npy", "corpus.json", "index.json"):
        (folder / name).unlink()
    monkeypatch.setattr("retro_demo.corpus.building.allowed_memory", lambda: 500_000)
    monkeypatch.setattr(
        "retro_demo.corpus.building.gpu_available", lambda: (True, "FAISS searches on 1 GPU.")
    )

    list(build_corpus(folder))

    said = load_corpus(folder).manifest["statistics"]["device"]
    assert said.startswith("FAISS searches on the CPU: the index is in 2 shards")


@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy"])
def test_a_file_of_another_corpus_is_an_error_not_silence(tmp_path, small_folder, name):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    vectors = np.roll(np.load(folder / "vectors.npy"), 1, axis=0)  # of the same size, of other chunks
    corpus = load_corpus(folder)
    if name == "vectors.npy":
        np.save(folder / name, vectors)
    else:
        ids = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
        VectorIndex.build(vectors[ids], ids).save(folder / name)

    with pytest.raises(UserError, match=f"{name} of the corpus c is not the one that was built with it"):
        search_stored(corpus, load_retriever(corpus), np.arange(3), 2)


def test_a_corpus_of_before_there_were_marks_and_recall_still_opens(tmp_path, small_folder):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    manifest = json.loads((folder / "corpus.json").read_text())
    del manifest["marks"], manifest["statistics"]["recall"], manifest["statistics"]["shards"]
    (folder / "corpus.json").write_text(json.dumps(manifest))

    corpus = load_corpus(folder)

    there = np.load(folder / "vectors.npy").any(axis=1)  # the last chunk of a document may hold its end alone
    assert len(open_index(corpus)) == (there & ~corpus.held_out[corpus.chunks.document]).sum()
    assert search_stored(corpus, load_retriever(corpus), np.arange(3), 2).ids.shape == (3, 2)


def test_some_memory_is_allowed_and_no_more_than_there_is():
    assert 1 << 28 < allowed_memory() < 1 << 50


def test_the_bytes_of_a_vector_are_those_of_the_file(tmp_path):
    vectors = StaticEmbedder(STATIC_FOLDER).embed([f"chunk {i}" for i in range(3000)])
    for factory in ("Flat", "IVF8,Flat", "IVF8,SQ8"):
        written(tmp_path, vectors, np.arange(3000), factory)
        size = (tmp_path / "index.faiss").stat().st_size
        assert size == pytest.approx(3000 * bytes_per_vector(factory, vectors.shape[1]), rel=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
def test_on_gpus_k_means_and_search_run_there_and_several_hold_a_share_each(tmp_path, factory):
    usable, sentence = gpu_available()
    if not usable:
        pytest.skip(sentence)
    vectors, rows = unit_vectors(5000), np.arange(5000)
    list(write_index(tmp_path, vectors, rows, "cuda", memory=PLENTY, factory=factory))

    gpu, cpu = open_files(tmp_path, "cuda"), open_files(tmp_path, "cpu")
    for index in (gpu, cpu) if gpu.lists else ():
        index.probe(16)

    assert recall(gpu.search(vectors[:100], 4), cpu.search(vectors[:100], 4)) > 0.99
    if faiss.get_num_gpus() > 1:
        copied = faiss.downcast_index(gpu._gpu.index)
        assert isinstance(copied, faiss.IndexShards)


@pytest.mark.parametrize("recall", ["all", {"probes": "many"}, {}, [4]])
def test_a_measured_recall_that_is_none_is_refused(small_folder, tmp_path, recall):
    corpus = load_corpus(small_folder)
    damaged = corpus.manifest | {"statistics": corpus.manifest["statistics"] | {"recall": recall}}

    with pytest.raises(UserError, match="is damaged .recall"):
        open_index(replace(corpus, manifest=damaged))
