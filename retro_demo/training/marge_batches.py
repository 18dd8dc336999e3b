"""What a MARGE batch is: targets with the evidence that the model itself finds for them.

Every `refresh_every` steps all training passages are embedded with the encoder as it is then, the
most relevant pairs of each shard are kept, and batches are cut from them until the next time. What
was found is saved in the run folder, so a resumed run reads the very batches that it would have read; a
re-index that a kill undid is made again from the same weights.

Shapes: P passages, S passage length, D width, M evidence.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import Corpus
from retro_demo.devices import ALONE, World, led
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
from retro_demo.runs.alarms import passes_of
from retro_demo.training.retro_batches import MOST_CORRUPTED, corrupt, reading_share

LESSONS = 3  # chance of its own


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
            self.targets &= self.passages.place == 0
        self.scripts = scripts_of(corpus, languages)
        self.found: Reindexing | None = None  # the last re-index that batches come from
        self._epoch: tuple[tuple[int, int], list[Subgraph]] | None = None
        self._sizes: dict[tuple[int, int], int] = {}
        self._embedded: tuple[int, np.ndarray] | None = None  # step, (P, D)

    def embeddings(self, step: int, model: MARGE, world: World = ALONE) -> np.ndarray:
        """Embeddings (P, D) of all passages by the weights before `step`.

        Where a measurement and a re-index meet they share them: nothing is embedded twice.
        """
        if self._embedded is None or self._embedded[0] != step:
            self._embedded = step, embed_passages(model, self.passages.tokens, world)
        return self._embedded[1]

    def due(self, step: int) -> bool:
        """Whether there is a re-index before `step` (from 0); the one behind all steps is to be looked at."""
        return step % self.config.refresh_every == 0 or step == self.steps

    def refresh(self, step: int, model: MARGE, folder: Path, world: World = ALONE) -> Reindexed:
        """Embed all passages again, find their evidence and keep both in `folder`; at step 0, too.

        Several processes share the embedding; the leader finds and keeps, the others read what it kept,
        so that no difference between machines can part them. Raises UserError where no passage has any
        evidence.
        """
        begun = time.perf_counter()
        vectors = self.embeddings(step, model, world)
        with led(world):
            told = self._found(step, model, vectors, folder, begun) if world.leads else {}
        if not world.leads and step < self.steps:
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
        rows = shown_rows(self.passages.place)
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
        share = reading_share(step, self.reading_steps, self.lessons_kept)
        return self._with_lessons(batch, share, step) if share else batch

    def _with_lessons(self, batch: MargeBatch, share: float, step: int) -> MargeBatch:
        """Put overwritten copies of a share of the targets among the evidence."""
        rng = np.random.default_rng([self.seed, LESSONS, step])
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
