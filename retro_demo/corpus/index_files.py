"""The index of a corpus on disk: written block by block, in shards where memory is short, opened mapped.

Owns which files there are and how large a shard is. Vectors may lie on disk too: of those that are
indexed, one block is in memory at a time, beside the shard that is being filled.

Shapes: E vector width, N vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from retro_demo.corpus.corpus import Corpus
from retro_demo.corpus.marks import check_current, unchanged
from retro_demo.errors import UserError
from retro_demo.retrieval.index import VectorIndex, choose_factory
from retro_demo.retrieval.index_parts import blocks_of, checked, empty_index, read_part, write_part

INDEX = "index.faiss"
ADD_ROWS = 65_536
SHARE_OF_MEMORY = 0.25  # of the machine's, for the shard that is being filled


def bytes_per_vector(factory: str, dim: int) -> int:
    """Bytes that an index of this kind takes for a vector, its chunk id included."""
    codes = dim if factory.endswith("SQ8") else 4 * dim
    return codes + 8 + (8 if factory.startswith("IVF") else 0)


def index_names(count: int) -> list[str]:
    """index.faiss, and for more shards index-1.faiss and so on."""
    return [INDEX, *(f"index-{number}.faiss" for number in range(1, count))]


def plan_index(
    total: int, dim: int, device: str, *, memory: int, factory: str | None = None, shards: int = 1
) -> tuple[str, int]:
    """The kind of index for so many vectors, and how many of them make a shard (all but the last are equal).

    Where the index would take more than a quarter of `memory` (bytes), or at least so many `shards` are asked
    for, it is cut. Shards are searched on the CPU, so then it is the kind that suits a CPU.
    """
    kind = factory or choose_factory(total, device)
    fitting = int(SHARE_OF_MEMORY * memory) // bytes_per_vector(kind, dim)
    if not total:
        return kind, 1
    size = max(1, min(total, fitting, -(-total // shards)))
    if size < total and device != "cpu":
        return plan_index(total, dim, "cpu", memory=memory, factory=factory, shards=shards)
    return kind, -(-total // -(-total // size))


def write_index(
    folder: Path,
    vectors: np.ndarray,
    rows: np.ndarray,
    device: str,
    *,
    memory: int,
    factory: str | None = None,
    shards: int = 1,
) -> Iterator[int]:
    """Index these rows of vectors (N, E), each under its number, into files of `folder`; yields rows done.

    Its kind and shards are those of `plan_index`; each shard is written before the next is filled. All learn
    from one sample, so that together they answer as one index would. Files of an earlier index are removed.
    On "cuda" k-means runs on the GPUs, wherever the index is searched then.
    """
    dim = vectors.shape[1]
    factory, size = plan_index(len(rows), dim, device, memory=memory, factory=factory, shards=shards)
    empty = empty_index(vectors, rows, factory, device)
    names = index_names(max(1, -(-len(rows) // size)))  # of no vectors an empty one
    for name, shard in zip(names, blocks_of(max(1, len(rows)), size), strict=True):
        part = faiss.clone_index(empty)
        assert isinstance(part, faiss.IndexIDMap)
        held = rows[shard]
        for block in blocks_of(len(held), ADD_ROWS):
            part.add_with_ids(checked(vectors[held[block]]), held[block].astype(np.int64))
            yield shard.start + min(block.stop, len(held))
        write_part(folder / name, part)
    for path in folder.glob("index*.faiss"):
        if path.name not in names:
            path.unlink()


def open_files(folder: Path, device: str) -> VectorIndex:
    """The index that `write_index` wrote; shards are searched on the CPU. Raises UserError as `load` does."""
    names = index_names(len(list(folder.glob("index*.faiss"))))
    return VectorIndex([read_part(folder / name) for name in names], device if len(names) == 1 else "cpu")


def where_searched(index: VectorIndex, on_gpu: bool, sentence: str) -> str:
    """What `gpu_available` said, unless the index is in shards, which no GPU is given."""
    if not on_gpu or index.device == "cuda":
        return sentence
    return f"FAISS searches on the CPU: the index is in {index.shards} shards, and a GPU gets one index only."


def open_index(corpus: Corpus, device: str = "cpu") -> VectorIndex:
    """The index of a built corpus as it was measured then; UserError where a file is not the one built."""
    for name in corpus.manifest.get("marks", {INDEX: ""}):
        if name.startswith("index"):
            unchanged(corpus, name)
    index = open_files(corpus.folder, device)
    check_current(corpus)  # shards of two states are no index
    recall = corpus.manifest["statistics"].get("recall")  # early corpora have none
    if recall is None:
        return index
    probes = recall.get("probes") if isinstance(recall, dict) else None
    if type(probes) is not int or probes < 0:
        raise UserError(
            f"corpus.json of {corpus.folder.name} is damaged (recall {str(recall)[:80]!r}). Build it again."
        )
    if probes != index.probes:
        index.probe(probes)
    return index
