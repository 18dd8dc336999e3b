"""Several processes that train one run: the same losses, one record, stopped and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from distributed_helpers import alone, prepare  # noqa: F401
from held_back import PATIENCE
from marge_training_helpers import folder as two_languages  # noqa: F401
from torch import nn
from torchrun_helpers import LAUNCHER, largest_difference, of, torchrun, train_together, train_until_signaled

from retro_demo.corpus.store import load_corpus
from retro_demo.devices import Learner, World, noticing_loss
from retro_demo.errors import UserError
from retro_demo.events import read_events
from retro_demo.files import read_header
from retro_demo.models.config import MargeConfig, RetroConfig
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO, RetroBatch
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.resuming import saved_processes, saved_step
from retro_demo.training.retro_batches import check_share
from retro_demo.training.trainer import make_batches, run_training

LOSS_TOLERANCE = 1e-5  # nats: the processes add the same float32 numbers in another order
NORM_TOLERANCE = 1e-3  # of the gradient's norm, to which cancelled digits mean more
WEIGHT_TOLERANCE = 1e-4


def assert_same_curve(one: list[dict], other: list[dict]) -> None:
    first, second = of(one, "step"), of(other, "step")
    assert [event["step"] for event in first] == [event["step"] for event in second] != []
    for a, b in zip(first, second, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=LOSS_TOLERANCE)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=NORM_TOLERANCE)
    assert len({event["loss"] for event in first}) == len(first)  # or there is nothing to compare


def assert_same_run(one: Path, other: Path, processes: int) -> None:
    """Train one alone and the other together, and compare all that they tell and leave."""
    first, second = alone(one), train_together(other, processes)
    assert_same_curve(first, second)
    assert second == read_events(other / "events.jsonl")  # one process speaks and writes
    assert [event["event"] for event in second] == [event["event"] for event in first]
    for a, b in zip(of(first, "evaluated"), of(second, "evaluated"), strict=True):
        assert {arm: told["nats"] for arm, told in a["arms"].items()} == pytest.approx(
            {arm: told["nats"] for arm, told in b["arms"].items()}, abs=LOSS_TOLERANCE
        )
    pairs = [[(e["step"], e["figures"]["pairs"]) for e in of(told, "reindexed")] for told in (first, second)]
    assert pairs[0] == pairs[1]
    assert largest_difference(one, other) < WEIGHT_TOLERANCE
    assert (saved_processes(one), saved_processes(other)) == (1, processes)


def test_two_processes_have_the_loss_curve_of_one(tmp_path, small_folder):
    one, two = (prepare(tmp_path / name, small_folder) for name in ("one", "two"))

    assert_same_run(one, two, 2)


@pytest.mark.proof
def test_a_base_and_its_retrofit_too(tmp_path, small_folder):
    lm, together = (prepare(tmp_path / name, small_folder, "lm", steps=3) for name in ("lm", "together"))
    assert_same_run(lm, together, 2)
    one, two = (
        prepare(tmp_path / name, small_folder, "retrofit", base=str(lm), steps=6) for name in ("one", "two")
    )

    assert_same_run(one, two, 2)


@pytest.mark.proof
def test_three_processes_have_the_curve_and_the_evidence_of_one_in_marge(tmp_path, two_languages):  # noqa: F811
    changes = {"distill": 0.5, "reading": 0.5}
    one, three = (prepare(tmp_path / name, two_languages, "marge", **changes) for name in ("one", "three"))

    assert_same_run(one, three, 3)


TOGETHER = """
import os, sys
import numpy as np
from retro_demo.devices import process_group

def told(numbers):
    try:
        world.add_up(numbers)
    except Exception as error:
        return type(error).__name__

with process_group() as world:
    fault = told(np.zeros(2, np.int16))  # gloo adds no int16
    open(sys.argv[1], "r" if world.rank else "w").close()  # neither goes on before the other is here
    if world.rank:
        os._exit(0)
    print(fault, told(np.zeros(2)), flush=True)
"""


def test_a_process_that_is_gone_is_told_as_that_and_a_fault_of_the_program_as_itself(tmp_path):
    script, meeting = tmp_path / "together.py", tmp_path / "meeting"
    script.write_text(TOGETHER)
    os.mkfifo(meeting)
    command = [*LAUNCHER, "2", str(script), str(meeting)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    assert done.stdout.split() == ["RuntimeError", "UserError"], done.stderr


@pytest.mark.parametrize(
    ("message", "gone"),
    [
        ("pair.cc:553] Connection closed by peer [127.0.0.1]:1413.", True),
        ("unbound_buffer.cc:81] Timed out waiting 1000ms for recv operation to complete", True),
        ("ncclRemoteError: ... a remote process exiting prematurely", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", False),
    ],
)
def test_what_engines_say_is_told_apart(message, gone):
    with pytest.raises(UserError if gone else RuntimeError) as told, noticing_loss():
        raise RuntimeError(message)

    assert ("start all of them again" in str(told.value)) == gone


@pytest.mark.proof
def test_together_a_run_stops_by_any_process_survives_a_kill_and_ends_with_the_same_weights(
    tmp_path, small_folder
):
    changes = {"dropout": 0.1, "steps": 60, "eval_every": 60, "save_every": 5}
    for name in ("whole", "cut"):
        prepare(tmp_path / name, small_folder, **changes)
    train_together(tmp_path / "whole", 2)

    first = train_until_signaled(tmp_path / "cut", 2, 3, signal.SIGTERM, [1])  # not the one that writes
    assert first[-1] == {"event": "stopped", "step": 3, "why": ""}
    assert first[-2] == {"event": "saved", "step": 3}
    assert saved_step(tmp_path / "cut") == 3
    train_until_signaled(tmp_path / "cut", 2, 13, signal.SIGKILL, [0, 1])
    assert saved_step(tmp_path / "cut") == 15
    train_together(tmp_path / "cut", 2)

    recorded = [of(read_events(tmp_path / name / "events.jsonl"), "step") for name in ("whole", "cut")]
    assert [e["loss"] for e in recorded[0]] == [e["loss"] for e in recorded[1]]
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") == 0


@pytest.mark.parametrize("model", ["retro", pytest.param("marge", marks=pytest.mark.proof)])
def test_sharded_weights_give_the_same_curve_and_are_taken_up_by_one_process_or_come_from_it(
    tmp_path,
    small_folder,
    two_languages,  # noqa: F811
    model,
):
    corpus = two_languages if model == "marge" else small_folder
    one = alone(prepare(tmp_path / "one", corpus, model, steps=30, eval_every=10))
    out = prepare(tmp_path / "sharded", corpus, model, steps=30, eval_every=10, sharded=True)

    # begun by many and ended by one, or the other way round
    parts = (
        [train_until_signaled(out, 2, 3, signal.SIGTERM, [0]), alone(out)]
        if model == "retro"
        else [alone(out, stop_after=5), train_together(out, 2)]
    )

    assert all(of(part, "step") for part in parts)
    assert ["goes on with" in str(of(part, "warned")) for part in parts] == [False, True]
    told = [event for part in parts for event in part]
    assert_same_curve(one, told)
    assert largest_difference(tmp_path / "one", out) < WEIGHT_TOLERANCE
    loss = {event["step"]: event["arms"]["on"]["nats"] for event in of(told, "evaluated") if event["step"]}
    best = read_header(out / "best.safetensors").number("step", 0)
    assert loss[best] == min(loss.values())  # the main process alone measures, and all of them save


def test_the_parts_of_a_batch_add_up_to_its_loss_whoever_is_left_without_a_row():
    torch.manual_seed(0)
    config = RetroConfig(
        vocab_size=50, dim=16, depth=2, num_heads=2, cca_layers=(2,), enc_dim=16, chunk_len=4
    )
    model = RETRO(config)
    tokens = torch.randint(1, 50, (3, 17))
    tokens[0, 9:] = 0  # tokens count, not rows
    batch = RetroBatch(tokens, torch.randint(1, 50, (3, 3, 2, 8)))

    parts = [model.loss(batch.share(rank, 2))[0] for rank in range(2)]

    torch.testing.assert_close(sum(parts), model.loss(batch)[0])
    assert abs(parts[0].item() - parts[1].item()) > 0.1


def test_a_batch_smaller_than_the_world_is_refused_once_which_ends_all_processes(small_folder, tmp_path):
    config = read_any_config(prepare(tmp_path / "run", small_folder, batch_size=1))

    with pytest.raises(UserError, match="1 sequence, but 2 processes"):
        check_share(config.training, World(0, 2))

    refused = tmp_path / "refused"
    begin = ["retro", "--corpus", str(small_folder), "--batch-size", "1"]
    done = subprocess.run(
        torchrun(refused, 2, *begin), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode
    (told,) = map(json.loads, done.stdout.splitlines())
    assert told["event"] == "failed"
    assert "1 sequence, but 2 processes" in told["error"]
    assert done.stderr.count("1 sequence, but 2 processes") == 1
    assert not (refused / "config.json").exists()  # another batch may be tried under the same name


def test_in_half_precision_weights_norms_and_loss_stay_in_float32_and_a_run_learns(tmp_path, small_folder):
    out = prepare(tmp_path / "half", small_folder, precision="bfloat16", steps=12, lr=2e-3)
    events = alone(out)
    full = alone(prepare(tmp_path / "full", small_folder, steps=12, lr=2e-3))

    losses = [[event["loss"] for event in of(part, "step")] for part in (events, full)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    model = RETRO(read_any_config(out).network)
    kinds: dict[str, set] = {"norm": set(), "product": set()}
    for module in model.modules():
        kind = "norm" if isinstance(module, nn.RMSNorm) else "product"
        if isinstance(module, nn.RMSNorm | nn.Linear):
            module.register_forward_hook(lambda _m, _i, result, kind=kind: kinds[kind].add(result.dtype))
    batch = make_batches(read_any_config(out), load_corpus(small_folder)).train_batch(0)

    loss = Learner(model, 1, "bfloat16")(batch)
    loss.backward()

    assert kinds == {"norm": {torch.float32}, "product": {torch.bfloat16}}
    assert loss.dtype == torch.float32
    assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("sharded", [False, True])
def test_two_gpus_have_the_loss_curve_of_one(tmp_path, small_folder, sharded):
    runs = [prepare(tmp_path / name, small_folder, sharded=sharded) for name in ("one", "two")]
    one = [event.to_json() for event in run_training(runs[0], lambda: False, device="cuda")]

    two = train_together(runs[1], 2, "--device", "cuda")

    assert [e["loss"] for e in of(two, "step")] == pytest.approx(
        [e["loss"] for e in of(one, "step")], abs=1e-3
    )


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_more_processes_than_gpus_are_refused_with_a_sentence(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder)
    done = subprocess.run(
        torchrun(out, 2, "--device", "cuda"), capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert "2 processes on a machine with 1 GPUs" in done.stdout + done.stderr


def test_in_half_precision_relevance_is_as_exact_as_in_the_index():
    torch.manual_seed(0)
    model = MARGE(MargeConfig(vocab_size=50, languages=("a",), dim=32))
    targets, evidence = torch.randint(1, 50, (3, 9)), torch.randint(1, 50, (5, 9))
    exact = model.relevance(model.embed(targets), model.embed(evidence)[None])
    with torch.autocast("cpu", torch.bfloat16):
        found = model.relevance(model.embed(targets).detach(), model.embed(evidence).detach()[None])
        same = model.relevance(model.embed(targets), model.embed(targets)[None])
    assert found.dtype == torch.float32
    torch.testing.assert_close(same.diagonal(), torch.ones(3), atol=1e-6, rtol=0)
    assert not torch.equal(found.bfloat16().float(), found)
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)
