"""Compiled training steps: the same curve and saves, and a sentence where nothing can be compiled."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from distributed_helpers import alone, prepare
from torchrun_helpers import of

from retro_demo import devices
from retro_demo.corpus.store import load_corpus
from retro_demo.devices import World, compile_loss, wrap_model
from retro_demo.errors import UserError
from retro_demo.models.retro import RETRO
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import TrainConfig
from retro_demo.training.trainer import make_batches


@pytest.fixture(autouse=True)
def captured(monkeypatch):
    """Graphs and gradients are captured as for Inductor, but run by torch: that takes no minutes."""
    torch._dynamo.reset()
    monkeypatch.setattr(devices, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("model", [pytest.param("lm", marks=pytest.mark.proof), "retro"])
def test_a_compiled_run_has_the_loss_curve_of_another_and_is_compiled_once(tmp_path, small_folder, model):
    plain = alone(prepare(tmp_path / "plain", small_folder, model))
    torch._dynamo.utils.counters.clear()

    events = alone(prepare(tmp_path / "compiled", small_folder, model, compile=True))

    assert [e["loss"] for e in of(events, "step")] == pytest.approx(
        [e["loss"] for e in of(plain, "step")], rel=1e-4
    )
    assert not of(events, "warned")
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one of them is the trial


@pytest.mark.proof
def test_a_compiled_run_goes_on_bit_for_bit_and_is_taken_up_by_one_that_is_not(tmp_path, small_folder):
    whole = alone(prepare(tmp_path / "whole", small_folder, compile=True, dropout=0.1))
    cut = prepare(tmp_path / "cut", small_folder, compile=True, dropout=0.1)

    parts = [*alone(cut, stop_after=5), *alone(cut)]

    assert [e["loss"] for e in of(parts, "step")] == [e["loss"] for e in of(whole, "step")]
    assert saved_step(cut) == 12


def test_where_nothing_can_be_compiled_a_run_says_so_and_goes_on_without(tmp_path, small_folder, monkeypatch):
    def broken(graph, inputs):
        raise FileNotFoundError("no compiler")

    plain = alone(prepare(tmp_path / "plain", small_folder))
    monkeypatch.setattr(devices, "BACKEND", broken)

    events = alone(prepare(tmp_path / "run", small_folder, compile=True))

    (warned,) = of(events, "warned")
    assert "Nothing can be compiled for cpu here" in warned["text"]
    assert [e["loss"] for e in of(events, "step")] == [e["loss"] for e in of(plain, "step")]


def test_sharded_weights_and_compiling_are_refused_together():
    with pytest.raises(UserError, match="compile and sharded are both on"):
        TrainConfig(compile=True, sharded=True)


@pytest.mark.proof
def test_parts_of_a_batch_are_compiled_once_under_ddp_with_the_names_of_the_weights_unchanged(
    tmp_path, small_folder
):
    config = read_any_config(prepare(tmp_path / "run", small_folder))
    batches = make_batches(config, load_corpus(small_folder))
    torch.manual_seed(0)
    model = RETRO(config.network)
    names = set(model.state_dict())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        both = World(0, 2)
        plain = wrap_model(model, both, sharded=False, precision="float32")
        learner = wrap_model(model, both, sharded=False, precision="float32", compiled=compile_loss)
        torch._dynamo.utils.counters.clear()
        for step in range(4):
            part = batches.train_batch(step).share(0, 2)
            losses, norms = [], []
            for one in (plain, learner):
                one.zero_grad(set_to_none=True)
                loss = one(part)
                loss.backward()
                losses.append(loss.item())
                norms.append(torch.nn.utils.get_total_norm([w.grad for w in model.parameters()]).item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    finally:
        dist.destroy_process_group()
    assert set(model.state_dict()) == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_inductor_gives_the_same_curve(tmp_path, small_folder, monkeypatch):
    monkeypatch.setattr(devices, "BACKEND", "inductor")
    runs = [prepare(tmp_path / str(flag), small_folder, compile=flag) for flag in (False, True)]

    curves = [[e["loss"] for e in of(alone(out, device="cuda"), "step")] for out in runs]

    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
