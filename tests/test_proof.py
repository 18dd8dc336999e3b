"""Training to a result on the shipped sample: minutes long, `make proof`."""

from __future__ import annotations

import pytest

from retro_demo.pipeline import ensure_sample, make_run_config, prepare_run, run_training

pytestmark = pytest.mark.proof

CORPUS = "sample:factbook2015"


def last_arms(out, model: str, seed: int) -> dict[str, dict[str, float]]:
    prepare_run(out, make_run_config(model, CORPUS, settings={"seed": seed}, device="cpu"))
    events = [event.to_json() for event in run_training(out, lambda: False)]
    return [event["arms"] for event in events if event["event"] == "evaluated"][-1]


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

    arms = last_arms(tmp_path / "run", "retro", seed)

    assert arms["on"]["nats"] < arms["off"]["nats"]


def test_the_matched_baseline_learns_too(tmp_path, sample_built, monkeypatch):
    monkeypatch.setenv("RETRO_DEMO_HOME", str(sample_built))

    arms = last_arms(tmp_path / "run", "lm", 0)

    assert arms["off"]["nats"] < 6  # ln V is 8.3
