"""The handlers of the Train tab, called with plain values: no page is served."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from evaluation_helpers import make_run
from held_back import no_place_free
from train_helpers import prepare

from retro_demo.errors import UserError
from retro_demo.kinds import MARGE_PRESETS, PRESETS, READER_PRESETS
from retro_demo.runs.checkpoint import read_run_config
from retro_demo.server import run_actions
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.train_tab import TrainTab
from retro_demo.ui.visit import train_breadcrumb

MARGE = "sample:rights-marge"


@pytest.fixture
def mine(tmp_path, half_held_out, monkeypatch) -> Workspace:
    """A visitor's, with a corpus and two lms on it that have come to their end."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    opened = Workspace.open(tmp_path / "home", new_code())
    shutil.copytree(half_held_out.folder, opened.folder / "corpora" / "places")
    for name in ("first", "second"):
        make_run(opened.folder / "runs" / name, opened.corpus("places").resolve(), "lm")
    return opened


@pytest.fixture
def code(mine) -> str:
    return mine.folder.name


@pytest.fixture
def tab(mine) -> TrainTab:
    with gr.Blocks():
        return TrainTab(mine.home, gr.BrowserState(""))


def sent(update: Any) -> dict[str, Any]:
    """What the page is told of a component."""
    return update.constructor_args


def knobs_of(tab: TrainTab, **changed: Any) -> list[Any]:
    """What the page would send of the knobs, some of them changed."""
    given = {tab.plan.form("lm").widgets[name]: value for name, value in changed.items()}
    return [given.get(widget, widget.value) for widget in tab.plan.widgets]


@pytest.mark.parametrize("model", ["retro", "reader", "marge"])
def test_each_model_shows_its_own_presets_and_knobs(tab, model):
    plan, known = tab.plan, {"retro": PRESETS, "reader": READER_PRESETS, "marge": MARGE_PRESETS}[model]

    values = plan.adapt(model, "base")

    assert sent(values[plan.preset])["choices"] == list(known)
    assert sent(values[plan.preset])["value"] == ("base" if "base" in known else "tiny")
    shown = [
        form
        for form, column in zip(plan.forms.values(), plan.columns.values(), strict=True)
        if sent(values[column])["visible"]
    ]
    assert shown == [plan.form(model)]


@pytest.mark.parametrize(
    ("model", "chosen", "base"), [("retrofit", "second", "second"), ("lm", "second", ""), ("marge", "", "")]
)
def test_a_retrofit_keeps_its_base_and_the_others_begin_from_scratch(tab, code, model, chosen, base):
    offered = sent(tab.plan.offer_bases(code, "places", model, chosen)[tab.plan.base])

    assert offered["value"] == base
    assert offered["visible"] == (model != "marge")
    assert {"first", "second"} <= {value for _, value in offered["choices"]} or model == "marge"


def test_a_base_that_was_trained_meanwhile_is_offered_and_the_chosen_one_stays(tab, code):
    offered = sent(tab.plan.offer_more(code, "places", "retrofit")[tab.plan.base])

    assert ("first", "first") in offered["choices"]
    assert "value" not in offered


def test_a_preset_fills_the_knobs_of_the_chosen_model_and_no_others(tab, code):
    plan = tab.plan

    of_lm, of_marge = plan.fill(code, "lm", "small", None), plan.fill(code, "marge", "small", "first")

    assert list(of_lm) == plan.form("lm").inputs
    assert of_lm[plan.form("lm").widgets["steps"]] == PRESETS["small"]["steps"]
    assert list(of_marge) == plan.form("marge").inputs
    assert of_marge[plan.form("marge").widgets["steps"]] == MARGE_PRESETS["small"]["steps"]


def test_an_estimate_says_in_its_place_what_is_wrong_with_the_plan(tab, code):
    def guess(model: str, base: str, **knobs: Any) -> str:
        values = tab.plan.guess(code, "places", model, "tiny", base, *knobs_of(tab, **knobs))
        return values[tab.plan.estimate]

    assert 'class="estimate"' in guess("retro", "", steps=7)
    assert "<b>7</b>" in guess("retro", "", steps=7)
    assert "warning" in guess("retrofit", "")
    assert "Give a number" in guess("retro", "", steps=None)
    assert 'class="estimate"' in guess("marge", "", steps=None)  # it has knobs of its own


def test_a_run_is_drawn_again_only_when_something_changed(tab, code):
    view = tab.view
    drawn = view.follow(code, "first", "")

    again = view.follow(code, "first", drawn[view.shown_before])

    assert set(again) == {view.timer, view.shown_before}
    assert set(again) < set(drawn) < set(view.outputs)  # the pictures of a MARGE stay as they are
    assert view.follow(code, None, "") == gr.skip()
    assert "No run yet" in view.values(code, "nothing", "")[view.status]


def test_a_shipped_run_is_shown_with_what_its_model_tells_and_cannot_be_stopped_or_gone_on_with(tab, code):
    view = tab.view
    values = view.follow(code, MARGE, "")

    assert "shipped" in values[view.status]
    assert sent(values[view.reindexing.inside]) == {"visible": True}
    assert sent(view.follow(code, "first", "")[view.reindexing.inside]) == {"visible": False}
    assert sent(values[view.stop]) == {"interactive": False}
    assert sent(values[view.resume]) == {"interactive": False, "value": "Resume"}
    assert sent(values[view.weights])["visible"] is False
    assert Path(sent(values[view.download])["value"]).name == "training.json"


def test_a_look_lists_what_there_is_and_changes_no_choice(tab, code):
    plan, view = tab.plan, tab.view

    stays, chosen = tab.refresh(code, "second", "places"), tab.refresh(code, "gone", None)

    assert "value" not in sent(stays[view.run])
    assert "value" not in sent(stays[plan.corpus])
    assert sent(chosen[view.run])["value"] in ("first", "second")
    assert sent(chosen[plan.corpus])["value"] in sent(chosen[plan.corpus])["choices"][0]
    assert set(stays) == {plan.corpus, view.run, tab.listing}
    assert tab.look_again(code, None, "places") == gr.skip()
    assert tab.look_again(code, "second", "places")[tab.listing] == stays[tab.listing]


def test_a_run_is_begun_stopped_gone_on_with_and_trained_longer(tab, code, mine):
    view, run = tab.view, "third-one"
    with no_place_free(mine.home):
        begun = tab.start_training(code, "places", "retro", "tiny", "Third one", "", *knobs_of(tab, steps=9))
        tab.stop_training(code, run)
        ended = view.values(code, run, "")
        gone_on = tab.continue_training(code, run, "places")
        with pytest.raises(UserError, match="running or waits"):
            tab.lengthen(code, run, "places", 20.0)
        tab.stop_training(code, run)
        assert read_run_config(mine.run(run)).training.steps == 9
        longer = tab.lengthen(code, run, "places", 20.0)

    assert read_run_config(mine.run(run)).training.steps == 20
    assert sent(begun[view.run])["value"] == run
    followed = [sent(values[view.timer])["active"] for values in (begun, ended, gone_on, longer)]
    assert followed == [True, False, True, True]
    assert [sent(values[view.resume])["interactive"] for values in (begun, ended)] == [False, True]


def test_a_run_is_used_with_the_weights_that_are_chosen(tab, code, mine):
    prepare(mine.folder / "runs" / "young", mine.corpus("places"))

    values = tab.choose_weights(code, "young", "places", "best")

    assert sent(values[tab.view.run])["value"] == "young"
    assert sent(values[tab.view.weights])["value"] == "best"
    assert read_run_config(mine.run("young")).training.keep == "best"


def test_a_run_is_renamed_and_deleted_once_its_visitor_is_sure(tab, code, mine):
    renamed = tab.rename_run(code, "second", "places", "other-name")
    tab.delete_run(code, "first", "no")
    assert {"first", "other-name"} < set(mine.runs())

    left = tab.delete_run(code, "first", "yes")

    assert sent(renamed[tab.view.run])["value"] == "other-name"
    assert "first" not in mine.runs()
    assert sent(left[tab.view.run])["value"] == "other-name"


def test_a_run_goes_out_and_comes_in_under_another_name(tab, code, mine):
    share = tab.share
    path = sent(share.export(code, "first", ["corpus"], " mit ")[share.made])["value"]

    values = share.import_archive(code, "first", path, " Again ")

    assert [name for name in zipfile.ZipFile(path).namelist() if name.startswith("corpus/")]
    assert values[share.file] is None
    assert sent(values[tab.view.run])["value"] == "again"
    assert "again" in values[share.brought]
    with pytest.raises(UserError, match="nothing to import"):
        share.import_archive(code, "first", None, "")


def test_the_page_keeps_no_token_whether_a_push_ends_well_or_not(tab, code, monkeypatch):
    share, given = tab.share, {}

    def push(_workspace: Workspace, run: str, repo: str, token: str, **how: Any) -> str:
        given.update(how, run=run, repo=repo, token=token)
        return "https://hub/me/it"

    monkeypatch.setattr(run_actions, "push_run", push)
    first, last = share.push_run(code, "first", " me/it ", " hf_token ", True, ["state"], "")
    monkeypatch.undo()
    refused = share.push_run(code, "first", "me/it", "", True, [], "")

    assert first == next(refused) == {share.pushed: "", share.token: ""}
    assert last[share.token] == ""
    assert "https://hub/me/it" in last[share.pushed]
    assert (given["run"], given["repo"]) == ("first", "me/it")
    assert (given["token"], given["private"], given["with_state"]) == ("hf_token", True, True)
    assert given["with_corpus"] is False
    with pytest.raises(UserError, match="no token of the Hub"):
        next(refused)


def test_what_is_of_another_corpus_than_the_chosen_one_is_greyed_and_not_named_at_the_top(tab, mine, code):
    greyed = tab.grey_others(code, "places", MARGE, None)
    own = tab.grey_others(code, "places", "first", None)

    assert sent(greyed[tab.shown])["elem_classes"] == ["others"]
    assert "not on places" in greyed[tab.elsewhere]
    assert (sent(own[tab.shown])["elem_classes"], own[tab.elsewhere]) == ([], "")
    assert "rights-marge" not in train_breadcrumb(mine, MARGE, "places")
    assert "places" in train_breadcrumb(mine, MARGE, "places")
    assert "first" in train_breadcrumb(mine, "first", "places")


def test_a_corpus_just_built_takes_the_place_of_the_chosen_one_once(tab, mine, code):
    shutil.copytree(mine.corpus("places"), mine.folder / "corpora" / "towns")
    looked = tab.look_again(code, "first", "places", "towns")
    later = tab.look_again(code, "first", "places", "")

    assert sent(looked[tab.plan.corpus])["value"] == "towns"
    assert "value" not in sent(later[tab.plan.corpus])
    assert (tab.still_building(code, "towns"), tab.still_building(code, "coming")) == ("", "coming")
