"""Runs of readers: going on after a stop or kill, and bases that are gone, changed or never were ones."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_helpers import run
from held_back import train_and_kill
from small_readers import SETTINGS, changed_base, prepare_reader, small_base
from train_helpers import advance, same_weights, steps

from benchmarks.made_bases import SHAPE, byte_level, write_base, write_gguf
from retro_demo.errors import UserError
from retro_demo.events import read_events
from retro_demo.kinds import KINDS
from retro_demo.models import memory
from retro_demo.models.reader_config import ReaderConfig
from retro_demo.pretrained import bases, llama_folder
from retro_demo.pretrained.bases import describe_base, forget_bases
from retro_demo.pretrained.precision import training_precision
from retro_demo.runs.checkpoint import ReaderRun, load_model, read_any_config, weights_file
from retro_demo.runs.loading import load_run
from retro_demo.runs.planning import extend_run, keep_weights, plan_run
from retro_demo.runs.resuming import saved_step
from retro_demo.server import service
from retro_demo.server.limits import (
    PRIVATE,
    PUBLIC,
    Limits,
    check_context,
    check_run,
    keep_limits,
    served_context,
    weighed_tokens,
)
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.run_actions import command_of
from retro_demo.server.workspace import Workspace, new_code


@pytest.fixture(autouse=True)
def nothing_loaded():
    forget_bases()
    yield
    forget_bases()


@pytest.fixture(scope="module")
def shared_base(tmp_path_factory) -> Path:
    """A base; do not change it."""
    return small_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, small_folder, shared_base) -> Path:
    """A reader after two of its steps; do not change it."""
    out = prepare_reader(tmp_path_factory.mktemp("runs") / "stopped", small_folder, shared_base)
    advance(out, stop_after=2)
    return out


@pytest.fixture
def base(tmp_path, shared_base) -> Path:
    """A base of the test's own."""
    return shutil.copytree(shared_base, tmp_path / "base")


def test_a_reader_that_was_stopped_goes_on_to_the_weights_of_one_never_stopped(tmp_path, small_folder, base):
    advance(prepare_reader(tmp_path / "whole", small_folder, base))
    cut = prepare_reader(tmp_path / "cut", small_folder, base)

    first = advance(cut, stop_after=3)
    forget_bases()
    second = advance(cut)

    assert first[-1]["event"] == "stopped"
    assert steps(second)[0]["step"] == 4
    assert same_weights(tmp_path / "whole", cut)


def test_a_reader_killed_with_kill_9_goes_on_to_the_weights_of_one_never_killed(tmp_path, small_folder, base):
    whole, cut = (
        prepare_reader(tmp_path / name, small_folder, base, steps=12, save_every=3) for name in ("a", "b")
    )
    advance(whole)
    train_and_kill(cut, "step", 8)
    assert saved_step(cut) == 6

    advance(cut)

    assert same_weights(whole, cut)
    recorded = [steps(read_events(each / "events.jsonl")) for each in (whole, cut)]
    assert [e["loss"] for e in recorded[0]] == [e["loss"] for e in recorded[1]]


def test_lessons_that_find_no_room_are_made_again_and_are_the_same(tmp_path, small_folder, base, monkeypatch):
    advance(prepare_reader(tmp_path / "kept", small_folder, base))
    monkeypatch.setattr("retro_demo.training.reader_training.MOST_KEPT", 0)

    advance(prepare_reader(tmp_path / "not", small_folder, base))

    assert same_weights(tmp_path / "kept", tmp_path / "not")


def test_lessons_are_prepared_ahead_only_where_they_come_again(tmp_path, small_folder, base):
    ahead = []
    for lessons in (11, 12):  # of six steps with two each
        events = advance(prepare_reader(tmp_path / str(lessons), small_folder, base, lessons=lessons))
        ahead.append(any(e.get("stage") == "lessons" for e in events))

    assert ahead == [True, False]


def test_a_finished_reader_is_trained_longer_and_only_then(tmp_path, capsys, small_folder, base):
    out = prepare_reader(tmp_path / "run", small_folder, base)
    advance(out)
    before = weights_file(out).read_bytes()

    code, events, _ = run(capsys, *command(small_folder, base, out))
    assert (code, steps(events)) == (0, [])
    assert weights_file(out).read_bytes() == before

    code, events, _ = run(capsys, *command(small_folder, base, out, steps=8))
    assert (code, [step["step"] for step in steps(events)]) == (0, [7, 8])
    extend_run(out, 10)
    assert [step["step"] for step in steps(advance(out))] == [9, 10]
    assert run(capsys, *command(small_folder, base, out, lessons=7, steps=10))[0] == 2


def test_a_reader_is_used_with_its_last_weights_or_its_best(tmp_path, small_folder, base):
    out = prepare_reader(tmp_path / "run", small_folder, base)
    advance(out)

    keep_weights(out, "best")
    best = load_model(out)
    keep_weights(out, "last")
    last = load_model(out)

    assert weights_file(out).name == "model.safetensors"
    assert best.base is last.base
    assert not set(best.state_dict()) & set(best.base.state_dict())


def command(corpus: Path, base: object, out: Path, **changes: object) -> list[object]:
    """`train retrofit` on this base, with the settings of these tests."""
    settings = SETTINGS | changes
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["train", "retrofit", "--corpus", corpus, "--base", base, "--out", out, *flags, "--json"]


def refused(capsys, *arguments: object) -> str:
    """The sentence of a command that refuses."""
    code, _, said = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    return said


def change_config(folder: Path, **more: object) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | more))


def other_tokenizer(base: Path) -> None:
    """Special tokens by other names: the same number of tokens, which mean the same but for these."""
    stored = json.loads(byte_level().to_str())
    text = json.dumps(stored).replace("<|im_start|>", "<|im_begin|>")
    (base / "tokenizer.json").write_text(text)


def other_weights(base: Path) -> None:
    changed_base(base)


def no_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()


GONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "is gone": (shutil.rmtree, "no base"),
    "has other weights": (other_weights, "other weights"),
    "has lost its weights": (no_weights, "model.safetensors"),
    "has another tokenizer": (other_tokenizer, "another tokenizer"),
    "is of another kind": (lambda base: change_config(base, model_type="gpt2"), "gpt2"),
    "reads fewer tokens": (lambda base: change_config(base, max_position_embeddings=64), "does not fit"),
    "is of another shape": (lambda base: change_config(base, num_attention_heads=2), "."),
}


@pytest.mark.parametrize("name", GONE)
def test_a_reader_is_neither_used_nor_trained_on_when_its_base(tmp_path, capsys, stopped, base, name):
    out = shutil.copytree(stopped, tmp_path / "run")
    change_config(out, base=str(base))
    kept = weights_file(out).read_bytes()
    change, sentence = GONE[name]
    change(base)
    forget_bases()  # what another process has in memory is not known here

    assert sentence in refused(capsys, "generate", out, "--prompt", "Area of Arden")
    assert sentence in refused(capsys, "train", "--out", out)
    assert weights_file(out).read_bytes() == kept


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "of an unknown kind": (lambda base: change_config(base, model_type="gpt2"), "gpt2"),
    "with another activation": (lambda base: change_config(base, hidden_act="gelu"), "hidden_act"),
    "that lacks a shard": (
        lambda base: [
            (base / "model.safetensors").unlink(),
            write_base(base, SHAPE, shards=3),
            (base / "model-00002-of-00003.safetensors").unlink(),
        ],
        "00002",
    ),
    "with weights that were cut off": (
        lambda base: (base / "model.safetensors").write_bytes(b"x" * 90),
        "safetensors",
    ),
    "without a tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "tokenizer"),
    "with the tokenizer of another": (lambda base: change_config(base, vocab_size=200), "200"),
    "with one layer": (lambda base: change_config(base, num_hidden_layers=1), "layer"),
    "that reads a few tokens": (
        lambda base: change_config(base, max_position_embeddings=16),
        "at most 11",
    ),
    "that reads no whole window": (lambda base: change_config(base, max_position_embeddings=34), "--seq-len"),
}


@pytest.mark.parametrize("name", BAD)
def test_nothing_is_begun_on_a_base(tmp_path, capsys, small_folder, base, name):
    change, sentence = BAD[name]
    change(base)

    assert sentence in refused(capsys, *command(small_folder, base, tmp_path / "run"))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda path: write_gguf(path, architecture="gpt2"), "gpt2"),
        (lambda path: write_gguf(path, pre="tekken"), "tekken"),
        (lambda path: path.write_bytes(b"GGUF"), "base.gguf"),
        (lambda path: path.write_text("a text of some length"), "no GGUF"),
        (lambda path: None, "base.gguf"),
    ],
)
def test_nothing_is_begun_on_a_gguf_file_that_is_not_read(tmp_path, capsys, small_folder, made, sentence):
    made(tmp_path / "base.gguf")

    assert sentence in refused(
        capsys,
        *command(small_folder, tmp_path / "base.gguf", tmp_path / "run"),
    )


def test_smollm2_that_is_not_installed_is_told_with_what_installs_it(
    tmp_path, capsys, small_folder, monkeypatch
):
    monkeypatch.setattr(bases, "SMOLLM2_PACKAGE", "no-such-package")

    assert "make setup" in refused(capsys, *command(small_folder, "smollm2", tmp_path / "run"))


def test_too_little_memory_for_a_base_is_told_before_anything_is_trained(
    tmp_path, capsys, small_folder, base, monkeypatch
):
    out = prepare_reader(tmp_path / "run", small_folder, base)
    advance(out, stop_after=2)
    forget_bases()
    monkeypatch.setattr(llama_folder, "free_memory", lambda: 1_000_000)

    assert "MB of memory" in refused(capsys, "generate", out, "--prompt", "Area of Arden")
    assert "MB of memory" in refused(capsys, "train", "--out", out)


def test_two_readers_in_a_server_share_one_base_and_are_let_go(tmp_path, small_folder, base, data_folder):
    runs = data_folder / "runs"
    for name in ("one", "two", "three"):
        advance(prepare_reader(runs / name, small_folder, base, steps=2))
    forget_bases()
    cache = ModelCache(data_folder, limit=2)

    one, two = cache.run(runs / "one"), cache.run(runs / "two")
    three = cache.run(runs / "three")

    assert one.model.base is two.model.base is three.model.base
    assert cache.run(runs / "two") is two
    assert cache.run(runs / "one") is not one  # it was used longest ago, and read again
    cache.forget(runs)
    again = cache.run(runs / "two")
    assert again is not two
    assert again.model.base is two.model.base


def test_a_server_gives_a_reader_as_many_tokens_as_its_limits_leave(
    tmp_path, small_folder, base, data_folder
):
    run = prepare_reader(tmp_path / "run", small_folder, base, steps=2)
    advance(run)
    cache = ModelCache(data_folder)
    whole = load_run(run).config.context

    assert cache.run(run).config.context == whole == 128 - 4 - 1
    keep_limits(data_folder, Limits(context=60))
    assert cache.run(run).config.context == 60
    keep_limits(data_folder, Limits(context=20))  # less than the windows that it was taught with
    with pytest.raises(UserError, match="32 tokens at a time"):
        cache.run(run)


def test_a_public_page_reads_and_trains_the_presets_of_readers():
    for preset in KINDS["reader"].presets:
        chosen = KINDS["reader"].preset_settings(preset)
        check_run(PUBLIC, ReaderConfig(), chosen["steps"])
        check_context(PUBLIC, ReaderConfig(), chosen["seq_len"], chosen["num_neighbors"])


def test_a_text_of_smollm2_on_a_public_page_takes_no_more_than_a_reading_may(tmp_path, small_folder, base):
    config = read_any_config(prepare_reader(tmp_path / "run", small_folder, base))
    assert isinstance(config, ReaderRun)
    large = replace(config, network=ReaderConfig(), base_context=8192)

    tokens = served_context(PUBLIC, large)

    assert 500 < tokens < PUBLIC.context
    assert memory.reader_megabytes(ReaderConfig(), tokens, PUBLIC.neighbors) <= PUBLIC.reading_megabytes
    assert served_context(PRIVATE, large) == large.context
    assert 0 < weighed_tokens(PUBLIC, large) < PUBLIC.weighed_tokens
    assert large.page <= 1024


def test_training_is_refused_where_base_and_reader_never_fit(tmp_path, small_folder, base, monkeypatch):
    out = prepare_reader(tmp_path / "run", small_folder, base)
    of_base = describe_base(base).config.num_bytes(training_precision())
    monkeypatch.setattr(memory, "allowed_memory", lambda: of_base - 1)
    with pytest.raises(UserError, match="The base takes"):
        advance(out)
    monkeypatch.setattr(memory, "allowed_memory", lambda: of_base + 10_000)
    with pytest.raises(UserError, match="beside the base"):
        advance(out)
    assert not weights_file(out).exists()


def test_the_command_of_a_reader_trains_it_again(tmp_path, capsys, small_folder, base, data_folder):
    out = prepare_reader(tmp_path / "run", small_folder, base)
    words = shlex.split(command_of(out, read_any_config(out), data_folder))

    verb = words.index("train")
    code, events, _ = run(capsys, *words[verb:], "--json")

    assert (code, events[-1]["event"]) == (0, "finished")
    assert words[verb : verb + 2] == ["train", "reader"]
    assert command_of(out, read_any_config(out), data_folder).count(str(base)) == 1
    shutil.rmtree(base)
    assert "--base" not in command_of(out, read_any_config(out), data_folder)


def test_another_edition_is_found_from_any_folder_and_a_visitor_names_none_of_the_server(
    tmp_path, small_folder, base, data_folder, monkeypatch
):
    monkeypatch.chdir(small_folder.parent)
    wanted = plan_run(
        "retrofit", str(small_folder), settings=SETTINGS | {"edition": small_folder.name}, base=str(base)
    )
    workspace = Workspace.open(data_folder, new_code())
    shutil.copytree(small_folder, workspace.folder / "corpora" / "places")

    assert isinstance(wanted, ReaderRun)
    assert wanted.lessons.edition == str(small_folder)
    for edition in (str(small_folder), "../places", "/etc"):
        with pytest.raises(UserError, match="There is no corpus"):
            service.start_run(workspace, "places", "retro", "tiny", {"edition": edition})
