"""The verdict claims no more than the controls allow, whatever their combination."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from retro_demo.corpus.store import MIN_DOCUMENTS
from retro_demo.evaluation.losses import Difference, Estimate
from retro_demo.evaluation.verdict import VerdictFigures, verdict


def difference(value: float, low: float, high: float) -> Difference:
    return Difference(Estimate(value * 2, low * 2, high * 2), Estimate(value, low, high))


BETTER, SAME, WORSE = (
    difference(-0.03, -0.04, -0.02),
    difference(-0.01, -0.03, 0.01),
    difference(0.03, 0.02, 0.04),
)
GOOD = VerdictFigures(
    on_baseline=BETTER,
    on_shuffled=BETTER,
    on_control=BETTER,
    baseline_bpb=1.0,
    documents=39,
    tokens=50_000,
    held_out_tokens=200_000,
    database_tokens=1_453_152,
    k=2,
    share_short=0.031,
)
ANY = (None, BETTER, SAME, WORSE)


def test_help_is_claimed_exactly_where_every_control_allows_it():
    for baseline, shuffled, control in product(ANY, ANY, ANY):
        for documents, unfit, leaked in product((3, MIN_DOCUMENTS), ("", "it is smaller"), (0, 7)):
            evidence = replace(
                GOOD,
                on_baseline=baseline,
                on_shuffled=shuffled,
                on_control=control,
                documents=documents,
                unfit=unfit,
                leaked=leaked,
            )
            said = verdict(evidence)
            allowed = (
                baseline is BETTER
                and shuffled is BETTER
                and control in (None, BETTER)
                and documents >= MIN_DOCUMENTS
                and not unfit
                and not leaked
            )
            assert (said.helps is True) == allowed, said
            assert said.sentence.startswith("Retrieval helps") == allowed, said
            assert said.sentence.startswith("Retrieval does not help") == (said.helps is False), said
            open_ = said.sentence.startswith(("Not decided", "No measurable benefit"))
            assert open_ == (said.helps is None), said


def test_a_claim_names_its_intervals_and_what_it_stands_on():
    sentence = verdict(GOOD).sentence

    for words in (
        "3.0% fewer bits per byte than the baseline",
        "-0.0300, 95% interval -0.0400 to -0.0200",
        "39 held-out documents",
        "50,000 tokens, 25% of them",
        "k = 2 neighbors from a database of 1,453,152 tokens",
        "3.1% of the queries found fewer than 2",
        "One seed",
    ):
        assert words in sentence


def test_the_missing_control_is_named_first():
    said = verdict(replace(GOOD, on_baseline=None))

    assert said.helps is None
    assert "no matched baseline yet" in said.sentence
    assert said.next[0].startswith("A matched baseline")
    assert "stricter control" in verdict(replace(GOOD, on_control=None)).next[0]


def test_a_baseline_that_does_not_match_is_said_and_its_difference_still_shown():
    said = verdict(replace(GOOD, unfit="it saw only 10 tokens in training, the run 20"))

    assert "it saw only 10 tokens" in said.sentence
    assert "-0.0300" in said.sentence


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"on_baseline": SAME, "rival": "training longer"}, "retrieval did no better than training longer"),
        ({"on_baseline": WORSE}, "it hurts: the run needs 3.0% more bits per byte"),
        ({"on_shuffled": SAME}, "no better than those of another sequence"),
        ({"on_shuffled": WORSE}, "what the neighbors say is not used"),
        ({"on_shuffled": SAME, "on_baseline": WORSE}, "it hurts: the run needs 3.0% more bits per byte"),
        ({"on_control": SAME}, "did no better than one trained with random neighbors"),
        ({"on_control": WORSE}, "a run trained with random neighbors does better"),
        ({"documents": 2}, "2 held-out documents are too few"),
        ({"leaked": 12}, "12 held-out chunks stand in the index"),
        ({"swapped": "factbook2026"}, "another corpus than factbook2026"),
        ({"trained_on": "Two documents were left out."}, "Two documents were left out."),
        ({"tokens": 200_000}, "200,000 tokens, all of them"),
    ],
)
def test_the_reason_is_said(changed, words):
    assert words in verdict(replace(GOOD, **changed)).sentence


@pytest.mark.parametrize("control", ["on_baseline", "on_shuffled", "on_control"])
def test_an_interval_that_holds_zero_decides_nothing_and_only_one_above_zero_says_no(control):
    assert verdict(replace(GOOD, **{control: SAME})).helps is None
    assert "not used" not in verdict(replace(GOOD, **{control: SAME})).sentence
    assert verdict(replace(GOOD, **{control: WORSE})).helps is False


def test_without_intervals_nothing_is_claimed():
    bare = Difference(Estimate(-0.1, None, None), Estimate(-0.1, None, None))

    assert verdict(replace(GOOD, documents=1, on_baseline=bare, on_shuffled=bare)).helps is None


WAS = "what the baseline began from"


@pytest.mark.parametrize(
    ("on_was", "helps", "begins"),
    [
        (BETTER, True, "Retrieval helps"),
        (SAME, None, "No measurable benefit"),
        (WORSE, False, "Retrieval does not help"),
    ],
)
def test_beside_a_baseline_that_got_worse_the_better_of_the_two_decides_and_that_is_said(
    on_was, helps, begins
):
    said = verdict(replace(GOOD, was=WAS, baseline_on_was=WORSE, on_was=on_was))

    assert said.helps is helps
    assert said.sentence.startswith(begins)
    assert f"The baseline got worse in training: its difference to {WAS} is +0.0300" in said.sentence
    assert "+0.0200 to +0.0400" in said.sentence
    assert f"{on_was.bpb.value:+.4f}, 95% interval" in said.sentence.split("The run's difference")[1]
    assert any("--keep best" in step for step in said.next)


@pytest.mark.parametrize("baseline", [BETTER, SAME])
def test_of_a_baseline_that_did_not_get_worse_nothing_is_said(baseline):
    before = replace(GOOD, was=WAS, baseline_on_was=baseline, on_was=WORSE)

    assert verdict(before) == verdict(GOOD)


UNDECIDED = {
    "too few documents": {"documents": MIN_DOCUMENTS - 1},
    "held-out chunks in the index": {"leaked": 7},
    "both": {"documents": MIN_DOCUMENTS - 1, "leaked": 7},
    "no shuffled neighbors": {"on_shuffled": None},
    "a baseline that is no match": {"unfit": "it is smaller"},
}


@pytest.mark.parametrize("change", UNDECIDED.values(), ids=UNDECIDED)
def test_what_decides_nothing_says_too_that_the_baseline_got_worse(change):
    bare = Difference(Estimate(0.03, None, None), Estimate(0.03, None, None))
    measured = bare if "documents" in change else WORSE
    open_question = replace(GOOD, **change)
    told = "The baseline was better before, as its own training measured it."

    measured_worse = verdict(replace(open_question, was=WAS, baseline_on_was=measured, on_was=SAME))
    recorded = verdict(replace(open_question, got_worse=told))

    for said in (measured_worse, recorded):
        assert said.helps is None
        assert said.sentence.startswith("Not decided")
        assert any("--keep best" in step for step in said.next)
    assert WAS in measured_worse.sentence
    assert "0.0300" in measured_worse.sentence
    assert told in recorded.sentence


@pytest.mark.parametrize("measured", [0.0, 0.005, -0.03])
def test_too_few_documents_make_no_small_difference_a_baseline_that_got_worse(measured):
    few = replace(GOOD, documents=MIN_DOCUMENTS - 1)
    bare = Difference(Estimate(measured, None, None), Estimate(measured, None, None))

    assert verdict(replace(few, was=WAS, baseline_on_was=bare, on_was=BETTER)) == verdict(few)


@pytest.mark.parametrize(("measured", "holds"), [(SAME, True), (BETTER, False)])
def test_what_the_training_of_the_baseline_tells_holds_unless_this_measurement_says_otherwise(
    measured, holds
):
    told = "The baseline was better before."
    before = replace(GOOD, was=WAS, baseline_on_was=measured, on_was=SAME, got_worse=told)

    assert (told in verdict(before).sentence) is holds


def test_what_only_the_training_of_the_baseline_tells_is_said_and_decides_nothing():
    told = "The baseline was better before."

    said = verdict(replace(GOOD, got_worse=told))

    assert said.helps is True
    assert told in said.sentence
    assert any("--keep best" in step for step in said.next)


def test_a_run_that_gained_on_what_it_began_with_is_not_called_hurt_where_training_gained_more():
    before = replace(GOOD, on_baseline=WORSE, was="the base", on_was=BETTER, baseline_on_was=BETTER)
    before = replace(before, rival="training longer", frozen=True)
    said = verdict(before)

    assert said.helps is False
    assert said.title == "Retrieval helped, but less than training longer"
    assert "better than the base (-0.0300" in said.sentence
    assert "3.0% more bits per byte than the baseline" in said.sentence
    for changed in ({"on_was": SAME}, {"on_was": WORSE}, {"on_shuffled": SAME}, {"frozen": False}):
        assert verdict(replace(before, **changed)).title.startswith("Retrieval hurts")


def test_where_retrieval_is_not_worth_it_what_a_neighbor_with_the_truth_gives_is_told():
    steps = verdict(replace(GOOD, on_baseline=WORSE, oracle_bpb=0.004)).next
    unread = verdict(replace(GOOD, on_baseline=WORSE, oracle_bpb=1.2)).next

    assert any("0.004 bits per byte, the baseline 1.000" in step for step in steps)
    assert not any("bits per byte" in step for step in unread)
    assert any("learned to read" in step for step in unread)
    assert not any("oracle" in step for step in verdict(replace(GOOD, oracle_bpb=0.004)).next)


def test_the_title_says_what_the_sentence_claims_in_a_students_words():
    for baseline, shuffled, control in product(ANY, ANY, ANY):
        said = verdict(replace(GOOD, on_baseline=baseline, on_shuffled=shuffled, on_control=control))
        assert said.title.startswith("Retrieval helps") == (said.helps is True)
        assert said.title.startswith(("No benefit", "Retrieval hurts")) == (said.helps is False)
        assert said.title.startswith(("Not decided", "No measurable benefit")) == (said.helps is None)
        assert not set("0123456789") & set(said.title)
    plain = verdict(replace(GOOD, on_baseline=SAME, rival="training longer"))
    assert plain.title == "No measurable benefit: retrieval did no better than training longer"
