"""The neighbors of every chunk of a corpus by each retriever, found once and kept.

The dense table is part of the corpus. Those of BM25 and of the hybrid are made when a run first
wants them, and lie beside it with the fingerprint of the corpus they were made from.

Shapes: N chunks, S stored neighbors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from retro_demo.corpus.corpus import Corpus, derived_folder
from retro_demo.corpus.marks import check_current
from retro_demo.corpus.stored import load_retriever, search_stored
from retro_demo.events import Event, Progress
from retro_demo.paths import data_home
from retro_demo.whole_files import beside

FORMAT = "1"
BLOCK = 1024


def prepare_neighbors(corpus: Corpus, retriever: str) -> Iterator[Event]:
    """Find and keep the neighbors of every chunk by this retriever, where that is not done yet.

    A table of another state of the corpus, or a damaged one, is made anew. Two processes may do
    this at once: both find the same, and each puts its file in place whole.
    """
    if retriever == "dense" or _kept(corpus, retriever) is not None:
        return
    finder = load_retriever(corpus, retriever)
    count, k = len(corpus.chunks), corpus.config.num_neighbors
    ids = np.full((count, k), -1, np.int32)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        ids[rows] = search_stored(corpus, finder, rows, k).ids
        yield Progress("neighbors", int(rows[-1]) + 1, count)
    about = {"fingerprint": corpus.fingerprint, "format": FORMAT, "hash": _hash(ids)}
    check_current(corpus)
    with beside(_path(corpus, retriever)) as unfinished:
        save_file({"ids": ids}, unfinished, metadata=about)


def neighbor_table(corpus: Corpus, retriever: str) -> np.ndarray:
    """The neighbors of all chunks, held-out ones too: ids int64 (N, S), best first, -1 = none.

    Made where it is not made yet. Raises UserError as `load_retriever` does.
    """
    if retriever == "dense":
        return corpus.neighbor_ids.astype(np.int64)
    for _ in prepare_neighbors(corpus, retriever):
        pass
    ids = _kept(corpus, retriever)
    assert ids is not None
    return ids.astype(np.int64)


def _path(corpus: Corpus, retriever: str) -> Path:
    folder = derived_folder(data_home()[0], corpus.folder, corpus.fingerprint)
    return folder / f"neighbors-{retriever}.safetensors"


def _kept(corpus: Corpus, retriever: str) -> np.ndarray | None:
    """The table on disk, None where there is none of this state of the corpus or it is damaged."""
    try:
        with safe_open(_path(corpus, retriever), "numpy") as file:
            about, ids = file.metadata() or {}, file.get_tensor("ids")
    except (SafetensorError, OSError):
        return None
    wanted = {"fingerprint": corpus.fingerprint, "format": FORMAT, "hash": _hash(ids)}
    return ids if about == wanted else None


def _hash(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()
