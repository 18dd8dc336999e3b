"""From sources to a built corpus folder; a second call finds the costly stages done.

config.json       the sources and the CorpusConfig
documents.jsonl   the text          tokenizer.json    chunks.npy, chunk_documents.npy
vectors.npy       one for each chunk, held-out ones too (they are queries only)
index.faiss       the training chunks
neighbor_ids.npy, neighbor_scores.npy    of every chunk
corpus.json       the manifest, written last: fingerprint, hashes, statistics
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.config import CorpusConfig, from_json, to_json
from retro_demo.corpus import (
    KEPT_FILES,
    MANIFEST,
    TEXT_FILES,
    Chunks,
    choose_held_out,
    chunk_documents,
    corpus_fingerprint,
    excluded,
    file_hash,
    load_array,
    read_stored_documents,
    save_array,
    word_ids,
    write_atomically,
    write_documents,
)
from retro_demo.devices import choose_device
from retro_demo.documents import Document, Limits, parse_fields, read_documents
from retro_demo.duplicates import Duplicates, find_duplicates
from retro_demo.embedding import Embedder, load_embedder
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished, Progress, Started, Warned
from retro_demo.index import DenseRetriever, VectorIndex, gpu_available
from retro_demo.tokenizer import Tokenizer

EMBED_BLOCK = 4096
ENCODE_BLOCK = 256
SEARCH_BLOCK = 4096
ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED_TOKENIZERS = {"factbook": ASSETS / "factbook_tokenizer.json"}


def prepare_corpus(out: Path, sources: Sequence[Path], config: CorpusConfig) -> None:
    """Write down what is to be built, so that `build_corpus(out)` can; refuses another corpus' folder."""
    wanted = {
        "kind": "corpus",
        "sources": [str(path.resolve()) for path in sources],
        "config": to_json(config),
    }
    path = out / "config.json"
    if path.exists():
        there = json.loads(path.read_text("utf-8"))
        if there == json.loads(json.dumps(wanted)):
            return
        # where nothing could be read yet (a mistyped source, say) there is nothing to lose
        if there.get("kind") != "corpus" or (out / "reading.json").exists():
            raise UserError(
                f"{out} already holds something of other sources or settings. Choose another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(wanted, indent=2) + "\n").encode())


def build_corpus(out: Path) -> Iterator[Event]:
    """Build the corpus that `prepare_corpus` wrote down, from wherever it stands, yielding progress.

    Raises UserError for bad input, and where no chunk could have a neighbor.
    """
    begun = time.perf_counter()
    config, sources = read_corpus_config(out)
    yield Started("corpus", about=to_json(config))
    embedder = load_embedder(config.embedder, choose_device("auto"))  # a missing one is said before any work
    documents, warnings, sections = _read(out, sources, config)
    yield Progress("read", len(documents), len(documents))
    duplicates = find_duplicates(word_ids(document.text for document in documents))
    held_out = choose_held_out(documents, duplicates.cluster, config.holdout, config.seed)
    if twins := int(np.isin(duplicates.cluster[held_out], duplicates.cluster[~held_out]).sum()):
        warnings.append(
            f"{twins} documents that are held out by their field `use` have a near-duplicate elsewhere: "
            "what is measured on them may be known by heart."
        )
    yield Progress("split", len(documents), len(documents))
    tokenizer = _tokenizer(out, config, [d for d, out_ in zip(documents, held_out, strict=True) if not out_])
    yield Progress("tokenizer", tokenizer.vocab_size, tokenizer.vocab_size)
    chunks = _chunks(out, documents, tokenizer, config)
    yield Progress("chunks", len(chunks), len(chunks))
    if not chunks.has_continuation(np.arange(len(chunks)))[~held_out[chunks.document]].any():
        raise UserError(
            f"Every document fits into one chunk of {config.chunk_len} tokens (the longest has "
            f"{max(len(d.text) for d in documents)} characters), so neighbors could help no later text. "
            "Add longer documents, or choose a smaller chunk length."
        )
    yield from _embed(out, chunks, tokenizer, embedder)
    vectors = load_array(out / "vectors.npy", mapped=True)
    train = np.flatnonzero(~held_out[chunks.document])
    on_gpu, device_sentence = gpu_available()
    index = VectorIndex.build(vectors[train], train.astype(np.int64), device="cuda" if on_gpu else "cpu")
    index.save(out / "index.faiss")
    yield Progress("index", len(train), len(train))
    window = config.window if sections else 0
    retriever = DenseRetriever(
        index,
        embedder,
        tokenizer.decode,
        lambda own, candidates: excluded(chunks, duplicates.cluster, window, own, candidates),
    )
    yield from _find_neighbors(out, vectors, retriever, config.num_neighbors)
    missing = (load_array(out / "neighbor_ids.npy") < 0).sum(axis=1)
    if (missing[train] == config.num_neighbors).all():
        raise UserError(
            f"None of the {len(train)} training chunks has a neighbor outside its own document: with "
            f"{int((~held_out).sum())} training documents there is nothing to retrieve. Add documents, or "
            "hold out less."
        )
    if short := int((missing[train] > 0).sum()):
        warnings.append(
            f"{short} of {len(train)} training chunks have fewer than {config.num_neighbors} neighbors "
            "outside their own document and its near-duplicates; the missing ones are masked."
        )
    for text in warnings:
        yield Warned(text)
    statistics = describe(documents, chunks, held_out, duplicates, tokenizer, missing) | {
        "index": index.factory,
        "device": device_sentence,
        "embedder": embedder.name,
        "seconds": round(time.perf_counter() - begun, 2),
    }
    hashes = {name: file_hash(out / name) for name in KEPT_FILES}
    manifest = {
        "format": 1,
        "fingerprint": corpus_fingerprint(
            config, {name: hashes[name] for name in TEXT_FILES}, embedder.fingerprint
        ),
        "embedder_fingerprint": embedder.fingerprint,
        "config": to_json(config),
        "hashes": hashes,
        "sections": sections,
        "cluster": duplicates.cluster.tolist(),
        "held_out": held_out.tolist(),
        "warnings": warnings,
        "statistics": statistics,
    }
    write_atomically(out / MANIFEST, json.dumps(manifest).encode())
    yield Finished(statistics | {"fingerprint": manifest["fingerprint"], "warnings": warnings})


def read_corpus_config(out: Path) -> tuple[CorpusConfig, list[Path]]:
    """What `prepare_corpus` wrote; raises UserError where there is nothing to build."""
    path = out / "config.json"
    if not path.exists():
        raise UserError(
            f"There is nothing to build in {out}. Name the sources: build-corpus SOURCE... --out {out}"
        )
    values = json.loads(path.read_text("utf-8"))
    if values.get("kind") != "corpus":
        raise UserError(f"{out} holds something else than a corpus. Choose another folder.")
    return from_json(CorpusConfig, values["config"]), [Path(source) for source in values["sources"]]


def _read(out: Path, sources: Sequence[Path], config: CorpusConfig) -> tuple[list[Document], list[str], bool]:
    """The documents, read once; a later call finds them stored and notices sources that changed."""
    stored, state = out / "documents.jsonl", out / "reading.json"
    if state.exists() and not (sources and all(source.exists() for source in sources)):
        kept = json.loads(state.read_text("utf-8"))
        return read_stored_documents(stored), kept["warnings"], kept["sections"]
    limit = config.max_megabytes * 1_000_000
    reading = read_documents(
        sources, fields=parse_fields(config.fields), limits=replace(Limits(), total_bytes=limit)
    )
    if state.exists() and read_stored_documents(stored) != reading.documents:
        raise UserError(f"The sources changed since {out.name} was begun. Build them into a new folder.")
    if not state.exists():
        write_documents(stored, reading.documents)
        kept = {"warnings": reading.warnings, "sections": reading.sections}
        write_atomically(state, json.dumps(kept).encode())
    return list(reading.documents), list(reading.warnings), reading.sections


def _tokenizer(out: Path, config: CorpusConfig, training: Sequence[Document]) -> Tokenizer:
    """The tokenizer of this corpus; a new one learns from the training documents alone."""
    path = out / "tokenizer.json"
    if not path.exists():
        if config.tokenizer == "train":
            Tokenizer.train((document.text for document in training), config.vocab_size).save(path)
        else:
            Tokenizer.load(SHIPPED_TOKENIZERS.get(config.tokenizer, Path(config.tokenizer))).save(path)
    return Tokenizer.load(path)


def _chunks(out: Path, documents: Sequence[Document], tokenizer: Tokenizer, config: CorpusConfig) -> Chunks:
    tokens, document = out / "chunks.npy", out / "chunk_documents.npy"
    if not document.exists():
        encoded: list[np.ndarray] = []
        for start in range(0, len(documents), ENCODE_BLOCK):  # token ids as Python ints are large
            part = tokenizer.encode_batch([d.text for d in documents[start : start + ENCODE_BLOCK]])
            encoded += [np.array(ids, dtype=np.int32) for ids in part]
        chunks = chunk_documents(encoded, config.chunk_len, tokenizer.eos_id)
        save_array(tokens, chunks.tokens)
        save_array(document, chunks.document)
    return Chunks(load_array(tokens), load_array(document))


def _embed(out: Path, chunks: Chunks, tokenizer: Tokenizer, embedder: Embedder) -> Iterator[Event]:
    """Vectors of all chunks, appended block by block so that a kill costs one block."""
    path, part = out / "vectors.npy", out / "vectors.part"
    if path.exists():
        return
    row = 4 * embedder.dim
    done = part.stat().st_size // row if part.exists() else 0
    with part.open("ab") as file:
        file.truncate(done * row)
        while done < len(chunks):
            texts = [tokenizer.decode(ids) for ids in chunks.tokens[done : done + EMBED_BLOCK].tolist()]
            file.write(embedder.embed(texts).astype(np.float32).tobytes())
            file.flush()
            done += len(texts)
            yield Progress("embed", done, len(chunks))
    save_array(path, np.fromfile(part, dtype=np.float32).reshape(-1, embedder.dim))
    part.unlink()


def _find_neighbors(out: Path, vectors: np.ndarray, retriever: DenseRetriever, k: int) -> Iterator[Event]:
    """The neighbors of every chunk, own document and near-duplicates excluded."""
    if (out / "neighbor_scores.npy").exists():
        return
    ids, scores = [], []
    for start in range(0, len(vectors), SEARCH_BLOCK):
        block = np.asarray(vectors[start : start + SEARCH_BLOCK])
        found = retriever.search_vectors(block, k, own=np.arange(start, start + len(block)))
        ids.append(found.ids.astype(np.int32))
        scores.append(found.scores.astype(np.float32))
        yield Progress("neighbors", start + len(block), len(vectors))
    save_array(out / "neighbor_ids.npy", np.concatenate(ids))
    save_array(out / "neighbor_scores.npy", np.concatenate(scores))


def describe(
    documents: Sequence[Document],
    chunks: Chunks,
    held_out: np.ndarray,
    duplicates: Duplicates,
    tokenizer: Tokenizer,
    missing: np.ndarray,
) -> dict[str, Any]:
    """The figures of a corpus; `missing` (N,) counts the neighbors that each chunk lacks."""
    text_bytes = sum(len(document.text.encode("utf-8")) for document in documents)
    tokens = int((chunks.tokens != tokenizer.pad_id).sum())
    languages = sorted({document.lang for document in documents if document.lang})
    return {
        "documents": len(documents),
        "chunks": len(chunks),
        "tokens": tokens,
        "bytes": text_bytes,
        "bytes_per_token": round(text_bytes / tokens, 3),
        "vocabulary": tokenizer.vocab_size,
        "languages": languages,
        "held_out_documents": int(held_out.sum()),
        "database_documents": sum(document.use == "database" for document in documents),
        "held_out_chunks": int(held_out[chunks.document].sum()),
        "exact_duplicates": duplicates.exact,
        "near_duplicates": duplicates.near,
        "duplicate_examples": [
            [documents[i].title, documents[j].title, round(jaccard, 3)]
            for i, j, jaccard in duplicates.pairs[:20]
        ],
        "chunks_short_of_neighbors": int((missing > 0).sum()),
        "document_tokens": np.bincount(
            chunks.document, weights=(chunks.tokens != tokenizer.pad_id).sum(axis=1)
        )
        .astype(int)
        .tolist(),
    }
