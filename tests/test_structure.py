"""The structure and the papers of the repository, kept honest."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import conftest
import pytest
from places import ROOT

from benchmarks import settings_table
from retro_demo.cli import main
from retro_demo.models.config import RetroConfig
from retro_demo.models.reader_config import LessonConfig, ReaderConfig
from retro_demo.server.limits import Limits
from retro_demo.settings import CorpusConfig, GenerateConfig, TrainConfig, settings_of

PACKAGE = ROOT / "retro_demo"
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = [
    "models",
    "interop",
    "pretrained",
    "retrieval",
    "jobs",
    "documents",
    "corpus",
    "evidence",
    "runs",
    "generation",
    "evaluation",
    "training",
    "explain",
    "sharing",
    "server",
    "render",
    "ui",
    "cli",
]
"""Lowest first; what lies at the top of retro_demo/ is below them all. Imports go down this list only."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room(name: str) -> int:
    """How high the package of a module's dotted name (below retro_demo) stands; 0 for the top level."""
    first = name.split(".")[0]
    return PACKAGES.index(first) + 1 if first in PACKAGES else 0


def imported(path: Path) -> set[str]:
    """Our modules that a file imports, at the top or inside functions, named from retro_demo on."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "retro_demo":
            module = (node.module or "").removeprefix("retro_demo").removeprefix(".")
            names |= {module} if module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {
                a.name.removeprefix("retro_demo.") for a in node.names if a.name.startswith("retro_demo.")
            }
    return names


def roots(path: Path) -> set[str]:
    """The first names of all modules that a file imports, ours and others."""
    tree = parsed(path)
    plain = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return plain | {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


def test_imports_go_down_the_list_of_packages_only():
    entries = {"__init__.py", "__main__.py"}  # of the package itself: they open every room
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}, which stands above it"
        for path in modules()
        if str(path.relative_to(PACKAGE)) not in entries
        for other in sorted(imported(path))
        if room(other) > room(".".join(path.relative_to(PACKAGE).parts))
    ]

    assert not wrong


def test_no_name_is_bound_twice_at_the_top_of_a_module():
    """The second would silently serve the uses of the first, as when two modules become one."""
    twice = []
    for path in modules():
        bound: list[str] = []
        for node in parsed(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound.append(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
                bound += [n.id for n in names if isinstance(n.ctx, ast.Store)]
        twice += [f"{path.stem}: {name}" for name in sorted({n for n in bound if bound.count(n) > 1})]

    assert not twice


def test_each_package_stands_in_the_list_and_says_in_one_sentence_what_it_is_for():
    folders = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

    assert folders == sorted(PACKAGES)
    for name in PACKAGES:
        tree = parsed(PACKAGE / name / "__init__.py")
        assert (ast.get_docstring(tree) or "").count(".") == 1, name
        assert len(tree.body) == 1 or name == "interop", name


def test_no_two_public_classes_share_a_name():
    where: dict[str, list[str]] = {}
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))

    assert len(where) > 100
    assert not {name: files for name, files in where.items() if len(files) > 1}


def test_gradio_is_imported_by_the_page_alone_and_only_printing_prints():
    wrong = []
    for path in modules():
        inside_ui = "ui" in path.relative_to(PACKAGE).parts
        if not inside_ui and "gradio" in roots(path):
            wrong.append(f"{path.stem} imports gradio")
        if inside_ui and "torch" in roots(path):
            wrong.append(f"{path.stem} imports torch")
        if path.parent.name != "cli" and path.name != "serve.py" and "print" in called(path):
            wrong.append(f"{path.stem} prints")

    assert not wrong


def test_every_module_says_what_it_is_and_is_short():
    wrong = []
    for path in modules():
        text = path.read_text()
        if not ast.get_docstring(parsed(path)):
            wrong.append(f"{path.stem} says nothing")
        if (lines := len(text.splitlines())) > 600:
            wrong.append(f"{path.stem} has {lines} lines")

    assert not wrong


def test_no_function_is_over_80_lines_and_there_are_170_modules_at_most():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{path.stem}.{node.name}"
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno + 1 > 80
    ]

    assert not long
    assert (
        len([path for path in modules() if not path.stem.startswith("__")]) <= 170
    )  # 14 are of pretrained bases and readers


def front_matter() -> dict[str, str]:
    block = (ROOT / "README.md").read_text().split("---")[1]
    return dict(line.split(": ", 1) for line in block.strip().splitlines() if ": " in line)


def test_the_spaces_front_matter_agrees_with_the_pins():
    front = front_matter()
    pinned = re.search(r"^gradio==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M)

    assert pinned
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == pinned[1]
    assert front["app_file"] == "app.py"
    assert front["python_version"].strip('"') in ("3.10", "3.11", "3.12", "3.13")
    assert len(front["short_description"]) <= 60
    assert front["license"] == "mit"


def test_torch_admits_2_13_0_and_nothing_newer():
    assert "torch>=2.8,<=2.13.0" in (ROOT / "requirements.txt").read_text().splitlines()


def documented_commands() -> list[str]:
    found = []
    for path in PAPERS:
        text = path.read_text().replace("\\\n", " ")
        start = r"(?:\.venv/bin/)?python|(?:srun .*)?(?:\.venv/bin/)?torchrun .*|srun .*python"
        started = rf"^(?:(?:{start}) -m retro_demo|retro-demo) (.+)$"
        found += re.findall(started, text, re.M)
    return found


def test_every_command_in_the_docs_parses():
    commands = documented_commands()
    parser = main.build_parser()

    assert len(commands) >= 4
    for command in commands:
        told = re.sub(r"\$\w+", "1", command.split("#")[0])  # what a scheduler puts in
        if told.startswith("--"):  # which print and leave
            with pytest.raises(SystemExit, match="0"):
                parser.parse_args(shlex.split(told.partition(">")[0]))
        else:
            parser.parse_args(shlex.split(told))


@pytest.mark.parametrize(
    "config", [CorpusConfig, RetroConfig, ReaderConfig, LessonConfig, TrainConfig, GenerateConfig, Limits]
)
def test_every_knob_stands_in_the_reference_table(config):
    table = (ROOT / "docs" / "settings.md").read_text()

    for setting in settings_of(config):
        assert f"| `{setting.name}` |" in table, (
            f"run python -m benchmarks.settings_table: {setting.name} is missing"
        )
        assert setting.metadata["help"] in table


def test_the_reference_table_is_what_the_command_prints():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_table.page()


def test_tests_that_begin_first_are_files_of_tests():
    there = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}

    assert {f"test_{name}" for name in conftest.SLOW} <= there


def test_every_make_target_named_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))

    assert set(re.findall(r"`make ([a-z]+)`", (ROOT / "README.md").read_text())) <= targets


def test_links_between_the_papers_lead_somewhere():
    for path in PAPERS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_nothing_is_left_to_be_filled_in():
    for path in [ROOT / "CHANGELOG.md", *PAPERS]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        assert not re.findall(r"\{[a-z_]+\}|@[A-Z0-9]+@", text), path.name


def test_every_file_named_in_the_papers_exists():
    for path in PAPERS:
        for named in re.findall(
            r"`((?:docs|benchmarks|assets|checkpoints|retro_demo)/[\w./-]+)`", path.read_text()
        ):
            assert (ROOT / named).exists(), f"{path.name} names {named}"


def test_the_tree_of_the_readme_is_the_listing():
    tree = (ROOT / "README.md").read_text().split("## The repository")[1].split("```")[1].strip().splitlines()

    assert len(tree) <= 22
    assert [line.split()[0].rstrip("/") for line in tree if line.startswith("  ")] == PACKAGES


def test_the_architecture_names_each_package_each_module_and_no_file_that_is_not_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = text.split("## The folders of")[1].split("\n## ")[0]

    assert re.findall(r"^### (\w+)/", rooms, re.M) == PACKAGES
    for path in modules():
        if not path.name.startswith("__"):
            assert f"`{path.relative_to(PACKAGE)}`" in rooms, path
    for named in re.findall(r"`([\w/]+\.py)`", text):
        assert (PACKAGE / named).exists() or (ROOT / named).exists(), named


def test_no_shipped_file_is_over_10_mb():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        assert (ROOT / name).stat().st_size < 10_000_000, name


def test_the_package_is_importable_and_runs_as_a_program_without_the_page():
    code = (
        "import sys; sys.modules['gradio'] = None; import retro_demo;"
        "import retro_demo.training.trainer, retro_demo.cli.main;"
        "from retro_demo import RETRO, RetroConfig, UserError"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_test_that_the_security_table_names_exists():
    table = (ROOT / "docs" / "hosting.md").read_text().split("## Hostile input")[1].split("\n## ")[0]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))

    for name in set(re.findall(r"`(test_\w+)`", table)):
        assert f"def {name}(" in tests, name
    for path in set(re.findall(r"`(tests/[\w/]+\.py)`", table)):
        assert (ROOT / path).exists(), path


def called(path: Path) -> dict[str, list[ast.Call]]:
    """The calls of a file by their full name, as in `np.load`."""
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            found.setdefault(ast.unparse(node.func), []).append(node)
    return found


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    picklers = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    runners = {"eval", "exec", "compile", "torch.load", "os.system", "os.popen", "__import__"}
    wrong = []
    for path in [*modules(), ROOT / "app.py"]:
        calls = called(path)
        wrong += [f"{path.stem}: {name}" for name in sorted(roots(path) & picklers | set(calls) & runners)]
        for name, found in calls.items():
            for call in found:
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                if given.get("shell", "False") != "False":
                    wrong.append(f"{path.stem}: {name} with a shell")
                if name == "np.load" and given.get("allow_pickle") != "False":
                    wrong.append(f"{path.stem}: np.load that may unpickle")

    assert not wrong


def test_no_table_is_exported_as_csv_whose_cells_a_spreadsheet_would_run():
    writers = re.compile(r"csv\.(writer|DictWriter)|\.to_csv|Dataframe$")

    assert not [(path.stem, name) for path in modules() for name in called(path) if writers.search(name)]
