"""Files that are there whole or not at all, whenever the process dies and also where the disk is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, and goes where that fails.

    It is on the disk before the other one goes. A half-written one would keep the room that is missing.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Write a line at the end of a file, or nothing: what a full disk cut off is taken away again."""
    left = memoryview(line.encode("utf-8") + b"\n")
    with path.open("ab", buffering=0) as file:  # a buffer would be written once more when it is closed
        before = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
