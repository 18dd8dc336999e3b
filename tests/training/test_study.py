"""A study answers whether retrieval helps: its parts, their settings, its verdict, and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import run
from reader_helpers import SHAPE, TRAINING, make_base
from study_helpers import QUICK, advance, prepare
from train_helpers import same_weights

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.errors import UserError
from retro_demo.kinds import BEGUN, RETROFIT_LR
from retro_demo.output_folder import kind_of
from retro_demo.runs.checkpoint import read_run_config
from retro_demo.settings import CorpusConfig, TrainConfig
from retro_demo.training.study import Study, prepare_study, read_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory, half_held_out) -> tuple[Path, list[dict[str, Any]]]:
    out = prepare(tmp_path_factory.mktemp("study") / "mine", half_held_out.folder)
    return out, advance(out)


def test_a_study_trains_a_base_a_retrofit_of_it_and_its_matched_baseline(finished):
    out, told = finished
    base, retrofit, baseline = (read_run_config(out / name) for name in ("base", "retrofit", "baseline"))

    assert (base.model, retrofit.model, baseline.model) == ("lm", "retrofit", "lm")
    assert retrofit.base == baseline.base == str((out / "base").resolve())
    assert [one.training.keep for one in (base, retrofit, baseline)] == ["best"] * 3
    stages = list(dict.fromkeys(event["stage"] for event in told if event["event"] == "progress"))
    assert stages == ["base", "retrofit", "baseline", "verdict"] == told[0]["about"]["parts"]


def test_the_verdict_of_one_seed_is_that_of_its_evaluation(finished):
    out, told = finished
    (events,) = out.glob("retrofit/evaluations/*/events.jsonl")
    measured = json.loads(events.read_text().splitlines()[-1])

    assert told[-1]["event"] == "finished"
    for name in ("verdict", "helps", "next"):
        assert told[-1][name] == measured[name]
    assert measured["match"]["unfit"] == ""
    assert told[-1]["seeds"][0]["difference"] == measured["arms"]["on"]["differences"]["baseline"]


def test_what_follows_the_base_keeps_its_presets_schedule_in_proportion_to_the_steps(finished):
    out, _ = finished
    config = read_run_config(out / "retrofit")

    share = QUICK["steps"] / TrainConfig.steps
    assert config.training.steps == round(BEGUN["tiny"]["steps"] * share)
    assert config.training.lr == RETROFIT_LR["tiny"]
    assert read_run_config(out / "baseline").training.lr == BEGUN["tiny"]["lr"]


def test_a_stopped_study_goes_on_to_the_same_weights_and_figures(tmp_path, half_held_out, finished):
    whole, told = finished
    out = prepare(tmp_path / "mine", half_held_out.folder)

    for stage in ("retrofit", "baseline", "verdict"):
        assert advance(out, stop_at=stage)[-1]["event"] == "stopped"
    again = advance(out)

    assert all(same_weights(out / name, whole / name) for name in ("base", "retrofit", "baseline"))
    assert again[-1]["seeds"] == told[-1]["seeds"]


def test_each_seed_is_trained_anew_and_the_verdict_is_averaged(tmp_path, half_held_out):
    out = prepare(tmp_path / "mine", half_held_out.folder, seeds=2, seed=5)

    last = advance(out)[-1]

    assert [one["seed"] for one in last["seeds"]] == [5, 6]
    assert [one["run"] for one in last["seeds"]] == ["retrofit-seed5", "retrofit-seed6"]
    assert not same_weights(out / "base-seed5", out / "base-seed6")
    assert "Averaged over 2 seeds" in last["verdict"]


def test_a_base_of_ones_own_is_not_trained_again(tmp_path, half_held_out, finished):
    base = str(finished[0] / "base")
    out = prepare(tmp_path / "mine", half_held_out.folder, base=base)

    told = advance(out)

    assert told[0]["about"]["parts"] == ["retrofit", "baseline", "verdict"]
    assert read_run_config(out / "retrofit").training.steps == QUICK["steps"]
    assert read_run_config(out / "baseline").base == base


def test_a_pretrained_base_becomes_a_reader_that_is_compared_with_that_base_fine_tuned(
    tmp_path, half_held_out
):
    base = make_base(tmp_path / "base")
    corpus = shutil.copytree(half_held_out.folder, tmp_path / "half")
    settings = SHAPE | TRAINING | {"steps": 2, "eval_every": 2, "save_every": 2, "eval_tokens": 100}
    settings |= {"chunk_len": 8, "query_tokens": 8}
    out = tmp_path / "mine"
    prepare_study(out, Study(str(corpus), base=str(base), settings=settings, device="cpu"))

    told = advance(out)

    assert told[0]["about"]["parts"] == ["reader", "baseline", "verdict"]
    assert told[-1]["against"] == "baseline"
    assert told[-1]["seeds"][0]["run"] == "reader"
    difference = told[-1]["seeds"][0]["difference"]
    assert difference["bpb_ci"][0] < difference["bpb_ci"][1]
    assert "Not decided" not in told[-1]["verdict"]
    reader, tuned = (read_run_config(out / name) for name in ("reader", "baseline"))
    assert (tuned.model, tuned.base_weights) == ("tuned", reader.base_weights)
    assert tuned.training.steps == reader.training.steps
    assert [one.training.keep for one in (reader, tuned)] == ["best"] * 2


def test_runs_may_lie_beside_a_study_under_its_name(tmp_path, half_held_out):
    out = prepare(tmp_path / "studies" / "mine", half_held_out.folder, runs="../../runs")

    parts = read_study(out).parts(out)

    assert [part.folder.relative_to(tmp_path) for part in parts] == [
        Path("runs") / f"mine-{name}" for name in ("base", "retrofit", "baseline", "retrofit")
    ]


@pytest.mark.parametrize(("changes", "word"), [({"steps": 6}, "training"), ({"depth": 3}, "network")])
def test_a_run_that_is_none_of_the_studys_is_not_taken_for_one(tmp_path, half_held_out, changes, word):
    other = prepare(tmp_path / "first", half_held_out.folder, runs="../runs", **changes)
    advance(other, stop_at="retrofit")
    out = prepare(tmp_path / "second", half_held_out.folder, runs="../runs")
    (tmp_path / "runs" / "first-base").rename(tmp_path / "runs" / "second-base")

    with pytest.raises(UserError, match=f"second-base is not the base .* its {word} is another"):
        advance(out)


def test_a_study_is_refused_before_anything_is_written(tmp_path, half_held_out):
    nothing_held = tmp_path / "whole"
    source = half_held_out.folder.parent / "places.jsonl"
    prepare_corpus(nothing_held, [source], CorpusConfig(chunk_len=8, vocab_size=400, holdout=0.0))
    list(build_corpus(nothing_held))

    with pytest.raises(UserError, match="holds out no document"):
        prepare(tmp_path / "mine", nothing_held)
    with pytest.raises(UserError, match="3 heads"):
        prepare(tmp_path / "mine", half_held_out.folder, num_heads=3)
    with pytest.raises(UserError, match="seeds"):
        prepare(tmp_path / "mine", half_held_out.folder, seeds=11)
    with pytest.raises(UserError, match="lessons"):
        prepare(tmp_path / "mine", half_held_out.folder, lessons=3)
    assert not (tmp_path / "mine").exists()


def test_another_study_in_the_same_folder_is_refused_and_the_same_one_goes_on(finished, half_held_out):
    out, _ = finished

    prepare(out, half_held_out.folder)
    with pytest.raises(UserError, match="another study"):
        prepare(out, half_held_out.folder, seed=3)
    assert kind_of(out) == "study"


def test_the_verb_study_tells_the_verdict_last_and_resumes(tmp_path, capsys, half_held_out):
    flags = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", value)]
    flags = [value[0] if isinstance(value, tuple) else value for value in flags]
    out = tmp_path / "mine"

    code, told, _ = run(capsys, "study", "--corpus", half_held_out.folder, "--out", out, *flags, "--json")
    again, retold, _ = run(capsys, "study", "--out", out, "--json")
    refused, _, said = run(capsys, "study", "--out", out, "--seeds", 2)

    assert (code, again, refused) == (0, 0, 2)
    assert told[-1]["event"] == retold[-1]["event"] == "finished"
    assert told[-1]["seeds"] == retold[-1]["seeds"]
    assert "go with a corpus" in said
