"""Who is whose evidence, against a search that tries every pair, and what never may be."""

from __future__ import annotations

import numpy as np
import pytest
from passage_helpers import drawn, made

from retro_demo.evidence.passages import (
    Pairs,
    chance_of_group,
    find_pairs,
    nearest,
    pair_figures,
    random_pairs,
    shard,
)
from retro_demo.models.config import EvidenceConfig
from retro_demo.retrieval import dense


def world(seed: int, size: int = 120, **options):
    """Passages, their embeddings (of any length) and which are targets and candidates, overlapping."""
    rng = np.random.default_rng(seed)
    passages = drawn(rng, size, **options)
    embeddings = rng.normal(size=(size, 6)).astype(np.float32) * rng.uniform(0.1, 9, (size, 1))
    embeddings[passages.content == passages.content[0]] = embeddings[0]
    return passages, embeddings, rng.random(size) < 0.7, rng.random(size) < 0.8


def allowed(passages, config: EvidenceConfig, targets, candidates) -> np.ndarray:
    """bool (P, P): which pairs the rules allow, one by one."""
    size = len(passages)
    may = np.zeros((size, size), dtype=bool)
    for t in range(size):
        for e in range(size):
            may[t, e] = (
                targets[t]
                and candidates[e]
                and t != e
                and passages.content[t] != passages.content[e]
                and (config.same_document or passages.document[t] != passages.document[e])
                and (config.evidence_languages == "any" or passages.language[t] != passages.language[e])
            )
    return may


def cosines(embeddings) -> np.ndarray:
    rows = embeddings.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.round(rows @ rows.T, 6)


def as_set(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.target.tolist(), pairs.evidence.tolist(), strict=True))


RULES = [(languages, same) for languages in ("any", "other") for same in (False, True)]


@pytest.mark.parametrize(("languages", "same_document"), RULES)
@pytest.mark.parametrize("seed", range(4))
def test_the_pairs_are_the_best_of_all_allowed_ones_over_the_whole_shard(seed, languages, same_document):
    passages, embeddings, targets, candidates = world(seed)
    config = EvidenceConfig(
        evidence_per_target=2.5, evidence_languages=languages, same_document=same_document
    )

    pairs = find_pairs(embeddings, passages, config, targets=targets, candidates=candidates, seed=0)

    scores = np.where(allowed(passages, config, targets, candidates), cosines(embeddings), -np.inf)
    count = round(2.5 * targets.sum())
    bound = np.sort(scores.reshape(-1))[-count]
    assert len(pairs) == count == len(as_set(pairs))
    assert all(np.isfinite(scores[pair]) and scores[pair] >= bound - 2e-6 for pair in as_set(pairs))
    np.testing.assert_allclose(pairs.relevance, scores[pairs.target, pairs.evidence], atol=2e-6)


def test_pairs_are_sorted_by_target_and_then_best_first():
    passages, embeddings, targets, candidates = world(1)
    pairs = find_pairs(embeddings, passages, EvidenceConfig(), targets=targets, candidates=candidates, seed=0)

    steps = np.diff(pairs.target)
    assert (steps >= 0).all()
    assert (np.diff(pairs.relevance)[steps == 0] <= 0).all()
    assert pairs.target.dtype == pairs.evidence.dtype == np.int64
    assert pairs.relevance.dtype == np.float32


def test_some_targets_get_more_than_the_average_and_others_rest():
    """A close-knit crowd takes the pairs of the shard; k for each target would serve all alike."""
    rng = np.random.default_rng(0)
    crowd = np.ones((20, 8)) + 0.01 * rng.normal(size=(20, 8))
    passages = made(np.arange(40))
    embeddings = np.concatenate([crowd, 5 * rng.normal(size=(20, 8))])
    everyone = np.ones(40, dtype=bool)

    pairs = find_pairs(
        embeddings,
        passages,
        EvidenceConfig(evidence_per_target=4),
        targets=everyone,
        candidates=everyone,
        seed=0,
    )
    figures = pair_figures(pairs, passages, everyone, None)

    assert len(pairs) == 160
    assert set(pairs.target.tolist()) <= set(range(20))
    assert np.bincount(pairs.target).max() > 8
    assert figures["targets_resting"] >= 20
    assert figures["targets_resting"] + figures["targets_with_evidence"] == 40


@pytest.mark.parametrize("same_document", [False, True])
def test_a_copy_of_the_target_is_never_its_evidence(same_document):
    """By id and by content, with duplicates, in one set or in two."""
    passages = made(
        [0, 0, 1, 2, 3, 4],
        content=[0, 0, 0, 1, 2, 3],
        language=[0, 0, 1, 0, 0, 1],
        position=[0, 1, 0, 0, 0, 0],
    )
    embeddings = np.eye(6, 4, dtype=np.float32) + 0.5
    embeddings[:3] = embeddings[0]
    config = EvidenceConfig(evidence_per_target=5, same_document=same_document)
    everyone = np.ones(6, dtype=bool)
    first, others = np.arange(6) == 0, np.arange(6) > 0

    for targets, candidates in ((everyone, everyone), (first, everyone), (first, others), (others, first)):
        pairs = find_pairs(embeddings, passages, config, targets=targets, candidates=candidates, seed=0)
        ids, _ = nearest(embeddings, passages, config, np.flatnonzero(targets), candidates, 6)
        found = as_set(pairs) | {
            (t, e) for t, row in zip(np.flatnonzero(targets), ids, strict=True) for e in row if e >= 0
        }
        assert found
        assert not [(t, e) for t, e in found if passages.content[t] == passages.content[e]]


def test_a_passage_for_the_database_is_evidence_and_no_target_where_the_masks_say_so():
    passages = made(np.arange(8), database_only=np.arange(8) >= 4)
    embeddings = np.random.default_rng(0).normal(size=(8, 3))

    pairs = find_pairs(
        embeddings,
        passages,
        EvidenceConfig(evidence_per_target=2),
        targets=~passages.database_only,
        candidates=passages.database_only,
        seed=0,
    )

    assert len(pairs) == 8
    assert (pairs.target < 4).all()
    assert (pairs.evidence >= 4).all()


def test_equal_relevance_is_decided_by_the_ids():
    passages = made(np.arange(6))
    everyone = np.ones(6, dtype=bool)

    pairs = find_pairs(
        np.ones((6, 4)),
        passages,
        EvidenceConfig(evidence_per_target=1),
        targets=everyone,
        candidates=everyone,
        seed=0,
    )

    assert sorted(as_set(pairs)) == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0)]


def test_a_re_index_is_the_same_each_time_and_whatever_the_length_of_embeddings():
    passages, embeddings, targets, candidates = world(3, size=200)
    config = EvidenceConfig(shard_size=64)

    def found(vectors, seed):
        return find_pairs(vectors, passages, config, targets=targets, candidates=candidates, seed=seed)

    one, again, longer = found(embeddings, 5), found(embeddings.copy(), 5), found(embeddings * 8, 5)
    for other in (again, longer):
        assert one.target.tobytes() == other.target.tobytes()
        assert one.evidence.tobytes() == other.evidence.tobytes()
        assert one.relevance.tobytes() == other.relevance.tobytes()
    assert as_set(one) != as_set(found(embeddings, 6))


@pytest.mark.parametrize("shard_by", ["group", "document"])
@pytest.mark.parametrize("seed", range(3))
def test_shards_hold_together_what_they_are_asked_to_and_no_more_than_fits(seed, shard_by):
    passages = drawn(np.random.default_rng(seed), 300)
    config = EvidenceConfig(shard_size=40, shard_by=shard_by)
    shards = shard(passages, config, seed)

    of = passages.group if shard_by == "group" else passages.document
    assert all(len(set(shards[of == unit])) == 1 for unit in np.unique(of))
    assert np.bincount(shards).max() <= 40
    assert set(shards.tolist()) == set(range(shards.max() + 1))
    # so few that no two neighbors would have gone together
    sizes = np.bincount(shards)
    assert (sizes[:-1] + np.bincount(of).max() > 40).all()


def test_a_corpus_that_fits_is_one_shard_and_a_group_that_does_not_has_one_of_its_own():
    passages = made(np.arange(60), group=np.minimum(np.arange(60), 30))

    assert not shard(passages, EvidenceConfig(shard_size=60), 0).any()
    shards = shard(passages, EvidenceConfig(shard_size=20), 0)
    (large,) = set(shards[30:].tolist())
    assert (shards == large).sum() == 30


def test_evidence_is_looked_for_within_the_shard_and_each_shard_keeps_its_number_of_pairs():
    passages, embeddings, targets, candidates = world(2, size=240)
    config = EvidenceConfig(shard_size=60, evidence_per_target=3)
    pairs = find_pairs(embeddings, passages, config, targets=targets, candidates=candidates, seed=9)
    shards = shard(passages, config, 9)

    assert (shards[pairs.target] == shards[pairs.evidence]).all()
    wanted = np.bincount(shards[targets], minlength=shards.max() + 1) * 3
    assert np.bincount(shards[pairs.target]).tolist() == wanted.tolist()


def test_a_large_shard_is_searched_approximately_and_by_the_same_rules(monkeypatch):
    rng = np.random.default_rng(0)
    size = 3_000
    centers = rng.normal(size=(60, 16))
    embeddings = centers[rng.integers(0, 60, size)] + 0.3 * rng.normal(size=(size, 16))
    passages = made(np.arange(size) // 3, content=np.arange(size) // 2)
    config = EvidenceConfig(evidence_per_target=4)
    everyone = np.ones(size, dtype=bool)
    exact = find_pairs(embeddings, passages, config, targets=everyone, candidates=everyone, seed=0)
    monkeypatch.setattr(dense, "choose_factory", lambda size, device: "IVF64,Flat")

    about = find_pairs(embeddings, passages, config, targets=everyone, candidates=everyone, seed=0)

    assert len(as_set(exact) & as_set(about)) > 0.9 * len(exact)
    assert not (passages.content[about.target] == passages.content[about.evidence]).any()
    assert not (passages.document[about.target] == passages.document[about.evidence]).any()


@pytest.mark.parametrize(("languages", "same_document"), RULES)
def test_the_nearest_of_a_target_are_those_of_a_search_that_tries_all(languages, same_document):
    passages, embeddings, targets, candidates = world(7)
    config = EvidenceConfig(evidence_languages=languages, same_document=same_document)
    asked = np.flatnonzero(~targets)

    ids, scores = nearest(embeddings, passages, config, asked, candidates, 5)

    may = allowed(passages, config, np.ones(len(passages), dtype=bool), candidates)
    truth = np.where(may, cosines(embeddings), -np.inf)[asked]
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :5], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(truth, ids, axis=1), scores, atol=2e-6)


def test_where_too_little_is_allowed_the_places_stay_empty():
    passages = made([0, 0, 1, 1], language=[0, 0, 1, 1])
    embeddings = np.random.default_rng(0).normal(size=(4, 3))
    config = EvidenceConfig(evidence_languages="other")
    candidates = np.array([True, True, True, False])

    ids, scores = nearest(embeddings, passages, config, np.array([0, 3, 2]), candidates, 3)

    assert (ids >= 0).sum(axis=1).tolist() == [1, 2, 2]
    assert ids[0, 0] == 2
    assert (np.isneginf(scores) == (ids < 0)).all()


@pytest.mark.parametrize("languages", ["any", "other"])
def test_without_targets_or_candidates_there_are_no_pairs(languages):
    passages, embeddings, targets, candidates = world(0)
    config = EvidenceConfig(evidence_languages=languages)
    nobody = np.zeros(len(passages), dtype=bool)

    for who in ({"targets": nobody, "candidates": candidates}, {"targets": targets, "candidates": nobody}):
        pairs = find_pairs(embeddings, passages, config, **who, seed=0)
        assert len(pairs) == 0
        assert pair_figures(pairs, passages, who["targets"], pairs) == {
            "pairs": 0,
            "targets_with_evidence": 0,
            "targets_resting": who["targets"].sum(),
        }


def test_the_figures_of_a_re_index_are_those_counted_by_hand():
    passages = made(np.arange(5), language=[0, 1, 0, 1, 1], group=[0, 0, 1, 1, 2])
    targets = np.array([True, True, True, True, False])
    before = Pairs(np.array([0, 1]), np.array([1, 4]), np.array([0.5, 0.5], np.float32))
    pairs = Pairs(np.array([0, 0, 2, 2]), np.array([1, 2, 3, 4]), np.array([0.8, 0.4, 0.2, 0.2], np.float32))

    figures = pair_figures(pairs, passages, targets, before)

    assert figures == pytest.approx(
        {
            "pairs": 4,
            "targets_with_evidence": 2,
            "targets_resting": 2,
            "across_languages": 0.75,
            "same_group": 0.5,
            "mean_relevance": 0.4,
            "churn": 0.75,
        }
    )
    assert "churn" not in pair_figures(pairs, passages, targets, None)
    assert pair_figures(pairs, passages, targets, pairs)["churn"] == 0


@pytest.mark.parametrize(("languages", "same_document"), RULES)
@pytest.mark.parametrize("seed", range(3))
def test_random_pairs_keep_each_targets_number_and_obey_the_rules_and_never_stay_in_a_group(
    seed, languages, same_document
):
    passages, embeddings, targets, candidates = world(seed, size=240)
    config = EvidenceConfig(
        shard_size=60, evidence_per_target=3, evidence_languages=languages, same_document=same_document
    )
    pairs = find_pairs(embeddings, passages, config, targets=targets, candidates=candidates, seed=9)

    drawn = random_pairs(pairs, passages, config, candidates=candidates, shard_seed=9, seed=1)

    may = allowed(passages, config, targets, candidates)
    assert may[drawn.target, drawn.evidence].all()
    assert not (passages.group[drawn.target] == passages.group[drawn.evidence]).any()
    shards = shard(passages, config, 9)
    others = may & (passages.group[:, None] != passages.group)
    near = others & (shards[:, None] == shards)
    others[near.any(axis=1)] = near[near.any(axis=1)]  # of the own shard, where it has any
    assert others[drawn.target, drawn.evidence].all()
    assert len(drawn) == len(as_set(drawn))
    wanted = np.minimum(np.bincount(pairs.target, minlength=240), others.sum(axis=1))
    assert np.bincount(drawn.target, minlength=240).tolist() == wanted.tolist()
    again = random_pairs(pairs, passages, config, candidates=candidates, shard_seed=9, seed=2)
    assert as_set(again) != as_set(drawn)


def test_a_shard_of_a_single_group_draws_from_the_others():
    passages = made(np.arange(40), group=np.arange(40) // 20)
    config = EvidenceConfig(shard_size=20, evidence_per_target=2)
    everyone = np.ones(40, dtype=bool)
    embeddings = np.random.default_rng(0).normal(size=(40, 5))
    pairs = find_pairs(embeddings, passages, config, targets=everyone, candidates=everyone, seed=0)
    assert (passages.group[pairs.target] == passages.group[pairs.evidence]).all()

    drawn = random_pairs(pairs, passages, config, candidates=everyone, shard_seed=0, seed=0)

    assert len(drawn) == len(pairs)
    assert (passages.group[drawn.target] != passages.group[drawn.evidence]).all()


@pytest.mark.parametrize("languages", ["any", "other"])
def test_the_chance_of_a_pair_within_a_group_is_that_of_many_draws(languages):
    passages, embeddings, targets, candidates = world(4, size=200)
    config = EvidenceConfig(shard_size=50, evidence_per_target=3, evidence_languages=languages)
    pairs = find_pairs(embeddings, passages, config, targets=targets, candidates=candidates, seed=2)

    chance = chance_of_group(pairs, passages, config, candidates=candidates, shard_seed=2)

    shards = shard(passages, config, 2)
    may = allowed(passages, config, targets, candidates) & (shards[:, None] == shards)
    same = passages.group[:, None] == passages.group
    shares = [same[t, may[t]].mean() for t in np.unique(pairs.target)]
    assert chance == pytest.approx(np.mean(shares))
    assert 0 < chance < 1
