"""Jobs as folders and processes, and the folders of visitors."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL, records, write_jsonl
from held_back import PATIENCE, held_jobs, wait_until
from train_helpers import prepare

from retro_demo.corpus.building import prepare_corpus
from retro_demo.errors import UserError
from retro_demo.events import Finished, Step, append_event, cut_back, read_events
from retro_demo.jobs import lifecycle
from retro_demo.paths import data_home
from retro_demo.server import corpus_changes, evaluations, service
from retro_demo.server.workspace import Workspace, new_code


def test_a_started_job_runs_stops_on_request_and_can_be_looked_at_all_the_while(
    tmp_path, small_folder, own_process
):
    run = prepare(tmp_path / "run", small_folder, steps=100_000, eval_every=100_000, save_every=100_000)
    assert lifecycle.status(run).state == "new"

    with held_jobs():
        lifecycle.start(run, "train")
        assert lifecycle.status(run).state == "running"  # before the process has even claimed the folder
    wait_until(lambda: lifecycle.status(run).of_kind("step"))
    with pytest.raises(UserError, match="already running"):
        lifecycle.start(run, "train")
    assert lifecycle.stop(run)
    wait_until(lambda: not lifecycle.is_running(run))
    assert lifecycle.status(run).state == "stopped"
    assert not lifecycle.stop(run)


LISTENS = """
import signal, sys

class AtTorch:
    def find_spec(self, name, *_rest):
        if name == "torch":
            sys.meta_path.remove(self)
            heard = signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            ours = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            print("listens" if heard and ours else "does not", file=sys.stderr, flush=True)

sys.meta_path.insert(0, AtTorch())
"""


def test_a_stop_in_the_first_moment_is_a_stop_and_not_a_kill(
    tmp_path, small_folder, monkeypatch, own_process
):
    run = prepare(tmp_path / "run", small_folder, steps=100_000, eval_every=100_000, save_every=100_000)
    (tmp_path / "sitecustomize.py").write_text(LISTENS)
    monkeypatch.syspath_prepend(tmp_path)

    with held_jobs():
        lifecycle.start(run, "train")
        assert lifecycle.stop(run)  # it has not come to its own first line

    wait_until(lambda: not lifecycle.is_running(run))
    assert lifecycle.status(run).state == "stopped"
    assert len(lifecycle.status(run).of_kind("step")) <= 1
    assert "listens" in (run / "log.txt").read_text()  # before the slow imports, of which torch is the first


def test_a_killed_job_is_seen_as_interrupted_at_once_and_can_be_started_again(tmp_path, small_folder):
    run = prepare(tmp_path / "run", small_folder, steps=100_000, eval_every=100_000, save_every=5)
    lifecycle.start(run, "train")
    wait_until(lambda: lifecycle.status(run).of_kind("saved"))

    os.kill(lifecycle.worker_of(run).number, signal.SIGKILL)

    wait_until(lambda: lifecycle.status(run).state == "interrupted")
    saved = lifecycle.status(run).of_kind("saved")[-1]["step"]
    lifecycle.start(run, "train")
    wait_until(lambda: len(lifecycle.status(run).of_kind("started")) == 2)
    lifecycle.stop(run)
    wait_until(lambda: not lifecycle.is_running(run))
    steps = [event["step"] for event in lifecycle.status(run).of_kind("step")]
    assert steps == list(range(1, steps[-1] + 1))
    assert steps[-1] >= saved


def test_a_failed_job_keeps_its_sentence_and_shows_the_end_of_its_log(tmp_path, own_process):
    source = tmp_path / "empty.txt"
    source.write_text("")
    folder = tmp_path / "corpus"
    prepare_corpus(folder, [source], SMALL)

    lifecycle.start(folder, "build-corpus")
    wait_until(lambda: not lifecycle.is_running(folder))

    status = lifecycle.status(folder)
    assert status.state == "failed"
    assert "empty.txt" in status.events[-1]["error"]
    wait_until(lambda: "empty.txt" in lifecycle.status(folder).log_tail)  # it says so as it leaves
    assert "Traceback" not in lifecycle.status(folder).log_tail


def test_a_corpus_is_built_by_a_job_from_its_folder_alone(tmp_path):
    folder = tmp_path / "corpus"
    prepare_corpus(folder, [write_jsonl(tmp_path / "p.jsonl", records())], SMALL)

    lifecycle.start(folder, "build-corpus")
    wait_until(lambda: not lifecycle.is_running(folder))

    assert lifecycle.status(folder).state == "finished"


def test_a_torn_last_line_is_skipped_and_cut_off_on_going_on(tmp_path):
    path = tmp_path / "events.jsonl"
    append_event(path, Step(1, 2.0, 1e-3, 10.0, 1.0))
    with path.open("a") as file:
        file.write('{"event": "st')
    assert [event["step"] for event in read_events(path)] == [1]

    cut_back(path, 1)
    append_event(path, Step(2, 2.0, 1e-3, 10.0, 1.0))

    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_going_on_drops_what_came_after_the_save_and_the_old_ending(tmp_path):
    path = tmp_path / "events.jsonl"
    for step in (1, 2, 3):
        append_event(path, Step(step, 2.0, 1e-3, 10.0, 1.0))
    append_event(path, Finished())

    cut_back(path, 2)

    assert [(event["event"], event["step"]) for event in read_events(path)] == [("step", 1), ("step", 2)]


@pytest.fixture
def workspace(data_folder) -> Workspace:
    return Workspace.open(data_folder, new_code())


@pytest.mark.parametrize(
    "code", ["", "short", "../../../../etc/passwd", "a" * 65, "ümlaut-ümlaut-ümlaut", None]
)
def test_what_is_no_code_opens_no_workspace(data_folder, code):
    with pytest.raises(UserError, match="16 to 64"):
        Workspace.open(data_folder, code)


def test_codes_are_long_and_never_the_same():
    codes = {new_code() for _ in range(100)}

    assert len(codes) == 100
    assert min(map(len, codes)) >= 22


def test_a_workspace_is_closed_to_other_users_of_the_machine(workspace):
    assert workspace.make().folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "name", ["../secret", "a/b", ".hidden", "", "sample:../x", "nothing", "sample:nothing"]
)
def test_an_unknown_or_crooked_run_is_refused_with_a_sentence(workspace, name):
    with pytest.raises(UserError, match=r"There is no (shipped )?run"):
        workspace.run(name)


def test_a_run_outside_the_shipped_ones_is_not_reached_through_sample(workspace):
    from retro_demo.paths import CHECKPOINTS

    outside = workspace.new_folder("runs", "mine")
    (outside / "config.json").write_text("{}")
    for crooked in (f"sample:{os.path.relpath(outside, CHECKPOINTS)}", f"sample:{outside}"):
        with pytest.raises(UserError, match="no shipped run"):
            workspace.run(crooked)
        with pytest.raises(UserError, match="no shipped run"):
            workspace.trace(crooked)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedder": "minilm:/etc"},
        {"embedder": "st:x"},
        {"tokenizer": "/etc/passwd"},
        {"max_megabytes": 9999},
    ],
)
def test_a_visitor_names_no_folder_of_the_server_no_model_and_no_larger_limit(workspace, tmp_path, changes):
    source = write_jsonl(tmp_path / "p.jsonl", records())

    with pytest.raises(UserError, match="on the page choose one of|at most"):
        service.start_build(workspace, [("p.jsonl", source)], "mine", replace(SMALL, **changes))

    assert not list((workspace.folder / "corpora").glob("*"))


def filled(workspace: Workspace, name: str) -> Path:
    folder = workspace.new_folder("runs", name)
    (folder / "config.json").write_text("{}")
    return folder


def test_names_are_made_safe_and_never_collide(workspace):
    names = [
        filled(workspace, wanted).name for wanted in ("My Run!", "my run", "<script>", "..", "", "Ünïcode")
    ]

    assert names == ["my-run", "my-run-2", "script", "unnamed", "unnamed-2", "unicode"]


def test_rename_and_delete(workspace):
    filled(workspace, "one")
    filled(workspace, "two")

    assert workspace.rename("runs", "one", "three") == "three"
    workspace.delete("runs", "two")

    assert [name for name in workspace.runs() if not name.startswith("sample:")] == ["three"]


@pytest.mark.parametrize(("new", "sentence"), [("two", "already"), ("../x", "no name"), ("", "no name")])
def test_a_name_that_is_taken_or_crooked_is_refused(workspace, new, sentence):
    filled(workspace, "one")
    filled(workspace, "two")

    with pytest.raises(UserError, match=sentence):
        workspace.rename("runs", "one", new)


def test_what_ships_is_neither_renamed_nor_deleted(workspace):
    with pytest.raises(UserError, match="ships with the app"):
        workspace.delete("corpora", "sample:factbook2015")


def test_a_corpus_that_a_run_reads_is_not_deleted_under_it(workspace, small_folder):
    corpus = workspace.folder / "corpora" / "mine"
    shutil.copytree(small_folder, corpus)
    prepare(workspace.new_folder("runs", "reader"), corpus)

    with pytest.raises(UserError, match="reader"):
        corpus_changes.delete_corpus(workspace, "mine")

    workspace.delete("runs", "reader")
    corpus_changes.delete_corpus(workspace, "mine")
    assert not corpus.exists()


@pytest.fixture
def leaves_late(monkeypatch) -> None:
    """A process that has told its end is waited for, however slow the machine."""
    monkeypatch.setattr(lifecycle, "LEAVING", PATIENCE)


def test_a_run_begins_at_the_moment_its_corpus_is_told_to_be_built(workspace, tmp_path, leaves_late):
    """Its process takes a while to leave."""
    corpus = service.start_build(
        workspace, [("p.jsonl", write_jsonl(tmp_path / "p.jsonl", records()))], "at once", SMALL
    )
    while lifecycle.status(workspace.corpus(corpus)).state != "finished":
        time.sleep(0.002)

    run = service.start_run(workspace, corpus, "lm", "tiny", {"steps": 1, "dim": 16, "depth": 1}, "at once")

    for _ in service.follow(workspace.run(run)):
        pass
    assert lifecycle.status(workspace.run(run)).state == "finished"


def test_a_run_that_has_told_its_end_can_be_trained_longer_renamed_and_deleted_at_that_moment(
    workspace, small_folder, leaves_late
):
    shutil.copytree(small_folder, workspace.folder / "corpora" / "places")
    run = service.start_run(workspace, "places", "lm", "tiny", {"steps": 1, "dim": 16, "depth": 1}, "first")
    for steps in (2, 3):
        while lifecycle.status(workspace.run(run)).state != "finished":
            time.sleep(0.002)
        service.lengthen_run(workspace, run, steps)
    while lifecycle.status(workspace.run(run)).state != "finished":
        time.sleep(0.002)

    run = evaluations.rename_run(workspace, run, "second")
    evaluations.delete_run(workspace, run)

    assert not list((workspace.folder / "runs").glob("*/config.json"))


def test_what_is_being_worked_on_is_not_deleted(workspace):
    folder = filled(workspace, "one")

    with lifecycle.claim(folder), pytest.raises(UserError, match="being worked on"):
        workspace.delete("runs", "one")

    assert folder.exists()


def test_the_data_folder_is_the_named_one_and_is_made(monkeypatch, tmp_path):
    monkeypatch.setenv("RETRO_DEMO_HOME", str(tmp_path / "deep" / "home"))

    assert data_home() == (tmp_path / "deep" / "home", "")


def test_a_named_data_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RETRO_DEMO_HOME", str(tmp_path / "file" / "below"))

    with pytest.raises(UserError, match="cannot be written"):
        data_home()
