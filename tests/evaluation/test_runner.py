"""An evaluation as a job: what its figures are, how it grows, stops, goes on and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from evaluation_helpers import TINY, make_run

from retro_demo.corpus.store import file_checksum, load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation, usual_folder
from retro_demo.events import Event, Finished, Progress, Refined, Stopped, Warned, read_events
from retro_demo.files import file_hash
from retro_demo.runs.checkpoint import load_model, save_weights
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import EvaluateConfig
from retro_demo.training.trainer import run_training

QUICK = EvaluateConfig(first_tokens=150, max_tokens=600, resamples=200, corruption=(0, 30))
CORE = {"baseline", "off", "on", "dense", "bm25", "n_only", "f_only", "random", "shuffled", "wrong_order"}
ALL = CORE | {"oracle_0", "oracle_30", "prepend", "prepend_control"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, half_held_out) -> dict[str, str]:
    folder, corpus = tmp_path_factory.mktemp("runs"), half_held_out.folder
    return {
        "run": str(make_run(folder / "run", corpus, "retro", seed=1)),
        "baseline": str(make_run(folder / "baseline", corpus, "lm", seed=1)),
        "control": str(make_run(folder / "control", corpus, "retro", neighbor_source="random", seed=2)),
    }


def evaluate(out: Path, request: Request, stop: Callable[[], bool] = lambda: False) -> list[Event]:
    prepare_evaluation(out, request)
    return list(run_evaluation(out, stop))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, runs) -> Iterator[tuple[Path, list[Event]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        out = tmp_path_factory.mktemp("evaluations") / "one"
        settings = replace(QUICK, database_sizes=(30, 100), neighbor_counts=(1, 2))
        yield out, evaluate(out, Request(runs["run"], runs["baseline"], settings=settings))


def result_of(events: list[Event]) -> dict:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].result


def test_every_arm_is_measured_on_the_same_tokens(measured):
    arms = result_of(measured[1])["arms"]

    assert set(arms) == ALL
    assert len({arm["tokens"] for arm in arms.values()}) == 1
    for arm in arms.values():
        assert arm["ci"][0] <= arm["bpb"] <= arm["ci"][1]
    assert arms["dense"]["same_as"] == "on"


def test_a_figure_is_the_mean_loss_of_a_forward_at_the_positions_that_retrieval_reaches(measured, runs):
    out, events = measured
    corpus = load_corpus(Path(json.loads((Path(runs["run"]) / "config.json").read_text())["corpus"]))
    model = load_model(Path(runs["run"]))
    with np.load(out / "table.npz") as file:
        rows, kept = file["rows"], file["loss:on"]
    count = result_of(events)["counts"]["windows"]
    total, tokens = 0.0, 0
    for place in range(count):
        chunks = rows[place][rows[place] >= 0]
        text = torch.from_numpy(corpus.chunks.tokens[chunks].reshape(1, -1).astype(np.int64))
        neighbors = corpus.chunks.with_continuation(corpus.neighbor_ids[chunks[:-1]][:, :2])[None]
        with torch.inference_mode():
            losses = model.token_losses(text, torch.from_numpy(neighbors))[0, 7:]
        there = text[0, 8:] != 0
        assert torch.from_numpy(kept[place][: len(losses)]) == pytest.approx(losses * there, abs=2e-4)
        total, tokens = total + float(losses[there].sum()), tokens + int(there.sum())

    on = result_of(events)["arms"]["on"]
    assert on["tokens"] == tokens
    assert on["nats"] == pytest.approx(total / tokens, rel=1e-4)


def test_rounds_add_text_and_change_nothing_that_was_measured(measured):
    rounds = [event.result for event in measured[1] if isinstance(event, Refined)]
    counts = [one["counts"] for one in rounds]

    assert [one["windows"] for one in counts] == sorted(one["windows"] for one in counts)
    assert counts[0]["tokens"] >= 150
    assert counts[-1]["tokens"] >= 600
    assert "prepend" not in rounds[0]["arms"]  # slow: after the first verdict
    assert rounds[0]["verdict"]
    assert counts[0]["documents"] == counts[0]["held_out_documents"] == 7  # one window of each comes first


def test_the_first_rounds_figures_come_from_the_front_of_the_table(measured):
    out, events = measured
    first = next(event.result for event in events if isinstance(event, Refined))
    with np.load(out / "table.npz") as file:
        losses = file["loss:off"][: first["counts"]["windows"]]

    assert first["arms"]["off"]["nats"] == pytest.approx(losses.sum() / first["counts"]["tokens"], rel=1e-5)


def test_progress_adds_up_to_its_total(measured):
    progress = [event for event in measured[1] if isinstance(event, Progress) and "round" in event.stage]

    assert progress[-1].done == progress[-1].total
    assert all(one.done < other.done for one, other in zip(progress, progress[1:], strict=False))


def test_all_of_the_database_and_the_trained_k_give_what_on_gives(measured):
    curves = result_of(measured[1])["curves"]
    by_size = {point["percent"]: point for point in curves["database_sizes"]}
    by_k = {point["k"]: point for point in curves["neighbor_counts"]}

    assert by_size[100]["bpb"] == pytest.approx(curves["flat"]["on"], rel=1e-6)
    assert by_k[2]["bpb"] == pytest.approx(curves["flat"]["on"], rel=1e-6)
    assert by_k[1]["bpb"] != by_k[2]["bpb"]
    assert by_size[30]["documents"] < by_size[100]["documents"]
    assert by_size[30]["bpb"] != by_size[100]["bpb"]


def test_a_finished_event_is_json_with_all_that_was_promised(measured):
    out, events = measured
    written = read_events(out / "events.jsonl")[-1]

    assert written == json.loads(json.dumps(events[-1].to_json(), allow_nan=False))
    assert {"arms", "verdict", "helps", "next", "counts", "tokens_moved", "leakage"} <= set(written)
    assert written["counts"]["database_tokens"] > 0
    assert "evaluate" in written["provenance"]["command"]
    assert "--max-tokens 600" in written["provenance"]["command"]
    assert written["leakage"]["database"]["bpb"]["on"][-1] == written["arms"]["on"]["bpb"]


def test_the_controls_of_a_run_trained_with_random_neighbors_are_measured(runs, tmp_path):
    settings = replace(QUICK, max_tokens=150, retrievers="", prepend="off")
    request = Request(runs["run"], runs["baseline"], runs["control"], settings=settings)
    arms = result_of(evaluate(tmp_path / "e", request))["arms"]

    assert {"control_random", "control_real"} <= set(arms)
    assert arms["control_random"]["nats"] != arms["random"]["nats"]


def test_a_stopped_evaluation_goes_on_and_ends_as_if_it_had_never_stopped(runs, tmp_path):
    request = Request(runs["run"], runs["baseline"], settings=QUICK)
    straight = evaluate(tmp_path / "whole", request)
    whole = result_of(straight)
    calls = iter(range(1000))
    events = evaluate(tmp_path / "halted", request, lambda: next(calls) == 30)
    assert isinstance(events[-1], Stopped)

    again = list(run_evaluation(tmp_path / "halted", lambda: False))

    read = [sum(isinstance(event, Progress) for event in one) for one in (again, straight)]
    assert read[0] <= read[1] - 8  # what was measured before is not measured again
    for part in ("arms", "verdict", "counts", "leakage", "tokens_moved"):
        assert result_of(again)[part] == whole[part]


def test_a_table_of_other_weights_is_not_gone_on_with(runs, tmp_path, half_held_out):
    run = make_run(tmp_path / "run", half_held_out.folder, "retro", seed=5)
    request = Request(str(run), settings=replace(QUICK, max_tokens=150))
    before = result_of(evaluate(tmp_path / "e", request))
    weights = load_model(run)
    with torch.no_grad():
        weights.embedding.weight.mul_(0.5)
    save_weights(run, weights, 11)
    after = result_of(list(run_evaluation(tmp_path / "e", lambda: False)))

    assert after["arms"]["on"]["nats"] != before["arms"]["on"]["nats"]


def test_without_a_baseline_nothing_is_decided_and_the_control_is_named(runs, tmp_path):
    result = result_of(evaluate(tmp_path / "e", Request(runs["run"], settings=QUICK)))

    assert result["helps"] in (None, False)
    assert "baseline" not in result["arms"]
    assert result["next"][0].startswith("A matched baseline")


def test_a_held_out_document_in_the_index_is_noticed_and_nothing_is_claimed(runs, tmp_path, half_held_out):
    path = half_held_out.folder / "index.faiss"
    clean = path.read_bytes()
    corpus = half_held_out
    document = np.flatnonzero(corpus.held_out)[0]
    ids = np.flatnonzero(corpus.chunks.document == document)
    index = faiss.read_index(str(path))
    index.add_with_ids(np.load(corpus.folder / "vectors.npy")[ids], ids.astype(np.int64))
    request = Request(runs["run"], runs["baseline"], settings=replace(QUICK, max_tokens=0))
    before = result_of(evaluate(tmp_path / "clean", request))
    manifest = (half_held_out.folder / "corpus.json").read_text()
    try:
        faiss.write_index(index, str(path))
        marks = {"index.faiss": file_checksum(path)}  # as if the corpus had been built with it
        (half_held_out.folder / "corpus.json").write_text(json.dumps(json.loads(manifest) | {"marks": marks}))
        events = evaluate(tmp_path / "leaky", request)
    finally:
        path.write_bytes(clean)
        (half_held_out.folder / "corpus.json").write_text(manifest)
    after = result_of(events)

    assert after["counts"]["held_out_chunks_in_index"] == len(ids)
    assert any(isinstance(event, Warned) and "stand in the index" in event.text for event in events)
    assert after["helps"] is None
    assert after["leakage"]["database"]["mean_share"] > before["leakage"]["database"]["mean_share"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"run": "baseline"}, "plain lm"),
        ({"baseline": "run"}, "retrieves too"),
        ({"control": "run"}, "not trained with random neighbors"),
        ({"run": "nowhere"}, "no run at"),
        ({"settings": EvaluateConfig(num_neighbors=50)}, "50 neighbors"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(runs, tmp_path, changed, words):
    named = {
        name: runs.get(value, value) if isinstance(value, str) else value for name, value in changed.items()
    }
    request = replace(Request(runs["run"], settings=QUICK), **named)

    with pytest.raises(UserError, match=words):
        evaluate(tmp_path / "e", request)


def test_another_evaluation_in_the_same_folder_is_refused(runs, tmp_path):
    prepare_evaluation(tmp_path / "e", Request(runs["run"], settings=QUICK))
    prepare_evaluation(tmp_path / "e", Request(runs["run"], settings=QUICK))

    with pytest.raises(UserError, match="already holds another"):
        prepare_evaluation(tmp_path / "e", Request(runs["run"], settings=replace(QUICK, seed=1)))


def test_an_evaluation_lies_with_its_run_and_the_same_one_in_the_same_place(runs):
    request = Request(runs["run"], settings=QUICK)

    assert usual_folder(request) == usual_folder(request)
    assert usual_folder(request).parent == Path(runs["run"]).resolve() / "evaluations"
    assert usual_folder(replace(request, settings=replace(QUICK, seed=1))) != usual_folder(request)


@pytest.mark.parametrize(
    "wrong", [{"retrievers": "dense, sparse"}, {"corruption": (120,)}, {"prepend": "yes"}]
)
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(UserError):
        EvaluateConfig(**wrong)


def test_the_rounds_grow_threefold_up_to_what_is_wanted():
    config = EvaluateConfig(first_tokens=1000, max_tokens=20_000)

    assert config.rounds(10**6) == [1000, 3000, 9000, 20_000]
    assert config.rounds(1200) == [1200]
    assert EvaluateConfig(first_tokens=1000, max_tokens=0).rounds(5000) == [1000, 5000]


def test_a_baseline_that_got_worse_than_its_base_is_measured_beside_it_and_said_to_be(
    tmp_path, half_held_out, runs
):
    corpus = half_held_out.folder
    base = tmp_path / "base"
    shape = TINY | {
        "steps": 60,
        "eval_every": 60,
        "eval_tokens": 200,
        "dropout": 0.0,
        "warmup": 5,
        "lr": 2e-2,
    }
    prepare_run(base, plan_run("lm", str(corpus), settings=shape, device="cpu"))
    list(run_training(base, lambda: False))
    # weights of chance: as bad as a training can make them
    baseline = make_run(tmp_path / "baseline", corpus, "lm", base=str(base), seed=3)

    result = result_of(evaluate(tmp_path / "e", Request(runs["run"], str(baseline), settings=QUICK)))

    arms, weights = result["arms"], result["provenance"]["weights"]
    assert arms["baseline_before"]["tokens"] == arms["baseline"]["tokens"]
    assert arms["baseline_before"]["bpb"] < arms["baseline"]["bpb"]
    assert weights["baseline_before"] == file_hash(base / "model.safetensors")
    assert (
        "The baseline got worse in training: its difference to what the baseline began from is +"
        in (result["verdict"])
    )
    assert result["helps"] is not True
