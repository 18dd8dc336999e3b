"""Recall across languages, against ranks found one by one, and where it must say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_jsonl
from passage_helpers import made

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.corpus.store import load_corpus
from retro_demo.evidence import reindex as module
from retro_demo.evidence.reindex import recall, recall_by, script_of, scripts_of
from retro_demo.settings import CorpusConfig

SCRIPTS = ["Latin", "Latin", "Greek"]


def translations(seed: int = 0, groups: int = 12):
    """Documents of 12 groups in 3 languages, some missing, some long; a third of the groups asks."""
    rng = np.random.default_rng(seed)
    rows = [(g, lang, n) for g in range(groups) for lang in range(3) for n in range(rng.integers(1, 3))]
    rows = [row for row in rows if rng.random() < 0.9]
    group, language, _ = np.array(rows).T
    length = rng.integers(1, 4, len(rows))
    owner = np.repeat(np.arange(len(rows)), length)
    place = np.concatenate([np.arange(n) for n in length])
    passages = made(
        owner, group=group[owner], language=language[owner], position=place, held_out=group[owner] < 4
    )
    topic = rng.normal(size=(groups, 5))[passages.group]
    return passages, topic + 0.8 * rng.normal(size=topic.shape)


def ranks_one_by_one(passages, embeddings) -> list[tuple[int, int, int, int, float]]:
    """(language from, language to, rank, candidates, share of the group) of every query and language."""
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = []
    for q in np.flatnonzero(passages.held_out & (passages.position == 0)):
        for lang in range(3):
            pool = np.flatnonzero((passages.position == 0) & (passages.language == lang))
            same = passages.group[pool] == passages.group[q]
            if lang == passages.language[q] or not same.any():
                continue
            order = np.argsort(-(rows[pool] @ rows[q]))
            rank = 1 + np.flatnonzero(same[order])[0]
            found.append((passages.language[q], lang, rank, len(pool), same.mean()))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_ranks_found_one_by_one(seed):
    passages, embeddings = translations(seed)
    source, target, rank, pool, share = np.array(ranks_one_by_one(passages, embeddings)).T
    one_script = (source < 2) & (target < 2)

    figures = recall(embeddings, passages, passages.held_out, SCRIPTS)

    assert figures["pairs"] == len(rank)
    assert 0 < figures["recall_at_1"] < 1
    for name, part in (("", rank > 0), ("_same_script", one_script), ("_other_script", ~one_script)):
        assert figures["recall_at_1" + name] == pytest.approx((rank[part] == 1).mean())
        assert figures["mrr" + name] == pytest.approx((1 / rank[part]).mean())
    assert figures["pool"] == pytest.approx(pool.mean())
    assert figures["chance"] == pytest.approx(share.mean())
    for a in range(3):
        for b in range(3):
            cell = rank[(source == a) & (target == b)]
            expected = None if a == b else pytest.approx((cell == 1).mean())
            assert figures["matrix"][a][b] == expected


def test_a_perfect_encoder_finds_all_and_one_that_says_nothing_finds_none():
    passages, _ = translations()
    perfect = np.eye(12)[passages.group]
    blind = np.ones((len(passages), 4))

    assert recall(perfect, passages, passages.held_out, SCRIPTS)["recall_at_1"] == 1
    assert recall(blind, passages, passages.held_out, SCRIPTS)["recall_at_1"] == 0


def test_random_vectors_find_as_many_as_chance_says():
    passages = made(np.arange(2_000), group=np.arange(2_000) % 20, language=np.arange(2_000) // 1_000)
    vectors = np.random.default_rng(0).normal(size=(2_000, 16))

    figures = recall(vectors, passages, np.ones(2_000, dtype=bool), ["Latin", "Latin"])

    assert figures["chance"] == pytest.approx(0.05)
    assert figures["recall_at_1"] == pytest.approx(0.05, abs=0.02)


def test_only_first_passages_ask_and_answer():
    passages, embeddings = translations()
    scrambled = embeddings.copy()
    scrambled[passages.position > 0] = np.random.default_rng(5).normal(
        size=scrambled[passages.position > 0].shape
    )

    figures = recall(embeddings, passages, passages.held_out, SCRIPTS)

    assert figures == recall(scrambled, passages, passages.held_out, SCRIPTS)
    assert figures["queries"] <= (passages.held_out & (passages.position == 0)).sum()


def test_only_those_asked_for_are_queries_while_all_are_candidates():
    passages, embeddings = translations()
    few = passages.held_out & (passages.group == 0)

    figures = recall(embeddings, passages, few, SCRIPTS)

    assert figures["queries"] == (few & (passages.position == 0)).sum()
    firsts = passages.language[passages.position == 0]
    assert np.bincount(firsts).min() <= figures["pool"] <= np.bincount(firsts).max()


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_a_re_index_asks_for_so_many_held_out_documents_at_most(monkeypatch, most):
    monkeypatch.setattr(module, "MOST_ASKED", most)
    passages, _ = translations()
    all_of_them = np.flatnonzero(passages.held_out & (passages.position == 0))

    asked = np.flatnonzero(module.some_that_ask(passages))

    assert len(asked) == min(most, len(all_of_them))
    assert np.isin(asked, all_of_them).all()


def test_any_other_score_is_measured_on_the_same_task():
    passages, embeddings = translations()
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    by_hand = recall_by(lambda q, c: rows[q] @ rows[c].T * 100, passages, passages.held_out, SCRIPTS)

    assert by_hand == recall(embeddings, passages, passages.held_out, SCRIPTS)


@pytest.mark.parametrize(
    "passages",
    [
        made(np.arange(6)),
        made(np.arange(6), language=[0, 1, 2, 0, 1, 2]),
        made(np.arange(6), group=np.zeros(6)),
        made(np.zeros(0, int)),
    ],
    ids=["one language", "groups of one language each", "one group in one language", "nothing"],
)
def test_without_groups_in_several_languages_there_is_nothing_to_say(passages):
    everyone = np.ones(len(passages), dtype=bool)

    assert recall(np.ones((len(passages), 3)), passages, everyone, SCRIPTS) == {}


def test_without_queries_there_is_nothing_to_say():
    passages, embeddings = translations()

    assert recall(embeddings, passages, np.zeros(len(passages), dtype=bool), SCRIPTS) == {}


def test_figures_of_pairs_that_there_are_not_are_left_out():
    passages, embeddings = translations()
    figures = recall(embeddings, passages, passages.held_out, ["Latin", "Greek", "Thai"])

    assert "recall_at_1_other_script" in figures
    assert "recall_at_1_same_script" not in figures
    assert "mrr_same_script" not in figures


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Every one has the right to life.", "Latin"),
        ("Каждый человек имеет право на жизнь (life).", "Cyrillic"),
        ("Κάθε άτομο έχει δικαίωμα στη ζωή.", "Greek"),
        ("لكل فرد حق في الحياة", "Arabic"),
        ("לכל אדם הזכות לחיים", "Hebrew"),
        ("すべて人は、生命に対する権利を有する。", "CJK"),
        ("人人有权享有生命、自由和人身安全。", "CJK"),
        ("ｶﾅ と カナ", "CJK"),
        ("모든 사람은 생명의 권리를 가진다.", "Hangul"),
        ("प्रत्येक व्यक्ति को जीवन का अधिकार है", "Devanagari"),
        ("ทุกคนมีสิทธิในการดำรงชีวิต", "Thai"),
        ("12 % + 3 = 15!", ""),
        ("", ""),
    ],
)
def test_a_text_is_of_the_script_of_most_of_its_letters(text, script):
    assert script_of(text) == script


def test_a_language_is_of_the_script_of_most_letters_in_its_documents(tmp_path):
    rows = [
        {"id": "1", "text": "Добър ден на всички хора по света.", "lang": "bg"},
        {"id": "2", "text": "Latin here", "lang": "bg"},
        {"id": "3", "text": "Good day to everybody in the world.", "lang": "en"},
    ]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    prepare_corpus(tmp_path / "corpus", [source], CorpusConfig(chunk_len=8, vocab_size=300))
    list(build_corpus(tmp_path / "corpus"))

    scripts = scripts_of(load_corpus(tmp_path / "corpus"), ("bg", "en", "fr"))
    assert scripts == ["Cyrillic", "Latin", ""]
