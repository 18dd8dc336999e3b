"""The flags of `train`, and its help: of all kinds of run together, or of the one that is named."""

from __future__ import annotations

import argparse
from pathlib import Path

from retro_demo.console import CommandParser, add_flags
from retro_demo.kinds import KINDS, setting_types

OUT = "folder of the run; a second call resumes"


def add_training_flags(train: argparse.ArgumentParser) -> None:
    """Give `train` its arguments: each setting of each kind of run is a flag."""
    train.add_argument(
        "model",
        nargs="?",
        choices=list(KINDS),
        metavar="MODEL",
        help=f"{', '.join(KINDS)}; none: go on with --out. train MODEL --help shows what that one has",
    )
    _add_common(train)
    add_flags(train, *setting_types())
    if isinstance(train, CommandParser):
        train.narrowed = lambda options: _of_model(train, options)


def _add_common(train: argparse.ArgumentParser) -> None:
    train.add_argument("--corpus", metavar="DIR", help='folder of a corpus, or "sample:factbook2015"')
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help=OUT)
    train.add_argument(
        "--base",
        metavar="RUN",
        help="run (or sample:NAME) whose weights to begin with; a retrofit freezes them, the others train on",
    )
    presets = list(dict.fromkeys(preset for kind in KINDS.values() for preset in kind.presets))
    train.add_argument(
        "--preset", choices=presets, help="named settings (default: those of the base, else tiny)"
    )
    train.add_argument(
        "--device", metavar="NAME", help="auto, cpu, cuda or mps (default: auto, or what it was begun on)"
    )
    train.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="write the metrics of the whole run for TensorBoard, too, to a folder of the run's name in DIR",
    )
    train.add_argument(
        "--trackio", metavar="PROJECT", help="write them to a project of Trackio on this machine, too"
    )


def _of_model(train: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser whose help shows the settings of one kind of run, with the defaults of its preset."""
    if options.model is None:
        return train
    kind = KINDS[options.model]
    preset = options.preset if options.preset in kind.presets else "tiny"
    begun = options.base is not None
    begins = " where it begins with the weights of another run" if begun else ""
    parser = CommandParser(
        prog=f"{train.prog} {kind.name}",
        description=f"Train a {kind.title}. The defaults are those of --preset {preset}{begins}.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_common(parser)
    add_flags(
        parser,
        *reversed(kind.part_types().values()),
        names=set(kind.settings()) - set(kind.always),
        defaults=kind.preset_settings(preset, begun=begun),
    )
    return parser
