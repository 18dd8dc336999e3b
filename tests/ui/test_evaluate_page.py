"""Evaluations from the page's side: the endpoint, the visitor's folders, and what is offered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_helpers import make_run
from gradio_client import Client
from gradio_client.exceptions import AppError
from held_back import held_jobs, leaving
from marge_helpers import built, make_marge_run, translated
from page_helpers import opened_client, page_home

from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation
from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import read_run_config, write_run_config
from retro_demo.server import evaluations, service
from retro_demo.server.limits import PRIVATE, Limits, keep_limits
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import EvaluateConfig

QUICK = EvaluateConfig(first_tokens=150, max_tokens=300, resamples=200, prepend="off")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("page")) as folder:
        yield folder


@pytest.fixture(scope="module")
def code() -> str:
    return new_code()


@pytest.fixture(scope="module")
def workspace(home, code, half_held_out) -> Workspace:
    space = Workspace.open(home, code)
    corpus = half_held_out.folder
    make_run(space.folder / "runs" / "reader", corpus, "retro", seed=1)
    make_run(space.folder / "runs" / "plain", corpus, "lm", seed=1)
    make_run(space.folder / "runs" / "brief", corpus, "lm", seed=1, steps=3)
    make_run(space.folder / "runs" / "chance", corpus, "retro", neighbor_source="random")
    translations = built(home.parent / "three", translated())
    make_marge_run(space.folder / "runs" / "several", translations.folder)
    return space


@pytest.fixture(scope="module")
def client(home, workspace) -> Iterator[Client]:
    with opened_client(home) as opened:
        yield opened


def finished(folder: Path) -> lifecycle.JobStatus:
    *_, last = service.follow(folder)
    assert last.state == "finished", last
    return last


def test_the_endpoint_measures_and_ends_with_a_verdict_that_names_no_folder(client, code):
    job = client.submit(code, "reader", "plain", "", "", 300, 0, api_name="/evaluate")
    job.result(timeout=240)
    events = job.outputs()

    assert events[-1]["event"] == "finished"
    assert {"on", "off", "baseline", "shuffled"} <= set(events[-1]["arms"])
    assert events[-1]["verdict"]
    assert "/workspaces/" not in json.dumps(events)
    assert any(event["event"] == "refined" for event in events)


def test_the_endpoint_measures_a_marge_without_any_baseline(client, code):
    job = client.submit(code, "several", "", "", "", 0, 0, api_name="/evaluate")
    job.result(timeout=240)
    last = job.outputs()[-1]

    assert last["event"] == "finished"
    assert {"on", "own", "random", "off", "shuffled"} <= set(last["arms"])
    assert last["helps"] is True
    assert "/workspaces/" not in json.dumps(last)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("plain", ""), "plain lm"),
        (("reader", "reader"), "retrieves too"),
        (("nobody", ""), "no run"),
        (("several", "plain"), "so baseline means nothing here"),
    ],
)
def test_the_endpoint_says_what_is_wrong_in_a_sentence(client, code, values, words):
    with pytest.raises(AppError, match=words):
        client.submit(code, *values, api_name="/evaluate").result(timeout=120)


def test_an_evaluation_goes_on_as_a_process_and_is_found_again(workspace):
    folder = evaluations.start_evaluation(workspace, "reader", QUICK, baseline="plain")

    assert evaluations.shown_evaluation(workspace, "reader") == folder
    result = evaluations.latest_result(finished(folder))
    assert result is not None
    assert result["counts"]["tokens"] >= 300
    with pytest.raises(UserError, match="no evaluation of this run to go on with"):
        evaluations.resume_evaluation(workspace, "reader")


def test_figures_stay_where_their_repetition_leaves_the_queue_before_it_began(workspace):
    folder = evaluations.start_evaluation(workspace, "reader", QUICK, baseline="plain")
    figures = evaluations.latest_result(finished(folder))
    keep_limits(workspace.home, Limits(running=1, waiting=5))
    with held_jobs():
        busy = evaluations.start_evaluation(workspace, "chance", replace(QUICK, seed=5))
        again = evaluations.start_evaluation(workspace, "reader", QUICK, baseline="plain")
        waiting = lifecycle.status(again)
        assert evaluations.stop_evaluation(workspace, "reader")
        lifecycle.kill(busy)
    keep_limits(workspace.home, PRIVATE)

    assert again == folder
    assert (waiting.state, waiting.events) == ("waiting", [])
    assert figures is not None
    assert evaluations.measured(workspace, "reader") == figures
    assert lifecycle.status(folder).state == "finished"


def test_the_same_evaluation_again_is_the_same_folder_and_says_the_same(workspace):
    first = evaluations.start_evaluation(workspace, "reader", QUICK, baseline="plain")
    before = evaluations.latest_result(finished(first))
    second = evaluations.start_evaluation(workspace, "reader", QUICK, baseline="plain")
    after = evaluations.latest_result(finished(second))

    assert first == second
    assert before is not None
    assert after is not None
    assert before["arms"] == after["arms"]


def test_only_the_latest_evaluations_of_a_run_stay(workspace):
    parent = evaluations.folder_of_evaluations(workspace, "chance")
    for number in range(evaluations.KEPT + 2):
        (parent / str(number)).mkdir(parents=True)
        (parent / str(number) / "config.json").write_text("{}")
    newest = evaluations.start_evaluation(workspace, "chance", QUICK)

    assert len(list(parent.iterdir())) == evaluations.KEPT
    finished(newest)


def test_matching_baselines_are_offered_first_and_the_others_with_their_reason(workspace):
    found = dict(evaluations.baselines(workspace, "reader"))

    assert found["plain"] == ""
    assert "tokens in training" in found["brief"]
    assert evaluations.baselines(workspace, "reader")[0][0] == "plain"


def test_runs_that_read_are_offered_and_those_trained_with_random_neighbors_as_controls(workspace):
    assert {"reader", "chance"} <= set(evaluations.readers(workspace))
    assert not {"plain", "brief"} & set(evaluations.readers(workspace))
    assert evaluations.controls(workspace, "reader") == ["chance"]


def test_an_evaluation_is_deleted_with_its_run(workspace, half_held_out):
    make_run(workspace.folder / "runs" / "gone", half_held_out.folder, "retro")
    folder = evaluations.start_evaluation(workspace, "gone", QUICK)
    finished(folder)
    evaluations.delete_run(workspace, "gone")

    assert not folder.exists()


def test_a_run_that_an_evaluation_measures_beside_another_is_neither_renamed_nor_deleted(workspace):
    needed = Request(*(str(workspace.run(name)) for name in ("reader", "plain", "chance")))
    folder = evaluations.folder_of_evaluations(workspace, "reader") / needed.key
    prepare_evaluation(folder, needed)

    with lifecycle.claim(folder):
        for run in ("plain", "chance"):
            for work in (
                lambda run=run: evaluations.rename_run(workspace, run, "another"),
                lambda run=run: evaluations.delete_run(workspace, run),
            ):
                with pytest.raises(UserError, match=f"The evaluation of reader measures {run} too. Wait"):
                    work()
        assert evaluations.rename_run(workspace, "brief", "short") == "short"
    with leaving(folder):
        evaluations.rename_run(workspace, "plain", "another")
    for old, new in (("short", "brief"), ("another", "plain")):
        assert evaluations.rename_run(workspace, old, new) == new
    shutil.rmtree(folder)


def test_a_run_from_which_a_training_is_about_to_begin_is_neither_renamed_nor_deleted(
    workspace, half_held_out
):
    made = make_run(workspace.folder / "runs" / "later", half_held_out.folder, "lm", steps=2)
    write_run_config(made, replace(read_run_config(made), base=str(workspace.run("plain"))))

    with lifecycle.claim(made), pytest.raises(UserError, match="later begins from plain. Wait"):
        evaluations.delete_run(workspace, "plain")

    with leaving(made):
        evaluations.rename_run(workspace, "plain", "another")
    evaluations.rename_run(workspace, "another", "plain")
    evaluations.delete_run(workspace, "later")


def test_the_figures_of_a_run_are_those_on_its_own_corpus_and_never_those_of_a_swapped_one(
    workspace, half_held_out
):
    make_run(workspace.folder / "runs" / "both", half_held_out.folder, "retro", seed=1)
    shutil.copytree(half_held_out.folder, workspace.folder / "corpora" / "twin")
    assert evaluations.measured(workspace, "both") is None

    own = finished(evaluations.start_evaluation(workspace, "both", QUICK, baseline="plain"))
    figures = evaluations.latest_result(own)
    assert figures is not None
    assert evaluations.measured(workspace, "both") == figures
    weights = workspace.run("both") / "model.safetensors"
    weights.rename(kept := weights.with_name("kept"))
    shutil.copyfile(workspace.run("reader") / "model.safetensors", weights)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")  # other ones than were measured
    assert evaluations.of_other_weights(workspace, "both", figures)
    assert evaluations.measured(workspace, "both") is None
    kept.replace(weights)
    assert evaluations.measured(workspace, "both") == figures

    folder = evaluations.start_evaluation(workspace, "both", QUICK, baseline="plain", corpus="twin")
    assert evaluations.latest_result(finished(folder)) is not None
    assert evaluations.shown_evaluation(workspace, "both") == folder
    assert evaluations.measured(workspace, "both") is None


def test_stopping_what_does_not_run_does_nothing(workspace):
    assert not evaluations.stop_evaluation(workspace, "reader")
