"""The app where GPUs are lent for a call: with a stand-in for `spaces` that forks, in a server of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from browser_helpers import browser  # noqa: F401
from gradio_client import Client
from gradio_client.exceptions import AppError
from held_back import PATIENCE, wait_until
from marge_helpers import SHAPE
from page_helpers import client_of, served_app
from places import TESTS
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.explain.text import watch_writing
from retro_demo.generation.marge import grown, load_marge_run, write_from_evidence
from retro_demo.jobs import lifecycle
from retro_demo.runs.loading import load_run
from retro_demo.server import service
from retro_demo.server.gpu_lending import advance, slice_seconds
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import CorpusConfig, GenerateConfig
from retro_demo.training.trainer import run_training

STAND_IN = TESTS / "support" / "stand_in"
NETWORK = {"dim": 16, "depth": 2, "num_heads": 2, "cca_layers": (2,), "enc_dim": 16}
BRIEF = {
    "seq_len": 32,
    "batch_size": 2,
    "eval_tokens": 200,
    "save_every": 100,
    "eval_every": 100,
    "warmup": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def lending(place) -> Iterator[None]:
    """The environment of a ZeroGPU Space whose calls are too short for more than one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPACES_ZERO_GPU", "true")
        patch.setenv("SPACES_STAND_IN_CALLS", str(place / "calls"))
        patch.setenv("SPACES_STAND_IN_QUOTA", str(place / "quota"))
        patch.setenv("SPACES_STAND_IN_GATE", str(place / "gate"))
        patch.setenv("RETRO_DEMO_SLICE_SECONDS", "0.001")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")]))
        (place / "home").mkdir()
        patch.setenv("RETRO_DEMO_HOME", str(place / "home"))
        yield


@pytest.fixture(autouse=True)
def same_home(lending, place, data_folder, monkeypatch) -> None:
    """Tests of this file share the data folder of their server."""
    monkeypatch.setenv("RETRO_DEMO_HOME", str(place / "home"))


@pytest.fixture(scope="module")
def space(lending, place) -> Workspace:
    """A visitor with a small corpus."""
    workspace = Workspace.open(place / "home", new_code())
    source = place / "islands.txt"
    rows = (f"Island {n} exports fish, salt and {n * 7 % 50} boats of timber." for n in range(300))
    source.write_text("\n\n".join(rows), encoding="utf-8")
    folder = workspace.new_folder("corpora", "islands")
    prepare_corpus(folder, [source], CorpusConfig(chunk_len=8, vocab_size=300, num_neighbors=2))
    list(build_corpus(folder))
    return workspace


@pytest.fixture(scope="module")
def url(lending, place, space) -> Iterator[str]:
    with served_app(place / "home") as address:
        yield address


@pytest.fixture(scope="module")
def client(url) -> Iterator[Client]:
    with client_of(url) as opened:
        yield opened


def prepared(space: Workspace, name: str, steps: int) -> str:
    return service.start_run(space, "islands", "retro", "tiny", NETWORK | BRIEF | {"steps": steps}, name)


def follow(client: Client, space: Workspace, run: str) -> list[dict]:
    """All that is told until the run ends; raises AppError where it ends with an error."""
    job = client.submit(space.folder.name, run, api_name="/advance")
    told = list(job)
    job.result()
    return told


@contextmanager
def held_after(place: Path, calls: int) -> Iterator[None]:
    """So many calls are let through within the block, those that come later wait for its end."""
    (place / "beside").write_text(str(calls))
    (place / "beside").replace(place / "gate")
    try:
        yield
    finally:
        (place / "gate").unlink()


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().split("\n")[:-1] if (place / "calls").exists() else []


@pytest.fixture(scope="module")
def sliced(client, space, place) -> Path:
    """A run of three steps, trained in as many calls."""
    before = len(calls(place))
    run = prepared(space, "sliced", 3)
    told = follow(client, space, run)
    assert told[-1] == {"run": run, "state": "finished", "step": 3, "steps": 3}
    assert calls(place)[before:] == ["advance 1"] * 3
    return space.run(run)


@pytest.fixture(scope="module")
def never_sliced(space) -> Path:
    """The same run, trained at once in this process."""
    folder = space.run(prepared(space, "whole", 3))
    list(run_training(folder, lambda: False))
    return folder


def test_making_a_run_starts_no_process_where_gpus_are_lent(space):
    folder = space.run(prepared(space, "only made", 3))

    assert lifecycle.status(folder).state == "new"
    assert not (folder / "pid").exists()


def test_a_run_trained_in_slices_has_the_weights_of_one_never_sliced(sliced, never_sliced):
    assert same_weights(sliced, never_sliced)


def test_the_record_of_a_sliced_run_has_each_step_once_and_one_end(sliced, never_sliced):
    def told(folder: Path) -> list[tuple[str, int]]:
        kept = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        return [(e["event"], e["step"]) for e in kept if e["event"] in ("step", "evaluated", "finished")]

    assert told(sliced) == told(never_sliced)


def test_who_leaves_stops_the_run_and_can_go_on_later(client, space, place, never_sliced):
    run = prepared(space, "left", 6)
    with held_after(place, 2):
        job = client.submit(space.folder.name, run, api_name="/advance")
        next(iter(job))
        job.cancel()
        folder = space.run(run)
        wait_until(lambda: lifecycle.stop_asked(folder))
    for _ in service.follow(folder):
        pass

    status = lifecycle.status(folder)
    assert status.state == "stopped"
    assert 1 <= len(status.of_kind("step")) < 6
    assert client.predict(space.folder.name, run, api_name="/run_status")["state"] == "stopped"
    told = follow(client, space, run)
    assert told[-1]["state"] == "finished"
    assert [e["step"] for e in lifecycle.status(folder).of_kind("step")] == list(range(1, 7))


def test_stop_ends_a_sliced_run_with_a_save(client, space, place):
    run = prepared(space, "asked", 6)
    with held_after(place, 2):
        job = client.submit(space.folder.name, run, api_name="/advance")
        next(iter(job))
        assert client.predict(space.folder.name, run, api_name="/stop_run") == {"run": run, "asked": True}

    assert list(job)[-1]["state"] == "stopped"
    assert lifecycle.status(space.run(run)).of_kind("saved")


def test_a_run_that_is_driven_is_not_driven_twice(client, space, place):
    run = prepared(space, "twice", 6)
    with held_after(place, 2):
        job = client.submit(space.folder.name, run, api_name="/advance")
        next(iter(job))

        with pytest.raises(AppError, match="already running"):
            follow(client, space, run)
    client.predict(space.folder.name, run, api_name="/stop_run")
    list(job)


def test_a_quota_used_up_is_one_sentence_and_the_run_can_go_on(client, space, place, never_sliced):
    run = prepared(space, "poor", 3)
    (place / "quota").write_text("2")
    try:
        with pytest.raises(AppError, match=r"exceeded your free ZeroGPU quota .*Resume goes on") as told:
            follow(client, space, run)
    finally:
        (place / "quota").unlink()

    assert "<a" not in str(told.value)
    assert lifecycle.status(space.run(run)).state == "stopped"
    assert follow(client, space, run)[-1]["state"] == "finished"
    assert same_weights(space.run(run), never_sliced)


def test_what_is_wrong_inside_the_call_is_said_in_its_own_words(client, space):
    run = prepared(space, "broken", 3)
    config = space.run(run) / "config.json"
    config.write_text(config.read_text().replace('"corpus_fingerprint": "', '"corpus_fingerprint": "0'))

    with pytest.raises(AppError, match="has changed since this run was trained"):
        follow(client, space, run)


def test_a_text_is_written_in_a_call_and_stays_the_same(client, space, place, sliced):
    words = "Island 3 exports fish"
    before = len(calls(place))
    told = list(
        client.submit(space.folder.name, sliced.name, words, 20, 0.8, 0, 0.95, 7, "on", api_name="/generate")
    )
    config = GenerateConfig(max_new_tokens=20, temperature=0.8, top_k=0, top_p=0.95, seed=7)
    here = list(watch_writing(load_run(sliced), "sliced", words, config, lambda: False))

    assert calls(place)[before:] == ["write 30"]
    assert told[-1]["done"]
    assert told[-1]["text"] == "".join(here[-1].pieces)
    assert told[-1]["chunks"]


@pytest.fixture(scope="module")
def sliced_marge(client, space, place) -> Path:
    """A MARGE of two steps, trained in as many calls."""
    before = len(calls(place))
    brief = SHAPE | {"steps": 2, "eval_every": 100, "save_every": 100, "eval_tokens": 200}
    run = service.start_run(space, "islands", "marge", "tiny", brief, "sliced marge")
    assert follow(client, space, run)[-1] == {"run": run, "state": "finished", "step": 2, "steps": 2}
    assert calls(place)[before:] == ["advance 1"] * 2
    return space.run(run)


def test_a_marge_trained_in_slices_writes_in_a_call_what_it_writes_anywhere(
    client, space, place, sliced_marge
):
    before = len(calls(place))
    asked = {"prompt": "Island 3 exports", "max_new_tokens": 12, "seed": 7}
    job = client.submit(space.folder.name, sliced_marge.name, **asked, api_name="/generate")
    told = list(job)
    config = GenerateConfig(max_new_tokens=12, seed=7)
    run = load_marge_run(sliced_marge)
    here = list(
        grown(run, asked["prompt"], write_from_evidence(run, asked["prompt"], config), run.folder.name)
    )

    assert calls(place)[before:] == ["write_marge 30"]
    assert told[-1]["done"]
    assert told[-1]["text"] == here[-1]["text"]
    assert told[-1]["chunks"][0]["neighbors"] == here[-1]["chunks"][0]["neighbors"]


def test_what_a_marge_cannot_write_from_is_said_in_its_own_words(client, space, sliced_marge):
    with pytest.raises(AppError, match="neither a prompt nor evidence"):
        client.predict(space.folder.name, sliced_marge.name, "", 20, api_name="/generate")


FORKS = """
import os, signal, sys, threading, time
import spaces
from retro_demo.server.model_cache import ModelCache
from retro_demo.runs.loading import LoadedRun
from retro_demo.models.memory import count_parameters
from retro_demo.models.config import RetroConfig
from retro_demo.server.gpu_lending import advance
from retro_demo.ui.zero_gpu import get_ready, lent
from retro_demo.paths import CHECKPOINTS, data_home

cache = ModelCache(data_home()[0])
get_ready(cache)
begun = threading.Event()

def load():
    while True:
        cache.run(CHECKPOINTS / "factbook-lm")
        begun.set()
        cache.forget(CHECKPOINTS)

threading.Thread(target=count_parameters, args=(RetroConfig(),), daemon=True).start()
time.sleep(0.3)  # would be in the midst of importing the compiler of torch
for _ in range(2):
    print(lent(cache, advance, 1)(sys.argv[1], 1e-9).state, flush=True)
threading.Thread(target=load, daemon=True).start()
begun.wait()
# until Python 3.12 a thread that works out a cached property holds a lock of it
held = vars(vars(LoadedRun)["bm25"]).get("lock", threading.RLock())
threading.Thread(target=held.acquire).start()
if (child := os.fork()) == 0:
    signal.alarm(200)  # ends it where it hangs
    cache.run(CHECKPOINTS / "factbook-lm")
    with vars(vars(LoadedRun)["bm25"]).get("lock", threading.RLock()):
        os._exit(0)
print("exit", os.waitpid(child, 0)[1], flush=True)
os._exit(0)
"""


@pytest.mark.proof
def test_a_call_that_is_forked_while_another_thread_loads_runs_comes_to_its_end(space):
    folder = space.run(prepared(space, "forked", 40))
    told = subprocess.run(
        [sys.executable, "-c", FORKS, str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )

    assert told.stdout.split() == ["stopped", "stopped", "exit", "0"]
    assert [e["step"] for e in lifecycle.status(folder).of_kind("step")] == [1, 2]


OPENINGS = """
import os, signal, sys, threading, time
from pathlib import Path
from safetensors import safe_open
from retro_demo.server.gpu_lending import warm_up

def read(arrays):
    with safe_open(sys.argv[1], arrays) as file:
        file.get_tensor("any")

warm_up()
sys.setswitchinterval(5)  # so that this thread goes on just where the other one lets go of the interpreter
children = []
for arrays in ("pt", "numpy") * 8:
    reading = threading.Thread(target=read, args=(arrays,))
    reading.start()
    while reading.is_alive():
        if (child := os.fork()) == 0:
            signal.alarm(200)  # ends it where it hangs
            read(arrays)
            os._exit(0)
        children.append(child)
        time.sleep(0)
ended = [os.waitpid(child, 0)[1] for child in children]
print(len(ended), sum(ended), flush=True)
os._exit(0)
"""


def test_a_fork_made_while_tensors_are_first_read_can_read_some_itself(tmp_path):
    save_file({"any": torch.zeros(1)}, tmp_path / "any.safetensors")
    told = [
        subprocess.run(
            [sys.executable, "-c", OPENINGS, str(tmp_path / "any.safetensors")],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]

    assert any(forks != "0" for forks, _ in told)
    assert [ended for _, ended in told] == ["0"] * 2


def test_an_error_while_writing_in_a_call_is_said_in_its_own_words(client, space, sliced):
    with pytest.raises(AppError, match="room|tokens"):
        client.predict(space.folder.name, sliced.name, "Island " * 200, 20, api_name="/generate")


def test_a_slice_does_at_least_one_step(space):
    folder = space.run(prepared(space, "one", 3))

    assert advance(str(folder), 1e-9).state == "stopped"
    assert [e["step"] for e in lifecycle.status(folder).of_kind("step")] == [1]


@pytest.mark.parametrize("said", ["soon", "0", "-3", "1e9", "nan"])
def test_a_nonsensical_slice_is_refused(said):
    with pytest.raises(Exception, match="RETRO_DEMO_SLICE_SECONDS"):
        slice_seconds({"RETRO_DEMO_SLICE_SECONDS": said})


SOON = 60_000  # milliseconds


@pytest.mark.proof
@pytest.mark.browser
@pytest.mark.timeout(540)
def test_the_page_trains_while_the_visitor_stays_stops_when_they_leave_and_resumes(
    url,
    space,
    browser,  # noqa: F811
):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(SOON)
    page.goto(url)
    page.get_by_text("Your workspace").first.click()
    box = page.locator("#code textarea, #code input").first
    expect(box).not_to_have_value("", timeout=SOON)
    box.fill(space.folder.name)
    with page.expect_navigation():
        page.locator("#open-workspace").click()
    late = hold_looks_at_runs(page, url)
    page.get_by_role("tab", name="Train", exact=True).click()
    choose(page, "#train-corpus", "islands")
    page.get_by_label("Plain lm", exact=True).check()
    page.locator("#run-name textarea, #run-name input").first.fill("by hand")
    page.locator("#train").click()
    expect(page.locator("#run-status")).to_contain_text("by-hand", timeout=SOON)
    ((route, answer),) = late
    route.fulfill(response=answer)
    page.wait_for_timeout(1000)  # for the page to take the answer
    expect(page.locator("#train-run input")).to_have_value("by-hand")
    expect(page.locator("#run-status")).to_contain_text("by-hand")
    expect(page.locator("#run-status .badge")).to_have_text("running", timeout=SOON)
    expect(page.locator("#run-status")).to_contain_text("step ", timeout=SOON)
    page.close()
    folder = space.run("by-hand")
    for _ in service.follow(folder):
        pass
    steps = len(lifecycle.status(folder).of_kind("step"))
    assert lifecycle.status(folder).state == "stopped"
    assert steps

    page = context.new_page()
    page.set_default_timeout(SOON)
    page.goto(url)
    page.get_by_role("tab", name="Train", exact=True).click()
    choose(page, "#train-run", "by-hand")
    expect(page.locator("#run-status .badge")).to_contain_text("stopped", timeout=SOON)
    page.locator("#resume-training").click()
    expect(page.locator("#run-status .badge")).to_have_text("running", timeout=SOON)
    page.locator("#stop-training").click()
    expect(page.locator("#run-status .badge")).to_contain_text("stopped", timeout=SOON)
    assert len(lifecycle.status(folder).of_kind("step")) > steps
    context.close()


def hold_looks_at_runs(page, url: str) -> list:
    """The answer with the lists of the Train tab when it is opened: held back, as by a busy server."""
    config = json.load(urlopen(url + "config"))
    (runs,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == "train-run")
    looks = {
        one["id"]
        for one in config["dependencies"]
        if runs in one["outputs"] and any(event == "select" for _, event in one["targets"])
    }
    held = []

    def pass_on(route) -> None:
        if (route.request.post_data_json or {}).get("fn_index") in looks and not held:
            held.append((route, route.fetch()))
        else:
            route.continue_()

    page.route("**/run/predict*", pass_on)
    return held


def choose(page, dropdown: str, option: str) -> None:
    field = page.locator(f"{dropdown} input")
    expect(field).not_to_have_value("", timeout=SOON)
    if field.input_value() != option:
        field.click()
        page.get_by_role("option", name=option, exact=True).click()
    expect(field).to_have_value(option, timeout=SOON)
