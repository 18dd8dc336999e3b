"""The commands that page and endpoints show: they run where one sits, and tell others no folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_helpers import run, words_of
from evaluation_helpers import make_run
from page_helpers import page_home
from train_helpers import advance, prepare

from benchmarks.serving import served_page
from retro_demo.cli import main
from retro_demo.console import given
from retro_demo.evaluation.runner import Request, prepare_evaluation, read_request, usual_folder
from retro_demo.kinds import KINDS
from retro_demo.models.config import EvidenceConfig, MargeConfig, RetroConfig
from retro_demo.paths import LINKS, link_to
from retro_demo.runs import commands
from retro_demo.runs.checkpoint import differences, read_any_config, read_run_config, write_run_config
from retro_demo.runs.commands import NOT_ANEW, for_here, for_others
from retro_demo.runs.planning import READER_SETTINGS, plan_run, prepare_run
from retro_demo.server import evaluations
from retro_demo.server.cleanup import delete_workspace
from retro_demo.server.corpus_changes import rename_corpus
from retro_demo.server.limits import PRIVATE, PUBLIC, keep_limits
from retro_demo.server.run_actions import build_command, command_of, search_json, starting_settings
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import EvaluateConfig, TrainConfig, settings_of
from retro_demo.sharing.exporting import code_block

STRANGER = {"x-forwarded-for": "192.0.2.1"}
QUICK = EvaluateConfig(first_tokens=150, max_tokens=200, resamples=200, prepend="off")
TEXT = "Coastline of Kestrel: 12 km.\nHighest point 'of' $HOME \"Lorn\" `id` \\ – ü"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A data folder whose name a shell would take apart."""
    with page_home(tmp_path_factory.mktemp('it\'s "mine" $HOME ü')) as folder:
        yield folder


@pytest.fixture(scope="module")
def space(home, small_folder) -> Workspace:
    """A visitor with a corpus, an lm, a retrofit that stopped half-way and a run without optimizer state."""
    space = Workspace.open(home, new_code()).make()
    corpus, runs = space.folder / "corpora" / "islands", space.folder / "runs"
    shutil.copytree(small_folder, corpus)
    advance(prepare(runs / "plain", corpus, "lm", steps=4))
    config = plan_run("retrofit", str(corpus), settings={"steps": 4, "seq_len": 32}, base=str(runs / "plain"))
    prepare_run(runs / "fitted", config)
    advance(runs / "fitted", stop_after=2)
    make_run(runs / "bare", corpus, "retro")
    return space


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, home) -> Path:
    """A folder that is not the repository's, for a terminal in which nothing is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETRO_DEMO_HOME", str(home))
    return tmp_path


def trained_by(space: Workspace, name: str) -> str:
    return command_of(space.run(name), read_any_config(space.run(name)), space.home)


def last(capsys) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def asked(url: str, space: Workspace, **headers: str) -> tuple[str, str]:
    """What the Train tab shows of a run as its command, and the provenance of an explanation over HTTP."""
    with httpx.Client(base_url=url, timeout=60, headers=headers) as http:
        config = http.get("/config").json()
        (box,) = [one["id"] for one in config["components"] if one["props"].get("elem_id") == "command"]
        follow = next(
            one
            for one in config["dependencies"]
            if box in one["outputs"] and one["queue"] is False and len(one["inputs"]) == 5
        )
        values = [space.folder.name, "fitted", "", [], "steps"]
        shown = http.post(
            "/gradio_api/run/predict", json={"fn_index": follow["id"], "data": values, "session_hash": "here"}
        ).json()["data"]
        told = shown[follow["outputs"].index(box)]
        event = http.post(
            "/gradio_api/call/explain",
            json={"data": [space.folder.name, "bare", TEXT, None, 0, "on", "", "", 1]},
        ).json()
        said = http.get(f"/gradio_api/call/explain/{event['event_id']}").text
        data = json.loads(said.partition("data: ")[2])[0]
        return told["value"], data["about"]["provenance"]["command"]


def test_who_sits_at_the_machine_gets_commands_that_run_in_a_bare_terminal_and_tell_no_code(
    home, space, elsewhere, capsys
):
    with served_page(home) as url:
        here, there = asked(url, space), asked(url, space, **STRANGER)

    for command in here:
        assert space.folder.name not in command
    for command in there:
        assert command.startswith("python -m retro_demo ")
        assert not [one for one in (str(home), space.folder.name, str(commands.ROOT)) if one in command]
    assert words_of(there[0])[3:6] == ["islands", "--out", "fitted-again"]
    assert words_of(there[1])[1] == "bare"
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    ended = subprocess.run(["sh", "-c", here[1]], cwd=elsewhere, env=bare, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "agreement" in ended.stdout
    before = read_run_config(space.run("fitted"))
    assert run(here[0]) == 0  # it stopped half-way, and goes on
    assert last(capsys)["event"] == "finished"
    assert read_run_config(space.run("fitted")) == before
    assert run(here[0]) == 0  # and says that it is finished
    assert list(elsewhere.iterdir()) == []


def test_on_a_page_for_strangers_nobody_is_told_a_folder(home, space):
    with served_page(home, PUBLIC) as url:
        told = asked(url, space)

    for command in told:
        assert not [one for one in (str(home), space.folder.name, str(commands.ROOT)) if one in command]
    keep_limits(home, PRIVATE)


@pytest.mark.parametrize("text", [TEXT, "-k 3", "--", "'", ""])
def test_the_words_of_a_command_reach_a_program_as_they_are_whatever_stands_in_them(home, space, text):
    folder = space.corpus("islands")
    found = search_json(folder, "islands", text=text, retriever="dense", k=3, found=[], seconds=0.0)
    for command in (found["provenance"]["command"], for_here(found["provenance"]["command"])):
        shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
        assert shell.stdout.decode().split("\0")[:-1] == shlex.split(command)
        assert words_of(command)[-1] == text
        assert main.build_parser().parse_args(words_of(command)).text == text


CHANGES: dict[str, dict[str, Any]] = {
    "as the preset": {},
    "a width without that of the encoder": {"dim": 96, "num_heads": 2, "copying_start": False},
    "lists, truths and small numbers": {
        "cca_layers": (1, 2),
        "tied_output": False,
        "lr": 1e-7,
        "biases": True,
    },
    "more of the training": {"steps": 7, "seed": 3, "noise": 0.5, "retriever": "hybrid", "warmup": 0},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("model", "preset", "base"),
    [
        ("lm", "tiny", ""),
        ("lm", "small", "plain"),
        ("retro", "small", ""),
        ("retro", "random", ""),
        ("retrofit", "tiny", "plain"),
        ("marge", "tiny", ""),
    ],
)
def test_the_command_of_a_run_of_the_page_means_that_very_run(
    space, elsewhere, tmp_path, model, preset, base, changes
):
    """As the form gives all knobs of the model, those that were touched among them."""
    usual = {
        setting.name: setting.default for kind in (TrainConfig, RetroConfig) for setting in settings_of(kind)
    }
    if model == "marge":
        usual = {name: getattr(kind, name) for name, kind in KINDS["marge"].settings().items()}
    settings = usual | starting_settings(space, model, preset, base)
    kept = READER_SETTINGS | {setting.name for setting in settings_of(TrainConfig)}
    settings |= {name: value for name, value in changes.items() if not base or name in kept}
    settings = {name: value for name, value in settings.items() if name in usual}
    folder, corpus = tmp_path / "run", str(space.corpus("islands"))
    place = str(space.run(base)) if base else ""
    config = plan_run(model, corpus, preset=preset, settings=settings, base=place)
    prepare_run(folder, config)

    options = main.build_parser().parse_args(words_of(command_of(folder, config, space.home)))
    wanted = plan_run(
        options.model,
        options.corpus,
        preset=options.preset,
        settings=given(options, TrainConfig, RetroConfig, EvidenceConfig, MargeConfig),
        base=options.base or "",
    )

    assert differences(config, wanted) == []
    assert options.out == folder


def test_a_run_that_ships_or_cannot_go_on_is_trained_anew_beside_whoever_calls(space, elsewhere, capsys):
    shipped = commands.ROOT / "checkpoints" / "factbook-retrofit"
    words = words_of(command_of(shipped, read_any_config(shipped), space.home))

    assert words[:6] == [
        "train",
        "retrofit",
        "--corpus",
        "sample:factbook2015",
        "--out",
        f"{shipped.name}-again",
    ]
    assert words[words.index("--base") + 1].startswith("sample:")
    assert run(trained_by(space, "bare")) == 0
    assert read_run_config(elsewhere / "bare-again").network == read_run_config(space.run("bare")).network


def test_of_a_run_whose_base_or_corpus_is_gone_the_command_says_what_is_left(space, tmp_path):
    config = read_run_config(space.run("fitted"))
    write_run_config(tmp_path / "run", replace(config, base=str(tmp_path / "gone")))

    def told() -> str:
        return command_of(tmp_path / "run", read_any_config(tmp_path / "run"), space.home)

    assert words_of(told()) == ["train", "--out", str(tmp_path / "run")]
    assert for_others(told()) == NOT_ANEW
    write_run_config(tmp_path / "run", replace(config, corpus="missing/islands"))
    assert told() == NOT_ANEW


def test_an_evaluation_is_repeated_where_it_lies_also_after_run_and_corpus_have_another_name(
    space, elsewhere, capsys, small_folder
):
    evaluations.rename_run(space, "plain", "older")  # what began with it is told, too
    assert read_run_config(space.run("fitted")).base == str(space.run("older"))
    shutil.copytree(small_folder, space.folder / "corpora" / "other")
    run_place, base = str(space.run("bare")), str(space.run("older"))
    corpus = str(space.corpus("other"))
    request = Request(run_place, baseline=base, corpus=corpus, settings=QUICK)
    folder = usual_folder(request)
    prepare_evaluation(folder, request)

    evaluations.rename_run(space, "older", "plain")
    rename_corpus(space, "other", "second")
    command = for_here(read_request(folder).command())
    assert run(command) == 0

    words = words_of(command)
    assert words[words.index("--baseline") + 1].endswith("/runs/plain")
    assert words[words.index("--corpus") + 1].endswith("/corpora/second")
    result = last(capsys)
    assert result["measured_on"] if "measured_on" in result else result["event"] == "finished"
    assert len(list(folder.parent.iterdir())) == 2  # renamed, it is another measurement


def test_a_build_is_gone_on_with_by_its_command_and_one_that_no_sources_make_by_its_folder(
    space, elsewhere, capsys
):
    folder = space.corpus("islands")
    command = for_here(build_command(folder, "islands"))

    assert run(command) == 0
    assert last(capsys)["fingerprint"] == json.loads((folder / "corpus.json").read_text())["fingerprint"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sources": []}))
    try:
        bare = build_command(folder, "islands")
    finally:
        (folder / "config.json").write_text(json.dumps(config))
    assert words_of(bare) == ["build-corpus", "--out", str(folder)]
    assert for_others(bare) == NOT_ANEW


OTHERS = {
    "env RETRO_DEMO_HOME=/srv/d /srv/.venv/bin/python -m retro_demo train retrofit --corpus "
    "/srv/d/workspaces/0123456789abcdef/corpora/islands --out /srv/d/workspaces/0123456789abcdef/runs/r "
    "--base '/srv/my d/runs/b' --lr 0.1": "train retrofit --corpus islands --out r-again --base b --lr 0.1",
    "/p -m retro_demo explain /srv/runs/r '--text=/etc/x --out /y' --corpus /srv/samples/udhr44-1a2b3c4d": (
        "explain r '--text=/etc/x --out /y' --corpus sample:udhr44"
    ),
    "/p -m retro_demo search /srv/corpora/c -k 3 -- '/a text/runs/x'": "search c -k 3 -- '/a text/runs/x'",
    "/p -m retro_demo build-corpus /srv/sources/-a.txt --out /srv/c": "build-corpus ./-a.txt --out c-again",
    "python -m retro_demo weigh r -- 'A title'": "weigh r -- 'A title'",
}


@pytest.mark.parametrize(("command", "told"), OTHERS.items())
def test_others_are_told_names_and_their_own_words(command, told):
    assert for_others(command) == f"python -m retro_demo {told}"


def test_the_link_that_commands_name_goes_with_the_workspace(home, small_folder):
    space = Workspace.open(home, new_code()).make()
    shutil.copytree(small_folder, space.folder / "corpora" / "islands")
    for_here(build_command(space.corpus("islands"), "islands"))
    link = link_to(home, space.folder.name)
    assert link.parent.name == LINKS
    assert link.resolve() == space.folder

    delete_workspace(home, space.folder.name)

    assert not link.is_symlink()


@pytest.mark.parametrize("text", ["evaluate r", "a ``` b", "````"])
def test_a_command_stands_in_a_card_as_it_is(text):
    first, inside, ending = code_block(text).split("\n")

    assert inside == text
    assert first == ending
    assert first not in text
