"""The events of jobs as they are looked at again and again: what was read of a file is not read anew."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from retro_demo.events import events_of

TAIL = 256  # bytes by which a file is known again, beside its number


@dataclass(frozen=True)
class _Seen:
    """What was read of a file: its number on the disk, how many bytes (whole lines), their end and events."""

    number: tuple[int, int] = (0, 0)
    size: int = 0
    tail: bytes = b""
    events: tuple[dict[str, Any], ...] = ()


class EventLog:
    """Files of events with what was read of them, together at most so many bytes of files.

    A file that grew is read from where it ended; one that was written anew from its beginning. Losing all
    of this loses nothing.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._seen: OrderedDict[Path, _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> list[dict[str, Any]]:
        """As `read_events`. The events themselves are shared with other readers: do not change them."""
        with self._lock:
            before = self._seen.pop(path, _Seen())
        try:
            with path.open("rb") as file:
                seen = _read_on(file, before)
        except (FileNotFoundError, NotADirectoryError):
            return []
        with self._lock:
            self._seen[path] = seen
            while sum(one.size for one in self._seen.values()) > self.most_bytes:
                self._seen.popitem(last=False)
        return list(seen.events)


def _read_on(file: BinaryIO, before: _Seen) -> _Seen:
    status = os.fstat(file.fileno())
    number = (status.st_dev, status.st_ino)
    file.seek(before.size - len(before.tail))
    if number != before.number or file.read(len(before.tail)) != before.tail:
        before = _Seen(number)
    file.seek(before.size)
    come = file.read()
    whole = come[: come.rfind(b"\n") + 1]  # the next look finds the rest of a line that is being written
    if not whole:
        return before
    events = events_of(io.TextIOWrapper(io.BytesIO(whole), encoding="utf-8", errors="replace"))
    tail = (before.tail + whole)[-TAIL:]
    return _Seen(number, before.size + len(whole), tail, (*before.events, *events))
