"""The verb `evaluate` on the command line: what it prints, where it puts it, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_helpers import words_of
from evaluation_helpers import make_run

from retro_demo.cli import main
from retro_demo.settings import EvaluateConfig, settings_of

QUICK = ["--first-tokens", "150", "--max-tokens", "200", "--resamples", "200", "--prepend", "off"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, half_held_out) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "reader": str(make_run(folder / "reader", half_held_out.folder, "retro", seed=1)),
        "plain": str(make_run(folder / "plain", half_held_out.folder, "lm", seed=1)),
    }


def said(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_last_line_holds_arms_verdict_and_counts(capsys, runs):
    code = main.main(["evaluate", runs["reader"], "--baseline", runs["plain"], *QUICK, "--json"])
    last = said(capsys)[-1]

    assert code == 0
    assert last["event"] == "finished"
    assert {"nats", "bpb", "ci"} <= set(last["arms"]["on"])
    assert last["counts"]["documents"] == 7
    assert 0 <= last["arms"]["on"]["reach"] <= 1
    assert last["counts"]["looks"] > 0
    assert isinstance(last["verdict"], str)


def test_the_command_in_the_provenance_measures_the_same(capsys, runs, tmp_path):
    arguments = ["evaluate", runs["reader"], *QUICK, "--corruption", "0,40", "--seed", "3", "--json"]
    assert main.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    first = said(capsys)[-1]
    words = words_of(first["provenance"]["command"])
    assert main.main([*words, "--out", str(tmp_path / "two"), "--json"]) == 0
    second = said(capsys)[-1]

    assert first["arms"] == second["arms"]
    assert "oracle_40" in first["arms"]


def test_without_out_it_lies_with_the_run_and_goes_on_by_its_folder_alone(capsys, runs):
    assert main.main(["evaluate", runs["reader"], *QUICK, "--seed", "4", "--json"]) == 0
    first = said(capsys)[-1]
    folders = sorted(Path(runs["reader"], "evaluations").iterdir(), key=lambda path: path.stat().st_mtime)
    assert main.main(["evaluate", "--out", str(folders[-1]), "--json"]) == 0

    assert said(capsys)[-1]["arms"] == first["arms"]


def test_people_get_a_table_and_the_verdict_as_the_last_line(capsys, runs):
    assert main.main(["evaluate", runs["reader"], "--baseline", runs["plain"], *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert lines[-1].startswith(("Retrieval", "Not decided"))
    assert any(line.startswith("shuffled ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{plain}"], "plain lm"),
        (["{reader}", "--baseline", "{reader}"], "retrieves too"),
        (["{reader}", "--max-tokens", "-1"], "max_tokens is -1"),
        ([], "Name the run to measure"),
        (["--out", "{reader}"], "no evaluation at"),
    ],
)
def test_a_mistake_is_one_sentence_and_2(capsys, runs, arguments, words):
    assert main.main(["evaluate", *(part.format(**runs) for part in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_every_knob_of_an_evaluation_is_a_flag():
    options = main.build_parser().parse_args(["evaluate", "RUN"])

    for setting in settings_of(EvaluateConfig):
        assert getattr(options, setting.name) is None
