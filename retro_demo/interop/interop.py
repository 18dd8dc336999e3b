"""RETRO-pytorch 0.3.9, in and out: its weights as one of our models, numbers and all.

Its faults are reproduced, since its weights were trained with them: the positions in chunked
cross-attention are shifted twice, `heads` is ignored (always 8), and with `use_deepnet` a layer's
cross-attention is left out with its norm where nothing is retrieved. What merely fails there works
here: one neighbor as (B, L, R), and a loss in eval mode.

Source: github.com/lucidrains/RETRO-pytorch (MIT), version 0.3.9; written anew. Nothing of it is
imported. Axes of tensors are as in `models/retro.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from retro_demo.interop.interop_config import reference_arguments, reference_config
from retro_demo.interop.interop_weights import check_fit
from retro_demo.models.retro import RETRO
from retro_demo.models.retro_config import RetroConfig

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
