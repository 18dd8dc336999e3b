"""Batches for MARGE: targets with their evidence, as subgraphs of the graph of all pairs of the two.

Every `refresh_every` steps evidence/reindex.py finds the most relevant pairs with the encoder as it is then,
and batches are cut from them until the next time. A re-index that a kill undid is made again from the same
weights.

In a batch every target sees the evidence of all of them, so targets that share evidence belong together: the
evidence is read once and gives each of them more edges for the same tokens.

Shapes: E pairs, P passages, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.store import Corpus, training_tokens
from retro_demo.devices import SINGLE_PROCESS, World, on_main
from retro_demo.errors import UserError
from retro_demo.events import Reindexed
from retro_demo.evidence.passages import Pairs, Passages, cut_passages, in_evidence_set, random_pairs
from retro_demo.evidence.reindex import (
    Reindexing,
    center_anew,
    embed_passages,
    load_reindexing,
    reindex,
    save_reindexing,
    scripts_of,
    weights_of_tokens,
)
from retro_demo.evidence.shared_words import shared_tokens, without
from retro_demo.evidence.vectors import Vectors
from retro_demo.models.config import EvidenceConfig
from retro_demo.models.marge import MARGE, MargeBatch
from retro_demo.models.words import WordCounts
from retro_demo.runs.alarms import passes_of
from retro_demo.training.retro_batches import MOST_CORRUPTED, corrupt, curriculum_share

# A target of which less than this share of the edge weight fits waits for another batch: it comes only
# once in an epoch, while tokens left empty cost no more than a smaller batch.
LEAST_SHARE = 0.5
# So many targets in a row that find no place close a batch: it is about full.
MOST_MISSES = 32
LEAST_TOKENS = 64  # of a subgraph


@dataclass(frozen=True)
class Subgraph:
    """A batch: passage ids of targets (N,) and of all their evidence (M,), each only once."""

    targets: np.ndarray
    evidence: np.ndarray


def edge_weights(pairs: Pairs, passages: Passages, config: EvidenceConfig) -> np.ndarray:
    """float64 (E,): `language_weight` for a pair of two languages, 1 within one."""
    across = passages.language[pairs.target] != passages.language[pairs.evidence]
    return np.where(across, config.language_weight, 1.0)


def kept_edges(subgraphs: list[Subgraph], pairs: Pairs) -> np.ndarray:
    """Which pairs stand together in the batch of their target, bool (E,)."""
    kept = np.zeros(len(pairs), dtype=bool)
    bounds = np.searchsorted(pairs.target, np.arange(pairs.target.max(initial=-1) + 2))
    for batch in subgraphs:
        edges = np.concatenate([np.arange(bounds[t], bounds[t + 1]) for t in batch.targets])
        kept[edges] = np.isin(pairs.evidence[edges], batch.evidence)
    return kept


def make_subgraphs(pairs: Pairs, passages: Passages, config: EvidenceConfig, seed: int) -> list[Subgraph]:
    """An epoch: every target that has evidence in exactly one batch, with at least one of its own there.

    A batch begins with a target drawn at random and grows by the one whose edges into the batch, with
    its own evidence added, weigh most for the tokens that it brings; where none is connected, by
    others that fit. A target brings all its evidence or, where that does not fit, the heaviest
    (of equal weight the most relevant). Tokens of targets and evidence stay within `batch_tokens`,
    but for a target alone that needs more with a single passage of evidence.

    No passage is evidence in a batch where it, or the same text, is a target. Raises ValueError
    where a pair is of one text. The batches come in random order; the seed decides everything.
    """
    if (passages.content[pairs.target] == passages.content[pairs.evidence]).any():
        raise ValueError("a target is its own evidence: make pairs with find_pairs")
    rng = np.random.default_rng([seed, 2])
    graph = _Graph(pairs, passages, config, rng)
    batches = []
    while graph.free.any():
        batch = _grow(graph, config.batch_tokens)
        graph.free[batch.targets] = False
        batches.append(Subgraph(graph.order[batch.targets], np.array(list(batch.evidence))))
    return [batches[i] for i in rng.permutation(len(batches))]


def make_batches_of_subgraphs(
    pairs: Pairs, passages: Passages, config: EvidenceConfig, seed: int
) -> list[Subgraph]:
    """The batches of an epoch: subgraphs of a share of the tokens, `config.subgraphs` of them together.

    A passage that is a target, or has the text of one, is evidence for nobody in its batch.
    """
    if config.subgraphs == 1:
        return make_subgraphs(pairs, passages, config, seed)
    small = replace(config, batch_tokens=max(LEAST_TOKENS, config.batch_tokens // config.subgraphs))
    graphs, batches = make_subgraphs(pairs, passages, small, seed), []
    for start in range(0, len(graphs), config.subgraphs):
        some = graphs[start : start + config.subgraphs]
        targets = np.concatenate([one.targets for one in some])
        evidence = np.unique(np.concatenate([one.evidence for one in some]))
        evidence = evidence[~np.isin(passages.content[evidence], passages.content[targets])]
        if len(evidence):
            batches.append(Subgraph(targets, evidence))
    return batches


class _Graph:
    """The pairs by target and by evidence; targets are numbered (T) in a random order, which breaks ties."""

    def __init__(
        self, pairs: Pairs, passages: Passages, config: EvidenceConfig, rng: np.random.Generator
    ) -> None:
        self.order = rng.permutation(np.unique(pairs.target))
        number = np.zeros(len(passages), dtype=np.int64)
        number[self.order] = np.arange(len(self.order))
        target, weights = number[pairs.target], edge_weights(pairs, passages, config)
        self.tokens: list[int] = passages.lengths.tolist()
        self.content: list[int] = passages.content.tolist()
        self.free = np.ones(len(self.order), dtype=bool)  # no batch has it yet
        self.weight = np.bincount(target, weights, len(self.order))
        evidence_tokens = np.bincount(target, passages.lengths[pairs.evidence], len(self.order))
        self.cost = passages.lengths[self.order] + evidence_tokens  # with all its evidence
        self.edges: list[list[tuple[int, float]]] = [[] for _ in self.order]
        """evidence and weight of each target, the heaviest and most relevant first"""
        best = np.lexsort((pairs.evidence, -pairs.relevance, -weights))
        columns = (target[best], pairs.evidence[best], weights[best])
        targets_of: dict[int, list[int]] = {}
        for t, evidence, weight in zip(*(column.tolist() for column in columns), strict=True):
            self.edges[t].append((evidence, weight))
            targets_of.setdefault(evidence, []).append(t)
        self.targets_of = {evidence: np.array(targets) for evidence, targets in targets_of.items()}
        self.of_content: dict[int, list[int]] = {}
        """targets with the same text"""
        for t, passage in enumerate(self.order.tolist()):
            self.of_content.setdefault(self.content[passage], []).append(t)


class _Batch:
    """A batch in the making; its targets by their numbers in the graph, evidence by passage ids."""

    def __init__(self, graph: _Graph, budget: int) -> None:
        self.graph, self.left = graph, budget
        self.targets: list[int] = []
        self.evidence: dict[int, None] = {}  # in the order of adding
        self._texts: set[int] = set()  # contents of the targets

    def offer(self, target: int) -> tuple[float, list[int]] | None:
        """The weight for each token that the target brings, and the evidence to add; None: no place.

        An empty batch takes any target, with one passage of evidence at least.
        """
        graph, first = self.graph, not self.targets
        left = self.left - graph.tokens[graph.order[target]]
        if left < 0 and not first:
            return None
        gain, held, new = 0.0, False, []
        for evidence, weight in graph.edges[target]:
            if evidence in self.evidence:
                gain, held = gain + weight, True
            elif graph.content[evidence] not in self._texts and (
                graph.tokens[evidence] <= left or (first and not new)
            ):
                gain, left = gain + weight, left - graph.tokens[evidence]
                new.append(evidence)
        if not (held or new) or (gain < LEAST_SHARE * graph.weight[target] and not first):
            return None
        return gain / (self.left - left), new

    def add(self, target: int, evidence: list[int]) -> None:
        """Put a target and its missing evidence in."""
        graph, passage = self.graph, self.graph.order[target]
        self.targets.append(target)
        self._texts.add(graph.content[passage])
        self.evidence.update(dict.fromkeys(evidence))
        self.left -= graph.tokens[passage] + sum(graph.tokens[one] for one in evidence)


def _grow(graph: _Graph, budget: int) -> _Batch:
    """One batch of free targets."""
    batch = _Batch(graph, budget)
    closed = ~graph.free  # in a batch already, or evidence in this one
    there = np.zeros(len(closed))  # tokens of a target's evidence that the batch has
    density = np.full(len(closed), -1.0)  # weight for a token of what is connected, at best; -1: not
    starts = iter(np.flatnonzero(graph.free))
    misses = 0
    while misses < MOST_MISSES:
        target = int(density.argmax())
        if density[target] < 0:
            target = int(next(starts, -1))
        if target < 0:
            break
        if closed[target]:
            continue
        offered = batch.offer(target)
        if offered is None:
            density[target] = -1
            misses += 1
            continue
        value, evidence = offered
        if value < density[target]:  # not all of its evidence has a place here
            density[target] = value
            if density.argmax() != target:
                continue
        misses = 0
        batch.add(target, evidence)
        shut = [target]
        for one in evidence:
            there[graph.targets_of[one]] += graph.tokens[one]
            shut += graph.of_content.get(graph.content[one], [])
        closed[shut] = True
        for one in evidence:
            touched = graph.targets_of[one]
            density[touched] = graph.weight[touched] / (graph.cost[touched] - there[touched])
        density[closed] = -1
    return batch


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
        self._shared = (
            shared_tokens(self.passages, corpus.tokenizer) if config.shared_dropout and taught else None
        )
        self._counted: WordCounts | None = None  # of all passages
        self._embedded: tuple[int, Vectors] | None = None  # step, (P, D)

    def embeddings(self, step: int, model: MARGE, world: World = SINGLE_PROCESS) -> Vectors:
        """Embeddings (P, D) of all passages by the weights before `step`.

        Where a measurement and a re-index meet they share them: nothing is embedded twice.
        """
        if self._embedded is None or self._embedded[0] != step:
            if model.words is not None and self._counted is None:
                self._counted = model.words.count(self.passages.tokens)
            self._embedded = step, embed_passages(model, self.passages.tokens, world, self._counted)
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
        vectors = center_anew(model, self.embeddings(step, model, world), self.candidates, world)
        self._embedded = step, vectors
        figures: dict[str, Any] = {}
        with on_main(world):
            if world.is_main:
                words_alone = None
                if step > 0:  # a resumed run may not have it in memory
                    self.resume(step - 1, folder)
                    words_alone = words_at_start(folder)
                found = reindex(
                    step,
                    vectors,
                    self.passages,
                    self.config,
                    targets=self.targets,
                    candidates=self.candidates,
                    scripts=self.scripts,
                    seed=self.seed,
                    before=self.found.pairs if step > 0 and self.found else None,
                )
                figures = found.figures
                if words_alone:
                    figures["recall_words"] = words_alone
                figures |= {"beta": model.betas(), "seconds": round(time.perf_counter() - begun, 3)}
                if step < self.steps:  # the one behind the last step is only looked at
                    self.found = found
                    figures["batches"] = self._size_of(0)
                save_reindexing(folder, replace(found, weights=weights_of_tokens(model)))
        if not world.is_main and step < self.steps:
            self.found = load_reindexing(folder, step)
        return Reindexed(step, figures)

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
        batch = self._batch_of(graph, step)
        if step >= round(self.config.relevance_from * self.steps):  # the decoder must read first
            batch = batch._replace(compared=len(batch.evidence))
        share = curriculum_share(step, self.reading_steps, self.lessons_kept)
        return self._with_target_copies(batch, share, step) if share else batch

    def _batch_of(self, graph: Subgraph, step: int) -> MargeBatch:
        """A subgraph's batch, in a share of the steps without the words that many languages share."""
        if self._shared is None or not len(self._shared):
            return self.batch(graph.targets, graph.evidence)
        share = self.config.shared_dropout  # spread evenly, or losses of a few steps could not be compared
        if math.floor((step + 1) * share) == math.floor(step * share):
            return self.batch(graph.targets, graph.evidence)
        sides = []
        for ids, loses in ((graph.targets, self.config.shared_side == "both"), (graph.evidence, True)):
            tokens = self.passages.tokens[ids]
            sides.append(_trimmed(without(tokens, self._shared[ids]) if loses else tokens))
        return MargeBatch(*sides)

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
        return batch._replace(evidence=torch.cat(wide))

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
            self._epoch = key, make_batches_of_subgraphs(pairs, self.passages, self.config, seed)
        return self._epoch[1]

    def batch(self, targets: np.ndarray, evidence: np.ndarray) -> MargeBatch:
        """Passage ids of targets and evidence -> their tokens, no wider than the longest of each."""
        return MargeBatch(self._rows(targets), self._rows(evidence))

    def _rows(self, ids: np.ndarray) -> torch.Tensor:
        return _trimmed(self.passages.tokens[ids])


def _trimmed(tokens: np.ndarray) -> torch.Tensor:
    """Tokens (N, S), no wider than the longest text."""
    width = max(1, int((tokens != 0).sum(axis=1).max(initial=1)))
    return torch.from_numpy(tokens[:, :width])


def words_at_start(folder: Path) -> dict[str, float] | None:
    """Recall by words alone as the first re-index of a run found it: words alone learn nothing."""
    try:
        first = load_reindexing(folder, 0)
    except UserError:
        return None
    return first.figures.get("recall_words") if first else None


def marge_passes(corpus: Path, settings: Mapping[str, Any]) -> float:
    """The passes of a MARGE at most: how many targets a batch holds follows from their evidence."""
    tokens = training_tokens(corpus)
    words = settings["passage_len"] - 1  # each passage has the token of its language too
    read = np.minimum(tokens, words) + 1 if settings["first_passages"] else tokens + -(-tokens // words)
    return passes_of(settings["steps"], settings["batch_tokens"], int(read.sum()))
