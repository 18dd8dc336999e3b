"""The page as tests meet it: on a data folder of its own, in this process or as a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import platformdirs
import pytest
from gradio_client import Client

from retro_demo.ui.page import build_app

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def page_home(folder: Path) -> Iterator[Path]:
    """A data folder below `folder`, which everything in this process uses, uploads beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(folder / "home"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        (folder / "home").mkdir()
        yield folder / "home"


@contextmanager
def opened_client(home: Path) -> Iterator[Client]:
    """A client of the page, which is started for it."""
    demo, _ = build_app(home)
    _, address, _ = demo.launch(
        prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False, enable_monitoring=False
    )
    opened = Client(address, verbose=False)
    yield opened
    opened.close()
    demo.close()


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
def served_app(home: Path, uploads: Path) -> Iterator[str]:
    """The address of app.py, started on a free port as a process of its own."""
    lend_samples(home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"RETRO_DEMO_HOME": str(home), "GRADIO_TEMP_DIR": str(uploads)}
    command = [sys.executable, str(ROOT / "app.py"), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=env)
    address = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 120
    while True:
        try:
            urlopen(address + "config", timeout=2).close()
            break
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail("The app did not answer within two minutes.")
            time.sleep(0.3)
    yield address
    server.terminate()
    server.wait(20)
