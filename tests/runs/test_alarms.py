"""What a training says of itself: held-out loss that rises, loss that explodes, passes over its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from overfitted_helpers import OVERFIT, overfitted, three  # noqa: F401
from train_helpers import advance, prepare

from retro_demo.cli.printing import Printer
from retro_demo.corpus.store import load_corpus, training_tokens
from retro_demo.events import Started, Warned, read_events
from retro_demo.jobs.lifecycle import JobStatus, status
from retro_demo.paths import CHECKPOINTS
from retro_demo.render import job_views
from retro_demo.runs.alarms import (
    EXPLODING,
    MANY_PASSES,
    NOTHING_HELD_OUT,
    RISING,
    Point,
    Watch,
    ahead_words,
    has_risen,
    held_out,
)
from retro_demo.runs.checkpoint import BEST, read_any_config, told_by
from retro_demo.server.planned import Training
from retro_demo.server.run_actions import passes_ahead
from retro_demo.settings import TrainConfig

# ruff: noqa: F811


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def points(*nats: float, tokens: float = 20_000) -> list[Point]:
    return [Point(100 * i, loss, tokens, "") for i, loss in enumerate(nats)]


@pytest.mark.parametrize(
    ("nats", "ended", "risen"),
    [
        ((8.0, 3.0, 2.5, 2.4), True, False),  # it falls to the end
        ((8.0, 2.40, 2.42), True, False),  # less than a hundredth
        ((8.0, 2.40, 2.45), False, False),  # once, and it may fall again
        ((8.0, 2.40, 2.45), True, True),  # what is saved at the end is no longer the best
        ((8.0, 2.40, 2.45, 2.39), True, False),  # it did
        ((8.0, 2.40, 2.45, 2.44), False, True),  # twice in a row
        ((8.0, 5.98, 10.0), False, True),  # far above
        ((8.3, 71.0), False, True),  # it never learned a thing
        ((2.43, 2.46, 2.53), False, True),  # begun with the weights of another run, and worse since
        ((), True, False),
    ],
)
def test_held_out_loss_has_risen_where_it_lies_clearly_above_its_best(nats, ended, risen):
    assert has_risen(points(*nats), ended=ended) is risen


def test_a_measurement_of_few_tokens_must_rise_further():
    curve = (8.0, 2.40, 2.50, 2.50)

    assert has_risen(points(*curve, tokens=20_000))
    assert not has_risen(points(*curve, tokens=200))  # one standard error is 0.07 nats there


@pytest.mark.parametrize("run", sorted(CHECKPOINTS.glob("*/events.jsonl")), ids=lambda path: path.parent.name)
def test_no_shipped_run_would_have_raised_an_alarm(run):
    curve = held_out(event for event in read_events(run) if event["event"] == "evaluated")

    assert len(curve) > 2
    assert not any(has_risen(curve[: at + 1], ended=True) for at in range(len(curve)))


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"off": 1.0, "on": 2.0}, "with retrieval on"),
        ({"off": 2.0}, "with retrieval off"),
        ({"on": 2.0, "random": 1.0, "off": 1.0}, "with its own evidence"),
    ],
)
def test_of_several_arms_the_one_counts_in_which_the_run_reads_as_it_was_trained_to(arms, words):
    measured = {arm: {"nats": nats, "bpb": 1.0, "tokens": 9} for arm, nats in arms.items()}

    (point,) = held_out([{"step": 5, "arms": measured}, {"step": 6, "arms": {}}])

    assert (point.nats, point.arm) == (2.0, words)


def test_a_rise_is_told_once_with_the_best_step_and_again_at_the_end(overfitted):
    events = read_events(overfitted / "events.jsonl")
    loss = {event["step"]: event["arms"]["on"]["nats"] for event in of(events, "evaluated")}
    best = min(loss, key=lambda step: loss[step])
    end = events[-1]

    (warned,) = of(events, "warned")
    assert warned["about"] == RISING
    assert f"{loss[best]:.3f} at step {best:,}" in warned["text"]
    assert f"{loss[warned['step']] - loss[best]:.3f} above" in warned["text"]
    assert "with retrieval on" in warned["text"]
    assert "by heart" in warned["text"]
    assert (end["best_step"], end["best_held_out"]) == (best, loss[best])
    assert end["held_out"] == loss[60] > loss[best]
    (said,) = end["warnings"]
    assert f"{loss[60]:.3f} nats a token at step 60" in said


def test_passes_are_the_windows_read_over_the_windows_of_the_training_text(overfitted, three):
    chunks = load_corpus(three).chunks
    held = load_corpus(three).held_out
    windows = int((~held[chunks.document]).sum()) // 4  # of 32 tokens
    events = read_events(overfitted / "events.jsonl")

    assert events[0]["about"]["passes"] == pytest.approx(60 * 2 / windows)
    assert events[-1]["passes"] == pytest.approx(60 * 2 / windows)
    settings = {"steps": 60, "batch_size": 2, "seq_len": 32}
    assert passes_ahead(three, "retro", settings) == {"passes": pytest.approx(60 * 2 / windows)}


def test_a_run_that_goes_on_says_neither_less_nor_more_than_one_that_never_stopped(
    tmp_path, three, overfitted
):
    out = prepare(tmp_path / "cut", three, **OVERFIT)
    for stop_after in (30, 25, None):
        advance(out, stop_after)

    whole, cut = (read_events(run / "events.jsonl") for run in (overfitted, out))
    assert of(whole, "warned") == of(cut, "warned")
    assert of(whole, "finished") == of(cut, "finished")


def test_an_alarm_that_a_kill_undid_is_raised_again_and_stands_in_the_record_once(
    tmp_path, three, overfitted
):
    out = prepare(tmp_path / "cut", three, **OVERFIT)
    for event in advancing(out):
        if event["event"] == "warned":  # it is on record, and the step before it is not saved
            break

    advance(out)

    assert of(read_events(out / "events.jsonl"), "warned") == of(
        read_events(overfitted / "events.jsonl"), "warned"
    )


def advancing(out: Path):
    from retro_demo.training.trainer import run_training

    for event in run_training(out, lambda: False):
        yield event.to_json()


def test_a_loss_that_explodes_without_becoming_nan_is_told_once_with_the_learning_rate(
    tmp_path, small_folder
):
    out = prepare(
        tmp_path / "run", small_folder, "lm", lr=1.0, warmup=0, clip=1e6, steps=20, dropout=0.0, eval_every=9
    )
    events = advance(out)

    first = of(events, "step")[0]["loss"]
    first = max(first, of(events, "evaluated")[0]["arms"]["off"]["nats"])
    told = {event["about"]: event["text"] for event in of(events, "warned")}
    assert list(told) == [RISING, EXPLODING]
    assert f"far above the {first:.2f}" in told[EXPLODING]
    assert "learning rate below 1." in told[EXPLODING]
    assert "learning rate" in told[RISING]
    assert "by heart" not in told[RISING]


def test_an_easy_first_batch_of_a_run_that_begins_with_trained_weights_makes_no_explosion():
    watch = Watch(TrainConfig(steps=100))
    list(watch.measured(0, {"off": {"nats": 3.5, "bpb": 1.0, "tokens": 9}}))

    assert not [said for step in range(1, 30) for said in watch.stepped(step, 2.45 if step == 1 else 3.6)]
    assert [said.about for step in range(30, 40) for said in watch.stepped(step, 4.6)] == [EXPLODING]


@pytest.mark.parametrize("losses", [[8.0] * 30, [8.0, *[8.9] * 30], [8.0, *[7.0] * 20, 30.0, *[7.0] * 9]])
def test_a_loss_that_does_not_learn_yet_and_a_single_hard_batch_are_no_explosion(losses):
    watch = Watch(TrainConfig(steps=100))

    assert not [said for step, loss in enumerate(losses, start=1) for said in watch.stepped(step, loss)]


FALLEN = [*(6 - 0.1 * step for step in range(30)), *[3.0] * 30]
BLOWN = [*FALLEN, *(3 + 0.2 * step for step in range(14)), *[5.8] * 30]


def steps_told(watch: Watch, losses: list[float], first: int = 1) -> list[Warned]:
    return [said for step, loss in enumerate(losses, start=first) for said in watch.stepped(step, loss)]


@pytest.mark.parametrize("measured", [{}, {"off": {"nats": 6.1, "bpb": 1.0, "tokens": 9}}])
def test_a_loss_that_explodes_after_it_has_fallen_is_told_once_held_out_text_or_not(measured):
    watch = Watch(TrainConfig(steps=200))
    list(watch.measured(0, measured))

    (said,) = steps_told(watch, BLOWN)

    assert said.about == EXPLODING
    assert "far above the 3.00 that it had fallen to by step " in said.text
    assert said.step is not None
    assert 60 < said.step < 60 + 25
    assert "3.00 that it had fallen to" in watch.warnings(ended=True)[-1]


@pytest.mark.parametrize(
    ("losses", "lessons"),
    [
        ([*FALLEN, *[3.9] * 30], 0),  # within what batches differ by
        ([*FALLEN, *[3.0, 5.8, 5.9, 5.7] * 10], 0),  # of some batches only
        ([*FALLEN, *[6.1] * 9, *[3.0] * 20], 0),  # it comes back at once
        (BLOWN, 74),  # the answers are being taken away: from then on it is what it is
        ([2.45, *[3.3, 3.8, 3.6] * 10], 0),  # an easy first batch, and nothing held out that tells
    ],
)
def test_batches_that_differ_and_lessons_that_fade_are_no_explosion(losses, lessons):
    assert not steps_told(Watch(TrainConfig(steps=200), curriculum_steps=lessons), losses)


@pytest.mark.parametrize(
    "losses", [[8.0, *[30.0] * 20], [7.6, 7.8, 7.3, 7.4, 7.3, 7.7, *[7.9, 9.9, 10.2] * 5]]
)
def test_a_loss_that_explodes_from_the_start_is_told_where_nothing_is_held_out(losses):
    (said,) = steps_told(Watch(TrainConfig(steps=200)), losses)

    assert f"far above the {losses[0]:.2f} that it began with" in said.text


def test_a_run_that_goes_on_after_its_loss_fell_tells_the_explosion_where_one_that_never_stopped_would():
    events = [{"event": "step", "step": step, "loss": loss} for step, loss in enumerate(FALLEN, start=1)]
    gone_on, whole = Watch(TrainConfig(steps=200), events), Watch(TrainConfig(steps=200))

    assert steps_told(gone_on, BLOWN[60:], first=61) == steps_told(whole, BLOWN)


def test_a_rise_that_has_blamed_the_learning_rate_is_not_told_again_as_an_explosion_unless_it_grows():
    watch = Watch(TrainConfig(steps=300))
    arms = [{"off": {"nats": nats, "bpb": 1.0, "tokens": 20_000}} for nats in (6.1, 3.0, 5.8)]
    list(watch.measured(0, arms[0]))
    assert not steps_told(watch, FALLEN)
    list(watch.measured(60, arms[1]))
    assert not steps_told(watch, [5.8] * 9, first=61)

    (risen,) = watch.measured(69, arms[2])

    assert (risen.about, "smaller learning rate" in risen.text) == (RISING, True)
    assert not steps_told(watch, [5.8] * 20, first=70)
    assert [said.about for said in steps_told(watch, [8.0] * 20, first=90)] == [EXPLODING]


def test_a_run_of_which_nothing_is_held_out_says_that_no_save_is_the_best():
    watch = Watch(TrainConfig(keep="best"))

    said = [*watch.measured(0, {}), *watch.measured(100, {})]

    assert [warned.about for warned in said] == [NOTHING_HELD_OUT]
    assert watch.best is None


def test_passes_of_a_marge_add_up_over_its_reindexes():
    found = [{"batches": 10, "targets_with_evidence": 30, "targets_resting": 10}, {"batches": 20}]
    found[1] |= {"targets_with_evidence": 40, "targets_resting": 0}
    events = [
        {"event": "reindexed", "step": step, "figures": figures}
        for step, figures in zip((0, 100), found, strict=True)
    ]
    watch = Watch(TrainConfig(), events)

    assert watch.passes(50) == pytest.approx(50 / 10 * 0.75)
    assert watch.passes(300) == pytest.approx(100 / 10 * 0.75 + 200 / 20)


def test_a_run_of_before_whose_reindexes_tell_no_batches_says_nothing_of_passes():
    watch = Watch(TrainConfig(), [{"event": "reindexed", "step": 0, "figures": {"targets_with_evidence": 3}}])

    assert watch.passes(50) == 0
    assert "passes" not in watch.figures()


def test_the_line_at_the_start_says_how_often_the_text_will_be_read():
    few, many = (Started("retro", 0, {"steps": 150, "passes": passes}) for passes in (0.35, 28.2))

    assert Printer().line(few).endswith("from step 0 of 150. It reads its training text 0.35 times.")
    assert "28 times" in Printer().line(many)
    assert f"after {MANY_PASSES}" in Printer().line(many)
    assert "at most 28 times" in ahead_words({"passes_at_most": 28.2})


def test_the_page_says_what_holds_now_beside_the_curve_and_how_often_the_text_was_read(overfitted):
    config, now = read_any_config(overfitted), status(overfitted)

    shown = job_views.alarms_html(now, config, told_by(overfitted / BEST))

    assert of(now.events, "finished")[0]["warnings"][0].split(":")[0] in shown
    assert "read its training text 15 times" in shown
    begun = JobStatus("running", [event for event in now.events if event.get("step", 0) <= 10], "")
    assert "Held-out loss" not in job_views.alarms_html(begun, config, told_by(overfitted / BEST))


def test_the_estimate_of_the_page_says_how_often_the_text_would_be_read():
    cost = ([Training("retro", 10**6, 150, 1024)], "tiny", 0)

    assert "28 times" in job_views.estimates(*cost, {"passes": 28.0})
    assert "times" not in job_views.estimates(*cost)


def test_passes_of_a_marge_are_estimated_at_most(three):
    settings = {"steps": 10, "batch_tokens": 160, "passage_len": 24, "first_passages": False}

    tokens = training_tokens(three)
    words = int(tokens.sum())
    found = passes_ahead(three, "marge", settings)["passes_at_most"]
    assert 10 * 160 / (words * 1.1) < found < 10 * 160 / words


def test_a_warning_is_printed_as_its_sentence():
    assert Printer().line(Warned("It rises.", RISING, 30)) == "warned: It rises."


def test_the_events_of_an_alarm_are_what_an_import_takes(overfitted):
    from retro_demo.sharing.export_format import check_events

    check_events(overfitted / "events.jsonl")
    assert json.loads((overfitted / "events.jsonl").read_text().splitlines()[-1])["event"] == "finished"
