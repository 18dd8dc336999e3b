"""What makes it a package: its papers agree, a wheel holds all that is needed, and its command answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cli_helpers import run
from packaging.requirements import Requirement
from page_helpers import refusing_app  # noqa: F401  (a fixture)
from places import ROOT

import retro_demo
from retro_demo import __main__, paths
from retro_demo.cli import main
from retro_demo.corpus.samples import SAMPLES
from retro_demo.errors import UserError
from retro_demo.paths import CHECKPOINTS, SAMPLE
from retro_demo.runs import commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def required(name: str) -> set[Requirement]:
    """The packages that a file of requirements names itself."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()]
    return {Requirement(line) for line in lines if line and not line.startswith("-r")}


def test_the_requirements_say_the_same_as_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        name: set(map(Requirement, wanted)) for name, wanted in project["optional-dependencies"].items()
    }

    assert required("requirements.txt") == set(map(Requirement, project["dependencies"]))
    for name in ("mcp", "ray", "dev"):
        path = f"requirements-{name}.txt"
        assert "-r requirements.txt" in (ROOT / path).read_text("utf-8").splitlines()
        assert required(path) == extras.pop(name)
    assert extras.pop("gpu") == set()
    assert extras.pop("docs") == required("docs/requirements.txt")
    assert set(extras) == {"tensorboard", "trackio"}  # which no file installs


def test_the_version_stands_in_one_place_and_is_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--version"])

    assert capsys.readouterr().out == f"retro_demo {retro_demo.__version__}\n"
    named = re.findall(r'^(?:__version__|version) = "', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert not named


def test_what_there_is_is_listed_by_names_that_other_verbs_take(capsys, home):
    code = "c0de" * 6
    (home / "workspaces" / code / "corpora").mkdir(parents=True)
    (home / "places").rename(home / "workspaces" / code / "corpora" / "places")

    ended, events, _ = run(capsys, "list", "--json")

    assert ended == 0
    listed = {(one["kind"], one["name"]): one for one in events[-1]["listed"]}
    assert {("corpus", SAMPLE + name) for name in SAMPLES} <= set(listed)
    for shipped in CHECKPOINTS.glob("*/config.json"):
        one = listed["run", SAMPLE + shipped.parent.name]
        assert one["state"] == "finished"
        assert one["bytes"] > 1_000_000
    (own,) = [name for kind, name in listed if kind == "corpus" and not name.startswith(SAMPLE)]
    assert code not in own
    assert listed["corpus", own]["state"] == "finished"
    assert run(capsys, "search", own, "salt", "--json")[0] == 0


def test_a_list_for_people_has_a_line_for_each_and_a_folder_of_ones_own_can_be_named(capsys, home):
    assert main.main(["list", str(home)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(SAMPLES) + len(list(CHECKPOINTS.glob("*/config.json"))) + 1
    assert "places" in lines[-1].split(), "its short name, which verbs take"
    assert main.main(["list", str(home / "nowhere")]) == 2


@pytest.mark.usefixtures("refusing_app")
def test_serve_is_a_verb_that_leaves_the_signals_as_they_are(monkeypatch, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, "argv", ["retro-demo", "serve", "--public", "--memory-share", "7"])

    assert __main__.main() == 2
    assert "memory_share is 7" in capsys.readouterr().err
    assert main.main() == 2
    assert "memory_share is 7" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("shell", main.SHELLS)
def test_a_shell_gets_a_script_that_completes_verbs_flags_and_files(capsys, shell):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--print-completion", shell])

    script = capsys.readouterr().out
    for word in ("retro-demo", "build-corpus", "serve", "max-new-tokens", "behind-proxy"):
        assert word in script
    assert "python -m" not in script


def test_bash_completes_a_verb_by_that_script(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    ask = 'COMP_WORDS=(retro-demo gen); COMP_CWORD=1; COMP_LINE="retro-demo gen"; COMP_POINT=14; '
    function = re.search(r"complete .*-F (\w+) retro-demo", script)
    assert function

    done = subprocess.run(
        ["bash", "-c", f'{script}\n{ask}{function[1]} retro-demo gen retro-demo; echo "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
    )

    assert done.stdout.split() == ["generate"]


def files_below(folder: Path) -> set[Path]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel, built from here without a network and unpacked as an installation does it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"retro_demo-{retro_demo.__version__}-")
    assert wheel.stat().st_size < 55_000_000
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_assets_and_the_shipped_runs_and_nothing_else_of_the_repository(unpacked):
    there = {path.name for path in unpacked.iterdir()}

    assert there == {"retro_demo", f"retro_demo-{retro_demo.__version__}.dist-info"}
    for folder in ("assets", "checkpoints"):
        files = files_below(ROOT / folder)
        missing = files - files_below(unpacked / "retro_demo" / folder)
        assert missing <= {Path("screenshot.png")}


def test_what_a_wheel_installs_finds_its_own_samples_from_any_folder(unpacked, tmp_path):
    env = os.environ | {"PYTHONPATH": str(unpacked), "RETRO_DEMO_HOME": str(tmp_path / "home")}
    code = (
        "import sys; from retro_demo.__main__ import main; from retro_demo import paths;"
        "sys.argv = ['retro-demo', 'list', '--json']; print(paths.ASSETS); print(paths.CHECKPOINTS); main()"
    )

    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)

    assert told.returncode == 0, told.stderr
    *places, event = told.stdout.splitlines()
    assert places == [str(unpacked / "retro_demo" / name) for name in ("assets", "checkpoints")]
    shipped = {SAMPLE + path.parent.name for path in CHECKPOINTS.glob("*/config.json")}
    assert shipped <= {one["name"] for one in json.loads(event)["listed"] if one["state"] == "finished"}


@pytest.mark.parametrize("name", ["ASSETS", "CHECKPOINTS"])
def test_where_a_shipped_folder_is_missing_a_sentence_names_it(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr(paths, name, tmp_path / name.lower())

    with pytest.raises(UserError, match=f"{name.lower()}/ is missing"):
        paths.check_shipped()
    assert main.main(["list"]) == 2
    assert f"{name.lower()}/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("site", "installed"),
    [("", True), ("named", True), ("other", False)],
    ids=["wheel", "editable", "checkout"],
)
def test_a_command_needs_pythonpath_only_where_python_would_not_find_the_code(
    monkeypatch, tmp_path, site, installed
):
    """Where the code lies in site-packages itself, where a .pth there names it, and where neither is so."""
    (tmp_path / "a.pth").write_text(f"{commands.ROOT if site == 'named' else '/elsewhere'}\n")
    folder = tmp_path if site else commands.ROOT
    monkeypatch.setattr(commands.site, "getsitepackages", lambda: [str(folder)])
    monkeypatch.setattr(commands.site, "getusersitepackages", lambda: str(tmp_path / "none"))
    commands._is_installed.cache_clear()
    try:
        assert (f"PYTHONPATH={commands.ROOT}" not in commands.command("list")) is installed
    finally:
        commands._is_installed.cache_clear()


def test_what_ships_names_no_folder_of_the_machine_that_made_it():
    places = re.compile(r"(?<![\w.])/(?:home|root|tmp|mnt|work|opt|Users|var)/")
    texts = (path for path in (ROOT / "checkpoints").rglob("*.json*") if path.suffix in (".json", ".jsonl"))

    assert [path.name for path in texts if places.search(path.read_text("utf-8"))] == []
