"""What the page and the endpoints say: settings as the asker names them, no folder of the server.

Jobs and verbs write their sentences for the command line of this machine: `--holdout` or `--fields
text=NAME`, with its folders. Here they are changed for the reader: settings become the labels of the forms,
or for programs the arguments of the endpoints. A UserError may list the settings that its sentence names
without dashes. Any other name is the user's (perhaps of a file or folder) and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from retro_demo.errors import UserError
from retro_demo.kinds import setting_types
from retro_demo.paths import without_folders
from retro_demo.runs import commands
from retro_demo.server.limits import HERE
from retro_demo.settings import (
    AddConfig,
    CorpusConfig,
    EvaluateConfig,
    ExplainConfig,
    GenerateConfig,
    WeighConfig,
    settings_of,
)

CONFIGS: tuple[Any, ...] = (
    *setting_types(),
    GenerateConfig,
    ExplainConfig,
    EvaluateConfig,
    WeighConfig,
    AddConfig,
    CorpusConfig,
)
LABELS: Mapping[str, str] = {
    setting.name: setting.metadata["label"] for config in reversed(CONFIGS) for setting in settings_of(config)
} | {
    "base": "Base",
    "baseline": "Matched baseline",
    "control": "Control",
    "corpus": "Corpus",
    "with_corpus": "its corpus (the texts!)",
    "with_state": "what a training goes on from",
}
"""Label on the page of each setting; of those that several forms have, that of the first."""

QUOTED = r"'[^']*'|\"[^\"]*\""
VALUE = rf"{QUOTED}|[a-z]+=(?:{QUOTED}|\S*[^\s.,;:)])|[A-Z][A-Z:_]*\b"
FLAG = re.compile(rf"(?<![\w'\"`/.-])--([a-z][a-z-]*)(?:=(\S*[^\s.,;:)])|[ ]({VALUE}))?")
"""A flag, with its value where that is plain: after "=", in quotes, NAME=VALUE or a word in capitals."""


def for_page(error: str | Exception) -> str:
    """A sentence, or that of an error, with the labels of the forms."""
    text = str(error)
    for name, label in error.labels.items() if isinstance(error, UserError) else ():
        text = re.sub(rf"(?<![\w-]){name}(?!\w)", f"“{label or LABELS[name]}”", text, count=1)
    return FLAG.sub(lambda found: _flag(found, "“{}”: {}", "“{}”", LABELS), text)


def for_programs(text: str) -> str:
    """A sentence with the names of arguments."""
    return FLAG.sub(lambda found: _flag(found, "{}={}", "{}", {name: name for name in LABELS}), text)


def _flag(found: re.Match[str], with_value: str, alone: str, names: Mapping[str, str]) -> str:
    """A flag in other words; one that nobody else knows stays as it is."""
    name, value = found[1].replace("-", "_"), found[2] or found[3]
    if name not in names:
        return found[0]
    if value and value[0] in "'\"" and len(value) > 1:
        value = value[1:-1]
    if value and names[name] == name:
        value = json.dumps(value, ensure_ascii=False) if '"' not in value else repr(value)
    return with_value.format(names[name], value) if value else alone.format(names[name])


SENTENCES = ("error", "warnings", "verdict", "next", "why")
"""Names of values that hold sentences of ours; so does the text of a warning."""


def on_page(error: str | Exception) -> str:
    """A sentence, or that of an error, for the page."""
    return without_folders(for_page(error))


def to_program(error: str | Exception) -> str:
    """The same for whoever calls an endpoint."""
    return without_folders(for_programs(str(error)))


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
