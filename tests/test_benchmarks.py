"""What the benchmarks share: turns, ratios, the recorder of matrix products; and that each of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference_env
from benchmarks.__main__ import BUDGET, PARTS
from benchmarks.busy_neighbor import busy
from benchmarks.generation import TableRetriever, added_up, agreement, our_text, random_text, recomputed_text
from benchmarks.measuring import Others, Ratio, Report, markdown, ratio, take_turns
from benchmarks.peers import QUICK_MARGE, QUICK_RETRO, our_step
from benchmarks.products import record_products, replay
from retro_demo.models import layers
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO


def test_ways_take_turns_and_the_warm_up_does_not_count():
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}

    seconds = take_turns(ways, 3, warmup=1)

    assert order == list("ab" * 4)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(spent >= 0 for times in seconds.values() for spent in times)


def test_a_ratio_is_of_medians_and_its_range_is_over_the_rounds():
    assert ratio([4.0, 6.0, 20.0], [2.0, 3.0, 4.0]) == Ratio(2.0, 2.0, 5.0)
    assert str(Ratio(2.0, 1.5, 5.0)) == "2.00 (1.50 to 5.00)"
    assert str(Ratio(87.25, 80.0, 90.0)) == "87.2 (80.0 to 90.0)"


def linear_step(batch: int, width: int, inner: int, bias: bool):
    network = nn.Sequential(nn.Linear(width, inner, bias=bias), nn.GELU(), nn.Linear(inner, 1, bias=bias))
    x = torch.randn(batch, width)
    return lambda: network(x).sum().backward()


@pytest.mark.parametrize("bias", [False, True])
def test_the_products_of_a_known_network_are_counted_forward_and_backward(bias):
    step = linear_step(5, 7, 11, bias)

    recorded = record_products(step)
    with FlopCounterMode(display=False) as counter:
        step()

    first, second = 2 * 5 * 7 * 11, 2 * 5 * 11 * 1
    assert recorded.flops == 2 * first + 3 * second  # nothing asks for the gradient of the input
    assert recorded.flops == counter.get_total_flops()


def test_other_operations_count_by_the_bytes_they_read_and_write_and_views_by_none():
    x, y = torch.ones(10, 100), torch.ones(100)

    def moved(work) -> int:
        return record_products(work).moved

    assert moved(lambda: x + x) == 4000 + 4000  # what is there twice is read once
    assert moved(lambda: x + y) == 4000 + 400 + 4000
    assert moved(lambda: x.t()[:5].unsqueeze(0)) == 0
    assert moved(lambda: x.add_(y)) == 4000 + 400 + 4000
    assert moved(lambda: x + torch.ones(1).expand(10, 100)) > 8000
    assert moved(lambda: x @ x.t()) == 0  # a product


def test_fused_attention_counts_as_two_products_forward_and_four_backward():
    q = torch.randn(2, 3, 5, 8, requires_grad=True)
    k, v = (torch.randn(2, 3, 6, 8, requires_grad=True) for _ in range(2))
    one = 2 * (2 * 3) * 5 * 6 * 8

    forward = record_products(lambda: F.scaled_dot_product_attention(q, k, v))
    both = record_products(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())

    assert forward.flops == 2 * one
    assert both.flops == 6 * one


def test_the_floor_computes_what_was_recorded_and_nothing_else():
    model = RETRO(QUICK_RETRO.config())
    tokens, neighbors, *_ = QUICK_RETRO.random_batch()
    recorded = record_products(lambda: model(tokens[:, :-1], neighbors).sum().backward())

    again = record_products(replay(recorded.products))

    assert again.products == recorded.products
    assert any(product.left[1][-1] != 1 for product in recorded.products)  # transposed ones stay so


def test_the_recorder_knows_all_products_of_both_models(monkeypatch):
    chosen = layers.prefers_onednn()
    for model, batch in (
        (RETRO(QUICK_RETRO.config()), QUICK_RETRO.random_batch()),
        (MARGE(QUICK_MARGE.config()), QUICK_MARGE.random_batch()),
    ):
        monkeypatch.setattr(layers, "prefers_onednn", lambda: False)  # torch's counter does not know it
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # attention taken apart
            with FlopCounterMode(display=False) as counter:
                model.loss(batch)[0].backward()
            apart = record_products(lambda model=model, batch=batch: model.loss(batch)[0].backward())
        monkeypatch.setattr(layers, "prefers_onednn", lambda: chosen)
        fused = record_products(lambda model=model, batch=batch: model.loss(batch)[0].backward())

        assert any(product.onednn for product in fused.products) == chosen
        assert apart.flops == counter.get_total_flops() == fused.flops


def test_a_step_of_ours_is_one_of_the_training_loop():
    torch.manual_seed(0)
    model, batch = RETRO(QUICK_RETRO.config()), QUICK_RETRO.random_batch()

    step = our_step(model, batch)
    losses = [step() for _ in range(5)]

    assert losses[0] == pytest.approx(torch.log(torch.tensor(256.0)).item(), rel=0.1)
    assert losses[4] < losses[0]


def test_the_cost_of_a_text_is_added_up_along_straight_lines():
    assert added_up([10, 20], [1.0, 1.0], prompt=5, count=30) == pytest.approx(30.0)
    assert added_up([0, 100], [0.0, 100.0], prompt=10, count=4) == pytest.approx(10 + 11 + 12 + 13)


def test_texts_agree_up_to_their_first_difference():
    assert agreement([1, 2, 3], [1, 2, 4]) == 2
    assert agreement([1, 2, 3], [1, 2, 3]) == 3


def test_both_ways_of_ours_write_the_same_text():
    torch.manual_seed(0)
    model, retrieve = RETRO(QUICK_RETRO.config()).eval(), TableRetriever(QUICK_RETRO)
    prompt = random_text(QUICK_RETRO.vocab, 1, 16)
    ticks: list[int] = []

    text = our_text(model, prompt, 20, retrieve, lambda: ticks.append(1))

    assert text == recomputed_text(model, prompt, 20, retrieve)
    assert len(ticks) == 20


def test_a_busy_neighbor_is_busy_and_leaves():
    others = Others()
    with busy(True):
        deadline = time.monotonic() + 60  # the machine may be busy with other tests
        while (used := others.cores()) is not None and used <= 0.2 and time.monotonic() < deadline:
            time.sleep(0.5)

    if used is None:
        pytest.skip("nothing here tells what other processes use")
    assert used > 0.2


def test_a_report_prints_markdown_and_keeps_figures_and_aims(tmp_path, capsys):
    report = Report("training_step")
    report.table("Speeds:", ("side", "s"), [("ours", 1.5)])
    report.aim("gain", Ratio(1.6, 1.4, 1.7), least=1.5)
    report.aim("share", 0.03, most=0.02)
    report.figures["seconds"] = [1.5]
    report.publish(str(tmp_path / "figures.json"))

    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "figures.json").read_text())
    assert "| side | s |\n| --- | --- |\n| ours | 1.5 |" in printed
    assert (
        markdown(("aim", "wanted", "measured", "met"), [("gain", ">= 1.5", "1.60 (1.40 to 1.70)", "yes")])
        in printed
    )
    assert [aim["met"] for aim in saved["aims"]] == [True, False]
    assert saved["figures"] == {"seconds": [1.5]}
    assert saved["about"]["torch"] == torch.__version__


def test_a_missing_package_index_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")

    with pytest.raises(SystemExit, match="could not be downloaded.*Connect to a package index"):
        reference_env.fetch(tmp_path / "references")

    assert not (tmp_path / "references").exists()


def test_what_stands_in_for_faiss_goes_again():
    import faiss

    with reference_env.stand_ins():
        assert sys.modules["faiss"] is not faiss

    assert sys.modules["faiss"] is faiss
    assert "autofaiss" not in sys.modules


def test_all_parts_fit_the_budget_and_exist():
    assert sum(PARTS.values()) <= BUDGET
    for part in PARTS:
        assert (ROOT / "benchmarks" / f"{part}.py").exists()


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", PARTS)
def test_each_benchmark_works_at_tiny_sizes(part, tmp_path):
    goal = tmp_path / "figures.json"

    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{part}", "--quick", "--rounds", "1", "--json", str(goal)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(goal.read_text())["tables"]


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arguments",
    [["pretrained", "--quick", "--rounds", "1"], ["gpu", "--smoke"], ["search_by_script", "--quick"]],
)
def test_benchmarks_of_other_machines_work_at_tiny_sizes_here(arguments, tmp_path):
    goal = tmp_path / "figures.json"

    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:], "--json", str(goal)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(goal.read_text())["figures"]
    assert '"failed"' not in done.stdout
