"""Runs: the loop, saves, kills and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from held_back import train_and_kill
from train_helpers import advance, prepare, same_weights, steps  # noqa: F401

from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.events import read_events
from retro_demo.jobs.lifecycle import claim
from retro_demo.runs import resuming
from retro_demo.runs.checkpoint import load_model, read_run_config
from retro_demo.runs.planning import extend_run, plan_run
from retro_demo.runs.resuming import save_state, saved_step
from retro_demo.settings import TrainConfig
from retro_demo.training.loop import learning_rate
from retro_demo.training.trainer import make_batches, measure_arms


@pytest.mark.parametrize("model", ["lm", "retro"])
def test_a_run_yields_every_step_and_ends_with_finished(tmp_path, small_folder, model):
    events = advance(prepare(tmp_path / "run", small_folder, model))

    assert [event["step"] for event in steps(events)] == list(range(1, 13))
    assert events[0]["event"] == "started"
    assert events[-1]["event"] == "finished"
    arms = [event["arms"] for event in events if event["event"] == "evaluated"]
    assert len(arms) == 4  # steps 0, 5, 10, 12
    assert set(arms[0]) == ({"on", "off"} if model == "retro" else {"off"})
    assert read_events(tmp_path / "run" / "events.jsonl") == json.loads(json.dumps(events))


def test_the_run_folder_holds_what_the_contract_names(tmp_path, small_folder):
    advance(prepare(tmp_path / "run", small_folder))

    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "state.safetensors",
        "events.jsonl",
        "tokenizer.json",
    } <= names
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["corpus_fingerprint"] == load_corpus(small_folder).fingerprint
    assert config["threads"] >= 1
    assert {"python", "torch"} <= set(config["versions"])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, small_folder):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        advance(prepare(tmp_path / name, small_folder, seed=seed))

    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_a_stopped_run_goes_on_to_the_weights_of_one_never_stopped(tmp_path, small_folder):
    advance(prepare(tmp_path / "whole", small_folder))
    prepare(tmp_path / "cut", small_folder)

    first = advance(tmp_path / "cut", stop_after=6)
    second = advance(tmp_path / "cut")

    assert first[-1] == {"event": "stopped", "step": 6, "why": ""}
    assert steps(second)[0]["step"] == 7
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    recorded = steps(read_events(tmp_path / "cut" / "events.jsonl"))
    assert [event["step"] for event in recorded] == list(range(1, 13))


def test_a_run_killed_with_kill_9_goes_on_to_the_weights_of_one_never_killed(tmp_path, small_folder):
    prepare(tmp_path / "whole", small_folder, steps=30)
    prepare(tmp_path / "cut", small_folder, steps=30)
    advance(tmp_path / "whole")
    train_and_kill(tmp_path / "cut", "step", 22)  # saves were made at 4, 8, ..., 20
    assert saved_step(tmp_path / "cut") == 20

    advance(tmp_path / "cut")

    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    recorded = [steps(read_events(tmp_path / name / "events.jsonl")) for name in ("whole", "cut")]
    assert [e["loss"] for e in recorded[0]] == [e["loss"] for e in recorded[1]]


def test_sigterm_saves_and_leaves_with_130(tmp_path, small_folder):
    prepare(tmp_path / "run", small_folder, steps=100_000, save_every=100_000, eval_every=100_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "retro_demo", "train", "--json", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1]["event"] == "step" and seen[-1]["step"] == 3:
            process.send_signal(signal.SIGTERM)
    process.wait()

    assert process.returncode == 130
    assert seen[-1]["event"] == "stopped"
    assert saved_step(tmp_path / "run") == seen[-1]["step"] >= 3


def test_a_kill_between_two_files_of_a_save_cannot_mix_two_saves(tmp_path, small_folder):
    prepare(tmp_path / "run", small_folder)
    advance(tmp_path / "run", stop_after=6)
    newer = tmp_path / "run" / "model.safetensors"
    newer.write_bytes(b"torn")  # what stands here is never read on going on

    advance(tmp_path / "run")

    advance(prepare(tmp_path / "whole", small_folder))
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_kill_within_the_last_save_still_ends_with_the_last_weights(tmp_path, small_folder):
    advance(prepare(tmp_path / "whole", small_folder))
    out = prepare(tmp_path / "cut", small_folder)
    real = resuming.save_tensors

    def dies(path, tensors, meta):
        if meta["step"] == "12" and dies.calls:
            raise KeyboardInterrupt  # between the two files of the save of step 12
        dies.calls += meta["step"] == "12"
        real(path, tensors, meta)

    dies.calls = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "save_tensors", dies)
        with pytest.raises(KeyboardInterrupt):
            advance(out)

    advance(out)

    assert saved_step(out) == 12
    assert same_weights(tmp_path / "whole", out)


@pytest.mark.parametrize("record", ["none", "with a save"])
def test_weights_without_a_state_are_not_trained_over(tmp_path, small_folder, record):
    out = prepare(tmp_path / "run", small_folder)
    advance(out, stop_after=6)
    (out / "state.safetensors").unlink()
    if record == "none":
        (out / "events.jsonl").unlink()
    before = (out / "model.safetensors").read_bytes()

    with pytest.raises(UserError, match="no state.safetensors to go on from"):
        advance(out)

    assert (out / "model.safetensors").read_bytes() == before


def test_a_kill_within_the_first_save_leaves_weights_that_are_made_once_more(tmp_path, small_folder):
    out = prepare(tmp_path / "cut", small_folder)
    real = resuming.save_tensors

    def dies(path, tensors, meta):
        if path.name == resuming.STATE:
            raise KeyboardInterrupt
        real(path, tensors, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "save_tensors", dies)
        with pytest.raises(KeyboardInterrupt):
            advance(out)
    assert (out / "model.safetensors").exists()

    advance(out)

    assert saved_step(out) == 12


def test_a_network_whose_encoder_never_sees_the_chunk_can_be_taken_up_too(tmp_path, small_folder):
    advance(prepare(tmp_path / "run", small_folder, enc_cross_layers=()), stop_after=4)

    assert advance(tmp_path / "run")[-1]["event"] == "finished"


def test_the_baseline_of_a_shallow_network_needs_no_word_on_layers_that_it_has_not(tmp_path, small_folder):
    config = plan_run("lm", str(small_folder), settings={"depth": 1}, device="cpu")

    assert config.network.cca_layers == ()


def test_more_steps_for_a_run_that_is_being_trained_are_refused(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder)
    before = (out / "config.json").read_text()

    with claim(out), pytest.raises(UserError, match="is being trained"):
        prepare(out, small_folder, steps=99)

    assert (out / "config.json").read_text() == before


def test_a_finished_run_can_be_trained_longer(tmp_path, small_folder):
    advance(prepare(tmp_path / "run", small_folder))

    prepare(tmp_path / "run", small_folder, steps=20)
    events = advance(tmp_path / "run")

    assert [event["step"] for event in steps(events)] == list(range(13, 21))
    assert saved_step(tmp_path / "run") == 20


def test_another_call_on_a_finished_run_changes_nothing(tmp_path, small_folder):
    advance(prepare(tmp_path / "run", small_folder))
    before = (tmp_path / "run" / "model.safetensors").read_bytes()

    events = advance(prepare(tmp_path / "run", small_folder))

    assert not steps(events)
    assert events[-1]["event"] == "finished"
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", [{"lr": 1e-4}, {"ff_mult": 2}, {"steps": 6}, {"seed": 3}])
def test_another_config_on_an_existing_run_is_refused_with_the_difference(tmp_path, small_folder, change):
    prepare(tmp_path / "run", small_folder)

    with pytest.raises(UserError, match=f"{next(iter(change))} .* -> "):
        prepare(tmp_path / "run", small_folder, **change)


def test_fewer_steps_do_not_extend_a_run(tmp_path, small_folder):
    prepare(tmp_path / "run", small_folder)

    with pytest.raises(UserError, match="would not extend"):
        extend_run(tmp_path / "run", 12)


def test_a_second_process_on_a_live_run_is_refused_and_leaves_no_trace_in_it(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder)
    with claim(out), pytest.raises(UserError, match="another process"):
        advance(out)

    assert not (out / "events.jsonl").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_save(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder, lr=1.0, warmup=0, clip=1e6, steps=12, save_every=2)
    with pytest.MonkeyPatch.context() as patch:
        from retro_demo.training import loop as loop

        real = loop._optimizer_step

        def poisoned(learner, *rest):
            if saved_step(out) == 4:
                learner.model.embedding.weight.data.fill_(float("nan"))
            return real(learner, *rest)

        patch.setattr(loop, "_optimizer_step", poisoned)
        with pytest.raises(UserError, match="learning rate below"):
            advance(out)

    assert saved_step(out) == 4
    assert load_model(out).embedding.weight.isfinite().all()
    assert read_events(out / "events.jsonl")[-1]["event"] == "failed"


def test_measuring_changes_neither_the_weights_nor_what_comes_after(tmp_path, small_folder):
    advance(prepare(tmp_path / "often", small_folder, eval_every=1))
    advance(prepare(tmp_path / "seldom", small_folder, eval_every=12))

    assert same_weights(tmp_path / "often", tmp_path / "seldom")


def test_bits_a_byte_are_nats_over_the_bytes_of_the_original_text(tmp_path, small_folder):
    import math

    out = prepare(tmp_path / "run", small_folder, "lm", seq_len=64)
    advance(out)
    corpus = load_corpus(small_folder)
    batches = make_batches(read_run_config(out), corpus)

    arm = measure_arms(load_model(out), batches, corpus.bytes_of_tokens(), 10**9)["off"]

    chunk_len = corpus.config.chunk_len
    size = tokens = 0
    for _, batch in batches.held_out_batches(10**9):
        for row in batch.tokens.tolist():
            targets = [token for token in row[chunk_len:] if token != 0]
            size += len(corpus.tokenizer.decode(targets).encode("utf-8"))
            tokens += len(targets)
    assert arm["tokens"] == tokens
    assert arm["bpb"] == pytest.approx(arm["nats"] * tokens / (math.log(2) * size), rel=1e-6)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    config = TrainConfig(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(step, config) for step in range(100)]

    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert 0.1 <= rates[-1] < 0.11


def test_an_unknown_run_and_a_run_without_weights_are_said(tmp_path, small_folder):
    with pytest.raises(UserError, match="There is no run"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="no weights yet"):
        load_model(prepare(tmp_path / "run", small_folder))


def test_an_edited_config_is_refused_with_a_sentence(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder)
    path = out / "config.json"
    path.write_text(path.read_text().replace('"dim": 16', '"dim": 17'))

    with pytest.raises(UserError, match="dim is 17"):
        read_run_config(out)


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, small_folder):
    advance(prepare(tmp_path / "one", small_folder))
    advance(prepare(tmp_path / "two", small_folder, "lm"))
    os.replace(tmp_path / "two" / "model.safetensors", tmp_path / "one" / "model.safetensors")

    with pytest.raises(UserError, match="does not fit"):
        load_model(tmp_path / "one")


def test_saving_takes_the_place_of_the_old_save_at_once(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder)
    advance(out)
    model = load_model(out)
    optimizer = torch.optim.AdamW(model.parameters())
    begun = time.time()

    save_state(out, 99, model, optimizer)

    assert saved_step(out) == 99
    assert not list(out.glob("*.tmp"))
    assert (out / "state.safetensors").stat().st_mtime >= begun - 1
