"""Sharing as a visitor does it: .zip out, .zip in, over HTTP, and nothing of anybody else."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from held_back import leaving
from page_helpers import opened_client, page_home
from sharing_helpers import TINY, trained  # noqa: F401

from retro_demo.corpus.store import load_corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import read_any_config, write_run_config
from retro_demo.server import run_actions, service
from retro_demo.server.limits import Limits, keep_limits
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.sharing import importing
from retro_demo.sharing.exporting import write_zip
from retro_demo.ui.page import build_app


@pytest.fixture
def workspace(small_folder, trained) -> Workspace:  # noqa: F811
    """A visitor with a corpus and a run of it."""
    opened = Workspace.open(data_home()[0], new_code())
    shutil.copytree(small_folder, opened.folder / "corpora" / "places")
    run = shutil.copytree(trained, opened.folder / "runs" / "first")
    write_run_config(run, replace(read_any_config(run), corpus=str(opened.corpus("places"))))
    return opened


def other_visitor() -> Workspace:
    return Workspace.open(data_home()[0], new_code())


def test_one_visitor_exports_and_another_imports_with_the_corpus(tmp_path, workspace):
    path = run_actions.export_zip(workspace, "first", tmp_path, with_corpus=True, with_state=True)
    other = other_visitor()

    result = run_actions.import_zip(other, ("first.zip", path))
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
    path = run_actions.export_zip(workspace, "first", tmp_path)

    result = run_actions.import_zip(workspace, ("first.zip", path), "Second one")

    assert (result["run"], result["corpus"]) == ("second-one", "places")
    assert read_any_config(workspace.run("second-one")).corpus == str(workspace.corpus("places"))


def test_nobody_exports_the_run_of_another_visitor(tmp_path, workspace):
    for run in ("first", "../" + workspace.folder.name + "/runs/first", str(workspace.run("first"))):
        with pytest.raises(UserError, match="There is no run"):
            run_actions.export_zip(other_visitor(), run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_push_from_the_page_never_uses_the_token_of_the_server(workspace, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_theTokenOfTheServer")

    with pytest.raises(UserError, match="no token of the Hub"):
        run_actions.push_run(workspace, "first", "me/places", "")


def test_what_is_refused_leaves_nothing_in_the_workspace(tmp_path, workspace):
    (tmp_path / "x.zip").write_bytes(b"no zip")
    before = sorted(path for path in workspace.folder.rglob("*"))

    with pytest.raises(UserError):
        run_actions.import_zip(workspace, ("x.zip", tmp_path / "x.zip"))
    with pytest.raises(UserError, match=r"is no \.zip"):
        run_actions.import_zip(workspace, ("x.bin", tmp_path / "x.zip"))

    assert sorted(path for path in workspace.folder.rglob("*")) == before


def test_an_imported_corpus_holds_no_more_text_than_one_that_is_built_here(tmp_path, workspace, monkeypatch):
    monkeypatch.setattr("retro_demo.server.limits.MEGABYTE", 1000)  # there are about 5 kB of text
    path, other = run_actions.export_zip(workspace, "first", tmp_path, with_corpus=True), other_visitor()
    keep_limits(other.home, Limits(text_megabytes=3))
    before = sorted(other.folder.rglob("*"))

    with pytest.raises(UserError, match=r"holds \d\.\d MB of text, and here it may hold at most 3\."):
        run_actions.import_zip(other, ("first.zip", path))
    assert sorted(other.folder.rglob("*")) == before

    keep_limits(other.home, Limits(text_megabytes=300))
    assert run_actions.import_zip(other, ("first.zip", path))["run"] == "first"
    for _ in service.follow(other.corpus(other.corpora()[-1])):
        pass


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(context=8), "reads 32 tokens at a time, and here it may read at most 8"),
        (Limits(neighbors=1), "2 neighbors of each chunk are asked for"),
    ],
)
def test_a_run_that_reads_more_at_a_time_than_the_page_can_is_not_imported(
    tmp_path, workspace, limits, words
):
    path, other = run_actions.export_zip(workspace, "first", tmp_path), other_visitor()
    keep_limits(other.home, limits)
    before = sorted(other.folder.rglob("*"))

    with pytest.raises(UserError, match=words):
        run_actions.import_zip(other, ("first.zip", path))

    assert sorted(other.folder.rglob("*")) == before


def test_a_push_from_a_full_workspace_is_refused_before_anything_is_written_or_sent(workspace, monkeypatch):
    keep_limits(workspace.home, Limits(megabytes_per_visitor=1))
    (workspace.folder / "traces").mkdir(parents=True, exist_ok=True)
    (workspace.folder / "traces" / "much").write_bytes(b"x" * 1_000_000)
    monkeypatch.setattr(run_actions, "push", lambda *_values, **_named: pytest.fail("it was sent"))

    with pytest.raises(UserError, match="of 1 MB. Delete a run or a corpus first"):
        run_actions.push_run(workspace, "first", "me/places", "hf_aTokenOfTheVisitor")


def test_a_push_that_takes_long_holds_up_no_import(data_folder):
    known = build_app(data_folder)[0].fns.values()
    lane = {one.fn.__name__: one.concurrency_id for one in known if one.concurrency_id in ("share", "push")}

    assert lane["push_run"] == "push"
    assert lane["import_archive"] == lane["export"] == lane["import_run"] == "share"


def test_an_imported_run_takes_threads_and_device_of_this_machine_and_not_of_its_maker(
    tmp_path, workspace, monkeypatch
):
    run = workspace.run("first")
    write_run_config(run, replace(read_any_config(run), threads=64, device="cuda"))
    path = run_actions.export_zip(workspace, "first", tmp_path)
    monkeypatch.setattr(importing, "allowed_threads", lambda: 3)

    imported = run_actions.import_zip(workspace, ("first.zip", path), "here")["run"]

    config = read_any_config(workspace.run(imported))
    assert (config.threads, config.device) == (3, choose_device("auto"))


def test_a_history_larger_than_any_run_writes_is_not_imported(tmp_path, workspace):
    """Every look at a run reads its events: they are as long as a job makes them, and 16 MB at most."""
    path = run_actions.export_zip(workspace, "first", tmp_path)
    shutil.unpack_archive(path, tmp_path / "open")
    line = b'{"event": "step", "step": 1, "loss": 1.0, "lr": 0.1, "tokens_per_second": 1.0}\n'
    (tmp_path / "open" / "events.jsonl").write_bytes(line * (16_100_000 // len(line)))
    write_zip(tmp_path / "open", tmp_path / "long.zip")

    with pytest.raises(UserError, match="events.jsonl is larger than 16 MB"):
        run_actions.import_zip(workspace, ("long.zip", tmp_path / "long.zip"))


def test_a_corpus_is_not_exported_while_a_job_is_at_work_on_it(tmp_path, workspace):
    with (
        lifecycle.claim(workspace.corpus("places")),
        pytest.raises(UserError, match="being built or changed"),
    ):
        run_actions.export_zip(workspace, "first", tmp_path, with_corpus=True)
    assert not list(tmp_path.iterdir())

    with leaving(workspace.corpus("places")):
        assert run_actions.export_zip(workspace, "first", tmp_path, with_corpus=True).exists()


def test_a_run_is_exported_at_the_moment_it_has_told_its_end(tmp_path, workspace):
    with lifecycle.claim(workspace.run("first")), pytest.raises(UserError, match="is being trained"):
        run_actions.export_zip(workspace, "first", tmp_path)

    with leaving(workspace.run("first")):
        assert run_actions.export_zip(workspace, "first", tmp_path).exists()


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
