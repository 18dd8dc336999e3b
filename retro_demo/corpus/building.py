"""From sources to a built corpus folder with its FAISS index; a second call finds the costly stages done.

config.json       the sources and the CorpusConfig
documents.jsonl   the text          tokenizer.json    chunks.npy, chunk_documents.npy
vectors.npy       one for each chunk, held-out ones too (they are queries only)
index.faiss       the training chunks that have a vector: no search finds the others
neighbor_ids.npy, neighbor_scores.npy    of every chunk
corpus.json       the manifest, written last: fingerprint, hashes, statistics

This module decides which index files there are and how large a shard of the index is. Vectors may lie on
disk: of those that are indexed, one block is in memory at a time, beside the shard that is being filled.
Where memory is short the index is cut into shards; it is opened memory-mapped.

Shapes: E vector width, N vectors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retro_demo.corpus.chunks import Duplicates, read_text
from retro_demo.corpus.embedder_choice import (
    STATIC,
    check_embedder,
    choose_embedder,
    fit_embedder,
    open_embedder,
)
from retro_demo.corpus.embedding import (
    count_without_vector,
    doubt_of_statistics,
    embed_chunks,
    few_without_vector,
    measure_unknown,
    take_given,
)
from retro_demo.corpus.store import (
    KEPT_FILES,
    MANIFEST,
    TEXT_FILES,
    Chunks,
    Corpus,
    check_current,
    corpus_fingerprint,
    file_checksum,
    unchanged,
)
from retro_demo.devices import allowed_memory
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.events import Event, Finished, Progress, Started, Warned
from retro_demo.files import file_hash, load_array, save_array, write_atomically
from retro_demo.output_folder import CONFIG, check_output, kind_of, make_output, read_object
from retro_demo.retrieval.dense import (
    DenseRetriever,
    Excluded,
    Recall,
    VectorIndex,
    blocks_of,
    checked,
    choose_factory,
    empty_index,
    gpu_available,
    has_vector,
    measure_recall,
    read_part,
    write_part,
)
from retro_demo.retrieval.neighbors import Neighbors
from retro_demo.settings import AUTO, CorpusConfig, from_json, to_json
from retro_demo.tokenizer import Tokenizer

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


SEARCH_BLOCK = 4096


def prepare_corpus(
    out: Path, sources: Sequence[Path], config: CorpusConfig, *, placed: Collection[str] = ()
) -> None:
    """Write down what is to be built, so that `build_corpus(out)` can.

    `placed` names what the caller has put there. Raises UserError for a folder of another corpus, or of
    anybody else.
    """
    if check_output(out, "corpus", placed=placed):
        there = read_object(out / CONFIG)
        # before there was auto, static was the usual one: such a folder goes on as it was begun
        usual = replace(config, embedder=STATIC) if config.embedder == AUTO else config
        if any(there == json.loads(_as_config(sources, one)) for one in (config, usual)):
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
    check_embedder(config.embedder)
    text = yield from read_text(out, config, sources)
    documents, chunks, held_out, tokenizer = text.documents, text.chunks, text.held_out, text.tokenizer
    duplicates, warnings, train = text.duplicates, list(text.warnings), text.train
    name, choice = choose_embedder(config.embedder, chunks, tokenizer)
    config = replace(config, embedder=name)
    if choice:
        warnings.append(choice)
        yield Warned(choice)
    fit_embedder(out, name, text)
    embedder, told = open_embedder(out, name), len(warnings)
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
        "marks": {name: file_checksum(out / name) for name in ("vectors.npy", *index_names(index.shards))},
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
    for sentence in ending.result["warnings"][told:]:  # the others are told
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
    about, checksum = out / "index.json", file_checksum(out / "vectors.npy")
    if about.exists() and (kept := json.loads(about.read_text("utf-8")))["vectors"] == checksum:
        index, recall = open_files(out, device), Recall(**kept["recall"])
        if recall.probes != index.probes:
            index.probe(recall.probes)
        return index, recall
    about.unlink(missing_ok=True)
    for done in write_index(out, vectors, rows, device, memory=allowed_memory(), shards=shards):
        yield Progress("index", done, len(rows))
    index = open_files(out, device)
    recall = measure_recall(index, vectors, rows, too_near, tune=True)
    write_atomically(about, json.dumps({"vectors": checksum, "recall": recall.to_json()}).encode())
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
