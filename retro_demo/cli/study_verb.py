"""The verb `study`: does retrieval help on a corpus? A job that trains what decides it and measures it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from retro_demo.console import add_flags, given
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.errors import UserError
from retro_demo.events import Event
from retro_demo.kinds import KINDS
from retro_demo.output_folder import check_output
from retro_demo.training.study import Study, prepare_study, run_study, settled_study

ASKED = ("corpus", "base", "preset", "seeds", "device")
READING = (KINDS["retro"], KINDS["reader"])
"""What reads neighbors in a study; its settings are those of the other parts, too."""


def add_study_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """verb: name, function, summary -> the parser of that verb."""
    study = verb("study", _study, "find out whether retrieval helps on a corpus, with all that decides it")
    study.add_argument(
        "--corpus", help='folder of a corpus, or "sample:factbook2015"; none: go on with --out'
    )
    study.add_argument("--out", type=Path, required=True, help="folder of the study; a second call resumes")
    study.add_argument("--base", help="run of an lm, or smollm2 (default: an lm is trained first)")
    presets = list(dict.fromkeys(preset for kind in READING for preset in kind.presets))
    study.add_argument("--preset", choices=presets, help="named settings (default: tiny)")
    study.add_argument("--seeds", type=int, metavar="N", help="train all anew with N seeds and average")
    study.add_argument("--device", help="auto, cpu, cuda or mps (default: auto)")
    add_flags(study, *_types(), names=_settings())


def _types() -> list[type]:
    """The dataclasses of the settings of all that a study may train, those of training first."""
    return list(dict.fromkeys(part for kind in READING for part in reversed(kind.part_types().values())))


def _settings() -> set[str]:
    """Their names; the dataclasses have settings of other kinds, too."""
    return {name for kind in READING for name in kind.settings()}


def _study(options: argparse.Namespace, stop: Callable[[], bool]) -> Iterable[Event]:
    settings = given(options, *_types(), names=_settings())
    asked = {name: value for name in ASKED if (value := getattr(options, name)) is not None}
    check_output(options.out, "study")  # before a sample is built for it
    if options.corpus:
        yield from ensure_sample(options.corpus, stop)
        prepare_study(options.out, settled_study(Study(**asked, settings=settings)))
    elif asked or settings:
        raise UserError(
            "Settings go with a corpus: study --corpus DIR --out STUDY. Without one a study goes on as it "
            "was begun."
        )
    yield from run_study(options.out, stop)
