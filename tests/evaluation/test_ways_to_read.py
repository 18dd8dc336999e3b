"""The arms of an evaluation that read a reader's neighbors in other ways: its outputs, in context, kNN-LM."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from random_readers import make_reader

from retro_demo.cli import main
from retro_demo.evaluation.arms import Arms, held_out_windows
from retro_demo.evaluation.losses import read_arm
from retro_demo.evaluation.training_free import read_training_free
from retro_demo.models.reader import Reader
from retro_demo.pretrained.bases import load_base
from retro_demo.runs.loading import load_run

BRIEF = ["--first-tokens", "100", "--max-tokens", "100", "--resamples", "200", "--json"]


@pytest.fixture(scope="module")
def run(half_held_out, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ways")
    corpus = shutil.copytree(half_held_out.folder, folder / "half")
    return make_reader(folder / "run", corpus, folder / "base")


@pytest.fixture(scope="module")
def figures(run) -> dict:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main.main(["evaluate", str(run), *BRIEF]) == 0
    return json.loads(out.getvalue().splitlines()[-1])["arms"]


def test_each_way_is_an_arm_with_the_tokens_that_it_reads(figures):
    ways = {name: arm["tokens_read"] for name, arm in figures.items() if "tokens_read" in arm}

    assert set(ways) == {"off", "on", "copy", "both", "in_context", "knn"}
    assert ways["off"] == 1 < ways["on"] == ways["copy"] == ways["knn"] < ways["in_context"]


def test_the_output_that_the_run_writes_with_is_not_read_twice(figures):
    assert "attention" not in figures


def test_the_slow_ways_are_left_out_where_prepending_is_off(run, capsys):
    assert main.main(["evaluate", str(run), *BRIEF, "--prepend", "off"]) == 0

    arms = json.loads(capsys.readouterr().out.splitlines()[-1])["arms"]
    assert {"copy", "both"} <= set(arms)
    assert not {"in_context", "knn"} & set(arms)


def arms_of(run: Path, neighbors: list[int]) -> tuple[Reader, Arms]:
    """The run on its base in float32, and arms that show these chunks everywhere."""
    loaded = load_run(run, "cpu")
    assert loaded.database is not None
    assert isinstance(loaded.model, Reader)
    model, corpus = loaded.model.attach(load_base(run.parent / "base").model), loaded.database.corpus
    table = np.tile(neighbors, (len(corpus.chunks), 1))
    windows = held_out_windows(corpus, 4, 0)
    return model, Arms(corpus, windows, {"own": table}, "own", len(neighbors), 0, model.config.title_len)


@pytest.mark.parametrize("name", ["in_context", "knn"])
def test_without_neighbors_a_training_free_way_is_the_base_alone(run, figures, name):
    model, arms = arms_of(run, [-1, -1])
    which = np.arange(3)

    alone = read_arm(model, arms, "off", which)

    assert alone.any()
    np.testing.assert_allclose(read_training_free(model, arms, name, which), alone, atol=1e-3)


@pytest.mark.parametrize("name", ["in_context", "knn"])
def test_each_neighbor_that_the_run_reads_is_read(run, figures, name):
    model, first = arms_of(run, [0, 3, 6])
    _, second = arms_of(run, [0, 3, 9])

    read = [read_training_free(model, arms, name, np.arange(1)) for arms in (first, second)]

    assert np.abs(read[0] - read[1]).max() > 1e-3
