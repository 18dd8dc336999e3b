"""Does retrieval help here? The trainings and the measurement that answer it, as one job (verb `study`).

    config.json    a `Study`: the corpus, what to begin with, preset, settings, seeds, where its runs lie
    events.jsonl   progress, part by part; `finished` with the verdict and what each seed gave

For each seed a plain model is trained (the base). A retrofit freezes it and learns to read neighbors; the
matched baseline trains it on for as many steps without neighbors. What the one is better than the other is
what retrieval is worth. A pretrained base is there already: it becomes a reader, and its matched baseline is
the same base, fine-tuned for as many steps.

Each part is a job in a folder of its own and goes on where it stood, so a study that was stopped or killed
does, too. The runs are used with their best save, so that a training that is too long makes no easy opponent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import baseline_settings, got_worse
from retro_demo.evaluation.over_seeds import MOST_SEEDS, verdict_over
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import Event, Finished, Progress, Started, Step, Stopped, cut_back
from retro_demo.files import write_atomically
from retro_demo.jobs.lifecycle import claim, record
from retro_demo.kinds import KINDS, Kind, resolve
from retro_demo.output_folder import CONFIG, check_output, kind_of, make_output, read_object
from retro_demo.paths import data_home, run_folder
from retro_demo.pretrained.bases import is_pretrained
from retro_demo.runs.checkpoint import AnyRun, read_any_config
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.runs.resuming import saved_step
from retro_demo.settings import TrainConfig
from retro_demo.training.trainer import run_training

FORMAT = 1
TOLD_SECONDS = 0.5  # between two events of progress: a training makes hundreds of steps
VERDICT = "verdict"
SCHEDULE = ("steps", "lr", "warmup")
"""What the runs behind the first one have of their own presets."""


@dataclass(frozen=True)
class Study:
    """What is asked: places are folders or "sample:NAME"; `base` may be a pretrained one, "" trains an lm.

    `settings` are those of the first training; the seed among them is the first of `seeds`. `runs`: the
    folder where its runs lie, seen from the study's, with its name before theirs; "" = in the study itself.
    """

    corpus: str
    base: str = ""
    preset: str = "tiny"
    seeds: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    runs: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(f"{self.seeds} seeds are asked for: give 1 to {MOST_SEEDS}.")

    @property
    def pretrained(self) -> bool:
        return bool(self.base) and is_pretrained(self.base)

    @property
    def trained(self) -> tuple[str, ...]:
        """What is trained for each seed, in its order."""
        reader = self.reading.name
        return (reader, "baseline") if self.base else ("base", reader, "baseline")

    @property
    def reading(self) -> Kind:
        """The kind of run that learns to read neighbors."""
        return KINDS["reader" if self.pretrained else "retrofit"]

    @property
    def first_seed(self) -> int:
        return int(self.settings.get("seed", 0))

    def parts(self, out: Path) -> list[StudyPart]:
        """All that is to be done, in its order; `out` is the folder of the study."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [
            StudyPart(name, seed, self._place(out, name, seed))
            for seed in seeds
            for name in (*self.trained, VERDICT)
        ]

    def _place(self, out: Path, name: str, seed: int) -> Path:
        name = self.reading.name if name == VERDICT else name
        own = name if self.seeds == 1 else f"{name}-seed{seed}"
        return (out / self.runs).resolve() / f"{out.name}-{own}" if self.runs else out / own


@dataclass(frozen=True)
class StudyPart:
    """One training of a study, or (VERDICT) the measurement of the run in `folder`."""

    name: str
    seed: int
    folder: Path

    def title(self, seeds: int) -> str:
        return self.name if seeds == 1 else f"{self.name}, seed {self.seed}"


def prepare_study(out: Path, study: Study) -> None:
    """Write down a study, or check that a second call means the same one.

    Raises UserError where its first training could not begin, and where nothing is held out to measure on.
    """
    if check_output(out, "study"):
        if read_object(out / CONFIG) != json.loads(json.dumps(_kept(study))):
            raise UserError(f"{out} already holds another study. Choose another folder.")
        return
    corpus = load_corpus(corpus_folder(data_home()[0], study.corpus))
    if not corpus.held_out.any():
        raise UserError(
            f"{corpus.name} holds out no document, so nothing can be measured. Build it with a larger "
            "--holdout."
        )
    if study.base and not study.pretrained and read_any_config(run_folder(study.base)).kind.trains_pretrained:
        raise UserError(
            "A study begins with an lm, or with a pretrained base as it is, and "
            f"{run_folder(study.base).name} was trained beside one. Train a reader of it by itself: train "
            "retrofit --base RUN"
        )
    for name in (name for name in study.trained if name != "baseline"):  # which follows from the others
        wanted = plan_part(study, name, study.first_seed, {})
        resolve(wanted.kind.planner).check(wanted, corpus)
    make_output(out)
    write_study(out, study)


def write_study(out: Path, study: Study) -> None:
    """Write down what the study in a folder asks."""
    write_atomically(out / CONFIG, (json.dumps(_kept(study), indent=2) + "\n").encode())


def _kept(study: Study) -> dict[str, Any]:
    return {"kind": "study", "format": FORMAT, **asdict(study)}


def read_study(out: Path) -> Study:
    """What a study folder asks; raises UserError where there is none."""
    if kind_of(out) != "study":
        raise UserError(f"There is no study at {out}. Begin one with: study --corpus DIR --out {out}")
    values = read_object(out / CONFIG)
    try:
        return Study(**{name: value for name, value in values.items() if name not in ("kind", "format")})
    except TypeError as error:
        raise UserError(f"{out / CONFIG} is not the config of a study ({error}).") from error


Trained = Mapping[tuple[str, int], Path]
"""The runs of a study that are there, by name of the part and seed."""


def plan_part(study: Study, name: str, seed: int, runs: Trained) -> AnyRun:
    """The config of one training; `runs` are those before it.

    The first training has the settings as they are given. A retrofit behind it keeps the decoder and has the
    schedule of its preset, with as many more or fewer steps as the first one has.
    """
    base = str(runs.get(("base", seed), study.base))
    common: dict[str, Any] = {"preset": study.preset, "device": study.device}
    if name == "baseline":
        settings = baseline_settings(runs[study.reading.name, seed])
        return plan_run(study.reading.baseline, study.corpus, settings=settings, base=base, **common)
    given = _known(study.settings, KINDS["reader" if study.pretrained else "retro"])
    given |= {"seed": seed, "keep": given.get("keep", "best")}
    if name == "base":
        return plan_run("lm", study.corpus, settings=given, **common)
    if not study.base:
        given = {name: value for name, value in given.items() if name not in SCHEDULE}
        given |= steps_behind(study.preset, study.settings.get("steps"))
    model = "retrofit" if base else "retro"  # which has the same settings, to check before there is a base
    return plan_run(model, study.corpus, settings=given, base=base, **common)


def _known(settings: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    if unknown := sorted(set(settings) - set(kind.settings())):
        raise UserError(f"A study of a {kind.name} has no setting {', '.join(unknown)}. Leave it out.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def steps_behind(preset: str, steps: int | None = None) -> dict[str, int]:
    """Steps and warm-up of what begins with a base of `steps` steps (None: of its preset), in proportion."""
    usual = KINDS["lm"].preset_settings(preset).get("steps", TrainConfig.steps)
    behind, share = KINDS["retrofit"].preset_settings(preset), (steps or usual) / usual
    return {name: max(1, round(behind[name] * share)) for name in ("steps", "warmup")}


def run_study(out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Advance the study in `out` from wherever it stands to its end, alone and on record."""
    study = read_study(out)
    yield from ensure_sample(study.corpus, stop)
    with claim(out):
        cut_back(out / "events.jsonl", 0)
        yield from record(out, _study(out, study, stop))


def _study(out: Path, study: Study, stop: Callable[[], bool]) -> Iterator[Event]:
    parts = study.parts(out)
    titles = [part.title(study.seeds) for part in parts]
    yield Started(
        "study", about={"parts": titles, "folders": [part.folder.name for part in parts]} | asdict(study)
    )
    results: list[dict[str, Any]] = []
    worse: list[str] = []
    runs: dict[tuple[str, int], Path] = {}
    baseline: Path | None = None
    for part, title in zip(parts, titles, strict=True):
        if part.name == VERDICT:
            baseline = runs.get(("baseline", part.seed))
            work = _measured(part, baseline, study.device, stop)
        else:
            work = _trained(study, part, runs, stop)
            runs[part.name, part.seed] = part.folder
        last = yield from _told(title, work)
        if last is None:
            yield Stopped()
            return
        if part.name == VERDICT:
            results.append(last)
            worse.append(got_worse(baseline) if baseline else "")
    yield Finished(study_result(study, parts, results, worse))


def _told(title: str, work: Iterator[Event]) -> Generator[Event, None, dict[str, Any] | None]:
    """The progress of a part; returns what it finished with, None after a stop."""
    told, steps = 0.0, 0
    for event in work:
        if isinstance(event, Stopped):
            return None
        if isinstance(event, Finished):
            yield Progress(title, 1, 1)
            return event.result
        if isinstance(event, Started):
            steps = event.about.get("steps", steps)
            yield Progress(title, event.step, max(steps, 1))
        done = (event.step, steps) if isinstance(event, Step) else None
        if isinstance(event, Progress) and event.stage.startswith("round "):
            done = event.done, event.total
        if done and time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            yield Progress(title, *done)
    return {}


def _trained(study: Study, part: StudyPart, runs: Trained, stop: Callable[[], bool]) -> Iterator[Event]:
    """The training of a part, from wherever it stands.

    Raises UserError where another run lies in its place.
    """
    wanted = plan_part(study, part.name, part.seed, runs)
    if not (part.folder / CONFIG).exists():
        prepare_run(part.folder, wanted)
    elif differs := _differs(read_any_config(part.folder), wanted):
        raise UserError(
            f"{part.folder.name} is not the {part.name} that this study would train: its {differs} is "
            "another. Rename that run, or begin a study of another name."
        )
    elif saved_step(part.folder) >= read_any_config(part.folder).training.steps:
        yield Finished()
        return
    yield from run_training(part.folder, stop)


def _differs(there: AnyRun, wanted: AnyRun) -> str:
    """In what a run differs from a planned one, in a word; "" where it is the same training."""
    words = {
        "model": "kind",
        "corpus_fingerprint": "corpus",
        "network": "network",
        "base_weights": "base",
        "lessons": "lessons",
        "training": "training",
    }
    there = replace(there, training=replace(there.training, keep=wanted.training.keep))  # which may be chosen
    for name, word in words.items():
        if getattr(there, name, None) != getattr(wanted, name, None):
            return word
    return ""


def _measured(
    part: StudyPart, baseline: Path | None, device: str, stop: Callable[[], bool]
) -> Iterator[Event]:
    """The evaluation of the run in a part's folder; it lies with that run."""
    request = Request(str(part.folder), baseline=str(baseline) if baseline else "", device=device)
    out = part.folder / "evaluations" / request.key
    prepare_evaluation(out, request)
    return run_evaluation(out, stop)


def study_result(
    study: Study, parts: list[StudyPart], results: list[dict[str, Any]], worse: list[str]
) -> dict[str, Any]:
    """What a study finishes with: the verdict over all seeds, and the figures of each one."""
    seeds = [
        {
            "seed": part.seed,
            "run": part.folder.name,
            "verdict": result["verdict"],
            "helps": result["helps"],
            "difference": result["arms"]["on"]["differences"].get("baseline"),
            "shuffled": result["arms"]["on"]["differences"].get("shuffled"),
        }
        for part, result in zip((part for part in parts if part.name == VERDICT), results, strict=True)
    ]
    return {"study": study.corpus, "against": "baseline", **verdict_over(results, worse), "seeds": seeds}


def settled_study(study: Study) -> Study:
    """A study with its places named so that they hold whatever folder a job starts in."""

    def place(name: str) -> str:
        return str(Path(name).resolve()) if name and Path(name).exists() else name

    return replace(study, corpus=place(study.corpus), base=place(study.base))
