"""Neighbors that hold the answer: what teaches a model to read before it has anything to read.

A real neighbor seldom holds what the text says next, so the gradient seldom says "copy this".
Here a chunk's neighbor is made from the text itself: the chunk and its true continuation, moved by
some tokens (so that the place alone does not give the answer away) and partly overwritten with
noise (so that it is checked before it is trusted). Training begins with many such neighbors and
ends with few or none. The oracle arm of an evaluation (evaluation/arms.py) is the gauge: a like neighbor,
unmoved.

Source of the idea: paraphrase neighbors cut training time in Doostmohammadi & Kuhlmann 2025.

Shapes: B batch, T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length.
"""

from __future__ import annotations

import numpy as np

MOST_CORRUPTED = 0.5  # in training the noise of a neighbor is drawn between none and this share


def true_continuations(
    tokens: np.ndarray, num_chunks: int, chunk_len: int, shift: np.ndarray | int = 0
) -> np.ndarray:
    """tokens (B, T) -> the first `num_chunks` chunks, each with what truly follows: (B, L, 2 C).

    `shift`, a number or (B, L), moves the view to the right by so many tokens; what lies outside
    of the text is padding.
    """
    batch = len(tokens)
    starts = np.arange(num_chunks) * chunk_len + np.broadcast_to(shift, (batch, num_chunks))
    places = starts[..., None] + np.arange(2 * chunk_len)  # (B, L, R)
    inside = (places >= 0) & (places < tokens.shape[1])
    rows = np.arange(batch)[:, None, None]
    return np.where(inside, tokens[rows, np.where(inside, places, 0)], 0)


def corrupt(
    neighbors: np.ndarray, share: np.ndarray | float, vocab_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Overwrite a share of the tokens of neighbors (..., R) with random ones; padding stays padding."""
    struck = (rng.random(neighbors.shape) < share) & (neighbors != 0)
    return np.where(struck, rng.integers(1, vocab_size, neighbors.shape), neighbors)


def reading_share(step: int, reading_steps: int, kept: float = 0.0) -> float:
    """The share of chunks that get a neighbor with the answer: from all, linearly down to `kept`."""
    fading = max(0.0, 1.0 - step / reading_steps) if reading_steps else 0.0
    return kept + (1.0 - kept) * fading


def with_answers(
    neighbors: np.ndarray,
    tokens: np.ndarray,
    chunk_len: int,
    vocab_size: int,
    share: np.ndarray | float,
    rng: np.random.Generator,
) -> np.ndarray:
    """neighbors (B, L, K, R) of tokens (B, T): in a share of the chunks one neighbor holds the answer.

    It takes the place of one of the K at random, moved by up to half a chunk either way. The share, a
    number or (B, L), can differ from chunk to chunk: 0 where a document ends.
    """
    batch, num_chunks, num_neighbors = neighbors.shape[:3]
    shift = rng.integers(-(chunk_len // 2), chunk_len // 2 + 1, (batch, num_chunks))
    answers = true_continuations(tokens, num_chunks, chunk_len, shift)
    noise = MOST_CORRUPTED * rng.random((batch, num_chunks, 1))
    answers = corrupt(answers, noise, vocab_size, rng)
    taken = (rng.random((batch, num_chunks)) < share)[..., None] & (
        np.arange(num_neighbors) == rng.integers(num_neighbors, size=(batch, num_chunks))[..., None]
    )
    return np.where(taken[..., None], answers[:, :, None], neighbors)
