"""From sources to a built corpus folder; a second call finds the costly stages done.

config.json       the sources and the CorpusConfig
documents.jsonl   the text          tokenizer.json    chunks.npy, chunk_documents.npy
vectors.npy       one for each chunk, held-out ones too (they are queries only)
index.faiss       the training chunks that have a vector: the others are found by nobody
neighbor_ids.npy, neighbor_scores.npy    of every chunk
corpus.json       the manifest, written last: fingerprint, hashes, statistics
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.config import CorpusConfig, from_json, to_json
from retro_demo.corpus.corpus import KEPT_FILES, MANIFEST, TEXT_FILES, Chunks, corpus_fingerprint
from retro_demo.corpus.cutting import read_text
from retro_demo.corpus.duplicates import Duplicates
from retro_demo.corpus.index_files import index_names, open_files, where_searched, write_index
from retro_demo.corpus.marks import file_mark
from retro_demo.corpus.unknown_text import (
    count_without_vector,
    doubt_of_statistics,
    few_without_vector,
    measure_unknown,
)
from retro_demo.corpus.vectors import embed_chunks, take_given
from retro_demo.devices import allowed_memory, choose_device
from retro_demo.documents.documents import Document
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished, Progress, Started, Warned
from retro_demo.output_folder import CONFIG, check_output, kind_of, make_output, read_object
from retro_demo.retrieval.embedding import load_embedder
from retro_demo.retrieval.index import DenseRetriever, VectorIndex, gpu_available
from retro_demo.retrieval.index_parts import has_vector
from retro_demo.retrieval.neighbors import Neighbors
from retro_demo.retrieval.recall import Excluded, Recall, measure_recall
from retro_demo.tokenizer import Tokenizer
from retro_demo.whole_files import file_hash, load_array, save_array, write_atomically

SEARCH_BLOCK = 4096


def prepare_corpus(
    out: Path, sources: Sequence[Path], config: CorpusConfig, *, placed: Collection[str] = ()
) -> None:
    """Write down what is to be built, so that `build_corpus(out)` can.

    `placed` names what the caller has put there. Raises UserError for a folder of another corpus, or of
    anybody else.
    """
    if check_output(out, "corpus", placed=placed):
        if read_object(out / CONFIG) == json.loads(_as_config(sources, config)):
            return
        # where nothing could be read yet (a mistyped source, say) there is nothing to lose
        if (out / "reading.json").exists():
            raise UserError(
                f"{out} already holds a corpus of other sources or settings. Choose another folder."
            )
    write_corpus_config(out, sources, config)


def write_corpus_config(out: Path, sources: Sequence[Path], config: CorpusConfig) -> None:
    """As `prepare_corpus`, in a folder that the program chose: nobody else's things can be there."""
    make_output(out)
    write_atomically(out / CONFIG, _as_config(sources, config))


def _as_config(sources: Sequence[Path], config: CorpusConfig) -> bytes:
    places = [str(path.resolve()) for path in sources]
    values = {"kind": "corpus", "sources": places, "config": to_json(config)}
    return (json.dumps(values, indent=2) + "\n").encode()


def build_corpus(out: Path) -> Iterator[Event]:
    """Build the corpus that `prepare_corpus` wrote down, from wherever it stands, yielding progress.

    Raises UserError for bad input, and where no chunk could have a neighbor by any retriever.
    """
    begun = time.perf_counter()
    config, sources = read_corpus_config(out)
    yield Started("corpus", about=to_json(config))
    embedder = load_embedder(config.embedder, choose_device("auto"))  # a missing one is said before any work
    text = yield from read_text(out, config, sources)
    documents, chunks, held_out, tokenizer = text.documents, text.chunks, text.held_out, text.tokenizer
    duplicates, warnings, train = text.duplicates, list(text.warnings), text.train
    yield from take_given(out, chunks, tokenizer, embedder)
    yield from embed_chunks(out, chunks, tokenizer, embedder)
    vectors = load_array(out / "vectors.npy", mapped=True)
    on_gpu, device_sentence = gpu_available()
    there = has_vector(vectors)
    index, recall = yield from index_chunks(
        out, vectors, train[there[train]], text.too_near, "cuda" if on_gpu else "cpu"
    )
    retriever = DenseRetriever(index, embedder, tokenizer.decode, text.too_near)
    yield from _find_neighbors(out, vectors, retriever, config.num_neighbors)
    missing = (load_array(out / "neighbor_ids.npy") < 0).sum(axis=1)
    found = int((missing[train] < config.num_neighbors).sum())
    if not found and not text.could_retrieve():
        raise UserError(
            f"None of the {len(train)} training chunks has a neighbor outside its own document: with "
            f"{int((~held_out).sum())} training documents there is nothing to retrieve. Add documents, or "
            "hold out less."
        )
    short = int((missing[train] > 0).sum())
    if found and short:
        warnings.append(
            f"{short:,} of {len(train):,} training chunks have fewer than {config.num_neighbors} neighbors "
            "outside their own document and its near-duplicates; the missing ones are masked."
        )
    statistics = describe(documents, chunks, held_out, duplicates, tokenizer, missing) | {
        "chunks_with_neighbors": found,
        "chunks_without_vector": count_without_vector(chunks, tokenizer, there),
        "unknown_word_pieces": measure_unknown(chunks, tokenizer, embedder),
        "index": index.factory,
        "shards": index.shards,
        "recall": recall.to_json(),
        "device": where_searched(index, on_gpu, device_sentence),
        "embedder": embedder.name,
        "seconds": round(time.perf_counter() - begun, 2),
    }
    if sentence := few_without_vector(statistics):
        warnings.append(sentence)
    hashes = {name: file_hash(out / name) for name in KEPT_FILES}
    manifest = {
        "format": 1,
        "fingerprint": corpus_fingerprint(
            config, {name: hashes[name] for name in TEXT_FILES}, embedder.fingerprint, text.split
        ),
        "embedder_fingerprint": embedder.fingerprint,
        "marks": {name: file_mark(out / name) for name in ("vectors.npy", *index_names(index.shards))},
        "config": to_json(config),
        "hashes": hashes,
        "sections": text.kept["sections"],
        "cluster": duplicates.cluster.tolist(),
        "held_out": held_out.tolist(),
        "history": text.kept.get("history", []),
        "warnings": warnings,
        "statistics": statistics,
    }
    ending = built(manifest)
    for sentence in ending.result["warnings"][len(text.warnings) :]:  # the others are told
        yield Warned(sentence)
    write_atomically(out / MANIFEST, json.dumps(manifest).encode())
    yield ending


def built(manifest: dict[str, Any]) -> Finished:
    """The end of a build or a change that left this manifest.

    What the embedder does not know is not in the manifest: it follows from the figures there.
    """
    statistics, warnings = manifest["statistics"], manifest["warnings"]
    if sentence := doubt_of_statistics(statistics):
        warnings = [*warnings, sentence]
    return Finished(statistics | {"fingerprint": manifest["fingerprint"], "warnings": warnings})


def read_corpus_config(out: Path) -> tuple[CorpusConfig, list[Path]]:
    """What `prepare_corpus` wrote; raises UserError where there is nothing to build."""
    if kind_of(out) != "corpus":
        raise UserError(
            f"There is nothing to build in {out}. Name the sources: build-corpus SOURCE... --out {out}"
        )
    values = read_object(out / CONFIG)
    return from_json(CorpusConfig, values["config"]), [Path(source) for source in values["sources"]]


def index_chunks(
    out: Path, vectors: np.ndarray, rows: np.ndarray, too_near: Excluded, device: str, *, shards: int = 1
) -> Generator[Event, None, tuple[VectorIndex, Recall]]:
    """Index the vectors of some chunks, the training ones that have one, tuned to its measured recall.

    Yields progress. What is there already, of these very vectors, is opened as it was measured.
    """
    about, mark = out / "index.json", file_mark(out / "vectors.npy")
    if about.exists() and (kept := json.loads(about.read_text("utf-8")))["vectors"] == mark:
        index, recall = open_files(out, device), Recall(**kept["recall"])
        if recall.probes != index.probes:
            index.probe(recall.probes)
        return index, recall
    about.unlink(missing_ok=True)
    for done in write_index(out, vectors, rows, device, memory=allowed_memory(), shards=shards):
        yield Progress("index", done, len(rows))
    index = open_files(out, device)
    recall = measure_recall(index, vectors, rows, too_near, tune=True)
    write_atomically(about, json.dumps({"vectors": mark, "recall": recall.to_json()}).encode())
    return index, recall


def _find_neighbors(out: Path, vectors: np.ndarray, retriever: DenseRetriever, k: int) -> Iterator[Event]:
    """The neighbors of every chunk, own document and near-duplicates excluded."""
    if (out / "neighbor_scores.npy").exists():
        return
    ids, scores = [], []
    for start in range(0, len(vectors), SEARCH_BLOCK):
        found = search_block(vectors, retriever, k, start, len(vectors))
        ids.append(found.ids.astype(np.int32))
        scores.append(found.scores.astype(np.float32))
        yield Progress("neighbors", start + len(found.ids), len(vectors))
    save_array(out / "neighbor_ids.npy", np.concatenate(ids))
    save_array(out / "neighbor_scores.npy", np.concatenate(scores))


def search_block(vectors: np.ndarray, retriever: DenseRetriever, k: int, start: int, stop: int) -> Neighbors:
    """The neighbors of the chunks from `start` to at most `stop`, a block of them."""
    block = np.asarray(vectors[start : min(start + SEARCH_BLOCK, stop)])
    return retriever.search_vectors(block, k, own=np.arange(start, start + len(block)))


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
