"""The structure and the papers of the repository, kept honest."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from retro_demo import cli
from retro_demo.config import CorpusConfig, GenerateConfig, RetroConfig, TrainConfig
from retro_demo.knobs import knobs
from retro_demo.limits import Limits

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "retro_demo"
LAYERS = [
    [
        "errors",
        "listing",
        "whole_files",
        "processes",
        "troubles",
        "events",
        "event_log",
        "knobs",
        "retro_config",
        "config",
        "alarms",
        "evaluate_config",
        "presets",
        "glossary",
        "devices",
        "distributed",
        "compiling",
        "stopping",
        "explain_config",
        "marge_config",
        "change_config",
        "wording",
        "limits",
        "allowance",
        "addresses",
        "tickets",
    ],
    [
        "neighbors",
        "tokenizer",
        "charsets",
        "zip_names",
        "archives",
        "output_folder",
        "reading_notes",
        "reading_progress",
        "formats",
        "documents",
        "duplicates",
        "linear",
        "minilm",
        "overlap",
        "bootstrap",
        "lookup_language",
        "lookup_world",
    ],
    [
        "corpus_checks",
        "corpus",
        "embedding",
        "vectors",
        "index_parts",
        "index",
        "marks",
        "index_files",
        "recall",
        "unknown_text",
        "lexical",
        "cutting",
        "building",
        "changing",
        "arms",
    ],
    ["passages", "evidence", "subgraphs", "cross_lingual", "evidence_store"],
    ["copying"],
    [
        "attention",
        "blocks",
        "cca",
        "decoder",
        "encoder",
        "retro",
        "interop_config",
        "interop",
        "interop_sampling",
        "interop_data",
        "interop_weights",
        "distillation",
        "marge_layers",
        "marge_batch",
        "marge",
        "interop_marge_config",
        "interop_marge",
        "interop_marge_sampling",
        "network_size",
        "reading_size",
    ],
    ["explain", "editing"],
    [
        "reading",
        "batches",
        "tensor_files",
        "checkpoint",
        "run_state",
        "train",
        "generate",
        "tracing",
        "evaluate",
        "search",
        "provenance",
        "findings",
        "marge_arms",
        "marge_batches",
    ],
    ["loss_table", "lookup_facts", "arm_figures", "leakage", "verdict"],
    [
        "jobs",
        "workspace",
        "commands",
        "telling",
        "data_folder",
        "planning",
        "editions",
        "loading",
        "neighbor_tables",
        "marge_planning",
        "marge_training",
        "marge_writing",
        "sharding",
        "pipeline",
        "ray_shards",
    ],
    [
        "matching",
        "smaller_databases",
        "trained_on",
        "report",
        "evaluation_request",
        "evaluating",
        "marge_evaluate",
        "marge_evaluate_report",
    ],
    [
        "evidence_run",
        "evidence_reading",
        "evidence_sample",
        "evidence_export",
        "evidence_series",
        "run_settings",
    ],
    [
        "library",
        "slices",
        "forks",
        "ready",
        "explained",
        "writing",
        "rewriting",
        "kept_traces",
        "quotas",
        "dispatch",
        "received",
        "belongings",
        "janitor",
        "swaps",
        "service",
        "downloads",
        "weighing",
    ],
    ["evaluations", "corpus_changes"],
    [
        "views",
        "text_views",
        "explain_views",
        "reading_views",
        "plot_words",
        "figures",
        "job_views",
        "evaluate_views",
        "marge_evaluate_views",
        "weigh_views",
    ],
    ["evaluate_figures", "evidence_views", "evidence_figures"],
    ["sharing", "share_records", "share_checks", "model_card", "exporting", "importing", "hub", "shares"],
    ["flags", "printing", "change_verbs", "job_verbs", "share_verbs"],
    ["cli", "ui"],
]
"""Lowest first; a module imports from its own layer and those before it."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """Names of our modules that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retro_demo"):
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("retro_demo.")}
    return names


def roots(path: Path) -> set[str]:
    """The first names of all modules that a file imports, ours and others."""
    tree = parsed(path)
    plain = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return plain | {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}


def test_imports_point_one_way():
    level = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    wrong = []
    for path in modules():
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name in ("__init__", "__main__"):
            continue
        if name not in level:
            wrong.append(f"{name} belongs to no layer yet")
            continue
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {other}, which stands above it"
            for other in sorted(imported(path))
            if level.get(other, len(LAYERS)) > level[name]
        ]

    assert not wrong


def test_gradio_is_imported_by_the_page_alone_and_only_printing_prints():
    wrong = []
    for path in modules():
        inside_ui = "ui" in path.relative_to(PACKAGE).parts
        if not inside_ui and "gradio" in roots(path):
            wrong.append(f"{path.stem} imports gradio")
        if inside_ui and "torch" in roots(path):
            wrong.append(f"{path.stem} imports torch")
        if path.stem not in ("printing", "cli") and "print" in called(path):
            wrong.append(f"{path.stem} prints")

    assert not wrong


def test_every_module_says_what_it_is_and_is_short():
    wrong = []
    for path in modules():
        text = path.read_text()
        if not ast.get_docstring(parsed(path)) and path.parent.name != "ui":
            wrong.append(f"{path.stem} says nothing")
        if (lines := len(text.splitlines())) > 600:
            wrong.append(f"{path.stem} has {lines} lines")

    assert not wrong


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
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text().replace("\\\n", " ")
        start = r"(?:\.venv/bin/)?python|(?:srun .*)?(?:\.venv/bin/)?torchrun .*|srun .*python"
        started = rf"^(?:{start}) -m retro_demo (.+)$"
        found += re.findall(started, text, re.M)
    return found


def test_every_command_in_the_docs_parses():
    commands = documented_commands()
    parser = cli.build_parser()

    assert len(commands) >= 4
    for command in commands:
        told = re.sub(r"\$\w+", "1", command.split("#")[0])  # what a scheduler puts in
        parser.parse_args(shlex.split(told))


@pytest.mark.parametrize("config", [CorpusConfig, RetroConfig, TrainConfig, GenerateConfig, Limits])
def test_every_knob_stands_in_the_reference_table(config):
    table = (ROOT / "docs" / "settings.md").read_text()

    for knob in knobs(config):
        assert f"| `{knob.name}` |" in table, (
            f"run python -m benchmarks.settings_table: {knob.name} is missing"
        )
        assert knob.metadata["help"] in table


def test_every_make_target_named_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))

    assert set(re.findall(r"`make ([a-z]+)`", (ROOT / "README.md").read_text())) <= targets


def test_links_between_the_papers_lead_somewhere():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_nothing_is_left_to_be_filled_in():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        assert not re.findall(r"\{[a-z_]+\}|@[A-Z0-9]+@", text), path.name


def test_every_file_named_in_the_papers_exists():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for named in re.findall(
            r"`((?:docs|benchmarks|assets|checkpoints|retro_demo)/[\w./-]+)`", path.read_text()
        ):
            assert (ROOT / named).exists(), f"{path.name} names {named}"


def test_every_module_is_named_in_the_architecture_or_in_the_tree_of_the_readme():
    tree = (ROOT / "README.md").read_text().split("## The repository")[1]
    named = re.findall(r"`(?:retro_demo/)?([\w/*]+)\.py`", (ROOT / "docs" / "architecture.md").read_text())
    for line in tree.splitlines():
        if line.startswith("  "):
            named += line.strip().split("  ")[0].split()

    for path in modules():
        name = str(path.relative_to(PACKAGE).with_suffix(""))
        if path.stem not in ("__init__", "__main__"):
            assert any(fnmatch(name, one) for one in named), name


def test_no_shipped_file_is_over_10_mb():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        assert (ROOT / name).stat().st_size < 10_000_000, name


def test_the_package_is_importable_and_runs_as_a_program_without_the_page():
    code = (
        "import sys; sys.modules['gradio'] = None; import retro_demo, retro_demo.pipeline, retro_demo.cli;"
        "from retro_demo import RETRO, RetroConfig, UserError"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_test_that_the_security_table_names_exists():
    table = (ROOT / "docs" / "hosting.md").read_text().split("## Hostile input")[1].split("\n## ")[0]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))

    for name in set(re.findall(r"`(test_\w+)`", table)):
        assert f"def {name}(" in tests, name
    for path in set(re.findall(r"`(tests/\w+\.py)`", table)):
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
