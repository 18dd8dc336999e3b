"""The handlers of the Evaluate tab, called as the page calls them, without a page.

What a MARGE shows in place of copies is held by test_evaluate_browser.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from evaluation_helpers import make_run
from held_back import held_jobs, is_asked_to_stop, wait_until
from page_helpers import page_home

from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.server import evaluations, service
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.evaluate_tab import EvaluateHandlers, EvaluateView

KNOBS = {"first_tokens": 150, "max_tokens": 300, "resamples": 200, "prepend": "off"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("tab")) as folder:
        yield folder


@pytest.fixture(scope="module")
def space(home, half_held_out) -> Workspace:
    """A workspace with a run that reads, two baselines of which one fits, and a control."""
    space = Workspace.open(home, new_code()).make()
    corpus = space.folder / "corpora" / "half"
    shutil.copytree(half_held_out.folder, corpus)
    make_run(space.folder / "runs" / "reader", corpus, "retro", seed=1)
    make_run(space.folder / "runs" / "plain", corpus, "lm", seed=1)
    make_run(space.folder / "runs" / "brief", corpus, "lm", seed=1, steps=3)
    make_run(space.folder / "runs" / "chance", corpus, "retro", neighbor_source="random")
    return space


@pytest.fixture(scope="module")
def on(home) -> EvaluateHandlers:
    with gr.Blocks():
        return EvaluateHandlers(home, EvaluateView())


def begun(on: EvaluateHandlers, space: Workspace) -> dict[Any, Any]:
    """What Evaluate gives where the form asks for little."""
    form = on.view.form
    values = [KNOBS.get(name, widget.value) for name, widget in form.widgets.items()]
    return on.start_evaluation(space.folder.name, "reader", "plain", "", "", "database", *values)


def shown_folder(space: Workspace) -> Path:
    folder = evaluations.shown_evaluation(space, "reader")
    assert folder is not None
    return folder


def test_a_run_is_offered_with_the_baseline_and_the_control_that_fit(on, space):
    view, code = on.view, space.folder.name
    shown = on.show_run(code, "reader", "database")

    assert (shown[view.baseline].value, shown[view.control].value) == ("plain", "chance")
    assert shown[view.corpus].value == ""
    (brief,) = [label for label, value in shown[view.baseline].choices if value == "brief"]
    assert brief.startswith("brief (no match: ")
    assert on.show_run(code, None, "database")[view.baseline].choices == []


def test_who_arrives_sees_the_run_of_the_link_else_the_first_one_with_figures(on, space):
    view, code = on.view, space.folder.name
    runs = evaluations.readers(space)
    judged = [run for run in runs if evaluations.measured(space, run)]

    assert on.arrive(code, "reader", "database")[view.run].value == "reader"
    assert judged
    assert on.arrive(code, "nobody", "database")[view.run].value == judged[0]
    assert [value for _, value in on.arrive(code, None, "database")[view.run].choices] == runs


def test_a_look_back_at_the_tab_changes_no_choice_unless_the_run_is_gone(on, space):
    view, code = on.view, space.folder.name

    assert on.refresh(code, "reader", "database", "") == gr.skip()
    kept = on.refresh(code, "reader", "database", "some mark")
    for one in (view.run, view.baseline, view.control, view.corpus):
        assert "value" not in kept[one].constructor_args
    assert on.refresh(code, "gone", "database", "some mark")[view.run].value in evaluations.readers(space)


def test_a_run_without_an_evaluation_has_no_figures_and_is_not_followed(on, space):
    view = on.view
    shown = on.follow(space.folder.name, "chance", "database", "")

    assert shown[view.shown_before] == ""
    assert not shown[view.timer].active
    assert not shown[view.arms].visible
    assert not shown[view.more].visible


def test_an_evaluation_is_begun_stopped_gone_on_with_and_drawn_once(on, space):
    view, code = on.view, space.folder.name
    with held_jobs():
        shown = begun(on, space)
        assert (shown[view.timer].active, shown[view.stop].interactive) == (True, True)
        assert not shown[view.resume].interactive
        on.stop_evaluation(code, "reader")
        assert is_asked_to_stop(shown_folder(space))
    wait_until(lambda: not lifecycle.is_under_way(shown_folder(space)))
    assert on.follow(code, "reader", "database", "")[view.resume].interactive

    assert on.continue_evaluation(code, "reader", "database")[view.timer].active
    *_, last = service.follow(shown_folder(space))
    assert last.state == "finished", last
    shown = on.follow(code, "reader", "database", "")
    assert not shown[view.timer].active
    assert shown[view.arms].visible
    assert shown[view.more].visible
    assert set(shown) == set(view.followed)
    again = on.follow(code, "reader", "database", shown[view.shown_before])
    assert set(again) == {view.status, view.stop, view.resume, view.timer, view.shown_before}
    other = on.follow(code, "reader", "neighbors", shown[view.shown_before])
    assert other[view.leak_table] != shown[view.leak_table]


def test_what_cannot_be_measured_is_refused_in_a_sentence(on, space):
    code = space.folder.name
    with pytest.raises(UserError, match="no evaluation of this run to go on with"):
        on.continue_evaluation(code, "chance", "database")
    with pytest.raises(UserError):
        on.start_evaluation(
            code, "", "", "", "", "database", *(widget.value for widget in on.view.form.inputs)
        )


def test_the_matched_baseline_is_trained_as_a_run_of_its_own(on, space):
    with held_jobs():
        assert "reader-baseline" in on.train_baseline(space.folder.name, "reader")
        lifecycle.kill(space.run("reader-baseline"))
    assert read_any_config(space.run("reader-baseline")).model == "lm"


def test_a_run_that_a_late_answer_has_drawn_gives_way_to_the_one_that_is_chosen(on, space):
    shown = on.redraw_if_stale(
        space.folder.name, "reader", "database", "another evaluation finished 0 1 database False"
    )

    assert shown[on.view.baseline].value == "plain"
    for drawn in ("", "reader evaluation finished 0 1 database False"):
        assert on.redraw_if_stale(space.folder.name, "reader", "database", drawn) == gr.skip()
