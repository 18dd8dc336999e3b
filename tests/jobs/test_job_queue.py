"""The queue on disk: whose turn it is, what waits, and what holds when servers and visitors come and go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL as SMALL_CORPUS
from conftest import records, write_jsonl
from held_back import PATIENCE, held_jobs, wait_until
from queue_helpers import run_of, visitor, waiting_job  # noqa: F401
from train_helpers import prepare

from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.jobs.worker import UNLIMITED, Allowance
from retro_demo.render.html_parts import standing
from retro_demo.server import evaluations, scheduler, service
from retro_demo.server.limits import ADDRESS, Limits, keep_limits
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import EvaluateConfig

ONE_TRAINING = Limits(trainings_per_device=1, waiting_per_visitor=2, waiting=4)


def test_visitors_take_turns_whoever_asked_most(home):
    eager, late = visitor(home), visitor(home)
    first, second, third = (waiting_job(home, eager, name) for name in "abc")
    other = waiting_job(home, late, "d")

    assert job_queue.in_order(job_queue.read_queue(home)) == [first, other, second, third]

    with job_queue.queue_lock(home):
        job_queue.mark_started(first)
    assert [t.folder.name for t in job_queue.in_order(job_queue.read_queue(home))] == ["d", "b", "c"]
    with job_queue.queue_lock(home):
        job_queue.drop(first)  # who had a turn is not first again when it is over
    newcomer = waiting_job(home, visitor(home), "e")
    assert [t.folder.name for t in job_queue.in_order(job_queue.read_queue(home))] == ["d", "e", "b", "c"]
    assert job_queue.queue_position(newcomer.folder) == (2, 4)
    assert job_queue.queue_position(third.folder) == (4, 4)
    assert job_queue.queue_position(first.folder) == (0, 0)


def test_an_address_fills_only_its_part_of_the_queue_however_many_workspaces_it_makes(home):
    keep_limits(home, Limits(running=1, waiting=40, waiting_per_visitor=3, waiting_per_address=2))
    there = ADDRESS.set("one")
    try:
        for name in "abc":  # one at work, two that wait
            scheduler.begin(visitor := Workspace.open(home, new_code()), run_of(visitor, name), "train")
        with pytest.raises(UserError, match="2 jobs that were asked for from your address wait .* at most 2"):
            scheduler.begin(visitor := Workspace.open(home, new_code()), run_of(visitor, "d"), "train")
    finally:
        ADDRESS.reset(there)

    elsewhere = Workspace.open(home, new_code())
    folder = run_of(elsewhere, "e")
    scheduler.begin(elsewhere, folder, "train")

    assert lifecycle.status(folder).state == "waiting"
    assert [entry.address for entry in job_queue.read_queue(home)] == ["one", "one", "one", ""]
    for entry in job_queue.read_queue(home):
        lifecycle.stop(entry.folder)


def test_a_second_job_is_not_overtaken_for_ever(home):
    eager = visitor(home)
    waiting_job(home, eager, "a")
    second = waiting_job(home, eager, "b")
    places = []
    for number in range(job_queue.AHEAD + 5):  # one newcomer after the other, and the first in turn leaves
        waiting_job(home, visitor(home), f"n{number}")
        places.append(job_queue.queue_position(second.folder)[0])
        with job_queue.queue_lock(home):
            job_queue.drop(job_queue.in_order(job_queue.read_queue(home))[0])

    assert places[0] == 3
    assert 0 in places  # it had its turn


def test_a_ticket_that_left_is_never_taken_for_a_later_one_of_its_number(home):
    one, other = visitor(home), visitor(home)
    left = waiting_job(home, one, "left")
    left.path.unlink()  # as a kill between two steps could leave it: the folder still points there
    later = waiting_job(home, other, "later")

    assert later.number == left.number
    assert job_queue.waiting_entry(left.folder) is None
    assert not job_queue.cancel(left.folder)
    assert job_queue.waiting_entry(later.folder) == later


def test_a_moved_data_folder_keeps_its_queue(home, tmp_path):
    entry = waiting_job(home, visitor(home), "moved")
    shutil.copytree(home, tmp_path / "elsewhere")

    folder = tmp_path / "elsewhere" / entry.folder.relative_to(home)
    assert job_queue.queue_position(folder) == (1, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_trains_and_the_next_waits_shows_its_place_and_starts_when_there_is_room(home, monkeypatch):
    keep_limits(home, ONE_TRAINING)
    one, other = visitor(home), visitor(home)
    first, second, third = run_of(one, "first"), run_of(other, "second", steps=3), run_of(other, "third")
    scheduler.begin(one, first, "train")
    scheduler.begin(other, second, "train")
    scheduler.begin(other, third, "train")

    status = lifecycle.status(second)
    assert lifecycle.status(first).state == "running"
    assert (status.state, status.queue_position, status.waiting) == ("waiting", 1, 2)
    assert "place 1 of 2" in standing(status)
    with pytest.raises(UserError, match="waits in the queue already"):
        scheduler.begin(other, second, "train")
    with pytest.raises(UserError, match=r"second and third wait .* at most 2"):
        scheduler.begin(other, run_of(other, "fourth"), "train")
    with pytest.raises(UserError, match="waits to be"):
        other.delete("runs", "second")
    assert service.stop_run(other, "third")  # it leaves the queue
    assert lifecycle.status(third).state == "new"
    scheduler.start_next(home)
    assert not lifecycle.is_running(second)

    wait_until(lambda: lifecycle.status(first).of_kind("step"))
    lifecycle.stop(first)
    dispatching = scheduler.keep_dispatching(home)  # also what a restarted server begins with
    wait_until(lambda: lifecycle.status(second).state == "finished")
    assert lifecycle.status(first).state == "stopped"
    wait_until(lambda: not job_queue.read_queue(home))
    assert not lifecycle.stop(third)

    def leave(_home: Path) -> None:
        raise SystemExit  # or it would go on beside all tests that come

    monkeypatch.setattr(scheduler, "start_next", leave)
    dispatching.join(PATIENCE)
    assert not dispatching.is_alive()


@pytest.mark.parametrize("look", ["queue_position", "is_running"])
def test_a_job_that_begins_while_it_is_looked_at_is_never_seen_as_interrupted(home, monkeypatch, look):
    keep_limits(home, Limits(running=1))
    other = visitor(home)
    first, second = waiting_job(home, visitor(home), "first"), run_of(other, "second")
    with job_queue.queue_lock(home):
        job_queue.mark_started(first)
    with lifecycle.claim(first.folder):
        scheduler.begin(other, second, "train")
    module = job_queue if look == "queue_position" else lifecycle
    really = getattr(module, look)

    def then_begins(folder: Path):
        found = really(folder)
        monkeypatch.setattr(module, look, really)
        scheduler.start_next(home)
        return found

    monkeypatch.setattr(module, look, then_begins)

    assert lifecycle.status(second).state in ("waiting", "running")
    assert lifecycle.status(second).state == "running"
    lifecycle.kill(second)


def test_builds_and_trainings_of_one_visitor_wait_for_each_other_where_one_may_work(home, tmp_path):
    keep_limits(home, Limits(running_per_visitor=1))
    workspace = visitor(home)
    run = run_of(workspace, "busy")
    scheduler.begin(workspace, run, "train")
    source = write_jsonl(tmp_path / "p.jsonl", records())

    corpus = service.start_build(workspace, [("p.jsonl", source)], "mine", SMALL_CORPUS)

    assert lifecycle.status(workspace.corpus(corpus)).state == "waiting"
    assert lifecycle.stop(workspace.corpus(corpus))
    lifecycle.kill(run)
    wait_until(lambda: not lifecycle.is_running(run))
    service.resume_build(workspace, corpus)
    assert [s.state for s in service.follow(workspace.corpus(corpus))][-1] == "finished"


def test_a_full_queue_says_so_and_leaves_nothing_behind(home):
    keep_limits(home, Limits(running=1, waiting=1))
    one = visitor(home)
    blocker = run_of(one, "blocker")
    scheduler.begin(one, blocker, "train")
    waiting_job(home, one, "waits")
    other = visitor(home)
    shutil.copytree(home / "places", other.folder / "corpora" / "places")

    with pytest.raises(UserError, match="The queue is full: 1 jobs wait"):
        service.start_run(other, "places", "lm", "tiny", {"seq_len": 32})

    assert not list((other.folder / "runs").glob("*"))


def test_an_evaluation_that_is_refused_hides_none_of_those_before(home):
    keep_limits(home, Limits(running=1, waiting=1))
    one, other, shipped = visitor(home), visitor(home), "sample:factbook-retrofit"
    scheduler.begin(one, run_of(one, "blocker"), "train")
    waiting_job(home, one, "waits")
    brought = evaluations.shown_evaluation(other, shipped)
    place = evaluations.folder_of_evaluations(other, shipped)

    with pytest.raises(UserError, match="The queue is full"):
        evaluations.start_evaluation(other, shipped, EvaluateConfig(seed=1))

    assert brought == other.run(shipped) / "evaluation"
    assert evaluations.shown_evaluation(other, shipped) == brought
    assert not list(place.iterdir())

    earlier, latest = (Request(shipped, settings=EvaluateConfig(seed=seed)) for seed in (1, 2))
    for at, request in ((1_000_000_000, earlier), (1_000_000_100, latest)):
        prepare_evaluation(place / request.key, request)
        (place / request.key / "events.jsonl").write_text('{"event": "stopped"}\n')
        os.utime(place / request.key / "events.jsonl", (at, at))

    with pytest.raises(UserError, match="The queue is full"):
        evaluations.start_evaluation(other, shipped, earlier.settings)

    assert evaluations.shown_evaluation(other, shipped) == place / latest.key
    assert lifecycle.status(place / earlier.key).state == "stopped"


def test_many_at_once_get_no_more_places_than_there_are(home):
    keep_limits(home, Limits(running=1, waiting=2))
    one = visitor(home)
    scheduler.begin(one, run_of(one, "blocker"), "train")
    said: list[str] = []

    def ask(workspace: Workspace, folder: Path) -> None:
        try:
            scheduler.begin(workspace, folder, "train")
        except UserError as error:
            said.append(str(error))

    asked = [(own := visitor(home), run_of(own, "mine")) for _ in range(8)]
    threads = [threading.Thread(target=ask, args=pair) for pair in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(said) == 6
    assert len([entry for entry in job_queue.read_queue(home) if not entry.started]) == 2


def test_a_server_that_died_between_a_start_and_its_note_starts_nothing_twice(home):
    workspace = visitor(home)
    run = run_of(workspace, "started")
    with job_queue.queue_lock(home):
        job_queue.enqueue(home, run, "train", workspace.folder.name, "cpu")
    with held_jobs():  # or it would write down its own start meanwhile
        lifecycle.start(run, "train")
        before = (run / "pid").read_text()

        scheduler.start_next(home)

        assert (run / "pid").read_text() == before
    assert [entry.started for entry in job_queue.read_queue(home)] == [True]
    assert lifecycle.status(run).state == "running"


def test_tickets_of_deleted_folders_and_dead_jobs_are_dropped(home):
    workspace = visitor(home)
    entry = waiting_job(home, workspace, "deleted")
    shutil.rmtree(entry.folder)
    dead = waiting_job(home, workspace, "dead")
    with job_queue.queue_lock(home):
        job_queue.mark_started(dead)

    scheduler.start_next(home)

    assert not job_queue.read_queue(home)
    assert not (dead.folder / job_queue.POINTER).exists()


def test_a_worker_whose_time_is_up_saves_says_why_and_can_go_on(home):
    workspace = visitor(home)
    run = run_of(workspace, "long")
    lifecycle.start(run, "train", Allowance(seconds=2))  # its time begins with its first line

    wait_until(lambda: not lifecycle.is_running(run))

    status = lifecycle.status(run)
    reached = status.of_kind("stopped")[-1]
    assert "at work for 0.0333 minutes" in reached["why"]
    assert reached["why"] in standing(status)
    lifecycle.start(run, "train")
    wait_until(lambda: any(step["step"] > reached["step"] for step in lifecycle.status(run).of_kind("step")))
    lifecycle.stop(run)
    wait_until(lambda: not lifecycle.is_running(run))
    assert lifecycle.status(run).of_kind("stopped")[-1]["why"] == ""


def test_a_worker_that_does_not_leave_is_killed_by_the_server_which_says_so(home, monkeypatch):
    workspace = visitor(home)
    run = run_of(workspace, "stuck")
    scheduler.begin(workspace, run, "train")
    wait_until(lambda: lifecycle.status(run).of_kind("step"))
    keep_limits(home, Limits(minutes=1))
    worker = lifecycle.worker_of(run)
    replace(worker, since=worker.since - 61 - scheduler.GRACE_SECONDS).write(run / "pid")

    scheduler.start_next(home)

    wait_until(lambda: lifecycle.status(run).state == "interrupted")
    assert "at work for more than 1 minutes" in lifecycle.status(run).log_tail


def test_a_worker_may_write_to_as_much_memory_as_it_was_given():
    code = (
        "from retro_demo.jobs.worker import keep_to_allowance\n"
        "keep_to_allowance()\n"
        "import torch\n"
        "print(len(torch.ones(1_000_000)))\n"
        "torch.ones(400_000_000)\n"
    )
    env = os.environ | Allowance(memory=1_200_000_000).to_environment()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)

    assert ended.stdout == "1000000\n"
    assert ended.returncode == 1
    assert "memory" in ended.stderr


def test_a_worker_is_as_nice_as_it_was_told():
    code = (
        "import os\n"
        "from retro_demo.jobs.worker import keep_to_allowance\n"
        "keep_to_allowance()\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    env = os.environ | Allowance(nice=7).to_environment()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)

    assert int(ended.stdout) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)


def test_a_private_worker_is_told_of_no_allowance():
    assert UNLIMITED.to_environment() == {}


@pytest.mark.parametrize("torn", ["ticket", "pointer"])
def test_a_ticket_that_a_full_disk_tore_holds_nobody_up(home, torn):
    broken, other = waiting_job(home, visitor(home), "broken"), waiting_job(home, visitor(home), "other")
    (broken.path if torn == "ticket" else broken.folder / job_queue.POINTER).write_text("")

    assert lifecycle.status(broken.folder).state == "new"
    scheduler.start_next(home)  # neither has a config: their processes end at once
    assert job_queue.waiting_entry(other.folder) is None


def test_a_job_that_cannot_start_holds_up_nobody_behind_it_and_is_logged_once(home, monkeypatch, caplog):
    keep_limits(home, Limits(running=1))
    first, second = waiting_job(home, visitor(home), "first"), waiting_job(home, visitor(home), "second")
    plain, started = lifecycle.start, []

    def start(folder, *rest):
        if folder == first.folder:
            raise OSError("no process can be made")
        started.append(folder)
        return plain(folder, *rest)

    monkeypatch.setattr(lifecycle, "start", start)
    scheduler._note_once.cache_clear()  # of whatever was noted before this test
    for _ in range(3):
        scheduler.start_next(home)

    assert started == [second.folder]
    assert caplog.messages == ["first waits on: no process can be made"]
    assert job_queue.waiting_entry(first.folder) == first  # and it is tried again


def test_a_run_made_longer_that_left_the_queue_can_be_asked_for_again(home):
    one = visitor(home)
    folder = prepare(one.folder / "runs" / "short", home / "places", steps=2)
    scheduler.begin(one, folder, "train")
    wait_until(lambda: lifecycle.status(folder).state == "finished" and not lifecycle.is_running(folder))
    keep_limits(home, ONE_TRAINING)
    scheduler.begin(one, run_of(one, "long"), "train")
    service.lengthen_run(one, "short", 4)
    assert lifecycle.stop(folder)  # it leaves the queue
    service.lengthen_run(one, "short", 4)

    assert lifecycle.status(folder).state == "waiting"
    lifecycle.stop(folder)
    service.stop_run(one, "long")


def test_a_run_is_not_renamed_under_its_waiting_evaluation(home):
    one = visitor(home)
    folder = prepare(one.folder / "runs" / "read", home / "places", steps=2)
    evaluation = folder / "evaluations" / "e"
    evaluation.mkdir(parents=True)
    with job_queue.queue_lock(home):
        job_queue.enqueue(home, evaluation, "evaluate", one.folder.name)

    with pytest.raises(UserError, match="waits to be"):
        one.rename("runs", "read", "other")


@pytest.mark.parametrize("jump", [365 * 24 * 3600, -365 * 24 * 3600])
def test_a_clock_that_is_set_by_a_year_neither_ends_who_is_at_work_nor_holds_up_who_waits(
    home, monkeypatch, jump
):
    keep_limits(home, Limits(trainings_per_device=1, minutes=30))
    one, other = visitor(home), visitor(home)
    first, second = run_of(one, "first"), run_of(other, "second")
    scheduler.begin(one, first, "train")
    scheduler.begin(other, second, "train")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + jump)

    scheduler.start_next(home)
    assert lifecycle.is_running(first)
    assert job_queue.queue_position(second) == (1, 1)

    lifecycle.kill(first)
    wait_until(lambda: not lifecycle.is_running(first))
    scheduler.start_next(home)
    assert lifecycle.is_running(second)
