"""A frozen lm that learns to read neighbors, and the lm trained on beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, records, write_jsonl
from safetensors.torch import load_file, save_file
from train_helpers import SETTINGS, advance, same_weights, steps

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.runs.checkpoint import load_model, read_run_config
from retro_demo.runs.planning import fitting_layers, plan_run, prepare_run
from retro_demo.training.retro_batches import RetroBatches
from retro_demo.training.trainer import make_batches

READER = {name: SETTINGS[name] for name in ("cca_layers", "enc_dim")}
TRAINING = {
    name: value for name, value in SETTINGS.items() if name not in {"dim", "depth", "num_heads", *READER}
}


def set_up(out: Path, corpus: Path, model: str, base: Path | None = None, **changes) -> Path:
    network = READER if base else {name: SETTINGS[name] for name in ("dim", "depth", "num_heads", *READER)}
    settings = TRAINING | {"dropout": 0.0} | network | changes
    wanted = plan_run(model, str(corpus), settings=settings, device="cpu", base=str(base) if base else "")
    prepare_run(out, wanted)
    return out


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """The fixtures below outlive a test, so they need a data folder that does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_folder) -> Path:
    folder = tmp_path_factory.mktemp("base") / "lm"
    advance(set_up(folder, small_folder, "lm"))
    return folder


@pytest.fixture(scope="module")
def retrofit(tmp_path_factory, small_folder, base) -> Path:
    folder = tmp_path_factory.mktemp("retrofit") / "run"
    advance(set_up(folder, small_folder, "retrofit", base))
    return folder


def batch_of(folder: Path):
    corpus = load_corpus(folder)
    settings = {"seq_len": 32, "batch_size": 3, "num_neighbors": 2, "retrieves": True, "seed": 0}
    return RetroBatches(corpus, **settings).train_batch(0)


def test_without_neighbors_a_retrofit_is_its_base_bit_for_bit(base, retrofit, small_folder):
    tokens = batch_of(small_folder).tokens[:, :-1]

    with torch.inference_mode():
        assert torch.equal(load_model(retrofit)(tokens), load_model(base)(tokens))


def test_a_retrofit_reads_neighbors_and_has_learned_to(base, retrofit, small_folder):
    batch = batch_of(small_folder)
    model = load_model(retrofit)

    with torch.inference_mode():
        on, off = model(batch.tokens[:, :-1], batch.neighbors), model(batch.tokens[:, :-1])
    assert not torch.allclose(on, off)
    arms = [event["arms"] for event in events_of(retrofit) if event["event"] == "evaluated"]
    gains = [one["off"]["nats"] - one["on"]["nats"] for one in arms]
    # beginning with step 0: the frozen base stays what it was, and on held-out text reading is worth more
    assert arms[-1]["off"] == arms[0]["off"]
    assert gains[-1] > gains[0] + 0.02


def test_a_retrofit_changes_no_weight_of_its_base_and_every_matrix_of_the_reader(base, retrofit):
    frozen, after = load_file(base / "model.safetensors"), load_file(retrofit / "model.safetensors")

    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    assert set(after) > set(frozen)
    state = load_file(retrofit / "state.safetensors")
    trained = {n.split(".", 2)[2] for n in state if n.startswith("optimizer.exp_avg.")}
    assert trained == set(after) - set(frozen)


def test_a_retrofit_that_was_stopped_goes_on_to_the_weights_of_one_never_stopped(
    tmp_path, base, retrofit, small_folder
):
    set_up(tmp_path / "cut", small_folder, "retrofit", base)

    advance(tmp_path / "cut", stop_after=6)
    advance(tmp_path / "cut")

    assert same_weights(retrofit, tmp_path / "cut")


def test_an_lm_trained_on_begins_with_the_loss_of_its_base_and_reads_the_windows_of_the_retrofit(
    tmp_path, base, retrofit, small_folder
):
    events = advance(set_up(tmp_path / "on", small_folder, "lm", base))

    last = [e["arms"]["off"]["nats"] for e in events_of(base) if e["event"] == "evaluated"][-1]
    first = next(e["arms"]["off"]["nats"] for e in events if e["event"] == "evaluated")
    assert first == pytest.approx(last, abs=1e-6)
    assert len(steps(events)) == 12
    both = [config_batches(run, small_folder).train_batch(7).tokens for run in (tmp_path / "on", retrofit)]
    assert torch.equal(*both)


def events_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def config_batches(run: Path, folder: Path) -> RetroBatches:
    return make_batches(read_run_config(run), load_corpus(folder))


def test_a_retro_that_begins_with_an_lm_trains_all_of_it(tmp_path, base, small_folder):
    advance(set_up(tmp_path / "warm", small_folder, "retro", base))

    before, after = (load_file(run / "model.safetensors") for run in (base, tmp_path / "warm"))
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())


def test_a_retrofit_reads_in_the_usual_layers_that_its_base_has(base, small_folder):
    """Its decoder has two layers, where the preset's tiny one has four and reads in the second and fourth."""
    planned = plan_run("retrofit", str(small_folder), base=str(base))

    assert planned.network.cca_layers == (2,)
    assert fitting_layers(None, 4) == (2, 4)
    assert fitting_layers((3, 6), 2) == (2,)


def test_a_retrofit_without_a_base_says_what_to_do(small_folder):
    with pytest.raises(UserError, match="--base RUN"):
        plan_run("retrofit", str(small_folder), settings=SETTINGS)


def test_a_base_that_reads_neighbors_is_refused(tmp_path, retrofit, small_folder):
    with pytest.raises(UserError, match="begin with an lm"):
        set_up(tmp_path / "run", small_folder, "retrofit", retrofit)


def test_a_base_without_weights_is_refused(tmp_path, small_folder):
    set_up(tmp_path / "lm", small_folder, "lm")

    with pytest.raises(UserError, match="no weights yet"):
        set_up(tmp_path / "run", small_folder, "retrofit", tmp_path / "lm")


def test_a_base_of_another_tokenizer_is_refused(tmp_path, base):
    other_folder = tmp_path / "other"
    prepare_corpus(other_folder, [write_jsonl(tmp_path / "other.jsonl", records(1))], SMALL)
    list(build_corpus(other_folder))

    with pytest.raises(UserError, match="another tokenizer"):
        set_up(tmp_path / "run", other_folder, "retrofit", base)


def test_a_shape_that_is_not_the_bases_is_refused(tmp_path, base, small_folder):
    with pytest.raises(UserError, match="depth is 3, but the base run .* has 2"):
        set_up(tmp_path / "run", small_folder, "retrofit", base, depth=3)


def test_a_base_that_changed_since_the_run_was_set_up_is_noticed(tmp_path, base, small_folder):
    copy = tmp_path / "lm"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "best.safetensors").unlink()  # the same weights, from which the run could begin
    run = set_up(tmp_path / "run", small_folder, "retrofit", copy)
    weights = load_file(copy / "model.safetensors")
    weights["embedding.weight"] += 1
    save_file(weights, copy / "model.safetensors")

    with pytest.raises(UserError, match="have changed or are gone"):
        advance(run)
