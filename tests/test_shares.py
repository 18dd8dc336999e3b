"""Sharing as a visitor does it: .zip out, .zip in, over HTTP, and nothing of anybody else."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from page_helpers import opened_client, page_home
from test_sharing import TINY, trained  # noqa: F401  (a fixture)

from retro_demo import service, shares
from retro_demo.checkpoint import read_any_config, write_run_config
from retro_demo.corpus import load_corpus
from retro_demo.errors import UserError
from retro_demo.exporting import write_zip
from retro_demo.workspace import Workspace, data_home, new_code


@pytest.fixture
def workspace(small_folder, trained) -> Workspace:  # noqa: F811
    """A visitor with a corpus and a run of it."""
    from dataclasses import replace

    opened = Workspace.open(data_home()[0], new_code())
    shutil.copytree(small_folder, opened.folder / "corpora" / "places")
    run = shutil.copytree(trained, opened.folder / "runs" / "first")
    write_run_config(run, replace(read_any_config(run), corpus=str(opened.corpus("places"))))
    return opened


def other_visitor() -> Workspace:
    return Workspace.open(data_home()[0], new_code())


def test_one_visitor_exports_and_another_imports_with_the_corpus(tmp_path, workspace):
    path = shares.export_zip(workspace, "first", tmp_path, with_corpus=True, with_state=True)
    other = other_visitor()

    result = shares.import_zip(other, ("first.zip", path))
    for _ in service.follow(other.corpus(result["corpus"])):
        pass

    assert (result["kind"], result["run"]) == ("run", "first")
    config = read_any_config(other.run("first"))
    assert config.corpus == str(other.corpus(result["corpus"]))
    assert load_corpus(other.corpus(result["corpus"])).fingerprint == config.corpus_fingerprint
    assert workspace.folder.name not in "".join(zipfile.ZipFile(path).read("config.json").decode())
    assert not list(other.folder.glob(".import-*"))
    assert not list(workspace.folder.glob(".export-*"))


def test_a_run_finds_its_corpus_where_the_visitor_has_it_already(tmp_path, workspace):
    path = shares.export_zip(workspace, "first", tmp_path)

    result = shares.import_zip(workspace, ("first.zip", path), "Second one")

    assert (result["run"], result["corpus"]) == ("second-one", "places")
    assert read_any_config(workspace.run("second-one")).corpus == str(workspace.corpus("places"))


def test_nobody_exports_the_run_of_another_visitor(tmp_path, workspace):
    for run in ("first", "../" + workspace.folder.name + "/runs/first", str(workspace.run("first"))):
        with pytest.raises(UserError, match="There is no run"):
            shares.export_zip(other_visitor(), run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_push_from_the_page_never_uses_the_token_of_the_server(workspace, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_theTokenOfTheServer")

    with pytest.raises(UserError, match="no token of the Hub"):
        shares.push_run(workspace, "first", "me/places", "")


def test_what_is_refused_leaves_nothing_in_the_workspace(tmp_path, workspace):
    (tmp_path / "x.zip").write_bytes(b"no zip")
    before = sorted(path for path in workspace.folder.rglob("*"))

    with pytest.raises(UserError):
        shares.import_zip(workspace, ("x.zip", tmp_path / "x.zip"))
    with pytest.raises(UserError, match=r"is no \.zip"):
        shares.import_zip(workspace, ("x.bin", tmp_path / "x.zip"))

    assert sorted(path for path in workspace.folder.rglob("*")) == before


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[Client]:
    with page_home(tmp_path_factory.mktemp("page")) as home, opened_client(home) as opened:
        yield opened


def test_a_run_goes_out_and_comes_back_over_http(tmp_path, client, monkeypatch):
    write_zip(TINY, tmp_path / "tiny.zip")
    code, other = new_code(), new_code()

    brought = client.predict(code, handle_file(tmp_path / "tiny.zip"), "Mine", api_name="/import_run")
    exported = client.predict(code, brought["run"], api_name="/export_run")
    again = client.predict(other, handle_file(exported), api_name="/import_run")

    assert brought["run"] == again["run"] == "mine"
    with zipfile.ZipFile(exported) as archive:
        assert json.loads(archive.read("export.json"))["name"] == "mine"
        assert archive.read("model.safetensors") == (TINY / "model.safetensors").read_bytes()
        assert "was imported before" in archive.read("README.md").decode()


def test_a_file_that_was_not_uploaded_is_not_imported(client):
    with pytest.raises(Exception, match="not uploaded here"):
        client.predict(
            new_code(), {"path": str(Path(__file__)), "orig_name": "x.zip"}, "", api_name="/import_run"
        )
