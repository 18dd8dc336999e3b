"""Vectors on disk: a kill changes no bit, and what is of another origin is never gone on with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retro_demo.corpus import embedding
from retro_demo.corpus.embedding import embed_chunks, give_vectors
from retro_demo.corpus.store import Chunks, load_corpus
from retro_demo.errors import UserError
from retro_demo.files import load_array
from retro_demo.paths import STATIC_FOLDER
from retro_demo.retrieval.embedders import StaticEmbedder

BLOCK = 50


class ByBatch:
    """An embedder whose floats depend on what is embedded together, as those of a transformer do."""

    name, dim, fingerprint = "by-batch", 3, "by-batch"

    def embed(self, texts):
        return np.array([[len(texts), len(text), hash(text) % 97] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(embedding, "EMBED_BLOCK", BLOCK)


@pytest.fixture
def folder(tmp_path, small_folder) -> Path:
    """A corpus with its chunks and without its vectors."""
    shutil.copytree(small_folder, tmp_path / "c")
    for name in ("vectors.npy", "vectors.json"):
        (tmp_path / "c" / name).unlink()
    return tmp_path / "c"


def embed(folder: Path, embedder, blocks: int = 10_000) -> np.ndarray | None:
    """Embed, at most so many blocks; the vectors where they are done."""
    corpus = load_corpus(folder)
    events = embed_chunks(folder, corpus.chunks, corpus.tokenizer, embedder)
    for _, _ in zip(range(blocks), events, strict=False):
        pass
    return load_array(folder / "vectors.npy") if (folder / "vectors.npy").exists() else None


@pytest.mark.parametrize("torn", [0, 1, 13, 12 * 7])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_after_any_cut_the_vectors_are_those_of_one_run(folder, tmp_path, blocks, torn):
    shutil.copytree(folder, tmp_path / "whole")
    whole = embed(tmp_path / "whole", ByBatch())
    assert embed(folder, ByBatch(), blocks) is None
    with (folder / "vectors.part").open("ab") as file:
        file.write(b"x" * torn)  # what a kill left of the next block

    resumed = embed(folder, ByBatch())

    assert whole is not None
    assert np.array_equal(resumed, whole)


def test_a_process_killed_at_its_work_is_gone_on_with(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "whole")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from retro_demo.corpus import embedding; from retro_demo.corpus.store import load_corpus\n"
        "from retro_demo.retrieval.embedders import STATIC_FOLDER, StaticEmbedder\n"
        f"embedding.EMBED_BLOCK = {BLOCK}\n"
        "c = load_corpus(Path(sys.argv[1]))\n"
        "embedder = StaticEmbedder(STATIC_FOLDER)\n"
        "for event in embedding.embed_chunks(c.folder, c.chunks, c.tokenizer, embedder):\n"
        "    print(event.done, flush=True)\n"
        "    time.sleep(600 if event.done >= 100 else 0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 100:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    embedder, texts = StaticEmbedder(STATIC_FOLDER), []
    real = embedder.embed
    embedder.embed = lambda part: texts.extend(part) or real(part)

    resumed = embed(folder, embedder)

    assert len(texts) == len(load_corpus(folder).chunks) - 100
    assert np.array_equal(resumed, embed(tmp_path / "whole", StaticEmbedder(STATIC_FOLDER)))


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("what", ["embedder", "tokenizer.json", "chunks.npy"])
def test_vectors_of_another_origin_are_refused_half_done_or_done(folder, what, done):
    embed(folder, ByBatch(), 10_000 if done else 1)
    corpus = load_corpus(folder)
    embedder = ByBatch()
    if what == "embedder":
        embedder.fingerprint = "newer"
    else:
        content = (folder / what).read_bytes()
        (folder / what).write_bytes(content[:-1] + b" ")

    with pytest.raises(UserError, match="Build the corpus into a new folder"):
        list(embed_chunks(folder, corpus.chunks, corpus.tokenizer, embedder))


def test_given_vectors_are_kept_and_the_rest_is_embedded_in_blocks_after_them(folder):
    corpus = load_corpus(folder)
    given = np.arange(90, dtype=np.float32).reshape(30, 3)
    texts: list[str] = []

    class Noting(ByBatch):
        def embed(self, part):
            texts.extend(part)
            return super().embed(part)

    give_vectors(folder, given, np.arange(7, 30), len(corpus.chunks), "by-batch")
    assert embed(folder, Noting(), 1) is None
    made = embed(folder, Noting())

    assert made is not None
    assert np.array_equal(made[:23], given[7:])
    assert len(texts) == len(corpus.chunks) - 23


def test_no_more_than_a_block_of_vectors_is_in_memory(folder):
    corpus = load_corpus(folder)
    most = 0

    class Counting(ByBatch):
        def embed(self, part):
            nonlocal most
            most = max(most, len(part))
            return super().embed(part)

    list(
        embed_chunks(
            folder, Chunks(corpus.chunks.tokens, corpus.chunks.document), corpus.tokenizer, Counting()
        )
    )

    assert most == BLOCK
    assert isinstance(load_array(folder / "vectors.npy", mapped=True), np.memmap)
