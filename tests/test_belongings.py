"""Which uploads are whose, and that they go with the workspace."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro_demo.belongings import delete_noted, note_files
from retro_demo.janitor import delete_workspace
from retro_demo.workspace import Workspace, new_code


@pytest.fixture
def uploads(data_folder) -> Path:
    folder = data_folder / "uploads"
    folder.mkdir(exist_ok=True)
    return folder


def uploaded(uploads: Path, name: str) -> Path:
    path = uploads / f"hash-of-{name}" / f"{name}.txt"
    path.parent.mkdir()
    path.write_text("a diary")
    return path


def test_what_a_visitor_brought_goes_with_the_workspace_and_nothing_else(data_folder, uploads):
    mine, other = (Workspace.open(data_folder, new_code()) for _ in range(2))
    own, both, theirs = (uploaded(uploads, name) for name in ("own", "both", "theirs"))
    note_files(mine, [own, both])
    note_files(other, [both, theirs])

    delete_workspace(data_folder, mine.folder.name)

    assert not own.parent.exists()
    assert both.exists()
    assert theirs.exists()
    delete_workspace(data_folder, other.folder.name)
    assert not list(uploads.iterdir())


def test_what_went_before_and_a_torn_note_hinder_nothing(data_folder, uploads):
    mine = Workspace.open(data_folder, new_code())
    gone, there = uploaded(uploads, "gone"), uploaded(uploads, "there")
    note_files(mine, [gone, there])
    gone.unlink()
    with (mine.folder / "files.jsonl").open("a") as notes:
        notes.write('"/torn')

    delete_noted(mine.folder)

    assert not there.exists()
