"""Chunks, held-out groups, exclusion and building."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, records, write_jsonl
from places import TESTS

from retro_demo.corpus import embedding
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.store import Chunks, chunk_documents, hold_out, keep_split, load_corpus
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.events import Finished, Progress, Warned, read_events
from retro_demo.jobs.lifecycle import JobStatus, record
from retro_demo.render.job_views import build_status
from retro_demo.retrieval.neighbors import excluded
from retro_demo.settings import CorpusConfig


def build(folder: Path, rows: list[dict[str, str]], config: CorpusConfig = SMALL):
    source = folder.with_suffix(".jsonl")
    prepare_corpus(folder, [write_jsonl(source, rows)], config)
    return list(build_corpus(folder))


def test_a_document_is_cut_into_chunks_that_no_other_document_shares():
    chunks = chunk_documents([[5, 6, 7, 8, 9], [10]], 4, eos_id=1)

    assert chunks.tokens.tolist() == [[5, 6, 7, 8], [9, 1, 0, 0], [10, 1, 0, 0]]
    assert chunks.document.tolist() == [0, 0, 1]


def test_a_document_that_fills_its_chunks_still_gets_its_end_of_text():
    chunks = chunk_documents([[5, 6, 7, 8]], 4, eos_id=1)

    assert chunks.tokens.tolist() == [[5, 6, 7, 8], [1, 0, 0, 0]]


def test_the_continuation_is_the_next_chunk_of_the_document_and_padding_at_its_end():
    chunks = Chunks(np.arange(1, 13, dtype=np.int32).reshape(4, 3), np.array([0, 0, 1, 1], dtype=np.int32))

    tokens = chunks.with_continuation(np.array([[0, 1], [3, -1]]))

    assert tokens.tolist() == [
        [[1, 2, 3, 4, 5, 6], [4, 5, 6, 0, 0, 0]],
        [[10, 11, 12, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    ]


CASES = TESTS / "data" / "cases"


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_near_duplicates_are_held_out_whole(seed):
    groups = ["a", "a", "b", "c", "c", "d", "e", "f"]
    cluster = np.array([0, 1, 2, 3, 4, 2, 5, 6])  # b and d are twins

    held_out = hold_out(groups, cluster, 0.4, seed)

    assert held_out[0] == held_out[1]
    assert held_out[3] == held_out[4]
    assert held_out[2] == held_out[5]
    assert 0 < held_out.sum() < len(groups)


def test_about_the_asked_share_is_held_out():
    held_out = hold_out([str(i) for i in range(200)], np.arange(200), 0.15, 0)

    assert held_out.sum() == 30


@pytest.mark.parametrize(
    ("groups", "count"), [(3, 1), (14, 2), (19, 3), (20, 6), (30, 6), (36, 6), (40, 6), (60, 9)]
)
def test_of_twenty_groups_or_more_at_least_six_are_held_out_those_of_the_share_among_them(groups, count):
    names, cluster = [str(i) for i in range(groups)], np.arange(groups)

    held_out = hold_out(names, cluster, 0.15, 0, least=6)

    assert held_out.sum() == count
    assert held_out[hold_out(names, cluster, 0.15, 0)].all()
    assert not hold_out(names, cluster, 0.0, 0, least=6).any()


def many(count: int = 24) -> list[dict[str, str]]:
    """Documents enough for six to be held out, each of its own words."""
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdef"), 5)) for _ in range(30)) for _ in range(count)]
    return [{"id": f"d{i}", "title": f"d{i}", "text": text} for i, text in enumerate(texts)]


USUAL = CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4)  # with the usual share


def sentences(events: list) -> list[str]:
    return [event.text for event in events if isinstance(event, Warned)]


def test_twenty_four_documents_hold_out_six_by_default_and_nothing_is_said(tmp_path):
    events = build(tmp_path / "c", many(), USUAL)
    corpus = load_corpus(tmp_path / "c")

    assert corpus.held_out.sum() == 6
    assert not [text for text in sentences(events) if "held out" in text]
    again = build(tmp_path / "again", many(), USUAL)[-1].result
    assert again["fingerprint"] == corpus.fingerprint
    assert [event.result for event in build_corpus(tmp_path / "c") if isinstance(event, Finished)][0][
        "fingerprint"
    ] == corpus.fingerprint


@pytest.mark.parametrize(
    ("share", "held", "mend"),
    [(0.1, "2 are", "0.25 or more"), (0.04, "1 is", "0.25"), (0.0, "none is", "0.25")],
)
def test_a_share_that_somebody_chose_is_taken_as_it_is_and_fewer_than_six_are_said_at_the_build(
    tmp_path, share, held, mend
):
    events = build(tmp_path / "c", many(), replace(USUAL, holdout=share))

    (said,) = [text for text in sentences(events) if "held out" in text]
    assert f"Of 24 documents of more than one chunk {held} held out" in said
    assert "at least 6" in said
    assert mend in said
    assert said in load_corpus(tmp_path / "c").manifest["warnings"]


def test_too_few_documents_for_six_are_told_to_be_added_to(tmp_path):
    (said,) = [text for text in sentences(build(tmp_path / "c", records()[:8], USUAL)) if "held out" in text]

    assert "Of 8 documents" in said
    assert "Add documents" in said


def test_groups_are_counted_and_documents_of_one_chunk_are_not(tmp_path):
    pairs = [row | {"group": row["id"][:2]} for row in many(20)]  # d0, d1 to d19: eleven documents in one
    few = [
        text
        for text in sentences(
            build(tmp_path / "c", [*pairs, {"id": "z", "title": "z", "text": "abc"}], USUAL)
        )
        if "held out" in text
    ]

    assert len(few) == 1
    assert "Of 10 groups of documents of more than one chunk" in few[0]


def test_a_build_that_was_begun_with_another_split_keeps_it_and_its_fingerprint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # as release 0.5.0 drew it
        patch.setattr("retro_demo.corpus.chunks.MIN_DOCUMENTS", 1)
        before = build(tmp_path / "before", many(), USUAL)[-1].result
        source = write_jsonl(tmp_path / "cut.jsonl", many())
        prepare_corpus(tmp_path / "cut", [source], USUAL)
        for event in build_corpus(tmp_path / "cut"):
            if isinstance(event, Progress) and event.stage == "tokenizer":  # the split is in use from here on
                break

    assert load_corpus(tmp_path / "before").held_out.sum() == 4
    for name in ("cut", "before"):
        again = list(build_corpus(tmp_path / name))[-1]
        assert isinstance(again, Finished)
        assert again.result["fingerprint"] == before["fingerprint"]
        assert load_corpus(tmp_path / name).held_out.sum() == 4
    assert build(tmp_path / "now", many(), USUAL)[-1].result["fingerprint"] != before["fingerprint"]


def test_a_build_of_six_held_out_still_notices_sources_that_changed(tmp_path):
    build(tmp_path / "c", many(), USUAL)
    (tmp_path / "c" / "corpus.json").unlink()
    write_jsonl(tmp_path / "c.jsonl", many(25))

    with pytest.raises(UserError, match="sources changed"):
        list(build_corpus(tmp_path / "c"))


def test_own_document_and_near_duplicates_are_excluded_and_nothing_else():
    chunks = Chunks(np.zeros((6, 2), dtype=np.int32), np.array([0, 0, 1, 1, 2, 2], dtype=np.int32))

    mask = excluded(chunks.document, np.array([0, 1, 0]), 0, np.array([0, 2]), np.tile(np.arange(6), (2, 1)))

    assert mask.tolist() == [[True, True, False, False, True, True], [False, False, True, True, False, False]]


def test_in_a_document_of_sections_chunks_near_the_query_are_excluded():
    chunks = Chunks(np.zeros((9, 2), dtype=np.int32), np.arange(9, dtype=np.int32))

    mask = excluded(chunks.document, np.arange(9), 2, np.array([4]), np.arange(9)[None])

    assert mask[0].tolist() == [False, False, True, True, True, True, True, False, False]


def test_no_stored_neighbor_is_of_the_own_document_or_held_out(small_corpus):
    ids, chunks = small_corpus.neighbor_ids, small_corpus.chunks
    own = np.arange(len(chunks))[:, None]
    there = ids >= 0

    assert there.any()
    assert not (small_corpus.excluded(own[:, 0], ids) & there).any()
    assert not small_corpus.held_out[chunks.document[ids[there]]].any()


def test_a_planted_twin_under_another_id_is_reported_and_never_a_neighbor(tmp_path):
    rows = records()
    rows.append(rows[0] | {"id": "twin", "title": "Twin", "text": rows[0]["text"] + " And more."})

    result = build(tmp_path / "c", rows)[-1].to_json()

    corpus = load_corpus(tmp_path / "c")
    assert result["near_duplicates"] == 1
    assert result["duplicate_examples"][0][:2] == ["Arden", "Twin"]
    assert corpus.held_out[0] == corpus.held_out[-1]
    mine = np.flatnonzero(corpus.chunks.document == 0)
    of_mine = corpus.chunks.document[corpus.neighbor_ids[mine][corpus.neighbor_ids[mine] >= 0]]
    assert len(of_mine)
    assert not (of_mine == len(rows) - 1).any()


def test_a_copy_of_a_held_out_document_in_the_upload_moves_the_leakage_report(tmp_path, small_corpus):
    rows = records()
    victim = int(np.flatnonzero(small_corpus.held_out)[0])
    rows.append(rows[victim] | {"id": "canary"})

    result = build(tmp_path / "c", rows)[-1].to_json()

    assert result["exact_duplicates"] == 1
    corpus = load_corpus(tmp_path / "c")
    assert corpus.held_out[victim] == corpus.held_out[-1]


def test_a_stored_training_chunk_finds_itself_first_with_score_one(small_corpus):
    retriever = load_retriever(small_corpus)
    train = np.flatnonzero(~small_corpus.held_out[small_corpus.chunks.document])

    found = retriever.search(small_corpus.chunks.tokens[train], 1)

    known = found.scores[:, 0] > 0  # a chunk of padding and signs alone has no vector
    assert known.mean() > 0.9
    np.testing.assert_allclose(found.scores[known, 0], 1, atol=1e-5)
    same_text = (
        small_corpus.chunks.tokens[found.ids[known, 0]] == small_corpus.chunks.tokens[train[known]]
    ).all(axis=1)
    same_score = np.isclose(found.scores[known, 0], 1, atol=1e-5)  # another chunk with the same words may tie
    assert (same_text | same_score).all()


def test_missing_neighbors_are_counted_and_said(tmp_path):
    events = build(tmp_path / "c", records()[:3], replace(SMALL, num_neighbors=60, holdout=0.0))

    said = [event.text for event in events if isinstance(event, Warned)]
    assert any("fewer than 60 neighbors" in text for text in said)
    assert (load_corpus(tmp_path / "c").neighbor_ids < 0).any()


def test_one_document_is_cut_into_sections_with_a_warning_and_keeps_its_distance(tmp_path):
    text = "\n\n".join(" ".join(row["text"].split("\n")) for seed in range(3) for row in records(seed))
    source = tmp_path / "book.txt"
    source.write_text(text)
    prepare_corpus(tmp_path / "c", [source], SMALL)

    events = list(build_corpus(tmp_path / "c"))

    assert any("section" in event.text for event in events if isinstance(event, Warned))
    corpus = load_corpus(tmp_path / "c")
    ids = corpus.neighbor_ids
    distance = np.abs(ids - np.arange(len(ids))[:, None])
    assert (ids >= 0).any()
    assert (distance[ids >= 0] > SMALL.window).all()


def test_where_no_chunk_can_have_a_neighbor_the_build_ends_with_a_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing to retrieve"):
        build(tmp_path / "c", records()[:2])  # one of the two is held out


def test_copies_are_told_before_anything_is_embedded(tmp_path):
    prepare_corpus(tmp_path / "c", [CASES / "same_0.txt", CASES / "same_1.txt"], SMALL)
    seen = []
    with pytest.raises(UserError, match=r"All 2 documents are copies of each other \(1 distinct text\)"):
        seen += build_corpus(tmp_path / "c")
    assert not (tmp_path / "c" / "chunks.npy").exists()


TOO_LITTLE = {
    "copies": ([records()[0] | {"id": name} for name in "abc"], SMALL, "copies of each other"),
    "one text left": (records()[:2], SMALL, "1 is held out"),
    "short documents": (records(), replace(SMALL, chunk_len=512), "smaller chunk length"),
}


def beside_a_damaged_file(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir()
    write_jsonl(folder / "texts.jsonl", rows)
    (folder / "damaged.pdf").write_bytes(b"\0\1\2")
    return folder


@pytest.mark.parametrize(("rows", "config", "trouble"), TOO_LITTLE.values(), ids=TOO_LITTLE)
def test_what_was_left_out_is_told_before_a_build_ends_for_want_of_text(tmp_path, rows, config, trouble):
    prepare_corpus(tmp_path / "c", [beside_a_damaged_file(tmp_path / "sources", rows)], config)
    seen = []

    with pytest.raises(UserError, match=trouble):
        seen.extend(record(tmp_path / "c", build_corpus(tmp_path / "c")))

    assert len([text for text in sentences(seen) if "damaged.pdf" in text]) == 1
    status = JobStatus("failed", read_events(tmp_path / "c" / "events.jsonl"), "")
    shown = build_status(status, "c")
    assert shown.index("damaged.pdf") < shown.index(trouble)


def test_a_warning_of_reading_is_told_once_by_a_build_that_ends_well(tmp_path):
    prepare_corpus(tmp_path / "c", [beside_a_damaged_file(tmp_path / "sources", records())], SMALL)

    events = list(build_corpus(tmp_path / "c"))

    told = sentences(events)
    assert told == events[-1].result["warnings"]
    assert "damaged.pdf" in told[0]


def test_many_copies_are_counted_in_a_warning(tmp_path):
    rows = records()
    events = build(tmp_path / "c", rows[:6] + [rows[0] | {"id": str(number)} for number in range(8)])
    said = [event.text for event in events if isinstance(event, Warned)]
    assert any("8 of 14 documents are copies" in text and "6 texts differ" in text for text in said)


def test_a_group_that_takes_far_more_than_was_asked_for_is_told(tmp_path):
    prepare_corpus(tmp_path / "c", [CASES / "group_ab.csv"], SMALL)
    said = [event.text for event in build_corpus(tmp_path / "c") if isinstance(event, Warned)]
    share = load_corpus(tmp_path / "c").held_out.mean()
    assert 0.4 < share < 0.6
    assert any("15% was asked for" in text and "2 groups" in text for text in said)


def test_documents_of_one_chunk_each_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="smaller chunk length"):
        build(tmp_path / "c", records(), replace(SMALL, chunk_len=512))


def test_building_twice_gives_the_same_corpus(tmp_path, small_corpus):
    build(tmp_path / "again", records())

    assert load_corpus(tmp_path / "again").fingerprint == small_corpus.fingerprint


def test_another_call_on_a_built_folder_finds_every_stage_done(tmp_path, small_corpus):
    build(tmp_path / "c", records())
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.npy")}

    events = build(tmp_path / "c", records())

    assert isinstance(events[-1], Finished)
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.npy")}
    assert not [e for e in events if isinstance(e, Progress) and e.stage == "embed"]


def test_a_folder_that_holds_another_corpus_is_refused(tmp_path):
    build(tmp_path / "c", records())

    with pytest.raises(UserError, match="already holds"):
        build(tmp_path / "c", records(), replace(SMALL, chunk_len=16))


def test_after_a_source_that_could_not_be_read_the_folder_takes_another(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    prepare_corpus(tmp_path / "c", [tmp_path / "empty.txt"], SMALL)
    with pytest.raises(UserError, match=r"empty\.txt"):
        list(build_corpus(tmp_path / "c"))

    assert isinstance(build(tmp_path / "c", records())[-1], Finished)


def test_sources_that_changed_under_a_build_are_refused(tmp_path):
    build(tmp_path / "c", records())

    with pytest.raises(UserError, match="changed"):
        build(tmp_path / "c", records(seed=1))


@pytest.mark.parametrize(
    "name", ["documents.jsonl", "chunks.npy", "tokenizer.json", "neighbor_ids.npy", "neighbor_scores.npy"]
)
def test_a_corpus_changed_by_hand_is_refused(tmp_path, small_folder, name):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)

    with pytest.raises(UserError, match="changed"):
        load_corpus(folder)


@pytest.mark.parametrize(
    "line", ['{"id": "a"}', '{"id": "a", "title": "", "lang": "", "text": 3}', "[]", "{", '{"x": "y"}']
)
def test_a_stored_text_changed_to_no_document_is_said_in_a_sentence_and_kept(tmp_path, line):
    build(tmp_path / "c", records())
    path = tmp_path / "c" / "documents.jsonl"
    path.write_text(f"{path.read_text('utf-8')}{line}\n", "utf-8")
    before = {one: one.read_bytes() for one in (tmp_path / "c").iterdir() if one.is_file()}

    with pytest.raises(
        UserError, match=r"Line \d+ of documents.jsonl of the corpus at .*c is no document"
    ) as told:
        build(tmp_path / "c", records())

    assert "__init__" not in str(told.value)
    assert {one: one.read_bytes() for one in before} == before


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"hashes": 3}'])
def test_a_damaged_manifest_is_said_in_a_sentence(tmp_path, small_folder, content):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    (folder / "corpus.json").write_text(content)

    with pytest.raises(UserError, match="damaged"):
        load_corpus(folder)


def test_a_corpus_that_lost_a_file_is_refused(tmp_path, small_folder):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    (folder / "neighbor_ids.npy").unlink()

    with pytest.raises(UserError, match=r"neighbor_ids\.npy"):
        load_corpus(folder)


def test_an_unfinished_corpus_is_not_loaded(tmp_path, small_folder):
    folder = tmp_path / "c"
    shutil.copytree(small_folder, folder)
    (folder / "corpus.json").unlink()

    with pytest.raises(UserError, match="not built to its end"):
        load_corpus(folder)


KILLED = """
import os, signal, sys
from pathlib import Path
from retro_demo.corpus import embedding
from retro_demo.corpus.sharding import run_build

embedding.EMBED_BLOCK = 50
for event in run_build(Path(sys.argv[1]), lambda: False):
    if (told := event.to_json()).get("stage") == "embed" and told["done"] == 100:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_build_killed_while_it_embeds_is_taken_up_and_ends_the_same(tmp_path, small_folder, monkeypatch):
    prepare_corpus(tmp_path / "cut", [write_jsonl(tmp_path / "cut.jsonl", records())], SMALL)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cut")])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "cut" / "vectors.part").exists()
    assert not (tmp_path / "cut" / "corpus.json").exists()

    monkeypatch.setattr(embedding, "EMBED_BLOCK", 50)
    result = list(build_corpus(tmp_path / "cut"))[-1].to_json()

    assert result["fingerprint"] == load_corpus(small_folder).fingerprint
    for name in ("vectors.npy", "neighbor_ids.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "cut" / name), np.load(small_folder / name))


def test_a_corpus_keeps_no_absolute_truth_about_its_neighbors_but_finds_the_alike(small_corpus):
    """The nearest chunk of another place talks of the same field more often than chance would."""
    texts = [small_corpus.tokenizer.decode(row) for row in small_corpus.chunks.tokens.tolist()]
    fields = [
        "Area",
        "Population",
        "Coastline",
        "Irrigated",
        "Roadways",
        "Electricity",
        "Internet",
        "Highest",
    ]

    def field(text: str) -> str:
        return next((name for name in fields if name in text), "")

    pairs = [
        (field(texts[i]), field(texts[j])) for i, j in enumerate(small_corpus.neighbor_ids[:, 0]) if j >= 0
    ]
    named = [(a, b) for a, b in pairs if a]

    assert np.mean([a == b for a, b in named]) > 0.5


def test_the_manifest_is_plain_json(small_folder):
    manifest = json.loads((small_folder / "corpus.json").read_text())

    assert manifest["statistics"]["documents"] == 14
    assert sum(manifest["statistics"]["document_tokens"]) == manifest["statistics"]["tokens"]


def test_a_new_document_goes_with_the_side_of_its_group_new_ones_too():
    rows = [Document(str(i), "", "", "text", group) for i, group in enumerate("aabbc")]
    documents = [rows[0], rows[1], replace(rows[2], use="held-out"), rows[3], rows[4]]
    known = [True, None, None, None, None]
    assert keep_split(documents, np.arange(5), known).tolist() == [True, True, True, True, False]
