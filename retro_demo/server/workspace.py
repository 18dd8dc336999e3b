"""One visitor's folders, the uploads and exports that are theirs, and the examples that ship.

DATA/samples/NAME-HASH          built sample corpora, shared and read-only for visitors
DATA/derived/FINGERPRINT        what is made from a corpus that cannot be written
DATA/links/TAG                  another path to a workspace, which does not show its code
DATA/workspaces/CODE/corpora    a visitor's corpora, runs and kept traces
                    /runs           with their evaluations
                    /studies        that train some of these runs
                    /evaluations    those of the shipped runs
                    /traces

Uploads and downloads lie in one folder, under hashes of their content: a file may belong to several visitors,
and then stays for the others. The same holds for a retokenized copy of a sample corpus, which holds the
tokenizer of a visitor's run. Files noted here count as one visitor's and are deleted at once with the
workspace; the rest is deleted by age.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from retro_demo.corpus.changes import RETOKENIZED
from retro_demo.corpus.samples import SAMPLES, sample_folder
from retro_demo.errors import UserError
from retro_demo.evaluation.across_languages import unfit_marge_control
from retro_demo.explain.tracing import Trace
from retro_demo.files import append_line, replacing
from retro_demo.jobs.lifecycle import is_at_work
from retro_demo.paths import CHECKPOINTS, CODE, SAMPLE
from retro_demo.runs.checkpoint import MargeRun, read_any_config

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")
STUDIES = "studies"
WORDS = {"corpora": "corpus", "runs": "run", STUDIES: "study"}


def new_code() -> str:
    """A code for a new visitor that nobody can guess."""
    return secrets.token_urlsafe(18)


def plain_name(wanted: str) -> str:
    """A wanted name in the letters that folders are named with."""
    plain = unicodedata.normalize("NFKD", wanted).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._")[:50] or "unnamed"


@dataclass(frozen=True)
class Workspace:
    """One visitor's folders. Ids are names of folders here, or "sample:NAME" for what ships."""

    home: Path
    folder: Path

    @staticmethod
    def open(home: Path, code: str) -> Workspace:
        """The workspace of a code; raises UserError for what is no code.

        Nothing is made, for anybody can make up codes: a request that writes calls `make`.
        """
        if not isinstance(code, str) or not CODE.fullmatch(code):
            raise UserError(
                "A workspace code has 16 to 64 letters, digits, - or _. Reload the page to get one."
            )
        folder = home / "workspaces" / code
        with suppress(FileNotFoundError):  # nothing was written under this code yet
            if abs(time.time() - folder.stat().st_mtime) > 3600:  # the clock may have been set back
                os.utime(folder)  # the last visit: see server/cleanup.py
        return Workspace(home, folder)

    def make(self) -> Workspace:
        """Make its folder, where there is none, for a request that begins to write; gives it back.

        What takes long calls this at its begin, once it is known that it can be done, and `check_there` at
        its end: what is missing then was deleted meanwhile. The folders inside are made by what fills them.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def check_there(self) -> None:
        """Raise UserError where it was deleted since it was made: what ends later may not bring it back."""
        if not self.folder.is_dir():
            raise UserError("There is no workspace of this code any more. Reload the page to get a new one.")

    def corpora(self) -> list[str]:
        """Ids of the corpora that can be chosen, built or being built; samples first."""
        return [SAMPLE + name for name in SAMPLES] + self._names("corpora")

    def runs(self) -> list[str]:
        """Ids of the runs, shipped ones first as `shipped_runs` has them, then the newest first."""
        return [SAMPLE + path.name for path in shipped_runs()] + self._names("runs")

    def studies(self) -> list[str]:
        """Ids of the visitor's studies, the newest first."""
        return self._names(STUDIES)

    def study_folders(self) -> list[Path]:
        """Their folders."""
        return [self.folder / STUDIES / study for study in self.studies()]

    def _names(self, kind: str) -> list[str]:
        folders = [path for path in (self.folder / kind).glob("*") if (path / "config.json").exists()]
        return [
            path.name for path in sorted(folders, key=lambda path: (path / "config.json").stat().st_mtime)
        ][::-1]

    def corpus(self, name: str) -> Path:
        """The folder of a corpus id; raises UserError for an unknown one."""
        name = str(name)  # what comes over HTTP may be anything
        if name.startswith(SAMPLE):
            return sample_folder(self.home, name.removeprefix(SAMPLE))
        return self._existing("corpora", name, "corpus")

    def run(self, name: str) -> Path:
        """The folder of a run id; raises UserError for an unknown one."""
        name = str(name)
        if name.startswith(SAMPLE):
            plain = name.removeprefix(SAMPLE)
            if not NAME.fullmatch(plain) or not (CHECKPOINTS / plain / "config.json").exists():
                raise UserError(f"There is no shipped run {name[:80]!r}. Choose a run from the list.")
            return CHECKPOINTS / plain
        return self._existing("runs", name, "run")

    def trace(self, name: str) -> Path:
        """Where the trace `name` lies (no suffix)."""
        name = str(name)
        if name.startswith(SAMPLE):
            return self.run(name) / "example"
        if not NAME.fullmatch(name):
            raise UserError(f"There is no trace {name[:80]!r}. Generate anew.")
        return self.folder / "traces" / name

    def _existing(self, kind: str, name: str, word: str) -> Path:
        folder = self.folder / kind / name
        if not NAME.fullmatch(name) or not (folder / "config.json").exists():
            raise UserError(f"There is no {word} {name[:80]!r} in this workspace. Choose one from the list.")
        return folder

    def new_folder(self, kind: str, wanted: str) -> Path:
        """A folder for a new corpus, run or study (kind "corpora" ...), named as wanted as can be."""
        base = plain_name(wanted)
        (self.make().folder / kind).mkdir(mode=0o700, exist_ok=True)
        for number in range(1, 10_000):
            folder = self.folder / kind / (base if number == 1 else f"{base}-{number}")
            if not folder.exists():
                folder.mkdir(mode=0o700)
                return folder
        raise UserError(f"There are too many called {base!r}. Choose another name.")

    @contextmanager
    def filling(self, kind: str, wanted: str) -> Iterator[Path]:
        """As `new_folder`; the folder goes where what fills it fails, and so nothing was begun."""
        folder = self.new_folder(kind, wanted)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder)
            raise

    def rename(self, kind: str, old: str, new: str) -> str:
        """Give a corpus or run another name; returns it. Not while something works on it."""
        folder = self.owned(kind, old)
        wanted = new.strip().lower()
        if not NAME.fullmatch(wanted):
            raise UserError(
                f"{new[:80]!r} is no name: use up to 61 small letters, digits, - _ or . "
                "and begin with a letter or a digit."
            )
        target = folder.with_name(wanted)
        if target.exists():
            raise UserError(f"There is already one called {wanted!r}. Choose another name.")
        folder.rename(target)
        return wanted

    def delete(self, kind: str, name: str) -> None:
        """Remove a corpus or run with all its files. Not while something works on it."""
        shutil.rmtree(self.owned(kind, name))

    def owned(self, kind: str, name: str) -> Path:
        """The folder of a corpus or run of the visitor's own that nothing works on; else raises UserError."""
        if name.startswith(SAMPLE):
            raise UserError(f"{name.removeprefix(SAMPLE)} ships with the app and stays as it is.")
        folder = self._existing(kind, name, WORDS[kind])
        if is_at_work(folder) or any(map(is_at_work, folder.glob("evaluations/*"))):
            raise UserError(f"{name} is being worked on, or waits to be. Stop it first.")
        return folder


def shipped_runs() -> list[Path]:
    """The folders of the runs that ship, the one to open first at the head.

    That is one with a pretrained base, where the base is there, else one with an example.
    """

    def place(folder: Path) -> tuple[bool, bool, bool, str]:
        config = read_any_config(folder)
        pretrained, missing = config.kind.trains_pretrained, bool(config.missing)
        return missing, not pretrained, not (folder / "example.json").exists(), folder.name

    return sorted((path.parent for path in CHECKPOINTS.glob("*/config.json")), key=place)


def disk_use(folder: Path) -> int:
    """Bytes of all files below the folder; what a job moves away meanwhile does not count."""
    used = 0
    for place, _, names in os.walk(folder):  # which, unlike rglob, takes it well when a folder vanishes
        for name in names:
            with suppress(FileNotFoundError):
                used += os.stat(os.path.join(place, name)).st_size
    return used


def marge_runs(workspace: Workspace) -> list[str]:
    """Ids of the runs of MARGE, shipped ones first, then the newest."""
    return [run for run in workspace.runs() if "evidence" in read_any_config(workspace.run(run)).kind.tabs]


def control_of(workspace: Workspace, run: str) -> Path | None:
    """The run to hold a MARGE against: trained as it was, but with random evidence; None where there is none.

    A shipped run brings its own, in its folder `control`, with what it told and without weights. Of several,
    one of the same seed is taken before others.
    """
    folder = workspace.run(run)
    ours = read_any_config(folder)
    assert isinstance(ours, MargeRun)
    if ours.evidence.evidence_source == "random":
        return None
    fit = []
    for other in [folder / "control", *map(workspace.run, marge_runs(workspace))]:
        config = read_any_config(other) if (other / "config.json").exists() else None
        if isinstance(config, MargeRun) and not unfit_marge_control(ours, config):
            fit.append((config.training.seed != ours.training.seed, len(fit), other))
    return min(fit)[2] if fit else None


KEPT_TRACES = 30


def keep_trace(workspace: Workspace, name: str, trace: Trace) -> None:
    """Save a trace; of many, only the latest stay. Raises UserError where the workspace is gone."""
    workspace.check_there()
    (workspace.folder / "traces").mkdir(mode=0o700, exist_ok=True)
    trace.save(workspace.trace(name))
    others = [path for path in (workspace.folder / "traces").glob("*.json") if path.stem != name]
    others.sort(key=lambda path: path.stat().st_mtime)  # the new one stays, also where the clock was set back
    for path in others[: max(0, len(others) - (KEPT_TRACES - 1))]:
        path.unlink()
        path.with_suffix(".safetensors").unlink(missing_ok=True)


def load_trace(workspace: Workspace, name: str) -> Trace | None:
    """A kept trace, or None where it is gone."""
    path = workspace.trace(name)
    if path.with_suffix(".json").exists() and path.with_suffix(".safetensors").exists():
        return Trace.load(path)
    return None


def shown_trace(workspace: Workspace, name: str) -> tuple[str, Trace | None]:
    """The trace to show with its id: the kept one, else the example of the first shipped run."""
    shipped = [run for run in workspace.runs() if run.startswith(SAMPLE)]
    for candidate in filter(None, (name, *shipped)):
        if (trace := load_trace(workspace, candidate)) is not None:
            return candidate, trace
    return "", None


NOTES = "files.jsonl"  # in the folder of a workspace
EXPORTS = "exports.jsonl"  # beside it; of several with one name only the last is the visitor's


def note_files(workspace: Workspace, paths: Iterable[Path]) -> None:
    """Note these files, or retokenized corpora, as the visitor's; raises UserError where that is gone."""
    workspace.check_there()
    known = set(_read_notes(workspace.folder / NOTES))
    for path in dict.fromkeys(path.resolve() for path in paths):
        if path not in known:
            append_line(workspace.folder / NOTES, json.dumps(str(path)))


def note_export(workspace: Workspace, path: Path) -> None:
    """As `note_files`, for an export: it takes the place of the visitor's older one of its name.

    Where it cannot be noted, as in a workspace that is gone, it goes.
    """
    path, older = path.resolve(), _exports(workspace.folder).get(path.name)
    if path == older:
        return
    try:
        workspace.check_there()
        append_line(workspace.folder / EXPORTS, json.dumps(str(path)))
    except (UserError, OSError):
        _delete_files({path} - _of_others(workspace.folder))
        raise
    if older is not None:
        _delete_files({older} - _of_others(workspace.folder))


def noted_use(folder: Path) -> int:
    """Bytes of what is noted in the folder of a workspace."""
    used = 0
    for path in noted(folder):
        with suppress(OSError):  # it went by its age
            used += disk_use(path) if path.is_dir() else path.stat().st_size
    return used


def delete_noted(folder: Path) -> None:
    """Delete what is noted in the folder of a workspace, but for what is another visitor's too."""
    _delete_files(noted(folder) - _of_others(folder))


def forget_gone(folder: Path) -> None:
    """Drop the notes about what is gone, in the folder of a workspace that nobody uses now.

    Whoever notes something opened the workspace for it, which dates it: so no note is written meanwhile. The
    date stays, for this is no use.
    """
    used = folder.stat()
    notes = {NOTES: dict.fromkeys(_read_notes(folder / NOTES)), EXPORTS: _exports(folder).values()}
    try:
        for name, known in notes.items():
            there, file = [path for path in known if path.exists()], folder / name
            if file.exists() and not there:
                file.unlink()
            elif len(there) < len(_read_notes(file)):
                with replacing(file) as unfinished:
                    unfinished.write_text("".join(f"{json.dumps(str(path))}\n" for path in there), "utf-8")
    finally:
        os.utime(folder, ns=(used.st_atime_ns, used.st_mtime_ns))


def noted_retokenized(folder: Path) -> list[Path]:
    """The retokenized corpora outside the workspaces that are of the visitor of this folder alone."""
    own = {path for path in noted(folder) if path.parent.name == RETOKENIZED and path.is_dir()}
    return [*(own - _of_others(folder))] if own else []


def _delete_files(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.parent.name == RETOKENIZED:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(OSError):  # it went by its age, or its folder holds more
            path.unlink()
            path.parent.rmdir()


def _of_others(folder: Path) -> set[Path]:
    return set().union(*(noted(other) for other in folder.parent.glob("[!.]*") if other != folder))


def noted(folder: Path) -> set[Path]:
    """What is noted in the folder of a workspace."""
    return {*_read_notes(folder / NOTES), *_exports(folder).values()}


def _exports(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in _read_notes(folder / EXPORTS)}


def _read_notes(notes: Path) -> list[Path]:
    try:
        lines = notes.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = []
    for line in lines:
        with suppress(ValueError):  # a full disk once tore a line, and the next one stood behind its half
            paths += [Path(json.loads(line))] if line.endswith('"') else []
    return paths
