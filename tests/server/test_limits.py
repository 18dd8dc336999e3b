"""Limits: which set holds where, what overrides it, and what is refused because of it."""

from __future__ import annotations

import argparse
import errno
import gzip
import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
from conftest import SMALL, records, write_jsonl
from page_helpers import refusing_app  # noqa: F401  (a fixture)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from train_helpers import advance, prepare

from retro_demo.console import add_flags
from retro_demo.errors import UserError
from retro_demo.kinds import KINDS
from retro_demo.models.config import MargeConfig, RetroConfig
from retro_demo.server import corpus_changes, limits, service
from retro_demo.server.cleanup import close_folder
from retro_demo.server.limits import (
    PRIVATE,
    PUBLIC,
    Limits,
    check_context,
    check_run,
    checked_writing,
    chosen_limits,
    keep_limits,
    limits_of,
)
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import TrainConfig, from_json, settings_of
from retro_demo.ui.middleware import RateLimiter
from retro_demo.ui.serve import on_space


@pytest.fixture
def workspace(data_folder, small_folder) -> Workspace:
    opened = Workspace.open(data_folder, new_code())
    shutil.copytree(small_folder, opened.folder / "corpora" / "places")
    return opened


def test_a_public_page_limits_everything_and_a_private_one_only_what_one_visitor_runs_at_once():
    names = [setting.name for setting in settings_of(Limits)]

    assert [name for name in names if getattr(PRIVATE, name)] == ["running_per_visitor"]
    assert all(getattr(PUBLIC, name) for name in names)


@pytest.mark.parametrize(
    ("environment", "is_one"),
    [({}, False), ({"SYSTEM": "spaces"}, True), ({"SPACE_ID": "a/b"}, True), ({"SYSTEM": "linux"}, False)],
)
def test_a_space_is_known_by_its_environment(environment, is_one):
    assert on_space(environment) is is_one


def test_flags_go_before_the_environment_and_both_before_the_set():
    environment = {"RETRO_DEMO_LIMIT_STEPS": "70", "RETRO_DEMO_LIMIT_MEMORY_SHARE": "0.25", "STEPS": "9"}

    chosen = chosen_limits(True, environment, {"steps": 80})

    assert chosen == replace(PUBLIC, steps=80, memory_share=0.25)
    assert chosen_limits(False, {}, {}) == PRIVATE


@pytest.mark.parametrize(
    ("environment", "flags", "said"),
    [
        ({"RETRO_DEMO_LIMIT_STEPS": "many"}, {}, "RETRO_DEMO_LIMIT_STEPS is 'many'"),
        ({"RETRO_DEMO_LIMIT_NICE": "20"}, {}, "nice is 20"),
        ({}, {"steps": -1}, "steps is -1"),
    ],
)
def test_a_limit_that_is_none_is_refused_in_a_sentence(environment, flags, said):
    with pytest.raises(UserError, match=said):
        chosen_limits(True, environment, flags)


def test_the_limits_of_a_data_folder_are_those_of_the_last_server(data_folder):
    assert limits_of(data_folder) == PRIVATE

    keep_limits(data_folder, PUBLIC)

    assert limits_of(data_folder) == PUBLIC


def test_the_limits_are_read_once_and_again_when_others_are_kept(data_folder, monkeypatch):
    read = []
    monkeypatch.setattr(limits, "from_json", lambda kind, said: read.append(said) or from_json(kind, said))

    for steps in (70, 80):
        keep_limits(data_folder, Limits(steps=steps))
        assert {limits_of(data_folder).steps for _ in range(5)} == {steps}

    assert len(read) == 2


def test_limits_that_do_not_get_onto_the_disk_leave_the_old_ones(data_folder, monkeypatch):
    keep_limits(data_folder, PUBLIC)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep_limits(data_folder, PRIVATE)

    assert limits_of(data_folder) == PUBLIC
    assert [path.name for path in data_folder.glob("limits.json*")] == ["limits.json"]


def test_the_help_of_app_py_says_that_0_is_no_limit():
    parser = argparse.ArgumentParser()
    add_flags(parser, Limits)

    assert "0 is no limit" in parser.format_help()


def test_the_limit_is_named_and_not_the_range_that_lies_far_beyond_it(data_folder, workspace):
    keep_limits(data_folder, Limits(steps=40, new_tokens=50))

    with pytest.raises(UserError, match="1,000,000,000 steps, and here it may have at most 40"):
        service.start_run(workspace, "places", "lm", "tiny", {"steps": 1_000_000_000})
    with pytest.raises(UserError, match="100,000 new tokens, and here at most 50"):
        checked_writing(data_folder, max_new_tokens=100_000)


def test_a_limit_of_0_lifts_one_of_the_public_set():
    assert chosen_limits(True, {"RETRO_DEMO_LIMIT_MINUTES": "0"}, {"keep_days": 0}) == replace(
        PUBLIC, minutes=0, keep_days=0
    )


def test_app_py_refuses_a_bad_limit_before_it_serves(refusing_app):  # noqa: F811
    assert "memory_share is 7" in refusing_app("--public", "--memory-share", "7")


def test_a_run_with_too_many_steps_or_parameters_is_refused_and_leaves_nothing(workspace):
    keep_limits(workspace.home, Limits(steps=100, parameters=50_000))

    with pytest.raises(UserError, match="has 300 steps, and here it may have at most 100. Choose fewer"):
        service.start_run(workspace, "places", "lm", "tiny", {})
    with pytest.raises(UserError, match=r"M parameters, and here it may have at most 0\.1 M"):
        service.start_run(workspace, "places", "lm", "tiny", {"steps": 50, "dim": 64})

    assert not list((workspace.folder / "runs").glob("*"))


def test_a_run_cannot_grow_past_the_limit_by_training_longer_nor_be_resumed_above_it(workspace):
    run = prepare(workspace.folder / "runs" / "mine", workspace.corpus("places"), steps=80)
    keep_limits(workspace.home, Limits(steps=100))
    with pytest.raises(UserError, match="has 500 steps"):
        service.lengthen_run(workspace, "mine", 500)
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 80

    keep_limits(workspace.home, Limits(steps=50))
    with pytest.raises(UserError, match="has 80 steps"):
        service.resume_run(workspace, "mine")


def test_every_public_preset_but_base_fits_a_public_page():
    check_run(PUBLIC, RetroConfig(dim=192, depth=6, num_heads=6, cca_layers=(3, 6), enc_dim=192), 4500)
    with pytest.raises(UserError, match="M parameters"):
        check_run(PUBLIC, RetroConfig(dim=512, depth=12, num_heads=8, cca_layers=(6, 9, 12)), 100)


def test_a_full_workspace_takes_nothing_more_and_says_how_full_it_is(workspace, tmp_path):
    keep_limits(workspace.home, Limits(megabytes_per_visitor=3))
    large = tmp_path / "large.txt"
    large.write_bytes(b"x" * 3_000_000)

    with pytest.raises(UserError, match=r"holds 0\.\d of 3 MB, and 3\.0 MB would join\. Delete"):
        service.start_build(workspace, [("large.txt", large)], "large", SMALL)
    with pytest.raises(UserError, match="and 3.0 MB would join"):
        corpus_changes.start_change(workspace, "places", files=[("large.txt", large)])

    (workspace.folder / "traces").mkdir(parents=True, exist_ok=True)
    (workspace.folder / "traces" / "much").write_bytes(b"x" * 3_000_000)
    for ask in (
        lambda: service.start_run(workspace, "places", "lm", "tiny", {}),
        lambda: service.resume_build(workspace, "sample:lookup"),
    ):
        with pytest.raises(UserError, match="of 3 MB. Delete a run or a corpus first"):
            ask()


def test_a_disk_that_is_nearly_full_refuses_work_and_uploads_alike(workspace, tmp_path, monkeypatch):
    async def taken(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("taken")

    page = Starlette(routes=[Route("/gradio_api/upload", taken, methods=["POST"])])
    door = TestClient(RateLimiter(page, workspace.home))  # pyright: ignore[reportArgumentType]
    keep_limits(workspace.home, Limits(free_megabytes=100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 99_000_000))
    source = write_jsonl(tmp_path / "p.jsonl", records())

    with pytest.raises(UserError, match="nearly full .99 MB are free, 100 MB stay so"):
        service.start_build(workspace, [("p.jsonl", source)], "mine", SMALL)
    refused = door.post("/gradio_api/upload", content=source.read_bytes())
    assert refused.status_code == 507
    assert "nearly full (99 MB are free, 100 MB stay so, 0.0 MB would come)" in refused.json()["detail"]

    keep_limits(workspace.home, Limits(free_megabytes=98))
    assert door.post("/gradio_api/upload", content=source.read_bytes()).text == "taken"


@pytest.mark.parametrize("packed", [False, True])
def test_a_corpus_is_built_of_no_more_text_than_the_limit(workspace, tmp_path, packed):
    keep_limits(workspace.home, Limits(text_megabytes=1, running=1, waiting=0))
    line = "Area of {}: 42 square km, estimated in 2001.\n"
    text = "".join(line.format(number) for number in range(22_000))  # 1.1 MB
    source, given = tmp_path / "upload", "long.txt.gz" if packed else "long.txt"
    source.write_bytes(gzip.compress(text.encode()) if packed else text.encode())

    name = service.start_build(workspace, [(given, source)], "mine", SMALL)

    last = list(service.follow(workspace.corpus(name)))[-1]
    assert last.state == "failed"
    assert "there are more than 1 MB to read" in last.of_kind("failed")[-1]["error"]


def test_a_corpus_within_the_limit_of_text_is_built(workspace, tmp_path):
    keep_limits(workspace.home, Limits(text_megabytes=1, running=1, waiting=0))
    source = write_jsonl(tmp_path / "p.jsonl", records())

    name = service.start_build(workspace, [("p.jsonl", source)], "mine", SMALL)

    assert [status.state for status in service.follow(workspace.corpus(name))][-1] == "finished"


@pytest.mark.parametrize(
    ("limits", "settings", "words"),
    [
        (Limits(context=1024), {"seq_len": 2048}, "reads 2,048 tokens at a time, and here .* at most 1,024"),
        (Limits(neighbors=2), {"num_neighbors": 3}, "3 neighbors of each chunk .* at most 2 are read"),
        (Limits(reading_megabytes=30), {"seq_len": 1024}, r"takes up to \d+ MB, for 1,024 tokens"),
    ],
)
def test_a_run_that_reads_more_at_a_time_than_the_page_can_is_refused_and_leaves_nothing(
    workspace, limits, settings, words
):
    keep_limits(workspace.home, limits)

    with pytest.raises(UserError, match=words):
        service.start_run(workspace, "places", "retro", "tiny", settings)

    assert not list((workspace.folder / "runs").glob("*"))


def test_a_run_of_before_the_limits_is_not_read_where_it_reads_more_at_a_time(workspace):
    run = prepare(workspace.folder / "runs" / "mine", workspace.corpus("places"), seq_len=64)
    advance(run)
    cache = ModelCache(workspace.home)

    keep_limits(workspace.home, Limits(context=64))
    assert cache.run(run).config.training.seq_len == 64
    keep_limits(workspace.home, Limits(context=63))  # it is in memory: that lets nobody in
    with pytest.raises(UserError, match="reads 64 tokens at a time, and here it may read at most 63"):
        cache.run(run)


@pytest.mark.parametrize(
    ("network", "tokens"),
    [
        (RetroConfig(vocab_size=600_000, dim=8, enc_dim=8), 1024),  # 4.8 M parameters
        (RetroConfig(dim=8, enc_dim=8, dim_head=2, num_heads=128, depth=128, cca_layers=(1, 64, 128)), 1024),
        (MargeConfig(dim=96, dec_depth=12), 1024),
    ],
)
def test_a_small_network_whose_shape_makes_each_reading_huge_is_refused_on_a_public_page(network, tokens):
    check_run(PUBLIC, network, 100)

    with pytest.raises(UserError, match="and here it may take at most 2,000"):
        check_context(PUBLIC, network, tokens, 2)


@pytest.mark.parametrize("model", ["lm", "retro", "retrofit", "marge"])
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_every_public_preset_reads_what_a_public_page_can(model, preset):
    chosen = KINDS[model].preset_settings(preset)
    shape = MargeConfig if model == "marge" else RetroConfig
    network = shape(**{one.name: chosen[one.name] for one in settings_of(shape) if one.name in chosen})
    training = TrainConfig(
        **{one.name: chosen[one.name] for one in settings_of(TrainConfig) if one.name in chosen}
    )

    check_context(PUBLIC, network, chosen.get("passage_len", training.seq_len), training.num_neighbors)


def test_no_text_is_written_with_more_neighbors_than_may_be_read(data_folder):
    keep_limits(data_folder, Limits(neighbors=10))

    assert checked_writing(data_folder, num_neighbors=10).num_neighbors == 10
    with pytest.raises(UserError, match="50 neighbors of each chunk are asked for"):
        checked_writing(data_folder, num_neighbors=50)


def test_a_data_folder_that_others_use_too_stays_open_to_them(tmp_path):
    tmp_path.chmod(0o2775)
    close_folder(tmp_path)

    assert tmp_path.stat().st_mode & 0o7777 == 0o2775
    assert (tmp_path / "workspaces").stat().st_mode & 0o077 == 0
