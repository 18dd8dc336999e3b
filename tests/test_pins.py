"""What others rely on, held fast: flags, endpoints, events, keys of weights, and what version 0.5.0 made.

`python -m tests.test_pins` writes the files in tests/data/pins anew. Names may join; none may go.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from page_helpers import lend_samples
from places import TESTS
from safetensors import safe_open

from retro_demo import events
from retro_demo.cli.main import build_parser, main
from retro_demo.models.memory import shapes_of
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.server.limits import PRIVATE
from retro_demo.ui.page import build_app

DATA = TESTS / "data"
PINS = DATA / "pins"
OLD = DATA / "made_by_0_5_0"
KINDS = ("lm", "retro", "retrofit", "marge")


def flags() -> dict[str, list[dict[str, Any]]]:
    """Each verb's arguments: names, choices, default, how many values."""
    parser = build_parser()
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    return {
        verb: [
            {
                "names": list(action.option_strings) or [action.dest],
                "choices": list(action.choices) if action.choices else None,
                "default": json.loads(json.dumps(action.default, default=str)),
                "nargs": action.nargs,
                "required": action.required,
            }
            for action in one._actions
            if action.dest != "help"
        ]
        for verb, one in verbs.items()
    }


def endpoints() -> dict[str, Any]:
    """Each endpoint's arguments: name, Python type, default."""
    with tempfile.TemporaryDirectory() as home:
        demo, _ = build_app(Path(home), "", PRIVATE)
        info = demo.get_api_info()["named_endpoints"]
        demo.close()
    return {
        name: [
            {
                "name": argument["parameter_name"],
                "type": argument["python_type"]["type"],
                "has_default": argument["parameter_has_default"],
                "default": argument.get("parameter_default"),
            }
            for argument in one["parameters"]
        ]
        for name, one in sorted(info.items())
    }


def event_fields() -> dict[str, dict[str, str]]:
    """The fields of each event, with their types, under the name that it has in JSON."""
    return {
        name: {field.name: str(field.type) for field in fields}
        for name, fields in sorted(events.PARTS.items())
    }


PINNED = {"flags": flags, "endpoints": endpoints, "events": event_fields}


def pinned(name: str) -> Any:
    return json.loads((PINS / f"{name}.json").read_text("utf-8"))


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """The events of a command that ends well."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def ids(told_events: list[dict[str, Any]]) -> list[int]:
    return [event["id"] for event in told_events if event["event"] == "token"]


@pytest.fixture
def old(tmp_path) -> Path:
    """The corpus and the runs that 0.5.0 made, moved to another place with their configs."""
    shutil.copytree(OLD, tmp_path / "old")
    for kind in KINDS:
        path = tmp_path / "old" / kind / "config.json"
        config = json.loads(path.read_text("utf-8"))
        config["corpus"] = str(tmp_path / "old" / "corpus")
        if config.get("base"):
            config["base"] = str(tmp_path / "old" / config["base"])
        path.write_text(json.dumps(config), encoding="utf-8")
    return tmp_path / "old"


def test_every_flag_stays_with_its_choices_and_default():
    now = flags()
    for verb, arguments in pinned("flags").items():
        there = {tuple(one["names"]): one for one in now[verb]}
        for argument in arguments:
            one = there[tuple(argument["names"])]
            assert set(argument["choices"] or ()) <= set(one["choices"] or ()), (verb, argument)
            assert one | {"choices": None} == argument | {"choices": None}, (verb, argument)


def test_every_endpoint_stays_with_its_arguments_in_order():
    now = endpoints()
    for name, arguments in pinned("endpoints").items():
        assert now[name][: len(arguments)] == arguments, name
        assert all(one["has_default"] for one in now[name][len(arguments) :]), name


def test_every_event_keeps_its_name_and_its_fields():
    now = event_fields()
    for name, fields in pinned("events").items():
        assert fields.items() <= now[name].items(), name
    made = {kind().to_json()["event"] for kind in (events.Finished, events.Stopped)}
    assert made == {"finished", "stopped"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_a_run_keep_their_keys_and_shapes(kind):
    with safe_open(OLD / kind / "model.safetensors", "pt") as file:
        kept = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    assert dict(shapes_of(read_any_config(OLD / kind).network)) == kept


def test_the_shipped_runs_write_the_texts_that_are_pinned(data_folder, capsys):
    lend_samples(data_folder)
    of_lm = ["--prompt", "Area of the country"]
    of_marge = ["--prompt", "", "--evidence", "udhr/26/eng", "--language", "en"]

    for run, expected in json.loads((PINS / "shipped_texts.json").read_text("utf-8")).items():
        begun = of_marge if run == "rights-marge" else of_lm
        how = [*begun, "--temperature", 0, "--max-new-tokens", len(expected)]
        assert ids(told(capsys, "generate", f"sample:{run}", *how)) == expected, run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_0_5_0_writes_its_text_and_goes_on_training(kind, old, capsys):
    expected = json.loads((OLD / "expected.json").read_text("utf-8"))[kind]
    run = old / kind
    how = ["--prompt", "Area of", "--temperature", 0, "--max-new-tokens", 24]

    assert ids(told(capsys, "generate", run, *how)) == expected["greedy"]
    steps = [e for e in told(capsys, "train", "--out", run, "--steps", 410) if e["event"] == "step"]
    assert [step["step"] for step in steps] == list(range(401, 411))
    for step, loss in zip(steps, expected["losses_of_ten_more_steps"], strict=True):
        assert math.isclose(step["loss"], loss, rel_tol=1e-3), step
    assert ids(told(capsys, "generate", run, *how)) == expected["greedy_after"]


def test_a_corpus_of_0_5_0_is_searched_and_grows(old, capsys):
    (end,) = told(capsys, "search", old / "corpus", "Population of Morrow", "-k", 1)
    assert "Morrow" in end["neighbors"][0]["text"]
    new = old / "new.txt"
    new.write_text("Area of Newland: 12 square km, estimated in 1999.\n" * 3, encoding="utf-8")
    assert told(capsys, "add-documents", old / "corpus", new, "--out", old / "grown")[-1]["documents"] == 15


def write() -> None:
    PINS.mkdir(exist_ok=True)
    for name, make in PINNED.items():
        (PINS / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
