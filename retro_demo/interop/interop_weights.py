"""Whether somebody else's weights fit one of our networks, and its shape theirs; for both references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from retro_demo.errors import UserError
from retro_demo.listing import listed


def check_shape(config: Any, nearest: Callable[[], Any], package: str, maker: str) -> None:
    """Raise UserError unless a network of the reference's `package` computes what ours of this config does.

    nearest: makes the config of the reference's network that is nearest; UserError where there is none.
    """
    try:
        theirs = asdict(nearest())
        other = [f"{name} is {value!r}" for name, value in asdict(config).items() if theirs[name] != value]
    except UserError as error:
        other = [str(error)]
    if other:
        raise UserError(
            f"{package} has no network like this one: {', '.join(other)}. Only models of its own "
            f"shape, as {maker} makes them, can be written for it."
        )


def check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the names and shapes of the weights are those of the network."""
    for what, names in (
        ("lack", sorted(set(wanted) - set(given))),
        ("hold also", sorted(set(given) - set(wanted))),
    ):
        if names:
            raise UserError(
                f"The weights do not fit these arguments: they {what} {listed(names, 3)}. "
                "Give the arguments that the model was made with."
            )
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise UserError(
                f"The weights do not fit these arguments: {name} is {tuple(given[name].shape)}, but the "
                f"arguments ask for {tuple(tensor.shape)}. Give the arguments that the model was made with."
            )
