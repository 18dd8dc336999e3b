"""Documents -> chunks: the stages of a build before vectors.

They are the read text, duplicates and split, the tokenizer, and the chunks.

Each stage starts from what stands in the folder already. Near-duplicates are found by token ids, as RETRO's
authors remove them from their training data (Borgeaud et al. 2022, section 2.6): a Jaccard similarity of the
sets of 13-grams of 0.8 or more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.store import (
    MIN_DOCUMENTS,
    Chunks,
    choose_held_out,
    chunk_documents,
    keep_split,
    read_stored_documents,
    root_of,
    too_few_held_out,
    word_ids,
    write_documents,
)
from retro_demo.documents.sources import Document, ReadingLimits, follow_reading, parse_fields, read_event
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress, Warned
from retro_demo.files import load_array, save_array, write_atomically
from retro_demo.paths import ASSETS
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.retrieval.neighbors import excluded
from retro_demo.settings import CorpusConfig
from retro_demo.tokenizer import Tokenizer

GRAM = 13
THRESHOLD = 0.8
SKETCH = 128  # smallest gram hashes kept of each document
# Of the 128 smallest hashes of two sets' union, each is in both with the probability of their
# Jaccard similarity: 102 +- 4.5 at 0.8. Fewer than 77 (0.6) come once in 10 million such pairs.
MIN_OVERLAP = 0.6
# Where more documents share a gram, each is compared with the first and the next 31 of them only,
# which still joins a family of near-copies without trying all of its pairs.
CROWD = 32
CACHED_GRAMS = 16_000_000  # 128 MB of hashes kept while pairs are compared
# Of a multilinear hash modulo 2 ** 64, fixed for determinism.
WEIGHTS = np.random.default_rng(GRAM).integers(1 << 63, size=GRAM, dtype=np.uint64) * 2 + 1


@dataclass(frozen=True)
class Duplicates:
    """Which documents are copies of each other.

    cluster: int32 (D,), equal for copies and near-copies, numbered from 0 by first appearance.
    exact: how many documents have the very tokens of an earlier one.
    near: how many more documents joined an earlier cluster as near-copies.
    pairs: (document, later document, Jaccard similarity), sorted: one for each joining, so that
        there are `exact + near` of them, which link each cluster together.
    """

    cluster: np.ndarray
    exact: int
    near: int
    pairs: list[tuple[int, int, float]]


def find_duplicates(tokens: Sequence[np.ndarray] | Sequence[Sequence[int]]) -> Duplicates:
    """Exact and near-duplicates among D documents of token ids, each compared with all others.

    Similarities are computed on the full sets of 64-bit gram hashes; a pair that is just above the
    threshold is overlooked with a probability below 1e-6. Documents of fewer than 13 tokens are
    compared for equality only.
    """
    arrays = [np.asarray(ids, dtype=np.int32) for ids in tokens]
    parent = list(range(len(arrays)))
    pairs: list[tuple[int, int, float]] = []
    originals: dict[bytes, int] = {}
    for index, ids in enumerate(arrays):
        first = originals.setdefault(hashlib.blake2b(ids.tobytes()).digest(), index)
        if first != index:
            parent[index] = first
            pairs.append((first, index, 1.0))
    exact = len(pairs)

    jaccard_of = _jaccard(arrays)
    for left, right in _candidates(arrays, list(originals.values())):
        left_root, right_root = root_of(parent, left), root_of(parent, right)
        if left_root != right_root and (jaccard := jaccard_of(left, right)) >= THRESHOLD:
            parent[max(left_root, right_root)] = min(left_root, right_root)
            pairs.append((left, right, jaccard))

    roots = np.array([root_of(parent, index) for index in range(len(arrays))], dtype=np.int64)
    # A root is the first of its cluster, so the order of roots is that of first appearance.
    cluster = np.unique(roots, return_inverse=True)[1].astype(np.int32)
    return Duplicates(cluster, exact=exact, near=len(pairs) - exact, pairs=sorted(pairs))


def _gram_hashes(ids: np.ndarray) -> np.ndarray:
    """int32 (T,) -> uint64 (at most T - 12,): the sorted set of the hashes of all 13-grams."""
    if len(ids) < GRAM:
        return np.empty(0, dtype=np.uint64)
    mixed = np.correlate(ids.astype(np.uint64) + np.uint64(1), WEIGHTS)
    # The lower bits of a multilinear hash are weak, but sketches pick by the whole value: mix it
    # (the finalizer of splitmix64).
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.unique(mixed ^ (mixed >> np.uint64(31)))


def _jaccard(arrays: list[np.ndarray]) -> Callable[[int, int], float]:
    """The function that compares two documents by their indices."""
    num_tokens = sum(map(len, arrays))

    @lru_cache(maxsize=max(64, CACHED_GRAMS * len(arrays) // max(num_tokens, 1)))
    def grams(index: int) -> np.ndarray:
        return _gram_hashes(arrays[index])

    def jaccard(left: int, right: int) -> float:
        both = np.sort(np.concatenate([grams(left), grams(right)]))
        shared = np.count_nonzero(both[1:] == both[:-1])
        return float(shared / (len(both) - shared))

    return jaccard


def _candidates(arrays: list[np.ndarray], documents: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs (left < right) of `documents`, sorted, whose sketches overlap by MIN_OVERLAP."""
    ranks, sizes = _sketches([arrays[index] for index in documents])
    needed = np.maximum(np.ceil(MIN_OVERLAP * sizes), 1).astype(np.int64)
    lefts, rights = _pairs_with_a_rare_gram(ranks, sizes, prefix=sizes - needed + 1)
    in_left = np.zeros(ranks.max(initial=0) + 1, dtype=bool)
    bounds = np.flatnonzero(np.diff(lefts, prepend=-1, append=-1))
    for start, end in pairwise(bounds):
        left, others = lefts[start], rights[start:end]
        shared = ranks[left][ranks[left] > 0]
        in_left[shared] = True
        overlap = in_left[ranks[others]].sum(axis=1)
        in_left[shared] = False
        for right in others[overlap >= np.maximum(needed[left], needed[others])]:
            yield documents[left], documents[right]


def _sketches(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The SKETCH smallest gram hashes of each document, as ranks of how rare they are.

    -> int32 (D, SKETCH), each row rising: 0 for a hash that no other sketch has and for none at
    all, then 1 for the rarest of the shared ones; int64 (D,): how many hashes there are.
    """
    sketches = [_gram_hashes(ids)[:SKETCH].copy() for ids in arrays]
    sizes = np.array([len(sketch) for sketch in sketches], dtype=np.int64)
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *sketches])
    del sketches
    ordered = np.sort(hashes)
    shared, counts = np.unique(ordered[1:][ordered[1:] == ordered[:-1]], return_counts=True)
    by_rarity = np.empty(len(shared), dtype=np.int32)
    by_rarity[np.argsort(counts, kind="stable")] = np.arange(1, len(shared) + 1)
    places = np.searchsorted(shared, hashes)
    is_shared = np.searchsorted(shared, hashes, side="right") > places
    flat = np.zeros(len(hashes), dtype=np.int32)
    flat[is_shared] = by_rarity[places[is_shared]]
    ranks = np.zeros((len(arrays), SKETCH), dtype=np.int32)
    ranks[np.arange(SKETCH) >= SKETCH - sizes[:, None]] = flat
    ranks.sort(axis=1)
    return ranks, sizes


def _pairs_with_a_rare_gram(
    ranks: np.ndarray, sizes: np.ndarray, *, prefix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted pairs (left < right) that share one of their `prefix` rarest hashes; int64 (P,) each.

    ranks (D, SKETCH), sizes (D,), prefix (D,). Two sketches that share MIN_OVERLAP of the larger
    one share one of the rarest hashes of each (the prefix filter of Chaudhuri, Ganti and Kaushik
    2006). Boilerplate common to many documents stays outside the prefixes and suggests no pairs.
    """
    num_documents = len(ranks)
    ends = (SKETCH - sizes + prefix)[:, None]  # rows are filled up at their start
    holders, columns = np.nonzero((np.arange(SKETCH) < ends) & (ranks > 0))
    values = ranks[holders, columns]
    order = np.argsort(values, kind="stable")
    values, holders = values[order], holders[order]
    first = holders[np.searchsorted(values, values)]
    codes = np.unique(first * num_documents + holders)
    for step in range(1, CROWD):
        same = np.flatnonzero(values[step:] == values[:-step])
        if not len(same):
            break
        codes = np.union1d(codes, holders[same] * num_documents + holders[same + step])
    lefts, rights = np.divmod(codes, max(num_documents, 1))
    return lefts[lefts < rights], rights[lefts < rights]


ENCODE_BLOCK = 256
FAR = 2.5  # times what was asked for, from which on the share that is held out is warned of
READING = "reading.json"
SHIPPED_TOKENIZERS = {"factbook": ASSETS / "factbook_tokenizer.json"}


@dataclass(frozen=True)
class Text:
    """What comes before vectors: documents, read, split and cut."""

    documents: list[Document]
    kept: dict[str, Any]  # reading.json
    warnings: list[str]
    duplicates: Duplicates
    held_out: np.ndarray  # (documents,) bool
    split: str  # hash of a split that the settings would not draw, "" for one that they do
    tokenizer: Tokenizer
    chunks: Chunks
    window: int  # > 0: sections of one document, so near chunks are not neighbors

    @property
    def train(self) -> np.ndarray:
        """The chunks that are indexed."""
        return np.flatnonzero(~self.held_out[self.chunks.document])

    def too_near(self, own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """As corpus.excluded."""
        return excluded(self.chunks.document, self.duplicates.cluster, self.window, own, candidates)

    def could_retrieve(self) -> bool:
        """Whether any training chunk may have another one for its neighbor, whatever retrieves."""
        train = self.train
        # where a pair is allowed, so is one with the first chunk of a document or of its near-duplicates
        _, first = np.unique(self.duplicates.cluster[self.chunks.document[train]], return_index=True)
        return any(not self.too_near(train[[at]], train[None]).all() for at in first)


def read_text(out: Path, config: CorpusConfig, sources: Sequence[Path]) -> Generator[Event, None, Text]:
    """Read, split and cut the text of a corpus, from wherever that stands, yielding progress.

    Each warning is told as soon as it is known: where the build fails later, it may say why.
    """
    documents, kept = yield from _read(out, sources, config)
    warnings = list(kept["warnings"])
    yield from map(Warned, warnings)
    duplicates = find_duplicates(word_ids(document.text for document in documents))
    held_out = drawn = choose_held_out(documents, duplicates.cluster, config.holdout, config.seed)
    if "held_out" in kept:
        held_out = keep_split(documents, duplicates.cluster, kept["held_out"])
    elif config.holdout == CorpusConfig.holdout and not (out / "tokenizer.json").exists():
        # a share that somebody chose is taken as it is; and where there is a tokenizer, the split was used
        held_out = choose_held_out(
            documents, duplicates.cluster, config.holdout, config.seed, least=MIN_DOCUMENTS
        )
        if not np.array_equal(held_out, drawn):
            kept = kept | {"held_out": held_out.tolist()}
            write_atomically(out / READING, json.dumps(kept).encode())
    _check_distinct(duplicates, held_out, "sections" if kept["sections"] else "documents")
    copies = duplicates.exact + duplicates.near
    if copies > len(documents) / 2:
        warnings.append(
            f"{copies:,} of {len(documents):,} documents are copies or near-copies of others, and those are "
            f"never neighbors of each other: {len(documents) - copies:,} texts differ."
        )
    if "history" not in kept:
        warnings += _unlike_asked(documents, held_out, config.holdout)
    split = "" if np.array_equal(held_out, drawn) else hashlib.sha256(held_out.tobytes()).hexdigest()
    if twins := int(np.isin(duplicates.cluster[held_out], duplicates.cluster[~held_out]).sum()):
        are = "document that is held out has" if twins == 1 else "documents that are held out have"
        warnings.append(
            f"{twins} {are} a near-duplicate that is not: what is measured there may be known by heart."
        )
    yield from map(Warned, warnings[len(kept["warnings"]) :])
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
    if few := too_few_held_out(documents, duplicates.cluster, held_out, chunks):
        warnings.append(few)
        yield Warned(few)
    window = config.window if kept["sections"] else 0
    return Text(documents, kept, warnings, duplicates, held_out, split, tokenizer, chunks, window)


def _check_distinct(duplicates: Duplicates, held_out: np.ndarray, what: str) -> None:
    """Raise UserError where all that is indexed are copies of one text: none could be another's neighbor."""
    cluster = duplicates.cluster
    distinct = len(np.unique(cluster))
    if distinct == 1 and len(cluster) > 1:
        copies = "copies" if duplicates.near == 0 else "copies or near-copies"
        raise UserError(
            f"All {len(cluster):,} {what} are {copies} of each other (1 distinct text), and a copy is never "
            "the neighbor of another, so there is nothing to retrieve. Add documents that differ."
        )
    if len(np.unique(cluster[~held_out])) < 2:
        held = int(held_out.sum())
        are = "is" if held == 1 else "are"
        raise UserError(
            f"Of {len(cluster):,} {what} ({distinct:,} distinct) {held:,} {are} held out, which leaves one "
            "text, so there is nothing to retrieve. Add documents, or hold out less."
        )


def _unlike_asked(documents: Sequence[Document], held_out: np.ndarray, asked: float) -> list[str]:
    """A warning where the share of the text that a draw held out is far from the one asked for."""
    if not asked or any(document.use for document in documents):
        return []
    sizes = np.array([len(document.text) for document in documents])
    taken = sizes[held_out].sum() / sizes.sum()
    if asked / FAR <= taken <= asked * FAR:
        return []
    groups = len({document.group for document in documents})
    return [
        f"{taken:.0%} of the text is held out ({int(held_out.sum()):,} of {len(documents):,} documents), "
        f"where {asked:.0%} was asked for: a group (and near-copies) is held out whole or not at all, and "
        f"there are {groups:,} groups, few or of unlike size. Give more or smaller groups, or say in a field "
        "`use` what is held out."
    ]


def _read(
    out: Path, sources: Sequence[Path], config: CorpusConfig
) -> Generator[Event, None, tuple[list[Document], dict[str, Any]]]:
    """The documents, read once; a later call finds them stored and notices sources that changed.

    With them what is kept in reading.json: warnings, sections; held_out where the settings would draw
    another split; and of a corpus that was changed (corpus/changes.py) held_out and history.
    """
    stored, state = out / "documents.jsonl", out / READING
    if state.exists():
        kept = json.loads(state.read_text("utf-8"))
        if "history" in kept or not (sources and all(source.exists() for source in sources)):
            size = stored.stat().st_size
            yield read_event(size, size)
            return read_stored_documents(stored), kept
    limit = config.max_megabytes * 1_000_000
    reading = yield from follow_reading(
        sources, fields=parse_fields(config.fields), limits=replace(ReadingLimits(), total_bytes=limit)
    )
    if state.exists() and read_stored_documents(stored) != reading.documents:
        raise UserError(
            f"The sources changed since {out.name} was begun, or this version reads them otherwise. Build "
            "them into a new folder."
        )
    if not state.exists():
        kept = {"warnings": reading.warnings, "sections": reading.sections}
        write_documents(stored, reading.documents)
        write_atomically(state, json.dumps(kept).encode())
    return list(reading.documents), kept


def _tokenizer(out: Path, config: CorpusConfig, training: Sequence[Document]) -> Tokenizer:
    """The tokenizer of this corpus; a new one learns from the training documents alone."""
    path = out / "tokenizer.json"
    if not path.exists():
        if config.tokenizer == "train":
            Tokenizer.train((document.text for document in training), config.vocab_size).save(path)
        else:
            load_tokenizer(SHIPPED_TOKENIZERS.get(config.tokenizer, Path(config.tokenizer))).save(path)
    return load_tokenizer(path)


def _chunks(out: Path, documents: Sequence[Document], tokenizer: Tokenizer, config: CorpusConfig) -> Chunks:
    tokens, document = out / "chunks.npy", out / "chunk_documents.npy"
    if not document.exists():
        chunks = cut(documents, tokenizer, config.chunk_len)
        save_array(tokens, chunks.tokens)
        save_array(document, chunks.document)
    return Chunks(load_array(tokens), load_array(document))


def cut(documents: Sequence[Document], tokenizer: Tokenizer, chunk_len: int) -> Chunks:
    """The chunks of documents, numbered from 0."""
    encoded: list[np.ndarray] = []
    for start in range(0, len(documents), ENCODE_BLOCK):  # token ids as Python ints are large
        part = tokenizer.encode_batch([d.text for d in documents[start : start + ENCODE_BLOCK]])
        encoded += [np.array(ids, dtype=np.int32) for ids in part]
    return chunk_documents(encoded, chunk_len, tokenizer.eos_id)
