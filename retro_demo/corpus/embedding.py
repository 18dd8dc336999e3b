"""The vectors of a corpus, and how much of its text the embedder does not know.

vectors.part  a .npy whose last rows are not there yet; it becomes vectors.npy
vectors.json  what they are made from: another embedder, tokenizer or other chunks are refused
given.npy     those that came with an import: used where a sample shows that they are of this text

Vectors are made block by block on disk. A build that was stopped resumes them and never mixes two kinds.

Each build counts how many word pieces of the text its embedder does not know. The figures stand in the
statistics; this module decides from which share on the user is warned, and what the warning advises. A chunk
in which no word piece is known has a vector of zeros: dense retrieval never finds it, and finds nothing for
it. Corpora of 0.5.0 have no such figures, so they get no warning.

Shapes: E vector width, N chunks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.store import Chunks, Corpus
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress, Warned
from retro_demo.files import file_hash, load_array, write_atomically
from retro_demo.retrieval.dense import drawn, percent
from retro_demo.retrieval.embedders import Embedder, WordPieces
from retro_demo.tokenizer import Tokenizer

EMBED_BLOCK = 4096
GIVEN = "given.npy"
SAMPLED, FARTHEST = 64, 0.01  # chunks embedded again, and how far off a given number may be
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
    """Let the first chunks of `out`, of `total`, have these rows of vectors (N, E): none is embedded again.

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

    Looked at are all lengths and a sample of the directions. Where they are not, all is embedded again,
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


HIGH = 0.2  # of the word pieces, of their characters or of the chunks: from here on something is advised
CHUNKS = 2048  # looked at, at most: a tenth of a second, for a share that is off by a hundredth
BY_VECTORS = ("dense", "hybrid")  # retrievers that find nothing without vectors


@dataclass(frozen=True)
class UnknownText:
    """Of `pieces` word pieces in `chunks` chunks the embedder does not know `unknown`, a `share` of them.

    character_share: of their characters. It is the larger one where a script puts no space between words: a
    sentence with one unknown letter in it is one unknown piece.
    """

    share: float
    unknown: int
    pieces: int
    character_share: float
    chunks: int


def measure_unknown(chunks: Chunks, tokenizer: Tokenizer, embedder: Embedder) -> dict[str, Any] | None:
    """An `UnknownText` of these chunks as JSON; None where the embedder cannot tell.

    Of more than CHUNKS a sample is looked at, always the same one, however the vectors came about: in one
    go or several, in shards, from the corpus before a change or from an import.
    """
    rows = drawn(len(chunks), CHUNKS, seed=0)
    counted = embedder.count_pieces([tokenizer.decode(ids) for ids in chunks.tokens[rows].tolist()])
    if counted is None:
        return None
    share, character_share = _shares(counted)
    return asdict(UnknownText(share, counted.unknown, counted.pieces, character_share, len(rows)))


def count_without_vector(chunks: Chunks, tokenizer: Tokenizer, there: np.ndarray) -> int:
    """How many chunks hold text and have no vector; `there` (N,) says which have one.

    The last chunk of a document may hold nothing but its end.
    """
    blank = np.array([not tokenizer.token_bytes(i).strip() for i in range(tokenizer.vocab_size)])
    return int((~blank[chunks.tokens[~there]]).any(axis=1).sum())


BETTER = "words"  # where an embedder knows too little; minilm is none: it has the word pieces of static
REMEDY = (
    "To search, train and write use --retriever bm25-words (or bm25), which needs no embedder; or build the "
    f"corpus with --embedder {BETTER}, which knows every script."
)


def doubt_of_statistics(statistics: Mapping[str, Any]) -> str:
    """What is unknown of a corpus and what to do, "" where that is little or was not measured."""
    facts = _facts(statistics)
    return f"{facts} {REMEDY}" if facts else ""


def doubt_of(corpus: Corpus, retriever: str) -> str:
    """`doubt_of_statistics`, where the retriever goes by vectors."""
    return doubt_of_statistics(corpus.manifest["statistics"]) if retriever in BY_VECTORS else ""


def doubt_of_query(embedder: Embedder, text: str) -> str:
    """What is unknown of a text that is looked for, "" where that is little or cannot be told."""
    counted = embedder.count_pieces([text])
    if counted is None or max(_shares(counted)) < HIGH:
        return ""
    return (
        f"The embedder {embedder.name} does not know {counted.unknown:,} of the {counted.pieces:,} word "
        "pieces that are looked for: what it finds may be unrelated. Try other words, or the retriever "
        "bm25-words."
    )


def _shares(counted: WordPieces) -> tuple[float, float]:
    """The unknown share of the pieces, and of their characters."""
    characters = counted.unknown_characters / max(1, counted.characters)
    return round(counted.unknown / max(1, counted.pieces), 4), round(characters, 4)


def _facts(statistics: Mapping[str, Any]) -> str:
    """What is unknown in words, "" where it is little or was not measured."""
    figure = statistics.get("unknown_word_pieces") or {"share": 0.0, "character_share": 0.0}
    without, chunks = statistics.get("chunks_without_vector", 0), statistics["chunks"]
    finds_nothing = statistics.get("chunks_with_neighbors") == 0
    shares = figure["share"], figure["character_share"]
    if max(*shares, without / chunks) < HIGH and not finds_nothing:
        return ""
    pieces, characters = map(percent, shares)
    words = f"The embedder {statistics['embedder']} does not know "
    words += (
        f"{pieces} of the word pieces of this text" if any(shares) else f"{without:,} chunks of this text"
    )
    if characters != pieces:
        words += f" ({characters} of its characters)"
    if finds_nothing:
        return f"{words}: dense retrieval finds no neighbor for any training chunk."
    if without and any(shares):
        words += f", nothing at all in {without:,} of {chunks:,} chunks"
    return f"{words}: what dense retrieval finds may be unrelated to what is looked for."


def few_without_vector(statistics: Mapping[str, Any]) -> str:
    """A sentence on chunks without a vector, "" where there are none or `doubt_of_statistics` says more."""
    without = statistics["chunks_without_vector"]
    if not without or _facts(statistics):
        return ""
    return (
        f"{without:,} of {statistics['chunks']:,} chunks have no vector, since the embedder "
        f"{statistics['embedder']} knows nothing in them: dense retrieval never finds them and finds nothing "
        "for them. The retriever bm25 does both."
    )


def known_words(statistics: Mapping[str, Any]) -> str:
    """The figure in a sentence for people; "" where it was not measured."""
    if "unknown_word_pieces" not in statistics:
        return ""
    figure, embedder = statistics["unknown_word_pieces"], statistics["embedder"]
    if figure is None:
        return f"How much of the text the embedder {embedder} knows cannot be told from its tokenizer."
    sampled = figure["chunks"] < statistics["chunks"]
    where = f" (in a sample of {figure['chunks']:,} chunks)" if sampled else ""
    if not figure["unknown"]:
        return f"The embedder {embedder} knows all word pieces of the text{where}."
    return (
        f"The embedder {embedder} does not know {percent(figure['share'])} of the word pieces of the text, "
        f"{figure['unknown']:,} of {figure['pieces']:,}{where}."
    )


def nothing_found(retriever: str, statistics: Mapping[str, Any]) -> str:
    """Why a retriever found nothing that may be a neighbor, and which other one might."""
    if retriever in BY_VECTORS:
        how = "" if retriever == "dense" else ", which puts what dense finds into another order"
        return (
            f"Nothing was found by {retriever}{how}: the embedder {statistics['embedder']} knows no word "
            "piece of this text, or of any chunk that may be found. Try the retriever bm25-words or bm25, "
            "which needs no embedder."
        )
    by_words = "the retriever bm25-words, which goes by whole words"
    by_parts = "the retriever bm25, which goes by parts of words"
    ways = ["Try other words", by_parts if retriever == "bm25-words" else by_words]
    if not _facts(statistics):
        ways.append("the retriever dense, which goes by meaning")
    what = "word" if retriever == "bm25-words" else "token"
    return (
        f"Nothing was found by {retriever}: no chunk that may be found shares a {what} with this text. "
        f"{', or '.join(ways)}."
    )


def check_found(corpus: Corpus, retriever: str) -> None:
    """Raise UserError where a training by this retriever would have no neighbor to read at all."""
    rows = ~corpus.held_out[corpus.chunks.document]
    if retriever in BY_VECTORS and (corpus.neighbor_ids[rows] < 0).all():
        embedder = corpus.config.embedder
        raise UserError(
            f"The retriever {retriever} finds no neighbor for any training chunk of {corpus.name}: the "
            f"embedder {embedder} does not know this text. Train with the retriever bm25-words or bm25, "
            f"which needs no embedder, or build the corpus with the embedder {BETTER}."
        )
