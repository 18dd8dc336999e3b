"""What the machine does to a job: a full disk, too little memory, clocks that jump, kills."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import SMALL, records, write_jsonl
from held_back import held_jobs, wait_until
from marge_training_helpers import folder as marge_corpus  # noqa: F401
from marge_training_helpers import prepare as prepare_marge
from places import ROOT
from safetensors.torch import load_file
from train_helpers import advance, prepare
from views_helpers import small_trace

from retro_demo.cli import main
from retro_demo.corpus.building import prepare_corpus
from retro_demo.corpus.sharding import run_build
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError, describe_error, why_interrupted
from retro_demo.events import Finished, Step, append_event, read_events
from retro_demo.files import load_tensors, save_tensors
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import Process, birth
from retro_demo.render.job_views import run_status
from retro_demo.runs.checkpoint import load_model, read_any_config
from retro_demo.runs.resuming import saved_step
from retro_demo.server import service
from retro_demo.server.run_actions import seconds_left
from retro_demo.server.workspace import KEPT_TRACES, Workspace, keep_trace, load_trace, new_code

HOUR = 3600


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 8 MB of its own, which can be filled."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("nothing can be mounted here: the limit of a file's size is tested all the same")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, room: int) -> None:
    """Fill a disk, and leave so many bytes free."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(b"x" * max(0, free - room))


def empty(disk: Path) -> None:
    (disk / "ballast").unlink()


def ends_with(folder: Path) -> str:
    last = read_events(folder / "events.jsonl")[-1]
    return last.get("error", last["event"])


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("room", [40_000, 150_000])  # the weights do not fit; they do, the state does not
def test_a_training_that_fills_the_disk_says_so_keeps_its_last_save_and_goes_on(
    tmp_path, small_disk, small_folder, room
):
    run = prepare(small_disk / "run", small_folder)
    advance(run, stop_after=4)
    assert saved_step(run) == 4
    fill(small_disk, room)

    with pytest.raises(UserError, match="disk is full.*Make room"):
        advance(run)

    assert "disk is full" in ends_with(run)
    assert saved_step(run) == 4
    load_model(run)
    assert not list(run.glob("*.tmp"))
    empty(small_disk)
    advance(run)
    advance(prepare(tmp_path / "whole", small_folder))
    assert ends_with(run) == "finished"
    assert same_weights(run, tmp_path / "whole")


def test_a_disk_without_a_byte_left_leaves_whole_events_and_the_job_is_seen_as_cut_off(small_disk):
    run = small_disk / "run"
    run.mkdir()
    append_event(run / "events.jsonl", Step(1, 2.0, 1e-3, 10.0, 1.0))
    fill(small_disk, 0)

    with pytest.raises(OSError, match="No space left"):
        append_event(run / "events.jsonl", Finished({"words": "x" * 10_000}))

    before = (run / "events.jsonl").read_bytes()
    assert before.endswith(b"}\n")
    status = lifecycle.status(run)
    assert status.state == "interrupted"
    assert "disk is full" in status.why
    assert "disk is full" in run_status(status, "run", 100, None)
    empty(small_disk)
    append_event(run / "events.jsonl", Finished())
    assert ends_with(run) == "finished"


@pytest.mark.parametrize("room", [20_000, 40_000, 120_000])
def test_a_build_that_fills_the_disk_says_so_and_goes_on_to_the_same_corpus(small_disk, small_folder, room):
    source = write_jsonl(small_disk / "places.jsonl", records())
    corpus = small_disk / "corpus"
    prepare_corpus(corpus, [source], SMALL)
    fill(small_disk, room)

    with pytest.raises(UserError, match="disk is full"):
        list(run_build(corpus, lambda: False))

    assert not list(corpus.glob("*.tmp"))
    empty(small_disk)
    list(run_build(corpus, lambda: False))
    assert load_corpus(corpus).fingerprint == load_corpus(small_folder).fingerprint


def test_an_upload_that_does_not_fit_leaves_nothing_and_is_told_so(small_disk, tmp_path):
    workspace = Workspace.open(small_disk, new_code())
    source = tmp_path / "large.txt"
    source.write_bytes(b"word " * 400_000)
    fill(small_disk, 500_000)

    with pytest.raises(UserError, match=r"nearly full \(.*, 2.0 MB would come\)"):
        service.start_build(workspace, [("large.txt", source)], "mine", SMALL)

    assert not list((workspace.folder / "corpora").glob("*"))


def test_a_disk_that_fills_up_while_an_upload_is_taken_in_keeps_nothing_of_it(
    small_disk, tmp_path, monkeypatch
):
    workspace = Workspace.open(small_disk, new_code())
    source = tmp_path / "large.txt"
    source.write_bytes(b"word " * 400_000)
    before = service.check_space

    def then_others_fill_it(*looked) -> None:
        before(*looked)
        fill(small_disk, 500_000)

    monkeypatch.setattr(service, "check_space", then_others_fill_it)
    with pytest.raises(OSError, match="No space left") as error:
        service.start_build(workspace, [("large.txt", source)], "mine", SMALL)

    assert "disk is full" in describe_error(error.value)
    assert not list((workspace.folder / "corpora").glob("*"))


def test_a_trace_that_does_not_fit_leaves_the_one_before_whole(small_disk):
    workspace = Workspace.open(small_disk, new_code()).make()
    keep_trace(workspace, "one", small_trace(32))
    fill(small_disk, 4096)

    with pytest.raises(Exception, match="No space left") as error:
        keep_trace(workspace, "one", small_trace(64))

    assert "disk is full" in describe_error(error.value)
    kept = load_trace(workspace, "one")
    assert kept is not None
    assert len(kept.ids) == 32


def test_the_newest_trace_stays_also_where_the_clock_was_set_back(data_folder):
    workspace = Workspace.open(data_folder, new_code()).make()
    ahead = time.time() + 5 * HOUR
    for number in range(KEPT_TRACES):
        keep_trace(workspace, f"t{number}", small_trace(16))
        os.utime(workspace.trace(f"t{number}").with_suffix(".json"), (ahead + number, ahead + number))

    keep_trace(workspace, "newest", small_trace(16))

    assert load_trace(workspace, "newest") is not None
    assert load_trace(workspace, "t0") is None
    assert len(list((workspace.folder / "traces").glob("*.json"))) == KEPT_TRACES


def test_a_start_that_finds_the_disk_full_is_a_sentence_on_the_command_line(small_disk, small_folder, capsys):
    run = prepare(small_disk / "run", small_folder)
    advance(run, stop_after=4)
    fill(small_disk, 0)

    assert main.main(["train", "--out", str(run)]) == 2

    assert "disk is full" in capsys.readouterr().err
    assert "disk is full" in lifecycle.status(run).why or lifecycle.status(run).state == "stopped"
    assert saved_step(run) == 4


def test_a_file_that_may_grow_no_larger_ends_a_run_with_a_sentence_and_its_save_is_whole(
    tmp_path, small_folder
):
    run = prepare(tmp_path / "run", small_folder)
    advance(run, stop_after=4)
    limit = (run / "state.safetensors").stat().st_size - 1

    ended = subprocess.run(
        [sys.executable, "-m", "retro_demo", "train", "--out", str(run), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )

    assert ended.returncode == 2, ended.stderr
    assert "larger than this system lets one be" in json.loads(ended.stdout.splitlines()[-1])["error"]
    assert "Traceback" not in ended.stderr
    assert saved_step(run) == 4
    assert advance(run)[-1]["event"] == "finished"


def test_too_little_memory_ends_a_run_with_the_knobs_to_turn(tmp_path, small_folder):
    run = prepare(tmp_path / "run", small_folder, "lm", batch_size=4096, seq_len=256)
    most = 3_000_000_000

    ended = subprocess.run(
        [sys.executable, "-m", "retro_demo", "train", "--out", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)),
    )

    assert ended.returncode == 2, ended.stderr
    assert "not enough memory" in ends_with(run)
    assert "--batch-size (now 4096), --seq-len (now 256) or --dim (now 16)" in ends_with(run)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory on the GPU"),
        (MemoryError("std::bad_alloc"), "not enough memory for"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory for"),
        (OSError(28, "No space left on device"), "disk is full"),
        (OSError("1000 requested and 12 written"), "disk is full"),
        (OSError(122, "Disk quota exceeded"), "quota is used up"),
        (ValueError("a bug"), ""),
        (FileNotFoundError(2, "No such file"), ""),
    ],
)
def test_troubles_of_the_machine_are_told_apart_from_bugs(error, words):
    assert (words in describe_error(error)) if words else describe_error(error) == ""


def poison(run: Path) -> None:
    """Let the moments of a last save make weights infinite at the next step, with a loss that is sound."""
    tensors, meta = load_tensors(run / "state.safetensors")
    name = next(name for name in tensors if name.startswith("optimizer.exp_avg.") and tensors[name].ndim == 2)
    tensors[name][0, 0] = float("inf")
    save_tensors(run / "state.safetensors", tensors, meta)


@pytest.mark.parametrize("model", ["retro", "marge"])
def test_weights_that_are_no_numbers_never_replace_those_that_are(
    tmp_path,
    small_folder,
    marge_corpus,  # noqa: F811
    model,
):
    rhythm = {"save_every": 1, "eval_every": 100, "steps": 8}
    if model == "marge":
        run = prepare_marge(tmp_path / "run", marge_corpus, **rhythm)
    else:
        run = prepare(tmp_path / "run", small_folder, **rhythm)
    advance(run, stop_after=2)
    poison(run)

    with pytest.raises(UserError, match=r"at step 3\. The last save is kept.*learning rate below"):
        advance(run)

    assert saved_step(run) == 2
    kept, meta = load_tensors(run / "model.safetensors")
    assert meta["step"] == "2"
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert "Weights became" in ends_with(run)


def test_a_killed_worker_is_told_with_the_likely_reason(tmp_path, small_folder):
    run = prepare(tmp_path / "run", small_folder, steps=100_000, eval_every=100_000, save_every=100_000)
    lifecycle.start(run, "train")
    wait_until(lambda: lifecycle.status(run).of_kind("step"))

    os.kill(lifecycle.worker_of(run).number, signal.SIGKILL)

    wait_until(lambda: (run / "signal").exists())
    status = lifecycle.status(run)
    assert status.state == "interrupted"
    assert "signal 9" in status.why
    assert "ran out of memory" in run_status(status, "run", 100_000, None)
    lifecycle.start(run, "train")
    assert not (run / "signal").exists()
    wait_until(lambda: len(lifecycle.status(run).of_kind("started")) > 1)
    lifecycle.stop(run)
    wait_until(lambda: not lifecycle.is_running(run))
    assert lifecycle.status(run).why == ""


def test_a_crash_inside_native_code_is_told_with_its_signal():
    assert "SIGSEGV" in why_interrupted(int(signal.SIGSEGV), 10**9)
    assert "told to end (signal 15" in why_interrupted(int(signal.SIGTERM), 10**9)
    assert "without a word" in why_interrupted(0, 10**9)


def test_a_job_that_is_started_again_and_killed_at_once_is_not_what_it_was_before(tmp_path, small_folder):
    run = prepare(tmp_path / "run", small_folder, steps=100_000, eval_every=100_000, save_every=100_000)
    advance(run, stop_after=2)
    assert lifecycle.status(run).state == "stopped"

    with held_jobs():
        lifecycle.start(run, "train")
        os.kill(lifecycle.worker_of(run).number, signal.SIGKILL)  # before it can say anything

    wait_until(lambda: not lifecycle.is_running(run))
    assert lifecycle.status(run).state == "interrupted"


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumps_makes_no_dead_run_alive_and_no_live_one_dead(tmp_path, small_folder, hours):
    def jump() -> None:
        for path in run.iterdir():
            with suppress(FileNotFoundError):  # the job may have taken it away
                at = path.stat().st_mtime - hours * HOUR  # what the files look like after the clock was set
                os.utime(path, (at, at))

    run = prepare(tmp_path / "run", small_folder, steps=100_000, eval_every=100_000, save_every=100_000)
    with held_jobs():
        lifecycle.start(run, "train")
        jump()
        assert lifecycle.status(run).state == "running"  # it holds no lock yet
    wait_until(lambda: len(lifecycle.status(run).of_kind("step")) > 1)
    jump()
    status = lifecycle.status(run)
    assert status.state == "running"
    assert 0 <= lifecycle.seconds_at_work(run) < HOUR
    assert seconds_left(run, read_any_config(run), status) >= 0
    with pytest.raises(UserError, match="already running"):
        lifecycle.start(run, "train")

    os.kill(lifecycle.worker_of(run).number, signal.SIGKILL)

    wait_until(lambda: lifecycle.status(run).state == "interrupted")
    jump()
    assert lifecycle.status(run).state == "interrupted"
    assert lifecycle.seconds_at_work(run) == 0


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_stranger_that_was_given_the_number_of_a_dead_worker_is_neither_it_nor_signaled(tmp_path, stranger):
    run = tmp_path / "run"
    run.mkdir()
    append_event(run / "events.jsonl", Step(1, 2.0, 1e-3, 10.0, 1.0))
    dead = Process(stranger.pid, "4711@another-start", time.monotonic())
    dead.write(run / "pid")

    assert not lifecycle.is_running(run)
    assert not lifecycle.stop(run)
    assert lifecycle.status(run).state == "interrupted"
    time.sleep(0.2)
    assert stranger.poll() is None


def test_a_process_is_itself_at_each_look_and_nobody_once_it_has_ended(stranger, tmp_path):
    there = Process.of(stranger.pid)
    there.write(tmp_path / "pid")

    assert birth(stranger.pid) == there.birth != birth(os.getpid())
    assert Process.read(tmp_path / "pid").is_alive()
    stranger.kill()
    wait_until(lambda: not there.is_alive())  # not collected yet: a zombie is no worker
    assert stranger.returncode is None


def test_what_an_earlier_version_wrote_of_a_process_names_nobody(tmp_path):
    (tmp_path / "pid").write_text(str(os.getpid()))

    assert Process.read(tmp_path / "pid") is None
    assert not lifecycle.is_running(tmp_path)
    with lifecycle.claim(tmp_path):
        assert lifecycle.is_running(tmp_path)
        (tmp_path / "pid").write_text(str(os.getpid()))
        assert lifecycle.is_running(tmp_path)  # by its lock


@pytest.mark.proof
def test_three_kills_of_worker_and_server_lose_nothing():
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--kills", "3", "--steps", "60", "--seed", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
