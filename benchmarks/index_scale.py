"""The index at 1e3, 1e5 and 1e6 chunks: build time, memory, recall against exact, milliseconds a query.

    .venv/bin/python -m benchmarks.index_scale [--sizes 1000,100000,1000000] [--files MORE...] [--json FILE]

The vectors are those of the static embedder. Text: all that ships (Factbook, human rights) and --files,
cut into chunks of 64 tokens. Where a size wants more, noisy copies: a chunk in which 30% of the words are
replaced by words of another chunk, drawn with a seed; so most of the largest set is not natural, and recall
is given apart for queries that are real chunks and for those that are copies. A query does not find itself.

Each size is built in a process of its own by the code that builds a corpus (corpus/building.py,
retrieval/dense.py), from vectors on disk. "memory" is the most anonymous memory that building took above
what it began with; mapped files can leave memory at any time. One query alone and batches of 1,000 are timed,
medians of 5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy as np
import torch

from benchmarks.measuring import Report
from retro_demo.corpus.building import open_files, write_index
from retro_demo.corpus.chunks import SHIPPED_TOKENIZERS
from retro_demo.devices import allowed_memory, allowed_threads
from retro_demo.documents.sources import read_documents
from retro_demo.files import file_hash, load_array
from retro_demo.paths import ASSETS, STATIC_FOLDER, data_home
from retro_demo.retrieval.dense import SCAN_ROWS, TIE, VectorIndex, blocks_of, measure_recall, scan
from retro_demo.retrieval.embedders import StaticEmbedder
from retro_demo.tokenizer import Tokenizer

SHIPPED = [ASSETS / "factbook2015" / "factbook2015.jsonl.gz", ASSETS / "udhr44" / "udhr44.jsonl.gz"]
TOKENS = 64
REPLACED = 0.3
BLOCK = 8192
K = 4
QUERIES = 1000


def chunk_texts(files: list[Path]) -> list[str]:
    """All files as chunks of 64 tokens, without repetitions, in an order drawn with a seed."""
    tokenizer = Tokenizer.load(SHIPPED_TOKENIZERS["factbook"])
    texts: dict[str, None] = {}
    for file in files:
        for document in read_documents([file], fields={}).documents:
            ids = tokenizer.encode(document.text)
            texts |= dict.fromkeys(
                tokenizer.decode(ids[at : at + TOKENS]) for at in range(0, len(ids), TOKENS)
            )
    kept = list(texts)
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]


def noisy_copies(texts: list[str], count: int) -> Iterator[str]:
    """Chunks in which some words are those of another chunk."""
    words = [text.split(" ") for text in texts]
    rng = np.random.default_rng(1)
    for number in range(count):
        own, other = words[number % len(words)], words[int(rng.integers(len(words)))]
        hit = rng.random(len(own)) < REPLACED
        drawn = rng.integers(0, len(other), len(own)).tolist()
        yield " ".join(
            other[place] if changed else word
            for word, changed, place in zip(own, hit.tolist(), drawn, strict=True)
        )


def vectors_on_disk(texts: list[str], total: int, name: str) -> Path:
    """A .npy of `total` vectors: those of the texts, then of noisy copies; made once."""
    path = data_home()[0] / "benchmarks" / f"vectors-{name}-{total}.npy"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"embedding {total:,} chunks (once)", file=sys.stderr)
    embedder = StaticEmbedder(STATIC_FOLDER)
    part = path.with_suffix(".part")
    rows = np.lib.format.open_memmap(part, "w+", np.float32, (total, embedder.dim))
    copies = noisy_copies(texts, total)
    for block in blocks_of(total, BLOCK):
        count = min(block.stop, total) - block.start
        real = texts[block.start : block.start + count]
        rows[block] = embedder.embed([*real, *(next(copies) for _ in range(count - len(real)))])
    rows.flush()
    part.replace(path)
    return path


def anonymous_memory() -> int:
    """Bytes of memory of this process that no file stands for."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def nothing(_own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return np.zeros(candidates.shape, dtype=bool)


def measure(path: Path, count: int, real: int, factory: str | None, rounds: int) -> dict[str, object]:
    """Build an index of the first `count` vectors and search in it; `real` of them are no copies."""
    torch.set_num_threads(allowed_threads())
    faiss.omp_set_num_threads(allowed_threads())
    vectors, rows = load_array(path, mapped=True), np.arange(count)
    held, most = anonymous_memory(), 0
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for _ in write_index(Path(folder), vectors, rows, "cpu", memory=allowed_memory(), factory=factory):
            most = max(most, anonymous_memory() - held)
        build = time.perf_counter() - begun
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        begun = time.perf_counter()
        index = open_files(Path(folder), "cpu")
        opened = time.perf_counter() - begun
        begun = time.perf_counter()
        own = lambda mine, candidates: candidates == mine[:, None]  # noqa: E731
        tuned = measure_recall(index, vectors[:count], rows, own, tune=True)
        tuning = time.perf_counter() - begun
        drawn = np.random.default_rng(2)
        kinds = {"real": np.sort(drawn.permutation(min(real, count))[:QUERIES])}
        if count > real:
            kinds["copies"] = np.sort(real + drawn.permutation(count - real)[:QUERIES])
        recall = {kind: recall_of(index, vectors, rows, chosen) for kind, chosen in kinds.items()}
        queries = np.asarray(vectors[kinds["real"]])
        batch = timed(lambda: index.search(queries, K), rounds) / len(queries)
        single = timed(lambda: [index.search(queries[i : i + 1], K) for i in range(100)], rounds) / 100
    return {
        "chunks": count,
        "real_chunks": min(real, count),
        "index": index.factory,
        "shards": index.shards,
        "lists": index.lists,
        "probes": index.probes,
        "build_seconds": build,
        "tuning_seconds": tuning,
        "opening_ms": 1000 * opened,
        "memory_mb": most / 1e6,
        "file_mb": size / 1e6,
        "recall": recall,
        "recall_at_build": tuned.to_json(),
        "ms_a_query_in_batches": 1000 * batch,
        "ms_a_query_alone": 1000 * single,
        "threads": allowed_threads(),
    }


def recall_of(index: VectorIndex, vectors: np.ndarray, rows: np.ndarray, chosen: np.ndarray) -> float:
    """The share of the 4 nearest other chunks of the chosen ones that the index finds; a tie counts."""
    queries = np.asarray(vectors[chosen])

    def others(places: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return (ids >= 0) & (ids != chosen[places][:, None])

    stored = ((rows[block], np.asarray(vectors[rows[block]])) for block in blocks_of(len(rows), SCAN_ROWS))
    exact = scan(stored, queries, K, others)
    found = index.search(queries, K + 1).ids
    there = np.asarray(vectors[np.maximum(found, 0).reshape(-1)]).reshape(*found.shape, -1)
    scores = np.einsum("qe,qke->qk", queries, there)
    good = others(np.arange(len(chosen)), found) & (scores >= exact.scores[:, -1:] - TIE)
    return float(np.minimum(good.sum(axis=1), K).mean() / K)


def timed(search, rounds: int) -> float:
    """Seconds, the median of so many after one to warm up."""
    search()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="1000,100000,1000000")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="more text: .jsonl.gz, .txt ...")
    parser.add_argument("--factories", default="", help="FAISS kinds to measure beside the chosen one")
    parser.add_argument("--rounds", type=int, default=5, help="how often each search is timed")
    parser.add_argument("--json", help="where the figures go (default: build/benchmarks/index_scale.json)")
    parser.add_argument("--quick", action="store_true", help="a thousand chunks: to see that it works")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # set for the process of one size
    options = parser.parse_args()
    if options.one:
        path, count, real, factory, rounds = json.loads(options.one)
        print(json.dumps(measure(Path(path), count, real, factory, rounds)))
        return
    sizes = [1000] if options.quick else [int(float(size)) for size in options.sizes.split(",")]
    files = [*SHIPPED, *options.files]
    texts = chunk_texts(files)
    name = hashlib.sha256(" ".join(map(file_hash, files)).encode()).hexdigest()[:8]
    path = vectors_on_disk(texts, max(sizes), name)
    heads = ["chunks (real)", "index", "build s", "tuning s", "memory MB", "file MB", "probes"]
    heads += ["recall@4 real", "copies", "ms/query batches", "alone"]
    report = Report("index_scale")
    rows, lines = [], []
    for size in sizes:
        for factory in [None, *filter(None, options.factories.split(";"))]:
            one = json.dumps([str(path), size, len(texts), factory, options.rounds])
            command = [sys.executable, "-m", "benchmarks.index_scale", "--one", one]
            root = Path(__file__).resolve().parent.parent
            done = subprocess.run(command, check=True, cwd=root, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            recall = row["recall"]
            cells = [f"{size:,} ({row['real_chunks']:,})", row["index"], f"{row['build_seconds']:.1f}"]
            cells += [f"{row['tuning_seconds']:.1f}", f"{row['memory_mb']:.0f}", f"{row['file_mb']:.0f}"]
            cells += [str(row["probes"] or "all"), f"{recall['real']:.3f}"]
            cells += [f"{recall['copies']:.3f}" if "copies" in recall else ""]
            cells += [f"{row['ms_a_query_in_batches']:.3f}", f"{row['ms_a_query_alone']:.2f}"]
            lines.append(cells)
    copies = f"{REPLACED:.0%} of the words of copies replaced"
    title = f"{len(texts):,} real chunks, {copies}, FAISS {faiss.__version__}"
    report.table(title, heads, lines)
    largest = rows[-1]
    if largest["chunks"] >= 1_000_000:
        report.aim("recall@4 of a million chunks, real ones asked", largest["recall"]["real"], least=0.95)
        report.aim("ms a query in batches, a million chunks", largest["ms_a_query_in_batches"], most=1.0)
    report.figures = {"rows": rows, "text_chunks": len(texts)}
    report.publish(options.json)


if __name__ == "__main__":
    main()
