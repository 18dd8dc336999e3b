"""The queue on disk: each job has an entry in DATA/queue (`QueueEntry`) from its request to its end.

Whoever changes the queue holds its lock. A folder knows its entry by a file `ticket`; both name each
other by relative paths, so a data folder can be moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from retro_demo.files import replacing

QUEUE = "queue"
POINTER = "ticket"
AHEAD = 50  # later comers that a job lets go first, for each other job of its visitor


@dataclass(frozen=True)
class QueueEntry:
    """One job: its folder, its verb, whose it is, and the device that it needs alone ("" for none).

    The one with the smallest `priority` ("turn" on disk) comes next. `address`: where it was asked for from
    (server/limits.py).
    """

    path: Path
    folder: Path
    verb: str
    visitor: str
    device: str = ""
    priority: int = 0
    started: bool = False
    address: str = ""

    @property
    def number(self) -> int:
        return int(self.path.stem)


def queue_lock(home: Path) -> FileLock:
    """The lock of a data folder's queue, to be held while it is changed. Not twice by one thread."""
    folder = home / QUEUE
    folder.mkdir(mode=0o700, exist_ok=True)
    return FileLock(folder / "lock")


def read_queue(home: Path) -> list[QueueEntry]:
    """All queue entries of a data folder, the oldest first."""
    found = (_read(path) for path in (home / QUEUE).glob("*.json"))
    return sorted((entry for entry in found if entry), key=lambda entry: entry.number)


def _read(path: Path) -> QueueEntry | None:
    try:
        kept = json.loads(path.read_text("utf-8"))
        folder = Path(os.path.normpath(path.parent.parent / kept.pop("folder")))
        priority = kept.pop("turn", 0)
        return QueueEntry(path, folder, priority=priority, **kept)
    except (OSError, ValueError, KeyError, TypeError):  # it is gone, or the disk was full or lost its power
        return None


def _write(entry: QueueEntry) -> None:
    home = entry.path.parent.parent
    kept = {
        "folder": os.path.relpath(entry.folder, home),
        "verb": entry.verb,
        "visitor": entry.visitor,
        "device": entry.device,
        "turn": entry.priority,
        "started": entry.started,
        "address": entry.address,
    }
    with replacing(entry.path) as beside:
        beside.write_text(json.dumps(kept), "utf-8")


def enqueue(
    home: Path, folder: Path, verb: str, visitor: str, device: str = "", address: str = ""
) -> QueueEntry:
    """A new queue entry; the lock of the queue is held.

    Visitors take turns: who has other jobs at work or waiting lets later comers go first, but not for ever.
    """
    known = read_queue(home)
    number = max((entry.number for entry in known), default=0) + 1
    priority = number + AHEAD * sum(entry.visitor == visitor for entry in known)
    path = home / QUEUE / f"{number:08d}.json"
    entry = QueueEntry(path, folder, verb, visitor, device, priority, address=address)
    _write(entry)
    with replacing(folder / POINTER) as beside:
        beside.write_text(os.path.relpath(entry.path, folder), "utf-8")
    return entry


def mark_started(entry: QueueEntry) -> None:
    """Write down that the job of a queue entry was started; the lock of the queue is held."""
    _write(replace(entry, started=True))


def drop(entry: QueueEntry) -> None:
    """Take an entry out of the queue; the lock of the queue is held."""
    entry.path.unlink(missing_ok=True)
    if _pointed(entry.folder) == entry.path:
        (entry.folder / POINTER).unlink(missing_ok=True)


def _pointed(folder: Path) -> Path | None:
    try:
        return Path(os.path.normpath(folder / (folder / POINTER).read_text("utf-8")))
    except FileNotFoundError:
        return None


def waiting_entry(folder: Path) -> QueueEntry | None:
    """The queue entry of a job that waits for its place, None where it does not."""
    path = _pointed(folder)
    entry = _read(path) if path else None
    return entry if entry and entry.folder == folder and not entry.started else None


def cancel(folder: Path) -> bool:
    """Let a waiting job leave the queue; False where it does not wait (any more)."""
    entry = waiting_entry(folder)
    if entry is None:
        return False
    with queue_lock(entry.path.parent.parent):
        entry = waiting_entry(folder)  # it may have been started meanwhile
        if entry is None:
            return False
        drop(entry)
        return True


def in_order(entries: Sequence[QueueEntry]) -> list[QueueEntry]:
    """The waiting ones in the order in which they come."""
    waiting = [entry for entry in entries if not entry.started]
    return sorted(waiting, key=lambda entry: (entry.priority, entry.number))


def queue_position(folder: Path) -> tuple[int, int]:
    """Which place in the queue a job has, from 1, and how many wait; (0, 0) where it does not wait."""
    entry = waiting_entry(folder)
    if entry is None:
        return 0, 0
    order = [other.number for other in in_order(read_queue(entry.path.parent.parent))]
    return (order.index(entry.number) + 1, len(order)) if entry.number in order else (0, 0)
