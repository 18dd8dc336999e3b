"""The flags of `train`, and its help: of all kinds of run together, or of the one that is named."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from retro_demo.cli.listing import resolve_names
from retro_demo.console import CommandParser, add_flags
from retro_demo.errors import UserError
from retro_demo.kinds import KINDS, Kind, setting_types
from retro_demo.runs.planning import kind_of_run, shape_beside

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
    presets = [preset for kind in KINDS.values() for preset in kind.presets]
    _add_common(train, list(dict.fromkeys(presets)))
    add_flags(train, *setting_types())
    if isinstance(train, CommandParser):
        train.narrowed = lambda options: _of_model(train, options)


def _add_common(train: argparse.ArgumentParser, presets: list[str]) -> None:
    train.add_argument("--corpus", metavar="DIR", help='folder of a corpus, or "sample:factbook2015"')
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help=OUT)
    train.add_argument(
        "--base",
        metavar="RUN",
        help="run (or sample:NAME) whose weights to begin with; a retrofit freezes them, the others train "
        "on; or a pretrained base: smollm2, a folder, a .gguf file, OWNER/NAME of the Hub; of a retrofit "
        "a run that fine-tuned one, too",
    )
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
    kind = _kind_of(options)
    preset = options.preset if options.preset in kind.presets else "tiny"
    begun, defaults = options.base is not None, _defaults(kind, preset, options.base)
    becomes = f" On this base it is a run of kind {kind.name}." if kind.name != options.model else ""
    begins = " where it begins with the weights of another run" if begun and kind.begun else ""
    parser = CommandParser(
        prog=f"{train.prog} {options.model}",
        description=f"Train a {kind.title}.{becomes} The defaults are those of --preset {preset}{begins}.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_common(parser, list(kind.presets))
    add_flags(
        parser,
        *reversed(kind.part_types().values()),
        names=set(kind.settings()) - set(kind.always),
        defaults=defaults,
    )
    return parser


def _defaults(kind: Kind, preset: str, base: str | None) -> dict[str, Any]:
    """What is taken for a setting that nobody gives; of a pretrained base that is not here, as on SmolLM2."""
    defaults = kind.preset_settings(preset, begun=base is not None)
    if kind.trains_pretrained and base:
        with suppress(UserError):
            defaults |= shape_beside(kind, {}, base)
    return defaults


def _kind_of(options: argparse.Namespace) -> Kind:
    """The kind that the named model becomes by its base."""
    try:
        resolve_names(options)  # which a verb that runs has had done for it
        return kind_of_run(options.model, options.base or "", hub=True)
    except UserError:  # which the training tells
        return KINDS[options.model]
