"""A visitor's folders: a look makes none, a request that writes does, and what ends late brings none back."""

from __future__ import annotations

import contextlib
import os
from inspect import isgenerator
from pathlib import Path

import gradio as gr
import pytest

from retro_demo.errors import UserError
from retro_demo.paths import CHECKPOINTS
from retro_demo.server import run_actions
from retro_demo.server.cleanup import delete_workspace
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code, note_export, note_files
from retro_demo.ui.page import build_app
from retro_demo.ui.uploads import forget_visitor

RUN = f"sample:{sorted(path.parent.name for path in CHECKPOINTS.glob('*retro*/config.json'))[0]}"


def test_a_look_at_any_code_makes_nothing(data_folder):
    known = [one for one in build_app(data_folder)[0].fns.values() if one.fn is not None and not one.queue]
    looks = [one for one in known if isinstance(next(iter(one.inputs), None), gr.BrowserState)]
    assert len(looks) > 20

    for one in looks:
        assert one.fn is not None
        with contextlib.suppress(gr.Error, TypeError):  # some need what a click brings
            said = one.fn(new_code(), *(getattr(widget, "value", None) for widget in one.inputs[1:]))
            if isgenerator(said):
                next(said)

    assert not list((data_folder / "workspaces").glob("*"))


def test_a_workspace_without_a_folder_lists_what_ships_and_misses_the_rest(data_folder):
    mine = Workspace.open(data_folder, new_code())

    assert all(name.startswith("sample:") for name in [*mine.corpora(), *mine.runs()])
    with pytest.raises(UserError, match="no run 'mine' in this workspace"):
        mine.run("mine")
    assert forget_visitor(ModelCache(data_folder), mine.folder.name) == 0
    assert not mine.folder.exists()


def test_who_writes_first_makes_the_folders_for_nobody_else_on_the_machine(data_folder):
    before = os.umask(0o022)
    try:
        made = Workspace.open(data_folder, new_code()).new_folder("runs", "first")
    finally:
        os.umask(before)

    for folder in (made, made.parent, made.parent.parent):
        assert folder.stat().st_mode & 0o077 == 0, folder


def test_a_visitor_who_wrote_nothing_yet_can_export_what_ships(data_folder, tmp_path):
    path = run_actions.export_zip(Workspace.open(data_folder, new_code()), RUN, tmp_path)

    assert path.stat().st_size > 0


def test_an_import_that_ends_after_all_was_deleted_brings_nothing_back(data_folder, tmp_path, monkeypatch):
    mine = Workspace.open(data_folder, new_code())
    path = run_actions.export_zip(mine, RUN, tmp_path)
    unpacking = run_actions.checked_export

    @contextlib.contextmanager
    def deleted_meanwhile(*asked):
        with unpacking(*asked) as export:
            delete_workspace(data_folder, mine.folder.name)
            yield export

    monkeypatch.setattr(run_actions, "checked_export", deleted_meanwhile)
    with pytest.raises(UserError, match="no workspace of this code"):
        run_actions.import_zip(mine, (path.name, path))
    assert not mine.folder.exists()


@pytest.mark.parametrize("note", [note_files, note_export])
def test_what_is_noted_late_brings_no_workspace_back(data_folder, tmp_path, note):
    mine = Workspace.open(data_folder, new_code()).make()
    delete_workspace(data_folder, mine.folder.name)
    late = Path(tmp_path / "late.txt")
    late.write_text("words")

    with pytest.raises(UserError, match="no workspace of this code"):
        note(mine, [late] if note is note_files else late)
    assert not mine.folder.exists()
