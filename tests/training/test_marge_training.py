"""MARGE runs: batches, re-indexing, and going on across one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_jsonl
from held_back import train_and_kill
from marge_training_helpers import SETTINGS, advance, folder, of, prepare, rows  # noqa: F401
from safetensors.torch import load_file

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.events import read_events
from retro_demo.evidence.passages import random_pairs
from retro_demo.evidence.reindex import embed_passages, load_reindexing, reindexed_steps
from retro_demo.evidence.vectors import WordVectors
from retro_demo.files import read_header
from retro_demo.models.marge import MARGE
from retro_demo.runs.checkpoint import load_marge, read_marge_config, read_run_config
from retro_demo.runs.planning import extend_run, plan_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import CorpusConfig
from retro_demo.training import marge_batches
from retro_demo.training.marge_batches import MargeBatches


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def make_batches(folder: Path, **changes) -> tuple[MargeBatches, MARGE]:
    config = plan_run("marge", str(folder), settings=SETTINGS | changes)
    corpus = load_corpus(folder)
    torch.manual_seed(0)
    batches = MargeBatches(corpus, config.network.languages, config.evidence, seed=0, steps=10)  # pyright: ignore
    return batches, MARGE(config.network)  # pyright: ignore


def test_a_run_re_indexes_before_its_first_step_on_time_and_behind_its_last(tmp_path, folder):
    events = advance(prepare(tmp_path / "run", folder))

    assert [event["step"] for event in of(events, "step")] == list(range(1, 11))
    assert (
        [event["step"] for event in of(events, "reindexed")]
        == [0, 4, 8, 10]
        == reindexed_steps(tmp_path / "run")
    )
    assert set(of(events, "evaluated")[0]["arms"]) == {"on", "random", "off"}
    assert len(of(events, "evaluated")[-1]["about"]["beta"]) == 1
    assert all(0 < len(event["sample"]) < 400 for event in of(events, "evaluated"))
    kinds = [event["event"] for event in events]
    assert [kinds[i - 1] for i, kind in enumerate(kinds) if kind == "evaluated"] == ["progress"] * 3
    assert events[-1]["event"] == "finished"
    assert read_events(tmp_path / "run" / "events.jsonl") == json.loads(json.dumps(events))
    figures = of(events, "reindexed")[-1]["figures"]
    assert {"pairs", "targets_resting", "churn", "beta", "seconds"} <= set(figures)
    assert 0 <= figures["recall"]["recall_at_1"] <= 1
    assert "churn" not in of(events, "reindexed")[0]["figures"]


def test_a_marge_tells_its_passes_and_keeps_the_save_with_the_best_loss_on_its_own_evidence(tmp_path, folder):
    events = advance(prepare(tmp_path / "run", folder), stop_after=6) + advance(tmp_path / "run")

    found = [event["figures"] for event in of(events, "reindexed") if event["step"] < 10]
    shares = [
        one["targets_with_evidence"] / (one["targets_with_evidence"] + one["targets_resting"])
        for one in found
    ]
    passes = sum(n * s / one["batches"] for n, s, one in zip((4, 4, 2), shares, found, strict=True))
    end = events[-1]
    assert end["passes"] == pytest.approx(passes, abs=1e-3)
    assert 0 < passes < events[0]["about"]["passes_at_most"]
    loss = {event["step"]: event["arms"]["on"]["nats"] for event in of(events, "evaluated")}
    best = min(loss, key=lambda step: loss[step])
    assert (end["best_step"], end["best_held_out"], end["held_out"]) == (best, loss[best], loss[10])
    assert read_header(tmp_path / "run" / "best.safetensors").number("step", 0) == min(
        (step for step in loss if step), key=lambda step: loss[step]
    )


@pytest.mark.parametrize("stop_after", [2, 4, 6, 8])
def test_a_stopped_run_goes_on_to_the_weights_of_one_never_stopped(tmp_path, folder, stop_after):
    advance(prepare(tmp_path / "whole", folder))
    first = advance(prepare(tmp_path / "cut", folder), stop_after=stop_after)
    second = advance(tmp_path / "cut")

    assert first[-1] == {"event": "stopped", "step": stop_after, "why": ""}
    assert of(second, "step")[0]["step"] == stop_after + 1
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    recorded = [read_events(tmp_path / name / "events.jsonl") for name in ("whole", "cut")]
    for kind in ("step", "reindexed"):
        assert [e["step"] for e in of(recorded[1], kind)] == [e["step"] for e in of(recorded[0], kind)]
    told = [
        [(e["figures"]["pairs"], e["figures"].get("churn")) for e in of(r, "reindexed")] for r in recorded
    ]
    assert told[0] == told[1]


def test_a_run_with_soft_labels_is_the_same_each_time_and_goes_on_bit_for_bit(tmp_path, folder):
    for name, weight in (("whole", 0.5), ("cut", 0.5), ("without", 0.0)):
        prepare(tmp_path / name, folder, reading=0.5, soft_labels=weight)
    for name in ("whole", "without"):
        advance(tmp_path / name)
    advance(tmp_path / "cut", stop_after=7)
    advance(tmp_path / "cut")

    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    losses = {
        name: [e["loss"] for e in of(read_events(tmp_path / name / "events.jsonl"), "step")]
        for name in ("whole", "without")
    }
    alike = [one == other for one, other in zip(losses["whole"], losses["without"], strict=True)]
    assert alike == [True, True] + [False] * 8  # the decoder reads first: relevance_from of the steps


def test_soft_labels_compare_evidence_and_no_copies_of_targets(tmp_path, folder):
    batches, model = make_batches(folder, reading=0.5)
    batches.reading_steps, batches.lessons_kept = 10, 0.5
    batches.refresh(0, model, prepare(tmp_path / "run", folder))
    compared = []
    for step in range(4):
        batch = batches.train_batch(step)
        graph = batches._subgraphs(batches.found.pairs, 0)[step]  # pyright: ignore
        compared.append(batch.compared)
        assert batch.compared in (0, len(graph.evidence))
        assert len(batch.evidence) > len(graph.evidence)

    assert [bool(one) for one in compared] == [False, False, True, True]


def test_a_run_killed_with_kill_9_goes_on_across_a_re_index_bit_for_bit(tmp_path, folder):
    changes = {"steps": 40, "refresh_every": 7, "save_every": 4}
    for name in ("whole", "cut"):
        prepare(tmp_path / name, folder, **changes)
    advance(tmp_path / "whole")
    train_and_kill(tmp_path / "cut", "reindexed", 21)  # saved at 20, re-indexed at 21
    assert saved_step(tmp_path / "cut") == 20

    advance(tmp_path / "cut")

    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    recorded = [read_events(tmp_path / name / "events.jsonl") for name in ("whole", "cut")]
    assert [e["loss"] for e in of(recorded[0], "step")] == [e["loss"] for e in of(recorded[1], "step")]
    assert [e["step"] for e in of(recorded[1], "reindexed")] == [0, 7, 14, 21, 28, 35, 40]


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_what_the_last_re_index_found_can_be_lost_and_is_then_found_anew_with_a_warning(
    tmp_path, folder, how
):
    advance(prepare(tmp_path / "run", folder), stop_after=6)
    found = tmp_path / "run" / "evidence" / "000004.safetensors"
    if how == "lost":
        found.unlink()
    else:
        found.write_bytes(found.read_bytes()[:100])
    events = advance(tmp_path / "run")
    assert "not bit for bit" in of(events, "warned")[0]["text"]
    assert events[-1]["event"] == "finished"
    assert load_reindexing(tmp_path / "run", 4) is not None  # the next resume finds it


def test_re_indexing_is_deterministic_keeps_the_encoder_as_it_is_and_masks_padding(tmp_path, folder):
    batches, model = make_batches(folder)
    model.train()
    before = torch.get_rng_state()
    batches.refresh(0, model, tmp_path)
    again, _ = make_batches(folder)
    again.refresh(0, model, tmp_path / "..")
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert batches.found is not None
    assert again.found is not None
    for name in ("target", "evidence", "relevance"):
        np.testing.assert_array_equal(getattr(batches.found.pairs, name), getattr(again.found.pairs, name))
    # what stands in the index is the embedding of each passage by itself, in eval mode, without its padding
    vectors = embed_passages(model, batches.passages.tokens)
    assert len(vectors) == len(batches.passages)
    short = int(np.argmin(batches.passages.lengths))
    alone = torch.from_numpy(batches.passages.tokens[short : short + 1, : batches.passages.lengths[short]])
    own = torch.nn.functional.normalize(model.eval().embed(alone), dim=-1)[0]
    assert isinstance(vectors, WordVectors)
    np.testing.assert_allclose(vectors.written_out(np.array([short]))[0], own.detach().numpy(), atol=1e-5)
    # and the relevance of each pair is the one that the loss has for it
    pairs, tokens = batches.found.pairs, torch.from_numpy(batches.passages.tokens)
    f = model(tokens[pairs.target], tokens[pairs.evidence]).relevance.detach().diagonal()
    np.testing.assert_allclose(pairs.relevance, f.numpy(), atol=1e-5)


def test_no_target_is_its_own_evidence_and_nothing_held_out_is_read(tmp_path, folder):
    batches, model = make_batches(folder)
    batches.refresh(0, model, tmp_path)
    held_out = {tuple(row[row != 0]) for row in batches.passages.tokens[batches.passages.held_out]}
    for step in range(12):
        batch = batches.train_batch(step)
        targets, evidence = (
            {tuple(row[row != 0].tolist()) for row in part} for part in (batch.targets, batch.evidence)
        )
        assert targets
        assert evidence
        assert not targets & evidence
        assert not (targets | evidence) & held_out


def test_lessons_are_overwritten_copies_of_targets_and_fade_out(tmp_path, folder):
    config = plan_run("marge", str(folder), settings=SETTINGS)
    batches = MargeBatches(
        load_corpus(folder),
        config.network.languages,
        config.evidence,
        seed=0,
        steps=10,
        reading_steps=4,  # pyright: ignore
    )
    batches.refresh(0, MARGE(config.network), tmp_path)  # pyright: ignore
    plain, _ = make_batches(folder)
    plain.resume(0, tmp_path)
    first, without = batches.train_batch(0), plain.train_batch(0)
    assert torch.equal(first.targets, without.targets)
    copies = first.evidence[len(without.evidence) :]
    assert len(copies) == len(first.targets)  # at step 0 every target has one
    width = min(copies.shape[1], first.targets.shape[1])
    alike = ((copies[:, :width] == first.targets[:, :width]) & (copies[:, :width] != 0)).sum(dim=1)
    there = (first.targets != 0).sum(dim=1)
    assert (alike >= there / 3).all()
    assert (alike < there).any()
    assert torch.equal(batches.train_batch(4).evidence, plain.train_batch(4).evidence)


def test_the_control_reads_as_many_pairs_and_none_of_a_targets_own_item(tmp_path, folder):
    batches, model = make_batches(folder)
    batches.refresh(0, model, tmp_path)
    control, _ = make_batches(folder, evidence_source="random")
    control.resume(0, tmp_path)
    group_of = dict(zip(map(bytes, control.passages.tokens), control.passages.group.tolist(), strict=True))

    def mixed(found: MargeBatches, step: int) -> bool:
        """Whether a batch holds evidence of the item of one of its targets."""
        width = control.passages.tokens.shape[1]
        targets, evidence = (
            {group_of[bytes(np.pad(row, (0, width - len(row))))] for row in part.numpy()}
            for part in (found.train_batch(step).targets, found.train_batch(step).evidence)
        )
        return bool(targets & evidence)

    assert any(mixed(batches, step) for step in range(4))
    assert control.found is not None
    pairs = control.found.pairs
    drawn = random_pairs(
        pairs, control.passages, control.config, candidates=control.candidates, shard_seed=0, seed=1
    )
    assert drawn.target.tolist() == pairs.target.tolist()
    assert not (control.passages.group[drawn.target] == control.passages.group[drawn.evidence]).any()


def test_a_finished_run_can_be_trained_longer(tmp_path, folder):
    advance(prepare(tmp_path / "run", folder))
    extend_run(tmp_path / "run", 14)
    events = advance(tmp_path / "run")
    assert [event["step"] for event in of(events, "step")] == [11, 12, 13, 14]
    assert [event["step"] for event in of(events, "reindexed")] == [12, 14]
    extend_run(tmp_path / "run", 18)  # it ended with a re-index that is due again: it stands there once
    advance(tmp_path / "run")
    extend_run(tmp_path / "run", 16 + 4)
    advance(tmp_path / "run")
    steps = [e["step"] for e in of(read_events(tmp_path / "run" / "events.jsonl"), "reindexed")]
    assert len(steps) == len(set(steps))
    assert {0, 4, 8, 12, 16, 20} <= set(steps)


def test_the_weights_load_and_the_configs_of_other_models_are_refused(tmp_path, folder):
    advance(prepare(tmp_path / "run", folder, steps=2))
    assert load_marge(tmp_path / "run").config == read_marge_config(tmp_path / "run").network
    assert read_marge_config(tmp_path / "run").network.languages == ("xx", "yy")
    with pytest.raises(UserError, match="is a MARGE"):
        read_run_config(tmp_path / "run")
    found = load_reindexing(tmp_path / "run", 0)
    assert found is not None
    assert len(found.rows) == len(found.vectors)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_neighbors": 4}, "no setting num_neighbors"),
        ({"passage_len": 2}, "passage_len is 2"),
        ({"evidence_languages": "none"}, "choose one of any, other"),
    ],
)
def test_a_setting_that_means_nothing_to_marge_is_refused(folder, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        plan_run("marge", str(folder), settings=settings)


def test_a_base_and_an_unknown_preset_are_refused(folder):
    with pytest.raises(UserError, match="begins with no other run"):
        plan_run("marge", str(folder), base="sample:factbook-lm")
    with pytest.raises(UserError, match="has no preset 'huge'"):
        plan_run("marge", str(folder), preset="huge")


def test_a_corpus_without_any_possible_evidence_is_said(tmp_path, folder):
    batches, model = make_batches(folder, evidence_languages="other")
    batches.passages = replace(batches.passages, language=np.zeros_like(batches.passages.language))
    with pytest.raises(UserError, match="No passage of this corpus has evidence"):
        batches.refresh(0, model, tmp_path)


def test_targets_and_evidence_can_be_two_sets(tmp_path, folder):
    documents = [
        row | {"use": "database" if int(row["id"].split("-")[0]) % 2 else "training"} for row in rows()
    ]
    source = write_jsonl(tmp_path / "two.jsonl", documents)
    prepare_corpus(tmp_path / "two", [source], CorpusConfig(chunk_len=16, vocab_size=300, num_neighbors=2))
    list(build_corpus(tmp_path / "two"))

    apart, model = make_batches(tmp_path / "two", evidence_set="database")
    apart.refresh(0, model, tmp_path)

    assert apart.found is not None
    pairs, only = apart.found.pairs, apart.passages.database_only
    assert only[pairs.evidence].all()
    assert not only[pairs.target].any()
    mixed, _ = make_batches(tmp_path / "two")
    mixed.refresh(0, model, tmp_path)
    assert mixed.found is not None
    assert not only[mixed.found.pairs.evidence].all()


def test_a_run_whose_evidence_is_to_be_for_the_database_needs_some(tmp_path, folder):
    batches, model = make_batches(folder, evidence_set="database")
    with pytest.raises(UserError, match="No passage of this corpus has evidence"):
        batches.refresh(0, model, tmp_path)


def test_where_a_measurement_and_a_re_index_meet_the_passages_are_embedded_once(
    tmp_path, folder, monkeypatch
):
    plain, embedded = marge_batches.embed_passages, []

    def counted(model, tokens, *others, **how):
        embedded.append(len(tokens))
        return plain(model, tokens, *others, **how)

    monkeypatch.setattr(marge_batches, "embed_passages", counted)
    events = advance(prepare(tmp_path / "run", folder, steps=8, refresh_every=4, eval_every=4))

    steps = {event["step"] for kind in ("reindexed", "evaluated") for event in of(events, kind)}
    assert steps == {0, 4, 8}
    assert len(embedded) == 3
