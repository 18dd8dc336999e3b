"""A corpus built by one process, by several in shards, or on a Ray cluster; and the jobs that build.

DIR/shards/split.npz        who is held out and whose near-duplicate, once the text is read and cut
DIR/shards/2-of-3/          chunks and tokenizer of the shard, its vectors, then the neighbors of its chunks

Any scheduler may start the processes, on any machine that sees the folder. Each shard is called twice, in any
order. The first call embeds its chunks; once all have, the first to come joins vectors and index, and each
searches the neighbors of its chunks. Each joined file equals the one that a single process makes, with two
exceptions: the index has as many files as there are shards (it answers alike), and a score differs here and
there in its last digit (retrieval/neighbors.py rounds, which moves no sum off a border).

Ray Data calls the shards like any other scheduler. It is optional (requirements-ray.txt): its workers must
find this package and see the folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.building import (
    SEARCH_BLOCK,
    build_corpus,
    built,
    index_chunks,
    read_corpus_config,
    search_block,
)
from retro_demo.corpus.changes import carry_out, is_pending
from retro_demo.corpus.chunks import read_text
from retro_demo.corpus.embedder_choice import check_embedder, choose_embedder, fit_embedder, open_embedder
from retro_demo.corpus.embedding import EMBED_BLOCK, embed_chunks, npy_header, sources_of
from retro_demo.corpus.samples import prepare_sample
from retro_demo.corpus.store import MANIFEST, Chunks, is_built
from retro_demo.errors import UserError, listed
from retro_demo.events import Event, Finished, Progress, Started, Stopped, Warned, cut_back
from retro_demo.files import file_hash, load_array, save_array, write_atomically
from retro_demo.jobs.lifecycle import claim, record
from retro_demo.paths import SAMPLE, data_home
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.retrieval.dense import DenseRetriever, gpu_available, has_vector
from retro_demo.retrieval.embedders import Embedder
from retro_demo.retrieval.neighbors import excluded
from retro_demo.tokenizer import Tokenizer

SHARDS = "shards"
VECTORS, NEIGHBORS = "vectors.npy", "neighbors.npy"


@dataclass(frozen=True)
class Shard:
    """The number-th of `count` equal shares of the chunks, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def folder(self, out: Path) -> Path:
        """Where its files lie."""
        return out / SHARDS / f"{self.number}-of-{self.count}"

    def rows(self, total: int) -> tuple[int, int]:
        """First and last + 1 of its chunks: whole blocks, which give the same floats as in one process."""
        blocks = -(-total // EMBED_BLOCK)
        ends = [blocks * number // self.count * EMBED_BLOCK for number in (self.number - 1, self.number)]
        return min(ends[0], total), min(ends[1], total)

    def siblings(self) -> list[Shard]:
        """All shards of the same cut, itself too."""
        return [Shard(number, self.count) for number in range(1, self.count + 1)]


def read_shard(text: str) -> Shard:
    """The shard that is meant by "2/3"; raises UserError for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text.strip())
    if not found or int(found[1]) > int(found[2]):
        raise UserError(f"The shard is {text!r}; write the second of three as 2/3.")
    return Shard(int(found[1]), int(found[2]))


def build_shard(out: Path, shard: Shard) -> Iterator[Event]:
    """Do what there is to do now of one shard of the corpus that `prepare_corpus` wrote down in `out`.

    `finished` says in `waits_for` which shards must be called before this one goes on, in `done` how far
    it is: vectors, neighbors or corpus. Raises UserError where the corpus was begun in another number of
    shards, or with another embedder.
    """
    config, sources = read_corpus_config(out)
    yield Started("corpus", about={"shard": str(shard)})
    whole = Finished({"shard": str(shard), "done": "corpus", "waits_for": []})
    check_embedder(config.embedder)
    with claim(out, patience=-1):  # one reads and cuts the text, the others wait for it
        if (out / MANIFEST).exists():
            yield whole
            return
        if not (out / SHARDS / "split.npz").exists():
            text = yield from read_text(out, config, sources)
            name, choice = choose_embedder(config.embedder, text.chunks, text.tokenizer)
            if choice:
                yield Warned(choice)
            fit_embedder(out, name, text)
            _keep_split(out, text.duplicates.cluster, text.held_out, text.window)
        tokenizer = load_tokenizer(out / "tokenizer.json")
        chunks = Chunks(load_array(out / "chunks.npy", mapped=True), load_array(out / "chunk_documents.npy"))
        embedder = open_embedder(out, choose_embedder(config.embedder, chunks, tokenizer)[0])
        searched = (shard.folder(out) / NEIGHBORS).exists()  # if not, nobody else can finish the corpus
        own = None if searched else _hand_out(out, shard, chunks)
    if own is not None:
        yield from embed_chunks(shard.folder(out), own, tokenizer, embedder)
        if missing := _missing(out, shard, VECTORS):
            yield Finished({"shard": str(shard), "done": "vectors", "waits_for": missing})
            return
        with claim(out, patience=-1):
            retriever = yield from _joined_index(out, shard, chunks, tokenizer, embedder)
        yield from _search(out, shard, chunks, retriever, config.num_neighbors)
    with claim(out, patience=-1):
        if not (out / MANIFEST).exists():
            if missing := _missing(out, shard, NEIGHBORS):
                yield Finished({"shard": str(shard), "done": "neighbors", "waits_for": missing})
                return
            yield from (event for event in finish_shards(out) if not isinstance(event, Finished))
    yield whole


def begun_in_shards(out: Path) -> bool:
    """Whether a corpus that is not built to its end was begun in shards."""
    return (out / SHARDS).is_dir() and not (out / MANIFEST).exists()


def finish_shards(out: Path) -> Iterator[Event]:
    """Join what the shards made and write the manifest; raises UserError naming those that are missing."""
    names = sorted(path.name for path in (out / SHARDS).iterdir() if path.is_dir())
    if not names:
        raise UserError(f"{out.name} was begun in shards: call build-corpus --out {out} --shard 1/N first.")
    shard = Shard(1, int(names[0].split("-of-")[1]))
    for name, what in ((VECTORS, "vectors"), (NEIGHBORS, "neighbors")):
        if missing := _missing(out, shard, name):
            raise UserError(
                f"{'Shard' if len(missing) == 1 else 'Shards'} {listed(missing, 20)} of {out.name} "
                f"{'has' if len(missing) == 1 else 'have'} no {what} yet. Run build-corpus --out {out} "
                f"--shard {missing[0]} first."
            )
    if not (out / "neighbor_scores.npy").exists():
        _join_neighbors(out, shard)
    yield from build_corpus(out)
    for path in (out / SHARDS).rglob("*"):  # all of it stands in the corpus now
        if path.suffix in (".npy", ".npz"):
            path.unlink()


def check_count(out: Path, shard: Shard) -> None:
    """Raise UserError where the corpus was begun in another number of shards."""
    for path in (out / SHARDS).glob("*-of-*"):
        if not path.name.endswith(f"-of-{shard.count}"):
            raise UserError(
                f"{out.name} was begun in {path.name.split('-of-')[1]} shards, not in {shard.count}. Go on "
                "with as many, or build into another folder."
            )


def _keep_split(out: Path, cluster: np.ndarray, held_out: np.ndarray, window: int) -> None:
    path = out / SHARDS / "split.npz"
    partial = path.with_name("split.tmp.npz")
    np.savez(partial, cluster=cluster, held_out=held_out, window=np.array(window))
    partial.replace(path)


def _hand_out(out: Path, shard: Shard, chunks: Chunks) -> Chunks:
    """The chunks of the shard, put with the tokenizer into its folder."""
    start, stop = shard.rows(len(chunks))
    folder = shard.folder(out)
    if not (folder / "chunks.npy").exists():
        shutil.copyfile(out / "tokenizer.json", folder / "tokenizer.json")
        save_array(folder / "chunks.npy", chunks.tokens[start:stop])
    return Chunks(load_array(folder / "chunks.npy"), chunks.document[start:stop])


def _missing(out: Path, shard: Shard, name: str) -> list[str]:
    """The shards that do not have this file yet."""
    return [str(one) for one in shard.siblings() if not (one.folder(out) / name).exists()]


def _joined_index(
    out: Path, shard: Shard, chunks: Chunks, tokenizer: Tokenizer, embedder: Embedder
) -> Generator[Event, None, DenseRetriever]:
    """What searches the whole corpus, its vectors joined and indexed where that is not done yet."""
    _join_vectors(out, shard, len(chunks), embedder)
    vectors = load_array(out / VECTORS, mapped=True)
    with np.load(out / SHARDS / "split.npz", allow_pickle=False) as split:
        cluster, held_out, window = split["cluster"], split["held_out"], int(split["window"])

    def too_near(own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return excluded(chunks.document, cluster, window, own, candidates)

    rows = np.flatnonzero(~held_out[chunks.document] & has_vector(vectors))
    device = "cuda" if gpu_available()[0] else "cpu"
    index, _ = yield from index_chunks(out, vectors, rows, too_near, device, shards=shard.count)
    return DenseRetriever(index, embedder, tokenizer.decode, too_near)


def _join_vectors(out: Path, shard: Shard, total: int, embedder: Embedder) -> None:
    """Write vectors.npy of the corpus; UserError where a shard's were made by another embedder."""
    if (out / VECTORS).exists():
        return
    partial = out / "vectors.joined"
    with partial.open("wb") as file:
        file.write(npy_header(total, embedder.dim))
        for one in shard.siblings():
            folder = one.folder(out)
            kept = json.loads((folder / "vectors.json").read_text("utf-8"))
            if kept["made_from"] != sources_of(folder, embedder.fingerprint):
                raise UserError(
                    f"The vectors of shard {one} of {out.name} were made by another version of the embedder "
                    f"{embedder.name}, or from other chunks. Remove {folder} and run this shard again."
                )
            first, end = one.rows(total)
            for start in range(0, end - first, EMBED_BLOCK):
                part = load_array(folder / VECTORS, mapped=True)
                file.write(np.ascontiguousarray(part[start : start + EMBED_BLOCK]).tobytes())
        os.fsync(file.fileno())
    about: dict[str, Any] = {"made_from": sources_of(out, embedder.fingerprint), "given": 0}
    write_atomically(out / "vectors.json", json.dumps(about).encode())
    partial.replace(out / VECTORS)


def _join_neighbors(out: Path, shard: Shard) -> None:
    total = len(load_array(out / "chunks.npy", mapped=True))
    for name in ("ids", "scores"):
        path, at = out / f"neighbor_{name}.npy", 0
        partial, joined = path.with_name(path.name + ".tmp"), None
        for one in shard.siblings():
            part = load_array(one.folder(out) / NEIGHBORS)[name]
            if joined is None:
                joined = np.lib.format.open_memmap(partial, "w+", part.dtype, (total, part.shape[1]))
            joined[at : at + len(part)] = part
            at += len(part)
        assert joined is not None
        joined.flush()
        partial.replace(path)


def _search(out: Path, shard: Shard, chunks: Chunks, retriever: DenseRetriever, k: int) -> Iterator[Event]:
    """The neighbors of the shard's chunks, kept block by block, so that a kill costs one block."""
    folder = shard.folder(out)
    if (folder / NEIGHBORS).exists():
        return
    vectors, (start, stop) = load_array(out / VECTORS, mapped=True), shard.rows(len(chunks))
    kind = np.dtype([("ids", "<i4", (k,)), ("scores", "<f4", (k,))])
    part, index = folder / "neighbors.part", folder / "neighbors.index"
    if not index.exists() or index.read_text() != file_hash(out / "index.json"):
        part.write_bytes(b"")  # found in another index
        index.write_text(file_hash(out / "index.json"))
    done = part.stat().st_size // kind.itemsize // SEARCH_BLOCK * SEARCH_BLOCK
    with part.open("r+b") as file:
        file.truncate(done * kind.itemsize)
        file.seek(0, os.SEEK_END)
        while start + done < stop:
            found = search_block(vectors, retriever, k, start + done, stop)
            rows = np.empty(len(found.ids), kind)
            rows["ids"], rows["scores"] = found.ids, found.scores
            file.write(rows.tobytes())
            file.flush()
            done += len(rows)
            yield Progress("neighbors", done, stop - start)
    save_array(folder / NEIGHBORS, np.fromfile(part, kind))
    part.unlink()


def run_build(out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Build or change the corpus prepared in `out`, alone and on record; a stop costs the stage it is in."""
    read_corpus_config(out)
    with claim(out):
        cut_back(out / "events.jsonl", 0)
        # a change that was cut off comes first: its corpus was whole, however it was built
        in_shards = begun_in_shards(out) and not is_pending(out)
        yield from record(out, _until(stop, finish_shards(out) if in_shards else carry_out(out)))


def run_shard(out: Path, shard: Shard, stop: Callable[[], bool]) -> Iterator[Event]:
    """Do what there is to do of one shard of the corpus prepared in `out`, on a record of its own."""
    read_corpus_config(out)
    check_count(out, shard)
    folder = shard.folder(out)
    with claim(folder):
        cut_back(folder / "events.jsonl", 0)
        yield from record(folder, _until(stop, build_shard(out, shard)))


def _until(stop: Callable[[], bool], events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if stop() and not isinstance(event, Finished):
            yield Stopped()
            return


def ensure_sample(corpus: str, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Build the sample corpus that is meant by "sample:NAME", where it is not built yet.

    Raises UserError where it was stopped before its end: nothing can go on without it.
    """
    if corpus.startswith(SAMPLE):
        folder = prepare_sample(data_home()[0], corpus.removeprefix(SAMPLE))
        if not is_built(folder):
            yield from run_build(folder, stop)
            if not is_built(folder):
                raise UserError(f"The sample corpus {corpus} was not built to its end. Call again to go on.")


def build_on_ray(out: Path, count: int) -> Iterator[Event]:
    """Build the corpus that `prepare_corpus` wrote down, in `count` shards, yielding progress.

    It joins the cluster that RAY_ADDRESS names, or starts one here. Raises UserError where Ray is not
    installed, and what a shard raises.
    """
    if count < 1:
        raise UserError(f"There cannot be {count} shards. Name 1 or more.")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "Ray is not installed. Install it with `pip install -r requirements-ray.txt` (for an installed "
            "package: `pip install 'retro_demo[ray]'`), or start the shards by another scheduler: "
            "build-corpus SOURCE --out DIR --shard 1/3."
        ) from error
    read_corpus_config(out)
    yield Started("corpus", about={"shards": count})
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    shards = [{"out": str(out.resolve()), "number": number, "count": count} for number in range(1, count + 1)]
    for stage in ("vectors", "neighbors"):
        called = ray.data.from_items(shards, override_num_blocks=count).map(_call)
        for done, row in enumerate(called.iter_rows(), start=1):
            if row["error"]:
                raise UserError(row["error"])
            yield Progress(stage, done, count)
    manifest = json.loads((out / MANIFEST).read_text("utf-8"))
    yield built(manifest)


def _call(row: dict[str, Any]) -> dict[str, Any]:
    """In a worker: one call of a shard."""
    try:
        for _ in run_shard(Path(row["out"]), Shard(row["number"], row["count"]), lambda: False):
            pass
        return {"error": ""}
    except UserError as error:
        return {"error": str(error)}
