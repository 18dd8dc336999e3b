"""Commands to paste into a terminal: made so that they run on this machine from any folder.

A command is made and kept with its folders. Who reads it decides what is shown: the user of this machine
gets a command that works here, everybody else one with names alone, because a server's folders are private.
The code of a workspace is a secret and is shown to nobody: the folder DATA/links holds another path to the
workspace.
"""

from __future__ import annotations

import re
import shlex
import site
import sys
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from retro_demo.corpus.samples import SAMPLES
from retro_demo.paths import CHECKPOINTS, ROOT, SAMPLE, data_home, linked_place, usual_home, without_folders
from retro_demo.settings import settings_of

PROGRAM = ("python", "-m", "retro_demo")
MOST_NAME = 100  # characters
NOT_ANEW = (
    "No command makes this anew: it was changed since, came as an export, or its corpus or base is gone."
)


def command(verb: str, *words: str) -> str:
    """The command line of a verb, for a shell of this machine."""
    return shlex.join([*_program(), verb, *words])


def _program() -> list[str]:
    """What starts this very code with this data folder, whatever folder one is in."""
    home, variables = data_home()[0], []
    if home != usual_home():
        variables.append(f"RETRO_DEMO_HOME={home}")
    if not _is_installed():  # `-m` would not find it
        variables.append(f"PYTHONPATH={ROOT}")
    return [*(["env", *variables] if variables else []), sys.executable or "python", *PROGRAM[1:]]


@cache
def _is_installed() -> bool:
    """Whether Python finds this very code from any folder: in site-packages, or by a .pth there."""
    for folder in map(Path, [*site.getsitepackages(), site.getusersitepackages()]):
        named = [path.read_text("utf-8", "replace").splitlines() for path in folder.glob("*.pth")]
        if folder.resolve() == ROOT or any(str(ROOT) in lines for lines in named):
            return True
    return False


def name_for_command(folder: Path | str) -> str:
    """How a command names a run or a corpus: "sample:NAME" for what ships, else its folder."""
    if str(folder).startswith(SAMPLE):
        return str(folder)
    folder = Path(folder).resolve()
    if folder.parent == CHECKPOINTS:
        return SAMPLE + folder.name
    name = folder.name.rpartition("-")[0]  # NAME-HASH
    return SAMPLE + name if folder.parent.name == "samples" and name in SAMPLES else str(folder)


def flag(name: str, value: Any) -> list[str]:
    """The words that set a setting."""
    shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    word = f"--{name.replace('_', '-')}"
    return [f"{word}={shown}"] if shown.startswith("-") else [word, shown]


def flags(values: Iterable[tuple[str, Any]]) -> list[str]:
    """The words that set some settings, in their order."""
    return [word for name, value in values for word in flag(name, value)]


def set_flags(config: Any) -> list[str]:
    """The words that set the settings of a config that differ from their defaults."""
    values = [
        (setting.name, getattr(config, setting.name), setting.default) for setting in settings_of(config)
    ]
    return flags((name, value) for name, value, usual in values if value != usual)


def for_here(text: str) -> str:
    """A command for who sits at this machine: it works, and does not tell the code of a workspace."""
    try:
        words, end = _split(text)
        return shlex.join([*map(linked_place, words[:end]), *words[end:]])
    except (ValueError, OSError):  # a quote that is not closed; a disk that knows no links
        return for_others(text)


def for_others(text: str) -> str:
    """A command by the names of runs and corpora, for who has them elsewhere, as after an export.

    What would be written into the folder of what is there already gets a name of its own.
    """
    try:
        words, end = _split(text)
    except ValueError:
        return without_folders(text)
    if PROGRAM[2] not in words[:end]:
        return without_folders(text)
    verb = words.index(PROGRAM[2]) + 1
    if words[verb : verb + 2] in (["train", "--out"], ["build-corpus", "--out"]):
        return NOT_ANEW
    named = [_named(word, before) for before, word in pairwise(words[verb - 1 : end])]
    return shlex.join([*PROGRAM, *named, *words[end:]])


def _split(text: str) -> tuple[list[str], int]:
    """The words of a command, and how many of them stand before what is somebody's text (behind "--")."""
    words = shlex.split(text)
    return words, words.index("--") if "--" in words else len(words)


def _named(word: str, before: str) -> str:
    """A word of a command without the folders of this machine."""
    if not word.startswith("/"):
        return word
    known = name_for_command(word)
    if known.startswith(SAMPLE):
        return known
    name = re.sub(r"^-", "./-", Path(word).name[:MOST_NAME]) or "."
    return f"{name}-again" if before == "--out" else name
