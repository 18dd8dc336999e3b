"""Which uploads are whose, and that they go with the workspace."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from retro_demo.errors import UserError
from retro_demo.server.cleanup import clean, delete_workspace
from retro_demo.server.limits import Limits, check_space, keep_limits
from retro_demo.server.workspace import Workspace, delete_noted, new_code, note_export, note_files, noted


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
    mine, other = (Workspace.open(data_folder, new_code()).make() for _ in range(2))
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
    mine = Workspace.open(data_folder, new_code()).make()
    gone, there = uploaded(uploads, "gone"), uploaded(uploads, "there")
    note_files(mine, [gone, there])
    gone.unlink()
    with (mine.folder / "files.jsonl").open("a") as notes:
        notes.write('"/torn')

    delete_noted(mine.folder)

    assert not there.exists()


def test_a_line_torn_for_one_visitor_keeps_nobody_from_deleting(data_folder, uploads):
    mine, torn = (Workspace.open(data_folder, new_code()).make() for _ in range(2))
    own, theirs = uploaded(uploads, "own"), uploaded(uploads, "theirs")
    note_files(mine, [own])
    (torn.folder / "files.jsonl").write_text('"/x"/data/y"\n"\\q"\n', encoding="utf-8")
    note_files(torn, [theirs])

    delete_workspace(data_folder, mine.folder.name)
    assert not own.exists()
    delete_workspace(data_folder, torn.folder.name)
    assert not theirs.exists()


def test_a_full_disk_leaves_no_half_of_a_note(data_folder, uploads):
    mine = Workspace.open(data_folder, new_code()).make()
    first, second = uploaded(uploads, "first"), uploaded(uploads, "second")
    note_files(mine, [first])
    before = (mine.folder / "files.jsonl").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            note_files(mine, [second])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)

    assert (mine.folder / "files.jsonl").read_bytes() == before


def test_a_file_is_noted_once_however_often_it_is_used(data_folder, uploads):
    mine, own = Workspace.open(data_folder, new_code()).make(), uploaded(uploads, "own")
    for _ in range(3):
        note_files(mine, [own, own])

    assert len((mine.folder / "files.jsonl").read_text().splitlines()) == 1


def test_uploads_and_exports_count_for_whoever_brought_them_and_for_nobody_else(data_folder, uploads):
    keep_limits(data_folder, Limits(megabytes_per_visitor=1))
    mine, other = (Workspace.open(data_folder, new_code()).make() for _ in range(2))
    large = uploaded(uploads, "large")
    large.write_bytes(b"x" * 600_000)
    note_files(mine, [large])
    check_space(mine)
    more = uploaded(uploads, "more")
    more.write_bytes(b"x" * 600_000)
    note_export(mine, more)

    with pytest.raises(UserError, match=r"holds 1\.2 of 1 MB\. 1\.2 MB of it are uploads and exports"):
        check_space(mine)
    check_space(other)
    large.unlink()  # as by its age
    check_space(mine)


def test_an_export_takes_the_place_of_the_older_one_of_its_name_and_of_no_upload(data_folder, uploads):
    mine, other = (Workspace.open(data_folder, new_code()).make() for _ in range(2))
    brought = uploads / "brought" / "run.zip"
    exports = [uploads / f"export-{number}" / name for number, name in enumerate(["run.zip"] * 3 + ["b.zip"])]
    for path in (brought, *exports):
        path.parent.mkdir()
        path.write_bytes(b"weights")
    note_files(mine, [brought])
    note_export(mine, exports[3])
    note_export(mine, exports[0])
    note_export(other, exports[1])
    note_export(mine, exports[1])
    note_export(mine, exports[2])

    assert [path.exists() for path in exports] == [False, True, True, True]  # the second is the other's too
    assert brought.exists()
    delete_workspace(data_folder, mine.folder.name)
    assert sorted(path.name for path in uploads.iterdir()) == ["export-1"]


def test_an_export_that_is_ready_after_all_was_deleted_goes_too(data_folder, uploads):
    mine, late = Workspace.open(data_folder, new_code()).make(), uploaded(uploads, "late")
    delete_workspace(data_folder, mine.folder.name)

    with pytest.raises(UserError, match="no workspace of this code"):
        note_export(mine, late)
    assert not late.exists()
    assert not mine.folder.exists()


def test_notes_about_what_is_gone_go_while_nobody_uses_the_workspace(data_folder, uploads):
    mine = Workspace.open(data_folder, new_code()).make()
    gone, stays, export = (uploaded(uploads, name) for name in ("gone", "stays", "export"))
    note_files(mine, [gone, stays])
    note_export(mine, export)
    gone.unlink()
    export.unlink()
    notes = mine.folder / "files.jsonl"

    clean(data_folder, time.time())
    assert len(notes.read_text().splitlines()) == 2  # its visitor may note something at this moment
    then = time.time() - 3 * 3600
    os.utime(mine.folder, (then, then))
    clean(data_folder, time.time())

    assert noted(mine.folder) == {stays.resolve()}
    assert len(notes.read_text().splitlines()) == 1
    assert not (mine.folder / "exports.jsonl").exists()
    assert mine.folder.stat().st_mtime == pytest.approx(then, abs=1)  # cleaning is no use
    note_files(mine, [gone, stays])
    assert len(notes.read_text().splitlines()) == 2
