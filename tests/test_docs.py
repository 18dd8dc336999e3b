"""What README and docs show is run: snippets, the notebook, commands in their order; and the site is built.

The snippets of docs/http.md run as they stand there, against the page; its table names the endpoints.
Commands of README, tutorial and command line are run with few steps and few tokens; what needs a base of its
own, the Hub or a shipped evaluation is parsed only (`PARSED`), as is every other (tests/test_structure.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL, records, write_jsonl
from held_back import PATIENCE
from page_helpers import client_of, lend_samples, opened_client, page_home
from places import ROOT

from benchmarks import glossary_page
from retro_demo.cli import main
from retro_demo.corpus.samples import SAMPLES
from retro_demo.render.wording import GLOSSARY

HTTP = (ROOT / "docs" / "http.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", HTTP, re.S)
LENT = "/advance"  # where GPUs are lent, and nowhere else


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with page_home(tmp_path_factory.mktemp("docs")) as home, opened_client(home) as client:
        yield client.src


def test_every_snippet_of_the_http_page_runs_and_says_what_it_promises(
    address, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("harbor", "river", "mill"):
        lines = (f"In {1700 + n} the town at the {name} sold {n} barrels of salt and cod." for n in range(80))
        Path(f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    said: dict[str, object] = {}
    printed = []
    for snippet in SNIPPETS:
        # on a busy machine an answer may take longer than the five seconds of httpx
        patient = snippet.replace(
            'Client("http://127.0.0.1:7860")',
            f'Client("{address}", httpx_kwargs={{"timeout": {PATIENCE}}})',
        )
        exec(compile(patient, "docs/http.md", "exec"), said)
        printed.append(capsys.readouterr().out)

    _, built, trained, written, traced, refused = printed
    assert built.startswith("finished towns 3\n")
    assert built.count("->") == 2
    assert re.match(r"finished 20 \d\.\d+", trained)
    assert "In the year" in written
    assert re.match(r"[1-9]\d* of \d+ words stand in the corpus", traced)
    assert re.search(r"<- \S+ True$", traced, re.M)
    assert "no such corpus" in refused
    assert refused.count("\n") == 1


def test_the_table_of_the_http_page_names_every_endpoint_and_no_other(address):
    rows = "\n".join(line.split("|")[1] for line in HTTP.splitlines() if line.startswith("| `/"))
    with client_of(address) as client:
        named = client.view_api(return_format="dict")["named_endpoints"]  # pyright: ignore

    assert set(re.findall(r"`(/\w+)`", rows)) == {*named, LENT}


def commands_of(paper: str) -> list[str]:
    """The commands of a paper in their order, in the words of a shell."""
    text = (ROOT / paper).read_text("utf-8").replace("\\\n", " ")
    return re.findall(r"^(?:\.venv/bin/python -m retro_demo|retro-demo) ([a-z].*)$", text, re.M)


FEW = {
    "build-corpus": "--chunk-len 8 --vocab-size 400 --num-neighbors 4",
    "train": "--steps 2 --eval-tokens 200 --batch-size 2 --seq-len 128",
    "study": "--steps 2 --eval-tokens 200 --batch-size 2 --seq-len 128",
    "train marge": "--steps 2 --eval-tokens 200 --batch-tokens 400",
    "evaluate data/marge": "--max-tokens 400 --resamples 200",
    "evaluate": "--max-tokens 400 --resamples 200 --corruption 0 --prepend off",
    "generate": "--max-new-tokens 4",
    "explain": "--num-neighbors 1",
    "weigh": "--max-tokens 200",
}
SMALL_NETWORK = " --dim 16 --depth 2 --num-heads 2 --cca-layers 2 --enc-dim 16"
PARSED = ("serve", "push", "generate sample:", "evaluate sample:", "train retrofit --base smollm2")
PARSED += ("generate data/reader", "study --corpus data/mine --out data/study-3", "evaluate data/reader")
PARSED += ("train lm --base smollm2", "train retrofit --base data/tuned", "study --base smollm2")
EXTRAS = "--tensorboard"  # tests/runs/test_metrics_export.py


def words_of(command: str, folder: Path) -> list[str]:
    """The words that a shell makes of a command, run small."""
    shell = ["bash", "-c", f"printf '%s\\0' {command}"]
    words = subprocess.run(shell, cwd=folder, capture_output=True, check=True, text=True).stdout.split("\0")[
        :-1
    ]
    goes_on = words[0] == "train" and words[1].startswith("-")
    few = FEW.get(" ".join(words[:2])) or FEW.get(words[0], "")
    if words[0] in ("train", "study") and words[1] != "marge" and "--base" not in words:
        few += SMALL_NETWORK
    return words if goes_on else [*words, *few.split()]


@pytest.fixture
def desk(tmp_path, data_folder, monkeypatch) -> Path:
    """A folder with what the papers speak of: documents of one's own, a text, and small samples."""
    monkeypatch.chdir(tmp_path)
    rows = records()
    for number, row in enumerate(rows):
        folder = Path("my_documents" if number % 5 else "more_documents")
        folder.mkdir(exist_ok=True)
        (folder / f"{row['id']}.txt").write_text(row["text"], "utf-8")
    Path("my_documents/harbor.txt").write_text(records(seed=1)[0]["text"], "utf-8")
    Path("a_text_of_two_chunks_or_more.txt").write_text(rows[1]["text"], "utf-8")
    small = write_jsonl(tmp_path / "world.jsonl", records(seed=2))
    monkeypatch.setitem(SAMPLES, "lookup", replace(SAMPLES["lookup"], source=small, config=SMALL))
    lend_samples(data_folder)
    return tmp_path


@pytest.mark.parametrize("paper", ["README.md", "docs/tutorial.md", "docs/command-line.md"])
def test_the_commands_of_a_paper_run_in_their_order(desk, capsys, paper):
    commands = commands_of(paper)
    ran = 0
    for command in commands:
        if command.startswith(PARSED) or EXTRAS in command:
            continue
        words = words_of(command, desk)
        if words[0] == "generate" and "data/other" in words:
            assert main.main(words_of("build-corpus more_documents --out data/other --holdout 0", desk)) == 0
        assert main.main(words) == 0, (command, capsys.readouterr().err)
        capsys.readouterr()
        ran += 1

    assert ran >= len(commands) / 2


@pytest.mark.parametrize(
    "paper", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_the_python_of_a_paper_runs_as_pasted(paper, capsys):
    """All but docs/http.md, which speaks to a server."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / paper).read_text("utf-8"), re.S)
    if paper == "docs/http.md":
        return
    for snippet in snippets:
        exec(compile(snippet, paper, "exec"), {})
        out = capsys.readouterr().out
        for line in re.findall(r"# (torch\.Size.*)$", snippet, re.M):
            assert line in out
    assert snippets or paper != "README.md"


def test_the_notebook_runs_from_top_to_bottom(data_folder, capsys):
    lend_samples(data_folder)
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))["cells"]
    said: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "docs/notebook.ipynb", "exec"), said)
            printed = capsys.readouterr().out
            assert bool(printed) == bool(cell["outputs"])

    assert re.fullmatch(r"loss with shuffled neighbors \d\.\d{3} nats a token\n", printed)


def test_the_glossary_of_the_papers_is_that_of_the_page():
    text = glossary_page.PLACE.read_text("utf-8")

    assert text == glossary_page.page(), "run python -m benchmarks.glossary_page"
    assert all(f"**{word}**: {sentence}" in text for word, sentence in GLOSSARY.items())


def test_the_site_names_every_paper_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    papers = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert set(re.findall(r"^([a-z-]+)$", index, re.M)) == papers

    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.glob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*>", page.read_text("utf-8")):
            assert "//" not in tag, (page.name, tag)
    assert "chunked cross-attention" in (tmp_path / "api.html").read_text("utf-8")
