"""The table of the kinds of run: all that it names exists, and one row is enough for a new kind."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retro_demo.cli.main import build_parser, main
from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import held_out_windows
from retro_demo.evaluation.losses import LossTable
from retro_demo.evaluation.runner import Pass, Request, prepare_evaluation, run_evaluation, weights_used
from retro_demo.events import Evaluated, Event, Finished
from retro_demo.generation.sampling import Continuation, Written, write_tokens
from retro_demo.kinds import KINDS, Kind, resolve
from retro_demo.models.memory import shapes_of
from retro_demo.render.wording import GLOSSARY
from retro_demo.runs.checkpoint import AnyRun, load_network, read_any_config
from retro_demo.runs.loading import load_own_corpus
from retro_demo.runs.planning import Planner, extend_run, plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.server.limits import Limits, check_training
from retro_demo.server.run_actions import changed_settings, row_of
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import GenerateConfig, TrainConfig, setting
from retro_demo.tokenizer import Tokenizer
from retro_demo.training.retro_batches import RetroBatches
from retro_demo.training.trainer import Work, run_training
from retro_demo.ui.train_tab import TrainTab


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
    width: int = setting(8, "Width", "Width.", within=(1, 64))
    echo: float = setting(0.0, "Echo", "How much a token is expected to come again.", within=(0.0, 1.0))


class Bigram(nn.Module):
    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.out = nn.Linear(config.width, config.vocab_size)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        logits = self.out(self.embedding(batch.tokens[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten()), {}


class BigramPlanner(Planner):
    @staticmethod
    def network(shape: dict[str, Any], corpus: Corpus, base: Any = None) -> dict[str, Any]:
        return shape | {"vocab_size": corpus.tokenizer.vocab_size}


def bigram_megabytes(network: BigramConfig, tokens: int, _neighbors: int) -> float:
    return 4 * tokens * (network.vocab_size + network.width) / 1e6


def begin_bigrams(
    folder: Path, prompt: str, config: GenerateConfig, **_others: Any
) -> Generator[Event, None, Continuation]:
    network, tokenizer = load_network(folder), Tokenizer.load(folder / "tokenizer.json")
    start = tokenizer.encode(prompt)

    def read(part: list[int]) -> Generator[Event, None, Tensor]:
        yield from ()
        with torch.inference_mode():
            return network.out(network.embedding(torch.tensor(part[-1])))

    def events() -> Iterator[Event | Written]:
        written, chances = yield from write_tokens(start, config.max_new_tokens, config, tokenizer, read)
        yield Written([*start, *written], len(start), chances, [])

    yield from ()
    return Continuation(events(), tokenizer, {"seen": "one token"})


class BigramMeasurement:
    """One arm, in one round: the loss of each token of held-out windows."""

    units = "windows"
    read: dict[str, str] = {}

    def __init__(self, request: Request) -> None:
        folder = request.folder("run")
        self.network, self.weights = load_network(folder), weights_used(request)
        self.corpus = load_own_corpus(folder, read_any_config(folder))
        self.measured_on = self.corpus.name
        windows = held_out_windows(self.corpus, 2, request.settings.seed)
        tokens = self.corpus.chunks.tokens[windows.rows].reshape(len(windows), -1)
        self.table = LossTable(windows, tokens, self.corpus.bytes_of_tokens())
        self.passes, self.total = [Pass(1, ["on"], len(windows))], len(windows)

    @classmethod
    def open(cls, request: Request, stop: object) -> Generator[Event, None, BigramMeasurement]:
        yield from ()
        return cls(request)

    def find(self, one: Pass) -> Iterator[Event]:
        yield from ()

    def advance(self, one: Pass, done: list[Pass]) -> Iterator[int]:
        texts = torch.from_numpy(self.table.tokens).long()
        with torch.inference_mode():
            logits = self.network.out(self.network.embedding(texts[:, :-1])).transpose(1, 2)
            losses = nn.functional.cross_entropy(logits, texts[:, 1:], reduction="none")
        self.table.add("on", np.arange(one.count), losses[:, self.table.chunk_len - 1 :].numpy())
        yield one.count

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        return {"arms": {"on": {"nats": self.table.losses["on"].sum() / self.table.there.sum()}}}


class BigramWork(Work):
    def make_model(self) -> Bigram:
        return Bigram(self.config.network)

    def load_data(self) -> Iterator[Event]:
        training = self.config.training
        self.batches = RetroBatches(
            load_own_corpus(self.out, self.config),
            seq_len=training.seq_len,
            batch_size=training.batch_size,
            num_neighbors=1,
            retrieves=False,
            seed=training.seed,
        )
        yield from ()

    def measure_held_out(self, step: int, model: Bigram) -> Iterator[Event]:
        yield Evaluated(step, {})


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
        writer=f"{here}begin_bigrams",
        measurement=f"{here}BigramMeasurement",
        memory=f"{here}bigram_megabytes",
        width=("width",),
        retrieves=True,  # what does not has nothing to be judged
        own_controls=True,
        place=5,
        choice="A bigram",
        about="bigram sees one token",
        reading_grows_with="a vocabulary of {vocab_size:,}",
        presets={"tiny": {"steps": 2, "seq_len": 16, "batch_size": 2, "warmup": 1}},
        begun={},
        always={},
        base="cannot",
    )
    monkeypatch.setitem(KINDS, row.name, row)
    monkeypatch.setitem(GLOSSARY, row.name, "It guesses a token from the one before.")
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


@pytest.fixture
def trained(bigram, tmp_path, half_held_out) -> Path:
    """A run of the made-up kind at its end."""
    run = tmp_path / "bigrams"
    prepare_run(run, plan_run("bigram", str(half_held_out.folder), device="cpu"))
    list(run_training(run, lambda: False))
    return run


def test_a_run_of_a_new_kind_writes_by_the_command_line(trained, capsys):
    words = ["generate", str(trained), "--prompt", "The river", "--max-new-tokens", "4"]

    assert main([*words, "--top-k", "1", "--json"]) == 0

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 1 <= len([event for event in events if event["event"] == "token"]) <= 4
    assert events[-1]["text"].startswith("The river")
    assert events[-1]["seen"] == "one token"


def test_a_run_of_a_new_kind_is_evaluated_and_goes_on_from_its_table(trained, tmp_path):
    out = tmp_path / "evaluation"
    prepare_evaluation(out, Request(str(trained)))

    first, again = (list(run_evaluation(out, lambda: False))[-1] for _ in range(2))

    assert isinstance(first, Finished)
    assert isinstance(again, Finished)
    assert 0 < first.result["arms"]["on"]["nats"] < 20
    assert first.result["arms"] == again.result["arms"]
    assert first.result["provenance"]["model"] == "bigram"


def test_a_run_of_a_new_kind_has_a_form_an_estimate_and_a_row_on_the_page(trained, tmp_path):
    visitor = Workspace.open(tmp_path / "home", new_code())
    with gr.Blocks():
        plan = TrainTab(visitor.home, gr.BrowserState("")).plan
    form, values = plan.form("bigram"), [widget.value for widget in plan.widgets]

    assert set(form.fields) == {*KINDS["bigram"].settings()} - {"vocab_size"}
    assert form.widgets["echo"].elem_id == "bigram-knob-echo"
    assert ("A bigram", "bigram") in plan.model.choices
    assert plan.settings("bigram", values)["echo"] == 0.0
    shown = plan.adapt("bigram", "tiny")
    for columns in (plan.tops, plan.columns):
        seen = [shown[column].constructor_args["visible"] for column in columns.values()]
        assert seen == [form is plan.form("bigram") for form in plan.forms.values()]
    said = plan.guess(visitor.folder.name, None, "bigram", "tiny", None, *values)[plan.estimate]
    assert "warning" not in said
    assert row_of(trained, "bigrams")[:4] == ("bigrams", "finished", "bigram", "2 of 2")


def test_a_run_of_a_new_kind_that_is_too_large_is_refused_in_words_of_its_own_settings(bigram, small_folder):
    wanted = plan_run("bigram", str(small_folder), device="cpu")

    check_training(Limits(), wanted)
    with pytest.raises(UserError, match="a vocabulary of [0-9,]+, and here"):
        check_training(Limits(reading_megabytes=1), replace(wanted, network=BigramConfig(1_000_000)))


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
