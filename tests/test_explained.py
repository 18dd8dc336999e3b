"""A finished text read again: whose neighbors it gets, what an edit does, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from retro_demo.errors import UserError
from retro_demo.explain_config import ExplainConfig
from retro_demo.explained import document_of, document_text, explain_again, explain_text, held_out_documents
from retro_demo.findings import as_json, summary
from retro_demo.loading import LoadedRun, load_run
from retro_demo.pipeline import run_training
from retro_demo.planning import make_run_config, prepare_run
from retro_demo.rewriting import candidates, edit_by_values, edit_json, rewrite, swap

SETTINGS = {
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "cca_layers": (2,),
    "enc_dim": 16,
    "steps": 3,
    "seq_len": 64,
    "batch_size": 2,
    "eval_tokens": 200,
}


@pytest.fixture(scope="module")
def run(small_folder, tmp_path_factory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("runs") / "little"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        config = make_run_config("retro", str(small_folder), preset="tiny", settings=SETTINGS, device="cpu")
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
    assert not any(one["same_document"] for found in trace.neighbors for one in found)


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


@pytest.mark.parametrize("text", ["", "\n", None])
def test_nothing_to_explain_is_said(run, text):
    with pytest.raises(UserError, match="nothing to explain"):
        explain_text(run, "little", text, ExplainConfig())


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
    assert origin["command"].startswith("python -m retro_demo explain little --text ")
    assert origin["command"].endswith("--num-neighbors 1")
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
