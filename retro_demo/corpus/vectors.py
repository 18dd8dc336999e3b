"""The vectors of all chunks of a corpus, on disk: made block by block, gone on with, never mixed.

vectors.part  a .npy whose last rows are not there yet; it becomes vectors.npy
vectors.json  what they are made from: another embedder, tokenizer or other chunks are refused
given.npy     those that came with an import: taken over where a sample shows them to be these

Shapes: E vector width, N chunks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro_demo.corpus.corpus import Chunks
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress, Warned
from retro_demo.retrieval.embedding import Embedder
from retro_demo.tokenizer import Tokenizer
from retro_demo.whole_files import file_hash, load_array, write_atomically

EMBED_BLOCK = 4096
GIVEN = "given.npy"
SAMPLED, FARTHEST = 64, 0.01  # chunks embedded anew, and how far off a given number may be
COPY_ROWS = 65_536


def embed_chunks(out: Path, chunks: Chunks, tokenizer: Tokenizer, embedder: Embedder) -> Iterator[Event]:
    """Embed what is not embedded yet, so that a kill costs one block and changes no bit.

    Raises UserError where what is there was made from something else.
    """
    part, about = out / "vectors.part", out / "vectors.json"
    made_from = sources_of(out, embedder.fingerprint)
    kept = json.loads(about.read_text("utf-8")) if about.exists() else None
    if kept is not None and kept["made_from"] != made_from:
        raise UserError(
            f"The vectors in {out} were made by another version of the embedder {embedder.name}, or from "
            "other chunks or another tokenizer. Build the corpus into a new folder."
        )
    if (out / "vectors.npy").exists():
        return
    header = npy_header(len(chunks), embedder.dim)
    if kept is None or not part.exists():  # also where an earlier version, without a header, left a part
        part.write_bytes(header)
        write_atomically(about, json.dumps({"made_from": made_from, "given": 0}).encode())
        kept = {"given": 0}
    row = 4 * embedder.dim
    there = max(0, part.stat().st_size - len(header)) // row
    # whole blocks only: in another batch a transformer's floats round differently
    done = kept["given"] + max(0, there - kept["given"]) // EMBED_BLOCK * EMBED_BLOCK
    if there >= len(chunks):
        done = len(chunks)
    with part.open("r+b") as file:
        file.truncate(len(header) + done * row)
        file.seek(0, os.SEEK_END)
        while done < len(chunks):
            texts = [tokenizer.decode(ids) for ids in chunks.tokens[done : done + EMBED_BLOCK].tolist()]
            file.write(embedder.embed(texts).astype(np.float32).tobytes())
            file.flush()
            done += len(texts)
            yield Progress("embed", done, len(chunks))
        os.fsync(file.fileno())
    part.replace(out / "vectors.npy")


def give_vectors(out: Path, vectors: np.ndarray, rows: np.ndarray, total: int, embedder: str) -> None:
    """Let the first chunks of `out`, of `total`, have these rows of vectors (N, E): none is embedded anew.

    `embedder` is the fingerprint of the one that made them. The chunks and tokenizer must be in place.
    """
    with (out / "vectors.part").open("wb") as file:
        file.write(npy_header(total, vectors.shape[1]))
        for start in range(0, len(rows), COPY_ROWS):
            file.write(np.ascontiguousarray(vectors[rows[start : start + COPY_ROWS]], np.float32).tobytes())
        os.fsync(file.fileno())
    about = {"made_from": sources_of(out, embedder), "given": len(rows)}
    write_atomically(out / "vectors.json", json.dumps(about).encode())


def take_given(out: Path, chunks: Chunks, tokenizer: Tokenizer, embedder: Embedder) -> Iterator[Event]:
    """Take over the vectors that an import left, where they are what the embedder makes of these chunks.

    Looked at are all lengths and a sample of the directions. Where they are not, all is embedded anew,
    and a warning says so.
    """
    path = out / GIVEN
    if not path.exists():
        return
    given = load_array(path, mapped=True)
    if given.shape == (len(chunks), embedder.dim) and _alike(given, chunks, tokenizer, embedder):
        give_vectors(out, given, np.arange(len(given)), len(given), embedder.fingerprint)
    else:
        yield Warned(
            "The vectors that came with this corpus are not what its embedder makes of its text here, so all "
            "chunks are embedded anew."
        )
    path.unlink()


def _alike(given: np.ndarray, chunks: Chunks, tokenizer: Tokenizer, embedder: Embedder) -> bool:
    for start in range(0, len(given), COPY_ROWS):
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(given[start : start + COPY_ROWS], axis=1)
        if not (np.isclose(lengths, 1, atol=1e-3) | (lengths == 0)).all():  # also where it is no number
            return False
    rows = np.unique(np.linspace(0, len(given) - 1, SAMPLED).astype(np.int64))
    made = embedder.embed([tokenizer.decode(ids) for ids in chunks.tokens[rows].tolist()])
    return bool((np.abs(made - given[rows]).max(axis=1) < FARTHEST).all())


def sources_of(out: Path, embedder: str) -> str:
    """One hash of all that the vectors of a corpus folder depend on; `embedder` is its fingerprint."""
    parts = [embedder, file_hash(out / "tokenizer.json"), file_hash(out / "chunks.npy")]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def npy_header(rows: int, dim: int) -> bytes:
    """What a .npy file of float32 (rows, dim) begins with."""
    file = io.BytesIO()
    values = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, values | {"shape": (rows, dim)})
    return file.getvalue()
