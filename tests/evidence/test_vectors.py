"""Embeddings by words as they are kept: what is computed of them is what the written out ones give."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from retro_demo.evidence import vectors as module
from retro_demo.evidence.vectors import WordVectors, cosines


def drawn(count: int, widths: tuple[int, int, int], terms: int = 12, languages: int = 3) -> WordVectors:
    """Random bags of length 1 of two kinds, and something learned, around random means."""
    rng = np.random.default_rng(0)
    columns, values = [], []
    for _ in range(count):
        for begin, width in ((0, widths[0]), (widths[0], widths[1])):
            weights = rng.random(terms).astype(np.float32)
            columns.append(begin + np.sort(rng.choice(width, terms, replace=False)))
            values.append(weights / np.linalg.norm(weights))
    learned = rng.normal(size=(count, widths[2])).astype(np.float32)
    return WordVectors(
        starts=np.arange(count + 1) * 2 * terms,
        columns=np.concatenate(columns).astype(np.int32),
        values=np.concatenate(values),
        learned=learned / np.linalg.norm(learned, axis=1, keepdims=True),
        language=rng.integers(0, languages, count),
        means=rng.normal(size=(languages, sum(widths))).astype(np.float32) / 50,
        shares=(0.3, 0.6, 0.1),
        widths=widths,
    )


@pytest.mark.parametrize("at_once", [7, 4096])
def test_cosines_are_those_of_embeddings_written_out(monkeypatch, at_once):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    vectors = drawn(40, (60, 90, 8))
    own, others = np.arange(5, 17), np.arange(40)[::-1]

    written = vectors.written_out(np.arange(40))
    np.testing.assert_allclose(np.linalg.norm(written, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(cosines(vectors, own, others), written[own] @ written[others].T, atol=1e-5)
    sketch = vectors.sketch
    np.testing.assert_allclose(np.linalg.norm(sketch, axis=1), 1, atol=1e-5)
    assert np.abs(sketch[own] @ sketch[others].T - written[own] @ written[others].T).mean() < 0.05


def test_memory_grows_with_the_terms_of_the_passages_and_not_with_their_width():
    vectors = drawn(3000, (4096, 16384, 8))
    written = len(vectors) * vectors.width * 4
    _ = vectors.sketch  # its table of signs is as wide as they are, and there is but one

    tracemalloc.start()
    vectors.learned_alone()
    cosines(vectors, np.arange(8), np.arange(len(vectors)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < written / 4
