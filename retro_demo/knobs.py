"""What a knob is: a dataclass field with its label, range and help in the metadata.

The command line, the forms of the page, the range checks and the reference table of the docs all
read these. This module knows no particular knob.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar

from retro_demo.errors import UserError

Config = TypeVar("Config")


def knob(
    default: Any,
    label: str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    main: bool = False,
    derived: bool = False,
) -> Any:
    """A dataclass field that people can set.

    `main` knobs stand in view on a form, the others under "All knobs"; a `derived` one follows from
    something else (the vocabulary from the tokenizer, say) and is offered nowhere.
    """
    return field(
        default=default,
        metadata={
            "label": label,
            "help": help,
            "low": low,
            "high": high,
            "choices": choices,
            "main": main,
            "derived": derived,
        },
    )


def knobs(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a config (class or instance) that people can set, in order."""
    return [f for f in dataclasses.fields(config) if "label" in f.metadata and not f.metadata["derived"]]


def check_ranges(config: Any) -> None:
    """Refuse a value of the wrong kind or outside its range, whichever door it came by."""
    for knob_field in dataclasses.fields(config):
        if "label" not in knob_field.metadata:
            continue
        name, meta, value = knob_field.name, knob_field.metadata, getattr(config, knob_field.name)
        if not _same_kind(value, knob_field.default):
            kind = {int: "a whole number", float: "a number", tuple: "a list of whole numbers"}
            wanted = kind.get(type(knob_field.default), type(knob_field.default).__name__)
            raise UserError(f"{name} is {seen(value)}, but it must be {wanted}.", **{name: meta["label"]})
        if meta["choices"] and value not in meta["choices"]:
            choices = ", ".join(filter(None, meta["choices"]))
            raise UserError(f"{name} is {seen(value)}; choose one of {choices}.", **{name: meta["label"]})
        for number in value if isinstance(value, tuple) else (value,):
            low, high = meta["low"], meta["high"]
            outside = (low is not None and number < low) or (high is not None and number > high)
            if outside or (isinstance(number, float) and not math.isfinite(number)):
                said = f"{name} is {seen(number)}; it must lie between {low} and {high}."
                raise UserError(said, **{name: meta["label"]})


def seen(value: Any) -> str:
    """A value as an error names it: strangers' values can be long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The config of class `kind` with these values; raises UserError for unknown names or values."""
    if not isinstance(values, Mapping):
        raise UserError(f"{kind.__name__} is {seen(values)}, but it must be an object with its settings.")
    names = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(values) - names):
        raise UserError(
            f"{kind.__name__} has no setting {seen(', '.join(unknown))}; it has {', '.join(sorted(names))}."
        )
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
