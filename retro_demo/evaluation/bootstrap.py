"""Intervals by resampling documents: how far a figure would move with other documents of the same kind.

Tokens of one document are alike, so documents are drawn, with replacement, and never tokens. Arms are
compared on the same draws (paired), so what makes a document hard cancels out.

Shapes: D documents, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

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
