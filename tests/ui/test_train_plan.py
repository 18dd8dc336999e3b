"""The form of the Train tab, called with plain values: what it plans, shows first, saves and loads."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from evaluation_helpers import make_run
from held_back import no_place_free
from study_helpers import QUICK, advance

from benchmarks.made_bases import write_gguf
from retro_demo.cli.main import build_parser
from retro_demo.errors import UserError
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.kinds import KINDS, resolve
from retro_demo.render.run_curves import Curve, curves_over, places
from retro_demo.runs.planning import plan_run
from retro_demo.server import planned, service, studies
from retro_demo.server.planned import STUDY
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.training.study import read_study
from retro_demo.ui.form import BRIEF
from retro_demo.ui.train_plan import GROUPS, group_of
from retro_demo.ui.train_tab import TrainTab


@pytest.fixture
def mine(tmp_path, half_held_out, monkeypatch) -> Workspace:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    opened = Workspace.open(tmp_path / "home", new_code())
    shutil.copytree(half_held_out.folder, opened.folder / "corpora" / "places")
    return opened


@pytest.fixture
def code(mine) -> str:
    return mine.folder.name


@pytest.fixture
def tab(mine) -> TrainTab:
    with gr.Blocks():
        return TrainTab(mine.home, gr.BrowserState(""))


def sent(update: Any) -> dict[str, Any]:
    return update.constructor_args


def values_of(tab: TrainTab, **changed: Any) -> list[Any]:
    """What the page would send of the form of a RETRO, some of it changed, and of the seeds."""
    shown = {name: ", ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in changed.items()}
    form = tab.plan.form("retro")
    given = dict(zip(form.inputs, form.fill(KINDS["retro"].preset_settings("tiny")), strict=True))
    given |= {form.widgets[name]: value for name, value in shown.items() if name != "seeds"}
    given |= {tab.plan.seeds: changed["seeds"]} if "seeds" in changed else {}
    return [given.get(widget, widget.value) for widget in tab.plan.widgets]


def test_whether_retrieval_helps_is_what_the_tab_asks_unless_told_otherwise(tab, mine, code):
    with no_place_free(mine.home):
        begun = tab.start_training(code, "places", STUDY, "tiny", "", "", *values_of(tab, **QUICK, seeds=2))

    assert tab.plan.model.value == STUDY
    (study,) = mine.studies()
    asked = read_study(studies.study_folder(mine, study))
    assert (study, asked.seeds, asked.base) == ("places-study", 2, "")
    assert set(asked.settings) <= set(QUICK)  # what the preset has already is not written down
    assert sent(begun[tab.study.inside])["visible"] is True
    assert "waiting" in begun[tab.study.status]


@pytest.mark.parametrize(
    ("model", "verb"), [(STUDY, "study"), ("retro", "train"), ("lm", "train"), ("marge", "train")]
)
def test_the_command_is_shown_before_the_start_and_parses(tab, code, model, verb):
    shown = tab.plan.guess_named(code, "places", model, "tiny", "", "my run", *values_of(tab, steps=7))

    words = shlex.split(shown[tab.plan.command])
    options = build_parser().parse_args(words[words.index("retro_demo") + 1 :])
    assert verb in words
    assert options.out == Path("my run")
    assert Path(options.corpus).name == "places"
    assert options.steps == (None if model == "marge" else 7)  # the settings of a MARGE are its own


def test_the_estimate_of_a_study_names_its_parts_and_grows_with_the_seeds(tab, code):
    def told(**changed: Any) -> str:
        return tab.plan.guess(code, "places", STUDY, "tiny", "", *values_of(tab, **changed))[
            tab.plan.estimate
        ]

    assert told(steps=30).count("30") >= 3  # base, retrofit, baseline
    assert "<b>3</b> seeds" in told(seeds=3)
    assert "seeds" not in told()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"seq_len": 33}, "multiple of 8"), ({"steps": 0}, "Steps"), ({"lr": -1.0}, "Learning rate")]
    + [({"num_neighbors": 50}, "stores 4"), ({"seeds": 0}, "Seeds"), ({"dim": 7}, "Heads|heads")],
)
def test_values_that_cannot_be_are_told_in_the_place_of_the_estimate(tab, code, changed, said):
    shown = tab.plan.guess(code, "places", STUDY, "tiny", "", *values_of(tab, **changed))

    assert "warning" in shown[tab.plan.estimate]
    assert any(one in shown[tab.plan.estimate] for one in said.split("|"))
    assert shown[tab.plan.command] == ""


def test_saved_settings_fill_the_form_again_and_another_file_does_not(tab, code, tmp_path):
    plan = tab.plan
    file = tmp_path / "saved.json"
    file.write_text(plan.as_text("places", STUDY, "lookup", "", "x", *values_of(tab, steps=77, seeds=3)))

    filled = plan.load_file(code, str(file))

    assert filled[plan.model] == STUDY
    assert sent(filled[plan.preset])["value"] == "lookup"
    assert filled[plan.form("retro").widgets["steps"]] == 77
    assert sent(filled[plan.seeds])["value"] == 3
    assert filled[plan.name] == "x"
    good = json.loads(file.read_text())
    endless = json.dumps(good | {"seeds": float("inf")})
    for text in ("", "[]", "{}", '{"model": "nothing", "settings": {}}', '{"model": "lm", "settings": 3}'):
        file.write_text(text)
        with pytest.raises(UserError, match="no file of saved settings"):
            plan.load_file(code, str(file))
    for text in (endless.replace("Infinity", "1e999"), "[" * 50_000):
        file.write_text(text)
        with pytest.raises(UserError, match="no file of saved settings"):
            plan.load_file(code, str(file))


def test_saved_settings_of_a_corpus_or_base_that_is_not_here_change_nothing(tab, code, mine, tmp_path):
    plan = tab.plan
    make_run(mine.folder / "runs" / "plain", mine.corpus("places").resolve(), "lm")
    file = tmp_path / "saved.json"
    file.write_text(plan.as_text("places", "retrofit", "tiny", "plain", "", *values_of(tab)))
    good = json.loads(file.read_text())

    assert sent(plan.load_file(code, str(file))[plan.base])["value"] == "plain"
    for what, name in (("corpus", "elsewhere"), ("base", "gone")):
        file.write_text(json.dumps(good | {what: name}))
        with pytest.raises(UserError, match=f"{what} '{name}'"):
            plan.load_file(code, str(file))


def test_a_reload_brings_the_form_back_and_what_a_browser_forges_does_not(tab, code):
    plan = tab.plan
    kept = plan.guess_named(code, "places", "lm", "small", "", "", *values_of(tab, steps=55))[plan.kept]
    of, _, text = kept.partition(" ")

    back, forged = plan.bring_back(code, kept), plan.bring_back(code, of + ' {"model": 7}')

    assert (back[plan.model], back[plan.form("lm").widgets["steps"]]) == ("lm", 55)
    assert plan.model not in forged
    assert plan.model not in plan.bring_back(new_code(), kept)  # another workspace has other things
    away = json.loads(text) | {"corpus": "../others", "base": "../others"}
    assert plan.corpus not in plan.bring_back(code, f"{of} {json.dumps(away)}")


def test_each_setting_stands_in_one_of_three_groups_and_long_help_is_one_line(tab):
    kinds = [KINDS[name] for name in ("retro", "reader", "marge")]

    assert {group_of(kind, name) for kind in kinds for name in kind.settings()} == set(GROUPS)
    assert group_of(KINDS["retro"], "lr") == "Optimizer"
    assert group_of(KINDS["retro"], "dim") == "Architecture"
    assert group_of(KINDS["marge"], "num_neighbors") == "Neighbors"
    widgets = tab.plan.form("retro").widgets
    assert BRIEF in widgets["reading"].elem_classes
    assert set(widgets) == set(tab.plan.form("retro").fields)


def test_a_matched_baseline_does_not_become_the_default_base(tab, mine, code):
    base = make_run(mine.folder / "runs" / "plain", mine.corpus("places").resolve(), "lm")
    make_run(mine.folder / "runs" / "plain-baseline", mine.corpus("places").resolve(), "lm", base=str(base))

    offered = sent(tab.plan.offer_bases(code, "places", "retrofit", None)[tab.plan.base])

    assert offered["value"] == "plain"
    of_study = sent(tab.plan.offer_bases(code, "places", STUDY, None)[tab.plan.base])
    assert of_study["value"] == ""
    assert [value for _, value in of_study["choices"]] == ["", "plain", "plain-baseline"]


def test_a_study_on_a_machine_with_a_pretrained_base_begins_with_it(tab, code, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRO_DEMO_SMOLLM2", str(write_gguf(tmp_path / "base.gguf")))

    offered = sent(tab.plan.offer_bases(code, "places", STUDY, None)[tab.plan.base])

    assert offered["value"] == "smollm2"
    assert planned.first_kind(STUDY, "smollm2").name == "reader"
    guess = tab.plan.guess(code, "places", STUDY, "tiny", "smollm2", *values_of(tab))
    assert all(name in guess[tab.plan.estimate] for name in ("reader", "tuned", "verdict"))


def test_what_is_trained_beside_a_base_is_counted_in_the_shape_of_that_base(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRO_DEMO_SMOLLM2", str(write_gguf(tmp_path / "base.gguf")))
    settings = {name: getattr(part, name) for name, part in KINDS["reader"].settings().items()}
    settings |= KINDS["reader"].preset_settings("tiny")

    plan = planned.Plan("places", STUDY, "tiny", "smollm2", settings)
    counted = {one.model: one.parameters for one in planned.trainings(mine, plan)}

    for model, name in (("reader", "retrofit"), ("tuned", "lm")):
        config = plan_run(name, str(mine.corpus("places")), base="smollm2", device="cpu")
        network = resolve(KINDS[model].network)(config.network)
        assert counted[model] == sum(one.numel() for one in network.parameters())


def test_a_run_that_trains_its_base_on_says_so_in_its_name(mine):
    assert service.usual_name("places", "lm", "tiny", "") == "places-lm-tiny"
    assert service.usual_name("places", "lm", "tiny", "plain") == "places-lm-tiny-continued"
    assert service.usual_name("sample:towns", "retrofit", "tiny", "plain") == "towns-retrofit-tiny"


def test_a_study_is_drawn_anew_when_something_changed_and_the_view_goes_along_with_its_runs(tab, mine, code):
    view = tab.study
    assert sent(view.values(code, None, "")[view.inside]) == {"visible": False}
    with no_place_free(mine.home):
        study = studies.start_study(mine, "places", settings=QUICK)
        waiting = view.values(code, study, "")
        assert set(view.values(code, study, waiting[view.shown_before])) == {view.timer, view.shown_before}
        view.stop_study(code, study)
    advance(studies.study_folder(mine, study))

    drawn = view.values(code, study, waiting[view.shown_before])

    assert 'class="verdict' in drawn[view.status]
    assert sent(drawn[view.timer])["active"] is False
    moved, at = view.go_along(code, study, "places-study-base", "places-study-base")
    assert (sent(moved)["value"], at) == ("places-study-retrofit",) * 2
    assert view.go_along(code, study, "places-study-base", at) == [gr.skip(), gr.skip()]  # it was shown
    make_run(mine.folder / "runs" / "another", mine.corpus("places").resolve(), "lm")
    assert view.go_along(code, study, "another", "") == [gr.skip(), at]
    with pytest.raises(UserError, match="not at work"):
        view.stop_study(code, study)
    assert tab.plan.refit(code, STUDY, "tiny", "", [STUDY, ""]) == gr.skip()
    view.delete_study(code, study, "yes")
    assert mine.studies() == []


def test_curves_are_laid_over_each_other_by_steps_tokens_or_time():
    steps = [{"event": "step", "step": n, "loss": 5.0 - n, "tokens_per_second": 50.0} for n in (1, 2, 3)]
    measured = {"event": "evaluated", "step": 2, "arms": {"on": {"nats": 4.0, "bpb": 1.0, "tokens": 9}}}
    curve = Curve("one", JobStatus("finished", [*steps, measured], ""), 3000)

    assert places(curve, "steps")[1].tolist() == [1, 2, 3]
    assert places(curve, "tokens")[1].tolist() == [3000, 6000, 9000]
    assert places(curve, "time")[1].tolist() == pytest.approx([1, 2, 3])
    figure = curves_over([curve, Curve("none", JobStatus("new", [], ""), 3000)], "tokens")
    assert len(figure.data) == 2
    assert list(figure.data[1].x) == [6000]
    assert "tokens read" in figure.layout.meta["alt"]
