"""What tells a large file of a corpus from another one, so that a stale index is an error, not silence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from retro_demo.corpus.corpus import MANIFEST, Corpus
from retro_demo.errors import UserError

PARTS, PART_BYTES = 64, 4096


def file_mark(path: Path) -> str:
    """The size of a file and 64 parts of it, hashed: a large one need not be read whole when it is opened."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, size - PART_BYTES), PARTS).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(PART_BYTES))
    return digest.hexdigest()[:16]


def check_current(corpus: Corpus) -> None:
    """Raise UserError where the folder holds another state by now: nothing of this one belongs there."""
    path = corpus.folder / MANIFEST
    if not path.exists() or json.loads(path.read_text("utf-8"))["fingerprint"] != corpus.fingerprint:
        raise UserError(f"The corpus {corpus.name} was changed after it was read. Read it again.")


def unchanged(corpus: Corpus, name: str) -> Path:
    """The path of an index or of the vectors; raises UserError where it is not the file that was built."""
    path, mark = corpus.folder / name, corpus.manifest.get("marks", {}).get(name)
    if not path.exists() or (mark is not None and file_mark(path) != mark):  # early corpora have no marks
        raise UserError(
            f"{name} of the corpus {corpus.name} is not the one that was built with it: it is gone, or was "
            "made from another corpus, tokenizer or embedder. Build the corpus anew."
        )
    return path
