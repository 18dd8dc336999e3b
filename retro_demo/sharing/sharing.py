"""What stands in an export: its files, its manifest and its format version.

An export is a folder (or a .zip of it) that holds a run, or a corpus alone:

    export.json          the manifest: format, kind, name, corpus, every file with bytes and sha256
    README.md            the model card (a run only), for people; an import does not read it
    config.json model.safetensors tokenizer.json events.jsonl      as in a run folder
    state.safetensors    optimizer and generators, where asked: with it an imported run trains on
    best.safetensors     with a state: the best save beside the last. Without one model.safetensors is
                         whichever of both the run is used with
    evidence/            of a MARGE: what each re-index found
    evaluation.json      figures of these weights, for programs; an import does not read it
    corpus/              text, tokenizer, vectors and index, where asked; the index is made anew on import

Nothing in it is a pickle. Format 0 is a plain run folder as earlier releases left it, without export.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retro_demo.errors import UserError
from retro_demo.output_folder import EXPORT, EXPORTED
from retro_demo.runs.checkpoint import BEST, LAST, STATE

FORMAT = 1
RUN = ["config.json", LAST, "tokenizer.json", "events.jsonl"]
CORPUS = ["documents.jsonl", "reading.json", "tokenizer.json", "corpus.json", "vectors.npy"]
"""What an import reads of a corpus; all else is made from it."""
MADE_ANEW = [
    "config.json",
    "chunks.npy",
    "chunk_documents.npy",
    "neighbor_ids.npy",
    "neighbor_scores.npy",
    "vectors.json",
    "index.json",
]

OF_DOCUMENTS = ("corpus/reading.json", "corpus/corpus.json")
"""They grow with the number of documents: a build writes about 20 bytes of each, a change up to 100."""
MOST_BYTES = {
    EXPORT: 4_000_000,
    "config.json": 1_000_000,
    "tokenizer.json": 32_000_000,
    "events.jsonl": 16_000_000,
    "corpus/tokenizer.json": 32_000_000,
    **dict.fromkeys(OF_DOCUMENTS, 64_000_000),
}
"""Of files that are read into memory whole; tensors are bound by their own headers."""
DOCUMENTS = "corpus/documents.jsonl"
STORED_OVER_TEXT = 8
"""How many times its text documents.jsonl may hold: for 20 bytes of text it has about 130."""
LEAST = 1_000_000
"""Bytes that each file of a corpus may have in any case."""
MOST_BRACKETS = 1_000_000
"""Objects and lists in a JSON file; each takes 60 bytes of memory and more, and may be written in three."""
STRING = re.compile(rb'"[^"]*"')

EVIDENCE = re.compile(r"evidence/[0-9]{6,9}\.safetensors")
LEFT_ALONE = re.compile(
    r"README\.md|LICENSE|evaluation\.json|imported\.json|lock|pid|log\.txt|example\.(json|safetensors)"
    r"|evaluations?/.*|corpus/index(-[0-9]+)?\.faiss|corpus/(events\.jsonl|lock|log\.txt|bm25.*\.safetensors)"
    rf"|corpus/({'|'.join(map(re.escape, MADE_ANEW))})"
)
"""What may stand in an export or run folder and is never read by an import."""


@dataclass(frozen=True)
class CorpusNote:
    """The corpus of an export, in words: `shipped` is the name of the sample that it is, "" = none."""

    title: str
    fingerprint: str
    shipped: str = ""


@dataclass(frozen=True)
class Manifest:
    """export.json: `files` are path -> (bytes, sha256)."""

    kind: str
    name: str
    corpus: CorpusNote
    files: dict[str, tuple[int, str]]
    format: int = FORMAT


def is_read(name: str) -> bool:
    """Whether an import reads a file of this path; raises UserError for one that belongs to no export."""
    if name in (EXPORT, *RUN, STATE, BEST) or EVIDENCE.fullmatch(name):
        return True
    if name.removeprefix("corpus/") in CORPUS and name.startswith("corpus/"):
        return True
    if LEFT_ALONE.fullmatch(name):
        return False
    raise UserError(
        f"{name[:80]!r} belongs to no export of this app. Remove it, if you trust the rest, and import again."
    )


def most_bytes(most_text: int) -> dict[str, int]:
    """How large each of the files may be, where a corpus may hold so many bytes of text (0: any number)."""
    if not most_text:
        return MOST_BYTES
    of_documents = {name: min(MOST_BYTES[name], max(LEAST, most_text)) for name in OF_DOCUMENTS}
    return MOST_BYTES | of_documents | {DOCUMENTS: max(LEAST, STORED_OVER_TEXT * most_text)}


def hash_of(path: Path) -> tuple[int, str]:
    """(bytes, sha256) of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def write_manifest(folder: Path, kind: str, name: str, corpus: CorpusNote) -> Manifest:
    """Write export.json over all files that the folder holds by now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): hash_of(path) for path in paths}
    manifest = Manifest(kind, name, corpus, files)
    values = asdict(manifest) | {"files": {n: {"bytes": b, "sha256": h} for n, (b, h) in files.items()}}
    (folder / EXPORT).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest; raises UserError where it is none, or of a later format."""
    values = read_json(path)
    form = values.get("format")
    if not isinstance(form, int) or isinstance(form, bool) or form < 1:
        raise UserError(f"{EXPORT} has the format {str(form)[:40]}, which is none. Export the run anew.")
    if form > FORMAT:
        raise UserError(
            f"This export has format {form}, and this version reads up to {FORMAT}. Update retro_demo."
        )
    try:
        corpus = CorpusNote(**values["corpus"])
        files = {name: (about["bytes"], about["sha256"]) for name, about in values["files"].items()}
        manifest = Manifest(values["kind"], values["name"], corpus, files, form)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{EXPORT} is not the manifest of an export ({error}). Export anew.") from error
    texts = [manifest.name, corpus.title, corpus.fingerprint, corpus.shipped]
    fits = (
        all(isinstance(text, str) and len(text) <= 200 for text in texts)
        and manifest.kind in EXPORTED
        and all(type(size) is int and isinstance(digest, str) for size, digest in files.values())
    )
    if not fits:
        raise UserError(f"{EXPORT} holds values that no export has. Export the run or corpus anew.")
    return manifest


def without_strings(data: bytes) -> bytes:
    """A JSON text in UTF-8 without its strings: what makes values of it, seen before any of them is made."""
    return STRING.sub(b"", data.replace(rb"\\", b"").replace(rb"\"", b""))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UserError where it is none, or would take far more memory."""
    data = path.read_bytes()
    bare = without_strings(data)
    if bare.count(b"{") + bare.count(b"[") > MOST_BRACKETS:
        raise UserError(
            f"{path.name} holds more than {MOST_BRACKETS:,} objects and lists, which no such file does. "
            "Export anew."
        )
    try:
        values = json.loads(data.decode())  # of bytes, json would take UTF-16 too
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is no JSON file ({type(error).__name__}). Export anew.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path.name} holds no JSON object. Export anew.")
    return values
