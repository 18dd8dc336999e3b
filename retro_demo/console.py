"""What every command needs of the console: flags made from the configs, typed words, safe printing.

A parser's complaint is one sentence of ours, and it says which word was meant where one is near.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from retro_demo.errors import UserError
from retro_demo.settings import settings_of

MAIN = "The settings that matter most"
METAVARS = {tuple: "N,N,...", bool: "true|false", int: "N", float: "X", str: "NAME"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'train'?" where a known word is near to this one, else ""."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one sentence (a UserError), and what may be meant.

    Its usage line names what has to be given; the settings, which can be dozens, stand in the groups below.
    `narrowed` gives the parser whose help answers for what was given before `--help`.
    """

    narrowed: Callable[[argparse.Namespace], argparse.ArgumentParser] | None = None

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how | {"add_help": False})
        self.add_argument("-h", "--help", action=_Help, help="show this help message and exit")

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise UserError(f"{message[0].upper()}{message[1:].rstrip('.')}{end} See: {self.prog} --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = (flag for one in self._chosen(options)._actions for flag in one.option_strings)
            meant = did_you_mean(unknown[0].partition("=")[0], flags)
            self._chosen(options).error(f"unrecognized arguments: {' '.join(unknown)}.{meant}")
        return options

    def _chosen(self, options: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the verb that was named, or this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices.get(getattr(options, "command", ""), self)
        return self

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            known = [one for one in action.choices or () if isinstance(one, str)]
            if meant := did_you_mean(str(value), known):
                raise argparse.ArgumentError(action, f"invalid choice: {value!r}.{meant}") from None
            raise error

    def format_usage(self) -> str:
        self.usage = self._short_usage()
        return super().format_usage()

    def format_help(self) -> str:
        self.usage = self._short_usage()
        return super().format_help()

    def _short_usage(self) -> str:
        needed = [_usage_of(action) for action in self._actions]
        return " ".join([self.prog.replace("%", "%%"), *filter(None, needed), "[--FLAG ...]"])


class _Help(argparse.Action):
    """Print the help of a parser, narrowed to what was given before, and leave."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_given: Any) -> None:
        narrowed = getattr(parser, "narrowed", None)
        (narrowed(namespace) if narrowed else parser).print_help()
        parser.exit()


def _usage_of(action: argparse.Action) -> str:
    """How an argument stands in the usage line; "" for a flag that may be left out."""
    name = str(action.metavar or action.dest.upper())
    if isinstance(action, argparse._SubParsersAction):
        return f"{name} ..."
    if action.option_strings:
        return f"{action.option_strings[0]} {name}" if action.required else ""
    return {"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)


def add_flags(
    parser: argparse.ArgumentParser,
    *configs: type,
    names: Collection[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """One flag for each setting; a flag that is not given is None, so that presets can be told apart.

    A setting that several configs have (the width, say) is one flag, described where it comes first. Those
    that matter most stand in a group of their own. `names` leaves out all others; `defaults` says what the
    help names as the default where that is not the one of the config, as with a preset.
    """
    named: dict[str, dataclasses.Field[Any]] = {}
    groups: list[tuple[str, list[dataclasses.Field[Any]]]] = []
    for config in configs:
        fields = [setting for setting in settings_of(config) if setting.name not in named]
        fields = [setting for setting in fields if names is None or setting.name in names]
        named |= {setting.name: setting for setting in fields}
        about = (config.__doc__ or "").partition("\n")[0].rstrip(".")
        groups.append((about, [setting for setting in fields if not setting.metadata["main"]]))
    main = [setting for setting in named.values() if setting.metadata["main"]]
    for title, fields in [(MAIN, main), *groups]:
        if fields:
            _add_group(parser.add_argument_group(title), fields, defaults or {})


def _add_group(group: Any, fields: list[dataclasses.Field[Any]], defaults: Mapping[str, Any]) -> None:
    for setting in fields:
        kind = {tuple: numbers, bool: truth}.get(type(setting.default), type(setting.default))
        shown = _shown(defaults.get(setting.name, setting.default))
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=kind,
            metavar=_metavar(setting),
            help=f"{setting.metadata['help']} Default: {shown}.".replace("%", "%%"),
        )


def _metavar(setting: dataclasses.Field[Any]) -> str:
    """What stands for the value: its choices where they are short."""
    choices = "|".join(filter(None, setting.metadata["choices"]))
    return choices if 0 < len(choices) < 40 else METAVARS[type(setting.default)]


def _shown(value: Any) -> str:
    """A default as the help names it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value == "" else str(value)


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


def given(
    options: argparse.Namespace, *configs: type, names: Collection[str] | None = None
) -> dict[str, Any]:
    """The settings of configs that were set on the command line; `names` as in `add_flags`."""
    settings = (setting.name for config in configs for setting in settings_of(config))
    values = {name: getattr(options, name) for name in settings if names is None or name in names}
    return {name: value for name, value in values.items() if value is not None}
