"""Batches as subgraphs of the graph of targets and their evidence.

In a batch every target sees the evidence of all of them, so targets that share evidence belong
together: the evidence is read once and gives each of them more edges for the same tokens.

Shapes: E pairs, P passages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro_demo.evidence.passages import Pairs, Passages
from retro_demo.models.config import EvidenceConfig

# A target of which less than this share of the edge weight fits waits for another batch: it comes only
# once in an epoch, while tokens left empty cost no more than a smaller batch.
LEAST_SHARE = 0.5
# So many targets in a row that find no place close a batch: it is about full.
MOST_MISSES = 32


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
