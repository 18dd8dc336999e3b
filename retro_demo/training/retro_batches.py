"""Batches for RETRO: windows with the neighbors of their chunks, and the retrieval curriculum.

Batches are a function of the seed and the step alone, so a resumed run reads the very batches that it would
have read.

The retrieval curriculum ("lessons" in flags) teaches a model to read. A real neighbor seldom holds what the
text says next, so the gradient seldom says "copy this". An oracle neighbor is made from the text itself: the
chunk and its true continuation, moved by some tokens (so that the position alone does not give the answer
away) and partly overwritten with noise (so that it is checked before it is trusted). Training begins with
many oracle neighbors and ends with few or none. The oracle arm of an evaluation (evaluation/arms.py) is the
gauge: the same kind of neighbor, unmoved. Source of the idea: paraphrase neighbors cut training time in
Doostmohammadi & Kuhlmann 2025.

Shapes: B batch, T tokens, L chunks of a window, C chunk length, K neighbors, R = 2 C neighbor length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import MANIFEST, Corpus, training_tokens
from retro_demo.devices import World
from retro_demo.errors import UserError
from retro_demo.models.retro import RetroBatch
from retro_demo.runs.alarms import passes_of
from retro_demo.runs.planning import check_windows
from retro_demo.settings import TrainConfig

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


def curriculum_share(step: int, reading_steps: int, kept: float = 0.0) -> float:
    """The share of chunks that get a neighbor with the answer: from all, linearly down to `kept`."""
    fading = max(0.0, 1.0 - step / reading_steps) if reading_steps else 0.0
    return kept + (1.0 - kept) * fading


def with_oracle_neighbors(
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


CURRICULUM, RANDOM = 1, 2  # each use of chance has numbers of its own, drawn from seed and step


class RetroBatches:
    """Training and held-out batches of one corpus, with neighbors or (for `lm`) without.

    A window is L consecutive training chunks, documents packed one after the other. Its neighbors
    never come from a document that stands in the window: a packed neighbor would show what follows.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seq_len: int,
        batch_size: int,
        num_neighbors: int,
        retrieves: bool,
        seed: int,
        neighbor_ids: np.ndarray | None = None,
        neighbor_source: str = "retrieved",
        noise: float = 0.0,
        reading_steps: int = 0,
        lessons_kept: float = 0.0,
    ) -> None:
        """neighbor_ids (N, stored) of all chunks, best first; None: those of the corpus' own index.

        `neighbor_source` "random" takes random training chunks in place of all neighbors and gives no
        lessons: the control that has nothing to read. `noise` does so for a share of them, in training
        only. Over the first `reading_steps` steps neighbors that hold the answer fade out to the share
        `lessons_kept` (see training/retro_batches.py).
        """
        neighbor_ids = corpus.neighbor_ids if neighbor_ids is None else neighbor_ids
        check_windows(corpus, seq_len, num_neighbors)
        self.corpus = corpus
        self.neighbor_ids = neighbor_ids
        self.neighbor_source = neighbor_source
        self.noise = noise
        # the control with random neighbors has nothing to read, so it gets no lessons either
        self.reading_steps = reading_steps if neighbor_source == "retrieved" else 0
        self.lessons_kept = lessons_kept if neighbor_source == "retrieved" else 0.0
        self.window = seq_len // corpus.config.chunk_len
        self.batch_size = batch_size
        self.num_neighbors = num_neighbors
        self.retrieves = retrieves
        self.seed = seed
        self.rows = np.flatnonzero(~(corpus.held_out | corpus.database_only)[corpus.chunks.document])
        # what neighbors are drawn from where chance takes the place of the retriever
        self.database = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
        self.windows_per_epoch = windows_of(len(self.rows), self.window)
        self._epoch: tuple[int, int, np.ndarray] | None = None  # the last one: offset and order of windows

    def train_batch(self, step: int) -> RetroBatch:
        """The batch of optimizer step `step`: windows drawn without repetition within an epoch."""
        first = step * self.batch_size
        rows = np.stack([self._window(i) for i in range(first, first + self.batch_size)])
        batch = self._batch(rows, noise=self.noise, rng=np.random.default_rng([self.seed, RANDOM, step]))
        share = curriculum_share(step, self.reading_steps, self.lessons_kept)
        if batch.neighbors is None or not share:
            return batch
        # the last chunk of a document keeps nothing to read: what follows it is another document
        whole = self.corpus.chunks.has_continuation(rows[:, :-1])
        taught = with_oracle_neighbors(
            batch.neighbors.numpy(),
            batch.tokens.numpy(),
            self.corpus.config.chunk_len,
            self.corpus.tokenizer.vocab_size,
            share * whole,
            np.random.default_rng([self.seed, CURRICULUM, step]),
        )
        return RetroBatch(batch.tokens, torch.from_numpy(taught))

    def _window(self, draw: int) -> np.ndarray:
        """Chunk ids (L,) of the draw-th window of the run; each epoch begins at another offset."""
        epoch, place = divmod(draw, self.windows_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:  # a large corpus has many windows to shuffle
            rng = np.random.default_rng([self.seed, epoch])
            spare = max(1, len(self.rows) - self.windows_per_epoch * self.window + 1)
            self._epoch = epoch, int(rng.integers(spare)), rng.permutation(self.windows_per_epoch)
        _, offset, order = self._epoch
        start = offset + order[place] * self.window
        return _padded(self.rows[start : start + self.window], self.window)

    def held_out_batches(self, max_tokens: int) -> Iterator[tuple[np.ndarray, RetroBatch]]:
        """Yield (documents (B,), batch) over windows spread evenly through the held-out documents.

        A window lies within one document; together they read about `max_tokens` tokens.
        """
        chunks = self.corpus.chunks
        windows = []
        for document in np.flatnonzero(self.corpus.held_out):
            rows = np.flatnonzero(chunks.document == document)
            windows += [(document, rows[i : i + self.window]) for i in range(0, len(rows), self.window)]
        # a window of one chunk has no position that retrieval can reach
        windows = [(document, rows) for document, rows in windows if len(rows) > 1]
        tokens_each = self.window * self.corpus.config.chunk_len
        wanted = max(1, min(len(windows), max_tokens // tokens_each))
        chosen = (
            [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, wanted).astype(int))]
            if windows
            else []
        )
        for start in range(0, len(chosen), self.batch_size):
            part = chosen[start : start + self.batch_size]
            yield (
                np.array([document for document, _ in part]),
                self._batch(
                    np.stack([_padded(rows, self.window) for _, rows in part]),
                    rng=np.random.default_rng([self.seed, RANDOM]),
                ),
            )

    def _batch(self, rows: np.ndarray, *, rng: np.random.Generator, noise: float = 0.0) -> RetroBatch:
        """rows (B, L) of chunk ids, -1 = nothing -> the batch; a share `noise` of its neighbors is random."""
        chunks = self.corpus.chunks
        tokens = np.where((rows >= 0)[..., None], chunks.tokens[rows], 0).reshape(len(rows), -1)
        neighbors = None
        if self.retrieves:
            # the last chunk's neighbors would act on no token of the window that has a target
            ids = self._neighbors(rows)
            random = 1.0 if self.neighbor_source == "random" else noise
            if random:
                ids = self._with_random(rows, ids, random, rng)
            neighbors = torch.from_numpy(chunks.with_continuation(ids[:, :-1]))
        return RetroBatch(torch.from_numpy(tokens.astype(np.int64)), neighbors)

    def _neighbors(self, rows: np.ndarray) -> np.ndarray:
        """rows (B, L) -> chunk ids of the neighbors (B, L, K), the best allowed ones first, -1 = none."""
        chunks = self.corpus.chunks
        ids = np.where((rows >= 0)[..., None], self.neighbor_ids[rows], -1)  # (B, L, stored)
        forbidden = (ids < 0) | self._shown_in_window(rows, ids)
        # what follows the last chunk of a document is another document: its neighbors say nothing of it
        forbidden |= ~chunks.has_continuation(rows)[..., None]
        order = np.argsort(forbidden, axis=-1, kind="stable")
        allowed = np.take_along_axis(np.where(forbidden, -1, ids), order, axis=-1)
        return allowed[..., : self.num_neighbors]

    def _with_random(
        self, rows: np.ndarray, ids: np.ndarray, share: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Put random chunks of the database in place of a share of the neighbors ids (B, L, K) that stand."""
        drawn = self.database[rng.integers(len(self.database), size=ids.shape)]
        struck = (rng.random(ids.shape) < share) & (ids >= 0)
        return np.where(struck & ~self._shown_in_window(rows, drawn), drawn, np.where(struck, -1, ids))

    def _shown_in_window(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Whether each of ids (B, L, S) would show text of its own window rows (B, L): bool (B, L, S)."""
        if self.corpus.sections:  # all windows are of one document: the chunks themselves count
            there = rows[:, None, None, :]
            return ((ids[..., None] == there) | (ids[..., None] + 1 == there)).any(axis=-1)
        chunks, cluster = self.corpus.chunks, self.corpus.cluster
        there = np.where(rows >= 0, cluster[chunks.document[rows]], -1)  # (B, L)
        return (cluster[chunks.document[ids]][..., None] == there[:, None, None, :]).any(axis=-1)


def windows_of(chunks: int, window: int) -> int:
    """How many windows of so many chunks make a pass over the training text, at least one."""
    return max(1, chunks // window)


def retro_passes(corpus: Path, settings: Mapping[str, Any]) -> float:
    """The passes of a training that reads windows of chunks."""
    chunk_len = json.loads((corpus / MANIFEST).read_text("utf-8"))["config"]["chunk_len"]
    chunks = int((-(-training_tokens(corpus) // chunk_len)).sum())
    windows = windows_of(chunks, max(1, settings["seq_len"] // chunk_len))
    return passes_of(settings["steps"], settings["batch_size"], windows)


def check_share(config: TrainConfig, world: World) -> None:
    """Raise UserError where a batch has fewer sequences than there are processes to share it."""
    if config.batch_size < world.size:
        raise UserError(
            f"A batch has {config.batch_size} sequence{'s' * (config.batch_size > 1)}, but {world.size} "
            f"processes share it: start at most {config.batch_size}, or train a run with a larger batch."
        )


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.full(length - len(rows), -1, dtype=rows.dtype)])
