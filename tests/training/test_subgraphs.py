"""Batches as subgraphs: each target once, with evidence of its own, never with its own text to copy."""

from __future__ import annotations

import numpy as np
import pytest
from counted import calls_within
from passage_helpers import drawn, made

from retro_demo.evidence.passages import Pairs
from retro_demo.models.config import EvidenceConfig
from retro_demo.training.marge_batches import Subgraph, edge_weights, kept_edges, make_subgraphs


def pairs_of(passages, edges: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Pairs from edges (E, 2), those of one text left out, with random relevance."""
    edges = np.unique(edges, axis=0)
    edges = edges[passages.content[edges[:, 0]] != passages.content[edges[:, 1]]]
    relevance = rng.uniform(-1, 1, len(edges)).astype(np.float32)
    order = np.lexsort((edges[:, 1], -relevance, edges[:, 0]))
    return Pairs(edges[order, 0], edges[order, 1], relevance[order])


def random_graph(seed: int, size: int = 90, degree: int = 5) -> tuple:
    """Passages of several texts that are targets and evidence at once, some evidence in high demand."""
    rng = np.random.default_rng(seed)
    passages = drawn(rng, size)
    targets = rng.integers(0, size, size * degree)
    evidence = (size * rng.random(size * degree) ** 2).astype(int)
    return passages, pairs_of(passages, np.stack([targets, evidence], axis=1), rng)


def clustered(size: int = 400, degree: int = 6) -> tuple:
    """Groups of 8 in which each is evidence for others, in two languages: what a corpus in order gives."""
    rng = np.random.default_rng(0)
    passages = made(
        np.arange(size),
        group=np.arange(size) // 8,
        language=np.arange(size) % 2,
        lengths=rng.integers(20, 61, size),
    )
    targets = np.repeat(np.arange(size), degree)
    return passages, pairs_of(
        passages, np.stack([targets, targets // 8 * 8 + rng.integers(0, 8, len(targets))], axis=1), rng
    )


def tokens(batch: Subgraph, passages) -> int:
    return int(passages.lengths[batch.targets].sum() + passages.lengths[batch.evidence].sum())


BUDGETS = (64, 100, 250, 5_000)
SEEDS = range(8)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_target_with_evidence_stands_in_one_batch_with_evidence_of_its_own(budget):
    for seed in SEEDS:
        passages, pairs = random_graph(seed)
        batches = make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=budget), seed)

        placed = np.concatenate([batch.targets for batch in batches])
        assert sorted(placed.tolist()) == sorted(set(pairs.target.tolist())), seed
        with_own = set(pairs.target[kept_edges(batches, pairs)].tolist())
        assert with_own == set(placed.tolist()), seed


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_text_is_a_target_and_evidence_of_one_batch_which_stays_within_its_tokens_or_is_the_smallest(
    budget,
):
    for seed in SEEDS:
        passages, pairs = random_graph(seed)

        for batch in make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=budget), seed):
            assert not set(passages.content[batch.targets]) & set(passages.content[batch.evidence]), seed
            smallest = len(batch.targets) == len(batch.evidence) == 1
            assert tokens(batch, passages) <= budget or smallest, seed


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_holds_each_passage_once_and_no_evidence_that_nobody_in_it_asked_for(seed):
    passages, pairs = random_graph(seed)

    for batch in make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=250), seed):
        assert len(set(batch.evidence.tolist())) == len(batch.evidence)
        assert set(batch.evidence) <= set(pairs.evidence[np.isin(pairs.target, batch.targets)])


def test_a_budget_that_is_too_small_for_one_pair_still_gives_one():
    passages = made(np.arange(4), lengths=[90, 80, 70, 60])
    pairs = Pairs(np.array([0, 0, 3]), np.array([1, 2, 1]), np.array([0.9, 0.5, 0.1], np.float32))

    batches = make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=64), 0)

    assert sorted((b.targets.tolist(), b.evidence.tolist()) for b in batches) == [([0], [1]), ([3], [1])]


def test_the_seed_decides_everything():
    passages, pairs = random_graph(0)

    def made_with(seed):
        batches = make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=250), seed)
        return [(batch.targets.tolist(), batch.evidence.tolist()) for batch in batches]

    assert made_with(3) == made_with(3)
    assert made_with(3) != made_with(4)


def in_random_order(pairs: Pairs, passages, budget: int) -> list[Subgraph]:
    """Targets as they come with all their evidence, best first as far as it fits; for pairs in two sets."""
    batches, targets, evidence = [], [], {}
    left = budget
    for target in np.random.default_rng(0).permutation(np.unique(pairs.target)):
        own = pairs.evidence[pairs.target == target].tolist()
        cost = passages.lengths[target] + sum(passages.lengths[e] for e in own if e not in evidence)
        if cost > left and targets:
            batches.append(Subgraph(np.array(targets), np.array(list(evidence))))
            targets, evidence, left = [], {}, budget
            cost = passages.lengths[target] + passages.lengths[own].sum()
        targets.append(target)
        evidence |= dict.fromkeys(own)
        left -= cost
    return [*batches, Subgraph(np.array(targets), np.array(list(evidence)))]


def test_greedy_batches_hold_more_edge_weight_than_random_ones_of_the_same_tokens():
    passages, pairs = clustered()
    part = pairs.target % 8 < 4  # one half of each group asks, the other half answers
    part &= pairs.evidence % 8 >= 4
    pairs = Pairs(pairs.target[part], pairs.evidence[part], pairs.relevance[part])
    config = EvidenceConfig(batch_tokens=800)
    weights = edge_weights(pairs, passages, config)

    greedy, chance = (
        make_subgraphs(pairs, passages, config, 0),
        in_random_order(pairs, passages, config.batch_tokens),
    )
    assert max(tokens(batch, passages) for batch in chance) <= 800
    per_batch = [weights[kept_edges(batches, pairs)].sum() / len(batches) for batches in (greedy, chance)]
    assert per_batch[0] > 1.3 * per_batch[1]
    assert weights[kept_edges(greedy, pairs)].sum() > 0.9 * weights.sum()


def test_the_weight_across_languages_makes_batches_hold_more_such_edges():
    passages, pairs = clustered()
    across = passages.language[pairs.target] != passages.language[pairs.evidence]

    def share(weight: float) -> float:
        config = EvidenceConfig(batch_tokens=200, language_weight=weight)
        kept = kept_edges(make_subgraphs(pairs, passages, config, 0), pairs)
        return (kept & across).sum() / kept.sum()

    assert share(100.0) > share(1.0) + 0.05
    assert share(0.0) < share(1.0) - 0.05


def test_edges_weigh_by_language():
    passages = made(np.arange(3), language=[0, 1, 1])
    pairs = Pairs(np.array([0, 1]), np.array([1, 2]), np.zeros(2, np.float32))

    assert edge_weights(pairs, passages, EvidenceConfig(language_weight=7.0)).tolist() == [7.0, 1.0]


def test_of_too_much_evidence_the_heaviest_and_then_the_most_relevant_comes_along():
    passages = made(np.arange(6), language=[0, 0, 0, 0, 1, 1], lengths=[20] * 6)
    pairs = Pairs(
        np.zeros(5, int), np.array([1, 2, 3, 4, 5]), np.array([0.9, 0.8, 0.7, 0.2, 0.1], np.float32)
    )

    (batch,) = make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=80), 0)
    assert batch.evidence.tolist() == [4, 5, 1]
    (batch,) = make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=80, language_weight=1.0), 0)
    assert batch.evidence.tolist() == [1, 2, 3]


def test_a_target_of_which_hardly_anything_fits_waits_for_a_batch_with_room():
    passages = made(np.arange(8), lengths=[20] * 8)
    pairs = Pairs(np.array([0, 0, 1, 1, 1, 1]), np.array([2, 3, 4, 5, 6, 7]), np.zeros(6, np.float32))

    batches = make_subgraphs(pairs, passages, EvidenceConfig(batch_tokens=100), 0)

    assert len(batches) == 2
    assert kept_edges(batches, pairs).all()


def test_a_pair_of_one_text_is_refused():
    passages = made(np.arange(3), content=[0, 1, 0])
    pairs = Pairs(np.array([0]), np.array([2]), np.ones(1, np.float32))

    with pytest.raises(ValueError, match="its own evidence"):
        make_subgraphs(pairs, passages, EvidenceConfig(), 0)


def test_no_pairs_give_no_batches():
    none = np.zeros(0, dtype=np.int64)

    assert make_subgraphs(Pairs(none, none, none.astype(np.float32)), made([0, 1]), EvidenceConfig(), 0) == []


def test_the_steps_for_targets_with_evidence_in_high_demand_grow_as_their_number_and_not_its_square():
    """Five thousand take half a second on a free core; with a step for each pair of them it were minutes."""

    def steps(size: int) -> int:
        passages, pairs = random_graph(0, size=size, degree=8)
        batches: list[Subgraph] = []
        config = EvidenceConfig(batch_tokens=4_096)
        calls = calls_within(lambda: batches.extend(make_subgraphs(pairs, passages, config, 0)))
        assert sum(len(batch.targets) for batch in batches) == len(np.unique(pairs.target))
        return calls

    assert steps(4_000) < 6 * steps(1_000)
