"""How far the reading of files has come, as events: counted in the kilobytes that they take on the disk."""

from __future__ import annotations

from retro_demo.documents.archives import Entry
from retro_demo.documents.rows import WHOLE, Part
from retro_demo.events import Progress

STEPS = 20  # events of a reading, at most
LEAST_STEP = 50_000  # bytes; what is smaller is read in no time


def read_event(done: int, total: int) -> Progress:
    """`done` of `total` bytes are read."""
    return Progress("read", -(-done // 1000), -(-total // 1000))


class ReadingProgress:
    """Counts files as they are read; tells of it seldom, and the same for the same files."""

    def __init__(self, total: int) -> None:
        """total: bytes of all files together."""
        self.total = total
        self._before = self._told = 0
        """Bytes of the files before the one that is being read, and of what was told last."""

    def passed(self, entry: Entry, part: Part) -> Progress | None:
        """A part of a file, or all of it, is read: the event that tells of it, where it is time for one."""
        now = self._before + entry.size * part.done // max(part.total, 1)
        if part is WHOLE:
            self._before += entry.size
        if now - self._told < max(LEAST_STEP, self.total // STEPS) or now >= self.total:
            return None
        self._told = now
        return read_event(now, self.total)
