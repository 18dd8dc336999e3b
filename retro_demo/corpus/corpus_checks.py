"""Whether the parts of a stored corpus belong together: one that was forged is refused, not searched.

Shapes: D documents, N chunks, C chunk length, K neighbors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retro_demo.errors import UserError

if TYPE_CHECKING:
    from retro_demo.corpus.corpus import Corpus

DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, EOFError)
"""What reading a file of ours raises where somebody changed it."""

FINGERPRINT = re.compile(r"[0-9a-f]{16}")  # names a folder, too
KINDS = {
    "hashes": dict,
    "statistics": dict,
    "warnings": list,
    "sections": bool,
    "fingerprint": str,
    "embedder_fingerprint": str,
}


def read_manifest(path: Path, written: bytes) -> dict[str, Any]:
    """What corpus.json says; UserError where it lacks what is read of it, or has it of another kind."""
    try:
        manifest = json.loads(written)
        kinds = KINDS | ({"marks": dict} if "marks" in manifest else {})  # early corpora have none
        wrong = [name for name, kind in kinds.items() if not isinstance(manifest[name], kind)]
        if wrong or not FINGERPRINT.fullmatch(manifest["fingerprint"]):
            raise ValueError(", ".join(wrong) or "fingerprint")
    except DAMAGED as error:
        raise UserError(
            f"{path.name} of the corpus at {path.parent} is damaged ({error}). Build the corpus anew."
        ) from error
    return manifest


def checked(corpus: Corpus) -> Corpus:
    """The corpus; ValueError where its arrays do not fit one another, or name what is not there."""
    chunks, documents, neighbors = corpus.chunks, corpus.documents, corpus.neighbor_ids
    count = len(chunks.document)
    if any(not isinstance(text, str) for one in documents for text in vars(one).values()):
        raise ValueError("a document has a field that is no text")
    if chunks.tokens.shape != (count, corpus.config.chunk_len) or chunks.document.ndim != 1:
        raise ValueError(f"{count:,} chunks have tokens of shape {chunks.tokens.shape}")
    if corpus.cluster.shape != (len(documents),) or corpus.held_out.shape != (len(documents),):
        raise ValueError(f"{len(documents):,} documents have clusters of shape {corpus.cluster.shape}")
    if neighbors.ndim != 2 or len(neighbors) != count or corpus.neighbor_scores.shape != neighbors.shape:
        raise ValueError(f"{count:,} chunks have neighbors of shape {neighbors.shape}")
    for name, array, low, high in (
        ("tokens", chunks.tokens, 0, corpus.tokenizer.vocab_size),
        ("documents of chunks", chunks.document, 0, len(documents)),
        ("neighbors", neighbors, -1, count),
    ):
        if array.dtype.kind != "i" or (array.size and not low <= array.min() <= array.max() < high):
            raise ValueError(f"{name} do not lie between {low} and {high - 1:,}")
    if corpus.neighbor_scores.dtype.kind != "f" or (np.diff(chunks.document) < 0).any():
        raise ValueError("chunks are not in the order of their documents")
    return corpus
