"""The save with the best held-out loss: kept beside the last, whole after a kill, used where asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import run as cli_run
from overfitted_helpers import OVERFIT, overfitted, three  # noqa: F401
from safetensors.torch import load_file
from train_helpers import advance, prepare, same_weights

from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import earlier_baseline, got_worse, tokens_seen
from retro_demo.events import read_events
from retro_demo.files import file_hash, save_tensors
from retro_demo.runs import resuming
from retro_demo.runs.checkpoint import (
    BEST,
    LAST,
    STATE,
    load_model,
    read_run_config,
    step_of,
    told_by,
    weights_file,
)
from retro_demo.runs.planning import extend_run, keep_weights, plan_run, prepare_run
from retro_demo.runs.provenance import weights_of
from retro_demo.runs.resuming import saved_step
from retro_demo.server.run_actions import weights_choices, weights_kept

# ruff: noqa: F811


def best_step(run: Path) -> int:
    """The step of the best measurement on record, of weights that can be saved."""
    loss = {
        event["step"]: event["arms"]["on"]["nats"]
        for event in read_events(run / "events.jsonl")
        if event["event"] == "evaluated" and event["step"]
    }
    return min(loss, key=lambda step: loss[step])


@pytest.fixture
def copy(tmp_path, overfitted) -> Path:
    """The run that is past its best, to be changed."""
    return shutil.copytree(overfitted, tmp_path / "copy")


def test_the_best_save_holds_the_weights_of_the_best_measurement_beside_the_last(tmp_path, three, overfitted):
    best = best_step(overfitted)
    stopped = prepare(tmp_path / "stopped", three, **OVERFIT)
    advance(stopped, stop_after=best)

    assert step_of(overfitted / BEST) == best < step_of(overfitted / LAST) == 60
    one, other = load_file(overfitted / BEST), load_file(stopped / LAST)
    assert all(torch.equal(one[name], weight) for name, weight in other.items())


def test_a_measurement_between_two_saves_is_saved_where_it_is_the_best(overfitted):
    events = read_events(overfitted / "events.jsonl")
    saved = [event["step"] for event in events if event["event"] == "saved"]

    assert best_step(overfitted) == 10  # saves come every 4 steps, measurements every 10
    assert saved == [4, 8, 10, *range(12, 61, 4)]


@pytest.mark.parametrize(
    ("dying", "saved"),
    [("before the state", 8), ("before the best", 10), ("within the best", 10)],
)
def test_a_kill_while_the_best_is_saved_leaves_no_best_before_its_state_and_a_run_that_goes_on(
    tmp_path, three, overfitted, monkeypatch, dying, saved
):
    out = prepare(tmp_path / "cut", three, **OVERFIT)
    real_save, real_copy = resuming.save_tensors, shutil.copyfile

    def save(path, tensors, meta):
        if meta["step"] == "10" and path.name == STATE and dying == "before the state":
            raise KeyboardInterrupt
        real_save(path, tensors, meta)

    def keep(folder, step):
        raise KeyboardInterrupt

    def torn(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resuming, "save_tensors", save)
        if dying == "before the best":
            patch.setattr(resuming, "keep_best", keep)
        if dying == "within the best":
            patch.setattr(resuming.shutil, "copyfile", torn)
        with pytest.raises(KeyboardInterrupt):
            advance(out)
    assert shutil.copyfile is real_copy
    # step 10 is the first that is measured: the best of nothing else may stand there, and no half of it
    assert (saved_step(out), step_of(out / LAST)) == (saved, 10)
    assert not (out / BEST).exists()
    assert not list(out.glob("*.tmp"))

    advance(out)

    assert same_weights(out, overfitted)
    assert (out / BEST).read_bytes() == (overfitted / BEST).read_bytes()


def test_a_kill_while_a_second_best_is_saved_leaves_the_first_one(tmp_path, small_folder, monkeypatch):
    out = prepare(tmp_path / "cut", small_folder, steps=8, eval_every=4, save_every=4)
    advance(out, stop_after=4)
    first = (out / BEST).read_bytes()

    def torn(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resuming.shutil, "copyfile", torn)
        with pytest.raises(KeyboardInterrupt):
            advance(out)

    assert (saved_step(out), step_of(out / BEST)) == (8, 4)
    assert (out / BEST).read_bytes() == first
    advance(out)  # it has nothing left to do but this
    assert step_of(out / BEST) == 8


def test_the_best_save_tells_its_loss_and_outlives_a_lost_record(copy, overfitted):
    best = best_step(overfitted)
    loss = {
        event["step"]: event["arms"]["on"]["nats"]
        for event in read_events(overfitted / "events.jsonl")
        if event["event"] == "evaluated"
    }
    assert told_by(copy / BEST) == (best, loss[best])
    kept = (copy / BEST).read_bytes()
    (copy / "events.jsonl").unlink()

    extend_run(copy, 70)
    end = advance(copy)[-1]

    assert end["held_out"] > loss[best]
    assert (end["best_step"], end["best_held_out"]) == (best, loss[best])
    assert f"{loss[best]:.3f} at step {best:,}" in end["warnings"][0]
    assert "are kept beside the last ones" in end["warnings"][0]
    assert (copy / BEST).read_bytes() == kept


def test_weights_with_more_than_one_note_are_the_same_bytes_each_time(tmp_path):
    for name in "abcdefgh":  # by chance half of them would differ
        notes = {"step": "3", "held_out": "2.5"}
        save_tensors(tmp_path / name, {"w": torch.arange(3.0), "é": torch.ones(2, 2)}, notes)

    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert told_by(tmp_path / "a") == (3, 2.5)
    assert load_file(tmp_path / "a")["é"].tolist() == [[1, 1], [1, 1]]


def test_a_best_save_of_before_that_tells_no_loss_is_gone_by_as_the_record_has_it(copy):
    weights = load_file(copy / BEST)
    save_tensors(copy / BEST, weights, {"step": str(best_step(copy))})
    kept = (copy / BEST).read_bytes()

    extend_run(copy, 70)
    advance(copy)

    assert (copy / BEST).read_bytes() == kept


def test_a_run_that_never_got_worse_has_its_last_weights_as_the_best(tmp_path, small_folder):
    out = prepare(tmp_path / "run", small_folder)
    advance(out)

    assert best_step(out) == 12
    assert (out / BEST).read_bytes() == (out / LAST).read_bytes()


def test_what_is_kept_is_what_a_run_is_used_with_and_training_goes_on_from_the_last(
    tmp_path, three, overfitted, copy
):
    first, last = load_file(overfitted / BEST), load_file(overfitted / LAST)
    keep_weights(copy, "best")

    assert weights_file(copy) == copy / BEST
    assert weights_of(copy)[0] == best_step(copy)
    assert torch.equal(load_model(copy).embedding.weight, first["embedding.weight"])

    for run in (copy, longer := shutil.copytree(overfitted, tmp_path / "longer")):
        extend_run(run, 70)
        advance(run)
    assert same_weights(copy, longer)  # what is used plays no part in training
    assert weights_file(copy) == copy / BEST

    keep_weights(copy, "last")
    assert step_of(weights_file(copy)) == 70
    keep_weights(longer, "last")
    assert not torch.equal(load_model(longer).embedding.weight, last["embedding.weight"])


def test_the_command_line_keeps_what_was_chosen_until_it_is_told_otherwise(tmp_path, capsys, three):
    flags = [part for name, value in OVERFIT.items() for part in (f"--{name.replace('_', '-')}", value)]
    flags += ["--depth", 2, "--num-heads", 2, "--cca-layers", 2, "--seq-len", 32, "--batch-size", 2, "--json"]
    call = ["train", "retro", "--corpus", three, "--out", tmp_path / "run", "--device", "cpu", *flags]
    chosen = []
    for arguments in (
        [*call, "--keep", "best"],
        call,  # the same call without it
        ["train", "--out", tmp_path / "run", "--json"],
        ["train", "--out", tmp_path / "run", "--keep", "last", "--json"],
        ["train", "--out", tmp_path / "run", "--keep", "best", "--json"],
    ):
        code, events, said = cli_run(capsys, *arguments)
        assert (code, events[-1]["event"]) == (0, "finished"), said
        chosen.append(read_run_config(tmp_path / "run").training.keep)

    assert chosen == ["best", "best", "best", "last", "best"]
    code, _, said = cli_run(capsys, "train", "--out", tmp_path / "run", "--keep", "first")
    assert (code, "first" in said) == (2, True)


def without_keep(run: Path) -> None:
    """Leave a run as release 0.5.0 wrote it."""
    config = json.loads((run / "config.json").read_text())
    del config["training"]["keep"]
    (run / "config.json").write_text(json.dumps(config))
    (run / BEST).unlink(missing_ok=True)


def test_a_run_of_before_goes_on_and_keeps_a_best_save_only_where_it_gets_better(tmp_path, three, overfitted):
    worse = shutil.copytree(overfitted, tmp_path / "worse")
    better = prepare(tmp_path / "better", three, **OVERFIT | {"steps": 20})
    advance(better, stop_after=6)
    for run in (worse, better):
        without_keep(run)

    extend_run(worse, 70)
    ends = {run.name: advance(run)[-1] for run in (worse, better)}

    assert f"save of step {best_step(worse)} was not kept" in ends["worse"]["warnings"][0]
    assert not (worse / BEST).exists()  # its best step is gone, and none since was better
    assert step_of(better / BEST) == best_step(better)
    with pytest.raises(UserError, match="No best save of worse was kept"):
        keep_weights(worse, "best")


def test_a_base_is_found_by_the_weights_that_a_run_began_with_whatever_is_kept_of_it_now(
    tmp_path, three, overfitted
):
    base = prepare(tmp_path / "base", three, "lm", **OVERFIT | {"steps": 20})
    advance(base)
    keep_weights(base, "best")
    settings = OVERFIT | {"steps": 1, "seq_len": 32, "batch_size": 2}
    config = plan_run("lm", str(three), base=str(base), settings=settings, device="cpu")
    assert config.base_weights == file_hash(base / BEST)
    prepare_run(tmp_path / "on", config)
    keep_weights(base, "last")

    events = advance(tmp_path / "on")

    begun = next(event for event in events if event["event"] == "evaluated")["arms"]["off"]["nats"]
    measured = [e for e in read_events(base / "events.jsonl") if e["event"] == "evaluated"]
    assert begun == pytest.approx(min(e["arms"]["off"]["nats"] for e in measured), abs=1e-5)


@pytest.mark.parametrize("with_state", [False, True])
def test_an_export_brings_the_weights_that_are_kept_and_with_a_state_both(
    tmp_path, capsys, three, overfitted, copy, with_state
):
    keep_weights(copy, "best")
    code, events, said = cli_run(
        capsys, "export", copy, "--out", tmp_path / "out", "--json", *["--with-state"] * with_state
    )
    assert code == 0, said
    told = events[-1]

    code, _, said = cli_run(capsys, "import", tmp_path / "out", "--as", tmp_path / "mine", "--json")
    assert code == 0, said

    mine = tmp_path / "mine"
    assert told["event"] == "finished"
    assert weights_file(mine).read_bytes() == (overfitted / BEST).read_bytes()
    card, best = (tmp_path / "out" / "README.md").read_text(), best_step(overfitted)
    assert f"{best} of 60, the best save" in card
    assert f"Measured while training, at step {best}," in card
    if with_state:
        keep_weights(mine, "last")
        assert weights_file(mine).read_bytes() == (overfitted / LAST).read_bytes()
    else:
        assert (mine / LAST).read_bytes() == (overfitted / BEST).read_bytes()
        assert not (mine / BEST).exists()


def test_a_plain_run_folder_of_this_release_is_imported_with_both(tmp_path, capsys, overfitted):
    code, _, said = cli_run(capsys, "import", overfitted, "--as", tmp_path / "mine", "--json")

    assert code == 0, said
    for name in (LAST, BEST):
        assert (tmp_path / "mine" / name).read_bytes() == (overfitted / name).read_bytes()


def test_a_baseline_that_is_used_with_its_best_save_counts_all_of_its_training(
    tmp_path, three, overfitted, copy
):
    whole = tokens_seen(overfitted)
    keep_weights(copy, "best")

    assert tokens_seen(copy) == whole == 60 * 2 * 32


def test_what_a_run_can_be_used_with_is_offered_with_step_and_loss(overfitted, tmp_path, small_folder):
    from retro_demo.jobs.lifecycle import status

    best = best_step(overfitted)

    assert weights_kept(overfitted) == {"last": 60, "best": best}
    (last, _), (good, keep) = weights_choices(overfitted, status(overfitted))
    assert last.startswith("last (step 60, held-out loss ")
    assert good.startswith(f"best (step {best:,}, held-out loss ")
    assert keep == "best"
    assert weights_choices(prepare(tmp_path / "new", small_folder), status(tmp_path / "new")) == []


def test_what_a_baseline_was_before_is_its_base_else_a_better_save_of_its_own(
    tmp_path, three, overfitted, copy
):
    base = prepare(tmp_path / "base", three, "lm", **OVERFIT | {"steps": 80})
    advance(base)
    settings = {"steps": 1}
    config = plan_run("lm", str(three), base=str(base), settings=settings, device="cpu")
    prepare_run(tmp_path / "on", config)

    begun_from, own = earlier_baseline(tmp_path / "on"), earlier_baseline(base)

    assert begun_from is not None
    assert own is not None
    assert (begun_from.run, begun_from.weights) == (base, base / LAST)
    assert (own.run, own.weights) == (base, base / BEST)
    assert step_of(base / BEST) < 80
    keep_weights(base, "best")
    assert earlier_baseline(base) is None
    shutil.rmtree(base)
    assert earlier_baseline(tmp_path / "on") is None


def test_a_baseline_is_judged_by_its_own_record_up_to_the_weights_that_it_is_used_with(copy):
    assert f"at step {best_step(copy):,}," in got_worse(copy)

    keep_weights(copy, "best")
    assert got_worse(copy) == ""

    events = copy / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    begun = next(line for line in lines if line["event"] == "evaluated")
    begun["arms"]["on"]["nats"] = 1.0  # it began from better weights than any that it has saved
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1.000 nats a token at step 0," in got_worse(copy)
