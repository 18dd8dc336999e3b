"""The data folder of a server: one server at a time, and closed to everybody else on the machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout

from retro_demo.errors import UserError

log = logging.getLogger(__name__)

UPLOADS = "uploads"  # the one folder in it that the page hands files out of
PARTS = (
    "workspaces",
    "queue",
    "samples",
    "derived",
    "evaluations",
    "links",
    "browser-secret",
    "limits.json",
    "server.lock",
    "server.pid",
    "copying.lock",
    "last-cleaning",
)


def serve_alone(home: Path) -> FileLock:
    """Hold a data folder for as long as the lock is; raises UserError where another server does.

    The operating system lets the lock go when the process dies, however it dies.
    """
    lock, holder = FileLock(home / "server.lock"), home / "server.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        number = holder.read_text().strip() if holder.exists() else "unknown"
        raise UserError(
            f"The data folder {home} is served by another process already (number {number}). Stop that one, "
            "or set RETRO_DEMO_HOME to another folder."
        ) from None
    holder.write_text(str(os.getpid()))
    return lock


def close_folder(home: Path) -> None:
    """Let nobody else on the machine into what the app keeps in its data folder (mode 700)."""
    home.mkdir(mode=0o700, exist_ok=True)  # one that is there may hold other things, for other people
    for part in (UPLOADS, "workspaces"):
        (home / part).mkdir(mode=0o700, exist_ok=True)
    parts = [home / part for part in (UPLOADS, *PARTS)]
    for path in [part for part in parts if part.exists()] + list((home / "workspaces").glob("*")):
        try:
            path.chmod(0o700 if path.is_dir() else 0o600)
        except OSError as error:  # a mounted bucket has no modes
            log.warning("%s cannot be closed to others (%s)", path, error)


def never_served(home: Path) -> list[str]:
    """What Gradio may hand out in no case, wherever the data folder lies and whatever a handler returns."""
    return [str(home / part) for part in PARTS]
