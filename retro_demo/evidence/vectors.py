"""Embeddings of all passages by which evidence is found, kept small where they are wide.

The paper's are a plain array (P, D). Relevance by words has tens of thousands of numbers for a text, nearly
all of them 0 before the mean of its language is taken away: `WordVectors` keeps what stands there, the means,
and a sketch of SKETCH numbers. A search goes by the sketch and looks again, exactly, at what it found. So
memory is a few kilobytes a passage, and nothing is as large as passages times passages.

Shapes: P passages, T terms of all of them, Q queries, K candidates of each, L languages, R width of all
parts, W width of the bags of words among them, E width of what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from retro_demo.models.words import LEAST, LEAST_AROUND, WordCounts, WordRelevance

SKETCH = 512
SHRINK = 4  # passages of nothing, in a mean
AT_ONCE = 4096  # passages whose sketch is made together
TERMS_AT_ONCE = 1_000_000  # looked up together


@dataclass(frozen=True)
class WordVectors:
    """Embeddings (P, R), as `WordRelevance.joined` makes them, without writing out their zeros."""

    starts: np.ndarray
    """int64 (P + 1,): where the terms of each passage begin"""
    columns: np.ndarray
    """int32 (T,), below W"""
    values: np.ndarray
    """float32 (T,): each bag of length 1"""
    learned: np.ndarray
    """float32 (P, E), of length 1; E may be 0"""
    language: np.ndarray
    """int64 (P,): row of the means"""
    means: np.ndarray
    """float32 (L, R)"""
    shares: tuple[float, ...]
    """of each part"""
    widths: tuple[int, ...]
    """of each part; the last one is E"""
    kept: dict[Any, np.ndarray] = field(default_factory=dict, compare=False)
    """what was computed of them and will be asked for again"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def width(self) -> int:
        return sum(self.widths)

    @cached_property
    def _bounds(self) -> list[slice]:
        ends = np.cumsum(self.widths)
        return [slice(int(end - width), int(end)) for end, width in zip(ends, self.widths, strict=True)]

    @cached_property
    def _scales(self) -> np.ndarray:
        """(P, parts): root of the share over the length around the mean."""
        out = np.zeros((len(self), len(self.widths)), dtype=np.float32)
        there = np.zeros_like(out)
        squares = np.stack([(self.means[:, own] ** 2).sum(axis=1) for own in self._bounds], axis=1)
        for ids, which, rows in self._blocks():
            language, columns, values = self.language[ids], self.columns[which], self.values[which]
            crossed = values * self.means[language[rows], columns]
            for part, (own, share) in enumerate(zip(self._bounds, self.shares, strict=True)):
                if part == len(self.widths) - 1:
                    length = ((self.learned[ids] - self.means[language, own]) ** 2).sum(axis=1)
                else:
                    inside = (columns >= own.start) & (columns < own.stop)
                    of_own = np.bincount(rows[inside], values[inside] ** 2, len(language))
                    both = np.bincount(rows[inside], crossed[inside], len(language))
                    length = of_own - 2 * both + squares[language, part]
                there[ids, part] = share * (length > LEAST_AROUND**2)
                out[ids, part] = share**0.5 / np.sqrt(np.maximum(length, LEAST_AROUND**2))
        # a text in which a part is empty, say one without words, has length 1 too
        return out / np.sqrt(np.maximum(there.sum(axis=1, keepdims=True), LEAST))

    @cached_property
    def _scaled(self) -> np.ndarray:
        """(T,): the values times the scales of their parts."""
        out, ends = np.empty_like(self.values), np.cumsum(self.widths)
        for ids, which, rows in self._blocks():
            part = np.searchsorted(ends, self.columns[which], side="right")
            out[which] = self.values[which] * self._scales[ids][rows, part]
        return out

    def _blocks(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """AT_ONCE passages at a time, their terms, and the row of each term among these passages."""
        for start in range(0, len(self), AT_ONCE):
            ids = slice(start, min(start + AT_ONCE, len(self)))
            which = slice(int(self.starts[ids.start]), int(self.starts[ids.stop]))
            sizes = np.diff(self.starts[ids.start : ids.stop + 1])
            yield ids, which, np.repeat(np.arange(len(sizes)), sizes)

    def written_out(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings float32 (Q, R) of passages (Q,)."""
        out = np.zeros((len(ids), self.width), dtype=np.float32)
        which, rows = _terms_of(self.starts, ids)
        out[rows, self.columns[which]] = self.values[which]
        out[:, self._bounds[-1]] = self.learned[ids]
        out -= self.means[self.language[ids]]
        for part, own in enumerate(self._bounds):
            out[:, own] *= self._scales[ids, part : part + 1]
        return out

    def against(self, written: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Cosines (Q, K) of embeddings written out (Q, R) with passages ids (Q, K), -1 = none: -inf."""
        out = np.full(ids.shape, -np.inf, dtype=np.float32)
        to_means = np.stack([written[:, own] @ self.means[:, own].T for own in self._bounds], axis=-1)
        queries, places = np.nonzero(ids >= 0)
        found = ids[queries, places]
        sizes = np.diff(self.starts)[found]
        at, total, flat = 0, np.cumsum(sizes), written.reshape(-1)
        while at < len(found):
            end = max(at + 1, int(np.searchsorted(total, total[at] - sizes[at] + TERMS_AT_ONCE)))
            own, query = found[at:end], queries[at:end]
            which, rows = _terms_of(self.starts, own)
            products = flat[(query * self.width)[rows] + self.columns[which]] * self._scaled[which]
            scores = np.bincount(rows, products, len(own)).astype(np.float32)
            tail = self._bounds[-1]
            scores += (written[query, tail] * self.learned[own]).sum(axis=1) * self._scales[own, -1]
            scores -= (to_means[query, self.language[own]] * self._scales[own]).sum(axis=1)
            out[query, places[at:end]] = scores
            at = end
        return out

    @cached_property
    def sketch(self) -> np.ndarray:
        """float32 (P, SKETCH + E), of length 1: the bags through random signs, then what is learned.

        Its inner products are the cosines but for noise of about 1 / sqrt(SKETCH).
        """
        size = self.width - self.widths[-1]
        rng = np.random.default_rng(13)
        signs = (rng.integers(0, 2, (size, SKETCH)).astype(np.float32) * 2 - 1) / np.float32(SKETCH**0.5)
        table, means = torch.from_numpy(signs), np.zeros((len(self.means), 3, SKETCH), dtype=np.float32)
        for part, own in enumerate(self._bounds[:-1]):
            means[:, part] = self.means[:, own] @ signs[own]
        out = np.zeros((len(self), SKETCH + self.widths[-1]), dtype=np.float32)
        for ids, which, _ in self._blocks():
            language = self.language[ids]
            summed = self._summed(which, self.starts[ids] - which.start, table)
            for part in range(len(self.widths) - 1):
                summed = summed - means[language, part] * self._scales[ids, part : part + 1]
            out[ids, :SKETCH] = summed
            around = self.learned[ids] - self.means[:, self._bounds[-1]][language]
            out[ids, SKETCH:] = around * self._scales[ids, -1:]
            out[ids] /= np.maximum(np.linalg.norm(out[ids], axis=1, keepdims=True), LEAST)
        return out

    def _summed(self, which: slice | np.ndarray, starts: np.ndarray, table: torch.Tensor) -> np.ndarray:
        """Rows of a table (W, X) of some terms, times their scaled values, added up by passage: (n, X)."""
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(self.columns[which]).long(),
            table,
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(self._scaled[which]),
        ).numpy()

    def cosines(self, own: np.ndarray, others: np.ndarray) -> np.ndarray:
        """float32 (Q, C): of passages (Q,), written out, with (C,), as they are kept."""
        written = self.written_out(own)
        size = self.width - self.widths[-1]
        table = torch.from_numpy(np.ascontiguousarray(written[:, :size].T))
        to_means = np.stack([written[:, part] @ self.means[:, part].T for part in self._bounds])
        out, tail = np.empty((len(own), len(others)), dtype=np.float32), self._bounds[-1]
        for start in range(0, len(others), AT_ONCE):
            ids = others[start : start + AT_ONCE]
            which, _ = _terms_of(self.starts, ids)
            sizes = np.diff(self.starts)[ids]
            block = self._summed(which, np.cumsum(sizes) - sizes, table).T
            block = block + written[:, tail] @ (self.learned[ids] * self._scales[ids, -1:]).T
            for part, of_part in enumerate(to_means):
                block -= of_part[:, self.language[ids]] * self._scales[ids, part]
            out[:, start : start + AT_ONCE] = block
        return out

    def take(self, ids: np.ndarray) -> WordVectors:
        """Those of passages (Q,), in this order."""
        which, _ = _terms_of(self.starts, ids)
        return replace(
            self,
            starts=np.concatenate([[0], np.cumsum(np.diff(self.starts)[ids])]),
            columns=self.columns[which],
            values=self.values[which],
            learned=self.learned[ids],
            language=self.language[ids],
            kept={},
        )

    def learned_alone(self) -> np.ndarray:
        """float32 (P, E), of length 1: what is learned beside the words, around the means of languages."""
        around = self.learned - self.means[:, self._bounds[-1]][self.language]
        return around / np.maximum(np.linalg.norm(around, axis=1, keepdims=True), LEAST)

    def part(self, which: Sequence[int]) -> WordVectors:
        """The same by some parts alone: 0 tokens, 1 n-grams, 2 learned, in proportion to their shares."""
        total = sum(self.shares[one] for one in which) or 1.0
        shares = tuple(share / total if one in which else 0.0 for one, share in enumerate(self.shares))
        return replace(self, shares=shares, kept={})


Vectors = np.ndarray | WordVectors
"""float32 (P, D) of length 1, or as many embeddings by words."""


def _terms_of(starts: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of all terms of passages (n,), one passage after the other, and which of them each is of."""
    sizes = np.diff(starts)[ids]
    rows = np.repeat(np.arange(len(ids)), sizes)
    begins = np.repeat(starts[ids] - (np.cumsum(sizes) - sizes), sizes)
    return begins + np.arange(len(rows)), rows


def cosines(vectors: Vectors, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Relevance (Q, C) of passages (Q,) and (C,) to each other."""
    if isinstance(vectors, np.ndarray):
        return vectors[own] @ vectors[others].T
    return vectors.cosines(own, others)


def relevance_of_text(vectors: Vectors, text: Vectors) -> np.ndarray:
    """Relevance (P,) of all passages to one text."""
    if isinstance(vectors, np.ndarray):
        assert isinstance(text, np.ndarray)
        return vectors @ text[0]
    assert isinstance(text, WordVectors)
    return vectors.against(text.written_out(np.zeros(1, dtype=int)), np.arange(len(vectors))[None])[0]


def taken(vectors: Vectors, ids: np.ndarray) -> Vectors:
    """The embeddings of passages (Q,), in this order."""
    return vectors[ids] if isinstance(vectors, np.ndarray) else vectors.take(ids)


def narrow(vectors: Vectors) -> np.ndarray:
    """What stands for embeddings where they must be small: (P, D), of length 1."""
    return vectors.sketch if isinstance(vectors, WordVectors) else vectors


@torch.no_grad()
def word_vectors(
    words: WordRelevance, counted: WordCounts, language: np.ndarray, first: np.ndarray | None
) -> WordVectors:
    """Embeddings of what was counted.

    language (P,): rows of the means; first (P, D): the encoder's embeddings, where they have a part.
    """
    values, learned = [], []
    for start in range(0, len(counted.starts) - 1, AT_ONCE):
        starts = counted.starts[start : start + AT_ONCE + 1]
        part = slice(int(starts[0]), int(starts[-1]))
        some = WordCounts(starts - starts[0], counted.terms[part], counted.counts[part])
        weighed = words.values(some)
        values.append(weighed.cpu().numpy())
        if words.widths[2] and first is None:
            summed = torch.nn.functional.normalize(words.sum_table(some, weighed), dim=-1)
            learned.append(summed.cpu().numpy())
    size = len(counted.starts) - 1
    if first is not None and words.widths[2]:
        learned = [first]
    starts, columns = counted.starts, counted.terms
    weights = np.concatenate([np.zeros(0, np.float32), *values])
    if not all(words.widths[:2]):  # where one bag has no share it has no columns
        kept = np.where(columns < words.vocab_size, words.widths[0] > 0, words.widths[1] > 0)
        starts = np.concatenate([[0], np.cumsum(kept)])[starts]
        columns = (columns if words.widths[0] else columns - words.vocab_size)[kept]
        weights = weights[kept]
    return WordVectors(
        starts=starts,
        columns=columns,
        values=weights,
        learned=np.concatenate([np.zeros((0, words.widths[2]), np.float32), *learned])
        if words.widths[2]
        else np.zeros((size, 0), np.float32),
        language=language,
        means=words.centers.detach().cpu().numpy().astype(np.float32),
        shares=words.shares,
        widths=words.widths,
    )


def language_means(vectors: WordVectors, which: np.ndarray) -> np.ndarray:
    """float32 (L, R): of each language the mean of its passages among `which` (P,), bool, as they come.

    Means of few passages are drawn towards 0, or a text alone in its language would be nothing but its mean.
    A language without any has a mean of 0, and so does a text of no language.
    """
    out = np.zeros_like(vectors.means)
    tail = slice(vectors.width - vectors.widths[-1], vectors.width)
    for number in np.unique(vectors.language[which]):
        ids = np.flatnonzero(which & (vectors.language == number))
        terms, _ = _terms_of(vectors.starts, ids)
        sums = np.bincount(vectors.columns[terms], vectors.values[terms], vectors.width)
        sums[tail] += vectors.learned[ids].sum(axis=0, dtype=np.float64)
        out[number] = sums / (len(ids) + SHRINK)
    return out
