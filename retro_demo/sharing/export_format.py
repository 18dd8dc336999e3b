"""The format of an export, and the checks before anything in one is believed.

An export is a folder (or a .zip of it) that holds a run, or a corpus alone:

    export.json          the manifest: format, kind, name, corpus, every file with bytes and sha256
    README.md            the model card (a run only), for people; an import does not read it
    config.json model.safetensors tokenizer.json events.jsonl      as in a run folder
    state.safetensors    optimizer and generators, where asked: with it an imported run trains on
    best.safetensors     with a state: the best save beside the last. Without one model.safetensors is
                         whichever of both the run is used with
    evidence/            of a MARGE: what each re-index found
    evaluation.json      figures of these weights, for programs; an import does not read it
    corpus/              text, tokenizer, vectors and index, where asked; an import makes its own index

Nothing in it is a pickle. Format 0 is a plain run folder as earlier releases left it, without export.json.

Each file is checked before it is believed: config, events, documents, the headers of tensor files. A check
reads a line, a header or one tensor at a time, and raises a UserError.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tokenize import TokenError  # numpy mends heads of Python 2 with it
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.embedder_choice import COUNTS
from retro_demo.documents.sources import USES, Document
from retro_demo.errors import UserError
from retro_demo.events import ENDINGS, PARTS, wrong_with
from retro_demo.evidence.reindex import load_reindexing
from retro_demo.files import Header, finite_tensors, read_header
from retro_demo.models.memory import shapes_of
from retro_demo.output_folder import EXPORT, EXPORTED
from retro_demo.pretrained.tokenizer import PretrainedTokenizer, load_tokenizer
from retro_demo.runs import checkpoint, resuming
from retro_demo.runs.checkpoint import BEST, LAST, STATE, AnyRun, read_any_config

FORMAT = 1
RUN = ["config.json", LAST, "tokenizer.json", "events.jsonl"]
CORPUS = ["documents.jsonl", "reading.json", "tokenizer.json", "corpus.json", "vectors.npy", COUNTS]
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
    f"corpus/{COUNTS}": 4_000_000,
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


MOST_NUMBER = 1 << 50
LINE_CHARS = 1_000_000
DOCUMENT_CHARS = 64_000_000
MOST_BARE = 1000  # bytes of a document outside of its texts: braces, colons and commas
MOST_FIGURE = 1e30
TRAINING = {"progress", "warned", "step", "evaluated", "reindexed", "saved", "started", *ENDINGS}
"""The events of a training."""


def check_events(path: Path) -> None:
    """Raise UserError where a line is no event of a training, has other fields, or numbers out of range."""
    for number, event in _lines(path, LINE_CHARS):
        if wrong := wrong_with(event) or _strange(event):
            raise UserError(f"Line {number} of {path.name} is no event of a training: {wrong}. Export anew.")


def _strange(event: dict[str, Any]) -> str:
    """Why an event is none of a training, "" = it is one."""
    kind = event["event"]
    if kind not in TRAINING or not is_plain(event):
        return "no training tells that"
    if kind == "finished":
        counts = [event.get("step", 0), event.get("parameters", 0)]
        return "" if all(type(one) is int and _in_range(one) for one in counts) else "a count is none"
    if set(event) - {"event", *(part.name for part in PARTS[kind])}:
        return "it has fields that no event has"
    numbers = [value for value in event.values() if isinstance(value, (int, float))]
    numbers += [value for arm in event.get("arms", {}).values() for value in arm.values()]
    return "" if all(map(_in_range, numbers)) else "a number is none"


def _in_range(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < (MOST_NUMBER if type(value) is int else MOST_FIGURE)


def is_plain(value: Any, depth: int = 6) -> bool:
    """Whether a value is figures and short texts, not nested deeply."""
    if isinstance(value, dict):
        return depth > 0 and all(len(n) <= 200 and is_plain(v, depth - 1) for n, v in value.items())
    if isinstance(value, list):
        return depth > 0 and len(value) <= 100_000 and all(is_plain(v, depth - 1) for v in value)
    return value is None or isinstance(value, (bool, int, float)) or len(value) <= 20_000


def check_documents(path: Path) -> tuple[int, int]:
    """The number of documents and the bytes of their texts; raises UserError where a line is none of ours."""
    names = {f.name for f in fields(Document)}
    needed = names - {"use"}
    count = held = 0
    for number, values in _lines(path, DOCUMENT_CHARS, MOST_BARE):
        if not needed <= set(values) <= names or not all(isinstance(v, str) for v in values.values()):
            raise UserError(f"Line {number} of {path.name} is no document. Export the corpus anew.")
        if values.get("use", "") not in ("", *USES):
            raise UserError(f"Line {number} of {path.name} has the use {values['use'][:40]!r}. Export anew.")
        count += 1
        try:
            held += len(values["text"].encode())
        except UnicodeEncodeError as error:
            raise UserError(f"Line {number} of {path.name} holds what is no text. Export anew.") from error
    return count, held


def check_reading(path: Path, documents: int) -> None:
    """Raise UserError where reading.json is not what a build of so many documents keeps."""
    kept = read_json(path)
    held_out, history = kept.get("held_out", []), kept.get("history", [])
    fits = (
        set(kept) <= {"warnings", "sections", "held_out", "history"}
        and isinstance(kept.get("sections"), bool)
        and isinstance(kept.get("warnings"), list)
        and all(isinstance(text, str) and len(text) <= 2000 for text in kept["warnings"])
        and isinstance(held_out, list)
        and all(side in (True, False, None) for side in held_out)
        and len(held_out) in ((documents,) if "held_out" in kept else (0,))
        and isinstance(history, list)
        and all(isinstance(entry, dict) and is_plain(entry) for entry in history)
    )
    if not fits:
        raise UserError(f"{path.name} is not what a build of {documents} documents keeps. Export anew.")


def _lines(path: Path, most: int, bare: int = LINE_CHARS) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and JSON object of each line, none longer than `most` bytes, or `bare` outside of its texts."""
    with path.open("rb") as file:
        for number in range(1, 1 << 40):
            line = file.readline(most + 1)
            if not line:
                return
            try:
                if len(line) > most:
                    raise ValueError(f"longer than {most:,} bytes")
                if len(line) > bare and len(without_strings(line)) > bare:
                    raise ValueError(f"more than {bare:,} bytes that are no text")
                values = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise UserError(f"Line {number} of {path.name} is no JSON ({error}). Export anew.") from error
            if not isinstance(values, dict):
                raise UserError(f"Line {number} of {path.name} is no JSON object. Export anew.")
            yield number, values


LANGUAGE = re.compile(r"[A-Za-z0-9_-]{0,32}")
EVIDENCE_KINDS = {
    "target": ("I32", 1),
    "evidence": ("I32", 1),
    "relevance": ("F32", 1),
    "rows": ("I64", 1),
    "vectors": ("F16", 2),
}
MORE_EVIDENCE = {"matrix": (("F32", 2), ("F64", 2)), "weights": (("F32", 1),)}
"""What a file of evidence may hold beside these."""


def check_config(folder: Path) -> AnyRun:
    """The config of a run in a staged export, every value of the kind and in the range that it must have."""
    config = read_any_config(folder)
    if len(config.languages) > 1000 or not all(LANGUAGE.fullmatch(one) for one in config.languages):
        raise UserError("config.json names languages that are none. Export the run anew.")
    if config.retrieves != config.kind.retrieves:
        raise UserError(
            f"config.json calls the run a {config.model}, but its network has "
            f"{'some' if config.retrieves else 'no'} layers that read neighbors. Export the run anew."
        )
    return config


def check_weights(path: Path, config: AnyRun) -> None:
    """Raise UserError where model.safetensors is not of the config's network and training, or not finite."""
    header = checkpoint.check_weights(path, config.network)
    _ = header.held_out  # or it is no number
    if _step(header, config) == 0:
        raise UserError(f"{path.name} was saved at step 0: there is nothing trained in it.")
    for _ in finite_tensors(path):
        pass


def check_state(path: Path, config: AnyRun) -> None:
    """Raise UserError where state.safetensors is not, or holds generators that this torch does not take."""
    header = resuming.check_state(path, shapes_of(config.network))
    _step(header, config)
    header.number("processes", 1)
    for name, tensor in finite_tensors(path):
        if name.startswith("generator.cpu"):
            try:
                torch.Generator().set_state(tensor)
            except RuntimeError as error:
                raise UserError(f"{path.name} holds {name}, which is no generator's state.") from error


def _step(header: Header, config: AnyRun) -> int:
    """The step of a save; raises UserError where the training has fewer."""
    step, steps = header.step, config.training.steps
    if step > steps:
        raise UserError(f"{header.path.name} was saved at step {step}, but config.json has {steps} steps.")
    return step


def check_tokenizer(path: Path, vocabulary: int | None = None, *, pretrained: bool = False) -> None:
    """Raise UserError where the file is no tokenizer of ours, or has another vocabulary than a network.

    `pretrained`: it is one of a base, which may have room for more tokens.
    """
    found = load_tokenizer(path)
    if pretrained and not isinstance(found, PretrainedTokenizer):
        raise UserError(f"{path.name} is not the tokenizer of a pretrained base. Export the run anew.")
    count = found.vocab_size
    if vocabulary is not None and (count > vocabulary if pretrained else count != vocabulary):
        raise UserError(f"{path.name} has {count} tokens, the network of config.json {vocabulary}.")


def check_evidence(path: Path) -> None:
    """Raise UserError where a file of evidence/ is not what a re-index leaves."""
    header = read_header(path)
    for name, (dtype, shape) in header.tensors.items():
        wanted = (EVIDENCE_KINDS[name],) if name in EVIDENCE_KINDS else MORE_EVIDENCE.get(name, ())
        if (dtype, len(shape)) not in wanted or max(shape) >= MOST_NUMBER:
            raise UserError(
                f"evidence/{path.name} holds {name[:80]!r} as {dtype} {list(shape)}. Export anew."
            )
    sizes = {name: shape[0] for name, (_, shape) in header.tensors.items()}
    same = [sizes.get(name) for name in ("target", "evidence", "relevance")]
    if set(EVIDENCE_KINDS) - set(sizes) or len(set(same)) > 1 or sizes["rows"] != sizes["vectors"]:
        raise UserError(f"evidence/{path.name} is not what a re-index leaves. Export anew.")
    found = load_reindexing(path.parent.parent, int(path.stem))
    if found is None or found.step != int(path.stem) or not is_plain(found.figures):
        raise UserError(f"evidence/{path.name} does not tell what it says it does. Export anew.")
    ids = (found.pairs.target, found.pairs.evidence, found.rows)
    if any(each.size and each.min() < 0 for each in ids) or not np.isfinite(found.pairs.relevance).all():
        raise UserError(f"evidence/{path.name} names passages that cannot be. Export anew.")
    weights = found.weights
    if weights is not None and not (np.isfinite(weights) & (weights > 0)).all():
        raise UserError(f"evidence/{path.name} holds weights of tokens that cannot be. Export anew.")


def check_vectors(path: Path) -> None:
    """Raise UserError where the file is not float32 rows in numpy's format, as long as its header says."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, in_columns, kind = np.lib.format.read_array_header_1_0(file, max_header_size=1000)
            rest = path.stat().st_size - file.tell()
        if kind != np.float32 or in_columns or len(shape) != 2 or rest != 4 * shape[0] * shape[1]:
            raise ValueError(f"{kind} {shape}")
    except (ValueError, TypeError, SyntaxError, EOFError, TokenError) as error:
        raise UserError(
            f"{path.name} is no array of vectors ({str(error)[:80]}). Export the corpus anew."
        ) from error
