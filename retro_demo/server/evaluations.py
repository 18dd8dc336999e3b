"""A visitor's evaluations: start one, find the one to show, and which runs can serve as controls.

An evaluation lies with its run, so it is renamed and deleted with it; those of the shipped runs lie in
the workspace. A shipped run may bring an evaluation of its own, in its folder `evaluation`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import baseline_settings, match, trainings, unfit_control
from retro_demo.evaluation.runner import Request, prepare_evaluation, read_request, write_request
from retro_demo.files import file_hash
from retro_demo.jobs import lifecycle
from retro_demo.paths import SAMPLE
from retro_demo.runs.checkpoint import (
    AnyRun,
    ReaderRun,
    has_weights,
    read_any_config,
    read_run_config,
    weights_file,
    write_run_config,
)
from retro_demo.server import service
from retro_demo.server.limits import check_space
from retro_demo.server.scheduler import begin
from retro_demo.server.studies import tell_studies_of_move
from retro_demo.server.workspace import Workspace
from retro_demo.settings import EvaluateConfig

KEPT = 6  # evaluations of one run; older ones go


def folder_of_evaluations(workspace: Workspace, run: str) -> Path:
    """Where the evaluations of a run lie; raises UserError for an unknown run."""
    folder = workspace.run(run)
    return (
        workspace.folder / "evaluations" / folder.name if run.startswith(SAMPLE) else folder / "evaluations"
    )


def start_evaluation(
    workspace: Workspace,
    run: str,
    config: EvaluateConfig,
    *,
    baseline: str = "",
    control: str = "",
    corpus: str = "",
) -> Path:
    """Start measuring a run, or go on where the same was stopped; returns the evaluation's folder.

    All are ids of the workspace, "" = none (corpus: the one of the training).
    """
    check_space(workspace)
    request = Request(
        _place(run, workspace.run(run)),
        baseline=_place(baseline, workspace.run(baseline)) if baseline else "",
        control=_place(control, workspace.run(control)) if control else "",
        corpus=_place(corpus, service.built_corpus(workspace, corpus)) if corpus else "",
        settings=config,
    )
    folder = folder_of_evaluations(workspace, run) / request.key
    new = not folder.exists()
    prepare_evaluation(folder, request)
    try:
        if lifecycle.is_at_work(folder):
            raise UserError("Just this is being measured already, or waits to be. Wait for its end.")
        with lifecycle.without_events(folder):  # what was said before is said again: the table is kept
            begin(workspace, folder, "evaluate")
    except BaseException:
        if new and not lifecycle.is_under_way(folder):
            shutil.rmtree(folder)  # nothing was begun, and the latest evaluation is the one that is shown
        raise
    _drop_old(folder.parent, folder)
    return folder


def _place(name: str, folder: Path) -> str:
    return name if name.startswith(SAMPLE) else str(folder)


def _drop_old(folder: Path, newest: Path) -> None:
    others = [path for path in _by_age(folder) if path != newest and not lifecycle.is_under_way(path)]
    for path in others[: max(0, len(others) - (KEPT - 1))]:
        shutil.rmtree(path)


def _by_age(folder: Path) -> list[Path]:
    """The evaluations in a folder, the one that something happened in last at the end."""
    known = [path for path in folder.glob("*") if (path / "config.json").exists()]
    return sorted(known, key=lambda path: _touched(path))


def _touched(path: Path) -> float:
    events = path / "events.jsonl"
    return (events if events.exists() else path / "config.json").stat().st_mtime


def shown_evaluation(workspace: Workspace, run: str) -> Path | None:
    """The evaluation of a run to show: the latest, else the one that a shipped run brings, else None."""
    if own := _by_age(folder_of_evaluations(workspace, run)):
        return own[-1]
    shipped = workspace.run(run) / "evaluation"
    return shipped if (shipped / "config.json").exists() else None


def measured(workspace: Workspace, run: str) -> dict[str, Any] | None:
    """The figures of the evaluation to show, None where there are none or they are of another corpus.

    Those of other weights than the run is used with are none of it either.
    """
    folder = shown_evaluation(workspace, run)
    if folder is None or read_request(folder).corpus:
        return None
    result = latest_result(lifecycle.status(folder))
    return None if result and of_other_weights(workspace, run, result) else result


def of_other_weights(workspace: Workspace, run: str, result: dict[str, Any]) -> bool:
    """Whether figures were measured before the run was trained on, or used with another of its saves."""
    used = result.get("provenance", {}).get("weights", {}).get("run")
    now = weights_file(workspace.run(run))
    return bool(used) and now.exists() and used != file_hash(now)


def resume_evaluation(workspace: Workspace, run: str) -> None:
    """Go on with the latest evaluation of a run, if it was stopped, killed or failed."""
    folder = next(reversed(_by_age(folder_of_evaluations(workspace, run))), None)
    if folder is None or lifecycle.status(folder).state == "finished":
        raise UserError("There is no evaluation of this run to go on with. Start one.")
    check_space(workspace)
    begin(workspace, folder, "evaluate")


def stop_evaluation(workspace: Workspace, run: str) -> bool:
    """Ask the evaluation of a run that is under way to keep what it has and leave; False where none is."""
    known = [f for f in _by_age(folder_of_evaluations(workspace, run)) if lifecycle.is_under_way(f)]
    stopped = bool(known) and lifecycle.stop(known[-1])
    if stopped and not lifecycle.is_under_way(known[-1]):
        lifecycle.tell_as_before(known[-1])  # it left the queue: the figures of before are those to show
    return stopped


def evaluations_reading(workspace: Workspace, corpus: Path) -> list[str]:
    """Runs whose evaluation is under way and reads this corpus: as database, or as that of a training."""
    found = []
    for request in _under_way(workspace):
        places, _ = trainings([request.folder(name) for name in request.runs])
        if str(corpus) in (request.corpus, *places.values()):
            found.append(request.folder("run").name)
    return found


def rename_run(workspace: Workspace, old: str, new: str) -> str:
    """Give a run another name, and tell what began with it or measures it; returns the name.

    Raises UserError while anything works on it or needs it.
    """
    _check_unneeded(workspace, old)
    before = workspace.run(old)
    name = workspace.rename("runs", old, new)
    now = str(workspace.run(name))
    for folder in (workspace.folder / "runs").glob("*"):
        config = read_any_config(folder)
        if config.begun_with == str(before):
            field = "tuned" if isinstance(config, ReaderRun) else "base"
            write_run_config(folder, replace(config, **{field: now}))
    tell_of_move(workspace, before, Path(now))
    return name


def tell_of_move(workspace: Workspace, before: Path, now: Path) -> None:
    """Let evaluations and studies of a workspace name a run or corpus that was renamed by its new place."""
    tell_studies_of_move(workspace, before, now)
    for folder in _all(workspace):
        if before.name not in (folder / "config.json").read_text("utf-8"):
            continue
        request = read_request(folder)
        places = {name: getattr(request, name) for name in ("run", "baseline", "control", "corpus")}
        if str(before) in places.values():
            moved = {name: str(now) if place == str(before) else place for name, place in places.items()}
            write_request(folder, replace(request, **moved))


def delete_run(workspace: Workspace, run: str) -> None:
    """Remove a run with its evaluations; raises UserError while anything works on it or needs it."""
    _check_unneeded(workspace, run)
    workspace.delete("runs", run)


def _check_unneeded(workspace: Workspace, run: str) -> None:
    """Raise UserError where the evaluation of another run measures this one, or a training begins from it."""
    folder = workspace.owned("runs", run)
    service.check_no_study_needs(workspace, folder)
    for request in _under_way(workspace):
        if any(request.folder(name) == folder for name in request.runs):
            told = f"The evaluation of {request.folder('run').name} measures {run} too"
            raise UserError(f"{told}. Wait for its end, or stop it first.")
    for place in (workspace.folder / "runs").glob("*"):
        if lifecycle.is_at_work(place) and read_any_config(place).begun_with == str(folder):
            raise UserError(f"{place.name} begins from {run}. Wait for its end, or stop it first.")


def _under_way(workspace: Workspace) -> list[Request]:
    """What is asked of the evaluations that run or wait."""
    return [read_request(folder) for folder in _all(workspace) if lifecycle.is_at_work(folder)]


def _all(workspace: Workspace) -> list[Path]:
    """The folders of all evaluations of a workspace."""
    places = ("runs/*/evaluations/*", "evaluations/*/*")
    return [f.parent for place in places for f in workspace.folder.glob(f"{place}/config.json")]


def latest_result(status: lifecycle.JobStatus) -> dict[str, Any] | None:
    """The figures of an evaluation so far: those of the end, else of the last round, else None."""
    if finished := status.of_kind("finished"):
        return finished[-1]
    refined = status.of_kind("refined")
    return refined[-1]["result"] if refined else None


def readers(workspace: Workspace) -> list[str]:
    """Ids of the runs that can be evaluated: they retrieve and have weights."""
    return [run for run, config in _with_weights(workspace) if config.retrieves]


def baselines(workspace: Workspace, run: str) -> list[tuple[str, str]]:
    """(id, why it is no match or "") of the lms that read the same tokens as a run, matches first."""
    found = []
    if read_any_config(workspace.run(run)).kind.own_controls:  # its controls are arms of its own
        return found
    for other, config in _with_weights(workspace):
        if config.retrieves:
            continue
        try:
            found.append((other, match(workspace.run(run), workspace.run(other)).unfit))
        except UserError:  # another tokenizer: nothing to compare
            continue
    return sorted(found, key=lambda pair: bool(pair[1]))


def controls(workspace: Workspace, run: str) -> list[str]:
    """Ids of the runs that were trained as this one was, but with random neighbors."""
    own = workspace.run(run)
    if read_any_config(own).kind.own_controls:
        return []
    others = [one for one, config in _with_weights(workspace) if not config.kind.own_controls]
    return [other for other in others if not unfit_control(own, workspace.run(other))]


def _with_weights(workspace: Workspace) -> list[tuple[str, AnyRun]]:
    folders = [(run, workspace.run(run)) for run in workspace.runs()]
    return [(run, read_any_config(f)) for run, f in folders if has_weights(f)]


def train_baseline(workspace: Workspace, run: str) -> str:
    """Start the training of the baseline that would match a run; returns its id."""
    folder = workspace.run(run)
    config = read_run_config(folder)
    if not config.kind.baseline:
        raise UserError(f"{folder.name} reads no neighbors, so it needs no baseline. Choose a run that does.")
    corpus = config.corpus if config.corpus.startswith(SAMPLE) else Path(config.corpus).name
    return service.start_run(
        workspace,
        corpus,
        config.kind.baseline,
        config.preset,
        baseline_settings(folder),
        f"{folder.name}-baseline",
        config.base if not config.base or config.base.startswith(SAMPLE) else Path(config.base).name,
    )
