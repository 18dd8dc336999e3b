"""The table of the kinds of run: all that it names exists, and one row is enough for a new kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retro_demo.cli.main import build_parser
from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.events import Evaluated, Event
from retro_demo.kinds import KINDS, Kind, resolve
from retro_demo.models.memory import shapes_of
from retro_demo.runs.checkpoint import AnyRun, load_network, read_any_config, saved_step
from retro_demo.runs.loading import load_own_corpus
from retro_demo.runs.planning import extend_run, plan_run, prepare_run
from retro_demo.server.run_actions import changed_settings
from retro_demo.settings import TrainConfig, setting
from retro_demo.training.batches import RetroBatches
from retro_demo.training.loop import Batches
from retro_demo.training.trainer import run_training


def paths(kind: Kind) -> list[str]:
    values = [*(getattr(kind, one.name) for one in fields(kind)), *kind.parts.values()]
    return [value for value in values if isinstance(value, str) and re.match(r"[\w.]+:\w", value)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_all_code_that_a_row_names_exists(kind):
    assert len(paths(kind)) >= 11
    for path in paths(kind):
        assert callable(resolve(path)) or isinstance(resolve(path), dict), path


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_row_says_of_settings_only_what_such_a_run_has(kind):
    own = kind.settings()

    assert {*kind.batch, kind.context, *kind.always} <= set(own)
    assert set(kind.trained_by) <= {one.name for one in fields(TrainConfig)}
    assert "tiny" in kind.presets  # what a preset that is not known here counts as
    for preset in kind.presets:
        assert set(kind.preset_settings(preset, begun=True)) <= set(own)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_run_has_the_parts_and_settings_that_its_row_names(kind, tmp_path, small_folder):
    if kind.base == "must":
        with pytest.raises(UserError, match="--base"):
            plan_run(kind.name, str(small_folder))
        return
    config = plan_run(kind.name, str(small_folder), device="cpu")

    assert isinstance(config, AnyRun)
    assert type(config) is resolve(kind.config)
    assert config.kind is kind
    assert config.retrieves == kind.retrieves
    assert set(config.settings) == set(kind.settings())
    assert {name: type(part) for name, part in config.parts.items()} == kind.part_types()
    assert changed_settings(config) == []


@dataclass(frozen=True)
class BigramConfig:
    """The shape of a network that sees one token."""

    vocab_size: int = setting(4096, "Vocabulary", "Tokens.", within=(4, 1_000_000), derived=True)
    dim: int = setting(8, "Width", "Width.", within=(1, 64))
    num_heads: int = setting(1, "Heads", "None, in truth.", within=(1, 1))
    echo: float = setting(0.0, "Echo", "How much a token is expected to come again.", within=(0.0, 1.0))


class Bigram(nn.Module):
    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.out = nn.Linear(config.dim, config.vocab_size)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        logits = self.out(self.embedding(batch.tokens[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten()), {}


class BigramPlanner:
    @staticmethod
    def preset(kind: Kind, preset: str, base: None = None) -> dict[str, Any]:
        return kind.preset_settings(preset)

    @staticmethod
    def of_corpus(corpus: Corpus) -> dict[str, Any]:
        return {}

    @staticmethod
    def network(shape: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
        return shape | {"vocab_size": corpus.tokenizer.vocab_size}

    @staticmethod
    def usual(config: AnyRun, preset: str) -> dict[str, Any]:
        return config.kind.preset_settings(preset)

    @staticmethod
    def check(config: AnyRun, corpus: Corpus) -> None:
        return


class BigramWork:
    passes_a_step = 0.0
    batches: Batches

    def __init__(self, out: Path, config: AnyRun, world: object) -> None:
        self.config = config

    def model(self) -> Bigram:
        return Bigram(self.config.network)

    def open(self) -> Iterator[Event]:
        training = self.config.training
        self.batches = RetroBatches(
            load_own_corpus(self.config),
            seq_len=training.seq_len,
            batch_size=training.batch_size,
            num_neighbors=1,
            retrieves=False,
            seed=training.seed,
        )
        yield from ()

    def told(self, watch: object) -> dict[str, Any]:
        return {}

    def begin(self, start: int, model: Bigram) -> Iterator[Event]:
        yield from ()

    def evaluate(self, step: int, model: Bigram) -> Iterator[Event]:
        yield Evaluated(step, {})

    def due(self, step: int) -> bool:
        return False

    def refresh(self, step: int, model: Bigram, watch: object) -> Iterator[Event]:
        yield from ()


@pytest.fixture
def bigram(monkeypatch) -> Kind:
    """A made-up kind: a row, with code in this file alone."""
    here = f"{__name__}:"
    row = replace(
        KINDS["lm"],
        name="bigram",
        config="retro_demo.runs.checkpoint:AnyRun",
        parts={"network": f"{here}BigramConfig", "training": "retro_demo.settings:TrainConfig"},
        network=f"{here}Bigram",
        planner=f"{here}BigramPlanner",
        work=f"{here}BigramWork",
        presets={"tiny": {"steps": 2, "seq_len": 16, "batch_size": 2, "warmup": 1}},
        begun={},
        always={},
        base="cannot",
    )
    monkeypatch.setitem(KINDS, row.name, row)
    return row


def test_a_new_kind_is_planned_trained_continued_and_loaded_with_a_row_alone(bigram, tmp_path, small_folder):
    run = tmp_path / "run"
    wanted = plan_run("bigram", str(small_folder), settings={"echo": 0.5}, device="cpu")
    prepare_run(run, wanted)
    events = [event.to_json() for event in run_training(run, lambda: False)]

    assert read_any_config(run) == wanted
    assert changed_settings(wanted) == [("echo", 0.5)]
    assert wanted.tokens_per_step == 32
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    assert events[-1]["event"] == "finished"

    extend_run(run, 3)
    list(run_training(run, lambda: False))
    network = load_network(run)

    assert saved_step(run) == 3
    assert isinstance(network, Bigram)
    assert {name: tuple(one.shape) for name, one in network.state_dict().items()} == shapes_of(wanted.network)
    assert all(torch.isfinite(weight).all() for weight in network.parameters())


def test_the_settings_of_a_new_kind_are_flags_of_train(bigram):
    options = build_parser().parse_args(
        ["train", "bigram", "--out", "run", "--echo", "0.25", "--preset", "tiny"]
    )

    assert (options.model, options.echo) == ("bigram", 0.25)


def test_a_base_or_setting_that_a_kind_does_not_have_is_refused(bigram, small_folder):
    with pytest.raises(UserError, match="no other run"):
        plan_run("bigram", str(small_folder), base="sample:lm")
    with pytest.raises(UserError, match="cca_layers"):
        plan_run("bigram", str(small_folder), settings={"cca_layers": (1,)})
