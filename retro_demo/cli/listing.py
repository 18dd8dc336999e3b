"""The verbs `list` and `status`: what there is, and what is being done about it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from retro_demo.console import did_you_mean
from retro_demo.corpus.samples import SAMPLES, sample_folder
from retro_demo.corpus.store import is_built
from retro_demo.errors import NotFound, UserError
from retro_demo.events import Event, Finished
from retro_demo.jobs.lifecycle import JobStatus, status
from retro_demo.output_folder import is_hidden, kind_of
from retro_demo.paths import SAMPLE, data_home, linked_place, without_folders
from retro_demo.runs.commands import name_for_command
from retro_demo.server.workspace import disk_use
from retro_demo.sharing.importing import shipped_runs

DEEPEST = 4  # levels of folders in which corpora and runs are looked for
DEEPEST_JOB = 7  # an evaluation lies two below its run
MARKS = ("pid", "ticket")  # a folder holds one while its job runs, or waits
DEFAULT = "default: the data folder"


def add_list_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    show = verb("list", _list, "list what ships with the code, and the corpora, runs and exports in a folder")
    show.add_argument("folder", nargs="?", type=Path, metavar="DIR", help=DEFAULT)

    look = verb("status", _status, "show the jobs that run or wait below a folder, or how one run stands")
    look.add_argument("folder", nargs="?", type=Path, metavar="DIR", help=DEFAULT)


def _list(options: argparse.Namespace, _stop: Callable[[], bool]) -> Iterable[Event]:
    home, folder = _looked_into(options)
    listed = [_listed("corpus", SAMPLE + name, sample_folder(home, name)) for name in SAMPLES]
    listed += [_listed("run", SAMPLE + path.name, path) for path in shipped_runs()]
    listed += [_listed(kind, _shown_place(path), path) for path, kind in _made_below(folder, home)]
    yield Finished({"listed": listed})


def _status(options: argparse.Namespace, _stop: Callable[[], bool]) -> Iterable[Event]:
    home, folder = _looked_into(options)
    if kind := kind_of(folder):
        yield Finished({"jobs": [_job(folder, kind)]})
        return
    made = [kind for _, kind in _made_below(folder, home)]
    jobs = [_job(path, kind_of(path)) for path in _under_way(folder)]
    in_order = sorted(jobs, key=lambda job: (job["state"] == "waiting", job["place"], job["name"]))
    own = {"corpora": made.count("corpus"), "runs": made.count("run")}
    samples = {"sample_corpora": len(SAMPLES), "sample_runs": len(shipped_runs())}
    yield Finished({"jobs": in_order, **own, **samples})


def _looked_into(options: argparse.Namespace) -> tuple[Path, Path]:
    """The data folder, and the folder to look into."""
    home = data_home()[0]
    folder: Path = options.folder or home
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Name one, or none for the data folder.")
    return home, folder


def _made_below(folder: Path, home: Path) -> Iterator[tuple[Path, str]]:
    """What of ours lies in a folder and not too deep below it, with its kind; not the built samples."""
    for place, names, _ in os.walk(folder):
        path = Path(place)
        if kind := kind_of(path):
            yield path, kind
        if kind not in ("", "study") or len(path.relative_to(folder).parts) == DEEPEST:
            names.clear()
        own = {"samples", "derived"} if path.absolute() == home else ()
        names[:] = sorted(name for name in names if not is_hidden(name) and name not in own)


def _under_way(folder: Path) -> Iterator[Path]:
    """The folders below one in which a job runs or waits."""
    for place, names, files in os.walk(folder):
        path = Path(place)
        if any(mark in files for mark in MARKS) and kind_of(path) and status(path).under_way:
            yield path
        if len(path.relative_to(folder).parts) == DEEPEST_JOB:
            names.clear()
        names[:] = sorted(name for name in names if not is_hidden(name))


def _listed(kind: str, name: str, folder: Path) -> dict[str, Any]:
    return {"kind": kind, "name": name, "state": _state(folder, kind), "bytes": disk_use(folder)}


def _state(folder: Path, kind: str) -> str:
    state = status(folder).state
    came = kind == "export" or (state == "new" and kind == "corpus" and is_built(folder))
    return "finished" if came else state


def _job(folder: Path, kind: str) -> dict[str, Any]:
    """How a job stands: state, place in the queue (0: it does not wait), what it does and how far it is."""
    now = status(folder)
    doing, done, total = _progress(now)
    failed = now.of_kind("failed")
    return {
        "kind": kind,
        "name": _shown_place(folder),
        "state": _state(folder, kind),
        "place": now.queue_position,
        "doing": doing,
        "done": done,
        "total": total,
        "why": failed[-1]["error"] if now.state == "failed" and failed else now.why,
    }


def _progress(now: JobStatus) -> tuple[str, int, int]:
    """What a job did last, how much of it and of how much: its steps, where it has some."""
    if steps := now.of_kind("step"):
        started = now.of_kind("started")
        total = started[-1].get("about", {}).get("steps", 0) if started else 0
        return "step", steps[-1]["step"], total
    stages = now.of_kind("progress")
    return (stages[-1]["stage"], stages[-1]["done"], stages[-1]["total"]) if stages else ("", 0, 0)


def _shown_place(folder: Path) -> str:
    """A path that other verbs take and that does not tell the code of a workspace."""
    try:
        return linked_place(str(folder))
    except OSError:  # a disk that knows no links
        return without_folders(str(folder))


def near_to(missing: NotFound) -> str:
    """ " Did you mean 'data/mine'?" where a run or corpus beside the missing one has a name like it."""
    folder = missing.place.parent
    if not folder.is_dir():
        return ""
    beside = {path.name: path for path in sorted(folder.iterdir()) if kind_of(path) == missing.kind}
    meant = did_you_mean(missing.place.name, beside)
    for name, path in beside.items():
        shown = name_for_command(path)
        meant = meant.replace(repr(name), repr(shown if shown.startswith(SAMPLE) else str(path)))
    return meant
