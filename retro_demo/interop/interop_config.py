"""The shapes of RETRO-pytorch 0.3.9: the arguments of its constructor as a RetroConfig, and back.

Source: github.com/lucidrains/RETRO-pytorch (MIT), version 0.3.9; written anew.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from retro_demo.errors import UserError
from retro_demo.interop.interop_weights import check_shape
from retro_demo.models.retro_config import RetroConfig

TURNING = 32  # dimensions of a head that turn with its position: the first ones, and a head has no fewer
EVERYWHERE: dict[str, Any] = {
    "num_heads": 8,  # whatever its `heads` says
    "rotary_dims": TURNING,
    "ff_mult": 4,
    "dropout": 0.0,
    "null_kv": True,
    "cca_positions": "reference",
    "embed_at": "encoder",
    "scale_embeddings": False,
    "tied_output": False,
    "biases": True,
    "norm_states": False,
    "enc_projection": True,
    "mask_padding": False,
}
"""What is the same in every model of the reference."""


@dataclass(frozen=True)
class ReferenceArguments:
    """The arguments of the reference's constructor, with its defaults."""

    num_tokens: int = 28996
    max_seq_len: int = 2048
    enc_dim: int = 896
    enc_depth: int = 2
    enc_cross_attn_layers: tuple[int, ...] | None = None  # None: every layer
    dec_depth: int = 12
    dec_cross_attn_layers: tuple[int, ...] | None = (1, 3, 6, 9)
    heads: int = 8
    dec_dim: int = 768
    dim_head: int = 64
    enc_attn_dropout: float = 0.0
    enc_ff_dropout: float = 0.0
    dec_attn_dropout: float = 0.0
    dec_ff_dropout: float = 0.0
    chunk_size: int = 64
    pad_id: int = 0
    enc_scale_residual: float | None = None
    dec_scale_residual: float | None = None
    norm_klass: type | None = None
    gated_rmsnorm: bool = False
    use_deepnet: bool = False


OUR_NAMES = {
    "num_tokens": "vocab_size",
    "max_seq_len": "absolute_positions",
    "enc_dim": "enc_dim",
    "enc_depth": "enc_depth",
    "enc_cross_attn_layers": "enc_cross_layers",
    "dec_depth": "depth",
    "dec_cross_attn_layers": "cca_layers",
    "dec_dim": "dim",
    "dim_head": "dim_head",
    "enc_attn_dropout": "enc_attn_dropout",
    "enc_ff_dropout": "enc_ff_dropout",
    "dec_attn_dropout": "dec_attn_dropout",
    "dec_ff_dropout": "dec_ff_dropout",
    "chunk_size": "chunk_len",
    "pad_id": "pad_id",
    "enc_scale_residual": "enc_residual_scale",
    "dec_scale_residual": "dec_residual_scale",
}
"""Which knob of RetroConfig an argument of the reference sets; the others choose norms or do nothing."""


def reference_config(**arguments: Any) -> RetroConfig:
    """The shape of a reference model with these constructor arguments; raises UserError for bad ones."""
    known = [field.name for field in fields(ReferenceArguments)]
    if unknown := sorted(set(arguments) - set(known)):
        raise UserError(
            f"RETRO of retro-pytorch 0.3.9 has no argument {', '.join(unknown)}; it has {', '.join(known)}."
        )
    given = ReferenceArguments(**arguments)
    for name, least in (("dim_head", TURNING), ("max_seq_len", 1), ("enc_depth", 1), ("dec_depth", 1)):
        value = getattr(given, name)
        if type(value) is not int or value < least:
            raise UserError(f"{name} is {value!r}; give a whole number from {least} up.")
    settings = {ours: getattr(given, theirs) for theirs, ours in OUR_NAMES.items()}
    settings["cca_layers"] = _layers(given, "dec_cross_attn_layers", given.dec_depth)
    settings["enc_cross_layers"] = _layers(given, "enc_cross_attn_layers", given.enc_depth)
    settings["enc_residual_scale"] = _scale(given, "enc_scale_residual")
    settings["dec_residual_scale"] = _scale(given, "dec_scale_residual")
    try:
        return RetroConfig(**settings, **_norms(given), **EVERYWHERE)
    except UserError as error:  # in the caller's words: "depth is ..." -> "dec_depth is ..."
        name, _, rest = str(error).partition(" ")
        theirs = {ours: argument for argument, ours in OUR_NAMES.items()}
        raise UserError(f"{theirs.get(name, name)} {rest}") from error


def _layers(given: ReferenceArguments, name: str, depth: int) -> tuple[int, ...]:
    """Layers counted from 1, None = every one; those that there are not are left out, as there."""
    layers = getattr(given, name)
    if layers is None:
        return tuple(range(1, depth + 1))
    if not isinstance(layers, (tuple, list)) or any(type(layer) is not int for layer in layers):
        raise UserError(f"{name} is {layers!r}; give a tuple of layers from 1 up, or None for every layer.")
    return tuple(sorted({layer for layer in layers if 1 <= layer <= depth}))


def _scale(given: ReferenceArguments, name: str) -> float:
    """The factor of a residual stream, 0 = DeepNet's formula; without DeepNet it does nothing."""
    scale = getattr(given, name)
    if scale is None or not given.use_deepnet:
        return 0.0
    if type(scale) not in (int, float) or scale <= 0:
        raise UserError(f"{name} is {scale!r}; give a number over 0, or None for DeepNet's formula.")
    return float(scale)


def _norms(given: ReferenceArguments) -> dict[str, Any]:
    """Kind of norm and residuals; a gated norm wins over DeepNet's, which wins over `norm_klass`."""
    klass = nn.LayerNorm if given.use_deepnet else given.norm_klass
    home, _, name = f"{getattr(klass, '__module__', '')}.{getattr(klass, '__name__', klass)}".rpartition(".")
    own = klass is None or (name == "RMSNorm" and home.startswith("retro_pytorch"))
    if given.gated_rmsnorm:
        kind = "gated_rms"
    elif klass is nn.LayerNorm:
        kind = "layer"
    elif own:
        kind = "rms"
    else:
        raise UserError(
            f"norm_klass is {name}; the weights can be read with the reference's own RMSNorm (None) "
            "and with torch.nn.LayerNorm only."
        )
    return {
        "norm": kind,
        "norm_eps": 0.0 if kind == "layer" else 1e-16,  # it keeps the norm from 1e-8 on, the root of this
        "residual": "deepnet-reference" if given.use_deepnet else "pre",
    }


def reference_arguments(config: RetroConfig) -> dict[str, Any]:
    """The constructor arguments of the reference's model of this shape.

    Raises UserError for a shape that the reference has not: it could not compute what ours does.
    """
    arguments = {theirs: getattr(config, ours) for theirs, ours in OUR_NAMES.items()}
    arguments |= {name: arguments[name] or None for name in ("enc_scale_residual", "dec_scale_residual")}
    arguments |= {"gated_rmsnorm": config.norm == "gated_rms", "use_deepnet": config.residual != "pre"}
    if config.norm == "layer" and not arguments["use_deepnet"]:
        arguments["norm_klass"] = nn.LayerNorm
    check_shape(config, lambda: reference_config(**arguments), "RETRO-pytorch", "retro_from_reference")
    return arguments
