"""What tests of queue share with others."""

from __future__ import annotations

from pathlib import Path

from train_helpers import prepare

from retro_demo.jobs import job_queue
from retro_demo.server.workspace import Workspace, new_code

LONG = {"steps": 100_000, "eval_every": 100_000, "save_every": 100_000}


def visitor(home: Path) -> Workspace:
    return Workspace.open(home, new_code())


def run_of(workspace: Workspace, name: str, **changes) -> Path:
    return prepare(workspace.folder / "runs" / name, workspace.home / "places", **LONG | changes)


def waiting_job(home: Path, workspace: Workspace, name: str) -> job_queue.QueueEntry:
    folder = workspace.folder / "runs" / name
    folder.mkdir(parents=True)
    with job_queue.queue_lock(home):
        return job_queue.enqueue(home, folder, "train", workspace.folder.name, "cpu")
