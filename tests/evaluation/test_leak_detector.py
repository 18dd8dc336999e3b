"""The strongest test for leaks: where nothing can be foretold, retrieval must not help.

The corpus is random letters, so whatever is retrieved says nothing of what follows: its neighbors are
random by nature. A network that has learned to read (its oracle arm shows that it has) would use whatever
leaked into them.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import Finished
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig, EvaluateConfig
from retro_demo.training.trainer import run_training

NETWORK = {"dim": 48, "depth": 2, "num_heads": 2, "cca_layers": (1, 2), "enc_dim": 48}
TRAINING = {"steps": 400, "seq_len": 64, "batch_size": 16, "lr": 4e-3, "warmup": 20, "save_every": 400}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Arms of a run that was taught to read on random letters, where what is retrieved is random."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz012345"))
    rows = [{"id": str(i), "title": str(i), "text": "".join(rng.choice(letters, 1500))} for i in range(60)]
    config = CorpusConfig(chunk_len=8, vocab_size=300, num_neighbors=4, holdout=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(folder / "home"))
        prepare_corpus(folder / "corpus", [write_jsonl(folder / "noise.jsonl", rows)], config)
        list(build_corpus(folder / "corpus"))
        settings = NETWORK | TRAINING | {"reading": 1.0, "eval_every": 400}
        run = plan_run("retro", str(folder / "corpus"), settings=settings, device="cpu")
        prepare_run(folder / "run", run)
        list(run_training(folder / "run", lambda: False))
        knobs = EvaluateConfig(first_tokens=20_000, max_tokens=20_000)
        prepare_evaluation(folder / "evaluation", Request(str(folder / "run"), settings=knobs))
        *_, last = run_evaluation(folder / "evaluation", lambda: False)
    assert isinstance(last, Finished)
    return last.result


@pytest.mark.proof
def test_the_network_reads_what_its_neighbors_hold(measured):
    oracle = measured["arms"]["oracle_0"]["differences"]["off"]

    assert oracle["nats"] < -0.5
    assert oracle["nats_ci"][1] < 0


@pytest.mark.proof
@pytest.mark.parametrize(
    "arm", ["on", "dense", "bm25", "random", "shuffled", "wrong_order", "n_only", "f_only"]
)
def test_no_neighbors_help_where_nothing_can_be_foretold(measured, arm):
    difference = measured["arms"][arm]["differences"]["off"]

    assert difference["nats_ci"][1] > 0, "held-out text leaks through the neighbors"


@pytest.mark.proof
def test_the_verdict_on_noise_is_that_retrieval_does_not_help(measured):
    assert measured["helps"] is False
