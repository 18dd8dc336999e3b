"""Deletes what nobody uses, and keeps one server for each data folder.

Workspaces are deleted on request, by age or to make room, never while a job works in them. The data folder is
closed to everybody else on the machine.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.output_folder import is_hidden
from retro_demo.paths import CODE, link_to
from retro_demo.server.limits import MEGABYTE, limits_of
from retro_demo.server.workspace import Workspace, delete_noted, disk_use, forget_gone, noted_retokenized

log = logging.getLogger(__name__)

UPLOADS = "uploads"  # the one folder in it that the page hands files out of
DELETED_FROM = (UPLOADS, "workspaces")  # what is old or in nobody's use goes (server/cleanup.py)
UPLOAD = re.compile("[0-9a-f]{64}")  # the folder of an upload is called by the hash of its content
OF_A_WORKSPACE = ("corpora", "runs", "studies", "evaluations", "traces", "files.jsonl", "exports.jsonl")
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


DAY = 24 * 3600.0
GONE = ".gone-"  # before the name of a workspace that is being deleted: no code begins with a dot
LEAVE_SECONDS = 20.0  # for a job that was asked to leave before it is killed
LOOK_SECONDS = 600.0
IN_USE = 2 * 3600.0  # seconds; a workspace is dated once an hour at most: it was used in the last one
LOOKED = "last-cleaning"  # a file of the data folder; its date is of the last cleanup
STAGED = (".import-*", ".export-*")  # in a workspace, and left where a server was killed at its work
JOBS = ("corpora/*", "corpora/*/editions/*", "runs/*", "runs/*/evaluations/*", "evaluations/*/*", "studies/*")


def delete_workspace(home: Path, code: str) -> int:
    """End all jobs of a visitor and delete the workspace; the bytes that are free again.

    Raises UserError where there is none.
    """
    folder = home / "workspaces" / code
    Workspace(home, folder).check_there()
    for job in _under_way(folder):
        lifecycle.stop(job)
    deadline = time.monotonic() + LEAVE_SECONDS
    while (left := _under_way(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for job in left:
        lifecycle.kill(job)
    return _remove(folder)


def _under_way(folder: Path) -> list[Path]:
    own = [job for place in JOBS for job in folder.glob(place)]
    return [job for job in [*own, *noted_retokenized(folder)] if lifecycle.is_under_way(job)]


def _remove(folder: Path) -> int:
    """Delete a workspace, with its uploads, so that at no moment half of it can be opened."""
    used = disk_use(folder)
    delete_noted(folder)
    link_to(folder.parent.parent, folder.name).unlink(missing_ok=True)
    gone = folder.with_name(f"{GONE}{secrets.token_hex(8)}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # what a dying process still wrote goes with the next cleaning
    return used


def clean(home: Path, now: float) -> list[str]:
    """Delete what is old in a data folder; the names of what went.

    Workspaces that nobody opened for the days of the limits, empty ones after a day, uploads and torn
    writes after a day. `now`: seconds since 1970.
    """
    workspaces = home / "workspaces"
    days, went = limits_of(home).keep_days, []
    for gone in workspaces.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)
    for folder in _workspaces(home):
        with _on_to_the_next():
            unused = now - folder.stat().st_mtime
            empty = not any(path.is_file() for path in folder.rglob("*"))
            if days and unused > (DAY if empty else days * DAY) and not _under_way(folder):
                _remove(folder)
                went.append(folder.name)
            else:
                went += [_delete(path) for path in _torn(folder, now)]
                if unused > IN_USE:
                    forget_gone(folder)
    return went + [_delete(path) for path in _old(home / UPLOADS, now)]


def make_room(home: Path, now: float) -> list[str]:
    """Delete the workspaces that nobody used for longest until the others hold what the limits allow.

    What is at work, waits or was used in the last hour stays. The names of what went.
    """
    most, went = limits_of(home).megabytes_of_all * MEGABYTE, []
    if not most:
        return went
    found = _workspaces(home)
    sizes = {folder: disk_use(folder) for folder in found}
    used = {}
    for folder in found:
        with _on_to_the_next():
            used[folder] = folder.stat().st_mtime
    held = sum(sizes.values())
    for folder in sorted(used, key=used.__getitem__):
        if held <= most or now - used[folder] <= IN_USE:
            break
        with _on_to_the_next():
            # its visitor may have come back while all were measured
            if not _under_way(folder) and folder.stat().st_mtime == used[folder]:
                _remove(folder)
                held -= sizes[folder]
                went.append(folder.name)
    return went


@contextmanager
def _on_to_the_next() -> Iterator[None]:
    """What goes wrong with one workspace keeps no other from being cleaned."""
    try:
        yield
    except FileNotFoundError:  # its visitor deletes it at this moment
        pass
    except Exception:
        log.exception("a workspace could not be cleaned")


def keep_ages(home: Path, now: float, passed: float) -> None:
    """Let nothing grow older or younger by time that nobody lived: the clock was set, or no server was here.

    `now`: seconds since 1970; `passed`: seconds since the last look by a clock that nobody sets, 0 for the
    first look of a server.
    """
    looked = home / LOOKED
    jump = now - passed - looked.stat().st_mtime if looked.exists() else 0.0
    if abs(jump) > LOOK_SECONDS:
        for path in _dated(home):
            then = path.stat().st_mtime
            # what was used since the jump has the right date already
            right = min(then + jump, now) if jump > 0 or then > now else then
            os.utime(path, (right, right))
    looked.touch()
    os.utime(looked, (now, now))


def _workspaces(home: Path) -> list[Path]:
    """The folders of all workspaces, but those that are being deleted."""
    found = (home / "workspaces").glob("*")
    return [path for path in found if path.is_dir() and not is_hidden(path.name)]


def _dated(home: Path) -> list[Path]:
    """All that goes by its age."""
    staged = [path for kind in STAGED for path in home.glob(f"workspaces/*/{kind}")]
    return [*_workspaces(home), *staged, *(home / UPLOADS).glob("*")]


def _torn(folder: Path, now: float) -> Iterator[Path]:
    """Halves of files that a killed job left beside the whole ones."""
    for path in folder.rglob("*.tmp"):
        if path.is_file() and now - path.stat().st_mtime > DAY and not lifecycle.is_under_way(path.parent):
            yield path
    for kind in STAGED:
        yield from (path for path in folder.glob(kind) if now - path.stat().st_mtime > DAY)


def _old(folder: Path, now: float) -> Iterator[Path]:
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # it goes at this moment
            if now - path.stat().st_mtime > DAY:
                yield path


def _delete(path: Path) -> str:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return path.name


def keep_cleaning(home: Path) -> threading.Thread:
    """Clean now and then, beside the page and for as long as it is served."""

    def work() -> None:
        before = time.monotonic()
        while True:
            try:
                at, now = time.monotonic(), time.time()
                keep_ages(home, now, at - before)
                before = at
                if went := clean(home, now) + make_room(home, now):
                    log.info("%d old things were deleted", len(went))
            except Exception:  # the next cleaning may do better
                log.exception("the cleaning stumbled")
            time.sleep(LOOK_SECONDS)

    thread = threading.Thread(target=work, daemon=True, name="clean")
    thread.start()
    return thread
