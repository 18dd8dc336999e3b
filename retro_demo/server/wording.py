"""Settings named as the asker knows them.

Sentences name a setting as the command line does, `--holdout` or `--fields text=NAME`, and a UserError may
say which names of settings stand bare in its own. On the page they become the labels of the forms, for
programs the arguments of the endpoints. Any other name is somebody's, of a file or folder perhaps, and
stays. This module knows settings, not sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from retro_demo.change_config import AddConfig, WeighConfig
from retro_demo.config import CorpusConfig, GenerateConfig, TrainConfig
from retro_demo.errors import UserError
from retro_demo.evaluate_config import EvaluateConfig
from retro_demo.explain_config import ExplainConfig
from retro_demo.knobs import knobs
from retro_demo.models.marge_config import EvidenceConfig, MargeConfig
from retro_demo.models.retro_config import RetroConfig

CONFIGS: tuple[Any, ...] = (
    TrainConfig,
    RetroConfig,
    EvidenceConfig,
    MargeConfig,
    GenerateConfig,
    ExplainConfig,
    EvaluateConfig,
    WeighConfig,
    AddConfig,
    CorpusConfig,
)
LABELS: Mapping[str, str] = {
    knob.name: knob.metadata["label"] for config in reversed(CONFIGS) for knob in knobs(config)
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
