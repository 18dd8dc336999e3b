"""A corpus built in shards is, file by file, the one that a single process builds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, records, write_jsonl
from held_back import PATIENCE

from retro_demo.cli.main import main
from retro_demo.corpus import building, changes, embedding, sharding
from retro_demo.corpus.building import build_corpus, open_files, prepare_corpus, write_index
from retro_demo.corpus.changes import prepare_change
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.sharding import Shard, read_shard, run_build, run_shard
from retro_demo.corpus.store import KEPT_FILES, MANIFEST, load_corpus
from retro_demo.errors import UserError
from retro_demo.events import read_events

BLOCK = 32  # so that the few chunks of the small corpus make many blocks


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    for module, name in ((embedding, "EMBED_BLOCK"), (sharding, "EMBED_BLOCK")):
        monkeypatch.setattr(module, name, BLOCK)
    for module in (building, sharding):
        monkeypatch.setattr(module, "SEARCH_BLOCK", BLOCK)


@pytest.fixture
def prepared(tmp_path) -> Path:
    out = tmp_path / "sharded"
    prepare_corpus(out, [write_jsonl(tmp_path / "places.jsonl", records())], SMALL)
    return out


def call(out: Path, shard: Shard) -> dict:
    return [event.to_json() for event in run_shard(out, shard, lambda: False)][-1]


def assert_same_corpus(out: Path, single: Path, shards: int) -> None:
    for name in (*KEPT_FILES, "vectors.npy"):
        assert (out / name).read_bytes() == (single / name).read_bytes(), name
    ours, theirs = load_corpus(out), load_corpus(single)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.manifest["statistics"]["shards"] == shards == len(list(out.glob("index*.faiss")))
    assert not list((out / "shards").rglob("*.np*"))  # nothing is kept twice
    tokens = theirs.chunks.tokens[::7]
    for k in (1, 5, 40):
        one, other = (load_retriever(corpus).search(tokens, k) for corpus in (ours, theirs))
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.scores, other.scores, atol=2e-6)


@pytest.mark.parametrize(("count", "order"), [(1, (1,)), (3, (1, 2, 3)), (3, (3, 1, 2)), (3, (2, 3, 1))])
def test_shards_called_in_any_order_make_the_corpus_of_one_process(
    prepared, small_folder, small_blocks, count, order
):
    first = [call(prepared, Shard(number, count)) for number in order]
    second = [call(prepared, Shard(number, count)) for number in order[::-1]]

    assert_same_corpus(prepared, small_folder, count)
    assert [told["done"] for told in first[:-1]] == ["vectors"] * (count - 1)
    assert first[0]["waits_for"] == [f"{number}/{count}" for number in sorted(order[1:])]
    assert second[-1] == {
        "event": "finished",
        "shard": f"{order[0]}/{count}",
        "done": "corpus",
        "waits_for": [],
    }
    assert call(prepared, Shard(1, count))["done"] == "corpus"  # a call too many changes nothing


def test_more_shards_than_blocks_leave_some_with_nothing_to_do(prepared, small_folder):
    for _ in range(2):
        for number in (1, 2, 3):
            call(prepared, Shard(number, 3))

    assert_same_corpus(prepared, small_folder, 3)


def test_shards_cover_every_chunk_once_in_whole_blocks():
    for total, count in ((1, 1), (5, 3), (4096 * 7 + 1, 3), (10**9, 1000)):
        rows = [shard.rows(total) for shard in Shard(1, count).siblings()]
        assert rows[0][0] == 0
        assert rows[-1][1] == total
        assert all(a[1] == b[0] for a, b in zip(rows, rows[1:], strict=False))
        assert all(start % 4096 == 0 or start == total for start, _ in rows)


def test_a_missing_shard_is_named(prepared, small_blocks):
    for number in (1, 3):
        call(prepared, Shard(number, 3))
    with pytest.raises(UserError, match=r"Shard 2/3 of sharded has no vectors yet\. .* --shard 2/3 first"):
        list(run_build(prepared, lambda: False))

    call(prepared, Shard(2, 3))  # embeds, and goes on: it is the last one
    with pytest.raises(UserError, match=r"Shards 1/3, 3/3 of sharded have no neighbors yet"):
        list(run_build(prepared, lambda: False))
    assert read_events(prepared / "events.jsonl")[-1]["event"] == "failed"


def test_what_is_joined_can_be_finished_by_a_plain_build(prepared, small_folder, small_blocks, monkeypatch):
    for number in (1, 2):
        call(prepared, Shard(number, 2))
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "finish_shards", lambda out: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # the last one dies before it has joined the neighbors
            call(prepared, Shard(1, 2))

    events = [event.to_json() for event in run_build(prepared, lambda: False)]

    assert events[-1]["event"] == "finished"
    assert_same_corpus(prepared, small_folder, 2)


def test_a_shard_that_was_stopped_goes_on_at_its_last_block(prepared, small_folder, small_blocks):
    shard = Shard(1, 1)
    seen: list[dict] = []
    for stage in ("embed", "neighbors"):
        blocks = lambda: [e["done"] for e in seen if e.get("stage") == stage]  # noqa: B023, E731
        seen += [e.to_json() for e in cut(prepared, shard, lambda: len(blocks()) >= 2, seen)]  # noqa: B023
        assert blocks() == [BLOCK, 2 * BLOCK]
        seen.clear()
    last = [event.to_json() for event in run_shard(prepared, shard, lambda: False)]

    assert [e["done"] for e in last if e.get("stage") == "neighbors"][0] == 3 * BLOCK
    assert not [e for e in last if e.get("stage") in ("embed", "index")]  # done once
    assert_same_corpus(prepared, small_folder, 1)


def cut(out: Path, shard: Shard, stop, seen: list[dict]):
    for event in run_shard(out, shard, stop):
        seen.append(event.to_json())
    assert seen[-1]["event"] == "stopped"
    return []


def test_another_number_of_shards_and_vectors_of_another_embedder_are_refused(prepared, small_blocks):
    call(prepared, Shard(1, 2))
    with pytest.raises(UserError, match="begun in 2 shards, not in 3"):
        call(prepared, Shard(2, 3))

    about = prepared / "shards" / "1-of-2" / "vectors.json"
    about.write_text(json.dumps({"made_from": "something else", "given": 0}))
    with pytest.raises(UserError, match=r"shard 1/2 of sharded were made by another version"):
        call(prepared, Shard(2, 2))


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1.5/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UserError, match="write the second of three as 2/3"):
        read_shard(text)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8"])
def test_an_index_in_shards_answers_as_a_whole_one(tmp_path, factory):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(900, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = np.arange(0, 900, 1)
    found = []
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        folder.mkdir()
        list(write_index(folder, rows, ids, "cpu", memory=10**9, factory=factory, shards=shards))
        index = open_files(folder, "cpu")
        assert index.shards == shards
        if index.lists:
            index.probe(3)
        found.append(index.search(rows[:100], 10))

    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=2e-6)


def test_processes_that_begin_at_once_share_the_work(tmp_path, small_folder):
    source, out = write_jsonl(tmp_path / "places.jsonl", records()), tmp_path / "out"
    settings = ["--chunk-len", "8", "--vocab-size", "400", "--num-neighbors", "4"]
    command = [sys.executable, "-m", "retro_demo", "build-corpus", str(source), "--out", str(out), *settings]
    for _ in range(2):
        started = [
            subprocess.Popen(
                [*command, "--json", "--shard", f"{number}/2"], stdout=subprocess.PIPE, text=True
            )
            for number in (1, 2)
        ]
        told = [process.communicate(timeout=PATIENCE)[0].splitlines() for process in started]
        assert [process.returncode for process in started] == [0, 0]

    assert "corpus" in {json.loads(lines[-1])["done"] for lines in told}  # of the last one to end
    assert_same_corpus(out, small_folder, 2)


def test_ray_data_builds_the_same_corpus(prepared, small_folder):
    pytest.importorskip("ray.data", reason="ray is not installed (requirements-ray.txt)")
    from retro_demo.corpus.sharding import build_on_ray

    events = [event.to_json() for event in build_on_ray(prepared, 3)]

    assert [(e["stage"], e["done"]) for e in events if e["event"] == "progress"] == [
        (stage, done) for stage in ("vectors", "neighbors") for done in (1, 2, 3)
    ]
    assert events[-1]["event"] == "finished"
    assert_same_corpus(prepared, small_folder, 3)


def test_without_ray_the_way_to_install_it_is_said(prepared, monkeypatch):
    from retro_demo.corpus.sharding import build_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"requirements-ray\.txt"):
        list(build_on_ray(prepared, 2))


def test_a_corpus_built_at_once_has_one_index_file_and_no_shards(prepared, small_folder):
    list(build_corpus(prepared))

    assert_same_corpus(prepared, small_folder, 1)


def test_a_change_of_a_corpus_built_in_shards_that_was_cut_off_is_gone_on_with(
    prepared, small_blocks, tmp_path, monkeypatch
):
    for number in (1, 2, 1, 2):
        list(run_shard(prepared, Shard(number, 2), lambda: False))
    names = [document.id for document in load_corpus(prepared).documents]
    prepare_change(prepared, None, forget=[names[3]])

    def killed(out: Path, pending: Path) -> None:
        """The first lines of _take_places: from here to its end the folder is no corpus."""
        (pending / "config.json").unlink()
        (out / MANIFEST).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(changes, "_take_places", killed)
        with pytest.raises(KeyboardInterrupt):
            list(run_build(prepared, lambda: False))
    list(run_build(prepared, lambda: False))

    left = [document.id for document in load_corpus(prepared).documents]
    assert left == [name for name in names if name != names[3]]


@pytest.mark.parametrize(("memory", "shards"), [(1 << 34, 1), (500_000, 2)])
def test_a_corpus_in_shards_is_added_to_and_forgotten_from_as_a_whole_one(
    prepared, small_folder, small_blocks, tmp_path, monkeypatch, memory, shards
):
    """Its index is made anew, in as many shards as memory asks for by then, and none of before is left."""
    for number in (1, 2, 3, 1, 2, 3):
        list(run_shard(prepared, Shard(number, 3), lambda: False))
    whole = Path(shutil.copytree(small_folder, tmp_path / "whole"))
    new = [
        {"id": "zorland", "title": "Zorland", "text": records(seed=5)[0]["text"].replace("Arden", "Zorland")}
    ]
    asked = {"add": [write_jsonl(tmp_path / "new.jsonl", new)], "forget": ["Arden", "Galt"]}
    list(run_build(prepare_change(whole, None, **asked), lambda: False))
    monkeypatch.setattr("retro_demo.corpus.building.allowed_memory", lambda: memory)

    list(run_build(prepare_change(prepared, None, **asked), lambda: False))

    assert not (prepared / "shards").exists()
    assert_same_corpus(prepared, whole, shards)
    corpus = load_corpus(prepared)
    titles = [document.title for document in corpus.documents]
    assert "Zorland" in titles
    assert not {"Arden", "Galt"} & set(titles)


def test_ray_and_a_shard_of_ones_own_do_not_go_together(tmp_path, capsys):
    flags = ["--out", str(tmp_path / "c"), "--ray", "2", "--shard", "1/2"]
    assert main(["build-corpus", *flags]) == 2
    assert "leave --shard out" in capsys.readouterr().err
