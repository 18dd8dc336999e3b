"""MARGE on the page, over HTTP and in the visitor's folders: train, follow, rename, and look at evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_helpers import words_of
from evaluation_helpers import make_run
from evidence_helpers import TINY, build_translated, train_marge_run
from gradio_client import Client
from gradio_client.exceptions import AppError
from page_helpers import opened_client, page_home

from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.kinds import KINDS, MARGE_PRESETS
from retro_demo.models.memory import count_parameters
from retro_demo.runs.checkpoint import read_any_config, read_marge_config
from retro_demo.server import corpus_changes, run_actions, service
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.run_actions import command_of
from retro_demo.server.workspace import Workspace, marge_runs, new_code
from retro_demo.settings import settings_of
from retro_demo.ui.page import build_app


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("page")) as folder:
        yield folder


@pytest.fixture(scope="module")
def space(home) -> Workspace:
    space = Workspace.open(home, new_code())
    corpus = build_translated(space.folder / "corpora" / "three")
    train_marge_run(space.folder / "runs" / "finder", corpus)
    make_run(space.folder / "runs" / "reader", corpus, "retro")
    return space


@pytest.fixture(scope="module")
def client(home, space) -> Iterator[Client]:
    with opened_client(home) as opened:
        yield opened


def test_the_endpoints_train_a_marge_and_tell_its_reindexes(client, space):
    started = client.predict(space.folder.name, "three", "marge", "tiny", 2, 5, api_name="/train")
    folder = space.run(started["run"])
    *_, last = service.follow(folder)
    assert last.state == "finished", last
    told = client.predict(space.folder.name, started["run"], api_name="/run_status")

    assert (told["state"], told["step"], told["steps"]) == ("finished", 2, 2)
    assert set(told["arms"]) == {"on", "random", "off"}
    assert [row["step"] for row in told["reindexes"]] == [0, 2]
    assert len(told["beta"]) == read_marge_config(folder).network.dec_depth
    assert read_marge_config(folder).training.seed == 5


def test_a_marge_with_a_base_or_an_unknown_preset_is_refused_in_a_sentence(client, space):
    code, before = space.folder.name, space.runs()
    with pytest.raises(AppError, match="begins with no other run"):
        client.predict(code, "three", "marge", "tiny", 2, 0, "reader", api_name="/train")
    with pytest.raises(AppError, match="no preset 'base'"):
        client.predict(code, "three", "marge", "base", 2, 0, api_name="/train")
    assert space.runs() == before


def test_the_status_of_a_retro_has_no_reindexes(client, space):
    told = client.predict(space.folder.name, "reader", api_name="/run_status")

    assert told["reindexes"] == []
    assert told["beta"] == []


def test_each_list_offers_only_the_runs_that_it_can_use(space):
    assert "finder" in marge_runs(space)
    assert "reader" not in marge_runs(space)
    assert "reader" in service.readable_runs(space)
    assert "finder" not in service.readable_runs(space)
    assert "finder" not in service.bases(space, "three")


def test_a_marge_stops_goes_on_and_is_trained_longer_as_any_run(space):
    run = service.start_run(space, "three", "marge", "tiny", TINY | {"steps": 100_000, "save_every": 2})
    folder = space.run(run)
    for status in service.follow(folder):
        if status.of_kind("saved") and status.state == "running":
            service.stop_run(space, run)
    assert lifecycle.status(folder).state == "stopped"
    reached = lifecycle.status(folder).of_kind("step")[-1]["step"]
    service.resume_run(space, run)
    for status in service.follow(folder):
        if status.of_kind("step") and status.of_kind("step")[-1]["step"] > reached:
            service.stop_run(space, run)

    steps = [step["step"] for step in lifecycle.status(folder).of_kind("step")]
    assert steps == list(range(1, len(steps) + 1))
    space.delete("runs", run)


def test_a_corpus_is_renamed_with_its_marge_and_stays_while_one_reads_it(home):
    space = Workspace.open(home, new_code())
    train_marge_run(
        space.folder / "runs" / "finder", build_translated(space.folder / "corpora" / "old"), steps=1
    )
    corpus_changes.rename_corpus(space, "old", "new")

    assert read_any_config(space.run("finder")).corpus == str(space.corpus("new"))
    assert service.corpus_of_run(space, "finder") == ("new", space.corpus("new"))
    assert len(ModelCache(home).marge(space.run("finder")).vectors) > 0
    with pytest.raises(UserError, match="finder"):
        corpus_changes.delete_corpus(space, "new")


def test_the_command_of_a_marge_names_what_differs_from_its_preset_and_no_base(space):
    folder = space.run("finder")
    command = command_of(folder, read_any_config(folder), space.home)

    assert words_of(command)[:3] == ["train", "marge", "--corpus"]
    assert "--passage-len 24" in command
    assert "--base" not in command
    usual = {
        setting.name: setting.default
        for kind in set(KINDS["marge"].settings().values())
        for setting in settings_of(kind)
    }
    usual |= MARGE_PRESETS["tiny"]
    changed = dict(run_actions.changed_settings(read_any_config(space.run("finder"))))
    assert changed == {name: value for name, value in TINY.items() if value != usual[name]}


def test_the_form_of_a_marge_begins_with_its_preset_and_tells_its_size(space):
    for preset, settings in MARGE_PRESETS.items():
        assert run_actions.starting_settings(space, "marge", preset, "") == settings
    network = read_marge_config(space.run("finder")).network

    weights = ModelCache(space.home).marge(space.run("finder")).model.parameters()
    assert count_parameters(network) == sum(weight.numel() for weight in weights)


def test_a_run_of_another_model_and_one_without_weights_are_refused_as_evidence(space, tmp_path):
    cache = ModelCache(space.home)
    with pytest.raises(UserError, match="Choose a MARGE"):
        cache.marge_corpus(space.run("reader"))
    train_marge_run(space.folder / "runs" / "bare", space.corpus("three"), steps=1)
    (space.run("bare") / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights yet"):
        cache.marge(space.run("bare"))


def test_looks_at_evidence_write_no_file_and_have_a_lane_of_their_own(space, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    known = {one.name: one for one in build_app(space.home)[0].fns.values()}
    redraw, others, write = (known[name] for name in ("redraw", "show_other_documents", "write_file"))
    look = [space.folder.name, "finder", "training", "group", "ranks", 0, []]

    for place in range(3):
        redraw.fn(*look[:5], place, [])
    others.fn(*look)
    assert not list(tmp_path.rglob("evidence.json"))
    path = write.fn(*look)
    assert json.loads(Path(path).read_text())["step"] == 0
    for one in (redraw, others, write):
        assert (one.queue, one.concurrency_id, one.concurrency_limit) == (True, "looks", 2)
