"""The queue on disk: each job has an entry in DATA/queue (`Ticket`) from its request to its end.

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
class Ticket:
    """One job: its folder, its verb, whose it is, and the device that it needs alone ("" for none).

    The one with the smallest `turn` comes next. `address`: where it was asked for from (server/limits.py).
    """

    path: Path
    folder: Path
    verb: str
    visitor: str
    device: str = ""
    turn: int = 0
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


def read_tickets(home: Path) -> list[Ticket]:
    """All queue entries of a data folder, the oldest first."""
    found = (_read(path) for path in (home / QUEUE).glob("*.json"))
    return sorted((ticket for ticket in found if ticket), key=lambda ticket: ticket.number)


def _read(path: Path) -> Ticket | None:
    try:
        kept = json.loads(path.read_text("utf-8"))
        folder = Path(os.path.normpath(path.parent.parent / kept.pop("folder")))
        return Ticket(path, folder, **kept)
    except (OSError, ValueError, KeyError, TypeError):  # it is gone, or the disk was full or lost its power
        return None


def _write(ticket: Ticket) -> None:
    home = ticket.path.parent.parent
    kept = {
        "folder": os.path.relpath(ticket.folder, home),
        "verb": ticket.verb,
        "visitor": ticket.visitor,
        "device": ticket.device,
        "turn": ticket.turn,
        "started": ticket.started,
        "address": ticket.address,
    }
    with replacing(ticket.path) as beside:
        beside.write_text(json.dumps(kept), "utf-8")


def issue(home: Path, folder: Path, verb: str, visitor: str, device: str = "", address: str = "") -> Ticket:
    """A new queue entry; the lock of the queue is held.

    Visitors take turns: who has other jobs at work or waiting lets later comers go first, but not for ever.
    """
    known = read_tickets(home)
    number = max((ticket.number for ticket in known), default=0) + 1
    turn = number + AHEAD * sum(ticket.visitor == visitor for ticket in known)
    path = home / QUEUE / f"{number:08d}.json"
    ticket = Ticket(path, folder, verb, visitor, device, turn, address=address)
    _write(ticket)
    with replacing(folder / POINTER) as beside:
        beside.write_text(os.path.relpath(ticket.path, folder), "utf-8")
    return ticket


def mark_started(ticket: Ticket) -> None:
    """Write down that the job of a queue entry was started; the lock of the queue is held."""
    _write(replace(ticket, started=True))


def drop(ticket: Ticket) -> None:
    """Take an entry out of the queue; the lock of the queue is held."""
    ticket.path.unlink(missing_ok=True)
    if _pointed(ticket.folder) == ticket.path:
        (ticket.folder / POINTER).unlink(missing_ok=True)


def _pointed(folder: Path) -> Path | None:
    try:
        return Path(os.path.normpath(folder / (folder / POINTER).read_text("utf-8")))
    except FileNotFoundError:
        return None


def waiting_ticket(folder: Path) -> Ticket | None:
    """The queue entry of a job that waits for its place, None where it does not."""
    path = _pointed(folder)
    ticket = _read(path) if path else None
    return ticket if ticket and ticket.folder == folder and not ticket.started else None


def cancel(folder: Path) -> bool:
    """Let a waiting job leave the queue; False where it does not wait (any more)."""
    ticket = waiting_ticket(folder)
    if ticket is None:
        return False
    with queue_lock(ticket.path.parent.parent):
        ticket = waiting_ticket(folder)  # it may have been started meanwhile
        if ticket is None:
            return False
        drop(ticket)
        return True


def in_turn(tickets: Sequence[Ticket]) -> list[Ticket]:
    """The waiting ones in the order in which they come."""
    waiting = [ticket for ticket in tickets if not ticket.started]
    return sorted(waiting, key=lambda ticket: (ticket.turn, ticket.number))


def place(folder: Path) -> tuple[int, int]:
    """Which place in the queue a job has, from 1, and how many wait; (0, 0) where it does not wait."""
    ticket = waiting_ticket(folder)
    if ticket is None:
        return 0, 0
    order = [other.number for other in in_turn(read_tickets(ticket.path.parent.parent))]
    return (order.index(ticket.number) + 1, len(order)) if ticket.number in order else (0, 0)
