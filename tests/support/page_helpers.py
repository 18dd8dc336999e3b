"""The page as tests meet it: on a data folder of its own, in this process or as a server."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest
from gradio_client import Client
from held_back import PATIENCE

from benchmarks import serving
from retro_demo.ui import serve


@contextmanager
def page_home(folder: Path) -> Iterator[Path]:
    """A data folder below `folder`, which everything in this process uses, uploads beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(folder / "home"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        (folder / "home").mkdir()
        yield folder / "home"


@contextmanager
def client_of(address: str) -> Iterator[Client]:
    """A client of the page at that address; it waits longer for answers than the five seconds of httpx."""
    opened = Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE})
    yield opened
    threading.Thread(target=opened.close, daemon=True).start()  # it waits a second for its own heartbeat


@contextmanager
def opened_client(home: Path) -> Iterator[Client]:
    """A client of the page, which is started for it."""
    with serving.served_page(home) as address, client_of(address) as opened:
        yield opened


@pytest.fixture
def refusing_app(monkeypatch, capsys) -> Iterator[Callable[..., str]]:
    """What app.py says with these flags, where it refuses to serve; it runs in this process."""

    def start(*flags: str) -> str:
        monkeypatch.setattr(serve, "launch", lambda *_, **__: pytest.fail("it serves"))
        assert serve.main(list(flags)) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    mask = os.umask(0o077)  # what it sets for all that it writes
    yield start
    os.umask(mask)


def lend_samples(home: Path) -> None:
    """Let the sample corpora that `make setup` built stand in a data folder too.

    An app without them builds them at its start, which keeps both cores of a small machine from the tests.
    """
    built = Path(platformdirs.user_data_dir("retro_demo", appauthor=False)) / "samples"
    if built.is_dir() and not (home / "samples").exists():
        own = shutil.ignore_patterns("lock", "pid", "*.lock", "log.txt")
        shutil.copytree(built, home / "samples", copy_function=_linked, ignore=own)


def _linked(source: str, place: str) -> str:
    try:
        os.link(source, place)
    except OSError:  # another disk
        shutil.copy2(source, place)
    return place


@contextmanager
def served_app(home: Path, program: Path = serving.ROOT / "app.py") -> Iterator[str]:
    """The address of app.py, or what stands for it, on a free port as a process of its own."""
    lend_samples(home)
    with serving.served_app(home, program=program) as (address, _):
        yield address
