"""Uploaded files on their way into a workspace: where there is room and a place, under safe names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from retro_demo.server.dispatch import check_place
from retro_demo.server.quotas import check_space
from retro_demo.server.workspace import Workspace


def keep_files(workspace: Workspace, files: Sequence[tuple[str, Path]], folder: Path) -> list[Path]:
    """Copies of uploaded files (name, where it lies) in a folder of their own.

    Those of one visitor at a time, so that each is measured against what the others left of the disk. Raises
    UserError where there is no room, or the queue has none.
    """
    copies: list[Path] = []
    with FileLock(workspace.home / "copying.lock"):
        check_place(workspace)
        check_space(workspace, sum(path.stat().st_size for _, path in files))
        folder.mkdir(parents=True)
        for given, path in files:
            copies.append(folder / safe_name(given, {copy.name for copy in copies}))
            shutil.copyfile(path, copies[-1])
    return copies


def safe_name(given: str, taken: set[str]) -> str:
    """A file name that is only a name, keeps its kind and is not taken."""
    name = re.sub(r"[^\w. -]", "_", Path(given.replace("\\", "/")).name).lstrip(". ")[-100:]
    stem, dot, ends = (name or "file.txt").partition(".")
    for number in range(1, len(taken) + 2):
        wanted = f"{stem}{f'-{number}' if number > 1 else ''}{dot}{ends}"
        if wanted not in taken:
            return wanted
    raise AssertionError("one of n + 1 names is free")
