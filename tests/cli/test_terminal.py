"""What somebody at a terminal sees: bars, tables, guesses at typos, narrowed help, what comes next."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from cli_helpers import run
from conftest import records, write_jsonl
from small_readers import small_base

from retro_demo.cli import main, printing
from retro_demo.cli.next_step import next_step
from retro_demo.cli.terminal import Terminal
from retro_demo.evaluation.baselines import match
from retro_demo.events import Evaluated, Finished, Progress, Saved, Started, Step, Stopped, Token
from retro_demo.jobs import job_queue
from retro_demo.kinds import KINDS

SHAPE = {"dim": 16, "depth": 2, "num-heads": 2, "cca-layers": 2, "enc-dim": 16}
READ = ["--seq-len", "32", "--batch-size", "2", "--eval-tokens", "200", "--steps", "2"]
NETWORK = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def watched(capsys, monkeypatch):
    """stdout as a terminal of 100 columns."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _stream: True)
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    return capsys


def shown(capsys) -> str:
    return MOVES.sub("", capsys.readouterr().out)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a corpus `mine` and a plain run `base`; do not change them."""
    folder = tmp_path_factory.mktemp("made")
    source = write_jsonl(folder / "places.jsonl", records())
    shape = ["--chunk-len", "8", "--vocab-size", "400", "--num-neighbors", "4", "--json"]
    assert main.main(["build-corpus", str(source), "--out", str(folder / "mine"), *shape]) == 0
    words = ["train", "lm", "--corpus", str(folder / "mine"), "--out", str(folder / "base")]
    assert main.main([*words, *READ, *NETWORK, "--json"]) == 0
    return folder


def test_a_watched_build_ends_with_a_table_and_the_command_that_comes_next(watched, tmp_path):
    source = write_jsonl(tmp_path / "places.jsonl", records())
    words = ["build-corpus", str(source), "--out", str(tmp_path / "c"), "--chunk-len", "8"]
    assert main.main([*words, "--vocab-size", "400"]) == 0

    text = shown(watched)
    assert re.search(r"embed +\S+ ([\d,]+) of \1", text), "a full bar"
    assert re.search(r"^documents +14 *$", text, re.M)
    assert "{" not in text
    (command,) = re.findall(r"^next: python -m retro_demo (.+?) *$", text, re.M)
    options = main.build_parser().parse_args(command.split())
    assert (options.command, options.corpus) == ("study", str(tmp_path / "c"))


def test_what_is_not_watched_is_printed_line_by_line(capsys, tmp_path):
    source = write_jsonl(tmp_path / "places.jsonl", records())
    words = ["build-corpus", str(source), "--out", str(tmp_path / "c"), "--chunk-len", "8"]
    assert main.main([*words, "--vocab-size", "400"]) == 0

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert re.search(r"^split: 14 of 14$", out, re.M)
    assert re.search(r"^finished: documents 14, ", out, re.M)
    assert "next:" not in out


def test_a_training_is_one_bar_with_a_table_for_each_measurement(watched):
    terminal = Terminal("retro-demo", lambda result: f"evaluate {result['run']}")
    arms = {
        "on": {"nats": 2.5, "bpb": 1.25, "tokens": 4000},
        "off": {"nats": 3.0, "bpb": 1.5, "tokens": 4000},
    }
    for event in [
        Started("retro", about={"steps": 2}),
        Progress("measuring held-out loss, tokens", 0, 4000),
        Step(1, 3.0, 0.1, 900.0, 1.0),
        Saved(1),
        Step(2, 2.75, 0.1, 1000.0, 1.0),
        Evaluated(2, arms, "a\x1b[2J sample"),
        Finished({"run": "data/run", "parameters": 1234567, "warnings": ["it rises"], "notes": []}),
    ]:
        terminal(event)

    text = shown(watched)
    assert "2 of 2  loss 2.7500, 1,000 tokens/s, saved at 1" in text
    assert re.search(r"on +\W +2\.5000 \W +1\.2500 \W +4,000", text)
    assert r"it writes: a\x1b[2J sample" in text
    assert re.search(r"^parameters +1,234,567", text, re.M)
    assert "notes" not in text
    assert "warned: it rises" in text
    assert text.rstrip().endswith("next: retro-demo evaluate data/run")


def test_a_bar_ends_where_a_text_or_a_stop_begins(watched):
    for event in (Token(1, "x", 0.5), Stopped(3)):
        terminal = Terminal("retro-demo", lambda _result: "")
        terminal(Progress("embed", 1, 2))
        assert terminal.bars is not None
        terminal(event)
        assert terminal.bars is None


@pytest.mark.parametrize("measured_with", ["base", ""])
def test_after_a_training_comes_what_shows_its_worth(watched, made, tmp_path, measured_with):
    base = ["--base", str(made / "base")] if measured_with else []
    model = "retrofit" if base else "retro"
    words = [
        "train",
        model,
        *base,
        "--corpus",
        str(made / "mine"),
        "--out",
        str(tmp_path / "r"),
        "--steps",
        "2",
    ]
    assert main.main([*words, "--eval-tokens", "200", *(NETWORK if not base else NETWORK[-4:])]) == 0
    assert f"next: python -m retro_demo evaluate {tmp_path / 'r'}" in shown(watched)

    flags = ["--max-tokens", "400", "--resamples", "200", "--corruption", "0", "--retrievers", ""]
    assert main.main(["evaluate", str(tmp_path / "r"), *flags]) == 0

    (command,) = re.findall(r"^next: python -m retro_demo (.+?) *$", shown(watched), re.M)
    options = main.build_parser().parse_args(command.split())
    assert (options.model, options.base, options.steps) == ("lm", base[1] if base else None, 2)
    assert main.main([*command.split(), "--out", str(tmp_path / "b")]) == 0
    assert match(tmp_path / "r", tmp_path / "b").unfit == ""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian"], "'train'"),
        (["train", "retrofti", "--out", "r"], "'retrofit'"),
        (["train", "lm", "--out", "r", "--stpes", "3"], "'--steps'"),
        (["train", "lm", "--out", "r", "--preset", "smal"], "'small'"),
        (["search", "{made}/mne", "x"], "'{made}/mine'"),
        (["generate", "{made}/bse", "--prompt", "x"], "'{made}/base'"),
        (["generate", "sample:factbok-lm", "--prompt", "x"], "'sample:factbook-lm'"),
        (["serve", "--prot", "1"], "'--port'"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(capsys, made, words, meant):
    code, _, err = run(capsys, *[word.format(made=made) for word in words])

    assert code == 2
    assert f"Did you mean {meant.format(made=made)}?" in err
    assert len(err.strip().splitlines()) == 1


def test_a_word_that_is_near_to_nothing_is_answered_with_no_guess(capsys, tmp_path):
    for words in (["zzzzzz"], ["generate", tmp_path / "zzzzzz", "--prompt", "x"]):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert "Did you mean" not in err


@pytest.mark.parametrize("model", list(KINDS))
def test_the_help_of_a_model_shows_its_settings_with_the_defaults_of_its_preset(capsys, model):
    with pytest.raises(SystemExit, match="0"):
        main.main(["train", model, "--preset", "small", "--help"])

    text = " ".join(capsys.readouterr().out.split())
    kind = KINDS[model]
    named = set(re.findall(r"--([a-z-]+) ", text))
    assert {name.replace("_", "-") for name in set(kind.settings()) - set(kind.always)} <= named
    assert ("passage-len" in named) == (model == "marge")
    steps = kind.preset_settings("small")["steps"]
    assert f"Optimizer steps of the whole run. Default: {steps}." in text


@pytest.mark.parametrize(("model", "becomes"), [("lm", "tuned"), ("retrofit", "reader")])
def test_the_help_of_a_model_on_a_pretrained_base_is_that_of_the_run_it_becomes(
    capsys, tmp_path, model, becomes
):
    base = small_base(tmp_path / "base")
    with pytest.raises(SystemExit, match="0"):
        main.main(["train", model, "--base", str(base), "--help"])

    text = " ".join(capsys.readouterr().out.split())
    kind = KINDS[becomes]
    named = set(re.findall(r"--([a-z-]+) ", text))
    assert {name.replace("_", "-") for name in set(kind.settings()) - set(kind.always)} <= named
    assert f"run of kind {becomes}" in text
    assert "{tiny,small}" in text
    layers = {"tuned": "Default: 3.", "reader": "Default: 2,3."}[becomes]  # of five
    assert layers in text


def test_a_preset_that_the_kind_lacks_is_refused_by_the_name_of_the_kind(capsys, made, tmp_path):
    base = small_base(tmp_path / "base")
    words = ["--corpus", made / "mine", "--base", base, "--preset", "lookup"]

    code, _, err = run(capsys, "train", "lm", *words, "--out", tmp_path / "r")

    assert code == 2
    assert "tuned" in err
    assert "tiny, small" in err


def test_a_default_of_nothing_is_told_apart_from_zero_and_false(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["train", "--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--seed N [^-]*Default: 0\.", text)
    assert re.search(r"--sharded true\|false .*? Default: false\.", text)
    assert text.startswith("usage: python -m retro_demo train [MODEL] --out RUN [--FLAG ...]")


def test_status_tells_what_runs_and_what_waits_and_how_one_run_stands(capsys, made, data_folder):
    waiting = data_folder / "runs" / "waits"
    waiting.mkdir(parents=True)
    (waiting / "config.json").write_bytes((made / "base" / "config.json").read_bytes())
    with job_queue.queue_lock(data_folder):
        job_queue.enqueue(data_folder, waiting, "train", "me")
    code, events, _ = run(capsys, "status", "--json")
    assert code == 0
    (job,) = events[-1]["jobs"]
    assert (job["name"], job["kind"], job["state"], job["place"]) == (str(waiting), "run", "waiting", 1)

    code, events, _ = run(capsys, "status", made / "base", "--json")
    (job,) = events[-1]["jobs"]
    assert (job["state"], job["doing"], job["done"], job["total"]) == ("finished", "step", 2, 2)

    assert main.main(["status", os.fspath(made)]) == 0
    said = capsys.readouterr().out
    assert "1 corpus, 1 run of yours" in said
    assert main.main(["list", os.fspath(made)]) == 0
    listed = capsys.readouterr().out.splitlines()[1:]
    kinds = [line.split()[0] for line in listed if line.split()[1].startswith("sample:")]
    assert f"{kinds.count('corpus')} corpora, {kinds.count('run')} runs that ship" in said


def test_a_text_is_followed_by_what_explains_it_and_that_by_where_it_came_from(watched, made, tmp_path):
    words = ["train", "retro", "--corpus", str(made / "mine"), "--out", str(tmp_path / "r"), "--steps", "2"]
    assert main.main([*words, "--eval-tokens", "200", *NETWORK]) == 0
    wanted = ["explain", "trace"]
    command = ["generate", str(tmp_path / "r"), "--prompt", "Area of Arden: 100 square km. Exports: fish."]
    command += ["--max-new-tokens", "4"]
    shown(watched)
    for verb in wanted:
        assert main.main(command) == 0
        text = shown(watched)
        (said,) = re.findall(r"^next: python -m retro_demo (.+?) *$", text, re.M)
        command = shlex.split(said)
        assert command[0] == verb
    assert "loss with the neighbors" in text
    assert main.build_parser().parse_args(command).run == tmp_path / "r"


def test_a_study_is_followed_by_a_text_of_the_run_that_it_judged(tmp_path):
    options = main.build_parser().parse_args(["study", "--corpus", "c", "--out", str(tmp_path / "s")])

    said = next_step(options, {"seeds": [{"run": "retrofit"}]})

    assert main.build_parser().parse_args(shlex.split(said)).run == tmp_path / "s" / "retrofit"


@pytest.mark.parametrize("known", [["prepare"], ["export", "r", "--out", "e.zip"], ["import", "e.zip"]])
def test_what_comes_after_a_verb_is_a_command(known):
    parser = main.build_parser()
    result = {"out": "e.zip", "name": "r", "run": "r", "corpus": "c"}
    said = next_step(parser.parse_args(known), result)

    assert parser.parse_args(shlex.split(said)).command in ("serve", "import", "generate")


def test_a_path_is_shown_as_a_shell_of_this_folder_takes_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))

    assert printing.short_place(str(tmp_path / "runs" / "mine")) == os.path.join("runs", "mine")
    assert printing.short_place(str(tmp_path.parent / "mine")) == "~/mine"
    assert printing.short_place("sample:lookup") == "sample:lookup"
