"""A visitor's study: begun on a corpus, followed, killed and gone on with; what it needs stays meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest
from held_back import no_place_free
from small_readers import SETTINGS
from study_helpers import QUICK

from benchmarks.made_bases import SHAPE, write_gguf
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.server import cleanup, corpus_changes, evaluations, service, studies
from retro_demo.server.limits import Limits, keep_limits
from retro_demo.server.workspace import Workspace, new_code


@pytest.fixture
def workspace(tmp_path, half_held_out) -> Workspace:
    opened = Workspace.open(tmp_path / "home", new_code())
    shutil.copytree(half_held_out.folder, opened.folder / "corpora" / "places")
    return opened


def wait(wanted: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < until
        time.sleep(0.05)


def ended(workspace: Workspace, study: str) -> str:
    wait(lambda: not studies.study_status(workspace, study).job.under_way)
    return studies.study_status(workspace, study).job.state


def test_a_study_on_a_corpus_just_built_comes_to_a_verdict_with_its_runs_among_the_visitors(workspace):
    study = studies.start_study(workspace, "places", settings=QUICK)

    assert ended(workspace, study) == "finished"
    told = studies.study_status(workspace, study)
    assert study == "places-study"
    assert [part.title for part in told.parts] == ["base", "retrofit", "baseline", "verdict"]
    assert [part.state for part in told.parts] == ["done"] * 4
    assert told.share == 1.0
    assert told.result["verdict"]
    assert {f"places-study-{name}" for name in ("base", "retrofit", "baseline")} <= set(workspace.runs())
    shown = evaluations.measured(workspace, "places-study-retrofit")
    assert shown is not None
    assert shown["verdict"] == told.result["verdict"]


def test_a_study_with_a_pretrained_base_trains_its_baseline_and_so_does_a_button(
    workspace, tmp_path, monkeypatch
):
    monkeypatch.setitem(SHAPE, "max_position_embeddings", 400)
    write_gguf(tmp_path / "smollm2.gguf")
    monkeypatch.setenv("RETRO_DEMO_SMOLLM2", str(tmp_path / "smollm2.gguf"))
    small = {name: value for name, value in SETTINGS.items() if name != "num_neighbors"} | {"steps": 2}

    study = studies.start_study(workspace, "places", settings=small, base="smollm2")

    assert ended(workspace, study) == "finished"
    told = studies.study_status(workspace, study)
    assert [part.title for part in told.parts] == ["reader", "baseline", "verdict"]
    assert "Not decided" not in told.result["verdict"]
    with no_place_free(workspace.home):
        again = evaluations.train_baseline(workspace, f"{study}-reader")
        config = read_any_config(workspace.run(again))
        with pytest.raises(UserError, match="needs no baseline"):
            evaluations.train_baseline(workspace, again)
    assert config.model == "tuned"
    assert config.training == read_any_config(workspace.run(f"{study}-baseline")).training
    offered = dict(evaluations.baselines(workspace, f"{study}-reader"))
    assert offered == {f"{study}-baseline": ""}


def test_a_killed_study_keeps_what_is_done_and_goes_on(workspace):
    study = studies.start_study(workspace, "places", settings=QUICK | {"steps": 60})
    folder = studies.study_folder(workspace, study)
    wait(lambda: studies.study_status(workspace, study).run.endswith("retrofit"))
    lifecycle.kill(folder)
    wait(lambda: not lifecycle.is_running(folder))

    before = studies.study_status(workspace, study)
    assert before.job.state == "interrupted"
    assert before.parts[0].state == "done"
    studies.resume_study(workspace, study)

    assert ended(workspace, study) == "finished"
    with pytest.raises(UserError, match="is finished"):
        studies.resume_study(workspace, study)


def test_what_a_study_at_work_needs_is_neither_renamed_nor_deleted_nor_changed(workspace):
    study = studies.start_study(workspace, "places", settings=QUICK | {"steps": 2000})
    wait(lambda: studies.study_status(workspace, study).parts[0].share > 0)

    with pytest.raises(UserError, match="at work|worked on"):
        evaluations.delete_run(workspace, f"{study}-base")
    with pytest.raises(UserError, match=f"belongs to the study {study}"):
        service.keep_weights(workspace, f"{study}-base", "last")
    with pytest.raises(UserError, match="at work|running|belongs to"):
        service.lengthen_run(workspace, f"{study}-base", 4000)
    with pytest.raises(UserError, match="places"):
        corpus_changes.rename_corpus(workspace, "places", "others")
    with pytest.raises(UserError, match="worked on"):
        studies.delete_study(workspace, study)
    assert studies.stop_study(workspace, study)
    assert ended(workspace, study) == "stopped"

    corpus_changes.rename_corpus(workspace, "places", "others")
    assert studies.study_status(workspace, study).corpus == "others"
    studies.delete_study(workspace, study)
    assert workspace.studies() == []
    assert f"{study}-base" in workspace.runs()
    again = studies.start_study(workspace, "others", settings=QUICK, name=study)
    assert again == f"{study}-2"  # the runs of the deleted one keep their names
    assert cleanup.delete_workspace(workspace.home, workspace.folder.name) > 0


def test_a_study_is_held_to_the_limits_of_the_server(workspace):
    keep_limits(workspace.home, Limits(steps=100))
    with pytest.raises(UserError, match="at most 100"):
        studies.start_study(workspace, "places", settings={"steps": 101})
    keep_limits(workspace.home, Limits(parameters=1000))
    with pytest.raises(UserError, match="parameters"):
        studies.start_study(workspace, "places", settings=QUICK)
    assert workspace.studies() == []


def test_an_unknown_study_or_base_is_refused(workspace):
    with pytest.raises(UserError, match="no study"):
        studies.study_status(workspace, "../runs")
    with pytest.raises(UserError, match="no run"):
        studies.start_study(workspace, "places", base="nothing")
