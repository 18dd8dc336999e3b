"""A target of benchmarks/fuzz.py: folders of somebody's own files, which no verb may change.

Each input is a tree of files with names like ours and contents like anybody's. Every verb is pointed at it,
as the folder to write to and as the one to read. What is theirs must be the same afterwards, bytes, times
and modes; where they left something at the place named, the verb must refuse.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fuzz import Target
from retro_demo.cli import main

FILES = (
    *("config.json", "corpus.json", "export.json", "reading.json", "index.json", "tokenizer.json"),
    *("documents.jsonl", "events.jsonl", "vectors.npy", "chunks.npy", "index.faiss", "table.npz"),
    *("model.safetensors", "state.safetensors", "bm25.safetensors", "README.md", "log.txt", "world.jsonl"),
    *("lock", "pid", "stop", "signal", "ticket", "config.json.tmp", "tokenizer.json.tmp", "events.before"),
    *("letter.txt", "photo.jpg", ".hidden", "a table.csv", "thèse.md", "work.zip", "notes.json", "x" * 250),
)
FOLDERS = ("sources", "shards", "editions", "change", "evaluations", "corpus", "my files", ".git")
JSONS: tuple[Any, ...] = (
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 300},
    {"kind": "corpus"},
    {"kind": "corpus", "sources": ["poems/"], "config": {"language": "en"}},
    {"kind": "corpus", "sources": "poems/", "config": None},
    {"kind": "evaluation", "format": 1},
    {"kind": "run", "format": 1, "model": "retro", "training": True},
    {"model": "retro", "network": {}, "training": {}, "corpus": "mine"},
    {"format": 1, "kind": "run", "files": []},
    {"format": 1, "hashes": {}, "statistics": {}, "warnings": [], "fingerprint": "0123456789abcdef"},
    {"name": "left-pad", "version": "1.0.0", "scripts": {"test": "exit 1"}},
    {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
    [{"text": "my own words"}],
    "a text",
    7,
    None,
)
OTHERS = (
    b"{",
    b"[" * 100_000,
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b'{"text": "My own words, which are nowhere else."}\n' * 9,
    b'{"event": "finished"}\n{"event": "step", "step": 3}\n',
    b"Dear Sir,\nthe islands export fish.\n" * 20,
    b"1234\n",
    b"driven",
    b"1" * 5000,
    b"\x93NUMPY\x01\0junk",
    b"PK\x03\x04junk",
    b"\x10\0\0\0\0\0\0\0junk",
)
NEW = "new by a verb"
QUICK = ["--chunk-len", "8", "--vocab-size", "400", "--num-neighbors", "4"]
SHAPE = ["--dim", "16", "--depth", "2", "--num-heads", "2"]
BRIEF = ["--steps", "5", "--seq-len", "32", "--batch-size", "2", "--eval-tokens", "100", "--device", "cpu"]
Marks = dict[str, tuple[Any, ...]]


def output_targets(source: Path, corpus: Path, run: Path, exports: dict[str, Path]) -> dict[str, Target]:
    """The target; it needs a file of documents, a corpus built from it, a run and exports."""
    more = source.with_name("more.jsonl")
    more.write_text(json.dumps({"id": "more", "text": "Island 99 exports nothing but tin and maps. " * 9}))
    places = {"source": source, "more": more, "corpus": corpus, "run": run} | {
        f"export {name}": path for name, path in exports.items()
    }
    return {"output folders": partial(_outputs, {name: str(path) for name, path in places.items()})}


def writers(there: dict[str, str], out: str) -> list[list[str]]:
    """Command lines of all verbs that write, to `out`; each does its work where that is free."""
    retro = ["--enc-dim", "16", "--cca-layers", "2"]
    return [
        ["build-corpus", there["source"], "--out", out, *QUICK],
        ["build-corpus", there["source"], "--out", out, "--shard", "1/2", *QUICK],
        ["train", "retro", "--corpus", there["corpus"], "--out", out, *SHAPE, *retro, *BRIEF],
        ["train", "lm", "--corpus", there["corpus"], "--out", out, *SHAPE, *BRIEF],
        ["forget", there["corpus"], "islands.jsonl#1", "--out", out],
        ["add-documents", there["corpus"], there["more"], "--out", out],
        ["export", there["run"], "--out", out],
        ["export", there["corpus"], "--out", out],
        ["import", there["export retro"], "--as", out],
        ["import", there["export corpus"], "--as", out],
        ["evaluate", there["run"], "--out", out, "--device", "cpu"],
    ]


def goers_on(out: str) -> list[list[str]]:
    """Command lines that go on with what is in `out`: nothing of ours is there."""
    return [
        ["build-corpus", "--out", out],
        ["build-corpus", "--out", out, "--shard", "1/2"],
        ["train", "--out", out],
        ["train", "--out", out, "--steps", "9"],
        ["evaluate", "--out", out],
    ]


def readers(there: dict[str, str], tree: str, elsewhere: str) -> list[list[str]]:
    """Command lines that read what is theirs, or would change it in place."""
    return [
        ["forget", tree, "letter"],
        ["add-documents", tree, there["source"]],
        ["export", tree, "--out", elsewhere],
        ["import", tree, "--as", elsewhere],
        ["evaluate", tree],
        ["search", tree, "fish"],
        ["generate", tree, "--prompt", "fish"],
        ["explain", tree, "--text", "Island 3 exports fish"],
        ["weigh", tree, "letter"],
        ["push", tree, "--repo", "nobody/nothing"],
        ["train", "lm", "--corpus", tree, "--out", elsewhere],
        ["evaluate", there["run"], "--corpus", tree, "--out", elsewhere],
        ["build-corpus", tree, "--out", elsewhere, *QUICK],
    ]


def _outputs(there: dict[str, str], rng: random.Random, folder: Path) -> object:
    folder = folder / "home"
    folder.mkdir()
    tree, elsewhere = folder / "theirs", folder.parent / "elsewhere"
    a_tree(rng, tree)
    (folder / ".theirs.tmp").mkdir()  # as what is under way beside a folder may be called
    (folder / ".theirs.tmp" / "letter.txt").write_text("mine")
    out, is_free = _a_place(rng, tree)
    lines = writers(there, str(out))
    for words in rng.sample(lines, 3) if is_free else lines:  # where they do their work they take a while
        _try(words, folder, writes=is_free, code=(0, 130) if is_free else (2,))
    for words in goers_on(str(out)):
        _try(words, folder, code=(2,))
    packed = tree / "work.zip"
    new = not os.path.lexists(packed)
    _try(["export", there["run"], "--out", str(packed)], folder, writes=new, code=(0,) if new else (2,))
    for words in readers(there, str(tree), str(elsewhere)):
        _try(words, folder)
        shutil.rmtree(elsewhere, ignore_errors=True)
    return is_free


def _try(
    words: list[str], folder: Path, *, writes: bool = False, code: tuple[int, ...] = (0, 2, 130)
) -> None:
    """Give one command, which must leave with such a code and change nothing below the folder.

    `writes`: it may put something new there, which is taken away again.
    """
    before = marks(folder)
    left, said = _called(words)
    assert left in code, f"{words} left with {left}: {said}"
    after = marks(folder)
    if writes:
        _take_away(folder, [name for name in sorted(after) if name not in before])
        # folders that something new lay in may look touched
        before, after = _without_times(before), _without_times(marks(folder))
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    assert not changed, f"{words} changed {changed}: {said}"


def _take_away(folder: Path, names: Sequence[str]) -> None:
    for path in (folder / name for name in names):
        if os.path.lexists(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _without_times(found: Marks) -> Marks:
    return {name: mark[:2] if stat.S_ISDIR(mark[0]) else mark for name, mark in found.items()}


def _a_place(rng: random.Random, tree: Path) -> tuple[Path, bool]:
    """Where a verb is told to write, and whether it may: what is theirs, below it or a way to it."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    folders = sorted(path for path in tree.rglob("*") if path.is_dir())
    how = rng.random()
    if how < 0.15:
        return tree / NEW / "and below", True
    if how < 0.25 and files:
        return rng.choice(files), False
    if how < 0.3 and files:
        return rng.choice(files) / "below", False
    if how < 0.35:
        return tree / ("long" * 70), False
    if how < 0.4:
        return tree / "nul\0byte", False
    if how < 0.5 and folders:
        place = rng.choice(folders)
        return place, not any(place.iterdir())
    if how < 0.6:
        link = tree.with_name("link")
        link.symlink_to(tree)
        return link, not any(tree.iterdir())
    if how < 0.65:
        link = tree.with_name("link")
        link.symlink_to(tree / "nowhere")
        return link, False
    return tree, not any(tree.iterdir())


def a_tree(rng: random.Random, tree: Path, depth: int = 0) -> None:
    """A folder of somebody's files: named and filled as ours may be, linked, closed, nested or empty."""
    tree.mkdir()
    for name in rng.sample(FILES, rng.choice((0, 1, 1, 1, 2, 3, 5))):
        _a_file(rng, tree / name)
    for name in rng.sample(FOLDERS, rng.choice((0, 0, 1, 2)) if depth < 2 else 0):
        a_tree(rng, tree / name, depth + 1)
    os.utime(tree, ns=(rng.randrange(10**18), rng.randrange(10**18)))


def _a_file(rng: random.Random, path: Path) -> None:
    how = rng.random()
    if how < 0.05:
        path.symlink_to(rng.choice(("nowhere", ".", "letter.txt", "/dev/null")))
    elif how < 0.1:
        path.mkdir()
    elif how < 0.13:
        os.mkfifo(path)  # who opens it waits for ever
    else:
        is_json = ".json" in path.name and rng.random() < 0.8
        path.write_bytes(json.dumps(rng.choice(JSONS)).encode() if is_json else rng.choice(OTHERS))
        path.chmod(rng.choice((0o644, 0o444, 0o600)))
        os.utime(path, ns=(rng.randrange(10**18), rng.randrange(10**18)))


def marks(folder: Path) -> Marks:
    """All that stands below a folder: kind, mode, size, time of change, and content or where a link leads."""
    found: Marks = {}
    for root, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            path = Path(root, name)
            at = path.lstat()
            content = ""
            if stat.S_ISREG(at.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(at.st_mode):
                content = os.readlink(path)
            size = 0 if stat.S_ISDIR(at.st_mode) else at.st_size
            found[path.relative_to(folder).as_posix()] = (at.st_mode, size, at.st_mtime_ns, content)
    return found


def _called(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and what was said, of one command that is stopped as soon as it looks."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main.main(list(words), stop=lambda: True)
    said = out.getvalue() + error.getvalue()
    assert "Traceback" not in said, f"{words}: {said[-500:]}"
    assert code in (0, 2, 130), f"{words} left with {code}: {said[-500:]}"
    assert code != 2 or len(error.getvalue().strip().splitlines()) == 1, f"{words}: {said[-500:]}"
    return code, said[-500:]
