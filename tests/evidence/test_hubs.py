"""Pairs by their margin against hubs: the definition, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from passage_helpers import drawn

from retro_demo.evidence import hubs
from retro_demo.evidence.passages import find_pairs, forbidden, nearest
from retro_demo.models.config import EvidenceConfig


def by_definition(vectors: np.ndarray, language: np.ndarray, k: int) -> np.ndarray:
    """Margins (P, P), written out."""
    cosine = vectors @ vectors.T
    near = np.zeros((len(vectors), language.max() + 1))
    for number in np.unique(language):
        columns = cosine[:, language == number]
        near[:, number] = np.sort(columns, axis=1)[:, -k:].mean(axis=1)
    return 2 * cosine - near[:, language] - near[:, language].T


@pytest.mark.parametrize("languages", ["other", "any"])
def test_pairs_are_those_of_the_margin_written_out(monkeypatch, languages):
    monkeypatch.setattr(hubs, "SCORES_AT_ONCE", 500)  # a few rows at a time
    rng = np.random.default_rng(0)
    passages = drawn(rng, 90)
    vectors = rng.normal(size=(90, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = EvidenceConfig(hub_neighbors=4, evidence_languages=languages, evidence_per_target=3.0)
    everyone = np.ones(90, dtype=bool)
    pairs = find_pairs(vectors, passages, config, targets=everyone, candidates=everyone, seed=0)

    margins = by_definition(vectors, passages.language, 4)
    margins[forbidden(passages, config, np.arange(90), np.arange(90)[None])] = -np.inf
    # no target may have more than this many
    most = np.sort(margins, axis=1)[:, -25][:, None]
    best = np.sort(np.where(margins >= most, margins, -np.inf).ravel())[::-1][: len(pairs)]
    found = np.sort(margins[pairs.target, pairs.evidence])[::-1]
    assert len(pairs) == 270
    np.testing.assert_allclose(found, best, atol=1e-5)
    cosine = (vectors @ vectors.T)[pairs.target, pairs.evidence]
    np.testing.assert_allclose(pairs.relevance, cosine, atol=2e-6)


def test_the_nearest_are_chosen_by_margin_and_come_by_relevance():
    rng = np.random.default_rng(1)
    passages = drawn(rng, 60)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = EvidenceConfig(hub_neighbors=3)
    ids, relevance = nearest(vectors, passages, config, np.arange(10), np.ones(60, dtype=bool), 5)

    margins = by_definition(vectors, passages.language, 3)
    margins[forbidden(passages, config, np.arange(60), np.arange(60)[None])] = -np.inf
    assert (np.diff(relevance, axis=1) <= 0).all()
    for row in range(10):
        wanted = np.sort(margins[row])[::-1][:5]
        np.testing.assert_allclose(np.sort(margins[row, ids[row]])[::-1], wanted, atol=1e-5)
