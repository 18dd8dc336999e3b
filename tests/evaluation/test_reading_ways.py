"""The ways to read the same neighbors: what each reads, how it is chosen, what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_readers import make_reader
from reader_helpers import countries, make_corpus

from retro_demo.cli.printing import evaluation
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.evaluation.arms import WAYS
from retro_demo.evaluation.baselines import Known
from retro_demo.evaluation.losses import read_arm
from retro_demo.evaluation.reading_ways import (
    KnnFormat,
    ReadingWays,
    knn_formats,
    prompt_formats,
    titled_texts,
    training_looks,
)
from retro_demo.evaluation.retro_measurement import find_neighbors, make_arms
from retro_demo.evaluation.runner import Pass, Request, prepare_evaluation, run_evaluation
from retro_demo.evaluation.writing_cost import LookToWrite, writing_costs
from retro_demo.events import Finished
from retro_demo.render import evaluation_views
from retro_demo.runs.checkpoint import read_run_config
from retro_demo.runs.loading import LoadedRun, load_run, make_ready
from retro_demo.settings import EvaluateConfig


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("retro_demo.runs.checkpoint.fastest_precision", lambda home: "float32")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("reader")
    return make_reader(place / "run", make_corpus(place / "corpus", countries()), place / "base")


@pytest.fixture(scope="module")
def run(folder) -> LoadedRun:
    config = read_run_config(folder)
    list(make_ready(config.corpus, folder, config))
    return load_run(folder, "cpu")


@pytest.fixture(scope="module")
def ways(run) -> ReadingWays:
    corpus = run.database.corpus
    known = Known(np.zeros(len(corpus.documents), bool))
    arms = make_arms(run, corpus, EvaluateConfig(), known)
    list(find_neighbors(arms, Pass(1, ["on"], len(arms.windows))))
    return ReadingWays(run.model, arms)


def measured(ways: ReadingWays) -> np.ndarray:
    return np.arange(len(ways.arms.windows))


def test_a_reader_is_read_by_its_other_outputs_in_the_prompt_and_by_states(ways):
    assert ways.names == ["copy", "both", "in_context", "knn"]
    assert set(ways.names) < set(WAYS)


def test_without_neighbors_the_prompt_and_the_states_give_what_the_base_gives(ways):
    which = measured(ways)
    nothing = replace(ways.arms, tables={name: np.full_like(t, -1) for name, t in ways.arms.tables.items()})
    alone = ReadingWays(ways.model, nothing)
    off = read_arm(ways.model, ways.arms, "off", which)
    there = ways.arms.tokens(which)[:, ways.corpus.config.chunk_len :] != 0

    for name in ("in_context", "knn"):
        assert np.abs(alone.read(name, which) - off)[there].max() < 1e-3, name
        assert np.abs(ways.read(name, which) - off)[there].max() > 1e-3, name


@pytest.mark.parametrize("name", ["in_context", "knn"])
def test_each_neighbor_that_the_run_reads_is_read(ways, name):
    def shown(chunks: list[int]) -> ReadingWays:
        tables = {one: np.tile(chunks, (len(table), 1)) for one, table in ways.arms.tables.items()}
        return ReadingWays(ways.model, replace(ways.arms, tables=tables, k=len(chunks)))

    read = [shown([0, 3, last]).read(name, np.array([0])) for last in (6, 9)]

    assert np.abs(read[0] - read[1]).max() > 1e-3


def test_what_is_read_in_a_prompt_stands_before_the_text_and_scores_as_one_text(ways):
    looks, places = ways.looks(np.array([0]))
    look, (_, chunk) = looks[-1], places[-1]
    form = prompt_formats(ways.arms.k)[-1]
    whole = [*ways.before(look, form), *look.before, *look.following]
    with torch.no_grad():
        ids = torch.tensor([[ways.model.config.begin_id, *whole]])
        logits = ways.model.base(ids)[0].log_softmax(-1)
    wanted = [-logits[i, token].item() for i, token in enumerate(whole)][-len(look.following) :]
    ways.form = form

    read = ways.read("in_context", np.array([0])).reshape(-1, ways.corpus.config.chunk_len)[chunk]

    assert read[: len(wanted)] == pytest.approx(wanted, abs=1e-3)
    assert all(
        text.strip() in ways.corpus.tokenizer.decode(whole)
        for _, text in titled_texts(ways.corpus, look.neighbors)[:1]
    )


def test_formats_are_chosen_on_documents_that_are_not_held_out_and_are_the_best_there(ways):
    finder = load_retriever(ways.corpus, ways.arms.own, ways.arms.query_tokens)
    looks = training_looks(ways.arms, finder, 6)
    held_out = ways.corpus.held_out[ways.corpus.chunks.document]
    known = {tuple(row[row != 0].tolist()) for row in ways.corpus.chunks.tokens[~held_out]}

    list(ways.choose(finder))

    assert looks
    assert all(tuple(one.following) in known for one in looks)
    chosen_on = training_looks(ways.arms, finder, 16)
    nats = {
        form: sum(one.sum() for one in ways._in_context(chosen_on, form))
        for form in prompt_formats(ways.arms.k)
    }
    assert ways.form == min(nats, key=lambda form: nats[form])
    formats = knn_formats(ways.model)
    sums: Any = sum(one.sum(axis=1) for one in ways._by_states(chosen_on, formats))
    assert ways.knn == formats[int(sums.argmin())]


def test_the_cost_of_a_way_counts_what_passes_through_the_base(ways):
    model, chunk_len = ways.model, ways.corpus.config.chunk_len
    rows = np.full((2, model.config.neighbor_len), 5)
    look = LookToWrite(list(range(3, 3 + 2 * chunk_len)), rows, list(range(3, 13)))

    costs = writing_costs(model, look, ["off", "both", "in_context", "knn"], KnnFormat(), turns=1)

    share = model.config.first_written / model.config.depth
    assert costs["off"].tokens_per_token == 1
    assert costs["both"].tokens_per_token == pytest.approx(1 + rows.size * share / chunk_len)
    assert costs["knn"].tokens_per_token == pytest.approx(1 + rows.size / chunk_len)
    assert costs["in_context"].tokens_per_token == pytest.approx(1 + (10 + 2 * chunk_len) / chunk_len)
    assert costs["in_context"].megabytes > costs["off"].megabytes
    assert all(one.ms_per_token > 0 for one in costs.values())


def test_an_evaluation_of_a_reader_compares_its_ways_on_the_same_tokens(folder, tmp_path):
    settings = EvaluateConfig(first_tokens=100, max_tokens=300, resamples=200, retrievers="", corruption=())
    prepare_evaluation(tmp_path / "out", Request(str(folder), settings=settings))
    *_, last = run_evaluation(tmp_path / "out", lambda: False)
    assert isinstance(last, Finished), last
    result = last.to_json()

    ways = result["ways"]
    assert set(ways["arms"]) == {"off", "on", "copy", "both", "in_context", "knn"}
    assert len({one["tokens"] for one in ways["arms"].values()}) == 1
    assert result["arms"]["in_context"] == ways["arms"]["in_context"]
    assert result["arms"]["on"]["tokens"] > ways["tokens"]
    shown = evaluation_views.ways_html(result)
    assert shown.count("<tr>") == 1 + len(ways["arms"])
    assert f"{ways['arms']['knn']['bpb']:.3f}" in shown
    assert "kNN-LM" not in evaluation_views.arms_table(result)
    assert ways["in_context"] in evaluation(result)


def test_an_evaluation_without_the_prompt_compares_no_ways(folder, tmp_path):
    settings = EvaluateConfig(
        first_tokens=100, max_tokens=100, resamples=200, retrievers="", corruption=(), prepend="off"
    )
    prepare_evaluation(tmp_path / "out", Request(str(folder), settings=settings))
    *_, last = run_evaluation(tmp_path / "out", lambda: False)
    result = last.to_json()

    assert not result["ways"]
    assert not set(result["arms"]) & set(WAYS)
    assert evaluation_views.ways_html(result) == ""
