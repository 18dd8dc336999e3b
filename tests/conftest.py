"""What many tests share: a small corpus, built once, and a data folder that is nobody's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RETRO_DEMO_SMOLLM2", "none")  # tests are the same with the base and without
os.environ.setdefault("OMP_NUM_THREADS", "1")  # files of tests run side by side; their tensors are tiny
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the app does: tests may run on a busy machine

import numpy as np
import pytest
from forked import Forks

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.jobs import job_queue, lifecycle
from retro_demo.server import service
from retro_demo.server.limits import PRIVATE, keep_limits
from retro_demo.settings import CorpusConfig

PLACES = [
    "Arden",
    "Belmont",
    "Corvo",
    "Dunmere",
    "Eskel",
    "Farrow",
    "Galt",
    "Hollin",
    "Istria",
    "Jorvik",
    "Kestrel",
    "Lorn",
    "Morrow",
    "Norvale",
]


def records(seed: int = 0) -> list[dict[str, str]]:
    """Short entries of made-up places: alike in form, unlike in fact."""
    rng = np.random.default_rng(seed)
    rows = []
    for place in PLACES:
        text = "\n".join(
            f"{field} of {place}: {rng.integers(100, 9999)} {unit}, estimated in {rng.integers(1990, 2015)}."
            for field, unit in [
                ("Area", "square km"),
                ("Population", "people"),
                ("Coastline", "km"),
                ("Irrigated land", "square km"),
                ("Roadways", "km paved"),
                ("Electricity made", "kWh"),
                ("Internet users", "people"),
                ("Highest point", "m above the sea"),
            ]
        )
        rows.append({"id": place.lower(), "title": place, "text": text})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory, monkeypatch) -> Path:
    """A data folder of the test's own, never the user's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("RETRO_DEMO_HOME", str(home))
    return home


@pytest.fixture(scope="session", autouse=True)
def forked_jobs() -> Iterator[None]:
    """Jobs are forked from a process that has read torch already, and are looked at more often."""
    forks = Forks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "LOOK_SECONDS", 0.05)
        if sys.platform == "linux":
            patch.setattr(lifecycle, "subprocess", forks)
        yield
    forks.close()


@pytest.fixture
def own_process(monkeypatch) -> None:
    """Jobs are started as in the program: a Python of their own, which reads everything anew."""
    monkeypatch.setattr(lifecycle, "subprocess", subprocess)


@pytest.fixture(scope="session")
def shared_by_browsers(request, tmp_path_factory) -> Any:
    """What all tests in a browser share: see browsing.py."""
    from browsing import Shared

    request.config.stash[SHARED] = shared = Shared(tmp_path_factory.mktemp("app") / "home")
    return shared


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item, nextitem) -> Iterator[None]:
    """Close the browser behind the last test in one: Playwright's loop would be in the way of other loops."""
    yield
    last = nextitem is None or nextitem.get_closest_marker("browser") is None
    if last and (shared := item.config.stash.get(SHARED, None)):
        shared.close()


SHARED = pytest.StashKey[Any]()
SLOW = (
    *("browser", "evaluate_browser", "evidence_browser", "accessibility_browser", "share_browser"),
    *("first_screen_browser", "train_browser", "pictures_browser"),
    *("zero_gpu", "distributed", "lifecycle", "job_queue", "faults", "evaluate_page", "studies"),
    *("page", "hosting", "compiling", "trainer", "sharding", "marge_training", "reader_runs", "contributing"),
    *("hostile_requests", "corpus_changes", "docs", "hub", "evidence_page", "visitors_apart", "changes"),
    *("writing_lane", "hot_swaps", "shares", "attribution", "text", "retokenized", "http_endpoints", "study"),
)
"""Files of tests that take longest, which begin first: so no process waits for another one in the end."""


def pytest_collection_modifyitems(items) -> None:
    places = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_xdist_make_scheduler(config, log) -> Any:
    """With --dist loadfile the tests in a browser are as one file: they share a browser and a server."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "browser" if file.endswith("_browser.py") else file

    return Files(config, log)


SMALL = CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4)


@pytest.fixture(scope="session")
def small_as_built(tmp_path_factory) -> Path:
    """A built corpus of fourteen short documents with chunks of eight tokens; do not change it."""
    folder = tmp_path_factory.mktemp("corpora") / "small"
    prepare_corpus(folder, [write_jsonl(folder.parent / "places.jsonl", records())], SMALL)
    list(build_corpus(folder))
    return folder


@pytest.fixture(scope="module")
def small_folder(small_as_built, tmp_path_factory) -> Path:
    """A copy of it for one file of tests: what a run makes of a corpus lies beside the corpus."""
    return shutil.copytree(small_as_built, tmp_path_factory.mktemp("corpora") / "small")


@pytest.fixture(scope="session")
def small_corpus(small_as_built) -> Corpus:
    return load_corpus(small_as_built)


@pytest.fixture(scope="session")
def half_held_out(tmp_path_factory) -> Corpus:
    """The same documents with half of them held out, to measure on; do not change it."""
    folder = tmp_path_factory.mktemp("corpora") / "half"
    source = write_jsonl(folder.parent / "places.jsonl", records())
    prepare_corpus(folder, [source], CorpusConfig(chunk_len=8, vocab_size=400, num_neighbors=4, holdout=0.5))
    list(build_corpus(folder))
    return load_corpus(folder)


@pytest.fixture
def home(data_folder, small_folder) -> Iterator[Path]:
    """A data folder with the small corpus in `places`; what is at work for visitors ends with the test."""
    shutil.copytree(small_folder, data_folder / "places")
    yield data_folder
    keep_limits(data_folder, PRIVATE)
    for entry in job_queue.read_queue(data_folder):
        lifecycle.kill(entry.folder)
