"""Whether somebody else's weights fit one of our networks; for both references."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from retro_demo.errors import UserError


def check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the names and shapes of the weights are those of the network."""
    for what, names in (
        ("lack", sorted(set(wanted) - set(given))),
        ("hold also", sorted(set(given) - set(wanted))),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"The weights do not fit these arguments: they {what} {', '.join(names[:3])}{more}. "
                "Give the arguments that the model was made with."
            )
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise UserError(
                f"The weights do not fit these arguments: {name} is {tuple(given[name].shape)}, but the "
                f"arguments ask for {tuple(tensor.shape)}. Give the arguments that the model was made with."
            )
