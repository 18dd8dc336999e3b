"""Vectors and queries -> neighbors: the FAISS index on CPU or GPU, its recall, and the dense retriever.

This module decides which kind of index suits a size and a device, how its files look, and how a search leaves
excluded chunks out. It does not know how text becomes a vector, nor which chunks are too close to each other:
it is given both.

Recall is the share of what an exact search finds that the index finds, too: it is measured on the corpus
itself, and the index is tuned to it. Source: the recall that Borgeaud et al. 2022 and InstructRetro (Wang et
al. 2023) state of their indexes.

Shapes: Q queries, K neighbors, E vector width, C chunk length, N stored vectors.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory

from retro_demo.devices import lends_gpu
from retro_demo.errors import UserError
from retro_demo.files import replacing
from retro_demo.retrieval.embedders import Embedder
from retro_demo.retrieval.neighbors import SCORE_STEP, Neighbors, Retriever, joined, rank

ROWS_PER_LIST = 64  # k-means looks at so many vectors for each inverted list; more teach it little
SEED = 1234
LOOK_ROWS = 65_536


def empty_index(vectors: np.ndarray, rows: np.ndarray, factory: str, device: str) -> faiss.IndexIDMap:
    """An index that has learned from a sample of these rows of vectors (N, E), and holds none of them yet.

    vectors may lie on disk: only the sample is read. On "cuda" k-means runs on the GPUs.
    """
    inner = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if isinstance(inner, faiss.IndexIVF):
        inner.cp.seed = SEED
        # Measured with 64 lists: recall@4 .98 of 512 (1e5 vectors), .977 of 4096 (1e6). retrieval/dense.py
        # tunes it.
        inner.nprobe = min(inner.nlist, max(64, inner.nlist // 128))
        sample = checked(vectors[rows[drawn(len(rows), ROWS_PER_LIST * inner.nlist, seed=SEED)]])
        if device == "cuda":
            nearest = on_all_gpus(faiss.IndexFlatIP(vectors.shape[1]))
            inner.clustering_index = nearest
        inner.train(sample)
        # a file holds no index of a GPU
        inner.clustering_index = None  # pyright: ignore[reportAttributeAccessIssue]
    elif not inner.is_trained:
        inner.train(checked(vectors[rows]))
    return faiss.IndexIDMap(inner)


def write_part(path: Path, part: faiss.IndexIDMap) -> None:
    """Write an index to path; an interruption leaves the old file as it was."""
    with replacing(path) as unfinished:
        faiss.write_index(part, str(unfinished))


def read_part(path: Path) -> faiss.IndexIDMap:
    """The index at path, left on disk: what a search needs is read then, and shared by all processes.

    Raises UserError where the file is missing or not whole.
    """
    sentence = f'The index file "{path}" cannot be read. Build the corpus again.'
    try:
        part = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(sentence) from error
    if not isinstance(part, faiss.IndexIDMap):
        raise UserError(sentence)
    return part


def has_vector(vectors: np.ndarray) -> np.ndarray:
    """Which rows (N,) of vectors (N, E), which may lie on disk, are no zeros.

    A text in which nothing is known has no vector: it is neither indexed nor looked for.
    """
    there = [vectors[block].any(axis=1) for block in blocks_of(len(vectors), LOOK_ROWS)]
    return np.concatenate([np.zeros(0, bool), *there])


def checked(vectors: np.ndarray) -> np.ndarray:
    """The same vectors, contiguous float32; raises UserError where a row's length is not 1 or 0."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isclose(lengths, 1, atol=1e-3) | (lengths == 0)).all():
        raise UserError(
            "A vector's length is neither 1 nor 0: vectors.npy is damaged, or not made by an embedder of "
            "this program. Build the corpus again."
        )
    return vectors


def on_all_gpus(index: faiss.Index) -> faiss.Index:
    """The index on all GPUs, each with a share of the vectors; UserError where FAISS has none."""
    count = getattr(faiss, "get_num_gpus", lambda: 0)()
    if count == 0:
        # FAISS would give an empty replica here, which answers nothing.
        raise UserError('FAISS finds no GPU here for the device "cuda". Choose the device "cpu".')
    options = faiss.GpuMultipleClonerOptions()
    options.allowCpuCoarseQuantizer = True  # for an index built on a CPU, with HNSW over the lists
    options.shard = count > 1
    return faiss.index_cpu_to_all_gpus(index, options)


def drawn(total: int, most: int, *, seed: int) -> np.ndarray:
    """At most so many of the numbers below `total`, in order; few of many take memory for the few alone."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(total, min(most, total), replace=False, shuffle=False))


def blocks_of(total: int, size: int) -> Iterator[slice]:
    """0 to total in slices of at most `size`."""
    return (slice(start, start + size) for start in range(0, total, size))


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
        """Use `build`, `load` or corpus/building.py; each part maps positions to chunk ids."""
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
        cls, vectors: np.ndarray, ids: np.ndarray, device: str = "cpu", *, factory: str | None = None
    ) -> VectorIndex:
        """vectors (N, E), rows of length 1 or 0, and their chunk ids (N,), each below 2**32.

        A row of zeros is left out: it is no vector, and nobody is to find it at a score of 0.
        The same input gives the same index: k-means is seeded. Training and adding run on the
        CPU. Without a factory, `choose_factory` decides. See corpus/building.py for more vectors than
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
    index: VectorIndex, vectors: np.ndarray, k: int, excluded: Callable[[np.ndarray, np.ndarray], np.ndarray]
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


K = 4
QUERIES = 256
AIM = 0.965  # of the sample, so that 0.95 holds beyond it: on a million chunks 0.95 here was 0.938 for copies
FEWEST_PROBES = 16
TIE = 3e-6  # scores are rounded to 1e-6

Excluded = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recall:
    """recall: share of the k nearest allowed chunks by exact search that the index finds, a tie counting.

    self_recall: share of the stored chunks that come first, or tie, where they are looked for
    themselves. queries: how many chunks were looked for. probes: inverted lists looked into, 0 = all.
    """

    recall: float
    self_recall: float
    k: int
    queries: int
    probes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def recall_words(values: dict[str, Any] | None) -> str:
    """A measured recall in a sentence for people; None: it was never measured."""
    if values is None:
        return "How much of an exact search its index finds was not measured when it was built."
    if not values["queries"]:
        return "Its index is empty: no chunk has a vector."
    return (
        f"Of the {values['k']} nearest chunks that an exact search finds, the index finds "
        f"{percent(values['recall'])}, and {percent(values['self_recall'])} of its chunks find themselves "
        f"(measured on {values['queries']} chunks)."
    )


def percent(share: float) -> str:
    """A share for people: 0% is nothing and 100% is all; near these, one place more."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{min(max(share, 0.001), 0.999):.{0 if 0.1 <= share <= 0.99 else 1}%}"


def measure_recall(
    index: VectorIndex, vectors: np.ndarray, rows: np.ndarray, excluded: Excluded, *, tune: bool
) -> Recall:
    """The recall of an index of the rows (n,) of vectors (N, E), which may lie on disk.

    All rows have a vector. Looked for are chunks drawn from all N, or from the rows where none of these has
    a vector, without what `excluded` (own (q,), candidates (q, k') -> bool) keeps from them. An index of
    nothing lacks nothing. `tune`: set the inverted lists to look into to the fewest that reach AIM.
    """
    if not len(rows):
        return Recall(1.0, 1.0, K, 0, index.probes)
    own = drawn(len(vectors), QUERIES, seed=0)
    own = own[has_vector(vectors[own])]
    if not len(own):
        own = rows[drawn(len(rows), QUERIES, seed=0)]
    sample = np.asarray(vectors[own])

    def exclude(places: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return excluded(own[places], candidates)

    exact = scan(_stored(vectors, rows), sample, K, lambda places, ids: (ids >= 0) & ~exclude(places, ids))
    wanted = exact.ids >= 0
    least = np.where(wanted, exact.scores, np.inf).min(axis=1, keepdims=True)

    def recall() -> float:
        found = search_allowed(index, sample, K, exclude)
        hits = wanted & (_true_scores(vectors, sample, found) >= least - TIE)
        return float(hits.sum() / wanted.sum()) if wanted.any() else 1.0

    if tune and index.lists:
        fewest = min(FEWEST_PROBES, index.lists)
        index.probe(fewest)
        while (reached := recall()) < AIM and index.probes < index.lists:
            index.probe(min(-(-3 * index.probes // 2), index.lists))
    else:
        reached = recall()
    stored = np.isin(own, rows)
    alone = _true_scores(vectors, sample[stored], index.search(sample[stored], 1))[:, 0]
    themselves = alone >= (sample[stored] ** 2).sum(axis=1) - TIE
    return Recall(reached, float(themselves.mean()) if len(themselves) else 1.0, K, len(own), index.probes)


def _stored(vectors: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows and their vectors, block by block."""
    for block in blocks_of(len(rows), SCAN_ROWS):
        yield rows[block], np.asarray(vectors[rows[block]])


def _true_scores(vectors: np.ndarray, queries: np.ndarray, found: Neighbors) -> np.ndarray:
    """The cosines (Q, K) of queries (Q, E) and what was found, by the vectors as they were indexed."""
    there = np.asarray(vectors[np.maximum(found.ids, 0).reshape(-1)])
    there = there.reshape(*found.ids.shape, vectors.shape[1])
    scores = np.einsum("qe,qke->qk", queries, there)
    return np.where(found.ids >= 0, scores, -np.inf)
