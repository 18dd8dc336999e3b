"""One FAISS index as a thing: made empty, filled, written, left on disk, copied to the GPUs.

Owns how FAISS is called for that. Which kind of index suits is said by retrieval/index.py, which also
searches.

Shapes: E vector width, N stored vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from retro_demo.errors import UserError
from retro_demo.whole_files import replacing

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
        # Measured with 64 lists: recall@4 .98 of 512 (1e5 vectors), .977 of 4096 (1e6). retrieval/recall.py
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
