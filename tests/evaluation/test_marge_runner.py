"""An evaluation of a MARGE: its arms, its verdict, how it grows, stops, goes on and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_helpers import words_of
from evaluation_helpers import make_run
from marge_helpers import LANGUAGES, built, make_marge_run, translated

from retro_demo.cli import main, printing
from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import ARMS, EvidenceArms
from retro_demo.evaluation.losses import Difference, Estimate, draws, tail
from retro_demo.evaluation.marge_measurement import marge_verdict
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import Event, Finished, Progress, Refined, Stopped
from retro_demo.evidence.passages import cut_passages
from retro_demo.render import evaluation_views, plots
from retro_demo.runs.checkpoint import load_marge
from retro_demo.server import evaluations
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import EvaluateConfig

QUICK = EvaluateConfig(first_tokens=200, max_tokens=0, resamples=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return built(tmp_path_factory.mktemp("corpora") / "three", translated())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "reader": str(make_marge_run(folder / "reader", corpus.folder)),
        "fresh": str(make_marge_run(folder / "fresh", corpus.folder, reads=False)),
    }


def evaluate(out: Path, request: Request, stop: Callable[[], bool] = lambda: False) -> list[Event]:
    prepare_evaluation(out, request)
    return list(run_evaluation(out, stop))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, runs) -> Iterator[tuple[Path, list[Event]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        out = tmp_path_factory.mktemp("evaluations") / "one"
        yield out, evaluate(out, Request(runs["reader"], settings=QUICK))


def result_of(events: list[Event]) -> dict:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].result


def test_every_arm_is_measured_on_the_same_tokens_and_compared_with_on_random_and_off(measured):
    arms = result_of(measured[1])["arms"]

    assert list(arms) == list(ARMS)
    assert len({arm["tokens"] for arm in arms.values()}) == 1
    for name, arm in arms.items():
        assert arm["ci"][0] <= arm["bpb"] <= arm["ci"][1]
        if "same_as" not in arm:
            assert set(arm["differences"]) == {"on", "random", "off"} - {name}
    assert arms["uniform"]["same_as"] == "beta_0"
    assert arms["other_documents"]["same_as"] == "on"


def test_a_run_that_writes_what_its_evidence_says_is_told_to_be_helped_by_it(measured):
    result = result_of(measured[1])

    assert result["helps"] is True
    assert result["verdict"].startswith("Its own evidence helps: ")
    assert "The learned relevance matters (" in result["verdict"]
    assert "95% interval" in result["verdict"]
    assert "10 held-out groups (30 passages" in result["verdict"]
    assert "k = 2 passages of evidence for each from 72 candidates" in result["verdict"]
    nats = {name: arm["nats"] for name, arm in result["arms"].items()}
    assert nats["on"] < nats["random"] < nats["off"]
    assert nats["on"] < nats["beta_0"]
    assert nats["on"] < nats["shuffled"]


def test_a_run_that_learned_nothing_is_not_told_to_be_helped(runs, tmp_path):
    result = result_of(evaluate(tmp_path / "e", Request(runs["fresh"], settings=QUICK)))

    assert result["helps"] is not True
    assert "helps:" not in result["verdict"]


def test_the_figures_of_the_encoder_and_beta_stand_beside_the_arms(measured):
    result = result_of(measured[1])

    across = result["across_languages"]
    assert across["recall_at_1"] > 0.9  # texts differ in one word
    assert {"untrained", "words", "trained"} <= set(across)
    assert "control" not in across
    for way in ("untrained", "words", "trained"):
        assert {"same_script", "all", "pool", "chance"} <= set(across[way])
        assert 0 <= across[way]["all"] <= 1
    assert across["trained"]["cosine"]["all"] == across["recall_at_1"]
    assert across["words"]["all"] > 0.9
    assert result["across_languages"]["pool"] == 24
    assert result["across_languages"]["chance"] == pytest.approx(1 / 24)
    assert result["beta"] == [20.0, 20.0]


def test_a_figure_is_the_mean_loss_of_forwards_over_batches_of_eight_targets(measured, runs, corpus):
    out, events = measured
    model = load_marge(Path(runs["reader"]))
    passages = cut_passages(corpus, 32, LANGUAGES)
    with np.load(out / "table.npz") as file:
        targets, kept = file["rows"][:, 0], file["loss:off"]
    total = 0.0
    for start in range(0, len(targets), 8):
        tokens = torch.from_numpy(passages.tokens[targets[start : start + 8]])
        with torch.inference_mode():
            losses = model.token_losses(tokens, None)
        assert kept[start : start + 8] == pytest.approx(losses.numpy(), rel=1e-5, abs=1e-4)
        total += float(losses.sum())
    off = result_of(events)["arms"]["off"]

    assert sorted(targets) == sorted(np.flatnonzero(passages.held_out))
    assert off["tokens"] == (passages.tokens[targets][:, 1:] != 0).sum()
    assert off["nats"] == pytest.approx(total / off["tokens"], rel=1e-5)


def test_intervals_draw_whole_groups_as_translations_are_alike(measured, corpus):
    out, events = measured
    passages = cut_passages(corpus, 32, LANGUAGES)
    with np.load(out / "table.npz") as file:
        targets, on, off = file["rows"][:, 0], file["loss:on"], file["loss:off"]
    groups = np.unique(passages.group[targets], return_inverse=True)[1]
    gap = np.bincount(groups, (on.astype(np.float64) - off).sum(axis=1))
    tokens = np.bincount(groups, (passages.tokens[targets][:, 1:] != 0).sum(axis=1))
    drawn = draws(len(gap), QUICK.resamples, QUICK.seed)
    low, high = np.percentile((drawn @ gap) / (drawn @ tokens), [tail(len(gap)), 100 - tail(len(gap))])
    result = result_of(events)

    assert result["counts"]["groups"] == len(gap) == 10
    assert result["arms"]["on"]["differences"]["off"]["nats_ci"] == pytest.approx([low, high], rel=1e-6)


def test_rounds_add_whole_batches_and_the_first_comes_from_the_front(measured):
    out, events = measured
    rounds = [event.result for event in events if isinstance(event, Refined)]
    with np.load(out / "table.npz") as file:
        losses = file["loss:on"]

    assert [one["counts"]["passages"] for one in rounds] == [16, 30]
    first = rounds[0]
    assert first["arms"]["on"]["nats"] == pytest.approx(
        losses[:16].sum(dtype=np.float64) / first["counts"]["tokens"], rel=1e-6
    )
    assert "% of them" in first["verdict"]
    assert "all of them" in rounds[1]["verdict"]
    progress = [event for event in events if isinstance(event, Progress) and "round" in event.stage]
    assert [event.done for event in progress] == [8, 16, 24, 30]
    assert progress[-1].total == 30


def test_a_stopped_evaluation_goes_on_without_reading_anything_again(measured, runs, tmp_path, monkeypatch):
    reads = []
    losses = EvidenceArms.losses

    def counted(self, model, arms, which):
        reads.extend((arm, int(place)) for arm in arms for place in which)
        return losses(self, model, arms, which)

    monkeypatch.setattr(EvidenceArms, "losses", counted)
    request, asked = Request(runs["reader"], settings=QUICK), iter([False] * 3)
    stopped = evaluate(tmp_path / "e", request, stop=lambda: next(asked, True))
    again = evaluate(tmp_path / "e", request)

    assert isinstance(stopped[-1], Stopped)
    assert any(isinstance(event, Refined) for event in stopped)
    assert result_of(again)["arms"] == result_of(measured[1])["arms"]
    assert result_of(again)["verdict"] == result_of(measured[1])["verdict"]
    assert len(reads) == len(set(reads)) == 30 * 7  # two of nine arms are twins of others


def test_losses_of_other_weights_are_not_gone_on_with(corpus, tmp_path):
    run = make_marge_run(tmp_path / "run", corpus.folder)
    request = Request(str(run), settings=QUICK)
    before = result_of(evaluate(tmp_path / "e", request))
    make_marge_run(run, corpus.folder, reads=False)
    after = result_of(evaluate(tmp_path / "e", request))

    assert before["arms"]["on"]["nats"] != after["arms"]["on"]["nats"]
    assert before["provenance"]["weights"] != after["provenance"]["weights"]


def test_k_is_how_many_passages_each_target_gets(runs, tmp_path):
    settings = replace(QUICK, num_neighbors=5)
    result = result_of(evaluate(tmp_path / "e", Request(runs["reader"], settings=settings)))

    assert result["counts"]["k"] == 5
    assert "k = 5 passages" in result["verdict"]


def test_the_command_in_the_provenance_measures_the_same(capsys, runs, tmp_path):
    arguments = ["evaluate", runs["reader"], "--first-tokens", "150", "--resamples", "300", "--seed", "4"]
    assert main.main([*arguments, "--out", str(tmp_path / "one"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    words = words_of(first["provenance"]["command"])
    assert main.main([*words, "--out", str(tmp_path / "two")]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert first["provenance"]["model"] == "marge"
    assert first["provenance"]["steps"] == 10
    assert lines[-1] == first["verdict"]
    assert any(line.startswith("shuffled ") for line in lines)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"baseline": "fresh"}, "baseline"),
        ({"settings": EvaluateConfig(retrievers="bm25")}, "retrievers"),
        ({"settings": EvaluateConfig(corruption=(10,))}, "corruption"),
        ({"settings": EvaluateConfig(prepend="off")}, "prepend"),
        ({"settings": EvaluateConfig(database_sizes=(50,))}, "database-sizes"),
        ({"settings": EvaluateConfig(neighbor_counts=(2,))}, "neighbor-counts"),
        ({"settings": EvaluateConfig(batch_size=4)}, "batch-size"),
    ],
)
def test_what_only_runs_with_neighbors_have_is_refused(runs, tmp_path, changes, flag):
    changes = {
        name: runs.get(value, value) if name != "settings" else value for name, value in changes.items()
    }
    with pytest.raises(UserError, match=f"reader is a MARGE: .* --{flag} means nothing here. Leave it out"):
        prepare_evaluation(tmp_path / "e", Request(runs["reader"], **changes))
    assert not (tmp_path / "e").exists()


def test_without_held_out_documents_it_says_so(tmp_path):
    corpus = built(tmp_path / "all", translated(held_out=0))
    run = make_marge_run(tmp_path / "run", corpus.folder)

    with pytest.raises(UserError, match="holds out no document, so there is nothing to measure on"):
        evaluate(tmp_path / "e", Request(str(run), settings=QUICK))


def test_a_run_without_weights_is_refused(corpus, tmp_path):
    run = make_marge_run(tmp_path / "run", corpus.folder)
    (run / "model.safetensors").unlink()

    with pytest.raises(UserError, match="has no weights yet"):
        prepare_evaluation(tmp_path / "e", Request(str(run), settings=QUICK))


def test_another_corpus_is_measured_on_in_the_tokens_of_the_run_less_what_the_training_held(runs, tmp_path):
    learned = [row | {"use": "held-out"} for row in translated()[-6:]]  # two groups of the run's training
    other = built(tmp_path / "other", [*translated(seed=7), *learned])
    result = result_of(
        evaluate(tmp_path / "e", Request(runs["reader"], corpus=str(other.folder), settings=QUICK))
    )

    assert result["swapped"] == other.name
    assert "Hot swap: the run was trained on another corpus than other." in result["verdict"]
    assert result["counts"]["known_documents"] == 6
    assert result["counts"]["groups"] == 10
    assert "Left out" in result["verdict"]
    assert result["provenance"]["measured_on"] == other.name


def test_another_corpus_with_a_language_that_the_run_does_not_know_is_refused(runs, tmp_path):
    rows = [row | {"lang": "zz"} if row["lang"] == "cc" else row for row in translated(seed=7)]
    other = built(tmp_path / "other", rows)

    with pytest.raises(UserError, match="The run knows no language zz: it knows aa, bb, cc"):
        evaluate(tmp_path / "e", Request(runs["reader"], corpus=str(other.folder), settings=QUICK))
    assert not (other.folder / "editions").exists()


def difference(value: float, spread: float = 0.01) -> Difference:
    one = Estimate(value, value - spread, value + spread)
    return Difference(one, one)


COUNTS = {
    "groups": 10,
    "passages": 80,
    "tokens": 900,
    "held_out_tokens": 1000,
    "k": 8,
    "candidates": 500,
    "short_of_evidence": 4,
}
HELPED = {"random": -0.1, "off": -0.2, "own": 0.0, "beta_0": -0.1, "shuffled": -0.1}


@pytest.mark.parametrize(
    ("changed", "helps", "words"),
    [
        ({}, True, "Its own evidence helps: it beats evidence drawn at random (-0.1000, 95% interval"),
        ({"random": -0.005}, None, "its own evidence did no better than passages drawn at random"),
        ({"random": 0.1}, False, "hurts: passages drawn at random do better"),
        ({"off": 0.0}, None, "its own evidence did no better than none at all"),
        ({"off": 0.3}, False, "Its own evidence hurts: no evidence at all does better"),
        ({}, True, "The learned relevance matters (on minus beta 0: -0.1000"),
        ({"beta_0": 0.0}, True, "matters in part: it is worse only with that of other passages"),
        ({"shuffled": 0.0}, True, "matters in part: it is worse only without any"),
        ({"beta_0": 0.0, "shuffled": 0.0}, True, "The learned relevance is not shown to matter"),
        ({"beta_0": 0.1, "shuffled": 0.0}, True, "of no use, and in part harmful"),
        ({}, True, "makes no difference that shows (+0.0000"),
        ({"own": -0.1}, True, "Reading the evidence of the whole batch helps, against the own alone"),
        ({"own": 0.1}, True, "Reading the evidence of the whole batch hurts, against the own alone"),
        ({}, True, "10 held-out groups (80 passages, 900 tokens, 90% of them), with k = 8"),
        ({}, True, "from 500 candidates (5.0% found fewer)"),
    ],
)
def test_the_verdict_claims_no_more_than_its_intervals_allow(changed, helps, words):
    found = marge_verdict({name: difference(one) for name, one in (HELPED | changed).items()}, COUNTS)

    assert found.helps is helps
    assert words in found.sentence


def test_five_groups_decide_nothing():
    against = {name: difference(one) for name, one in HELPED.items()}
    found = marge_verdict(against, COUNTS | {"groups": 5})

    assert found.helps is None
    assert found.sentence.startswith("Not decided: 5 held-out groups are too few")
    assert any("at least 6" in step for step in found.next)


def test_the_page_offers_a_marge_to_evaluate_but_no_baseline_or_control(tmp_path, corpus, half_held_out):
    space = Workspace.open(tmp_path / "home", new_code())
    make_marge_run(space.folder / "runs" / "marge", corpus.folder)
    make_run(space.folder / "runs" / "reader", half_held_out.folder, "retro", seed=1)
    make_run(space.folder / "runs" / "plain", half_held_out.folder, "lm", seed=1)
    make_run(space.folder / "runs" / "chance", half_held_out.folder, "retro", neighbor_source="random")

    assert {"marge", "reader"} <= set(evaluations.readers(space))
    assert evaluations.baselines(space, "marge") == evaluations.controls(space, "marge") == []
    assert "plain" in dict(evaluations.baselines(space, "reader"))
    assert evaluations.controls(space, "reader") == ["chance"]


def test_every_arm_has_a_dot_and_a_row_and_the_line_is_its_own_evidence(measured):
    result = result_of(measured[1])
    figure = plots.arms_figure(result)
    shown = evaluation_views.arms_table(result)
    dots = {trace["y"][0]: trace for trace in figure.data}

    assert list(dots) == list(result["names"].values())
    for name, arm in result["arms"].items():
        assert dots[result["names"][name]]["x"][0] == arm["bpb"]
        assert f"<td>{arm['bpb']:.4f}</td>" in shown
    line = result["arms"]["on"]["bpb"]
    assert figure.layout.shapes[0]["x0"] == line
    high = result["arms"]["shuffled"]["differences"]["on"]["bpb_ci"][1]
    dot = dots["shuffled relevance"]
    assert dot["x"][0] + dot["error_x"]["array"][0] == pytest.approx(line + high)
    assert "uniform relevance (= beta 0)" in shown
    assert "minus its own evidence" in shown
    assert "minus random evidence" in shown


def test_the_sentences_around_the_arms_name_those_of_a_marge(measured):
    result = result_of(measured[1])

    assert "Against no evidence: " in evaluation_views.verdict_html(result)
    assert "Against random evidence: " in evaluation_views.verdict_html(result)
    assert "other evidence or relevance" in evaluation_views.arms_caption(result)


def test_recall_across_languages_is_shown_beside_pool_and_chance_and_beta_by_layer(measured):
    result = result_of(measured[1])
    shown = evaluation_views.across_html(result)

    assert f"{result['across_languages']['recall_at_1']:.1%}" in shown
    assert "24.0 candidates" in shown
    for name, words in (("untrained", "untrained"), ("words", "words alone"), ("trained", "trained")):
        assert f"<th>{words}</th>" in shown
        assert f"<td>{result['across_languages'][name]['all']:.1%}</td>" in shown
    assert "control" not in shown
    assert "4.2%" in shown
    assert evaluation_views.beta_html(result).count("<td>20.000</td>") == 2
    assert "no recall across languages" in evaluation_views.across_html(result | {"across_languages": {}})


def test_a_terminal_tells_how_often_the_same_item_was_found_and_by_what(measured):
    result = result_of(measured[1])
    lines = printing.evaluation(result).splitlines()

    trained = next(line for line in lines if line.startswith("trained"))
    assert trained.split()[-1] == f"{result['across_languages']['trained']['all']:.1%}"
    assert any("24 candidates" in line for line in lines)
    assert "found by" not in printing.evaluation(result | {"across_languages": {}})
