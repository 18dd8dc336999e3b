"""Atomic files: whole or absent whenever the process dies, also on a full disk."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError

import numpy as np


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


def mapped_array(path: Path) -> np.ndarray:
    """An array left on disk, so that a head that claims more than the file holds takes no memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except TokenError as error:  # the head is none
        raise ValueError(f"{path.name} is no array") from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file of its own to write to, which becomes `path` at the end: for files that several may make."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or nothing, whenever the process dies."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def save_array(path: Path, array: np.ndarray) -> None:
    """As `write_atomically`, for one array in numpy's own format."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def file_hash(path: Path) -> str:
    """sha256 of a file, in hex; computed once as long as the file stays as it is."""
    at = path.stat()
    return _file_hash(path, at.st_mtime_ns, at.st_size)


@lru_cache(maxsize=256)
def _file_hash(path: Path, _changed: int, _size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """An array from numpy's own format, never a pickle; `mapped` leaves it on disk."""
    return mapped_array(path) if mapped else np.array(mapped_array(path))
