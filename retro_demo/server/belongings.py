"""What lies outside the workspaces and is one visitor's all the same: it counts, and goes with the workspace.

Uploads and what is made for download lie in one folder, under hashes of their content: a file may be that of
several visitors, and then stays for the others. So does an edition of a sample corpus, which holds the
tokenizer of a visitor's run. What is noted here goes at once when a workspace is deleted; the rest goes
by its age.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from retro_demo.corpus.editions import EDITIONS
from retro_demo.errors import UserError
from retro_demo.server.workspace import Workspace, disk_use
from retro_demo.whole_files import append_line, replacing

NOTES = "files.jsonl"  # in the folder of a workspace
EXPORTS = "exports.jsonl"  # beside it; of several with one name only the last is the visitor's


def note_files(workspace: Workspace, paths: Iterable[Path]) -> None:
    """Keep in mind that these files, or editions, are the visitor's; raises UserError where that is gone."""
    workspace.check_there()
    known = set(_read(workspace.folder / NOTES))
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
        _delete({path} - _of_others(workspace.folder))
        raise
    if older is not None:
        _delete({older} - _of_others(workspace.folder))


def noted_use(folder: Path) -> int:
    """Bytes of what is noted in the folder of a workspace."""
    used = 0
    for path in noted(folder):
        with suppress(OSError):  # it went by its age
            used += disk_use(path) if path.is_dir() else path.stat().st_size
    return used


def delete_noted(folder: Path) -> None:
    """Delete what is noted in the folder of a workspace, but for what is another visitor's too."""
    _delete(noted(folder) - _of_others(folder))


def forget_gone(folder: Path) -> None:
    """Drop the notes about what is gone, in the folder of a workspace that nobody uses now.

    Whoever notes something opened the workspace for it, which dates it: so no note is written meanwhile. The
    date stays, for this is no use.
    """
    used = folder.stat()
    notes = {NOTES: dict.fromkeys(_read(folder / NOTES)), EXPORTS: _exports(folder).values()}
    try:
        for name, known in notes.items():
            there, file = [path for path in known if path.exists()], folder / name
            if file.exists() and not there:
                file.unlink()
            elif len(there) < len(_read(file)):
                with replacing(file) as unfinished:
                    unfinished.write_text("".join(f"{json.dumps(str(path))}\n" for path in there), "utf-8")
    finally:
        os.utime(folder, ns=(used.st_atime_ns, used.st_mtime_ns))


def noted_editions(folder: Path) -> list[Path]:
    """The editions outside the workspaces that are of the visitor of this folder alone."""
    own = {path for path in noted(folder) if path.parent.name == EDITIONS and path.is_dir()}
    return [*(own - _of_others(folder))] if own else []


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.parent.name == EDITIONS:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(OSError):  # it went by its age, or its folder holds more
            path.unlink()
            path.parent.rmdir()


def _of_others(folder: Path) -> set[Path]:
    return set().union(*(noted(other) for other in folder.parent.glob("[!.]*") if other != folder))


def noted(folder: Path) -> set[Path]:
    """What is noted in the folder of a workspace."""
    return {*_read(folder / NOTES), *_exports(folder).values()}


def _exports(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in _read(folder / EXPORTS)}


def _read(notes: Path) -> list[Path]:
    try:
        lines = notes.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = []
    for line in lines:
        with suppress(ValueError):  # a full disk once tore a line, and the next one stood behind its half
            paths += [Path(json.loads(line))] if line.endswith('"') else []
    return paths
