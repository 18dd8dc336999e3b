"""Training to a result on the shipped sample: minutes long, `make proof`."""

from __future__ import annotations

import pytest

from benchmarks import lookup_world
from retro_demo.pipeline import ensure_sample, run_training
from retro_demo.planning import make_run_config, prepare_run

pytestmark = pytest.mark.proof

CORPUS = "sample:factbook2015"


def all_arms(out, model: str, seed: int) -> list[dict[str, dict[str, float]]]:
    """What each measurement of a training found, that of step 0 first."""
    prepare_run(out, make_run_config(model, CORPUS, settings={"seed": seed}, device="cpu"))
    events = [event.to_json() for event in run_training(out, lambda: False)]
    return [event["arms"] for event in events if event["event"] == "evaluated"]


@pytest.fixture(scope="module")
def sample_built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("proof")
        patch.setenv("RETRO_DEMO_HOME", str(home))
        list(ensure_sample(CORPUS))
        yield home


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_preset_tiny_held_out_loss_is_lower_with_retrieval_than_without(
    tmp_path, sample_built, monkeypatch, seed
):
    monkeypatch.setenv("RETRO_DEMO_HOME", str(sample_built))

    arms = all_arms(tmp_path / "run", "retro", seed)[-1]

    assert arms["on"]["nats"] < arms["off"]["nats"]


def test_the_matched_baseline_learns_too(tmp_path, sample_built, monkeypatch):
    monkeypatch.setenv("RETRO_DEMO_HOME", str(sample_built))

    first, *_, last = [arms["off"]["nats"] for arms in all_arms(tmp_path / "run", "lm", 0)]

    assert first > 8  # it begins with nothing learned: ln V is 8.3
    assert last < first - 2.5


@pytest.fixture(scope="module", params=[0, 1, 2])
def lookup_figures(request, tmp_path_factory):
    """What preset `lookup` reaches on the lookup world with one seed."""
    runs = tmp_path_factory.mktemp("lookup")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(runs / "home"))
        list(ensure_sample(lookup_world.CORPUS))
        run, baseline = (lookup_world.train(model, request.param, runs / model) for model in ("retro", "lm"))
        yield lookup_world.measure(run, baseline, 200, "python -m benchmarks.lookup_world")


def test_in_the_lookup_world_retrieval_is_worth_half_a_nat_a_fact_and_the_oracle_no_less(lookup_figures):
    nats = {name: arm["nats"] for name, arm in lookup_figures["facts"].items()}

    assert nats["on"] < nats["off"] - 0.5
    assert nats["on"] < nats["shuffled"] - 0.5
    assert nats["on"] < nats["lm"] - 0.5
    assert nats["oracle_0"] <= nats["on"]


def test_in_the_lookup_world_nothing_beats_the_floor_without_retrieval(lookup_figures):
    nats = {name: arm["nats"] for name, arm in lookup_figures["facts"].items()}

    assert min(nats["off"], nats["lm"], nats["shuffled"]) > nats["floor"] - 0.05
    assert nats["on"] < nats["floor"] - 0.5


def test_in_the_lookup_world_an_edited_neighbor_flips_the_answer_and_another_edit_does_not(lookup_figures):
    assert lookup_figures["flips"]["followed"] >= 0.8
    assert lookup_figures["flips"]["strayed"] < 0.1
