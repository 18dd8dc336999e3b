"""What the Evidence tab draws: samples, ranks, centered values and the lines, against plain code."""

from __future__ import annotations

import re

import numpy as np
import pytest
from passage_helpers import made

from retro_demo.errors import UserError
from retro_demo.evidence.passages import Pairs
from retro_demo.evidence.reindex import Reindexing
from retro_demo.explain.marge_history import (
    MOST,
    PassageSample,
    beta_series,
    centered,
    choose_sample,
    nearest_of_group,
    pair_series,
    ranks,
    recall_series,
    reindexes,
    relevance_matrix,
)
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.models.config import EvidenceConfig
from retro_demo.render.found_views import NO_CONTROL, UNCOUNTED, found_html
from retro_demo.render.marge_views import curves


def found(vectors, step: int = 0) -> Reindexing:
    vectors = np.asarray(vectors, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    none = np.zeros(0, dtype=np.int64)
    return Reindexing(step, Pairs(none, none, none), np.arange(len(vectors)), vectors.astype(np.float16), {})


def many(groups: int, languages: int, held_out=None):
    """One document for each group and language, of one passage."""
    size = groups * languages
    return made(
        np.arange(size),
        group=np.repeat(np.arange(groups), languages),
        language=np.tile(np.arange(languages), groups),
        held_out=held_out,
    )


def test_a_sample_takes_whole_groups_in_the_same_languages_and_no_more_than_fit():
    passages = many(30, 8)
    sample = choose_sample(passages, np.arange(240), held_out=False, order="group")

    assert len(sample.ids) <= MOST
    blocks = [set(passages.language[sample.ids[passages.group[sample.ids] == g]]) for g in range(30)]
    shown = [block for block in blocks if block]
    assert len(shown) >= 6
    assert all(block == shown[0] for block in shown)


@pytest.mark.parametrize("order", ["group", "language"])
def test_borders_stand_where_another_group_or_language_begins(order):
    passages = many(4, 3)
    sample = choose_sample(passages, np.arange(12), held_out=False, order=order)

    assert sample.borders(passages) == ([3, 6, 9] if order == "group" else [4, 8])


def test_where_nothing_belongs_together_documents_are_spread_evenly_and_have_no_borders():
    passages = made(np.arange(200))
    sample = choose_sample(passages, np.arange(200), held_out=False, order="group")

    assert len(sample.ids) == MOST
    assert (sample.ids[0], sample.ids[-1]) == (0, 199)
    assert sample.borders(passages) == []


def test_a_document_is_shown_once_by_its_first_kept_passage():
    passages = made([0, 0, 1, 1, 2], position=[0, 1, 0, 1, 0])
    sample = choose_sample(passages, np.array([1, 2, 3, 4]), held_out=False, order="group")

    assert sorted(sample.ids.tolist()) == [1, 2, 4]


def test_held_out_and_training_documents_are_never_mixed():
    held_out = np.arange(12) < 3
    passages = many(4, 3, held_out=held_out)

    for wanted in (True, False):
        sample = choose_sample(passages, np.arange(12), held_out=wanted, order="group")
        assert (held_out[sample.ids] == wanted).all()


def test_chosen_languages_are_the_only_ones_and_none_left_is_said_in_a_sentence():
    passages = many(4, 3)
    sample = choose_sample(passages, np.arange(12), held_out=False, order="group", languages=["b"])

    assert set(passages.language[sample.ids]) == {1}
    with pytest.raises(UserError, match="no held-out documents in b"):
        choose_sample(passages, np.arange(12), held_out=True, order="group", languages=["b"])


def test_the_matrix_holds_cosines_and_blanks_where_something_may_be_no_evidence():
    passages = made([0, 1, 2, 3], language=[0, 0, 1, 1], content=[0, 1, 2, 0])
    vectors = np.random.default_rng(0).normal(size=(4, 5))
    sample = PassageSample(np.arange(4), "group")
    matrix = relevance_matrix(found(vectors), sample, passages, EvidenceConfig())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    blank = np.isnan(matrix)
    assert blank.tolist() == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, True, False],
        [True, False, False, True],
    ]
    np.testing.assert_allclose(matrix[~blank], (unit @ unit.T)[~blank], atol=2e-3)
    others = relevance_matrix(found(vectors), sample, passages, EvidenceConfig(evidence_languages="other"))
    assert np.isnan(others[0, 1])
    assert not np.isnan(others[0, 2])


def test_ranks_count_from_the_most_relevant_of_each_row_and_leave_blanks_out():
    matrix = np.array([[np.nan, 0.2, 0.9], [0.5, np.nan, 0.5], [0.1, 0.3, np.nan]])

    np.testing.assert_array_equal(ranks(matrix), [[np.nan, 2, 1], [1, np.nan, 1], [2, 1, np.nan]])


def test_centering_takes_away_what_rows_and_columns_have_in_common():
    rng = np.random.default_rng(1)
    own = rng.normal(size=(6, 6))
    own -= own.mean(axis=0, keepdims=True)
    own -= own.mean(axis=1, keepdims=True)
    common = rng.normal(size=(6, 1)) + rng.normal(size=(1, 6))

    np.testing.assert_allclose(centered(own + common), own, atol=1e-5)


def test_the_nearest_of_the_own_group_are_counted_among_those_that_have_one():
    passages = made([0, 1, 2, 3, 4], group=[0, 0, 1, 1, 2])
    matrix = np.full((5, 5), 0.1)
    matrix[0, 1] = matrix[2, 3] = 0.9
    matrix[1, 4] = matrix[3, 0] = 0.9
    np.fill_diagonal(matrix, np.nan)

    assert nearest_of_group(matrix, PassageSample(np.arange(5), "group"), passages) == (2, 4)


def test_the_lines_hold_what_the_events_say_and_the_untrained_figure_as_a_reference():
    def event(step, recall, **more):
        across = {"recall_at_1": recall, "mrr": 0.5, "chance": 0.1, "queries": 4, "pairs": 9}
        figures = {"pairs": 20, "targets_with_evidence": 6, "targets_resting": 2, "beta": [1.0, 2.0]}
        return {
            "event": "reindexed",
            "step": step,
            "figures": figures | {"recall": across, "across_languages": 0.7} | more,
        }

    status = JobStatus("finished", [event(0, 0.2), event(5, 0.6, churn=0.3)], "")
    rows = reindexes(status)

    assert [row["pairs"] for row in rows] == [20, 20]  # those of training, not the searches of the recall
    assert recall_series(rows)["recall@1"] == [(0, 0.2), (5, 0.6)]
    assert recall_series(rows)["untrained"] == [(0, 0.2), (5, 0.2)]
    assert pair_series(rows)["churn"] == [(5, 0.3)]
    assert pair_series(rows)["resting"] == [(0, 0.25), (5, 0.25)]
    assert pair_series(rows)["across languages"] == [(0, 0.7), (5, 0.7)]
    assert beta_series(status) == {"layer 1": [(0, 1.0), (5, 1.0)], "layer 2": [(0, 2.0), (5, 2.0)]}


def test_a_run_without_groups_in_two_languages_has_no_recall_and_still_its_pairs():
    figures = {"pairs": 20, "targets_with_evidence": 6, "targets_resting": 2, "recall": {}}
    rows = reindexes(JobStatus("running", [{"event": "reindexed", "step": 0, "figures": figures}], ""))

    assert not any(recall_series(rows).values())
    assert pair_series(rows)["resting"] == [(0, 0.25)]


def by_words(step: int, whole: float, learned: float) -> dict:
    parts = {"recall": whole, "recall_learned": learned, "recall_words": 0.5}
    told = {name: {"recall_at_1": value, "chance": 0.1, "pairs": 40} for name, value in parts.items()}
    figures = {"pairs": 20, "targets_with_evidence": 6, "targets_resting": 2}
    return {"event": "reindexed", "step": step, "figures": figures | told}


def test_where_relevance_begins_with_words_the_lines_are_what_is_learned_words_alone_and_the_control():
    rows = reindexes(JobStatus("finished", [by_words(0, 0.4, 0.2), by_words(5, 0.6, 0.3)], ""))
    control = reindexes(JobStatus("finished", [by_words(0, 0.4, 0.2), by_words(5, 0.3, 0.15)], ""))
    series = recall_series(rows, control)

    assert series["recall@1"] == [(0, 0.4), (5, 0.6)]
    assert series["learned part"] == [(0, 0.2), (5, 0.3)]
    assert series["words alone"] == [(0, 0.5), (5, 0.5)]
    assert series["control, learned part"] == [(0, 0.2), (5, 0.15)]
    assert "untrained" not in series  # it is where each line begins
    assert "control, learned part" not in recall_series(rows)


def test_the_control_of_the_papers_relevance_is_held_against_all_of_it():
    def row(step, recall):
        return {"step": step, "recall_at_1": recall, "chance": 0.1}

    series = recall_series([row(0, 0.1), row(5, 0.4)], [row(0, 0.1), row(5, 0.05)])
    assert series["control"] == [(0, 0.1), (5, 0.05)]
    assert "learned part" not in series


def test_the_finding_counts_searches_now_and_untrained_and_tells_what_it_is_to_be_held_against():
    rows = reindexes(JobStatus("finished", [by_words(0, 0.4, 0.2), by_words(5, 0.6, 0.3)], ""))
    said = found_html(rows, None)

    assert [int(n) for n in re.findall(r"<b>(\d+)</b>", said)] == [24, 40, 16]
    assert "20.0% → 30.0%" in said
    assert NO_CONTROL in said
    assert NO_CONTROL not in found_html(rows, rows[:1])
    assert [int(n) for n in re.findall(r"<b>(\d+)</b>", found_html(rows[:1], None))] == [16, 40]
    assert UNCOUNTED in found_html([{"step": 0, "pairs": 3}], None)
    assert found_html([], None) == ""


def test_lines_to_compare_with_are_named_at_themselves_and_told_apart_without_color():
    series = {"recall@1": [(0, 0.2), (5, 0.6)], "chance": [(0, 0.1)], "untrained": [(0, 0.2), (5, 0.2)]}
    figure = curves(series, "step", "recall@1", "run")

    assert [line.name for line in figure.data if line.showlegend] == ["recall@1"]
    assert [note.text for note in figure.layout.annotations] == ["chance", "untrained"]
    assert len({line.line.dash for line in figure.data}) == 3
