"""The page for those who ask it from outside: within this process, or as a server of its own."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from retro_demo.server.limits import PRIVATE, Limits

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240.0  # seconds until a server answers
PORTS = range(20_000, 32_000)  # below those that a kernel gives to whoever connects somewhere


@contextmanager
def served_page(home: Path, limits: Limits = PRIVATE) -> Iterator[str]:
    """The address of the page over a data folder, in this process, behind the doors of app.py."""
    from retro_demo.ui.page import build_app
    from retro_demo.ui.serve import launch  # here: who measures a start must not have read these before

    demo, _ = build_app(home, "", limits)
    address = launch(demo, home, None, None)
    try:
        yield address
    finally:
        demo.close()


def free_port() -> int:
    """A port of this machine that nobody listens on, and that hardly anybody else chooses meanwhile."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def start_app(
    home: Path, *flags: str, told: IO[bytes] | None = None, program: Path = ROOT / "app.py"
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start app.py on a free port; its address and process, once it answers. Its words go to `told`, or its
    errors alone to where ours go. Another `program` may stand for app.py.

    Raises RuntimeError where it ends, or does not answer in time.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen(
        [sys.executable, str(program), "--host", "127.0.0.1", "--port", str(port), *flags],
        env=os.environ | {"RETRO_DEMO_HOME": str(home), "GRADIO_TEMP_DIR": str(home / "uploads")},
        cwd=ROOT,
        stdout=told or subprocess.DEVNULL,
        stderr=told,
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urlopen(url, timeout=60).close()
            return url, server
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"app.py did not answer (exit code {server.wait()}).") from None
            time.sleep(0.05)


@contextmanager
def served_app(
    home: Path, *flags: str, told: IO[bytes] | None = None, program: Path = ROOT / "app.py"
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The same within a block, at whose end the server is told to end."""
    url, server = start_app(home, *flags, told=told, program=program)
    try:
        yield url, server
    finally:
        server.terminate()
        server.wait(PATIENCE)
