"""Losses of each arm token by token, and figures of them with intervals.

One table holds the loss of every measured token under every arm; all figures are computed from it. It is kept
as one npz file, so curves and buckets cost no second reading, and an evaluation that was stopped resumes.
Filling the table needs torch; adding up does not, and no model reads anything again for it.

Intervals come from resampling documents: how far a figure would move with other documents of the same kind.
Tokens of one document are alike, so documents are drawn, with replacement, and never tokens. Arms are
compared on the same draws (paired), so what makes a document hard cancels out.

Shapes: W windows, L chunks of a window, C chunk length, P = (L - 1) C measured positions of a window, D
documents, B resamples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from retro_demo.evaluation.arms import Arms, Windows
from retro_demo.files import replacing
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO
from retro_demo.models.tuned import Tuned

LOSS = "loss:"  # before an arm's name in the file


class LossTable:
    """Losses in nats (W, P) by arm, NaN = not measured yet, over the windows of an evaluation.

    tokens (W, L C) are the windows' text; position p is token C + p of its window, so that the first
    measured position, C - 1, predicts p = 0. `size` (W, P) are the bytes of the original text.
    """

    def __init__(self, windows: Windows, tokens: np.ndarray, bytes_of_tokens: np.ndarray) -> None:
        self.windows, self.tokens = windows, tokens
        self.chunk_len = tokens.shape[1] // windows.rows.shape[1]
        targets = tokens[:, self.chunk_len :]
        self.there = targets != 0
        self.size = bytes_of_tokens[targets]
        self.losses: dict[str, np.ndarray] = {}

    @property
    def tokens_of_windows(self) -> np.ndarray:
        """Measured tokens of each window (W,)."""
        return self.there.sum(axis=1)

    def windows_for(self, tokens: int) -> int:
        """How many windows from the front hold at least so many measured tokens."""
        return int(min(len(self.windows), np.searchsorted(np.cumsum(self.tokens_of_windows), tokens) + 1))

    def missing(self, arm: str, count: int) -> np.ndarray:
        """Which of the first `count` windows this arm was not measured on."""
        if arm not in self.losses:
            return np.arange(count)
        return np.flatnonzero(np.isnan(self.losses[arm][:count, 0]))

    def add(self, arm: str, which: np.ndarray, losses: np.ndarray) -> None:
        """Keep losses (w, P) of an arm on the windows `which` (w,)."""
        table = self.losses.setdefault(arm, np.full(self.there.shape, np.nan, dtype=np.float32))
        table[which] = np.where(self.there[which], losses, 0)

    def measured(self, arms: list[str]) -> np.ndarray:
        """Which windows (W,) all of these arms were measured on."""
        return np.all([~np.isnan(self.losses[arm][:, 0]) for arm in arms], axis=0)

    def chunk_sums(self, values: np.ndarray) -> np.ndarray:
        """values (w, P) of the first windows, added up over the tokens of each chunk: (w, L - 1)."""
        kept = np.where(self.there[: len(values)], values, 0).astype(np.float64)
        return kept.reshape(len(values), -1, self.chunk_len).sum(axis=2)

    def save(self, path: Path, weights: Mapping[str, str]) -> None:
        """Write the table, with what tells of which weights it is."""
        arrays = {LOSS + arm: losses for arm, losses in self.losses.items()}
        about = np.array(json.dumps(dict(weights), sort_keys=True))
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, rows=self.windows.rows, about=about, **arrays)  # pyright: ignore[reportArgumentType]

    def load(self, path: Path, weights: Mapping[str, str]) -> bool:
        """Take over what `save` kept; False where there is nothing, or it is of other windows or weights."""
        if not path.exists():
            return False
        with np.load(path, allow_pickle=False) as file:
            same = str(file["about"]) == json.dumps(dict(weights), sort_keys=True)
            if not same or not np.array_equal(file["rows"], self.windows.rows):
                return False
            self.losses = {name.removeprefix(LOSS): file[name] for name in file if name.startswith(LOSS)}
        return True


@torch.inference_mode()
def read_arm(model: RETRO | Reader | Tuned, arms: Arms, name: str, which: np.ndarray) -> np.ndarray:
    """Losses (w, P) of the windows `which` with the neighbors of arm `name`, in nats.

    A baseline is read with the arm "off".
    """
    device = next(model.parameters()).device
    neighbors = None
    if name != "off":
        neighbors = torch.from_numpy(arms.neighbors(name, which)).to(device)
    tokens = torch.from_numpy(arms.tokens(which)).to(device)
    if isinstance(model, (Reader, Tuned)):
        titles = torch.from_numpy(arms.titles(which)).to(device)
        losses = model.token_losses(tokens, neighbors, titles)
    else:
        losses = model.token_losses(tokens, neighbors)
    return losses[:, arms.corpus.config.chunk_len - 1 :].float().cpu().numpy()


@torch.inference_mode()
def read_prepended(
    model: RETRO, arms: Arms, which: np.ndarray, *, neighbors: bool, block: int = 32
) -> np.ndarray:
    """Losses (w, P) of a plain decoder that has the neighbors in front of its text, best one nearest to it.

    A context holds L chunks: as many neighbors of two chunks as leave room for two chunks of text, the
    chunk that is measured (found with the one before it), and the text before that chunk. So each chunk
    is read by itself. Without `neighbors` the same short text is read alone: the control.
    """
    corpus, rows = arms.corpus, arms.windows.rows[which]
    chunk_len, length = corpus.config.chunk_len, rows.shape[1]
    shown = arms.ids("on", which)[..., : prepended_neighbors(arms.k, length)]  # (w, L - 1, k)
    before = length - 2 * shown.shape[-1] - 1  # chunks of text before the measured one
    contexts, places = [], []
    for row in range(len(rows)):
        for chunk in range(1, length):
            if rows[row, chunk] < 0:
                continue
            text = rows[row, max(0, chunk - before) : chunk + 1]
            text = np.concatenate([np.full(before + 1 - len(text), -1), text])
            own = np.where((text >= 0)[:, None], corpus.chunks.tokens[text], 0).reshape(-1)
            found = corpus.chunks.with_continuation(shown[row, chunk - 1, ::-1]).reshape(-1)
            contexts.append(np.concatenate([found, own]) if neighbors else own)
            places.append((row, chunk - 1))
    device = next(model.parameters()).device
    losses = np.zeros((len(rows), length - 1, chunk_len), dtype=np.float32)
    for start in range(0, len(contexts), block):
        tokens = torch.from_numpy(np.stack(contexts[start : start + block]).astype(np.int64)).to(device)
        read = model.token_losses(tokens)[:, -chunk_len:].float().cpu().numpy()
        for (row, chunk), values in zip(places[start : start + block], read, strict=True):
            losses[row, chunk] = values
    return losses.reshape(len(rows), -1)


def prepended_neighbors(k: int, chunks_per_window: int) -> int:
    """How many neighbors of two chunks fit in front of two chunks of text; 0 where none does."""
    return max(0, min(k, (chunks_per_window - 2) // 2))


LEVEL = 95
FEW_DOCUMENTS = 20
"""Below, percentile intervals are clearly too narrow (10% at 20, 30% at 6) and are expanded; see `tail`."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval; the interval is None where there are fewer than two documents."""

    value: float
    low: float | None
    high: float | None

    @property
    def ci(self) -> list[float] | None:
        return None if self.low is None or self.high is None else [self.low, self.high]

    def to_json(self) -> dict[str, float | list[float] | None]:
        return {"value": self.value, "ci": self.ci}


def draws(documents: int, resamples: int, seed: int) -> np.ndarray:
    """How often each document is drawn in each resample: float64 (B, D), rows add up to D."""
    rng = np.random.default_rng([seed, 4])
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=resamples).astype(np.float64)


def tail(documents: int) -> float:
    """The percentage of the draws that an interval leaves on either side.

    For few documents less than 2.5: a mean of n values misses by the root of n / (n - 1) times t
    quantiles of n - 1 degrees of freedom where percentiles of draws allow for normal ones (Hesterberg
    2015, section 4.3.1: the expanded percentile interval). t by its series in 1 / (n - 1), good to 0.2%
    from six documents on.
    """
    if documents >= FEW_DOCUMENTS:
        return (100 - LEVEL) / 2
    z, free = NormalDist().inv_cdf((100 + LEVEL) / 200), documents - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return 100 * NormalDist().cdf(-math.sqrt(documents / free) * t)


def ratio(above: np.ndarray, below: np.ndarray, drawn: np.ndarray) -> Estimate:
    """sum(above) / sum(below) over documents (D,), with the percentile interval over the draws (B, D).

    Both are drawn together: a mean per token of documents that differ in length. NaN where nothing is
    below; a draw that holds nothing of a rare kind is left out of the interval.
    """
    total = below.sum()
    if total == 0:
        return Estimate(float("nan"), None, None)
    value = float(above.sum() / total)
    if len(above) < 2:
        return Estimate(value, None, None)
    tops, bottoms = drawn @ above, drawn @ below
    drawn_values = tops[bottoms > 0] / bottoms[bottoms > 0]
    if not len(drawn_values):
        return Estimate(value, None, None)
    low, high = np.percentile(drawn_values, [tail(len(above)), 100 - tail(len(above))])
    return Estimate(value, float(low), float(high))


REFERENCES = ("baseline", "off", "shuffled", "on")
"""Arms that every other arm is compared with, where they were measured."""


@dataclass(frozen=True)
class Difference:
    """How much more one arm needs than another, per token and per byte; below 0 it needs less."""

    nats: Estimate
    bpb: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "nats": self.nats.value,
            "nats_ci": self.nats.ci,
            "bpb": self.bpb.value,
            "bpb_ci": self.bpb.ci,
        }


class Sums:
    """Losses of the first `count` windows of a table, added up by document for any choice of chunks."""

    def __init__(self, table: LossTable, count: int, *, resamples: int, seed: int) -> None:
        self.table, self.count = table, count
        self.documents, self.document_index = np.unique(table.windows.document[:count], return_inverse=True)
        self.drawn = draws(len(self.documents), resamples, seed)
        self.everything = np.ones((count, table.windows.rows.shape[1] - 1), dtype=bool)

    def of(self, values: np.ndarray, chunks: np.ndarray | None = None) -> np.ndarray:
        """values (>= count, P) added up by document (D,), over the chunks (count, L - 1) that are true."""
        sums = self.table.chunk_sums(values[: self.count])
        kept = np.where(self.everything if chunks is None else chunks, sums, 0).sum(axis=1)
        return np.bincount(self.document_index, weights=kept, minlength=len(self.documents))

    def tokens(self, chunks: np.ndarray | None = None) -> np.ndarray:
        return self.of(self.table.there, chunks)

    def bytes(self, chunks: np.ndarray | None = None) -> np.ndarray:
        return self.of(self.table.size, chunks)

    def nats(self, arm: str, chunks: np.ndarray | None = None) -> np.ndarray:
        return self.of(self.table.losses[arm], chunks)

    def bpb(self, arm: str, chunks: np.ndarray | None = None) -> Estimate:
        """Bits per byte of the original text: nats / (ln 2 * bytes) (RETRO section 2.6)."""
        return ratio(self.nats(arm, chunks) / math.log(2), self.bytes(chunks), self.drawn)

    def difference(self, arm: str, reference: str, chunks: np.ndarray | None = None) -> Difference:
        """arm minus reference on the same tokens and the same draws."""
        gap = self.nats(arm, chunks) - self.nats(reference, chunks)
        return Difference(
            ratio(gap, self.tokens(chunks), self.drawn),
            ratio(gap / math.log(2), self.bytes(chunks), self.drawn),
        )

    def has(self, arm: str) -> bool:
        """Whether the arm was measured on all of these windows."""
        return arm in self.table.losses and not len(self.table.missing(arm, self.count))


def arm_figures(
    sums: Sums, names: list[str], references: tuple[str, ...] = REFERENCES
) -> dict[str, dict[str, Any]]:
    """Each arm's loss in nats a token and bits a byte, with its differences to the references.

    `ci` is the interval of the arm's own bpb, wide because documents differ; those of the differences
    are paired, and are what decides.
    """
    figures = {}
    for name in names:
        bpb = sums.bpb(name)
        figures[name] = {
            "nats": float(sums.nats(name).sum() / sums.tokens().sum()),
            "bpb": bpb.value,
            "ci": bpb.ci,
            "tokens": int(sums.tokens().sum()),
            "differences": {
                other: sums.difference(name, other).to_json()
                for other in references
                if other != name and other in names
            },
        }
    return figures


def tokens_moved(sums: Sums, reference: str) -> dict[str, float]:
    """Shares of tokens whose loss is lower (helped) or higher (hurt) with retrieval, by over 0.1 nat."""
    there = sums.table.there[: sums.count]
    gain = (sums.table.losses[reference] - sums.table.losses["on"])[: sums.count][there]
    moved = helped_and_hurt(gain)
    return {"helped": moved["helped"], "hurt": moved["hurt"], "mean": moved["mean_gain"], "threshold": MEANT}


MEANT = 0.1  # nat: what counts as helped or hurt


def helped_and_hurt(gain: np.ndarray) -> dict[str, float]:
    """Of the gains of some tokens (NaN is left out): how many helped or hurt by over MEANT, and the mean."""
    known = gain[~np.isnan(gain)]
    if not len(known):
        return {"tokens": 0, "helped": 0.0, "hurt": 0.0, "mean_gain": 0.0}
    return {
        "tokens": len(known),
        "helped": float((known > MEANT).mean()),
        "hurt": float((known < -MEANT).mean()),
        "mean_gain": float(known.mean()),
    }
