"""A corpus on disk: documents, chunks and split, which chunks may be neighbors, whether its files agree.

`Corpus.excluded` is the rule which chunks may be neighbors. The parts of a stored corpus are checked against
each other, so a forged one is refused and never searched. Large files carry a checksum over samples of
their bytes: a stale index is an error, not a silent wrong answer.

This module splits and stores; it does not read uploads (documents/sources.py), embed or search.

Shapes: D documents, N chunks, C chunk length, Q queries, K neighbors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.documents.sources import Document
from retro_demo.errors import NotFound, UserError
from retro_demo.files import file_hash, load_array, write_atomically
from retro_demo.output_folder import kind_of
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.retrieval.neighbors import excluded
from retro_demo.settings import CorpusConfig, from_json
from retro_demo.tokenizer import WORD, Tokenizer

DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, EOFError)
"""What reading a file of ours raises where somebody changed it."""

FINGERPRINT = re.compile(r"[0-9a-f]{16}")  # names a folder, too
KINDS = {
    "hashes": dict,
    "statistics": dict,
    "warnings": list,
    "sections": bool,
    "fingerprint": str,
    "embedder_fingerprint": str,
}


def read_manifest(path: Path, written: bytes) -> dict[str, Any]:
    """What corpus.json says; UserError where it lacks what is read of it, or has it of another kind."""
    try:
        manifest = json.loads(written)
        kinds = KINDS | ({"marks": dict} if "marks" in manifest else {})  # early corpora have none
        wrong = [name for name, kind in kinds.items() if not isinstance(manifest[name], kind)]
        if wrong or not FINGERPRINT.fullmatch(manifest["fingerprint"]):
            raise ValueError(", ".join(wrong) or "fingerprint")
    except DAMAGED as error:
        raise UserError(
            f"{path.name} of the corpus at {path.parent} is damaged ({error}). Build the corpus anew."
        ) from error
    return manifest


def checked(corpus: Corpus) -> Corpus:
    """The corpus; ValueError where its arrays do not fit one another, or name what is not there."""
    chunks, documents, neighbors = corpus.chunks, corpus.documents, corpus.neighbor_ids
    count = len(chunks.document)
    if any(not isinstance(text, str) for one in documents for text in vars(one).values()):
        raise ValueError("a document has a field that is no text")
    if chunks.tokens.shape != (count, corpus.config.chunk_len) or chunks.document.ndim != 1:
        raise ValueError(f"{count:,} chunks have tokens of shape {chunks.tokens.shape}")
    if corpus.cluster.shape != (len(documents),) or corpus.held_out.shape != (len(documents),):
        raise ValueError(f"{len(documents):,} documents have clusters of shape {corpus.cluster.shape}")
    if neighbors.ndim != 2 or len(neighbors) != count or corpus.neighbor_scores.shape != neighbors.shape:
        raise ValueError(f"{count:,} chunks have neighbors of shape {neighbors.shape}")
    for name, array, low, high in (
        ("tokens", chunks.tokens, 0, corpus.tokenizer.vocab_size),
        ("documents of chunks", chunks.document, 0, len(documents)),
        ("neighbors", neighbors, -1, count),
    ):
        if array.dtype.kind != "i" or (array.size and not low <= array.min() <= array.max() < high):
            raise ValueError(f"{name} do not lie between {low} and {high - 1:,}")
    if corpus.neighbor_scores.dtype.kind != "f" or (np.diff(chunks.document) < 0).any():
        raise ValueError("chunks are not in the order of their documents")
    return corpus


MANIFEST = "corpus.json"
TEXT_FILES = ("documents.jsonl", "tokenizer.json", "chunks.npy", "chunk_documents.npy")
"""The files that make the fingerprint: what a run was trained on."""

KEPT_FILES = (*TEXT_FILES, "neighbor_ids.npy", "neighbor_scores.npy")
"""The files whose hashes the manifest keeps and loading checks."""

ENOUGH_GROUPS = 20
"""So many groups, and six of them can be held out: what is left is still most of the text."""


LEAST_WORDS = 0.25  # of all writing systems Shan has the fewest characters in words, 40%


@dataclass(frozen=True)
class Chunks:
    """All chunks in the order of their documents: tokens (N, C) padded with 0, document (N,).

    Chunks never cross documents. The continuation of chunk i is chunk i + 1 of the same document.
    """

    tokens: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def has_continuation(self, ids: np.ndarray) -> np.ndarray:
        """Whether each chunk (any shape; -1 = none) is followed by another one of its document."""
        after = np.minimum(ids + 1, len(self) - 1)
        return (ids >= 0) & (ids + 1 < len(self)) & (self.document[after] == self.document[ids])

    def with_continuation(self, ids: np.ndarray) -> np.ndarray:
        """ids (...), -1 = none -> tokens (..., 2 C): each chunk, then its continuation.

        Where a document ends its last chunk continues in padding, never in the next document.
        """
        chunk = np.where((ids >= 0)[..., None], self.tokens[ids], 0)
        after = np.minimum(ids + 1, len(self) - 1)
        continuation = np.where(self.has_continuation(ids)[..., None], self.tokens[after], 0)
        return np.concatenate([chunk, continuation], axis=-1).astype(np.int64)


def chunk_documents(encoded: Sequence[Sequence[int] | np.ndarray], chunk_len: int, eos_id: int) -> Chunks:
    """Cut each document's tokens, ended by `eos_id`, into chunks; the last one is padded with 0."""
    counts = np.array([-(-(len(ids) + 1) // chunk_len) for ids in encoded], dtype=np.int64)
    tokens = np.zeros((counts.sum(), chunk_len), dtype=np.int32)
    start = 0
    for ids, count in zip(encoded, counts, strict=True):
        rows = tokens[start : start + count].reshape(-1)
        rows[: len(ids)] = ids
        rows[len(ids)] = eos_id
        start += count
    return Chunks(tokens, np.repeat(np.arange(len(encoded), dtype=np.int32), counts))


def word_ids(texts: Iterable[str]) -> list[np.ndarray]:
    """Each text as numbers of its lower-case words: the unit in which duplicates are counted.

    A text of signs (braille, emoji) has hardly any words, so its characters are counted instead.
    """
    numbers: dict[str, int] = {}
    return [
        np.array([numbers.setdefault(unit, len(numbers)) for unit in _units(text.lower())], dtype=np.int64)
        for text in texts
    ]


def _units(text: str) -> Sequence[str]:
    """The words of a text, or its characters where less than LEAST_WORDS of it are in words."""
    words, characters = WORD.findall(text), "".join(text.split())
    return words if sum(map(len, words)) >= LEAST_WORDS * len(characters) else characters


def hold_out(
    groups: Sequence[str], cluster: np.ndarray, share: float, seed: int, *, least: int = 1
) -> np.ndarray:
    """Which documents are held out, bool (D,): about `share` of the groups, whole.

    Groups joined by a near-duplicate (the same number in `cluster` (D,)) go to one side together,
    so no held-out text has its twin in training. At least one group stays on either side. Of
    ENOUGH_GROUPS or more at least `least` are held out: those that the share alone draws, and others.
    """
    unit = _joined(groups, cluster)
    units = np.unique(unit)
    if share == 0 or len(units) < 2:
        return np.zeros(len(unit), dtype=bool)
    count = max(least if len(units) >= ENOUGH_GROUPS else 1, round(share * len(units)))
    chosen = np.random.default_rng(seed).permutation(units)[: min(count, len(units) - 1)]
    return np.isin(unit, chosen)


def choose_held_out(
    documents: Sequence[Document], cluster: np.ndarray, share: float, seed: int, *, least: int = 1
) -> np.ndarray:
    """Which documents are held out, bool (D,): those that say so, or a draw (`hold_out`).

    Where any document states its use, nothing is drawn: the split is the source's own. Raises
    UserError where that leaves nothing to train on.
    """
    if any(document.use for document in documents):
        if all(document.use in ("held-out", "database") for document in documents):
            raise UserError(
                "Every document is for the database or held out, so there is nothing to train on. "
                "Leave the field `use` of some documents empty."
            )
        return np.array([document.use == "held-out" for document in documents])
    return hold_out([document.group for document in documents], cluster, share, seed, least=least)


def too_few_held_out(
    documents: Sequence[Document], cluster: np.ndarray, held_out: np.ndarray, chunks: Chunks
) -> str:
    """A sentence where fewer groups are held out than a verdict needs, "" where they are enough.

    A document of one chunk does not count: retrieval reaches none of its tokens.
    """
    unit = _joined([document.group for document in documents], cluster)
    longer = np.bincount(chunks.document, minlength=len(documents)) > 1
    held, groups = len(np.unique(unit[held_out & longer])), len(np.unique(unit[longer]))
    if held >= MIN_DOCUMENTS:
        return ""
    alone = len(np.unique(unit)) == len(documents)
    named = "documents" if alone else "groups of documents"
    count = "none is" if not held else f"{held} {'is' if held == 1 else 'are'}"
    few = f"Of {groups:,} {named} of more than one chunk {count} held out"
    if not held:
        few += ", so nothing can be measured on text that a run has not seen"
    share = math.ceil(100 * MIN_DOCUMENTS / max(1, groups)) / 100
    least = f"{share:g} or more" if share < 0.5 else "0.5"  # more than half cannot be held out
    if any(document.use for document in documents):
        mend = f'Say "held-out" in the field `use` of at least {MIN_DOCUMENTS}'
    elif share <= 0.5:
        mend = f"Build the corpus anew with a larger share held out ({least})"
    else:
        mend = f"Add documents: {ENOUGH_GROUPS} or more are best"
    return (
        f"{few}. A verdict on whether retrieval helps needs at least {MIN_DOCUMENTS}. {mend}, before you "
        "train for one."
    )


def keep_split(
    documents: Sequence[Document], cluster: np.ndarray, known: Sequence[bool | None]
) -> np.ndarray:
    """Which documents of a changed corpus are held out, bool (D,): those that were, and of the new ones
    (known: None) those that say so, or that share a group or a near-duplicate with a held-out one."""
    unit = _joined([document.group for document in documents], cluster)
    new = np.array([side is None for side in known])
    held_out = np.array([side is True for side in known]) | (new & [d.use == "held-out" for d in documents])
    joined = np.isin(unit, unit[held_out])
    return held_out | (new & joined & [not d.use for d in documents])


def _joined(groups: Sequence[str], cluster: np.ndarray) -> np.ndarray:
    """The connected parts (D,) of documents that share a group or a cluster."""
    parent = list(range(len(groups)))
    first: dict[object, int] = {}
    for i, (group, number) in enumerate(zip(groups, cluster.tolist(), strict=True)):
        for key in (group, number):  # a string and an int: never equal
            parent[root_of(parent, i)] = root_of(parent, first.setdefault(key, i))
    return np.array([root_of(parent, i) for i in range(len(groups))])


@dataclass(frozen=True)
class Corpus:
    """A built corpus folder, read back."""

    folder: Path
    config: CorpusConfig
    tokenizer: Tokenizer
    documents: list[Document]
    chunks: Chunks
    cluster: np.ndarray  # (D,) the same number for near-duplicates
    held_out: np.ndarray  # (D,) bool
    database_only: np.ndarray  # (D,) bool: in the index, but in no training batch
    sections: bool  # one document, cut into sections
    neighbor_ids: np.ndarray  # (N, K), -1 = none
    neighbor_scores: np.ndarray  # (N, K)
    manifest: dict[str, Any]
    _titles: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def name(self) -> str:
        return self.folder.name

    def excluded(self, own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Which candidates (Q, K) may not be neighbors of the chunks own (Q,): bool (Q, K)."""
        return excluded(
            self.chunks.document, self.cluster, self.config.window if self.sections else 0, own, candidates
        )

    def neighbor_rows(self, ids: np.ndarray, title_len: int = 0) -> np.ndarray:
        """ids (...), -1 = none -> tokens (..., title_len + 2 C): title, chunk and continuation of each."""
        rows = self.chunks.with_continuation(ids)
        if not title_len:
            return rows
        titles = np.where((ids >= 0)[..., None], self.title_rows(title_len)[self.chunks.document[ids]], 0)
        return np.concatenate([titles, rows], axis=-1)

    def title_rows(self, length: int) -> np.ndarray:
        """Title of each document and a blank line as the last of `length` tokens (D, length), 0 before."""
        if length not in self._titles:
            self._titles[length] = _title_rows(self, length)
        return self._titles[length]

    def bytes_of_tokens(self) -> np.ndarray:
        """UTF-8 bytes that each token id stands for (V,); padding and end of text stand for none."""
        ids = range(self.tokenizer.vocab_size)
        return np.array([len(self.tokenizer.token_bytes(i)) for i in ids], dtype=np.int64)


def _title_rows(corpus: Corpus, length: int) -> np.ndarray:
    rows = np.zeros((len(corpus.documents), length), np.int64)
    end = corpus.tokenizer.encode("\n\n")
    for row, document in zip(rows, corpus.documents, strict=True):
        title = " ".join(document.title.split())
        if not title:
            continue
        ids = corpus.tokenizer.encode(title)[: max(0, length - len(end))] + end
        ids = ids[max(0, len(ids) - length) :]
        row[length - len(ids) :] = ids
    return rows


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Keep the text, one JSON object a line: a corpus can be retokenized for another run."""
    # an empty use is left out: texts stored before there was one keep their fingerprint
    kept = ({k: v for k, v in asdict(d).items() if v or k != "use"} for d in documents)
    lines = (json.dumps(document, ensure_ascii=False) for document in kept)
    write_atomically(path, "".join(line + "\n" for line in lines).encode("utf-8"))


def read_stored_documents(path: Path) -> list[Document]:
    """What `write_documents` wrote. Raises UserError where somebody changed it to what no document is."""
    documents: list[Document] = []
    with path.open(encoding="utf-8") as file:
        try:
            for line in file:
                values = json.loads(line)
                if wrong := [name for name, value in values.items() if not isinstance(value, str)]:
                    raise TypeError(f"{wrong[0]} is no string")
                documents.append(Document(**values))
        except DAMAGED as error:
            raise UserError(
                f"Line {len(documents) + 1:,} of {path.name} of the corpus at {path.parent} is no document "
                f"of this program ({_plain(error)}). Put the file back as it was, or build into a new folder."
            ) from error
    return documents


def _plain(error: Exception) -> str:
    """Why a record is none, without the names of our code."""
    reason = str(error).removeprefix("Document.__init__() ")
    return reason.replace("positional argument", "field").replace("keyword argument", "field")


def corpus_fingerprint(config: CorpusConfig, hashes: dict[str, str], embedder: str, split: str = "") -> str:
    """What a run remembers of its corpus: the text and all that shapes chunks and neighbors.

    `split` names who is held out, where that is not what the settings draw.
    """
    shape = [config.chunk_len, config.holdout, config.seed, config.num_neighbors, config.window, embedder]
    shape += [split] if split else []
    return hashlib.sha256(json.dumps([hashes, shape], sort_keys=True).encode()).hexdigest()[:16]


def load_corpus(folder: Path) -> Corpus:
    """Read a built corpus; raises UserError where it is missing, unfinished or changed by hand."""
    if not os.path.isdir(folder):  # a name that is too long is none
        raise NotFound("corpus", folder, "Build one with build-corpus, or name another.")
    if not (folder / MANIFEST).is_file():
        if (found := kind_of(folder)) != "corpus":
            raise NotFound("corpus", folder, "Build one with build-corpus, or name another.", found=found)
        raise UserError(f"The corpus at {folder} is not built to its end. Go on: build-corpus --out {folder}")
    written = (folder / MANIFEST).read_bytes()
    manifest = read_manifest(folder / MANIFEST, written)
    for name in KEPT_FILES:
        if not (folder / name).exists() or file_hash(folder / name) != manifest["hashes"].get(name):
            _check_unchanged(folder, written)
            raise UserError(
                f"{name} of the corpus at {folder} has changed since it was built. Build it anew."
            )
    try:
        corpus = checked(_loaded(folder, manifest))
    except DAMAGED as error:
        _check_unchanged(folder, written)
        raise UserError(f"The corpus at {folder} does not hang together ({error}). Build it anew.") from error
    _check_unchanged(folder, written)
    return corpus


def _loaded(folder: Path, manifest: dict[str, Any]) -> Corpus:
    documents = read_stored_documents(folder / "documents.jsonl")
    return Corpus(
        folder=folder,
        config=from_json(CorpusConfig, manifest["config"]),
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        documents=documents,
        chunks=Chunks(load_array(folder / "chunks.npy"), load_array(folder / "chunk_documents.npy")),
        cluster=np.array(manifest["cluster"], dtype=np.int32),
        held_out=np.array(manifest["held_out"], dtype=bool),
        database_only=np.array([document.use == "database" for document in documents]),
        sections=manifest["sections"],
        neighbor_ids=load_array(folder / "neighbor_ids.npy"),
        neighbor_scores=load_array(folder / "neighbor_scores.npy"),
        manifest=manifest,
    )


def training_tokens(folder: Path) -> np.ndarray:
    """Tokens of each document of a built corpus that stands in training batches, its end included (D',)."""
    manifest = folder / MANIFEST
    return _training_tokens(folder, manifest.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _training_tokens(folder: Path, _changed: int) -> np.ndarray:
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    tokens, trained = np.array(manifest["statistics"]["document_tokens"]), ~np.array(manifest["held_out"])
    if manifest["statistics"].get("database_documents"):
        documents = read_stored_documents(folder / "documents.jsonl")
        trained &= np.array([document.use != "database" for document in documents])
    return tokens[trained]


def _check_unchanged(folder: Path, written: bytes) -> None:
    """UserError where the manifest is another: a change takes it away first and puts the new one last."""
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != written:
        raise UserError(f"The corpus {folder.name} was changed while it was being read. Try again.")


def derived_folder(home: Path, corpus: Path, fingerprint: str) -> Path:
    """Where to keep what is made from a corpus: with it, or in the data folder where that is read-only."""
    if os.access(corpus, os.W_OK):
        return corpus
    folder = home / "derived" / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_built(corpus: Path) -> bool:
    """Whether a corpus folder is built to its end."""
    return (corpus / MANIFEST).exists()


MIN_DOCUMENTS = 6
"""Fewer documents carry no claim: 5 that all lean one way do so by chance once in 32, which is more
than the 2.5% that a two-sided 95% interval leaves on that side."""


PARTS, PART_BYTES = 64, 4096


def file_checksum(path: Path) -> str:
    """The size of a file and 64 parts of it, hashed: a large one need not be read whole when it is opened."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, size - PART_BYTES), PARTS).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(PART_BYTES))
    return digest.hexdigest()[:16]


def check_current(corpus: Corpus) -> None:
    """Raise UserError where the folder holds another state by now: nothing of this one belongs there."""
    path = corpus.folder / MANIFEST
    if not path.exists() or json.loads(path.read_text("utf-8"))["fingerprint"] != corpus.fingerprint:
        raise UserError(f"The corpus {corpus.name} was changed after it was read. Read it again.")


def unchanged(corpus: Corpus, name: str) -> Path:
    """The path of an index or of the vectors; raises UserError where it is not the file that was built."""
    path, checksum = corpus.folder / name, corpus.manifest.get("marks", {}).get(name)
    if not path.exists() or (
        checksum is not None and file_checksum(path) != checksum
    ):  # early corpora have no marks
        raise UserError(
            f"{name} of the corpus {corpus.name} is not the one that was built with it: it is gone, or was "
            "made from another corpus, tokenizer or embedder. Build the corpus anew."
        )
    return path


def root_of(parent: list[int], index: int) -> int:
    """The root of an entry in a union-find forest; shortens the way for the next who asks."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index
