"""The snippets of docs/http.md run as they stand there, against the page; its table names the endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from held_back import PATIENCE
from page_helpers import client_of, opened_client, page_home
from places import ROOT

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
