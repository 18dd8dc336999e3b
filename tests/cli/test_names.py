"""What a verb makes of a single word: a path from here, else a corpus or run of the data folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
from cli_helpers import run
from page_helpers import lend_samples
from small_readers import prepare_tuned, small_base

from retro_demo.cli import main
from retro_demo.cli.listing import short_names
from retro_demo.cli.next_step import next_step
from retro_demo.models.tuned import Tuned
from retro_demo.paths import CHECKPOINTS
from retro_demo.runs.checkpoint import read_any_config, save_weights

CODE = "c0de" * 6


@pytest.fixture
def kept(data_folder, small_corpus, tmp_path, monkeypatch) -> Path:
    """The workspace of a visitor with a corpus `places` and a run `plain`; the shell is elsewhere."""
    lend_samples(data_folder)  # the run reads one of them
    folder = data_folder / "workspaces" / CODE
    shutil.copytree(small_corpus.folder, folder / "corpora" / "places")
    shutil.copytree(CHECKPOINTS / "factbook-lm", folder / "runs" / "plain")
    monkeypatch.chdir(tmp_path)
    return folder


def test_list_shows_short_names_and_verbs_take_them(capsys, kept):
    code, events, _ = run(capsys, "list", "--json")
    assert code == 0
    short = {one["short"]: one for one in events[-1]["listed"]}
    assert {short["places"]["kind"], short["plain"]["kind"]} == {"corpus", "run"}
    assert all(CODE not in one["name"] for one in short.values())

    code, events, _ = run(capsys, "search", "places", "Area of Arden", "--json")
    assert code == 0
    assert events[-1]["neighbors"]
    code, events, _ = run(capsys, "generate", "plain", "--prompt", "x", "--max-new-tokens", 2, "--json")
    assert code == 0
    assert events[-1]["new_tokens"] == 2
    code, events, _ = run(capsys, "status", "plain", "--json")
    assert [job["kind"] for job in events[-1]["jobs"]] == ["run"]

    assert main.main(["list"]) == 0
    assert {"places", "plain"} <= {line.split()[1] for line in capsys.readouterr().out.splitlines()}


def test_a_path_that_is_there_wins_over_a_short_name(capsys, kept):
    Path("places").mkdir()

    code, _, err = run(capsys, "search", "places", "x")

    assert code == 2
    assert "links" not in err
    _, events, _ = run(capsys, "list", "--json")
    (one,) = [one for one in events[-1]["listed"] if one["kind"] == "corpus" and "sample:" not in one["name"]]
    assert one["short"] == one["name"], "the name would mean another folder from here"


def test_a_training_goes_on_by_its_short_name_and_help_knows_what_a_base_is(capsys, kept, tmp_path):
    code, _, err = run(capsys, "train", "--out", "plain", "--steps", 9_000)
    assert code == 2
    assert "ships without its optimizer state" in err  # it was found

    fine = prepare_tuned(kept / "runs" / "fine", kept / "corpora" / "places", small_base(tmp_path / "base"))
    save_weights(fine, Tuned(read_any_config(fine).network), 1)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        main.main(["train", "retrofit", "--base", "fine", "--help"])
    assert "of kind reader" in " ".join(capsys.readouterr().out.split())


def test_a_name_of_two_folders_is_refused_with_their_paths(capsys, kept):
    shutil.copytree(kept / "runs" / "plain", kept.parent / CODE[::-1] / "runs" / "plain")

    code, _, err = run(capsys, "generate", "plain", "--prompt", "x")

    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.count("/runs/plain") == 2
    assert CODE not in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["search", "placs", "x"], "places"),
        (["generate", "plan", "--prompt", "x"], "plain"),
        (["generate", "factbook-lm", "--prompt", "x"], "sample:factbook-lm"),
        (["evaluate", "plan"], "plain"),
    ],
)
def test_a_name_of_nothing_is_answered_with_one_of_the_data_folder(capsys, kept, words, meant):
    code, _, err = run(capsys, *words)

    assert code == 2
    assert f"Did you mean {meant!r}?" in err


def test_the_next_command_names_what_lies_in_the_data_folder_by_its_short_name(kept):
    run_of_page = kept / "runs" / "plain"
    asked = argparse.Namespace(command="export", out="plain.zip", run=str(run_of_page))
    assert next_step(asked, {"out": "plain.zip", "name": "plain"}) == "import plain.zip --as plain-again"
    asked = argparse.Namespace(command="add-documents", corpus=str(kept / "corpora" / "places"), out=None)
    assert next_step(asked, {"documents": 1}) == "study --corpus places --out places-study"


def test_what_is_neither_corpus_nor_run_has_no_short_name(tmp_path):
    made = [(tmp_path / "a", "study"), (tmp_path / "b", "run"), (tmp_path / "c" / "b", "corpus")]
    assert short_names(made) == {}
    assert list(short_names(made[:2]).values()) == ["b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "texts", "x"], "There is no corpus at texts. Build"),
        (["search", "plain", "x", "here"], "What lies there is a run."),
        (["train", "lm", "--corpus", "texts", "--out", "r"], "There is no corpus at texts."),
        (["generate", "texts", "--prompt", "x"], "There is no run at texts. Name"),
        (["generate", "places", "--prompt", "x", "here"], "What lies there is a corpus."),
        (["generate", "sample:udhr44", "--prompt", "x"], "There is no run sample:udhr44."),
        (["explain", "sample:factbook-lm", "--text", "a b c", "--prompt-tokens", "2"], "give those"),
        (["import", "texts"], "it is no export"),
    ],
)
def test_a_place_that_holds_something_else_is_said_to(capsys, kept, words, said):
    Path("texts").mkdir()
    Path("texts", "a.txt").write_text("Some words.", encoding="utf-8")
    if words[-1] == "here":  # another kind than the verb takes, by a path
        (path,) = kept.glob(f"*/{words[1]}")
        words = [words[0], path, *words[2:-1]]

    code, _, err = run(capsys, *words)

    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
