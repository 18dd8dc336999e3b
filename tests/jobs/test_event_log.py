"""Looking at the events of a job again and again: the same as reading the file, for less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retro_demo.events import Saved, Stopped, Warned, append_event, cut_back, drop_endings, read_events
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import EventLog


@pytest.fixture
def path(tmp_path) -> Path:
    for step in range(1, 101):
        append_event(tmp_path / "events.jsonl", Saved(step))
    return tmp_path / "events.jsonl"


@pytest.fixture
def lines_read(monkeypatch) -> list[str]:
    """The lines that were taken apart since, one after the other."""
    seen, real = [], lifecycle.events_of

    def counted(lines):
        kept = list(lines)
        seen.extend(kept)
        return real(kept)

    monkeypatch.setattr(lifecycle, "events_of", counted)
    return seen


def test_of_a_job_that_goes_on_only_what_is_new_is_read(path, lines_read):
    assert lifecycle.status(path.parent).events == read_events(path)
    assert len(lines_read) == 100

    assert lifecycle.status(path.parent).events == read_events(path)
    append_event(path, Saved(101))
    assert lifecycle.status(path.parent).events == read_events(path)

    assert len(lines_read) == 101


def test_what_was_written_anew_is_read_anew(path):
    log = EventLog(10**6)
    log.read(path)
    changes = [
        lambda: append_event(path, Stopped("asked")),
        lambda: drop_endings(path),
        lambda: cut_back(path, 40),
        lambda: [append_event(path, Saved(step)) for step in range(41, 141)],
        lambda: path.write_bytes(path.read_bytes().replace(b'"step": 140', b'"step": 999')),  # in place
        lambda: path.write_bytes(path.read_bytes()[:300]),
        lambda: append_event(path, Warned("after a torn line \u2028 of words \u00e9")),
        lambda: path.write_bytes(b"\xff\xfe no event\n"),
        lambda: path.unlink(),
        lambda: append_event(path, Saved(1)),
    ]
    for change in changes:
        change()
        assert log.read(path) == read_events(path)


def test_a_line_that_is_being_written_comes_when_it_is_whole(path):
    log = EventLog(10**6)
    log.read(path)
    line = json.dumps({"event": "saved", "step": 101})
    with path.open("a") as file:
        file.write(line[:9])
        file.flush()
        assert len(log.read(path)) == 100
        file.write(line[9:] + "\n")

    assert log.read(path)[-1] == {"event": "saved", "step": 101}


def test_what_is_kept_is_bounded_and_what_was_not_seen_for_longest_goes_first(tmp_path, path, lines_read):
    size = path.stat().st_size
    paths = [tmp_path / name for name in "abc"]
    for each in paths:
        each.write_bytes(path.read_bytes())
    log = EventLog(size * 2)

    for each in (paths[0], paths[1], paths[0], paths[2]):
        log.read(each)
    assert len(lines_read) == 300
    log.read(paths[0])
    log.read(paths[2])
    assert len(lines_read) == 300
    log.read(paths[1])
    assert len(lines_read) == 400

    large = EventLog(size - 1)
    assert large.read(path) == read_events(path)
    assert not large._seen


def test_a_reader_cannot_shorten_what_another_sees(path):
    log = EventLog(10**6)
    log.read(path).clear()

    assert len(log.read(path)) == 100
