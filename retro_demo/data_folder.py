"""The data folder of a server: one server at a time, and closed to everybody else on the machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout

from retro_demo.errors import UserError

log = logging.getLogger(__name__)

UPLOADS = "uploads"  # the one folder in it that the page hands files out of
DELETED_FROM = (UPLOADS, "workspaces")  # what is old or in nobody's use goes (janitor.py)
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

    The operating system lets the lock go when the process dies, however it dies. Folders that are deleted
    from have common names: where somebody else has one of that name, nothing is served.
    """
    holder = home / "server.pid"
    served_before = holder.is_file() and holder.read_bytes().strip().isdigit()
    taken = [part for part in DELETED_FROM if (home / part).is_dir() and any((home / part).iterdir())]
    if taken and not served_before:
        raise UserError(
            f"{home} holds a folder {taken[0]} that is not of this program, which would delete from it. "
            "Nothing was touched: set RETRO_DEMO_HOME to another folder."
        )
    lock = FileLock(home / "server.lock")
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
    for part in DELETED_FROM:
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
