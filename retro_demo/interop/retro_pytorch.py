"""RETRO-pytorch 0.3.9, in and out: its weights and its constructor's arguments as ours, number by number.

Its faults are reproduced, since its weights were trained with them: the positions in chunked
cross-attention are shifted twice, `heads` is ignored (always 8), and with `use_deepnet` a layer's
cross-attention is left out with its norm where nothing is retrieved. What merely fails there works
here: one neighbor as (B, L, R), and a loss in eval mode.

`check_shape` and `check_fit` say whether weights of either reference fit one of our networks.

Source: github.com/lucidrains/RETRO-pytorch (MIT), version 0.3.9; written anew. Nothing of it is
imported. Axes of tensors are as in `models/retro.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from retro_demo.errors import UserError, listed
from retro_demo.models.config import RetroConfig
from retro_demo.models.retro import RETRO


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
class RetroPytorchArguments:
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
"""Which setting of RetroConfig an argument of the reference sets; the others choose norms or do nothing."""


def reference_config(**arguments: Any) -> RetroConfig:
    """The shape of a reference model with these constructor arguments; raises UserError for bad ones."""
    known = [field.name for field in fields(RetroPytorchArguments)]
    if unknown := sorted(set(arguments) - set(known)):
        raise UserError(
            f"RETRO of retro-pytorch 0.3.9 has no argument {', '.join(unknown)}; it has {', '.join(known)}."
        )
    given = RetroPytorchArguments(**arguments)
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


def _layers(given: RetroPytorchArguments, name: str, depth: int) -> tuple[int, ...]:
    """Layers counted from 1, None = every one; those that there are not are left out, as there."""
    layers = getattr(given, name)
    if layers is None:
        return tuple(range(1, depth + 1))
    if not isinstance(layers, (tuple, list)) or any(type(layer) is not int for layer in layers):
        raise UserError(f"{name} is {layers!r}; give a tuple of layers from 1 up, or None for every layer.")
    return tuple(sorted({layer for layer in layers if 1 <= layer <= depth}))


def _scale(given: RetroPytorchArguments, name: str) -> float:
    """The factor of a residual stream, 0 = DeepNet's formula; without DeepNet it does nothing."""
    scale = getattr(given, name)
    if scale is None or not given.use_deepnet:
        return 0.0
    if type(scale) not in (int, float) or scale <= 0:
        raise UserError(f"{name} is {scale!r}; give a number over 0, or None for DeepNet's formula.")
    return float(scale)


def _norms(given: RetroPytorchArguments) -> dict[str, Any]:
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


FREQUENCIES = {stack: f"{stack}.rotary_pos_emb.inv_freq" for stack in ("encoder", "decoder")}
"""The buffers of rotary frequencies, one for a stack; ours has one in each attention."""


def reference_names(config: RetroConfig) -> dict[str, tuple[str, ...]]:
    """Each parameter of ours -> the reference's parameters that lie in it, one below the other."""
    names = {
        "embedding.weight": ("token_emb.weight",),
        "positions.weight": ("pos_emb.weight",),
        **_same("to_logits", "to_logits"),
    }
    if config.enc_dim != config.dim:
        names |= _same("to_decoder", "to_decoder_model_dim")
    final_norms = config.residual == "pre"
    if final_norms:
        names |= _norm(config, "norm", "decoder.norm_out")
    for layer in range(config.depth):
        ours, theirs = f"layers.{layer}", f"decoder.layers.{layer}"
        names |= _layer(config, ours, theirs)
        if layer + 1 in config.cca_layers:
            names |= _cross(f"{ours}.retrieve", f"{theirs}.1.fn.cross_attn", null=True)
            names |= _norm(config, f"{ours}.norm_retrieve", f"{theirs}.1.norm")
    if not config.cca_layers:
        return names
    names |= _same("encoder.project", "encoder.project_out")
    if final_norms:
        names |= _norm(config, "encoder.norm", "encoder.norm_out")
    for layer in range(config.enc_depth):
        ours, theirs = f"encoder.layers.{layer}", f"encoder.layers.{layer}"
        names |= _layer(config, ours, theirs)
        if layer + 1 in config.enc_cross_layers:
            names |= _cross(f"{ours}.see_chunk", f"{theirs}.1.fn", null=False)
            names |= _norm(config, f"{ours}.norm_chunk", f"{theirs}.1.norm")
    return names


def _same(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{part}": (f"{theirs}.{part}",) for part in ("weight", "bias")}


def _norm(config: RetroConfig, ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    if config.norm == "layer":
        return _same(ours, theirs)
    gate = {f"{ours}.gate": (f"{theirs}.weight",)} if config.norm == "gated_rms" else {}
    return {f"{ours}.weight": (f"{theirs}.gamma",)} | gate


def _layer(config: RetroConfig, ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    """Self-attention and feed-forward, which layers of encoder and decoder have alike."""
    to_qkv = tuple(f"{theirs}.0.fn.to_{part}.weight" for part in "qkv")
    return {
        f"{ours}.attend.to_qkv.weight": to_qkv,
        **_same(f"{ours}.attend.to_out", f"{theirs}.0.fn.to_out"),
        **_norm(config, f"{ours}.norm_attend", f"{theirs}.0.norm"),
        **_same(f"{ours}.think.0", f"{theirs}.2.fn.ff.0"),
        **_same(f"{ours}.think.2", f"{theirs}.2.fn.ff.3"),
        **_norm(config, f"{ours}.norm_think", f"{theirs}.2.norm"),
    }


def _cross(ours: str, theirs: str, null: bool) -> dict[str, tuple[str, ...]]:
    names = {
        f"{ours}.to_q.weight": (f"{theirs}.to_q.weight",),
        f"{ours}.to_kv.weight": (f"{theirs}.to_k.weight", f"{theirs}.to_v.weight"),
        **_same(f"{ours}.to_out", f"{theirs}.to_out"),
    }
    nulls = {f"{ours}.{part}": (f"{theirs}.{part}",) for part in ("null_k", "null_v")}
    return names | nulls if null else names


def in_reference_names(config: RetroConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of our parameters (weights, gradients) -> by the reference's names."""
    return {
        theirs: part
        for ours, names in reference_names(config).items()
        for theirs, part in zip(names, tensors[ours].chunk(len(names)), strict=True)
    }


def retro_from_reference(state_dict: Mapping[str, Tensor], **arguments: Any) -> RETRO:
    """The model of RETRO-pytorch 0.3.9 with these weights, in eval mode and in their number type.

    `arguments` are those of the reference's constructor. model(tokens, retrieved) gives its logits:
    within 2e-5 in float32, within 1e-10 after .double(). Raises UserError for arguments that the
    reference has not, and for weights that do not fit them.
    """
    config = reference_config(**arguments)
    model = RETRO(config)
    given = {name: tensor for name, tensor in state_dict.items() if name not in FREQUENCIES.values()}
    if not config.cca_layers:  # it has an encoder all the same, that nothing asks
        given = {name: tensor for name, tensor in given.items() if not name.startswith("encoder.")}
    check_fit(in_reference_names(config, dict(model.named_parameters())), given)
    model.to(given["token_emb.weight"].dtype)
    with torch.no_grad():
        for ours, names in reference_names(config).items():
            model.get_parameter(ours).copy_(torch.cat([given[name] for name in names]))
        for buffer, name in _frequencies(model):
            if name in state_dict:
                buffer.copy_(state_dict[name])
    return model.eval()


def retro_to_reference(model: RETRO) -> dict[str, Tensor]:
    """The state dict of a model as RETRO-pytorch 0.3.9 reads it.

    Raises UserError for a model of another kind: the reference could not compute what it does.
    """
    config = model.config
    reference_arguments(config)  # refuses what the reference has not
    state = in_reference_names(config, dict(model.named_parameters()))
    state |= {name: buffer for buffer, name in _frequencies(model)}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def reference_optimizer(model: RETRO, lr: float = 3e-4, wd: float = 0.1) -> torch.optim.AdamW:
    """The reference's `get_optimizer`: AdamW that decays all matrices, embeddings too, and no vectors."""
    weights = list(model.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2]},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=wd)


def _frequencies(model: RETRO) -> Iterator[tuple[Tensor, str]]:
    """Each buffer of rotary frequencies with its name in the reference, which keeps one for a stack."""
    for name, buffer in model.named_buffers():
        yield buffer, FREQUENCIES["encoder" if name.startswith("encoder.") else "decoder"]
