"""A visitor's studies (training/study.py): begin, follow and stop one, go on with it, delete it.

A study lies in DATA/workspaces/CODE/studies; its runs lie among the visitor's runs, under its name, and stay
when it is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from retro_demo.devices import lends_gpu
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.kinds import KINDS
from retro_demo.paths import SAMPLE
from retro_demo.runs import commands
from retro_demo.server import service
from retro_demo.server.limits import check_space, check_steps, check_training, limits_of
from retro_demo.server.scheduler import begin
from retro_demo.server.workspace import STUDIES, Workspace, plain_name
from retro_demo.training.study import Study, plan_part, prepare_study, read_study, write_study

RUNS = "../../runs"  # seen from the folder of a study


@dataclass(frozen=True)
class PartStatus:
    """How one part of a study stands: its run, the share that is done; `state` is "done", "now" or ""."""

    title: str
    run: str
    share: float
    state: str


@dataclass(frozen=True)
class StudyStatus:
    """A study as its folder tells it; `result` is what it finished with, {} before."""

    job: JobStatus
    corpus: str
    parts: tuple[PartStatus, ...]
    result: Mapping[str, Any]

    @property
    def share(self) -> float:
        """How much of all parts is done, each part as much as another."""
        return sum(part.share for part in self.parts) / max(1, len(self.parts))

    @property
    def run(self) -> str:
        """The run that is being worked on, the last one at the end."""
        return next((part.run for part in self.parts if part.state == "now"), self.parts[-1].run)


def study_folder(workspace: Workspace, study: str) -> Path:
    """The folder of a study; raises UserError for an unknown one."""
    if study not in workspace.studies():
        raise UserError(f"There is no study {str(study)[:80]!r} in this workspace. Choose one from the list.")
    return workspace.folder / STUDIES / study


def start_study(
    workspace: Workspace,
    corpus: str,
    *,
    preset: str = "tiny",
    settings: Mapping[str, Any] | None = None,
    seeds: int = 1,
    base: str = "",
    name: str = "",
) -> str:
    """Begin to find out whether retrieval helps on a corpus; the id of the study, at once.

    `base`: the id of an lm, the name of a pretrained base of this machine, "" to train an lm first.
    """
    if lends_gpu():
        raise UserError(
            "Here a GPU is lent to who stays on the page, so a study cannot go on by itself. Train an lm, a "
            "retrofit of it and its matched baseline (Evaluate) one after the other."
        )
    given, limits = dict(settings or {}), limits_of(workspace.home)
    check_space(workspace)
    check_steps(limits, given.get("steps", 0))
    place = service.corpus_to_read(workspace, corpus)
    study = Study(
        corpus if corpus.startswith(SAMPLE) else str(place),
        base=service.named_base(workspace, KINDS["retrofit"], base),
        preset=preset,
        seeds=seeds,
        settings=given,
        runs=RUNS,
    )
    check_training(limits, plan_part(study, study.trained[0], study.first_seed, {}))
    wanted = _free_name(workspace, name or f"{corpus.removeprefix(SAMPLE)}-study")
    with workspace.filling(STUDIES, wanted) as folder:
        prepare_study(folder, study)
        begin(workspace, folder, "study")
    return folder.name


def _free_name(workspace: Workspace, wanted: str) -> str:
    """A name under which there is neither a study nor a run of one that was deleted."""
    plain, runs = plain_name(wanted), [run.removeprefix(SAMPLE) for run in workspace.runs()]
    names = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
    taken = workspace.studies()
    return next(
        name for name in names if name not in taken and not any(r.startswith(f"{name}-") for r in runs)
    )


def study_status(workspace: Workspace, study: str) -> StudyStatus:
    """How a study stands; of the part that is under way its run tells how far it is."""
    folder = study_folder(workspace, study)
    asked, job = read_study(folder), lifecycle.status(folder)
    told: dict[str, float] = {}
    for event in job.of_kind("progress"):
        told[event["stage"]] = event["done"] / max(1, event["total"])
    parts, under_way = [], False
    for part in asked.parts(folder):
        title = part.title(asked.seeds)
        share = told.get(title, 0.0)
        state = "done" if share >= 1 else "" if under_way else "now"
        under_way = under_way or state == "now"
        parts.append(PartStatus(title, part.folder.name, share, state))
    finished = job.of_kind("finished")
    corpus = asked.corpus if asked.corpus.startswith(SAMPLE) else Path(asked.corpus).name
    return StudyStatus(job, corpus, tuple(parts), finished[-1] if finished else {})


def stop_study(workspace: Workspace, study: str) -> bool:
    """Ask a study to save and leave, or to leave the queue; False where it does neither."""
    return lifecycle.stop(study_folder(workspace, study))


def resume_study(workspace: Workspace, study: str) -> None:
    """Go on with a study that was stopped, killed or failed."""
    folder = study_folder(workspace, study)
    if lifecycle.status(folder).state == "finished":
        raise UserError(f"{study} is finished. Begin another one, such as with more seeds.")
    check_space(workspace)
    begin(workspace, folder, "study")


def delete_study(workspace: Workspace, study: str) -> None:
    """Remove a study; its runs stay."""
    study_folder(workspace, study)
    workspace.delete(STUDIES, study)


def command_of_study(workspace: Workspace, study: str) -> str:
    """The command line that goes on with a study, or tells its verdict again."""
    return commands.command("study", "--out", str(study_folder(workspace, study).resolve()))


def studies_reading(workspace: Workspace, corpus: Path) -> list[str]:
    """The studies that are at work on a corpus."""
    folders = workspace.study_folders()
    return [f.name for f in folders if read_study(f).corpus == str(corpus) and lifecycle.is_at_work(f)]


def tell_studies_of_move(workspace: Workspace, before: Path, now: Path) -> None:
    """Let the studies of a workspace name a run or a corpus that was renamed by its new place."""
    for folder in workspace.study_folders():
        asked = read_study(folder)
        moved = {name: str(now) for name in ("corpus", "base") if getattr(asked, name) == str(before)}
        if moved:
            write_study(folder, replace(asked, **moved))
