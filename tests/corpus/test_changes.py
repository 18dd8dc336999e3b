"""Adding and forgetting documents: as if built with them or without, and nothing embedded twice."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PLACES, SMALL, records, write_jsonl
from train_helpers import advance, prepare

from retro_demo.cli.main import main
from retro_demo.corpus import building, changes, store
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.changes import carry_out, is_pending, prepare_change
from retro_demo.corpus.retrievers import load_retriever, prepare_neighbors
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import known_documents
from retro_demo.events import Event, Finished, Progress, Retrieved, Warned
from retro_demo.generation.retro import write
from retro_demo.jobs.lifecycle import claim
from retro_demo.retrieval.embedders import StaticEmbedder
from retro_demo.runs.loading import load_run
from retro_demo.settings import AddConfig, GenerateConfig

NEW = [{"id": "zorland", "title": "Zorland", "text": records(seed=5)[0]["text"].replace("Arden", "Zorland")}]


def changed(folder: Path, out: Path | None = None, **what) -> list[Event]:
    return list(carry_out(prepare_change(folder, out, **what)))


def source(folder: Path, rows: list[dict[str, str]] = NEW) -> list[Path]:
    return [write_jsonl(folder / "new.jsonl", rows)]


@pytest.fixture
def corpus_folder(tmp_path, small_folder) -> Path:
    """A copy of the small corpus, to change."""
    return Path(shutil.copytree(small_folder, tmp_path / "corpus"))


def sides(folder: Path) -> dict[str, bool]:
    corpus = load_corpus(folder)
    return {one.id: bool(out) for one, out in zip(corpus.documents, corpus.held_out, strict=True)}


def test_an_added_document_is_embedded_alone_and_found(tmp_path, corpus_folder, monkeypatch):
    embedded: list[str] = []
    embed = StaticEmbedder.embed
    monkeypatch.setattr(
        StaticEmbedder, "embed", lambda self, texts: embedded.extend(texts) or embed(self, texts)
    )
    before = load_corpus(corpus_folder)

    events = changed(corpus_folder, add=source(tmp_path))

    after = load_corpus(corpus_folder)
    new = int((after.chunks.document == 14).sum())
    assert isinstance(events[-1], Finished)
    assert after.documents[:14] == before.documents
    assert after.documents[14].title == "Zorland"
    assert len(embedded) == new == len(after.chunks) - len(before.chunks)
    found = load_retriever(after).search(after.chunks.tokens[after.chunks.document == 14][:3], 1)
    assert (after.chunks.document[found.ids] == 14).all()


def test_forgetting_embeds_nothing_and_leaves_what_a_build_without_the_document_gives(
    tmp_path, corpus_folder
):
    gone = next(title for title in PLACES if not sides(corpus_folder)[title.lower()])
    kept = {name: side for name, side in sides(corpus_folder).items() if name != gone.lower()}

    events = changed(corpus_folder, forget=[gone])

    after = load_corpus(corpus_folder)
    assert not [e for e in events if isinstance(e, Progress) and e.stage == "embed"]
    assert sides(corpus_folder) == kept
    # the same documents, split and tokenizer, built from nothing
    anew = tmp_path / "anew"
    uses = {True: "held-out", False: "training"}
    rows = [row | {"use": uses[kept[row["id"]]]} for row in records() if row["id"] in kept]
    prepare_corpus(anew, [write_jsonl(tmp_path / "kept.jsonl", rows)], SMALL)
    shutil.copyfile(corpus_folder / "tokenizer.json", anew / "tokenizer.json")
    list(build_corpus(anew))
    for name in (
        "chunks.npy",
        "chunk_documents.npy",
        "vectors.npy",
        "neighbor_ids.npy",
        "neighbor_scores.npy",
    ):
        np.testing.assert_array_equal(np.load(corpus_folder / name), np.load(anew / name))
    assert after.cluster.tolist() == load_corpus(anew).cluster.tolist()


def test_what_was_forgotten_is_found_by_no_retriever(tmp_path, corpus_folder):
    before = load_corpus(corpus_folder)
    number = int(np.flatnonzero(~before.held_out)[0])
    queries = before.chunks.tokens[before.chunks.document == number]
    for name in ("bm25", "hybrid"):  # their files are made from the corpus as it was
        assert (before.chunks.document[load_retriever(before, name).search(queries, 1).ids] == number).any()

    changed(corpus_folder, forget=[before.documents[number].id])

    after = load_corpus(corpus_folder)
    for name in ("dense", "bm25", "bm25-words", "hybrid"):
        ids = load_retriever(after, name).search(queries, 4).ids
        titles = {after.documents[d].title for d in after.chunks.document[ids[ids >= 0]]}
        assert before.documents[number].title not in titles


def with_uploads(folder: Path) -> Path:
    """The corpus as the page builds it, its sources copied into its folder."""
    (folder / "sources").mkdir()
    config = json.loads((folder / "config.json").read_text())
    copy = shutil.copyfile(config["sources"][0], folder / "sources" / "places.jsonl")
    (folder / "config.json").write_text(json.dumps(config | {"sources": [str(copy)]}))
    return folder


def test_nothing_in_the_folder_holds_what_was_forgotten(tmp_path, corpus_folder):
    """Uploads, what a kill left and what was made of the corpus as it was; only names are kept."""
    folder = with_uploads(corpus_folder)
    before = load_corpus(folder)
    number = int(np.flatnonzero(~before.held_out)[0])
    one = before.documents[number]
    first = before.chunks.tokens[before.chunks.document == number][0]
    vector = np.load(folder / "vectors.npy")[before.chunks.document == number][0]
    for name in ("bm25", "bm25-words", "hybrid"):
        load_retriever(before, name)
        for _ in prepare_neighbors(before, name):
            pass
    (folder / "shards" / "1-of-2").mkdir(parents=True)
    for left in (
        "documents.jsonl.tmp",
        "bm25.safetensors.12ab.tmp",
        "vectors.part",
        "shards/1-of-2/chunks.npy",
    ):
        shutil.copyfile(folder / "documents.jsonl", folder / left)
    signs = [one.text[:40].encode(), first.tobytes(), vector.tobytes()]
    holders = {path.name for path in holding(folder, signs)}
    assert {"places.jsonl", "documents.jsonl", "chunks.npy", "vectors.npy", "index.faiss"} <= holders

    events = changed(folder, forget=[one.id])

    assert not holding(folder, signs)
    assert not (folder / "sources").exists()
    assert not list(folder.glob("*.safetensors"))
    manifest = load_corpus(folder).manifest
    assert manifest["history"][-1]["sources_removed"] == ["places.jsonl"]
    assert any("(places.jsonl) were removed" in e.text for e in events if isinstance(e, Warned))
    list(carry_out(folder))  # a later build needs none of it
    assert load_corpus(folder).fingerprint == manifest["fingerprint"]


def holding(folder: Path, signs: list[bytes]) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(sign in path.read_bytes() for sign in signs)]


def test_what_was_left_out_is_told_before_a_change_that_adds_nothing_ends(tmp_path, corpus_folder):
    (tmp_path / "more").mkdir()
    source(tmp_path / "more", records()[:1])
    (tmp_path / "more" / "damaged.pdf").write_bytes(b"\0\1\2")
    prepare_change(corpus_folder, None, add=[tmp_path / "more"])
    seen: list[Event] = []

    with pytest.raises(UserError, match="already, word for word"):
        seen.extend(carry_out(corpus_folder))

    (told,) = (event.text for event in seen if isinstance(event, Warned))
    assert "damaged.pdf" in told


def test_uploads_stay_where_nothing_is_forgotten_and_a_folder_of_ones_own_always(tmp_path, corpus_folder):
    folder = with_uploads(corpus_folder)

    changed(folder, add=source(tmp_path))
    assert (folder / "sources" / "places.jsonl").exists()

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sources": [str(folder / "sources")]}))
    events = changed(folder, forget=["Arden"])
    assert (folder / "sources" / "places.jsonl").exists()
    assert any("may hold what was forgotten" in event.text for event in events if isinstance(event, Warned))


def test_a_change_that_fails_late_is_kept_and_gone_on_with(tmp_path, corpus_folder, monkeypatch):
    """As where the weights of the embedder are not there today: what was asked and uploaded is not lost."""

    def missing(folder: Path, name: str):
        raise UserError("The weights are not on this machine.")

    fingerprint = load_corpus(corpus_folder).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(building, "open_embedder", missing)
        with pytest.raises(UserError, match="The corpus stays as it was. The change is kept"):
            changed(corpus_folder, add=source(tmp_path), forget=["Arden"])
    assert load_corpus(corpus_folder).fingerprint == fingerprint
    assert is_pending(corpus_folder)

    list(carry_out(corpus_folder))

    assert "zorland" in sides(corpus_folder)
    assert "arden" not in sides(corpus_folder)


@pytest.mark.parametrize("when", ["before it is hashed", "after it is hashed"])
def test_a_corpus_that_is_changed_while_it_is_read_is_not_mixed(tmp_path, corpus_folder, monkeypatch, when):
    real = {name: getattr(store, name) for name in ("file_hash", "read_stored_documents")}
    name = "file_hash" if when == "before it is hashed" else "read_stored_documents"

    def slow(path: Path):
        monkeypatch.setattr(store, name, real[name])
        changed(corpus_folder, forget=["Arden"])
        return real[name](path)

    monkeypatch.setattr(store, name, slow)

    with pytest.raises(UserError, match="was changed while it was being read. Try again"):
        load_corpus(corpus_folder)
    load_corpus(corpus_folder)


def test_what_a_reader_of_before_would_keep_is_not_put_into_the_changed_corpus(corpus_folder):
    """A loaded run makes its BM25 index when it is first wanted: of text that may be forgotten by then."""
    before = load_corpus(corpus_folder)
    changed(corpus_folder, forget=["Arden"])

    for name in ("bm25", "bm25-words", "hybrid", "dense"):
        with pytest.raises(UserError, match="changed after it was read|not the one that was built"):
            load_retriever(before, name)

    assert not list(corpus_folder.glob("*.safetensors*"))


def test_adding_and_forgetting_the_same_document_gives_the_corpus_of_before(tmp_path, corpus_folder):
    fingerprint = load_corpus(corpus_folder).fingerprint

    changed(corpus_folder, add=source(tmp_path))
    between = load_corpus(corpus_folder).fingerprint
    changed(corpus_folder, forget=["zorland"])

    after = load_corpus(corpus_folder)
    assert between != fingerprint
    assert after.fingerprint == fingerprint
    assert [step["fingerprint"] for step in after.manifest["history"]] == [fingerprint, between]


def test_another_split_of_the_same_documents_is_another_corpus(tmp_path, small_folder):
    """Else a run could be measured on what it was trained on."""
    rows = [row for row in records() if row["id"] != "norvale"]
    parts = {"whole": records(), "part": rows}
    shutil.copyfile(small_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    config = replace(SMALL, tokenizer=str(tmp_path / "tokenizer.json"))
    for name, part in parts.items():
        prepare_corpus(tmp_path / name, [write_jsonl(tmp_path / f"{name}.jsonl", part)], config)
        list(build_corpus(tmp_path / name))
    last = [row for row in records() if row["id"] == "norvale"]

    changed(tmp_path / "part", add=source(tmp_path, last))

    whole, part = load_corpus(tmp_path / "whole"), load_corpus(tmp_path / "part")
    assert whole.documents == part.documents
    assert (whole.fingerprint == part.fingerprint) == np.array_equal(whole.held_out, part.held_out)
    assert not np.array_equal(whole.held_out, part.held_out)  # or this test says nothing


def test_a_near_copy_of_a_held_out_document_is_held_out_with_it(tmp_path, corpus_folder):
    before = load_corpus(corpus_folder)
    held = before.documents[int(np.flatnonzero(before.held_out)[0])]
    copy = {"id": "copy", "title": "Copy", "text": held.text}

    changed(corpus_folder, add=source(tmp_path, [copy, *NEW]))

    assert sides(corpus_folder)["copy"] is True
    assert sides(corpus_folder)["zorland"] is False


def test_the_use_of_new_documents_is_kept(tmp_path, corpus_folder):
    changed(corpus_folder, add=source(tmp_path), config=AddConfig(use="database"))

    after = load_corpus(corpus_folder)
    assert after.database_only.tolist() == [False] * 14 + [True]
    assert not after.held_out[14]


def test_a_near_copy_of_what_is_forgotten_is_named(tmp_path, corpus_folder):
    before = load_corpus(corpus_folder)
    one = before.documents[int(np.flatnonzero(~before.held_out)[0])]
    changed(corpus_folder, add=source(tmp_path, [{"id": "twin", "title": "Twin", "text": one.text}]))

    events = changed(corpus_folder, forget=[one.id])

    assert any(
        "near-duplicates of what was forgotten stay (Twin)" in e.text for e in events if isinstance(e, Warned)
    )


def test_a_copy_changes_and_the_corpus_stays(tmp_path, corpus_folder):
    before = load_corpus(corpus_folder).fingerprint

    changed(corpus_folder, tmp_path / "copy", forget=["Arden"])

    assert load_corpus(corpus_folder).fingerprint == before
    assert "arden" not in sides(tmp_path / "copy")
    assert not is_pending(corpus_folder)


@pytest.mark.parametrize("steps", range(1, 24))
def test_a_change_that_is_cut_off_anywhere_is_gone_on_with_and_ends_the_same(
    tmp_path, corpus_folder, monkeypatch, steps
):
    whole = Path(shutil.copytree(corpus_folder, tmp_path / "whole"))
    changed(whole, add=source(tmp_path), forget=["Arden"])
    left = steps

    class Cut(Exception):
        pass

    def count(real):
        def step(*values, **named):
            nonlocal left
            left -= 1
            if left < 0:
                raise Cut
            return real(*values, **named)

        return step

    with monkeypatch.context() as patch:  # every file that is put in its place is a step
        patch.setattr(Path, "replace", count(Path.replace))
        patch.setattr(changes.shutil, "rmtree", count(shutil.rmtree))
        patch.setattr(changes, "save_array", count(changes.save_array))
        patch.setattr(changes, "write_atomically", count(changes.write_atomically))
        with contextlib.suppress(Cut):
            changed(corpus_folder, add=source(tmp_path), forget=["Arden"])

    list(carry_out(corpus_folder))
    if "zorland" not in sides(corpus_folder):  # it was cut off before it was written down
        changed(corpus_folder, add=source(tmp_path), forget=["Arden"])

    assert load_corpus(corpus_folder).fingerprint == load_corpus(whole).fingerprint
    for name in ("vectors.npy", "neighbor_ids.npy", "chunks.npy"):
        assert (corpus_folder / name).read_bytes() == (whole / name).read_bytes()
    assert not is_pending(corpus_folder)


def test_a_second_call_of_build_finds_a_changed_corpus_done_as_it_is(tmp_path, corpus_folder):
    changed(corpus_folder, add=source(tmp_path))
    fingerprint = load_corpus(corpus_folder).fingerprint

    events = list(carry_out(corpus_folder))

    assert isinstance(events[-1], Finished)
    assert load_corpus(corpus_folder).fingerprint == fingerprint
    assert "zorland" in sides(corpus_folder)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"forget": ["Nowhere"]}, "no document with the id or title 'Nowhere'"),
        ({"forget": ["Ard"]}, "Do you mean 'Arden'"),
        ({}, "Name what to change"),
        ({"forget": PLACES}, "stays as it was"),
        ({"add": records()}, "nothing to add. The corpus stays as it was"),
        (
            {"add": [{"id": "arden", "title": "Arden", "text": "Another text of Arden."}]},
            "Forget the old one first",
        ),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_the_corpus_stays(tmp_path, corpus_folder, what, words):
    before = {path.name: path.read_bytes() for path in corpus_folder.iterdir() if path.is_file()}
    if "add" in what:
        what = {"add": source(tmp_path, what["add"])}

    with pytest.raises(UserError, match=words):
        changed(corpus_folder, **what)

    assert before == {path.name: path.read_bytes() for path in corpus_folder.iterdir() if path.is_file()}
    assert not is_pending(corpus_folder)


def test_vectors_of_another_embedder_are_an_error_not_a_mixture(tmp_path, corpus_folder):
    manifest = json.loads((corpus_folder / "corpus.json").read_text())
    (corpus_folder / "corpus.json").write_text(json.dumps(manifest | {"embedder_fingerprint": "another"}))

    with pytest.raises(UserError, match="another version of the embedder"):
        changed(corpus_folder, add=source(tmp_path))


def test_after_a_change_a_run_is_not_gone_on_with_but_reads_the_corpus_as_a_named_swap(
    tmp_path, corpus_folder
):
    run = prepare(tmp_path / "run", corpus_folder, seq_len=64)
    advance(run)

    changed(corpus_folder, forget=["Arden"])

    with pytest.raises(UserError, match="has changed since this run was trained"):
        load_run(run)
    swapped = load_run(run, corpus=corpus_folder)
    assert swapped.swapped == "corpus"
    events = write(swapped, "Area of Arden: 100", GenerateConfig(max_new_tokens=20))
    titles = {one["title"] for event in events if isinstance(event, Retrieved) for one in event.neighbors}
    assert titles
    assert "Arden" not in titles


def test_held_out_documents_that_were_trained_on_before_they_were_forgotten_are_known(
    tmp_path, corpus_folder
):
    """Forgotten as training text, added as held-out text: a run of before must not be measured on it."""
    before = load_corpus(corpus_folder)
    one = before.documents[int(np.flatnonzero(~before.held_out)[0])]
    run = prepare(tmp_path / "run", corpus_folder, seq_len=64)
    advance(run)
    changed(corpus_folder, forget=[one.id])
    back = {"id": one.id, "title": one.title, "text": one.text}

    changed(corpus_folder, add=source(tmp_path, [back]), config=AddConfig(use="held-out"))

    after = load_corpus(corpus_folder)
    known = known_documents(after, [run])
    assert not known.unchecked
    assert [d.id for d, there in zip(after.documents, known.documents, strict=True) if there] == [one.id]


def test_the_verb_writes_nothing_into_a_corpus_that_is_worked_on(corpus_folder, capsys):
    """A change that was asked for while another took its places would be lost without a word."""
    with claim(corpus_folder):
        assert main(["forget", str(corpus_folder), "Arden"]) == 2

    assert "being worked on" in capsys.readouterr().err
    assert not is_pending(corpus_folder)


def test_the_verbs_change_a_corpus_and_refuse_to_change_a_shipped_one(tmp_path, corpus_folder, capsys):
    assert main(["add-documents", str(corpus_folder), str(source(tmp_path)[0]), "--json"]) == 0
    assert (
        main(["forget", str(corpus_folder), "zorland", "Arden", "--out", str(tmp_path / "copy"), "--json"])
        == 0
    )
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["event"], last["documents"]) == ("finished", 13)
    assert main(["forget", "sample:factbook2015", "Norway"]) == 2
    assert "ships with the app" in capsys.readouterr().err
