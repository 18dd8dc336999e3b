"""Metrics of a run in the files of TensorBoard and the projects of Trackio, made from its events."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import run
from conftest import records, write_jsonl

from retro_demo.cli import main
from retro_demo.events import Evaluated, Finished, Started, Step, append_event, cut_back, read_events
from retro_demo.runs import metrics_export
from retro_demo.runs.metrics_export import export_metrics, metrics_of

ARMS = {"on": {"nats": 2.0, "bpb": 1.0, "tokens": 10}, "off": {"nats": 3.0, "bpb": 1.5, "tokens": 10}}
TOLD = [
    Started("retro"),
    *(Step(n, 5.0 - n, 0.1, 100.0, 1.0) for n in (1, 2)),
    Evaluated(2, ARMS),
    Finished(),
]


def test_a_step_and_a_measurement_tell_metrics_and_other_events_none():
    started, step, _, evaluated, finished = (event.to_json() for event in TOLD)

    assert metrics_of(step)["train/loss"] == 4.0
    assert metrics_of(evaluated) == {
        "held_out/on": 2.0,
        "held_out/off": 3.0,
        "bits_per_byte/on": 1.0,
        "bits_per_byte/off": 1.5,
    }
    assert metrics_of(started) == metrics_of(finished) == {}


@pytest.mark.parametrize("flag", ["tensorboard", "trackio"])
def test_a_package_that_is_missing_is_named_before_any_work(capsys, monkeypatch, tmp_path, flag):
    monkeypatch.setattr(metrics_export, "find_spec", lambda _name: None)

    code, events, err = run(capsys, "train", "--out", tmp_path / "r", f"--{flag}", tmp_path / "x", "--json")

    assert code == 2
    assert f"pip install {flag}" in err
    assert [event["event"] for event in events] == ["failed"]
    assert not (tmp_path / "x").exists()


def test_without_the_flags_events_pass_as_they_are(tmp_path):
    assert list(export_metrics(TOLD, tmp_path)) == TOLD
    assert not list(tmp_path.iterdir())


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads in a folder: (step, value) of each tag."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = reading.EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_tensorboard_reads_a_training_that_was_resumed_and_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    folder, logs = tmp_path / "harbor", tmp_path / "logs"
    folder.mkdir()
    events = folder / "events.jsonl"

    def job(told):
        for event in told:
            append_event(events, event)
            yield event

    list(export_metrics(job(TOLD), folder, tensorboard=logs))
    cut_back(events, 1)
    list(export_metrics(job([TOLD[0], *TOLD[2:]]), folder, tensorboard=logs))

    read = scalars(logs / "harbor")
    assert read["train/loss"] == [(1, 4.0), (2, 3.0)]
    assert read["held_out/off"] == [(2, 3.0)]
    assert len(read_events(events)) == 6


def test_a_finished_run_is_exported_by_its_folder_alone(capsys, tmp_path):
    pytest.importorskip("tensorboard")
    source = write_jsonl(tmp_path / "places.jsonl", records())
    shape = ["--chunk-len", "8", "--vocab-size", "400"]
    assert main.main(["build-corpus", str(source), "--out", str(tmp_path / "c"), *shape]) == 0
    size = ["--dim", "16", "--depth", "1", "--num-heads", "2", "--seq-len", "32", "--eval-tokens", "200"]
    words = ["train", "lm", "--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "r"), "--steps", "3"]
    assert main.main([*words, *size]) == 0
    capsys.readouterr()

    flags = ["--tensorboard", str(tmp_path / "logs"), "--json"]
    code, told, _ = run(capsys, "train", "--out", tmp_path / "r", *flags)

    assert code == 0
    assert [event["event"] for event in told] == ["started", "finished"]
    steps = [e for e in read_events(tmp_path / "r" / "events.jsonl") if e["event"] == "step"]
    read = scalars(tmp_path / "logs" / "r")["train/loss"]
    assert read == [(e["step"], pytest.approx(e["loss"])) for e in steps]


def test_trackio_holds_a_run_once_however_often_it_is_exported(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read when the package is imported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trackio = pytest.importorskip("trackio")
    folder = tmp_path / "harbor"
    folder.mkdir()
    for _ in range(2):
        list(export_metrics(TOLD, folder, trackio="places"))

    assert capsys.readouterr().out == ""
    (kept,) = trackio.Api().runs("places")
    assert kept.name == "harbor"
    stored = trackio.sqlite_storage.SQLiteStorage.get_logs("places", "harbor")
    assert [(one["step"], one["train/loss"]) for one in stored if "train/loss" in one] == [(1, 4.0), (2, 3.0)]
