"""The verb `evaluate`: a job that measures a run of any kind against its controls, in rounds that grow.

    config.json     what is measured, a `Request`: the run, its baseline and control, the corpus, the settings
    events.jsonl    progress; after each round `refined` with all figures, at the end `finished`
    table.npz       the loss of every token under every arm (evaluation/losses.py)

The first round gives a verdict from a stated part of the held-out text; each later one reads more of it
and the same again, so figures only become sharper. A stopped evaluation goes on where it stood.
What cannot be compared is refused before any work.

What differs between kinds is a class that the table of kinds names (`Kind.measurement`): what is read, in
which passes, and which figures follow. The result is one plain dict, ready for JSON; of any kind it has

arms          {name: {nats, bpb, ci, tokens, differences: {reference: {nats, nats_ci, bpb, bpb_ci}}}}
verdict       the sentence; helps (true, false, null) and next stand beside it
counts        documents, tokens, bytes, database_tokens, k, queries, queries_short ...
trained_on    what was left out because a training held it, or could not be checked, in words
tokens_moved  {reference: {helped, hurt, mean, threshold}}
provenance    see runs/provenance.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus
from retro_demo.devices import allowed_threads
from retro_demo.errors import UserError
from retro_demo.evaluation.across_languages import check_control
from retro_demo.evaluation.baselines import Known, check_same_tokens, match, trainings, unfit_control
from retro_demo.evaluation.losses import LossTable
from retro_demo.events import Event, Finished, Progress, Refined, Started, Stopped, cut_back
from retro_demo.files import file_hash, write_atomically
from retro_demo.jobs.lifecycle import claim, record
from retro_demo.kinds import resolve
from retro_demo.output_folder import CONFIG, check_output, kind_of, make_output, read_object
from retro_demo.paths import CHECKPOINTS, SAMPLE, data_home, run_folder
from retro_demo.runs import commands
from retro_demo.runs.checkpoint import has_weights, read_any_config, weights_file
from retro_demo.runs.provenance import code_hash, provenance
from retro_demo.settings import EvaluateConfig, from_json

SAVE_SECONDS = 30.0
FORMAT = 1
OF_NEIGHBORS = ("retrievers", "corruption", "prepend", "database_sizes", "neighbor_counts", "batch_size")
"""Settings that mean nothing to a MARGE."""


@dataclass(frozen=True)
class Request:
    """What is to be measured; places are folders or "sample:NAME", "" = none."""

    run: str
    baseline: str = ""
    control: str = ""
    corpus: str = ""  # "" = the one of the training
    device: str = "auto"
    settings: EvaluateConfig = EvaluateConfig()

    def folder(self, name: str) -> Path:
        """The folder of "run", "baseline" or "control"."""
        return run_folder({"run": self.run, "baseline": self.baseline, "control": self.control}[name])

    @property
    def runs(self) -> list[str]:
        """Which of them are measured: "run", then "baseline" and "control" where they are named."""
        return ["run", *(name for name in ("baseline", "control") if getattr(self, name))]

    @property
    def key(self) -> str:
        """The name of its folder: the same for the same measurement."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def command(self) -> str:
        """The command line that measures the same."""
        others = {"baseline": self.baseline, "control": self.control, "corpus": self.corpus}
        words = commands.flags(
            (name, commands.name_for_command(value)) for name, value in others.items() if value
        )
        words += commands.set_flags(self.settings)
        words += ["--device", self.device] if self.device != "auto" else []
        return commands.command("evaluate", commands.name_for_command(self.run), *words)


def settled(place: str) -> str:
    """A place as a job keeps it, whatever folder it is started in."""
    return place if not place or place.startswith(SAMPLE) else str(Path(place).resolve())


def usual_folder(request: Request) -> Path:
    """Where an evaluation lies when nobody says: with its run, or in the data folder for what ships."""
    run = request.folder("run").resolve()
    if run.is_relative_to(CHECKPOINTS) or not os.access(run, os.W_OK):
        return data_home()[0] / "evaluations" / run.name / request.key
    return run / "evaluations" / request.key


def prepare_evaluation(out: Path, request: Request) -> None:
    """Write down what is to be measured; raises UserError where it cannot be, or `out` holds another."""
    check_request(request)
    there = check_output(out, "evaluation")
    if there and read_object(out / CONFIG) != json.loads(json.dumps(_kept(request))):
        raise UserError(f"{out} already holds another evaluation. Choose another folder.")
    make_output(out)
    write_request(out, request)


def _kept(request: Request) -> dict[str, object]:
    return {"kind": "evaluation", "format": FORMAT, **asdict(request)}


def write_request(out: Path, request: Request) -> None:
    """Write down what the evaluation in a folder measures."""
    write_atomically(out / CONFIG, (json.dumps(_kept(request), indent=2) + "\n").encode())


def check_request(request: Request) -> None:
    """Raise UserError where these runs cannot be measured against each other."""
    run = request.folder("run")
    config = read_any_config(run)
    if config.kind.own_controls:
        check_marge_request(request)
    if not config.retrieves:
        what = config.kind.choice[:1].lower() + config.kind.choice[1:]
        raise UserError(
            f"{run.name} is a {what}: it reads no neighbors, so there is nothing to judge. "
            f"Evaluate a run that retrieves, with --baseline {run.name}."
        )
    for name in request.runs:
        if not has_weights(request.folder(name)):
            read_any_config(request.folder(name))
            raise UserError(f"The {name} {request.folder(name).name} has no weights yet. Let it train first.")
    if request.baseline:
        match(run, request.folder("baseline"))
    if request.control and config.kind.own_controls:
        check_control(run, request.folder("control"))
    elif request.control:
        check_same_tokens(run, request.folder("control"))
        if unfit := unfit_control(run, request.folder("control")):
            raise UserError(
                f"The control {request.folder('control').name} is no match: {unfit}. Train one as the run "
                "was (train retro, or retrofit with the same --base), but with --neighbor-source random."
            )


def check_marge_request(request: Request) -> None:
    """Raise UserError where a MARGE is to be measured with what only runs with neighbors have."""
    asked = ["baseline"] if request.baseline else []
    usual = EvaluateConfig()
    asked += [name for name in OF_NEIGHBORS if getattr(request.settings, name) != getattr(usual, name)]
    if asked:
        flag = asked[0].replace("_", "-")
        raise UserError(
            f"{request.folder('run').name} is a MARGE: it reads evidence, not neighbors of chunks, and what "
            f"it is compared with are arms of its own, so --{flag} means nothing here. Leave it out."
        )


def read_request(out: Path) -> Request:
    """What an evaluation folder measures; raises UserError where there is none."""
    if kind_of(out) != "evaluation":
        raise UserError(f"There is no evaluation at {out}. Begin one with: evaluate RUN --out {out}")
    values = read_object(out / CONFIG)
    asked = {name: value for name, value in values.items() if name not in ("kind", "format")}
    try:
        return Request(**asked | {"settings": from_json(EvaluateConfig, values["settings"])})
    except TypeError as error:
        raise UserError(f"{out / CONFIG} is not the config of an evaluation ({error}).") from error


@dataclass(frozen=True)
class Pass:
    """A stretch of work: these arms on the first `count` windows or passages; `round` as people count.

    kind: "arms" of a round, the "ways" in which a reader may read, or a "curve".
    """

    round: int
    names: list[str]
    count: int
    kind: str = "arms"


class Measurement(Protocol):
    """What an evaluation of one kind of run measures; `open` makes it."""

    table: LossTable  # to fill
    passes: list[Pass]
    total: int  # what all passes cost, in the units of `advance`
    units: str  # that a pass counts
    weights: dict[str, str]  # which weights read, by their hash
    read: dict[str, str]  # what else decides the losses
    corpus: Corpus
    measured_on: str

    @classmethod
    def open(cls, request: Request, stop: Callable[[], bool]) -> Generator[Event, None, Any]:
        """Yield what is prepared; returns the measurement, None after a stop.

        Raises UserError where there is nothing to measure on.
        """
        ...

    def find(self, one: Pass) -> Iterator[Event]:
        """Search for what a pass reads."""
        ...

    def advance(self, one: Pass, done: list[Pass]) -> Iterator[int]:
        """Measure what the table lacks after these passes; yields the cost of each stretch of work."""
        ...

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        """All figures after a pass; `last` are those after the pass before."""
        ...


def run_evaluation(out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Measure what was prepared in `out`, alone and on record, to its end or until `stop` says so."""
    request = read_request(out)
    places, _ = trainings([request.folder(name) for name in request.runs])
    for corpus in {*places.values(), request.corpus} - {""}:
        yield from ensure_sample(corpus, stop)
    with claim(out):
        cut_back(out / "events.jsonl", 0)
        yield from record(out, _evaluate(out, request, stop))


def _evaluate(out: Path, request: Request, stop: Callable[[], bool]) -> Iterator[Event]:
    begun = time.perf_counter()
    yield Started("evaluation", about=asdict(request))
    torch.set_num_threads(allowed_threads())
    kind = read_any_config(request.folder("run")).kind
    work: Measurement | None = yield from resolve(kind.measurement).open(request, stop)
    if work is None:
        yield Stopped()
        return
    path = out / "table.npz"
    # a table of losses of other weights, code or neighbors is not gone on with
    read = work.weights | work.read | {"corpus": work.corpus.fingerprint, "code": code_hash()}
    work.table.load(path, read)
    result: dict[str, Any] = {}
    done, rounds = 0, work.passes[-1].round
    for place, one in enumerate(work.passes):
        yield from work.find(one)
        saved = time.monotonic()
        for cost in work.advance(one, work.passes[:place]):
            done += cost
            if time.monotonic() - saved > SAVE_SECONDS:
                work.table.save(path, read)
                saved = time.monotonic()
            yield Progress(f"round {one.round} of {rounds}", done, work.total)
            if stop():
                work.table.save(path, read)
                yield Stopped()
                return
        work.table.save(path, read)
        result = without_nan(work.result(one, result))
        result["provenance"] = _provenance(request, work, one.count, time.perf_counter() - begun)
        yield Refined(one.round, rounds, result)
    yield Finished(result)


def _provenance(request: Request, work: Measurement, count: int, seconds: float) -> dict[str, Any]:
    origin = provenance(
        request.folder("run"), command=request.command(), seconds=seconds, settings=asdict(request.settings)
    )
    return origin | {
        "measured_on": work.measured_on,
        "measured_on_fingerprint": work.corpus.fingerprint,
        "split": f"held-out documents, {count} {work.units} from the front of the order drawn with the seed",
        "weights": work.weights,
    }


def weights_used(request: Request) -> dict[str, str]:
    """The hash of the weights of each run that is measured."""
    return {name: file_hash(weights_file(request.folder(name))) for name in request.runs}


def nothing_left(corpus: Corpus, known: Known) -> str:
    """Why there is nothing to measure on where a training held all that is held out, and what to do."""
    return (
        f"{known.words} Nothing is left of {int(corpus.held_out.sum()):,} to measure on. Choose a corpus "
        "that holds out text of its own."
    )


def without_nan(value: Any) -> Any:
    """The same with None where a number is none (an empty bin), so that it is JSON."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
