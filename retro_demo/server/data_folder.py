"""The data folder of a server: one server at a time, and closed to everybody else on the machine."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from filelock import FileLock, Timeout

from retro_demo.errors import UserError
from retro_demo.output_folder import is_hidden
from retro_demo.paths import CODE

log = logging.getLogger(__name__)

UPLOADS = "uploads"  # the one folder in it that the page hands files out of
DELETED_FROM = (UPLOADS, "workspaces")  # what is old or in nobody's use goes (server/janitor.py)
UPLOAD = re.compile("[0-9a-f]{64}")  # the folder of an upload is called by the hash of its content
OF_A_WORKSPACE = ("corpora", "runs", "evaluations", "traces", "files.jsonl", "exports.jsonl")
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
    if not (holder.is_file() and holder.read_bytes().strip().isdigit()):  # it was never served
        for part, is_ours in ((UPLOADS, _is_upload), ("workspaces", _is_workspace)):
            if strange := [path.name for path in (home / part).glob("*") if not is_ours(path)]:
                raise UserError(
                    f"{home / part} holds {strange[0]}, which is not of this program, and things there are "
                    "deleted when they are old. Nothing was touched: set RETRO_DEMO_HOME to another folder."
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


def _is_upload(path: Path) -> bool:
    return UPLOAD.fullmatch(path.name) is not None


def _is_workspace(path: Path) -> bool:
    if is_hidden(path.name):  # one that is being deleted
        return True
    known = CODE.fullmatch(path.name) is not None and path.is_dir()
    return known and all(child.name in OF_A_WORKSPACE or is_hidden(child.name) for child in path.iterdir())


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
