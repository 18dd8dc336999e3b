"""Passages without a corpus: every field as a test wants it, sensible where it does not say."""

from __future__ import annotations

import numpy as np

from retro_demo.evidence.passages import Passages


def made(
    document,
    *,
    language=None,
    group=None,
    content=None,
    position=None,
    held_out=None,
    database_only=None,
    lengths=None,
) -> Passages:
    """document (P,): of each passage; by default a group, a text and 8 tokens of its own, one language."""
    document = np.asarray(document)
    size = len(document)
    language = np.zeros(size, int) if language is None else np.asarray(language)
    lengths = np.full(size, 8) if lengths is None else np.asarray(lengths)
    none = np.zeros(size, dtype=bool)
    return Passages(
        tokens=np.where(np.arange(lengths.max(initial=1)) < lengths[:, None], 7, 0),
        document=document,
        position=np.zeros(size, int) if position is None else np.asarray(position),
        language=language,
        group=document if group is None else np.asarray(group),
        content=np.arange(size) if content is None else np.asarray(content),
        held_out=none if held_out is None else np.asarray(held_out),
        database_only=none if database_only is None else np.asarray(database_only),
        languages=tuple("abcdefgh"[: language.max(initial=0) + 1]),
    )


def drawn(rng: np.random.Generator, size: int, *, languages: int = 3) -> Passages:
    """Passages of long and short documents in groups, some texts several times, of 2 to 40 tokens."""
    document = np.sort(rng.integers(0, max(1, size // 3), size))
    first = np.searchsorted(document, document)
    return made(
        document,
        language=rng.integers(0, languages, size)[first],
        group=(rng.integers(0, max(1, size // 6), size))[first],
        content=rng.integers(0, max(1, size * 3 // 4), size),
        position=np.arange(size) - first,
        lengths=rng.integers(2, 41, size),
    )
