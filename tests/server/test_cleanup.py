"""Deleting: what goes when asked and by age, and what stays."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from held_back import wait_until
from queue_helpers import run_of, visitor
from sharing_helpers import trained  # noqa: F401

from retro_demo.errors import UserError
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.server import cleanup, scheduler
from retro_demo.server.cleanup import DAY, clean, delete_workspace, keep_ages, make_room
from retro_demo.server.limits import PUBLIC, Limits, keep_limits
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, disk_use, new_code
from retro_demo.ui import uploads


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def with_a_text(home: Path) -> Workspace:
    opened = Workspace.open(home, new_code()).make()
    (opened.folder / "traces").mkdir(parents=True, exist_ok=True)
    (opened.folder / "traces" / "text.json").write_text("{}")
    return opened


def test_a_workspace_that_nobody_used_for_the_days_of_the_limits_goes_and_others_stay(home):
    keep_limits(home, Limits(keep_days=14))
    old, new = with_a_text(home), with_a_text(home)
    aged(old.folder, 14.1)
    aged(new.folder, 13.9)

    assert clean(home, time.time()) == [old.folder.name]

    assert not old.folder.exists()
    assert (new.folder / "traces" / "text.json").exists()
    assert [path.name for path in (home / "workspaces").iterdir()] == [new.folder.name]


def test_on_a_private_server_nothing_goes_by_age(home):
    old = with_a_text(home)
    aged(old.folder, 4000)

    assert clean(home, time.time()) == []
    assert old.folder.exists()


def test_a_visit_counts_as_use(home):
    keep_limits(home, PUBLIC)
    old = with_a_text(home)
    aged(old.folder, 100)

    Workspace.open(home, old.folder.name)

    assert clean(home, time.time()) == []


def test_an_empty_workspace_goes_after_a_day(home):
    keep_limits(home, PUBLIC)
    passer_by, today = visitor(home).make(), visitor(home).make()
    aged(passer_by.folder, 1.1)

    assert clean(home, time.time()) == [passer_by.folder.name]
    assert today.folder.exists()


def test_what_is_at_work_or_waits_never_goes(home):
    keep_limits(home, Limits(keep_days=1, trainings_per_device=1))
    busy, waiting = visitor(home), visitor(home)
    run, other = run_of(busy, "run"), run_of(waiting, "run")
    scheduler.begin(busy, run, "train")
    scheduler.begin(waiting, other, "train")
    aged(busy.folder, 9)
    aged(waiting.folder, 9)

    assert clean(home, time.time()) == []
    assert lifecycle.is_running(run)
    assert lifecycle.status(other).state == "waiting"


def test_old_uploads_and_torn_writes_go_and_fresh_ones_stay(home):
    own = with_a_text(home)
    torn = own.folder / "traces" / "events.tmp"
    torn.write_text("half")
    fresh = own.folder / "traces" / "fresh.tmp"
    fresh.write_text("half")
    for name in ("old", "new"):
        (home / "uploads" / name).mkdir(parents=True)
        (home / "uploads" / name / "corpus.txt").write_text("text")
    aged(torn, 2)
    aged(home / "uploads" / "old", 2)

    assert sorted(clean(home, time.time())) == ["events.tmp", "old"]

    assert fresh.exists()
    assert (home / "uploads" / "new" / "corpus.txt").exists()
    assert (own.folder / "traces" / "text.json").exists()


def test_delete_my_data_ends_the_jobs_first_and_leaves_nothing(home, monkeypatch):
    monkeypatch.setattr(cleanup, "LEAVE_SECONDS", 1.0)
    keep_limits(home, Limits(trainings_per_device=1))
    leaver, stays = visitor(home), visitor(home)
    running, waiting, other = run_of(leaver, "running"), run_of(leaver, "waiting"), run_of(stays, "other")
    scheduler.begin(leaver, running, "train")
    scheduler.begin(leaver, waiting, "train")
    scheduler.begin(stays, other, "train")
    worker = lifecycle.worker_of(running)
    assert worker is not None

    assert delete_workspace(home, leaver.folder.name) > 1000

    assert [path.name for path in (home / "workspaces").iterdir()] == [stays.folder.name]
    wait_until(lambda: not worker.is_alive())
    scheduler.start_next(home)
    assert lifecycle.is_running(other)  # it was behind them
    assert [entry.visitor for entry in job_queue.read_queue(home)] == [stays.folder.name]
    with pytest.raises(UserError, match="no workspace of this code"):
        delete_workspace(home, leaver.folder.name)


def test_what_was_loaded_of_a_workspace_is_forgotten_with_it(home):
    own = visitor(home)
    mine, shared = own.folder / "corpora" / "places", home / "places"
    shutil.copytree(shared, mine)
    cache = ModelCache(home)
    kept = cache.corpus(shared)
    before = cache.corpus(mine)

    cache.forget(own.folder)

    assert cache.corpus(shared) is kept
    assert cache.corpus(mine) is not before


def test_a_run_that_ships_is_forgotten_where_it_was_read_with_the_corpus_of_who_goes(home, trained):  # noqa: F811
    own = visitor(home)
    mine = shutil.copytree(home / "places", own.folder / "corpora" / "places")
    cache = ModelCache(home)
    plain, swapped = cache.run(trained), cache.run(trained, mine)

    cache.forget(own.folder)

    assert cache.run(trained) is plain
    assert cache.run(trained, mine) is not swapped


def test_what_was_loaded_while_the_jobs_of_who_goes_ended_is_forgotten_too(home, monkeypatch):
    own = visitor(home)
    mine = shutil.copytree(home / "places", own.folder / "corpora" / "places")
    cache = ModelCache(home)
    ending = cleanup.delete_workspace
    before = []

    def while_a_request_comes(*values):
        before.append(cache.corpus(mine))
        return ending(*values)

    monkeypatch.setattr(uploads, "delete_workspace", while_a_request_comes)
    uploads.forget_visitor(cache, own.folder.name)

    places = shutil.copytree(home / "places", home / "there")
    shutil.copytree(places, mine)  # the same files, with the same dates
    assert cache.corpus(mine) is not before[0]


def test_a_workspace_that_cannot_be_cleaned_keeps_no_other_from_it(home, monkeypatch, caplog):
    keep_limits(home, Limits(keep_days=1, megabytes_of_all=1))
    broken, *others = (with_a_text(home) for _ in range(3))
    for one in (broken, *others):
        (one.folder / "traces").mkdir(parents=True, exist_ok=True)
        (one.folder / "traces" / "text.json").write_bytes(b"x" * 1_000_000)
    remove = cleanup.delete_noted

    def of_a_broken_disk(folder):
        if folder == broken.folder:
            raise OSError(5, "Input/output error")
        remove(folder)

    monkeypatch.setattr(cleanup, "delete_noted", of_a_broken_disk)
    aged(broken.folder, 5)
    aged(others[0].folder, 4)
    aged(others[1].folder, 0.5)

    assert make_room(home, time.time()) == [one.folder.name for one in others]
    again = with_a_text(home)
    aged(again.folder, 4)
    assert clean(home, time.time()) == [again.folder.name]
    assert broken.folder.exists()
    assert "could not be cleaned" in caplog.text


def holding(home: Path, megabytes: float, hours: float) -> Workspace:
    """A workspace with so much in it that nobody used for so long."""
    opened = visitor(home)
    (opened.folder / "traces").mkdir(parents=True, exist_ok=True)
    (opened.folder / "traces" / "text.json").write_bytes(b"x" * int(megabytes * 1e6))
    aged(opened.folder, hours / 24)
    return opened


def test_where_all_hold_too_much_those_that_nobody_used_for_longest_go_until_it_fits(home):
    keep_limits(home, Limits(megabytes_of_all=5))
    late, early, middle = holding(home, 2, 3), holding(home, 2, 9), holding(home, 2, 6)
    small = holding(home, 0.5, 12)

    assert make_room(home, time.time()) == [small.folder.name, early.folder.name]
    assert make_room(home, time.time()) == []

    assert late.folder.exists()
    assert middle.folder.exists()
    keep_limits(home, Limits(megabytes_of_all=0))
    assert make_room(home, time.time()) == []


def test_a_workspace_that_its_visitor_deletes_meanwhile_hinders_no_room(home, monkeypatch):
    keep_limits(home, Limits(megabytes_of_all=1))
    leaving, idle = holding(home, 2, 9), holding(home, 2, 3)
    measure = cleanup.disk_use

    def deleted_when_measured(folder: Path) -> int:
        used = measure(folder)
        if folder == leaving.folder:
            shutil.rmtree(folder)
        return used

    monkeypatch.setattr(cleanup, "disk_use", deleted_when_measured)

    assert make_room(home, time.time()) == [idle.folder.name]


def test_no_room_is_made_of_what_is_at_work_waits_or_was_used_in_the_last_hour(home):
    keep_limits(home, Limits(megabytes_of_all=1, trainings_per_device=1))
    busy, waiting = holding(home, 2, 30), holding(home, 2, 29)
    scheduler.begin(busy, run_of(busy, "run"), "train")
    scheduler.begin(waiting, run_of(waiting, "run"), "train")
    aged(busy.folder, 2)
    aged(waiting.folder, 2)
    used, idle = holding(home, 2, 1.9), holding(home, 2, 3)

    assert make_room(home, time.time()) == [idle.folder.name]

    assert all(one.folder.exists() for one in (busy, waiting, used))


@pytest.mark.parametrize("jump", [365 * DAY, -365 * DAY])
def test_a_clock_that_is_set_by_a_year_makes_nothing_older_or_younger(home, jump):
    keep_limits(home, Limits(keep_days=14))
    now = time.time()
    fresh, old, upload = with_a_text(home), with_a_text(home), home / "uploads" / "one"
    upload.mkdir(parents=True)
    for path, days in ((fresh.folder, 3), (old.folder, 13.99), (upload, 0.5)):
        aged(path, days)
    keep_ages(home, now, 0)

    set_to = now + jump + 600
    opened = with_a_text(home)  # a page that is opened between the setting and the look
    os.utime(opened.folder, (set_to - 1, set_to - 1))
    keep_ages(home, set_to, 600)

    assert clean(home, set_to) == []
    assert clean(home, set_to + 0.1 * DAY) == [old.folder.name]
    assert sorted(clean(home, set_to + 12 * DAY)) == sorted(["one", fresh.folder.name])
    assert opened.folder.exists()


def test_the_days_that_no_server_was_here_make_nothing_older(home):
    keep_limits(home, Limits(keep_days=14))
    now = time.time()
    own = with_a_text(home)
    aged(own.folder, 10)
    keep_ages(home, now, 0)

    keep_ages(home, now + 30 * DAY, 0)  # the first look of another server

    assert clean(home, now + 30 * DAY) == []
    assert clean(home, now + 35 * DAY) == [own.folder.name]


def test_time_that_passes_makes_things_older(home):
    keep_limits(home, Limits(keep_days=14))
    own, now = with_a_text(home), time.time()
    for day in range(16):
        keep_ages(home, now + day * DAY, DAY if day else 0)

    assert clean(home, now + 15 * DAY) == [own.folder.name]


def test_a_visit_after_the_clock_was_set_back_dates_the_workspace_anew(home):
    own = with_a_text(home)
    aged(own.folder, -365)

    Workspace.open(home, own.folder.name)

    assert abs(own.folder.stat().st_mtime - time.time()) < 600


@pytest.mark.parametrize("kind", [".export-", ".import-"])
def test_what_a_killed_server_staged_for_a_share_goes_after_a_day(home, kind):
    own = with_a_text(home)
    for name, days in (("old", 1.1), ("new", 0.9)):
        staged = own.folder / f"{kind}{name}"
        (staged / "export").mkdir(parents=True)
        (staged / "export" / "model.safetensors").write_bytes(b"half")
        aged(staged, days)

    assert clean(home, time.time()) == [f"{kind}old"]

    assert (own.folder / f"{kind}new" / "export" / "model.safetensors").exists()


def test_a_folder_that_goes_while_its_workspace_is_measured_hinders_nobody(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"12345")
    stat = os.stat

    def while_others_go(path, *values, **named):
        found = stat(path, *values, **named)
        if Path(path).name == "file" and tmp_path in Path(path).parents:  # other threads look elsewhere
            for name in set("abc") - {Path(path).parent.name}:
                shutil.rmtree(tmp_path / name, ignore_errors=True)
        return found

    monkeypatch.setattr(os, "stat", while_others_go)

    assert disk_use(tmp_path) == 5
