"""Vectors and queries -> neighbors: the FAISS index, on CPU or GPU, and the dense retriever.

Owns which kind of index suits a size and a device, the index file, and the search that leaves
excluded chunks out. It does not know how text becomes a vector, nor what makes two chunks too
close: it is given both.

Shapes: Q queries, K neighbors, E vector width, C chunk length, N stored vectors.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory

from retro_demo.devices import lends_gpu
from retro_demo.retrieval.embedding import Embedder
from retro_demo.retrieval.index_parts import (
    blocks_of,
    checked,
    empty_index,
    has_vector,
    on_all_gpus,
    read_part,
    write_part,
)
from retro_demo.retrieval.neighbors import SCORE_STEP, Neighbors, Retriever, joined, rank

GPU_MAX_K = 2048  # FAISS refuses more on a GPU (faiss.gpu limits)
MAX_FETCH = 2048  # beyond this a scan of the whole index is the cheaper search
QUERY_BLOCK = 4096
SCAN_QUERIES, SCAN_ROWS = 256, 16_384  # a scan holds this many scores at a time
PROBE = """
import faiss, numpy
rows = numpy.eye(8, dtype="float32")
clone = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(8))
clone.add(rows)
assert (clone.search(rows, 1)[1][:, 0] == range(8)).all(), "the search gave wrong neighbors"
"""


def choose_factory(num_vectors: int, device: str) -> str:
    """The FAISS factory string for that many vectors on "cpu" or "cuda".

    Exact (Flat) as long as that is fast enough; then inverted lists, then 8-bit codes. On a GPU
    only what FAISS can clone there, with a flat coarse quantizer.
    """
    steps = {
        "cpu": [(100_000, "Flat"), (500_000, "IVF1024,Flat"), (5_000_000, "IVF4096,SQ8")],
        "cuda": [(2_000_000, "Flat"), (5_000_000, "IVF4096,Flat")],
    }
    beyond = {"cpu": "IVF16384_HNSW32,SQ8", "cuda": "IVF16384,SQ8"}
    return next((name for most, name in steps[device] if num_vectors <= most), beyond[device])


@functools.cache
def _probe_failure() -> str:
    """Try a search on the GPU in a process of its own, once; "" where it succeeds, else what it did."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROBE]
    try:
        probe = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "gave no answer in 120 s"
    if probe.returncode == 0:
        return ""
    reason = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
    return f"failed ({reason})"


def gpu_available() -> tuple[bool, str]:
    """Whether FAISS can search on a GPU here, and a sentence that says so or why not.

    Where there is a GPU, a search is tried in a process of its own, because FAISS ends the whole
    process on a GPU that it has no code for. That takes seconds, once in the life of this process.
    """
    if lends_gpu():
        return False, "FAISS searches on the CPU: a GPU is lent here for a call, and an index would not last."
    count = getattr(faiss, "get_num_gpus", lambda: 0)()
    if not getattr(faiss, "StandardGpuResources", None):
        return False, "FAISS searches on the CPU: the installed faiss was built without GPU code."
    if count == 0:
        return False, "FAISS searches on the CPU: it finds no GPU on this machine."
    if reason := _probe_failure():
        return False, f"FAISS searches on the CPU: a probe search on the GPU {reason}."
    return True, f"FAISS searches on {count} GPU{'s' if count > 1 else ''}."


class VectorIndex:
    """Vectors of length 1 and the chunk id of each, searched by inner product (the cosine); maybe none.

    One FAISS index, or several (shards) that answer as one. The index of record is on the CPU; device
    "cuda" searches a copy of it on the GPU, cut into shards where there are several.
    """

    def __init__(self, parts: Sequence[faiss.IndexIDMap], device: str) -> None:
        """Use `build`, `load` or corpus/index_files.py; each part maps positions to chunk ids."""
        self.device = device
        self._parts = list(parts)
        self._inner = [faiss.downcast_index(part.index) for part in parts]
        self.factory: str = reverse_index_factory(self._inner[0])
        self._index = parts[0]
        if len(parts) > 1:
            # no threads: each part has its own
            self._index = faiss.IndexShards(parts[0].d, False, False)  # pyright: ignore[reportCallIssue]
            for part in parts:
                self._index.add_shard(part)
        self._gpu = on_all_gpus(self._index) if device == "cuda" and len(self) else None

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        ids: np.ndarray,
        device: str = "cpu",
        *,
        factory: str | None = None,
    ) -> VectorIndex:
        """vectors (N, E), rows of length 1 or 0, and their chunk ids (N,), each below 2**32.

        A row of zeros is left out: it is no vector, and nobody is to find it at a score of 0.
        The same input gives the same index: k-means is seeded. Training and adding run on the
        CPU. Without a factory, `choose_factory` decides. See corpus/index_files.py for more vectors than
        memory holds.
        """
        there = has_vector(vectors)
        if not there.all():
            vectors, ids = vectors[there], ids[there]
        factory = factory or choose_factory(len(vectors), device)
        part = empty_index(vectors, np.arange(len(vectors)), factory, device)
        part.add_with_ids(checked(vectors), np.ascontiguousarray(ids, np.int64))
        return cls([part], device)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> VectorIndex:
        """The index that `save` wrote; UserError where the file is missing or not whole."""
        return cls([read_part(path)], device)

    def save(self, path: Path) -> None:
        """Write the index to path; an interruption leaves the old file as it was."""
        (part,) = self._parts  # shards have files of their own
        write_part(path, part)

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def dim(self) -> int:
        """Width E of a vector."""
        return self._index.d

    @property
    def shards(self) -> int:
        """How many FAISS indexes answer as one."""
        return len(self._parts)

    @property
    def probes(self) -> int:
        """How many inverted lists a search looks into; 0 where there are none and it looks everywhere."""
        return self._inner[0].nprobe if isinstance(self._inner[0], faiss.IndexIVF) else 0

    @property
    def lists(self) -> int:
        """How many inverted lists there are; 0 where every search is exact or goes through a graph."""
        return self._inner[0].nlist if isinstance(self._inner[0], faiss.IndexIVF) else 0

    def probe(self, lists: int) -> None:
        """Look into so many inverted lists from now on; the more, the slower and the nearer to exact."""
        for inner in self._inner:
            assert isinstance(inner, faiss.IndexIVF)
            inner.nprobe = lists
        if self._gpu is not None:
            self._gpu = on_all_gpus(self._index)

    @property
    def ids(self) -> np.ndarray:
        """The chunk ids (N,) of all stored vectors."""
        return np.concatenate([faiss.vector_to_array(part.id_map) for part in self._parts])

    def search(self, queries: np.ndarray, k: int) -> Neighbors:
        """queries (Q, E) of length 1 or 0 -> the k nearest, exact where the factory is Flat.

        More than 2,048 neighbors are searched on the CPU, because FAISS finds no more on a GPU.
        """
        index = self._gpu if self._gpu is not None and k <= GPU_MAX_K else self._index
        scores, ids = index.search(checked(queries), k)
        return rank(ids, scores, k)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All stored (ids (n,), vectors (n, E)) in blocks; the vectors as the index keeps them."""
        for part, inner in zip(self._parts, self._inner, strict=True):
            ids = faiss.vector_to_array(part.id_map)
            for rows in blocks_of(len(ids), SCAN_ROWS):
                yield ids[rows], inner.reconstruct_n(rows.start, len(ids[rows]))


class DenseRetriever(Retriever):
    """Neighbors by the cosine of embeddings; excluded chunks are left out by `search_allowed`.

    A query without a vector (nothing known in it) has no neighbor.
    """

    def __init__(
        self,
        index: VectorIndex,
        embedder: Embedder,
        decode: Callable[[list[int]], str],
        excluded: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """excluded: own (q,), candidates (q, k') -> bool (q, k'); its word on -1 is ignored."""
        if index.dim != embedder.dim:
            raise ValueError(f"the index has width {index.dim}, the embedder {embedder.dim}")
        self._index, self.embedder = index, embedder
        self._decode, self._excluded = decode, excluded

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        """As `Retriever.search`."""
        found = []
        for rows in blocks_of(len(tokens), QUERY_BLOCK):
            texts = [self._decode(row[row != 0].tolist()) for row in tokens[rows]]
            vectors = self.embedder.embed(texts)
            found.append(self.search_vectors(vectors, k, own=None if own is None else own[rows]))
        return joined(found, k)

    def search_vectors(self, vectors: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        """As `search`, for queries that are embedded already: vectors (Q, E)."""

        def excluded(rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            if own is None:
                return np.zeros(candidates.shape, dtype=bool)
            return self._excluded(own[rows], candidates)

        return search_allowed(self._index, vectors, k, excluded)


def search_allowed(
    index: VectorIndex,
    vectors: np.ndarray,
    k: int,
    excluded: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Neighbors:
    """The k nearest of each query, vectors (Q, E), that are not excluded.

    excluded: rows of queries (q,), candidates (q, k') -> bool (q, k'); its word on -1 is ignored.
    More than k are fetched and filtered. A query that is still short then fetches four times as
    many, and in the end scans the whole index, so it lacks a neighbor only where none is left. A
    query of zeros has none.
    """

    def allowed(rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return (candidates >= 0) & ~excluded(rows, candidates)

    parts = [
        _fetched(index, vectors[rows], k, lambda own, ids, start=rows.start: allowed(own + start, ids))
        for rows in blocks_of(len(vectors), QUERY_BLOCK)
    ]
    return joined(parts, k)


def _fetched(
    index: VectorIndex, vectors: np.ndarray, k: int, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Neighbors:
    """`search_allowed` for one block of queries, `allowed` counting its rows from 0."""
    out = rank(np.full((len(vectors), 1), -1), np.zeros((len(vectors), 1)), k)
    open_rows = np.flatnonzero(has_vector(vectors))
    fetch = k + 16
    while len(open_rows) and fetch <= MAX_FETCH:
        found = index.search(vectors[open_rows], fetch)
        best = rank(np.where(allowed(open_rows, found.ids), found.ids, -1), found.scores, k)
        out.ids[open_rows], out.scores[open_rows] = best.ids, best.scores
        # A tie with the last one fetched may go on beyond it, with smaller ids.
        done = (best.ids[:, -1] >= 0) & (best.scores[:, -1] > found.scores[:, -1])
        if index.factory == "Flat":
            done |= fetch >= len(index)
        open_rows, fetch = open_rows[~done], fetch * 4
    for part in blocks_of(len(open_rows), SCAN_QUERIES):
        rows = open_rows[part]
        best = scan(index.blocks(), vectors[rows], k, lambda own, ids, rows=rows: allowed(rows[own], ids))
        out.ids[rows], out.scores[rows] = best.ids, best.scores
    return out


def scan(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    vectors: np.ndarray,
    k: int,
    allowed: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Neighbors:
    """The k nearest allowed chunks by looking at all of them, blocks of ids (n,) and vectors (n, E)."""
    best = rank(np.full((len(vectors), 1), -1), np.zeros((len(vectors), 1)), k)
    for ids, stored in blocks:
        scores = vectors @ stored.T
        # after the first blocks hardly any chunk is near enough to matter: ranking all is what costs
        near = (scores >= best.scores[:, -1:] - 2 * SCORE_STEP).any(axis=0)
        candidates = np.broadcast_to(ids[near], (len(vectors), int(near.sum())))
        valid = allowed(np.arange(len(vectors)), candidates)
        part = rank(np.where(valid, candidates, -1), scores[:, near], k)
        both = [np.hstack(pair) for pair in ((best.ids, part.ids), (best.scores, part.scores))]
        best = rank(both[0], both[1], k)
    return best
