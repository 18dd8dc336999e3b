"""Commands as the page shows them, taken apart and run."""

from __future__ import annotations

import shlex

import pytest

from retro_demo.cli import main


def words_of(command: str) -> list[str]:
    """What the command line is given, without what starts it."""
    words = shlex.split(command)
    return words[words.index("retro_demo") + 1 :]


def run(command: str) -> int:
    """Run a command in this process with the variables that it sets and no others, with a JSON object a line;
    its exit code."""
    verb, *rest = words_of(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RETRO_DEMO_HOME", raising=False)
        for word in shlex.split(command):
            if word.startswith("RETRO_DEMO_HOME="):
                patch.setenv(*word.split("=", 1))
        return main.main([verb, "--json", *rest])
