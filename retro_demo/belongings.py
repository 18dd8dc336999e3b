"""Which files among the uploads of all visitors are one visitor's, so that they go with the workspace.

Uploads and what is made for download lie in one folder, under hashes of their content: a file may be that of
several visitors, and then stays for the others. What is noted here goes at once when a workspace is deleted;
the rest goes by its age.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from retro_demo.workspace import Workspace

NOTES = "files.jsonl"  # in the folder of a workspace


def note_files(workspace: Workspace, paths: Iterable[Path]) -> None:
    """Keep in mind that these files are the visitor's."""
    with (workspace.folder / NOTES).open("a", encoding="utf-8") as notes:
        notes.writelines(json.dumps(str(path.resolve())) + "\n" for path in paths)


def delete_noted(folder: Path) -> None:
    """Delete the files noted in the folder of a workspace, but for those that are another visitor's too."""
    others = [other for other in folder.parent.glob("[!.]*") if other != folder]
    for path in _noted(folder) - set().union(*map(_noted, others)):
        with suppress(OSError):  # it went by its age, or its folder holds more
            path.unlink()
            path.parent.rmdir()


def _noted(folder: Path) -> set[Path]:
    try:
        lines = (folder / NOTES).read_text("utf-8").splitlines()
    except OSError:
        return set()
    return {Path(json.loads(line)) for line in lines if line.endswith('"')}
