"""Atomic files: whole or absent whenever the process dies, also on a full disk.

Files of tensors (safetensors) are believed only after a check of their headers. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro_demo.errors import UserError, describe_error
from retro_demo.settings import seen


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


MAX_HEADER_BYTES = 16_000_000  # a header of ours has about 100 for each tensor
ANEW = "Train or export the run anew."
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Header:
    """What a file of tensors says of itself: name -> (kind, shape), and its notes."""

    path: Path
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    notes: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self.tensors.items()}

    @property
    def step(self) -> int:
        """The step of a save, 0 where it tells none; raises UserError where that is no number."""
        return self.number("step", 0)

    @property
    def held_out(self) -> float | None:
        """The held-out loss (nats a token) that a save tells of its step; None where it tells none."""
        text = self.notes.get("held_out", "")
        if not text:  # it was not the best, or an earlier release wrote it
            return None
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,25})?(e-?[0-9]{1,2})?", text):
            raise UserError(f"{self.path} says {seen(text)} of its held-out loss, which is no number. {ANEW}")
        return float(text)

    def number(self, name: str, default: int) -> int:
        """A count among the notes; raises UserError where it is none."""
        text = self.notes.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise UserError(f"{self.path} says {seen(text)} of its {name}, which is no number. {ANEW}")
        return int(text)


def read_header(path: Path, advice: str = ANEW) -> Header:
    """The header of a file, without reading a tensor; `advice` says how to mend the file.

    Raises UserError where it cannot be read; a header that claims more than the file holds is such a case.
    """
    try:
        with path.open("rb") as plain:
            first = plain.read(8)
        if first == b"version ":
            raise UserError(f"{path} is a pointer of Git LFS, not the file. Run: git lfs pull")
        if int.from_bytes(first, "little") > MAX_HEADER_BYTES:
            raise SafetensorError(f"its head would be longer than {MAX_HEADER_BYTES:,} bytes")
        with safe_open(path, "pt") as file:
            parts = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
            tensors = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts}
            return Header(path, tensors, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        if trouble := describe_error(error):
            raise UserError(trouble) from error
        raise UserError(f"{path} cannot be read as safetensors ({error}). {advice}") from error


def check_shapes(path: Path, there: Shapes, wanted: Shapes, advice: str = ANEW) -> None:
    """Raise UserError at the first weight of a file, or of the network, that the other has not so."""
    for name in (*wanted, *there):
        if there.get(name) != wanted.get(name):
            found = f"is {list(there[name])}" if name in there else "is not there"
            asked = list(wanted[name]) if name in wanted else "none of that name"
            raise UserError(
                f"{path} does not fit the network of config.json: {seen(name)} {found}, the network has "
                f"{asked}. {advice}"
            )


def finite_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file one after the other; raises UserError at one with values that are no numbers."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"{path} holds {seen(name)} with values that are not finite. {ANEW}")
            yield name, tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: dict[str, str]) -> None:
    """Write them beside `path`, then in its place; the same tensors and notes always as the same bytes."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as unfinished:
        save_file(whole, unfinished, metadata=meta)
        if len(meta) > 1:
            _order_notes(unfinished)


def _order_notes(path: Path) -> None:
    """Put the notes of a file in the order of their names: safetensors leaves it to chance."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(ordered) <= size, "a header is the same text in another order"
        file.seek(8)
        file.write(ordered.ljust(size))  # the format ends a header with spaces


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its notes; UserError where it cannot be read."""
    header = read_header(path)
    return load_file(path), header.notes
