"""Files that the page is handed and hands out: gone ones are named, the same ones are kept once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from sharing_helpers import trained  # noqa: F401

from retro_demo.errors import UserError
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.form import clicked, json_file
from retro_demo.ui.page import build_app
from retro_demo.ui.uploads import chosen_files, exported, uploaded


@pytest.fixture
def uploads(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def mine(data_folder) -> Workspace:
    return Workspace.open(data_folder, new_code())


def handler(home: Path, name: str) -> Any:
    return next(one for one in build_app(home)[0].fns.values() if getattr(one.fn, "__name__", "") == name)


def test_a_file_that_went_by_its_age_is_to_be_uploaded_again(data_folder, uploads, mine):
    gone = str(uploads / "hash" / "island.zip")  # as the page shows it still
    code, chosen = mine.folder.name, "sample:factbook2015"
    page = [*build_app(data_folder)[0].fns.values()]
    build, add = [code, [gone], ""], [code, chosen, "", [gone]]
    for name, values in (
        ("start_build", build),
        ("add_documents", add),
        ("import_archive", [code, "", gone, ""]),
    ):
        handed = next(one for one in page if getattr(one.fn, "__name__", "") == name)
        others = [widget.value for widget in handed.inputs[len(values) :]]
        with pytest.raises(gr.Error, match=r"'island\.zip' is not there any more.*Upload it again"):
            handed.fn(*values, *others)
    assert not list((mine.folder / "corpora").glob("*"))


def test_programs_are_told_the_same(uploads, mine):
    with pytest.raises(UserError, match=r"'island\.txt' is not there any more"):
        uploaded(mine, {"path": str(uploads / "hash" / "stored.txt"), "orig_name": "island.txt"})


def test_only_what_was_uploaded_is_taken(tmp_path, uploads, mine):
    (tmp_path / "secret.txt").write_text("secret")
    (uploads / "hash").mkdir()
    os.symlink(tmp_path / "secret.txt", uploads / "hash" / "link.txt")
    for path in (
        tmp_path / "secret.txt",
        uploads / ".." / "secret.txt",
        uploads / "hash" / "link.txt",
        Path(),
    ):
        with pytest.raises(UserError, match="was not uploaded here"):
            chosen_files(mine, [str(path)])


def test_the_same_figures_are_kept_once_and_others_apart(uploads):
    first, second, third = (json_file("a.json", {"x": x}) for x in (1, 1, 2))

    assert first == second != third
    assert [Path(path).read_text() for path in (first, third)] == ['{\n "x": 1\n}', '{\n "x": 2\n}']
    assert len(list(uploads.rglob("*.json"))) == len(list(uploads.iterdir())) == 2


def test_each_look_at_the_page_writes_the_same_trace_and_not_another(data_folder, uploads):
    show = handler(data_folder, "show")
    for _ in range(3):
        show.fn(new_code(), "")

    assert [path.name for path in uploads.rglob("*.json")] == ["trace.json"]


def test_an_export_made_again_is_one_file_also_for_another_visitor(data_folder, uploads, mine, trained):  # noqa: F811
    other = Workspace.open(data_folder, new_code())
    for one in (mine, other):
        shutil.copytree(trained, one.folder / "runs" / "first")
    paths = {exported(one, "first") for one in (mine, mine, other)}
    assert len(paths) == 1
    assert [path.name for path in uploads.iterdir()] == [next(iter(paths)).parent.name]

    larger = exported(mine, "first", with_state=True)

    assert larger not in paths
    assert len(list(uploads.iterdir())) == 2  # the older one is the other visitor's
    exported(other, "first", with_state=True)
    assert [path.name for path in uploads.iterdir()] == [larger.parent.name]


def test_a_click_that_names_nothing_is_refused_in_a_sentence(data_folder, mine):
    pick = handler(data_folder, "choose_target")
    for said in ({}, {"passage": "x"}, {"passage": None}, {"passage": [1]}, {"passage": 1e400}):
        with pytest.raises(gr.Error, match="That names no passage"):
            pick.fn(mine.folder.name, "sample:rights-marge", "all", [], gr.EventData(None, said))

    assert clicked(gr.EventData(None, {"a": "7", "b": 2.0}), "row", "a", "b") == [7, 2]
