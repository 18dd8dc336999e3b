"""Text -> vectors by its words and their parts alone: an embedder that knows every script.

Two texts are alike where they share words and n-grams of characters, the rarer the more. In an inner product
a term counts as a / (a + p) (SIF, Arora et al. 2017), p its share of the training text, times log(1 + count)
of either side. A sparse random projection (Li et al. 2006) makes the vector: the hash of a term says which
places it changes, and their signs. So there is no table of terms, one that no training text has is found,
too, and only how often terms occur is fitted. docs/science.md has the figures against a truncated SVD.

Terms, of the text in lower case:

words      runs of letters, digits and signs of scripts that put spaces between words, but for Korean
parts      3-grams and 4-grams of their characters, the blank before and after a word included
signs      one and two characters of Chinese, Japanese and Korean (whose spaces no sign crosses), where one
           holds a syllable or more; two and three of other scripts without spaces, such as Thai

Shapes: N texts, L characters of all texts, T terms.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from retro_demo.errors import UserError
from retro_demo.files import beside
from retro_demo.retrieval.embedders import WordPieces
from retro_demo.tokenizer import WORD

FORMAT = "1"  # of the file, and of what counts as a term and where it stands in a vector
DIM = 512
PLACES = 8  # of a vector that a term changes
BUCKETS = 1 << 17  # in which terms are counted
RARITY = 3e-3  # a: a term with this share of the text counts half
SHARE_OF_PARTS = 0.85  # how long the parts of a text are beside its words, where nothing repeats
BLOCK = 2048  # texts at a time
COUNTED_CHARS = 1 << 20  # of a text, counted at a time
WORDS, PARTS, SIGNS = range(3)
BREAK, LETTER, SYLLABLE, UNSPACED = range(4)
GRAMS = {LETTER: (3, 4), SYLLABLE: (1, 2), UNSPACED: (2, 3)}
KIND_BITS, HASH_BITS = 2, 50  # of a key; the text takes the rest
MOST_TEXTS = 1 << (64 - KIND_BITS - HASH_BITS)
SYLLABLES = ((0x2E80, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0x20000, 0x40000))
WITHOUT_SPACES = ((0x0E00, 0x1000), (0x1000, 0x10A0), (0x1780, 0x1800), (0x1950, 0x19E0))
_ODD = 0x9E3779B97F4A7C15
_POWER, _INVERSE = np.uint64(_ODD), np.uint64(pow(_ODD, -1, 1 << 64))


class WordsEmbedder:
    """The embedder `words`, with the counts that `fit_words` left in a file."""

    name = "words"
    dim = DIM

    def __init__(self, file: Path) -> None:
        """Raises UserError where the file is missing or is none of `fit_words`."""
        counts = read_counts(file)
        self.fingerprint = hashlib.sha256(FORMAT.encode() + counts.tobytes()).hexdigest()
        self._weights = _weights(counts)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 (n, dim); zeros for a text without a term, as one of commas."""
        out = np.zeros((len(texts), DIM), np.float32)
        for start in range(0, len(texts), BLOCK):
            part = texts[start : start + BLOCK]
            out[start : start + len(part)] = self._embed(part)
        return out

    def weigh_terms(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The terms of at most MOST_TEXTS texts: number of the text, hash and weight of each (T,).

        Raises ValueError for more.
        """
        if len(texts) > MOST_TEXTS:
            raise ValueError(f"{len(texts):,} texts; a key has room for {MOST_TEXTS:,}")
        # in the order of keys the terms of a text come in the same order in every batch, so sums are the same
        keys, counts = np.unique(_keys(texts), return_counts=True)
        row, kind, hashed = _parts_of(keys)
        return row, hashed, np.log1p(counts) * self._weights[kind, hashed % BUCKETS]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        row, hashed, values = self.weigh_terms(texts)
        sums = np.zeros(len(texts) * DIM)
        state = hashed
        for _ in range(PLACES):
            state = _mixed(state + np.uint64(_ODD))
            place = row * DIM + (state >> np.uint64(32)).astype(np.int64) % DIM
            signed = np.where(state & np.uint64(1), values, -values)
            sums += np.bincount(place, weights=signed, minlength=len(sums))
        rows = sums.reshape(len(texts), DIM)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-9).astype(np.float32)

    def count_pieces(self, texts: Sequence[str]) -> WordPieces:
        """As `Embedder.count_pieces`: pieces are words, or signs where there are no spaces; it knows all."""
        words = [word for text in texts for word in WORD.findall(text)]
        return WordPieces(len(words), 0, sum(map(len, words)), 0)


def fit_words(texts: Iterable[str], file: Path) -> None:
    """Count the terms of the training texts and keep the counts; the same texts give the same bytes."""
    counts = np.zeros((3, BUCKETS), np.int64)
    for text in texts:
        for start in range(0, max(1, len(text)), COUNTED_CHARS):
            _, kind, hashed = _parts_of(_keys([text[start : start + COUNTED_CHARS]]))
            place = kind * BUCKETS + (hashed % BUCKETS).astype(np.int64)
            counts += np.bincount(place, minlength=counts.size).reshape(counts.shape)
    with beside(file) as unfinished:
        save_file({"counts": counts}, unfinished, metadata={"format": FORMAT})


def read_counts(file: Path) -> np.ndarray:
    """What `fit_words` wrote: int64 (3, BUCKETS). Raises UserError where it is missing or something else."""
    wrong = f"{file.name} is not what the embedder words has counted"
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{wrong}: it cannot be read. Build the corpus anew.") from error
    counts = stored.get("counts", np.zeros(0))
    if set(stored) != {"counts"} or counts.shape != (3, BUCKETS) or counts.dtype != np.int64:
        raise UserError(f"{wrong}: it holds {sorted(stored)} of shape {counts.shape}. Build the corpus anew.")
    if counts.min() < 0 or counts.max() > 1 << 40:
        raise UserError(
            f"{wrong}: it counts {int(counts.min())} to {int(counts.max())}. Build the corpus anew."
        )
    return counts


def _weights(counts: np.ndarray) -> np.ndarray:
    """Counts (3, BUCKETS) -> weights: the product of two is a / (a + p), less for parts of words."""
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(1, totals)
    weights = np.sqrt(RARITY / (RARITY + share))
    words, parts, _ = (counts * weights**2).sum(axis=1)
    if words and parts:
        weights[PARTS] *= SHARE_OF_PARTS * np.sqrt(words / parts)
    return weights


def _keys(texts: Sequence[str]) -> np.ndarray:
    """The terms of all texts as numbers uint64 (T,), one for each time that it stands there."""
    if not texts:
        return np.zeros(0, np.uint64)
    lowered = [f"\0{text.lower()}\0" for text in texts]
    codes = np.frombuffer("".join(lowered).encode("utf-32-le", "surrogatepass"), np.uint32)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) for text in lowered])
    seen, which = np.unique(codes, return_inverse=True)
    script = np.array([_script(code) for code in seen.tolist()], np.int8)[which]
    # one blank, whatever stands between two words
    kept = (script != BREAK) | np.concatenate([[True], script[:-1] != BREAK])
    codes, row, script = np.where(script == BREAK, 32, codes)[kept], row[kept], script[kept]
    hashes = _Hashes(codes)
    found = [_word_keys(script, row, hashes)]
    for size in sorted({size for sizes in GRAMS.values() for size in sizes}):
        found.append(_gram_keys(size, script, row, hashes))
    return np.concatenate(found)


class _Hashes:
    """Hashes of any stretch of the codes (L,): differences of sums of codes times powers, modulo 2**64."""

    def __init__(self, codes: np.ndarray) -> None:
        self._inverse = _powers(_INVERSE, len(codes))
        sums = np.cumsum(
            (codes.astype(np.uint64) + np.uint64(1)) * _powers(_POWER, len(codes)), dtype=np.uint64
        )
        self._sums = np.concatenate([np.zeros(1, np.uint64), sums])

    def keys(self, first: np.ndarray, end: np.ndarray, row: np.ndarray, kind: int) -> np.ndarray:
        """Keys of the stretches [first, end) (T,) that stand in the texts `row` (T,)."""
        hashed = _mixed((self._sums[end] - self._sums[first]) * self._inverse[first])
        hashed = hashed >> np.uint64(64 - HASH_BITS)
        return (row << np.uint64(HASH_BITS + KIND_BITS)) | (np.uint64(kind << HASH_BITS)) | hashed


def _word_keys(script: np.ndarray, row: np.ndarray, hashes: _Hashes) -> np.ndarray:
    letter = np.concatenate([[False], script == LETTER, [False]])
    first = np.flatnonzero(letter[1:-1] & ~letter[:-2])
    end = np.flatnonzero(letter[1:-1] & ~letter[2:]) + 1
    return hashes.keys(first, end, row[first], WORDS)


def _gram_keys(size: int, script: np.ndarray, row: np.ndarray, hashes: _Hashes) -> np.ndarray:
    """Keys of n-grams: a blank may stand at either end of a part of a word, and nowhere else."""
    first = np.arange(max(0, len(script) - size + 1))
    breaks = np.concatenate([[0], np.cumsum(script == BREAK)])
    middle = script[first + size // 2]
    inside = breaks[first + max(size - 1, 1)] - breaks[first + min(1, size - 1)]
    allowed = [np.zeros(len(first), bool), np.zeros(len(first), bool)]
    for kind, sizes in GRAMS.items():
        if size in sizes:
            whole = inside if kind == LETTER else breaks[first + size] - breaks[first]
            allowed[kind != LETTER] |= (middle == kind) & (whole == 0)
    keys = []
    for kind, chosen in zip((PARTS, SIGNS), allowed, strict=True):
        at = first[chosen]
        # a part belongs to the text of its middle: the blank before it is of another one at the first word
        keys.append(hashes.keys(at, at + size, row[at + size // 2], kind))
    return np.concatenate(keys)


def _parts_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (T,) -> text, kind (int64) and hash (uint64) of each."""
    row = (keys >> np.uint64(HASH_BITS + KIND_BITS)).astype(np.int64)
    kind = (keys >> np.uint64(HASH_BITS)).astype(np.int64) % (1 << KIND_BITS)
    return row, kind, keys & np.uint64((1 << HASH_BITS) - 1)


def _powers(base: np.uint64, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def _mixed(state: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit depends on every other."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@lru_cache(maxsize=1 << 16)
def _script(code: int) -> int:
    """How the words of a character's script are told apart; BREAK for what stands between words."""
    category = unicodedata.category(chr(code))
    if category[0] not in "LNM" and category != "So":
        return BREAK
    if any(low <= code < high for low, high in SYLLABLES):
        return SYLLABLE
    return UNSPACED if any(low <= code < high for low, high in WITHOUT_SPACES) else LETTER
