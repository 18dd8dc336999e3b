"""What tests of index share with others."""

from __future__ import annotations

import numpy as np

from retro_demo.retrieval.neighbors import Neighbors


def unit_vectors(num: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recall(found: Neighbors, exact: Neighbors) -> float:
    """Share of the exact neighbors (Q, K) that were found."""
    return float((exact.ids[:, :, None] == found.ids[:, None, :]).any(axis=2).mean())
