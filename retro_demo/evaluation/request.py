"""What an evaluation measures: the run, its baseline and control, the corpus and the settings.

Kept as config.json in the folder of the evaluation. What cannot be compared is refused here, before
any work.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import check_same_tokens, match, unfit_control
from retro_demo.files import write_atomically
from retro_demo.output_folder import CONFIG, check_output, kind_of, make_output, read_object
from retro_demo.paths import CHECKPOINTS, SAMPLE, data_home, run_folder
from retro_demo.runs import commands
from retro_demo.runs.checkpoint import has_weights, read_any_config
from retro_demo.settings import EvaluateConfig, from_json

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
        raise UserError(
            f"{run.name} is a plain lm: it reads no neighbors, so there is nothing to judge. "
            f"Evaluate a run that retrieves, with --baseline {run.name}."
        )
    for name in request.runs:
        if not has_weights(request.folder(name)):
            read_any_config(request.folder(name))
            raise UserError(f"The {name} {request.folder(name).name} has no weights yet. Let it train first.")
    if request.baseline:
        match(run, request.folder("baseline"))
    if request.control:
        check_same_tokens(run, request.folder("control"))
        if unfit := unfit_control(run, request.folder("control")):
            raise UserError(
                f"The control {request.folder('control').name} is no match: {unfit}. Train one as the run "
                "was (train retro, or retrofit with the same --base), but with --neighbor-source random."
            )


def check_marge_request(request: Request) -> None:
    """Raise UserError where a MARGE is to be measured with what only runs with neighbors have."""
    asked = [name for name in ("baseline", "control") if getattr(request, name)]
    usual = EvaluateConfig()
    asked += [name for name in OF_NEIGHBORS if getattr(request.settings, name) != getattr(usual, name)]
    if asked:
        flag = asked[0].replace("_", "-")
        raise UserError(
            f"{request.folder('run').name} is a MARGE: it reads evidence, not neighbors of chunks, and its "
            f"controls are arms of its own, so --{flag} means nothing here. Leave it out."
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
