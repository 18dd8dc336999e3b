"""From the table of losses to figures: each arm with its interval, differences, tokens helped and hurt.

Everything here adds up numbers that were measured before; nothing is read by a model again.

Shapes: W windows, P measured positions of a window, D documents, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.evaluation.bootstrap import Estimate, draws, ratio
from retro_demo.evaluation.loss_table import LossTable

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
        self.documents, self.place = np.unique(table.windows.document[:count], return_inverse=True)
        self.drawn = draws(len(self.documents), resamples, seed)
        self.everything = np.ones((count, table.windows.rows.shape[1] - 1), dtype=bool)

    def of(self, values: np.ndarray, chunks: np.ndarray | None = None) -> np.ndarray:
        """values (>= count, P) added up by document (D,), over the chunks (count, L - 1) that are true."""
        sums = self.table.chunk_sums(values[: self.count])
        kept = np.where(self.everything if chunks is None else chunks, sums, 0).sum(axis=1)
        return np.bincount(self.place, weights=kept, minlength=len(self.documents))

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
    return {
        "helped": moved["helped"],
        "hurt": moved["hurt"],
        "mean": moved["mean_gain"],
        "threshold": MEANT,
    }


MEANT = 0.1  # nat: what counts as helped or hurt (papers.md 4.2)


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
