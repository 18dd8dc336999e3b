"""What every command needs of the console: flags made from the configs, typed words, safe printing."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
from typing import Any

from retro_demo.settings import settings_of


def add_flags(parser: argparse.ArgumentParser, *configs: type) -> None:
    """One flag for each setting; a flag that is not given is None, so that presets can be told apart.

    A setting that several configs have (the width, say) is one flag, described where it comes first.
    """
    known: set[str] = set()
    for config in configs:
        fields = [setting for setting in settings_of(config) if setting.name not in known]
        known |= {setting.name for setting in fields}
        about = (config.__doc__ or "").partition("\n")[0]
        _add_group(parser.add_argument_group(config.__name__, about), fields)


def _add_group(group: Any, fields: list[dataclasses.Field[Any]]) -> None:
    for setting in fields:
        default = setting.default
        kind = {tuple: numbers, bool: truth}.get(type(default), type(default))
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=kind,
            metavar=kind.__name__.upper(),
            help=f"{setting.metadata['help']} Default: {shown or 'none'}.".replace("%", "%%"),
        )


def escape_what_cannot_be_shown() -> None:
    """From now on characters that the console's encoding lacks are printed as escapes, as in \\u20ac."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a caller collects what is printed
            stream.reconfigure(errors="backslashreplace")


def words(argument: str) -> str:
    """A text that a person typed: UTF-8, also where the locale names another encoding, or none."""
    try:
        return os.fsencode(argument).decode("utf-8", "replace")
    except UnicodeEncodeError:  # it comes from no console
        return argument


def numbers(text: str) -> tuple[int, ...]:
    """A list such as 2,4."""
    return tuple(int(part) for part in text.split(",") if part.strip())


def truth(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def given(options: argparse.Namespace, *configs: type) -> dict[str, Any]:
    """The settings of configs that were set on the command line."""
    values = {
        setting.name: getattr(options, setting.name) for config in configs for setting in settings_of(config)
    }
    return {name: value for name, value in values.items() if value is not None}
