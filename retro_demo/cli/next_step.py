"""What usually comes after a command that is done, as a command that can be pasted."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro_demo.evaluation.baselines import baseline_settings
from retro_demo.kinds import KINDS
from retro_demo.paths import run_folder
from retro_demo.runs.checkpoint import AnyRun, read_any_config
from retro_demo.runs.commands import flags
from retro_demo.settings import TrainConfig


def next_step(options: argparse.Namespace, result: Mapping[str, Any]) -> str:
    """The words of the command after this one, without the program's name; "" where there is none to name.

    result: what the `finished` of the command holds.
    """
    words: list[str] = []
    if options.command in ("build-corpus", "add-documents") and "documents" in result:
        corpus = str(Path(options.out or options.corpus))  # a shell may have put a slash behind it
        words = ["study", "--corpus", corpus, "--out", f"{corpus}-study"]
    elif options.command == "train":
        words = _after_training(options.out, read_any_config(options.out))
    elif options.command == "evaluate" and options.run:
        words = _after_measuring(options.run, result)
    return shlex.join(words)


def _after_training(out: Path, config: AnyRun) -> list[str]:
    if config.kind.claims:
        return ["evaluate", str(out)]
    if config.base:  # it goes on from another one, as a matched baseline does
        return ["generate", str(out), "--prompt", "Once upon a time"]
    return ["train", "retrofit", "--corpus", config.corpus, "--base", str(out), "--out", f"{out}-retrofit"]


def _after_measuring(run: str, result: Mapping[str, Any]) -> list[str]:
    """The matched baseline, where one is needed and none was named."""
    config = read_any_config(run_folder(run))
    if "baseline" in result["arms"] or config.kind.own_controls or config.model not in ("retro", "retrofit"):
        return []
    folder, kind = Path(run_folder(run)), KINDS["lm"]
    out = f"{folder.name if folder != Path(run) else folder}-baseline"
    words = ["train", kind.name, "--corpus", config.corpus, "--out", out, "--preset", config.preset]
    words += ["--base", config.base] if config.base else []
    usual = kind.preset_settings(config.preset, begun=bool(config.base))
    types = kind.settings()
    wanted = baseline_settings(folder)
    if config.base:  # which has the shape of the decoder
        wanted = {name: value for name, value in wanted.items() if types.get(name) is TrainConfig}
    other = [
        (name, value)
        for name, value in wanted.items()
        if name in types and value != usual.get(name, getattr(types[name], name, None))
    ]
    return [*words, *flags(other)]
