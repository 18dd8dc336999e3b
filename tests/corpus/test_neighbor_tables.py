"""The kept neighbors of all chunks: what each retriever finds, made once, never stale."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest
from conftest import SMALL, records, write_jsonl

from retro_demo.corpus import retrievers
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever, neighbor_table, prepare_neighbors
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.settings import RETRIEVERS

KEPT = shutil.ignore_patterns("*bm25*", "neighbors-*")
LEXICAL = [name for name in RETRIEVERS if name != "dense"]


@pytest.fixture
def corpus(tmp_path, small_folder) -> Corpus:
    """A copy to write to."""
    return load_corpus(shutil.copytree(small_folder, tmp_path / "copy", ignore=KEPT))


@pytest.mark.parametrize("name", RETRIEVERS)
def test_a_table_holds_what_the_retriever_finds_for_every_chunk_held_out_ones_too(corpus, name):
    own = np.arange(len(corpus.chunks))

    table = neighbor_table(corpus, name)

    wanted = load_retriever(corpus, name).search(corpus.chunks.tokens, SMALL.num_neighbors, own=own).ids
    assert table.dtype == np.int64
    assert np.array_equal(table, wanted)


@pytest.mark.parametrize("name", RETRIEVERS)
def test_no_kept_neighbor_is_of_the_own_or_of_a_held_out_document(corpus, name):
    table = neighbor_table(corpus, name)

    document = corpus.chunks.document
    there = table >= 0
    assert there.any()
    assert not (document[table] == document[:, None])[there].any()
    assert not corpus.held_out[document[table]][there].any()


@pytest.mark.parametrize("name", LEXICAL)
def test_a_table_is_made_once(corpus, name):
    first = list(prepare_neighbors(corpus, name))

    assert [event for event in first if isinstance(event, Progress)][-1].done == len(corpus.chunks)
    assert list(prepare_neighbors(corpus, name)) == []
    assert [path.name for path in corpus.folder.glob("*.tmp")] == []


def test_the_dense_table_is_part_of_the_corpus(corpus):
    assert list(prepare_neighbors(corpus, "dense")) == []
    assert np.array_equal(neighbor_table(corpus, "dense"), corpus.neighbor_ids)


@pytest.mark.parametrize("name", LEXICAL)
@pytest.mark.parametrize("damage", ["stale", "torn", "edited"])
def test_a_table_that_is_stale_or_damaged_is_made_anew(corpus, name, damage):
    wanted = neighbor_table(corpus, name)
    path = corpus.folder / f"neighbors-{name}.safetensors"
    if damage == "stale":
        (corpus.folder / "corpus.json").write_text(
            json.dumps(corpus.manifest | {"fingerprint": "0" * len(corpus.fingerprint)})
        )
        corpus = load_corpus(corpus.folder)
    else:
        content = path.read_bytes()
        path.write_bytes(content[:100] if damage == "torn" else content[:-1] + b"\x07")

    assert list(prepare_neighbors(corpus, name))
    assert np.array_equal(neighbor_table(corpus, name), wanted)


def test_a_corpus_rebuilt_with_another_text_makes_index_and_table_anew(tmp_path):
    folders = tmp_path / "0", tmp_path / "1"
    for seed, folder in enumerate(folders):
        prepare_corpus(folder, [write_jsonl(tmp_path / f"{seed}.jsonl", records(seed))], SMALL)
        list(build_corpus(folder))
    first, folder = folders
    neighbor_table(load_corpus(first), "bm25")
    for path in first.glob("*bm25*"):
        shutil.copy(path, folder)
    table = neighbor_table(load_corpus(folder), "bm25")

    shutil.copytree(folder, tmp_path / "clean", ignore=KEPT)
    assert np.array_equal(table, neighbor_table(load_corpus(tmp_path / "clean"), "bm25"))


def test_several_callers_at_once_all_get_the_whole_table(corpus):
    tables: list[np.ndarray] = []
    callers = [
        threading.Thread(target=lambda: tables.append(neighbor_table(corpus, "bm25"))) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert len(tables) == 4
    assert all(np.array_equal(table, tables[0]) for table in tables)


def test_a_corpus_that_cannot_be_written_keeps_its_tables_in_the_data_folder(
    corpus, data_folder, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root

    table = neighbor_table(corpus, "bm25")

    assert not list(corpus.folder.glob("*bm25*"))
    assert len(list((data_folder / "derived" / corpus.fingerprint).glob("*bm25*"))) == 2
    assert np.array_equal(neighbor_table(corpus, "bm25"), table)


def test_an_unknown_retriever_has_no_table(corpus):
    with pytest.raises(UserError, match="There is no retriever 'tfidf'"):
        neighbor_table(corpus, "tfidf")


def test_a_corpus_is_searched_in_blocks_without_a_seam(corpus, monkeypatch):
    wanted = neighbor_table(corpus, "hybrid")
    (corpus.folder / "neighbors-hybrid.safetensors").unlink()
    monkeypatch.setattr(retrievers, "BLOCK", 17)

    assert len(list(prepare_neighbors(corpus, "hybrid"))) > 3
    assert np.array_equal(neighbor_table(corpus, "hybrid"), wanted)
