"""Files of tensors (safetensors): written atomically, and believed only after a check of their headers.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro_demo.errors import UserError, describe_error
from retro_demo.files import replacing
from retro_demo.settings import seen

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


def read_header(path: Path) -> Header:
    """The header of a file, without reading a tensor.

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
        raise UserError(f"{path} cannot be read as safetensors ({error}). {ANEW}") from error


def check_shapes(path: Path, there: Shapes, wanted: Shapes) -> None:
    """Raise UserError at the first weight of a file, or of the network, that the other has not so."""
    for name in (*wanted, *there):
        if there.get(name) != wanted.get(name):
            found = f"is {list(there[name])}" if name in there else "is not there"
            asked = list(wanted[name]) if name in wanted else "none of that name"
            raise UserError(
                f"{path} does not fit the network of config.json: {seen(name)} {found}, the network has "
                f"{asked}. {ANEW}"
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
