"""The shapes of marge-pytorch 0.2.9: the arguments of its constructor as a MargeConfig, and back.

Source: github.com/lucidrains/marge-pytorch (MIT), version 0.2.9; written anew.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any

from retro_demo.errors import UserError
from retro_demo.interop.interop_weights import check_shape
from retro_demo.models.marge_config import MargeConfig

BASE_DEPTH = 4  # decoder layers without evidence: always built, and counted into its `dec_depth`
EVERYWHERE: dict[str, Any] = {
    "pad_id": 0,
    "num_heads": 8,  # whatever its `enc_heads` and `dec_heads` say
    "base_depth": BASE_DEPTH,
    "ff_mult": 4,  # in the decoder, but for the last of a layer with evidence
    "dropout": 0.0,  # whatever its `enc_ff_dropout` and `dec_ff_dropout` say
    "relevance": "dot",
    "norm": "layer",
    "final_norm": False,
    "biases": True,
    "gated": True,
    "extra_ff": True,
    "tied_output": False,
    "scale_embeddings": False,
    "full_width_scale": True,
    "blind_padding": False,
}
"""What is the same in every model of the reference."""


@dataclass(frozen=True)
class ReferenceArguments:
    """The arguments of the reference's constructor, with its defaults."""

    dim: int
    num_tokens: int = 20000
    max_seq_len: int = 1024
    enc_depth: int = 12
    enc_retrieval_depth: int = 4
    enc_heads: int = 8
    enc_ff_mult: float = 4
    enc_attn_dropout: float = 0.0
    enc_ff_dropout: float = 0.0
    dec_depth: int = 12
    dec_heads: int = 8
    dec_ff_mult: float = 16
    dec_attn_dropout: float = 0.0
    dec_ff_dropout: float = 0.0
    distill_attn: bool = False
    distill_loss_coef: float = 1.0


OUR_NAMES = {
    "dim": "dim",
    "num_tokens": "vocab_size",
    "max_seq_len": "absolute_positions",
    "enc_depth": "enc_depth",
    "enc_retrieval_depth": "retrieval_depth",
    "enc_ff_mult": "enc_ff_mult",
    "enc_attn_dropout": "enc_attn_dropout",
    "dec_depth": "dec_depth",
    "dec_ff_mult": "dec_ff_mult",
    "dec_attn_dropout": "dec_attn_dropout",
    "distill_loss_coef": "distill",
}
"""Which knob of MargeConfig an argument of the reference sets; `distill_attn` lets the last one count."""


def reference_config(**arguments: Any) -> MargeConfig:
    """The shape of a reference model with these constructor arguments; raises UserError for bad ones."""
    _check_names(arguments)
    given = ReferenceArguments(**arguments)
    for name, least in (("dim", 1), ("max_seq_len", 1), ("enc_depth", 1), ("enc_retrieval_depth", 1)):
        _check_whole(given, name, least)
    _check_whole(given, "dec_depth", 0)
    if given.dim % EVERYWHERE["num_heads"]:
        raise UserError(
            f"dim is {given.dim}, but it must be a multiple of {EVERYWHERE['num_heads']}: the reference "
            "always has so many heads."
        )
    if given.enc_depth <= given.enc_retrieval_depth:
        raise UserError(
            f"enc_depth is {given.enc_depth}, but the reference wants more layers than "
            f"enc_retrieval_depth, which is {given.enc_retrieval_depth}."
        )
    if given.distill_attn and given.dec_depth <= BASE_DEPTH:
        raise UserError(
            f"distill_attn needs a layer that reads evidence, but dec_depth is {given.dec_depth}: the first "
            f"{BASE_DEPTH} layers read none. Choose more."
        )
    settings = {ours: getattr(given, theirs) for theirs, ours in OUR_NAMES.items()}
    settings |= {name: _mult(given, name) for name in ("enc_ff_mult", "dec_ff_mult")}
    settings["dec_depth"] = max(0, given.dec_depth - BASE_DEPTH)
    settings["distill"] = given.distill_loss_coef if given.distill_attn else 0.0
    try:
        return MargeConfig(**settings, **EVERYWHERE)
    except UserError as error:  # in the caller's words: "vocab_size is ..." -> "num_tokens is ..."
        name, _, rest = str(error).partition(" ")
        theirs = {ours: argument for argument, ours in OUR_NAMES.items()}
        raise UserError(f"{theirs.get(name, name)} {rest}") from error


def _check_names(arguments: dict[str, Any]) -> None:
    known = {field.name: field.default for field in fields(ReferenceArguments)}
    if unknown := sorted(set(arguments) - set(known)):
        raise UserError(
            f"Marge of marge-pytorch 0.2.9 has no argument {', '.join(unknown)}; it has {', '.join(known)}."
        )
    if missing := [name for name, default in known.items() if default is MISSING and name not in arguments]:
        raise UserError(f"Marge of marge-pytorch 0.2.9 cannot be made without {', '.join(missing)}.")


def _check_whole(given: ReferenceArguments, name: str, least: int) -> None:
    value = getattr(given, name)
    if type(value) is not int or value < least:
        raise UserError(f"{name} is {value!r}; give a whole number from {least} up.")


def _mult(given: ReferenceArguments, name: str) -> int:
    """The factor of a feed-forward layer; a broken one as the least whole one that is as wide there."""
    mult = getattr(given, name)
    if type(mult) not in (int, float) or not 0 <= mult < math.inf:
        raise UserError(f"{name} is {mult!r}; give a number from 0 up.")
    if type(mult) is int and mult > 0:
        return mult
    return max(1, (3 * int(mult / 3 * 2) + 1) // 2)


def reference_arguments(config: MargeConfig) -> dict[str, Any]:
    """The constructor arguments of the reference's model of this shape.

    Raises UserError for a shape that the reference has not: it could not compute what ours does.
    """
    arguments = {theirs: getattr(config, ours) for theirs, ours in OUR_NAMES.items()}
    arguments |= {"dec_depth": config.dec_depth + BASE_DEPTH, "distill_attn": config.distill > 0}
    check_shape(config, lambda: reference_config(**arguments), "marge-pytorch", "marge_from_reference")
    return arguments
