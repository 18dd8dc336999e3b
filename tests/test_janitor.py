"""Deleting: what goes when asked and by age, and what stays."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from test_jobs import wait_until
from test_queue import run_of, visitor

from retro_demo import dispatch, janitor, jobs, tickets
from retro_demo.errors import UserError
from retro_demo.janitor import DAY, clean, delete_workspace
from retro_demo.library import Library
from retro_demo.limits import PUBLIC, Limits, keep_limits
from retro_demo.workspace import Workspace, new_code


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def with_a_text(home: Path) -> Workspace:
    opened = Workspace.open(home, new_code())
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
    passer_by, today = visitor(home), visitor(home)
    aged(passer_by.folder, 1.1)

    assert clean(home, time.time()) == [passer_by.folder.name]
    assert today.folder.exists()


def test_what_is_at_work_or_waits_never_goes(home):
    keep_limits(home, Limits(keep_days=1, trainings_per_device=1))
    busy, waiting = visitor(home), visitor(home)
    run, other = run_of(busy, "run"), run_of(waiting, "run")
    dispatch.begin(busy, run, "train")
    dispatch.begin(waiting, other, "train")
    aged(busy.folder, 9)
    aged(waiting.folder, 9)

    assert clean(home, time.time()) == []
    assert jobs.is_running(run)
    assert jobs.status(other).state == "waiting"


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
    monkeypatch.setattr(janitor, "LEAVE_SECONDS", 1.0)
    keep_limits(home, Limits(trainings_per_device=1))
    leaver, stays = visitor(home), visitor(home)
    running, waiting, other = run_of(leaver, "running"), run_of(leaver, "waiting"), run_of(stays, "other")
    dispatch.begin(leaver, running, "train")
    dispatch.begin(leaver, waiting, "train")
    dispatch.begin(stays, other, "train")
    worker = jobs.worker_of(running)
    assert worker is not None

    assert delete_workspace(home, leaver.folder.name) > 1000

    assert [path.name for path in (home / "workspaces").iterdir()] == [stays.folder.name]
    wait_until(lambda: not worker.is_alive(), 10)
    dispatch.start_next(home)
    assert jobs.is_running(other)  # it was behind them
    assert [ticket.visitor for ticket in tickets.read_tickets(home)] == [stays.folder.name]
    with pytest.raises(UserError, match="no workspace of this code"):
        delete_workspace(home, leaver.folder.name)


def test_what_was_loaded_of_a_workspace_is_forgotten_with_it(home):
    own = visitor(home)
    mine, shared = own.folder / "corpora" / "places", home / "places"
    shutil.copytree(shared, mine)
    library = Library(home)
    kept = library.corpus(shared)
    before = library.corpus(mine)

    library.forget(own.folder)

    assert library.corpus(shared) is kept
    assert library.corpus(mine) is not before
