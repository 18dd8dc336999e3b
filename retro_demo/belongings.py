"""Which files among the uploads of all visitors are one visitor's: they count, and go with the workspace.

Uploads and what is made for download lie in one folder, under hashes of their content: a file may be that of
several visitors, and then stays for the others. What is noted here goes at once when a workspace is deleted;
the rest goes by its age.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from retro_demo.errors import UserError
from retro_demo.whole_files import append_line
from retro_demo.workspace import Workspace

NOTES = "files.jsonl"  # in the folder of a workspace
EXPORTS = "exports.jsonl"  # beside it; of several with one name only the last is the visitor's


def note_files(workspace: Workspace, paths: Iterable[Path]) -> None:
    """Keep in mind that these files are the visitor's; raises UserError where the workspace is gone."""
    workspace.check_there()
    known = _read(workspace.folder / NOTES)
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
    """Bytes of the files noted in the folder of a workspace."""
    used = 0
    for path in _noted(folder):
        with suppress(OSError):  # it went by its age
            used += path.stat().st_size
    return used


def delete_noted(folder: Path) -> None:
    """Delete the files noted in the folder of a workspace, but for those that are another visitor's too."""
    _delete(_noted(folder) - _of_others(folder))


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # it went by its age, or its folder holds more
            path.unlink()
            path.parent.rmdir()


def _of_others(folder: Path) -> set[Path]:
    return set().union(*(_noted(other) for other in folder.parent.glob("[!.]*") if other != folder))


def _noted(folder: Path) -> set[Path]:
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
