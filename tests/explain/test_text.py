"""A finished text read again: whose neighbors it gets, what an edit does, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_helpers import run as run_command
from command_helpers import words_of
from conftest import records, write_jsonl
from explained_helpers import SETTINGS  # noqa: F401

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.changes import prepare_retokenized
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.explain import text as explained
from retro_demo.explain.edits import CANDIDATES, candidates, edit_by_values, edit_json, rewrite, swap
from retro_demo.explain.text import (
    document_of,
    document_text,
    explain_again,
    explain_text,
    explain_written,
    held_out_documents,
    trace_values,
    watch_writing,
)
from retro_demo.explain.tracing import as_json, summary
from retro_demo.retrieval.bm25 import LexicalIndex
from retro_demo.runs.loading import LoadedRun, load_run
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig, ExplainConfig, GenerateConfig
from retro_demo.training.trainer import run_training

OTHER = CorpusConfig(chunk_len=16, vocab_size=300, num_neighbors=3)


@pytest.fixture(scope="module")
def run(small_folder, tmp_path_factory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("runs") / "little"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        config = plan_run("retro", str(small_folder), preset="tiny", settings=SETTINGS, device="cpu")
        prepare_run(folder, config)
        list(run_training(folder, lambda: False))
        return load_run(folder, "cpu")


def held_out_text(run: LoadedRun) -> str:
    assert run.database is not None
    corpus = run.database.corpus
    return corpus.documents[int(np.flatnonzero(corpus.held_out)[0])].text


def test_a_given_text_gets_neighbors_for_each_whole_chunk_and_no_token_is_left_out(run):
    text = held_out_text(run)[:120]

    trace = explain_text(run, "little", text, ExplainConfig())

    assert "".join(trace.pieces) == text
    assert len(trace.neighbors) == len(trace.ids) // 8
    assert all(len(found) == 2 for found in trace.neighbors)
    assert trace.neighbor_tokens.shape == (len(trace.neighbors), 2, 16)


def test_the_document_that_a_text_stands_in_is_never_its_neighbor(run):
    assert run.database is not None
    corpus = run.database.corpus
    own = int(np.flatnonzero(~corpus.held_out)[0])
    text = corpus.documents[own].text[:250]

    trace = explain_text(run, "little", text, ExplainConfig(num_neighbors=4))

    assert trace.about["source"] == corpus.documents[own].title
    read = {one["document"] for found in trace.neighbors for one in found}
    assert read
    assert corpus.documents[own].id not in read


def test_a_short_text_is_of_no_document(run):
    assert run.database is not None
    corpus = run.database.corpus

    assert document_of(corpus, corpus.documents[0].text[:99]) is None
    assert document_of(corpus, corpus.documents[0].text[:150]) == 0


def test_each_neighbor_has_a_bm25_score_beside_that_of_its_retriever(run):
    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())

    scores = [one["bm25"] for found in trace.neighbors for one in found]
    assert max(scores) > 0


def test_a_long_text_is_read_page_by_page(run):
    text = held_out_text(run)
    pages = -(-len(run.tokenizer.encode(text)) // 64)

    traces = [explain_text(run, "little", text, ExplainConfig(page=n + 1)) for n in range(pages)]

    assert "".join(piece for trace in traces for piece in trace.pieces) == text
    with pytest.raises(UserError, match=f"page {pages + 1}, but this text has {pages}"):
        explain_text(run, "little", text, ExplainConfig(page=pages + 1))


def test_where_a_run_was_trained_with_more_neighbors_than_can_be_explained_fewer_are_read(run, monkeypatch):
    monkeypatch.setattr(explained, "MOST_NEIGHBORS", 1)  # it was trained with 2

    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())

    assert {len(found) for found in trace.neighbors} == {1}
    assert "--num-neighbors 1" in trace.about["provenance"]["command"]
    *_, last = watch_writing(run, "little", "Area of", GenerateConfig(max_new_tokens=30), lambda: False)
    assert last.trace is not None
    assert {len(found) for found in last.trace.neighbors} == {2}, "what was written with 2 is shown with 2"


@pytest.mark.parametrize("text", ["", "\n", None])
def test_nothing_to_explain_is_said(run, text):
    with pytest.raises(UserError, match="nothing to explain"):
        explain_text(run, "little", text, ExplainConfig())


def tokens_of(run: LoadedRun, text: str, count: int) -> str:
    """The first `count` tokens of a text, as text that has as many again."""
    words = run.tokenizer.decode(run.tokenizer.encode(text)[:count])
    assert len(run.tokenizer.encode(words)) == count
    return words


@pytest.mark.parametrize("count", [2, 8])
def test_a_text_too_short_for_any_token_to_read_a_neighbor_is_refused_with_the_least_that_would_do(
    run, count
):
    text = tokens_of(run, held_out_text(run), count)

    with pytest.raises(UserError, match=rf"has {count} tokens, .* after the first 8 .* at least 9 tokens"):
        explain_text(run, "little", text, ExplainConfig())
    with pytest.raises(UserError, match="at least 9 tokens"):
        explain_written(run, "little", run.tokenizer.encode(text), 0, ExplainConfig())
    assert explain_text(run, "little", text, ExplainConfig(retrieval="off")).neighbors == []


def test_with_one_token_more_than_a_chunk_there_is_something_to_explain(run):
    trace = explain_text(run, "little", tokens_of(run, held_out_text(run), 9), ExplainConfig())

    assert summary(trace)["tokens"] == 1


def test_a_last_page_too_short_to_explain_is_named(run):
    text = tokens_of(run, held_out_text(run) * 3, 64 + 5)

    with pytest.raises(UserError, match="5 tokens on page 2 of 2"):
        explain_text(run, "little", text, ExplainConfig(page=2))


def test_more_neighbors_change_the_reading_and_not_the_text(run):
    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())

    again = explain_again(run, trace, ExplainConfig(num_neighbors=4))

    assert again.ids == trace.ids
    assert again.neighbor_tokens.shape[1] == 4
    assert (again.neighbor_tokens[:, :2] == trace.neighbor_tokens).all()


def test_shuffled_neighbors_are_others_and_the_same_for_the_same_seed(run):
    text = held_out_text(run)[:200]

    on = explain_text(run, "little", text, ExplainConfig())
    drawn = [
        explain_text(run, "little", text, ExplainConfig(retrieval="shuffled", seed=n)) for n in (1, 1, 2)
    ]

    assert (drawn[0].neighbor_tokens == drawn[1].neighbor_tokens).all()
    assert (drawn[0].neighbor_tokens != drawn[2].neighbor_tokens).any()
    assert (drawn[0].neighbor_tokens != on.neighbor_tokens).any()


def test_an_explanation_says_where_it_comes_from_and_how_to_repeat_it(run):
    trace = explain_text(run, "little", "Area of Arden: it's 100", ExplainConfig(num_neighbors=1))

    origin = as_json(trace)["about"]["provenance"]
    words = ["explain", str(run.folder), "--text=Area of Arden: it's 100"]
    assert words_of(origin["command"])[:3] == words
    assert "--num-neighbors 1 --device cpu" in origin["command"]
    assert origin["corpus_fingerprint"] == run.config.corpus_fingerprint


def test_held_out_documents_can_be_chosen_by_title(run, small_folder):
    assert run.database is not None
    corpus = run.database.corpus

    offered = held_out_documents(small_folder)

    assert [number for _, number in offered] == np.flatnonzero(corpus.held_out).tolist()
    assert document_text(small_folder, offered[0][1]) == corpus.documents[offered[0][1]].text
    with pytest.raises(UserError, match="no document 999"):
        document_text(small_folder, 999)


def test_an_edited_neighbor_is_read_as_written_and_says_what_was_cut(run):
    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())

    made = rewrite(run, trace, 1, 0, "Area of Arden", "Coastline of Arden: 5 km " * 9)

    assert run.tokenizer.decode(made.edit.after[:8].tolist()) == "Area of Arden"
    assert made.cut[0] == 0
    assert made.cut[1] > 0
    assert made.edit.moved_before == 0
    assert edit_json(made)["earlier_positions_changed"] == 0


def test_an_export_holds_the_edit_with_its_proof_its_strip_and_the_top_ten_of_each_position(run):
    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())
    made = rewrite(run, trace, 1, 0, "Area of Arden", "")

    texts = (json.dumps(trace_values(trace, edit)) for edit in (edit_json(made), None))
    kept, found = map(json.loads, texts)

    edit = kept.pop("edit")
    assert kept == found
    assert "provenance" in kept["about"]
    assert len(edit["kl"]) == len(trace.ids)
    assert [row["position"] for row in edit["strip"]] == list(range(made.edit.first, len(trace.ids)))
    assert {len(row[name]) for row in edit["strip"] for name in ("before", "after", "off")} == {10}
    assert edit["top"]["before"] == edit["strip"][edit["position"] - made.edit.first]["before"]


def test_a_swapped_neighbor_is_the_chosen_chunk_with_its_continuation(run):
    assert run.database is not None
    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())
    other = candidates(run, trace, 1)[0]["chunk"]

    made = swap(run, trace, 1, 0, other)

    assert other not in {one["chunk"] for one in trace.neighbors[1]}
    assert (made.edit.after == run.database.corpus.chunks.with_continuation(np.array(other))).all()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"chunk": 99}, "Chunk 99 has no neighbors"),
        ({"neighbor": 2}, "no neighbor 2"),
        ({"chunk": "one"}, "whole numbers"),
        ({"words": "x"}, "An edit has"),
        ({"text": 5}, "must be text"),
        ("drop it", "An edit has"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_with_a_sentence(run, edit, said):
    trace = explain_text(run, "little", held_out_text(run)[:200], ExplainConfig())

    with pytest.raises(UserError, match=said):
        edit_by_values(run, trace, edit)


def test_a_run_without_retrieval_is_explained_without_neighbors(run):
    bare = LoadedRun(run.folder, run.config, run.model, run.tokenizer, None, "")

    trace = explain_text(bare, "little", held_out_text(run)[:200], ExplainConfig())

    assert trace.neighbors == []
    assert summary(trace)["tokens"] == 0
    assert summary(trace)["loss_on"] == summary(trace)["loss_off"]


def said_of(trace) -> dict:
    """All that an explanation says, without where it comes from and how long it took."""
    said = as_json(trace)
    del said["about"]
    for row in said["chunks"]:
        del row["ms"]
    return said


def repeated(trace, capsys, monkeypatch, folder) -> dict:
    """What the command in the provenance prints, run in some folder."""
    monkeypatch.chdir(folder)
    assert run_command(trace.about["provenance"]["command"]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    del event["event"], event["about"]
    for row in event["chunks"]:
        del row["ms"]
    return event


@pytest.mark.parametrize(
    "config",
    [
        ExplainConfig(),
        ExplainConfig(num_neighbors=3, page=2),
        ExplainConfig(retrieval="off"),
        ExplainConfig(retrieval="shuffled", seed=5),
        ExplainConfig(retriever="bm25"),
    ],
)
def test_the_command_of_an_explanation_repeats_every_figure(run, capsys, monkeypatch, tmp_path, config):
    loaded = load_run(run.folder, "cpu", retriever=config.retriever)
    trace = explain_text(loaded, "little", held_out_text(run), config)

    again = repeated(trace, capsys, monkeypatch, tmp_path)

    assert again == json.loads(json.dumps(said_of(trace)))
    assert "--device cpu" in trace.about["provenance"]["command"]
    assert bool(again["neighbors"]) == (config.retrieval != "off")


def test_the_command_of_an_explanation_names_the_swapped_corpus(run, capsys, monkeypatch, tmp_path):
    other = tmp_path / "other"
    prepare_corpus(other, [write_jsonl(tmp_path / "other.jsonl", records(seed=4))], OTHER)
    list(build_corpus(other))
    list(prepare_retokenized(load_corpus(other), run.folder, run.config.network.chunk_len))
    swapped = load_run(run.folder, "cpu", other)
    trace = explain_text(swapped, "little", held_out_text(run), ExplainConfig())

    again = repeated(trace, capsys, monkeypatch, tmp_path)

    assert f"--corpus {other} " in trace.about["provenance"]["command"]
    assert again == json.loads(json.dumps(said_of(trace)))
    plain = explain_text(run, "little", held_out_text(run), ExplainConfig())
    assert said_of(plain)["neighbors"] != said_of(trace)["neighbors"]


@pytest.mark.parametrize("retrieval", ["on", "off", "shuffled"])
@pytest.mark.parametrize("new", [29, 30, 31, 32, 33, 34, 35, 36])
def test_the_command_of_a_written_text_reads_the_very_tokens_that_were_written(
    run, capsys, monkeypatch, tmp_path, retrieval, new
):
    config = GenerateConfig(max_new_tokens=new, retrieval=retrieval, num_neighbors=3, temperature=1.5, seed=3)
    *_, last = watch_writing(run, "little", "Area of Arden", config, lambda: False)
    assert last.trace is not None

    again = repeated(last.trace, capsys, monkeypatch, run.folder.parent)

    assert again == json.loads(json.dumps(said_of(last.trace)))


@pytest.mark.parametrize(
    ("ids", "prompt", "said"),
    [
        ([5], 0, "1 tokens"),
        ([5] * 65, 0, "65 tokens"),
        ([5, 10**6], 0, "these go up to"),
        ([5, 6], 3, "3 tokens"),
    ],
)
def test_tokens_that_no_run_wrote_are_refused(run, ids, prompt, said):
    with pytest.raises(UserError, match=said):
        explain_written(run, "little", ids, prompt, ExplainConfig())


def test_neither_a_shuffled_neighbor_nor_one_to_swap_in_is_of_the_texts_own_document(run):
    assert run.database is not None
    corpus = run.database.corpus
    own = int(np.flatnonzero(~corpus.held_out)[0])
    text = corpus.documents[own].text[:250]

    for seed in range(12):
        trace = explain_text(run, "little", text, ExplainConfig(retrieval="shuffled", seed=seed))
        read = {one["document"] for found in trace.neighbors for one in found}
        assert read
        assert corpus.documents[own].id not in read
    trace = explain_text(run, "little", text, ExplainConfig())
    for chunk in range(len(trace.neighbors)):
        offered = candidates(run, trace, chunk)
        assert len(offered) == CANDIDATES
        assert corpus.documents[own].id not in {one["document"] for one in offered}


def test_of_one_document_in_sections_nothing_near_the_text_is_read_or_offered(run, tmp_path):
    folder, text = tmp_path / "one", "\n\n".join(row["text"] for row in records(seed=2))
    source = write_jsonl(tmp_path / "one.jsonl", [{"id": "book", "title": "Book", "text": text}])
    prepare_corpus(folder, [source], OTHER)
    list(build_corpus(folder))
    list(prepare_retokenized(load_corpus(folder), run.folder, run.config.network.chunk_len))
    swapped = load_run(run.folder, "cpu", folder)
    assert swapped.database is not None
    corpus = swapped.database.corpus
    assert corpus.sections
    assert corpus.config.window
    section = next(i for i in np.flatnonzero(~corpus.held_out) if 0 < i < len(corpus.documents) - 1)
    ids = np.flatnonzero(corpus.chunks.document == section)
    near = range(ids[0] - corpus.config.window, ids[-1] + corpus.config.window + 1)

    for retrieval in ("on", "shuffled"):
        config = ExplainConfig(retrieval=retrieval, num_neighbors=4)
        trace = explain_text(swapped, "little", corpus.documents[section].text, config)
        offered = [one for chunk in range(len(trace.neighbors)) for one in candidates(swapped, trace, chunk)]
        for one in [*offered, *(one for found in trace.neighbors for one in found)]:
            assert one["chunk"] not in near


def test_the_bm25_index_is_read_once_for_all_explanations_of_a_loaded_run(run, monkeypatch):
    loaded, calls = load_run(run.folder, "cpu"), []
    plain = LexicalIndex.load
    monkeypatch.setattr(LexicalIndex, "load", lambda *given: calls.append(given) or plain(*given))

    for page in (1, 2, 3):
        explain_text(loaded, "little", held_out_text(run), ExplainConfig(page=page))

    assert len(calls) == 1
