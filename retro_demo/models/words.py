"""How alike two texts are by their words: what the relevance of a MARGE may begin with (not in the paper).

Two bags of a text stand side by side: its tokens, and the hashed character n-grams of its words, so that
"diskriminering" and "discrimination" share something. A term weighs a / (a + p) at first, where p is its
share in the language that uses it most, times log(1 + how often it stands there). The weights of tokens are
learned, those of n-grams stay. Beside them a learned table gives each token a vector, and a text their
weighted sum: what is learned can be seen there apart from what words alone give.

From each part, of length 1, the mean of its language is taken away, as it was at the last re-index: in the
loss as in the index. A text's embedding is its parts side by side, each of length 1 times the root of its
share, so that the cosine of two embeddings is the sum of the cosines of their parts by these shares.

Sources: Arora et al. 2017 (weights); Bojanowski et al. 2017 (n-grams); Deerwester et al. 1990 (the table
begins as latent semantic analysis).

Shapes: N texts, S tokens, V vocabulary, G buckets of n-grams, L languages, E table width, R width of all.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.models.config import MargeConfig
from retro_demo.tokenizer import MOST_BYTES, WORD, Tokenizer

BUCKETS = 1 << 14
RARITY = 1e-3  # a in a / (a + p)
LEAST = 1e-12
LEAST_AROUND = 1e-3  # length around a mean, below which there is as good as nothing
MOST_WORDS = 200_000  # whose n-grams are remembered
LSA_TEXTS = 4096  # that the table begins with
LSA_ROUNDS = 2


@dataclass(frozen=True)
class WordCounts:
    """What stands in N texts, text by text: terms (tokens, then V + bucket of an n-gram) and how often."""

    starts: np.ndarray
    """int64 (N + 1,): where the terms of each text begin"""
    terms: np.ndarray
    """int32 (T,)"""
    counts: np.ndarray
    """float32 (T,)"""

    @property
    def rows(self) -> np.ndarray:
        """int64 (T,): the text of each term"""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def grams_of_word(word: str, buckets: int = BUCKETS) -> np.ndarray:
    """Buckets int64 (n,) of a word, its ends marked, and of its 3 to 5 characters long parts."""
    whole = f"<{word}>"
    parts = [whole] + [whole[i : i + n] for n in (3, 4, 5) for i in range(len(whole) - n + 1)]
    return np.array([zlib.crc32(part.encode()) % buckets for part in parts], dtype=np.int64)


class WordRelevance(nn.Module):
    """The parts of an embedding that come of words; `begin` fills them from training texts.

    All that it knows is among its weights, how tokens are spelled too, so that a text's embedding is a
    function of its tokens alone.
    """

    gram_weights: Tensor
    spelling: Tensor
    centers: Tensor

    def __init__(self, config: MargeConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        learned = max(0.0, 1 - config.relevance_words - config.relevance_ngrams)
        self.shares = (config.relevance_words, config.relevance_ngrams, learned)
        """of tokens, of n-grams, of what is learned: the table, or else the encoder's first token"""
        width = config.relevance_table or config.dim
        self.widths = tuple(
            size * (share > LEAST)
            for size, share in zip((config.vocab_size, BUCKETS, width), self.shares, strict=True)
        )
        self.log_weights = nn.Parameter(torch.zeros(config.vocab_size))
        self.table = (
            nn.Parameter(torch.randn(config.vocab_size, config.relevance_table))
            if config.relevance_table
            else None
        )
        self.register_buffer("gram_weights", torch.ones(BUCKETS))
        self.register_buffer("spelling", torch.zeros(config.vocab_size, MOST_BYTES))  # bytes, padded with 0
        # one for each language, the last for a text of none
        self.register_buffer("centers", torch.zeros(len(config.languages) + 1, sum(self.widths)))
        self.centered = config.center
        self._grams: dict[str, np.ndarray] = {}
        self._spelled: list[bytes] = []

    def learned_weights(self) -> list[nn.Parameter]:
        """What nothing but relevance uses."""
        return [self.log_weights] + ([] if self.table is None else [self.table])

    def texts(self, tokens: np.ndarray) -> list[str]:
        """tokens (N, S) -> what they spell; what is no text spells nothing."""
        if not self._spelled:
            spelling = self.spelling.to(torch.uint8).cpu().numpy()
            self._spelled = [row.tobytes().rstrip(b"\0") for row in spelling]
        spelled, size = self._spelled, self.vocab_size
        return [
            b"".join([spelled[one] for one in row.tolist() if one < size]).decode("utf-8", errors="replace")
            for row in tokens
        ]

    def count(self, tokens: np.ndarray) -> WordCounts:
        """tokens int (N, S), padded with 0 -> what stands in them."""
        starts, terms, counts = [0], [], []
        for row, text in zip(tokens, self.texts(tokens), strict=True):
            own = row[(row > 0) & (row < self.vocab_size)]
            grams = [self.vocab_size + self._grams_of(word) for word in WORD.findall(text.lower())]
            found, often = np.unique(np.concatenate([own, *grams]), return_counts=True)
            starts.append(starts[-1] + len(found))
            terms.append(found.astype(np.int32))
            counts.append(often.astype(np.float32))
        none = np.zeros(0, dtype=np.int32)
        return WordCounts(
            np.array(starts),
            np.concatenate([none, *terms]),
            np.concatenate([none.astype(np.float32), *counts]),
        )

    def _grams_of(self, word: str) -> np.ndarray:
        if word not in self._grams:
            if len(self._grams) >= MOST_WORDS:
                self._grams.clear()
            self._grams[word] = grams_of_word(word)
        return self._grams[word]

    def values(self, counted: WordCounts) -> Tensor:
        """What each term (T,) of the texts weighs, its bag of length 1."""
        device = self.log_weights.device
        terms, rows = (torch.from_numpy(one).to(device).long() for one in (counted.terms, counted.rows))
        # not weights[terms]: several threads would add up its gradient in any order
        weights = torch.cat([self.log_weights.exp(), self.gram_weights]).index_select(0, terms)
        values = weights * torch.from_numpy(counted.counts).to(device).log1p()
        bag = 2 * rows + (terms >= self.vocab_size)
        squares = values.new_zeros(2 * (len(counted.starts) - 1)).index_add(0, bag, values**2)
        return values / squares.clamp(min=LEAST**2).sqrt().index_select(0, bag)

    def sum_table(self, counted: WordCounts, values: Tensor) -> Tensor:
        """The table's part (N, E) of the texts, as long as it comes."""
        assert self.table is not None
        own = counted.terms < self.vocab_size
        rows, terms, which = (
            torch.from_numpy(one).to(values.device).long()
            for one in (counted.rows[own], counted.terms[own], np.flatnonzero(own))
        )
        summed = values.new_zeros(len(counted.starts) - 1, self.table.shape[1])
        return summed.index_add(0, rows, values[which, None] * F.embedding(terms, self.table))

    def languages_of(self, tokens: Tensor) -> Tensor:
        """tokens (N, S) -> the row of `centers` of each text (N,)."""
        language = tokens[:, 0] - self.vocab_size
        return torch.where(language < 0, len(self.centers) - 1, language)

    def forward(self, tokens: Tensor, present: Tensor, first: Tensor | None) -> Tensor:
        """tokens (N, S), True where one stands (N, S), first token's state (N, D) -> embeddings (N, R)."""
        with torch.autocast(tokens.device.type, enabled=False):
            counted = self.count(torch.where(present, tokens, 0).cpu().numpy())
            values = self.values(counted)
            parts = self.scattered(counted, values)
            if self.widths[2]:
                learned = self.sum_table(counted, values) if first is None else first.float()
                parts.append(F.normalize(learned, dim=-1))
            return self.joined(parts, self.languages_of(tokens))

    def scattered(self, counted: WordCounts, values: Tensor) -> list[Tensor]:
        """The bags that have a share, written out: (N, V), (N, G)."""
        bags, begins = [], (0, self.vocab_size)
        terms, rows = (
            torch.from_numpy(one).to(values.device).long() for one in (counted.terms, counted.rows)
        )
        for begin, width in zip(begins, self.widths[:2], strict=True):
            if width:
                own = (terms >= begin) & (terms < begin + width)
                bag = values.new_zeros(len(counted.starts) - 1, width)
                bags.append(bag.index_put((rows[own], terms[own] - begin), values[own]))
        return bags

    def joined(self, parts: Sequence[Tensor], language: Tensor) -> Tensor:
        """Parts of length 1, the means of languages (N,) taken away, side by side (N, R)."""
        out, at = [], 0
        shares = [share for share, width in zip(self.shares, self.widths, strict=True) if width]
        for share, part in zip(shares, parts, strict=True):
            around = part - self.centers[language, at : at + part.shape[1]]
            out.append(share**0.5 * F.normalize(around, dim=-1, eps=LEAST_AROUND))
            at += part.shape[1]
        return torch.cat(out, dim=-1)

    @torch.no_grad()
    def begin(self, tokens: np.ndarray, language: np.ndarray, tokenizer: Tokenizer, seed: int = 0) -> None:
        """Know the spelling, and make weights and table of training texts (N, S) in languages (N,)."""
        for token in range(self.vocab_size):
            raw = tokenizer.token_bytes(token)[:MOST_BYTES]
            self.spelling[token, : len(raw)] = torch.tensor(list(raw), dtype=torch.float32)
        self._spelled = []
        counted = self.count(tokens)
        peak = np.zeros(self.vocab_size + BUCKETS)
        for number in np.unique(language):
            own = (language == number)[counted.rows]
            sums = np.bincount(counted.terms[own], counted.counts[own], minlength=len(peak))
            for bag in (slice(0, self.vocab_size), slice(self.vocab_size, None)):
                peak[bag] = np.maximum(peak[bag], sums[bag] / max(1.0, sums[bag].sum()))
        weights = torch.from_numpy(RARITY / (RARITY + peak)).float()
        self.log_weights.copy_(weights[: self.vocab_size].log())
        self.gram_weights.copy_(weights[self.vocab_size :])
        if self.table is not None and len(tokens):
            self.table.copy_(self._latent(tokens, language, seed))

    def _latent(self, tokens: np.ndarray, language: np.ndarray, seed: int) -> Tensor:
        """Axes (V, E) of the bags of tokens around their languages' means: by what stands together."""
        assert self.table is not None
        rng = np.random.default_rng([seed, 11])
        chosen = np.sort(rng.permutation(len(tokens))[:LSA_TEXTS])
        counted, language = self.count(tokens[chosen]), language[chosen]
        own = counted.terms < self.vocab_size
        bags = np.zeros((len(chosen), self.vocab_size), dtype=np.float32)
        bags[counted.rows[own], counted.terms[own]] = self.values(counted).cpu().numpy()[own]
        for number in np.unique(language):
            bags[language == number] -= bags[language == number].mean(axis=0)
        bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), LEAST)
        width = self.table.shape[1]
        start = rng.normal(size=(len(bags), width + 32)).astype(np.float32)
        axes, _ = np.linalg.qr(bags.T @ start)
        for _ in range(LSA_ROUNDS):
            axes, _ = np.linalg.qr(bags.T @ (bags @ axes))
        # where there are fewer axes than columns the rest stays as good as nothing
        _, _, turn = np.linalg.svd(bags @ axes, full_matrices=False)
        found = (axes @ turn.T)[:, :width]
        out = np.zeros((self.vocab_size, width), dtype=np.float32)
        out[:, : found.shape[1]] = found
        # numbers of about 1, as the size of a step counts
        return torch.from_numpy(out * np.float32(self.vocab_size**0.5))
