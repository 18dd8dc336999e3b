"""Batches for RETRO (windows with the neighbors of their chunks) and for MARGE (targets with their evidence).

Batches are a function of the seed and the step alone, so a resumed run reads the very batches that it would
have read. For MARGE all training passages are embedded every `refresh_every` steps with the encoder as it is
then, the most relevant pairs of each shard are kept, and batches are cut from them until the next time. What
was found is saved in the run folder; a re-index that a kill undid is made again from the same weights.

The retrieval curriculum ("lessons" in flags) teaches a model to read. A real neighbor seldom holds what the
text says next, so the gradient seldom says "copy this". An oracle neighbor is made from the text itself: the
chunk and its true continuation, moved by some tokens (so that the position alone does not give the answer
away) and partly overwritten with noise (so that it is checked before it is trusted). Training begins with
many oracle neighbors and ends with few or none. The oracle arm of an evaluation (evaluation/arms.py) is the
gauge: the same kind of neighbor, unmoved. Source of the idea: paraphrase neighbors cut training time in
Doostmohammadi & Kuhlmann 2025.

Shapes: B batch, T tokens, L chunks of a window, C chunk length, K neighbors, R = 2 C neighbor length,
P passages, S passage length, D width, M evidence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import Corpus
from retro_demo.devices import SINGLE_PROCESS, World, on_main
from retro_demo.errors import UserError
from retro_demo.events import Reindexed
from retro_demo.evidence.batching import Subgraph, make_subgraphs
from retro_demo.evidence.passages import (
    Pairs,
    chance_of_group,
    cut_passages,
    find_pairs,
    in_evidence_set,
    pair_figures,
    random_pairs,
)
from retro_demo.evidence.reindex import (
    Reindexing,
    embed_passages,
    load_reindexing,
    recall,
    save_reindexing,
    scripts_of,
    shown_rows,
)
from retro_demo.models.config import EvidenceConfig
from retro_demo.models.marge import MARGE, MargeBatch
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
        `lessons_kept` (see training/batches.py).
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


def check_share(config: TrainConfig, world: World) -> None:
    """Raise UserError where a batch has fewer sequences than there are processes to share it."""
    if config.batch_size < world.size:
        raise UserError(
            f"A batch has {config.batch_size} sequence{'s' * (config.batch_size > 1)}, but {world.size} "
            f"processes share it: start at most {config.batch_size}, or train a run with a larger batch."
        )


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.full(length - len(rows), -1, dtype=rows.dtype)])


MARGE_CURRICULUM = 3  # chance of its own


class MargeBatches:
    """Training batches of one corpus, refreshed with the encoder; a function of seed, step and weights."""

    def __init__(
        self,
        corpus: Corpus,
        languages: tuple[str, ...],
        config: EvidenceConfig,
        *,
        seed: int,
        steps: int,
        reading_steps: int = 0,
        lessons_kept: float = 0.0,
    ) -> None:
        """`languages`: those that the model has tokens for.

        Over the first `reading_steps` steps lessons fade out to the share `lessons_kept` of the
        targets: copies of a target with up to half of its tokens overwritten, among the evidence.
        """
        # the control with random evidence has nothing to read, so it gets no lessons either
        taught = config.evidence_source == "retrieved"
        self.reading_steps, self.lessons_kept = (reading_steps, lessons_kept) if taught else (0, 0.0)
        self.vocab_size = corpus.tokenizer.vocab_size
        self.passages = cut_passages(corpus, config.passage_len, languages)
        self.config, self.seed, self.steps = config, seed, steps
        trained_on = ~self.passages.held_out
        self.targets = trained_on & ~self.passages.database_only
        self.candidates = trained_on & in_evidence_set(self.passages, config)
        if config.first_passages:
            self.targets &= self.passages.position == 0
        self.scripts = scripts_of(corpus, languages)
        self.found: Reindexing | None = None  # the last re-index that batches come from
        self._epoch: tuple[tuple[int, int], list[Subgraph]] | None = None
        self._sizes: dict[tuple[int, int], int] = {}
        self._embedded: tuple[int, np.ndarray] | None = None  # step, (P, D)

    def embeddings(self, step: int, model: MARGE, world: World = SINGLE_PROCESS) -> np.ndarray:
        """Embeddings (P, D) of all passages by the weights before `step`.

        Where a measurement and a re-index meet they share them: nothing is embedded twice.
        """
        if self._embedded is None or self._embedded[0] != step:
            self._embedded = step, embed_passages(model, self.passages.tokens, world)
        return self._embedded[1]

    def due(self, step: int) -> bool:
        """Whether there is a re-index before `step` (from 0); the one behind all steps is to be looked at."""
        return step % self.config.refresh_every == 0 or step == self.steps

    def refresh(self, step: int, model: MARGE, folder: Path, world: World = SINGLE_PROCESS) -> Reindexed:
        """Embed all passages again, find their evidence and keep both in `folder`; at step 0, too.

        Several processes share the embedding; the main one finds and keeps, the others read what it kept,
        so that no difference between machines can part them. Raises UserError where no passage has any
        evidence.
        """
        begun = time.perf_counter()
        vectors = self.embeddings(step, model, world)
        with on_main(world):
            told = self._found(step, model, vectors, folder, begun) if world.is_main else {}
        if not world.is_main and step < self.steps:
            self.found = load_reindexing(folder, step)
        return Reindexed(step, told)

    def _found(
        self, step: int, model: MARGE, vectors: np.ndarray, folder: Path, begun: float
    ) -> dict[str, Any]:
        """Find the evidence by the embeddings of all passages and keep both; returns the figures."""
        pairs = find_pairs(
            vectors,
            self.passages,
            self.config,
            targets=self.targets,
            candidates=self.candidates,
            seed=self.seed,
        )
        if not len(pairs.target):
            raise UserError(
                f"No passage of this corpus has evidence: of {len(self.passages.document)} none may be "
                "evidence for another. Add documents, or allow evidence from the same document or language."
            )
        if step > 0:  # a resumed run may not have it in memory
            self.resume(step - 1, folder)
        before = self.found.pairs if step > 0 and self.found else None
        figures = pair_figures(pairs, self.passages, self.targets, before)
        figures["same_group_by_chance"] = chance_of_group(
            pairs, self.passages, self.config, candidates=self.candidates, shard_seed=self.seed
        )
        across = recall(vectors, self.passages, self.passages.held_out, self.scripts)
        across.pop("languages", None)
        cells = across.pop("matrix", None)
        matrix = None if cells is None else np.array(cells, dtype=np.float32)  # NaN where there is no pair
        rows = shown_rows(self.passages.position)
        figures |= {"recall": across, "beta": model.betas(), "seconds": round(time.perf_counter() - begun, 3)}
        found = Reindexing(step, pairs, rows, vectors[rows], figures, matrix)
        if step < self.steps:  # the one behind the last step is only looked at
            self.found = found
            figures["batches"] = self._size_of(0)
        save_reindexing(folder, found)
        return found.figures

    def passes_at_most(self, steps: int) -> float:
        """How often so many steps read the targets, were batches full of them and of no evidence."""
        return passes_of(steps, self.config.batch_tokens, int(self.passages.lengths[self.targets].sum()))

    def last_due(self, step: int) -> int:
        """Before which step the evidence of the batch of `step` was found."""
        return step // self.config.refresh_every * self.config.refresh_every

    def resume(self, step: int, folder: Path) -> bool:
        """Take up the evidence that the batch of `step` comes from; False where it has to be found again."""
        last = self.last_due(step)
        if self.found is None or self.found.step != last:
            try:
                self.found = load_reindexing(folder, last)
            except UserError:  # damaged is as good as lost
                self.found = None
        return self.found is not None

    def train_batch(self, step: int) -> MargeBatch:
        """The batch of optimizer step `step`: a subgraph of the pairs found last, each target once."""
        assert self.found is not None, "evidence is found before batches are read"
        number = step - self.found.step
        epoch = 0
        while number >= (size := self._size_of(epoch)):
            number -= size
            epoch += 1
        graph = self._subgraphs(self.found.pairs, epoch)[number]
        batch = self.batch(graph.targets, graph.evidence)
        share = curriculum_share(step, self.reading_steps, self.lessons_kept)
        return self._with_target_copies(batch, share, step) if share else batch

    def _with_target_copies(self, batch: MargeBatch, share: float, step: int) -> MargeBatch:
        """Put overwritten copies of a share of the targets among the evidence."""
        rng = np.random.default_rng([self.seed, MARGE_CURRICULUM, step])
        targets = batch.targets.numpy()
        taught = targets[rng.random(len(targets)) < share]
        noise = MOST_CORRUPTED * rng.random((len(taught), 1))
        copies = np.concatenate([taught[:, :1], corrupt(taught[:, 1:], noise, self.vocab_size, rng)], axis=1)
        width = max(copies.shape[1], batch.evidence.shape[1])
        parts = [batch.evidence, torch.from_numpy(copies)]
        wide = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return MargeBatch(batch.targets, torch.cat(wide))

    def _size_of(self, epoch: int) -> int:
        """How many batches an epoch of the last re-index has; counted once."""
        assert self.found is not None
        key = (self.found.step, epoch)
        if key not in self._sizes:
            self._sizes[key] = len(self._subgraphs(self.found.pairs, epoch))
        return self._sizes[key]

    def _subgraphs(self, pairs: Pairs, epoch: int) -> list[Subgraph]:
        assert self.found is not None
        key = (self.found.step, epoch)
        if self._epoch is None or self._epoch[0] != key:
            seed = int(np.random.default_rng([self.seed, *key]).integers(2**31))
            if self.config.evidence_source == "random":
                pairs = random_pairs(
                    pairs,
                    self.passages,
                    self.config,
                    candidates=self.candidates,
                    shard_seed=self.seed,
                    seed=seed,
                )
            self._epoch = key, make_subgraphs(pairs, self.passages, self.config, seed)
        return self._epoch[1]

    def batch(self, targets: np.ndarray, evidence: np.ndarray) -> MargeBatch:
        """Passage ids of targets and evidence -> their tokens, no wider than the longest of each."""
        return MargeBatch(self._rows(targets), self._rows(evidence))

    def _rows(self, ids: np.ndarray) -> torch.Tensor:
        tokens = self.passages.tokens[ids]
        width = max(1, int((tokens != 0).sum(axis=1).max(initial=1)))
        return torch.from_numpy(tokens[:, :width])
