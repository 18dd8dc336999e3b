"""Exact and near-duplicates, checked against brute force over all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from retro_demo.corpus.chunks import find_duplicates
from retro_demo.corpus.store import word_ids

VOCAB = 500


def random_ids(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(VOCAB, size=size, dtype=np.int32)


def with_change(ids: np.ndarray, start: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """`ids` with a run of `size` tokens replaced; loses at most size + 12 of its grams."""
    changed = ids.copy()
    changed[start : start + size] = VOCAB + rng.integers(VOCAB, size=size)
    return changed


def grams(ids: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + 13].tolist()) for i in range(len(ids) - 12)}


def brute_force_clusters(documents: list[np.ndarray]) -> list[int]:
    sets = [grams(ids) for ids in documents]
    cluster = list(range(len(documents)))
    for left, right in combinations(range(len(documents)), 2):
        a, b = sets[left], sets[right]
        same = documents[left].tolist() == documents[right].tolist()
        if same or (a | b and len(a & b) / len(a | b) >= 0.8):
            old, new = cluster[right], cluster[left]
            cluster = [new if number == old else number for number in cluster]
    dense = {number: index for index, number in enumerate(dict.fromkeys(cluster))}
    return [dense[number] for number in cluster]


@pytest.mark.parametrize("seed", range(4))
def test_clusters_equal_those_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    bases = [random_ids(rng, size) for size in (5, 12, 13, 40, 150, 400, 900)]
    documents = []
    for _ in range(80):
        base = bases[rng.integers(len(bases))]
        size = int(rng.integers(0, len(base) // 5 + 1))
        documents.append(with_change(base, int(rng.integers(len(base) - size + 1)), size, rng))

    found = find_duplicates(documents)

    assert found.cluster.tolist() == brute_force_clusters(documents)
    assert found.cluster.dtype == np.int32
    assert 1 + found.cluster.max() == len(documents) - found.exact - found.near
    assert found.exact > 0
    assert found.near > 0


def test_equal_documents_are_exact_copies_of_the_first():
    rng = np.random.default_rng(0)
    first, other = random_ids(rng, 300), random_ids(rng, 300)

    found = find_duplicates([other, first, other, first, first])

    assert found.cluster.tolist() == [0, 1, 0, 1, 1]
    assert (found.exact, found.near) == (3, 0)
    assert found.pairs == [(0, 2, 1.0), (1, 3, 1.0), (1, 4, 1.0)]


def test_a_copy_with_a_twentieth_of_its_words_changed_in_one_place_is_a_near_duplicate():
    rng = np.random.default_rng(0)
    base = random_ids(rng, 2_000)
    copy = with_change(base, 700, 100, rng)

    found = find_duplicates([random_ids(rng, 2_000), base, copy, random_ids(rng, 2_000)])

    assert found.cluster.tolist() == [0, 1, 1, 2]
    assert (found.exact, found.near) == (0, 1)
    ((left, right, jaccard),) = found.pairs
    # 1,988 grams each, 112 of them lost to the change.
    assert (left, right, jaccard) == (1, 2, pytest.approx((1_988 - 112) / (1_988 + 112)))


@pytest.mark.parametrize(("changed", "near"), [(9, 1), (11, 0)])
def test_the_threshold_is_four_fifths_of_the_grams(changed, near):
    rng = np.random.default_rng(0)
    base = random_ids(rng, 12 + 198)
    # 198 grams; (198 - c - 12) / (198 + c + 12) is 0.808 for c = 9 and 0.792 for c = 11.
    found = find_duplicates([base, with_change(base, 90, changed, rng)])
    assert found.near == near


def test_documents_that_share_boilerplate_only_are_not_duplicates():
    rng = np.random.default_rng(0)
    boilerplate = random_ids(rng, 120)
    documents = [np.concatenate([boilerplate, random_ids(rng, 80)]) for _ in range(60)]
    found = find_duplicates(documents)
    assert found.cluster.tolist() == list(range(60))
    assert found.pairs == []


def test_a_near_duplicate_is_found_within_a_crowd_that_shares_boilerplate():
    rng = np.random.default_rng(0)
    boilerplate = random_ids(rng, 150)
    documents = [np.concatenate([boilerplate, random_ids(rng, 150)]) for _ in range(100)]
    documents.append(with_change(documents[41], 200, 10, rng))
    found = find_duplicates(documents)
    assert [(left, right) for left, right, _ in found.pairs] == [(41, 100)]


def test_a_family_of_near_duplicates_larger_than_a_crowd_is_one_cluster():
    rng = np.random.default_rng(0)
    base = random_ids(rng, 1_000)
    documents = [with_change(base, int(rng.integers(900)), 20, rng) for _ in range(80)]
    found = find_duplicates(documents)
    assert found.cluster.max() == 0
    assert found.near == 79


def test_chains_of_near_duplicates_are_one_cluster():
    rng = np.random.default_rng(0)
    first = random_ids(rng, 400)
    second = with_change(first, 0, 25, rng)
    third = with_change(second, 200, 25, rng)
    found = find_duplicates([third, first, second])
    assert found.cluster.tolist() == [0, 0, 0]
    assert [(left, right) for left, right, _ in found.pairs] == [(0, 2), (1, 2)]


def test_documents_shorter_than_a_gram_are_compared_for_equality_only():
    found = find_duplicates([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3], list(range(12)), list(range(11))])
    assert found.cluster.tolist() == [0, 1, 0, 2, 3]
    assert (found.exact, found.near) == (1, 0)


def test_empty_documents_and_an_empty_corpus_are_no_trouble():
    assert find_duplicates([[], [1], []]).cluster.tolist() == [0, 1, 0]
    nothing = find_duplicates([])
    assert nothing.cluster.shape == (0,)
    assert (nothing.exact, nothing.near, nothing.pairs) == (0, 0, [])


def test_lists_and_arrays_of_any_integer_type_give_the_same():
    rng = np.random.default_rng(0)
    base = random_ids(rng, 300)
    documents = [base, with_change(base, 100, 9, rng), random_ids(rng, 300)]
    expected = find_duplicates(documents)
    for same in ([d.tolist() for d in documents], [d.astype(np.int64) for d in documents]):
        found = find_duplicates(same)
        assert found.cluster.tolist() == expected.cluster.tolist()
        assert found.pairs == expected.pairs


@pytest.mark.parametrize("signs", ["\N{SAILBOAT}\N{WATER WAVE}\N{ANCHOR}", "\u2801\u2803\u2809"])
def test_texts_of_signs_are_copies_only_where_the_signs_are_the_same(signs):
    texts = [signs * 40, signs[::-1] * 40, signs * 40, "\N{SNOWMAN}" * 40]
    assert find_duplicates(word_ids(texts)).cluster.tolist() == [0, 1, 0, 2]
