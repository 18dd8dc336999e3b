"""What there is, and what it is called: the verbs `list` and `status`, and the names that every verb takes.

What lies in the data folder goes by the name of its folder, wherever a verb takes a folder. A path that is
there wins, so a command means the same as before wherever it meant something.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from retro_demo.console import did_you_mean
from retro_demo.corpus.samples import SAMPLES, sample_folder
from retro_demo.corpus.store import is_built
from retro_demo.errors import NotFound, UserError, listed
from retro_demo.events import Event, Finished
from retro_demo.jobs.lifecycle import JobStatus, status
from retro_demo.output_folder import is_hidden, kind_of
from retro_demo.paths import SAMPLE, data_home, linked_place, without_folders
from retro_demo.pretrained.bases import SMOLLM2
from retro_demo.runs.commands import name_for_command
from retro_demo.server.workspace import disk_use
from retro_demo.sharing.importing import shipped_runs

DEEPEST = 4  # levels of folders in which corpora and runs are looked for
DEEPEST_JOB = 7  # an evaluation lies two below its run
MARKS = ("pid", "ticket")  # a folder holds one while its job runs, or waits
DEFAULT = "default: the data folder"
NAMED: dict[str, tuple[str, ...]] = {
    "corpus": ("corpus",),
    "edition": ("corpus",),
    "run": ("run",),
    "baseline": ("run",),
    "control": ("run",),
    "base": ("run",),
}
"""Arguments that name what is there already, and the kinds that they may name."""
EITHER = ("corpus", "run")
OF_EITHER = {("export", "run"), ("push", "run"), ("status", "folder")}
"""Verb and argument that may name a corpus as well as a run."""


def add_list_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    show = verb("list", _list, "list what ships with the code, and the corpora, runs and exports in a folder")
    show.add_argument("folder", nargs="?", type=Path, metavar="DIR", help=DEFAULT)

    look = verb("status", _status, "show the jobs that run or wait below a folder, or how one run stands")
    look.add_argument("folder", nargs="?", type=Path, metavar="DIR", help=DEFAULT)


def _list(options: argparse.Namespace, _stop: Callable[[], bool]) -> Iterable[Event]:
    home, folder = _looked_into(options)
    there = [_listed("corpus", SAMPLE + name, sample_folder(home, name)) for name in SAMPLES]
    there += [_listed("run", SAMPLE + path.name, path) for path in shipped_runs()]
    made = list(made_below(folder, home))
    short = short_names(made_below(home, home)) if made else {}
    there += [_listed(kind, shown_place(path), path, short.get(path.resolve(), "")) for path, kind in made]
    yield Finished({"listed": there})


def _status(options: argparse.Namespace, _stop: Callable[[], bool]) -> Iterable[Event]:
    home, folder = _looked_into(options)
    if kind := kind_of(folder):
        yield Finished({"jobs": [_job(folder, kind)]})
        return
    made = [kind for _, kind in made_below(folder, home)]
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


def _under_way(folder: Path) -> Iterator[Path]:
    """The folders below one in which a job runs or waits."""
    for place, names, files in os.walk(folder):
        path = Path(place)
        if any(mark in files for mark in MARKS) and kind_of(path) and status(path).under_way:
            yield path
        if len(path.relative_to(folder).parts) == DEEPEST_JOB:
            names.clear()
        names[:] = sorted(name for name in names if not is_hidden(name))


def _listed(kind: str, name: str, folder: Path, short: str = "") -> dict[str, Any]:
    """`short`: the name that stands for the path, "" for none."""
    about = {"kind": kind, "name": name, "short": short or name}
    return about | {"state": _state(folder, kind), "bytes": disk_use(folder)}


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
        "name": shown_place(folder),
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


def made_below(folder: Path, home: Path) -> Iterator[tuple[Path, str]]:
    """What of ours lies in a folder and not too deep below it, with its kind; not the built samples."""
    for place, names, _ in os.walk(folder):
        path = Path(place)
        if kind := kind_of(path):
            yield path, kind
        if kind not in ("", "study") or len(path.relative_to(folder).parts) == DEEPEST:
            names.clear()
        own = {"samples", "derived"} if path.absolute() == home else ()
        names[:] = sorted(name for name in names if not is_hidden(name) and name not in own)


def shown_place(folder: Path) -> str:
    """A path that other verbs take and that does not tell the code of a workspace."""
    try:
        return linked_place(str(folder))
    except OSError:  # a disk that knows no links
        return without_folders(str(folder))


def resolve_names(options: argparse.Namespace) -> None:
    """Put the folder in place of each short name among the arguments of a verb.

    What is no short name stays as it is. Raises UserError where several have the name.
    """
    home, wanted = data_home()[0], dict(NAMED)
    wanted |= {argument: EITHER for verb, argument in OF_EITHER if verb == options.command}
    if options.command == "train" and options.model is None:  # it goes on with a run that is there
        wanted["out"] = ("run",)
    values = {argument: getattr(options, argument, None) for argument in wanted}
    given = {name: value for name, value in values.items() if value is not None and _may_be_short(str(value))}
    made = list(made_below(home, home)) if given else []
    for argument, value in given.items():
        name = str(value)
        found = [path for path, kind in made if path.name == name and kind in wanted[argument]]
        if len(found) > 1:
            places = listed([shown_place(path) for path in found])
            raise UserError(f"{len(found)} folders have the name {name}: {places}. Name one by its path.")
        if found:
            setattr(options, argument, type(value)(shown_place(found[0])))


def _may_be_short(name: str) -> bool:
    """Whether it may be a short name: a single word that is no path from here."""
    plain = name not in ("", os.curdir, os.pardir, SMOLLM2) and os.path.basename(name) == name
    return plain and not name.startswith(SAMPLE) and not os.path.lexists(name)


def short_names(made: Iterable[tuple[Path, str]]) -> dict[Path, str]:
    """The corpora and runs among what lies in the data folder -> a name that every verb takes from here.

    That is the name of its folder, where no other has it and no path from here is called so.
    """
    named: dict[str, list[Path]] = {}
    for path, kind in made:
        if kind in EITHER:
            named.setdefault(path.name, []).append(path)
    return {paths[0]: name for name, paths in named.items() if len(paths) == 1 and _may_be_short(name)}


def shortened(words: list[str]) -> list[str]:
    """The words of a command with the short name in place of each corpus and run of the data folder."""
    home = data_home()[0]
    if not any(Path(word).is_absolute() and Path(word).resolve().is_relative_to(home) for word in words):
        return words
    short = {path.resolve(): name for path, name in short_names(made_below(home, home)).items()}
    return [short.get(Path(word).resolve(), word) if os.path.isabs(word) else word for word in words]


def near_to(missing: NotFound) -> str:
    """ " Did you mean 'data/mine'?" where a run or corpus beside the missing one has a name like it.

    Where a single word was given it may have been the name of one of the data folder, or of what ships, too.
    """
    folder, home = missing.place.parent, data_home()[0]
    known: dict[str, Any] = {}
    if folder in (Path(), Path.cwd()):
        samples = SAMPLES if missing.kind == "corpus" else [path.name for path in shipped_runs()]
        known = {SAMPLE + name: SAMPLE + name for name in samples}
        made = [(path, kind) for path, kind in made_below(home, home) if kind == missing.kind]
        known |= {path.name: name for path, name in short_names(made).items()}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if kind_of(path) == missing.kind:
                shown = name_for_command(path)
                known[path.name] = shown if shown.startswith(SAMPLE) else str(path)
    meant = did_you_mean(missing.place.name, known)
    for name, shown in known.items():
        meant = meant.replace(repr(name), repr(shown))
    return meant
