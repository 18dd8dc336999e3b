"""The training data of RETRO-pytorch 0.3.9: its chunks, neighbors and dataset items, to compare with.

Its corpus never packs documents: each begins a sequence of its own, and what follows its end is
padding. Our own batches are `training/retro_batches.py`.

Shapes: N chunks, C chunk length, K neighbors, R = 2 C neighbor length, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EOS = 102  # [SEP] of its tokenizer, the end of each document
FAR = 1e3  # the distance that it gives to chunks of the query's own document


@dataclass(frozen=True)
class ReferenceChunks:
    """A corpus cut as the reference cuts it.

    tokens (N, C + 1): each chunk with the first token of the next; seqs (S,): where sequences of
    `seq_len` tokens begin, counted in chunks; doc_ids (N,).
    """

    tokens: np.ndarray
    seqs: np.ndarray
    doc_ids: np.ndarray
    seq_len: int

    @property
    def chunk_len(self) -> int:
        return self.tokens.shape[1] - 1


def cut_as_reference(documents: Sequence[np.ndarray], chunk_len: int, seq_len: int) -> ReferenceChunks:
    """Documents as token ids, padded to whole chunks and one token more, which is never part of a chunk.

    So a document whose length is one over a multiple of `chunk_len` gets a chunk of its last token alone.
    """
    if seq_len % chunk_len:
        raise ValueError(f"the sequence length {seq_len} is no multiple of the chunk length {chunk_len}")
    tokens, seqs, doc_ids, begin = [], [], [], 0
    for number, document in enumerate(documents):
        num_chunks = (len(document) - 1) // chunk_len + 1
        padded = np.zeros(num_chunks * chunk_len + 1, dtype=np.int32)
        padded[: len(document)] = document
        starts = np.arange(num_chunks)[:, None] * chunk_len
        tokens.append(padded[starts + np.arange(chunk_len + 1)])
        seqs.append(np.arange(begin, begin + num_chunks, seq_len // chunk_len, dtype=np.int32))
        doc_ids.append(np.full(num_chunks, number, dtype=np.int32))
        begin += num_chunks
    return ReferenceChunks(np.concatenate(tokens), np.concatenate(seqs), np.concatenate(doc_ids), seq_len)


def neighbors_as_reference(
    vectors: np.ndarray, doc_ids: np.ndarray, num_neighbors: int, num_extra: int = 10
) -> np.ndarray:
    """vectors (N, E), doc_ids (N,) -> ids of the nearest chunks of other documents (N, K), -1 = none.

    Exact squared distances in place of its index. The nearest chunk is taken to be the chunk itself
    and dropped; of the rest num_neighbors + num_extra are looked at, so that few may be left.
    """
    exact = vectors.astype(np.float64)
    lengths = (exact**2).sum(axis=1)
    distances = lengths[:, None] + lengths - 2 * exact @ exact.T
    fetched = min(num_neighbors + num_extra + 1, len(vectors))
    ids = np.argsort(distances, axis=1, kind="stable")[:, 1:fetched]
    own = doc_ids[ids] == doc_ids[:, None]
    ranks = np.where(own, FAR, np.take_along_axis(distances, ids, axis=1))
    order = np.argsort(ranks, axis=1, kind="stable")
    return np.take_along_axis(np.where(own, -1, ids), order, axis=1)[:, :num_neighbors].astype(np.int32)


def with_continuations(chunks: ReferenceChunks, ids: np.ndarray, eos_id: int = EOS) -> np.ndarray:
    """ids (..., K) of chunks -> each with its continuation (..., K, R); -1 gives padding.

    A chunk that holds `eos_id`, or whose next chunk begins with it, ends its document: its
    continuation is padding.
    """
    found = chunks.tokens[np.maximum(ids, 0)]
    ends = (found == eos_id).any(axis=-1, keepdims=True)
    following = chunks.tokens[np.clip(ids.clip(min=0) + 1, 0, len(chunks.tokens) - 1)]
    both = np.concatenate([found[..., :-1], np.where(ends, 0, following[..., :-1])], axis=-1)
    return np.where(ids[..., None] < 0, 0, both)


def item_as_reference(
    chunks: ReferenceChunks, neighbor_ids: np.ndarray, index: int, eos_id: int = EOS
) -> tuple[np.ndarray, np.ndarray]:
    """The training item of sequence `index`: tokens (seq_len + 1,) and neighbors (L, K, R).

    All after the first `eos_id` is padding, since it is of other documents; their neighbors stay.
    Past the end of the corpus there are chunks of padding with chunk 0 for a neighbor.
    """
    num_chunks = chunks.seq_len // chunks.chunk_len
    rows = np.arange(num_chunks) + chunks.seqs[index]
    there = (rows < len(chunks.tokens))[:, None]
    rows = rows.clip(max=len(chunks.tokens) - 1)
    read = np.where(there, chunks.tokens[rows], 0)
    tokens = np.append(read[:, :-1].reshape(-1), read[-1, -1])
    after = np.append(0, np.cumsum(tokens == eos_id)[:-1]) > 0
    return (
        np.where(after, 0, tokens).astype(np.int64),
        with_continuations(chunks, np.where(there, neighbor_ids[rows], 0), eos_id).astype(np.int64),
    )
