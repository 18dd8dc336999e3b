"""A baseline that had less training or size is no match, and the reason is said."""

from __future__ import annotations

import pytest
from evaluation_helpers import make_run

from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import baseline_settings, match, tokens_seen
from retro_demo.runs.checkpoint import read_run_config, versions
from retro_demo.runs.planning import plan_run
from retro_demo.runs.provenance import provenance


@pytest.fixture(scope="module")
def runs(tmp_path_factory, half_held_out, small_folder):
    folder, corpus = tmp_path_factory.mktemp("runs"), half_held_out.folder
    made = {"retro": make_run(folder / "retro", corpus, "retro")}
    for name, settings in {
        "lm": {},
        "longer": {"steps": 20},
        "shorter": {"steps": 9},
        "narrower": {"dim": 8},
        "wider": {"dim": 32},
        "nearer": {"seq_len": 16, "steps": 40},
    }.items():
        made[name] = make_run(folder / name, corpus, "lm", **settings)
    made["elsewhere"] = make_run(folder / "elsewhere", small_folder, "lm")
    return made


def test_an_lm_of_the_same_shape_and_training_is_a_match(runs):
    found = match(runs["retro"], runs["lm"])

    assert found.unfit == ""
    assert "10 steps" in found.words
    assert "M parameters" in found.words


@pytest.mark.parametrize("name", ["longer", "wider"])
def test_a_baseline_that_had_more_is_a_match_too(runs, name):
    assert match(runs["retro"], runs[name]).unfit == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [("shorter", "saw only 576 tokens"), ("narrower", "dim 8, not 16"), ("nearer", "16 tokens of context")],
)
def test_a_baseline_that_had_less_is_none_and_why_is_said(runs, name, why):
    assert why in match(runs["retro"], runs[name]).unfit


def test_a_run_that_retrieves_is_refused_as_a_baseline(runs):
    with pytest.raises(UserError, match="retrieves too"):
        match(runs["retro"], runs["retro"])


def test_another_tokenizer_is_refused_because_the_tokens_are_not_the_same(runs):
    with pytest.raises(UserError, match="another tokenizer"):
        match(runs["retro"], runs["elsewhere"])


def test_the_tokens_of_the_base_count_for_a_retrofit(runs, tmp_path, half_held_out):
    base = runs["lm"]
    out = make_run(tmp_path / "retrofit", half_held_out.folder, "lm", steps=5)
    config = read_run_config(out)
    text = (out / "config.json").read_text().replace('"base": ""', f'"base": "{base}"')
    (out / "config.json").write_text(text)

    own = 5 * config.training.batch_size * config.training.seq_len
    assert tokens_seen(out) == own + tokens_seen(base)
    assert "no match" not in match(runs["retro"], out).unfit


def test_what_is_offered_to_be_trained_as_a_baseline_is_a_match(runs, half_held_out, tmp_path):
    settings = baseline_settings(runs["retro"])
    config = plan_run("lm", str(half_held_out.folder), preset="tiny", settings=settings, device="cpu")
    ours = read_run_config(runs["retro"])

    assert config.network.dim == ours.network.dim
    assert config.training.steps == ours.training.steps
    assert config.network.cca_layers == ()
    made = make_run(tmp_path / "baseline", half_held_out.folder, "lm", **settings)
    assert match(runs["retro"], made).unfit == ""


def test_provenance_says_what_is_needed_to_make_a_figure_again(runs):
    origin = provenance(runs["retro"], command="evaluate RUN", seconds=1.234, settings={"seed": 3})
    config = read_run_config(runs["retro"])

    assert origin["steps"] == 10
    assert origin["seed"] == config.training.seed
    assert origin["corpus_fingerprint"] == config.corpus_fingerprint
    assert origin["versions"] == versions()
    assert origin["config"]["network"]["dim"] == 16
    assert (origin["command"], origin["seconds"], origin["settings"]) == ("evaluate RUN", 1.23, {"seed": 3})
    assert "not comparable" in origin["note"]
    assert str(runs["retro"].parent) not in str(origin)
