"""One target and its evidence: what is found, what its attention adds up to, and what an edit does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evidence_helpers import HOSTILE, build_translated, train_marge_run

from retro_demo.errors import UserError
from retro_demo.evidence.reindex import embed_passages
from retro_demo.explain.marge_history import choose_sample, matrix_json, moved_tokens, reading_json, reindexes
from retro_demo.explain.marge_reading import (
    corpus_of,
    documents_of,
    edit_evidence,
    example_evidence,
    read_evidence,
    reindexing,
    targets_of,
)
from retro_demo.generation.marge import LoadedMarge, load_marge_run, write_from_evidence
from retro_demo.generation.sampling import Written
from retro_demo.jobs.lifecycle import status
from retro_demo.render import found_views, marge_views
from retro_demo.settings import GenerateConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("marge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(place / "home"))
        # nothing to abstain to: all attention falls on evidence
        return train_marge_run(place / "run", build_translated(place / "corpus"), abstain=False)


@pytest.fixture(scope="module")
def run(folder) -> LoadedMarge:
    loaded = load_marge_run(folder, "cpu")
    model = loaded.model
    torch.manual_seed(0)
    with torch.no_grad():  # larger than after six steps: evidence must matter
        for weight in model.parameters():
            if weight.ndim == 2:
                weight += 0.2 * torch.randn_like(weight)
    return replace(loaded, vectors=embed_passages(model, loaded.passages.tokens))


@pytest.fixture(scope="module")
def target(run) -> int:
    return targets_of(corpus_of(run), held_out=True).offered[0][1]


def test_the_evidence_of_a_held_out_passage_may_be_held_out_and_that_of_a_training_passage_not(run, target):
    passages = run.passages
    wide = read_evidence(run, target, 32)
    training = targets_of(corpus_of(run), held_out=False).offered[0][1]

    assert passages.held_out[wide.ids].any()
    assert not passages.held_out[read_evidence(run, training, 32).ids].any()
    for reading in (wide, read_evidence(run, training, 32)):
        assert passages.document[reading.target] not in passages.document[reading.ids]
        assert (np.diff(reading.relevance) <= 1e-5).all()


def test_every_document_and_target_can_be_chosen_by_its_language_and_what_is_cut_is_said(run):
    source = corpus_of(run)
    every = {one.id for one in source.corpus.documents}
    by_language = [documents_of(source, name) for name in source.passages.languages]

    assert {value for _, value in documents_of(source).offered} == every
    assert {value for choices in by_language for _, value in choices.offered} == every
    assert not documents_of(source).cut
    assert f"4 of {len(every)} are listed" in documents_of(source, most=4).cut
    for held_out in (True, False):
        whole = targets_of(source, held_out=held_out)
        parts = [targets_of(source, held_out=held_out, languages=[n]) for n in source.passages.languages]
        assert sorted(p for part in parts for p in part.offered) == sorted(whole.offered)
        assert targets_of(source, held_out=held_out, most=2).cut.startswith(f"2 of {whole.total} are")


def test_the_example_writes_a_held_out_text_from_one_in_another_language(run):
    language, ids = example_evidence(corpus_of(run))
    known = {one.id: (one, held) for one, held in zip(run.corpus.documents, run.corpus.held_out, strict=True)}

    assert all(known[name][1] and known[name][0].lang != language for name in ids)
    assert ids
    config = GenerateConfig(max_new_tokens=3)
    *_, last = write_from_evidence(run, "", config, language=language, documents=ids)
    assert isinstance(last, Written)


def test_the_mass_of_all_evidence_adds_up_to_one_in_each_layer_and_none_falls_on_languages(run, target):
    reading = read_evidence(run, target, 4)

    assert reading.mass.shape == (2, 4)
    np.testing.assert_allclose(reading.mass.sum(axis=1), 1, atol=1e-5)
    assert reading.weights[..., 0].max() == 0  # the language token
    lengths = (reading.evidence != 0).sum(axis=1)
    heats = [reading.attention_scores(piece, None, None) for piece in range(4)]
    assert [heat.shape for heat in heats] == [(len(reading.tokens) - 1, n - 1) for n in lengths]
    np.testing.assert_allclose(sum(heat.sum(axis=1) for heat in heats), 1, atol=1e-5)
    np.testing.assert_allclose(reading.attention_scores(1, 0, 1), reading.weights[0, 1, :, 1, 1 : lengths[1]])


def test_evidence_is_measured_against_as_many_passages_of_other_groups_and_the_page_says_so(run, target):
    reading, again = (read_evidence(run, target, 3) for _ in range(2))
    shown = marge_views.target_html(reading, corpus_of(run))
    assert reading.loss_random is not None
    assert again.loss_random == reading.loss_random not in (reading.loss, reading.loss_none)
    assert f"{reading.loss_random:.4f}" in shown
    assert ("does not help" in shown) == (reading.loss_random <= reading.loss)

    alone = replace(run.passages, group=np.zeros_like(run.passages.group))
    unknown = read_evidence(replace(run, passages=alone), target, 3)
    assert unknown.loss_random is None
    assert "is not known" in marge_views.target_html(unknown, corpus_of(run))


def test_removing_a_piece_gives_the_loss_of_a_reading_without_it(run, target):
    reading = read_evidence(run, target, 3)
    tokens = torch.from_numpy(reading.tokens)[None]
    with torch.inference_mode():
        left = run.model.token_losses(tokens, torch.from_numpy(np.delete(reading.evidence, 1, axis=0)))
        none = run.model.token_losses(tokens, None)

    assert reading.without[1] == pytest.approx(float(left.mean()), abs=1e-5)
    assert reading.loss_none == pytest.approx(float(none.mean()), abs=1e-5)
    removed = edit_evidence(run, reading, 1, "  ")
    assert removed.loss == (reading.loss, reading.without[1])
    assert removed.relevance[1] is None


def test_an_edit_that_changes_nothing_changes_nothing_and_another_text_is_embedded_anew(run, target):
    reading = read_evidence(run, target, 3)
    same = edit_evidence(run, reading, 0, corpus_of(run).text(int(reading.ids[0])))
    other = edit_evidence(run, reading, 0, "ka1 111 ka2 222")
    itself = edit_evidence(run, reading, 0, corpus_of(run).text(target))

    assert same.loss[1] == pytest.approx(reading.loss, abs=1e-6)
    assert same.relevance[1] == pytest.approx(reading.relevance[0], abs=1e-6)
    assert same.cut == 0
    assert other.loss[1] != pytest.approx(reading.loss, abs=1e-4)
    assert other.relevance[1] is not None
    assert itself.relevance[1] is not None
    assert itself.relevance[1] > 0.99  # its language aside, it is the target


def test_an_edit_that_is_too_long_says_how_much_was_cut(run, target):
    reading = read_evidence(run, target, 2)
    edit = edit_evidence(run, reading, 0, "ka1 111 " * 60)

    assert edit.tokens == run.passages.tokens.shape[1]
    assert edit.cut > 0
    assert f"{edit.cut} were cut off" in marge_views.edit_html(edit)


@pytest.mark.parametrize("count", [-1, 0, 33, 10**6])
def test_more_evidence_than_the_page_offers_is_refused_in_a_sentence(run, target, count):
    with pytest.raises(UserError, match=f"ask for {count} pieces of evidence. Choose from 1 to 32"):
        read_evidence(run, target, count)


@pytest.mark.parametrize(("target", "words"), [(-1, "no passage -1"), (10**6, "no passage 1000000")])
def test_a_passage_that_is_none_is_refused_in_a_sentence(run, target, words):
    with pytest.raises(UserError, match=words):
        read_evidence(run, target, 2)


def test_what_the_page_shows_of_a_run_escapes_all_text_and_exports_as_json(folder, run, target):
    source, reading = corpus_of(run), read_evidence(run, target, 3)
    first, now = reindexing(folder, 0), reindexing(folder, 6)
    sample = choose_sample(source.passages, now.rows, held_out=True, order="group")
    moved = moved_tokens(first, now, source)
    assert moved is not None
    shown = [
        marge_views.target_html(reading, source),
        marge_views.evidence_table(reading, source),
        marge_views.target_html(reading, source, "ka"),
        marge_views.reindex_log(status(folder)),
        found_views.found_html(reindexes(status(folder)), None),
        found_views.tokens_html(moved, 6),
        marge_views.agreement_figure(reading, source, None).to_json() or "",
    ]

    assert not any(HOSTILE in text or "<img" in text for text in shown)
    rows = reindexes(status(folder))
    assert [row["step"] for row in rows] == [0, 3, 6]
    kept = json.loads(json.dumps(matrix_json(folder, source, sample, first, now, rows)))
    assert len(kept["relevance"]) == len(kept["documents"]) == len(sample.ids)
    assert kept["provenance"]["steps"] == 6
    told = json.loads(json.dumps(reading_json(folder, source, reading)))
    assert [one["relevance"] for one in told["evidence"]] == reading.relevance.tolist()
    assert str(folder.parent) not in json.dumps([kept, told])


def test_a_reindex_keeps_what_tokens_weigh_and_those_of_training_texts_that_moved_are_told(folder, run):
    source, first = corpus_of(run), reindexing(folder, 0)
    passages, tokenizer = source.passages, source.corpus.tokenizer
    there = np.unique(passages.tokens[~passages.held_out])
    there = [int(i) for i in there if 0 < i < tokenizer.vocab_size]
    up, down = [i for i in there if tokenizer.token_texts([i])[0].isalnum()][:2]
    absent = next(i for i in range(1, tokenizer.vocab_size) if i not in there)
    lone = tokenizer.eos_id  # it spells nothing

    assert first.weights is not None
    assert first.weights.shape == (run.config.network.vocab_size,)
    weights = first.weights.copy()
    weights[[up, absent, lone]] *= 2
    weights[down] /= 2
    moved = moved_tokens(first, replace(first, weights=weights), source)
    assert moved is not None
    (rose,), (fell,) = moved.rose, moved.fell
    assert (rose[0], fell[0]) == tuple(tokenizer.token_texts([up, down]))
    assert rose[2] == pytest.approx(2 * rose[1])
    assert fell[2] == pytest.approx(fell[1] / 2)
    trained = moved_tokens(first, reindexing(folder, 6), source)
    assert trained is not None
    assert trained.rose
    assert moved_tokens(replace(first, weights=None), first, source) is None


def test_the_same_text_in_another_language_is_of_the_group_and_stands_in_what_is_shown(run, target):
    source = corpus_of(run)
    about = source.about(target)
    for language in source.passages.languages:
        other = source.in_language(target, language)
        if language == about["language"]:
            assert other is None
        else:
            assert other is not None
            shown = source.about(other)
            assert (shown["group"], shown["language"]) == (about["group"], language)
            reading = read_evidence(run, target, 3)
            assert source.text(other) in marge_views.target_html(reading, source, language)
    assert source.in_language(target, "xx") is None
    assert source.groups_to_learn_from == len(
        {
            one.group
            for one, held in zip(source.corpus.documents, source.corpus.held_out, strict=True)
            if not held
        }
    )


def test_the_words_of_a_written_text_that_stand_in_its_evidence_are_marked_and_counted():
    said = marge_views.written_html("In", "the Rights of 1948 <b>", ["all rights, 1948"], 9)

    assert re.findall("<mark>(.*?)</mark>", said) == ["Rights", "1948", "Marked"]
    assert "2 of 5 words" in said
    assert "<b>" not in said
    assert "mark" not in marge_views.written_html("", "the rights", [], 2)
