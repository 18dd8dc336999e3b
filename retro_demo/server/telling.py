"""What is told of what jobs and verbs say: no folder of the server, settings and commands as the asker knows.

They speak as on the command line of this machine; what the page and the endpoints tell of it goes through
here.
"""

from __future__ import annotations

from typing import Any

from retro_demo.paths import without_folders
from retro_demo.runs import commands
from retro_demo.server import wording
from retro_demo.server.addresses import HERE

SENTENCES = ("error", "warnings", "verdict", "next", "why")
"""Names of values that hold sentences of ours; so does the text of a warning."""


def on_page(error: str | Exception) -> str:
    """A sentence, or that of an error, for the page."""
    return without_folders(wording.for_page(error))


def to_program(error: str | Exception) -> str:
    """The same for whoever calls an endpoint."""
    return without_folders(wording.for_programs(str(error)))


def values_to_program(values: Any) -> Any:
    """Values of JSON for whoever calls an endpoint or takes a file along.

    Sentences of ours speak of settings as programs know them, commands run where the asker sits, and the text
    of others stays as it is, but for folders.
    """
    if isinstance(values, dict):
        warned = values.get("event") == "warned"
        return {name: _inner("warnings" if warned else name, inner) for name, inner in values.items()}
    if isinstance(values, (list, tuple)):
        return [values_to_program(inner) for inner in values]
    return without_folders(values) if isinstance(values, str) else values


def _inner(name: str, value: Any) -> Any:
    """A value by the name that it has in an object."""
    if name == "command" and isinstance(value, str):
        return told(value)
    if name not in SENTENCES:
        return values_to_program(value)
    if isinstance(value, list):
        return [_inner(name, one) for one in value]
    return to_program(value) if isinstance(value, str) else values_to_program(value)


def told(text: str) -> str:
    """A command as it is told to whoever asks now."""
    return commands.for_here(text) if HERE.get() else commands.for_others(text)
