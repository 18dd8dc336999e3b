"""marge-pytorch 0.2.9, in and out: its weights and its constructor's arguments as ours, number by number.

Where it departs from the paper it is followed, since its weights were trained so: relevance is the
product of the target's normalized embedding and the evidence's raw one, scores are scaled by the root
of the whole width, heads are always 8, a layer with evidence has a second feed-forward layer, the first
4 decoder layers read no evidence, and where a mask hides everything, attention is spread evenly. What merely
fails there works here: masks in generation, and no need of a GPU (`benchmarks/reference_marge_sampling.py`).

Source: github.com/lucidrains/marge-pytorch (MIT), version 0.2.9; written anew. Nothing of it is
imported. Shapes: B batch of targets, T tokens, M evidence of each target, S evidence length, N
documents, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retro_demo.errors import UserError
from retro_demo.interop.retro_pytorch import check_fit, check_shape
from retro_demo.models.config import MargeConfig
from retro_demo.models.marge import MARGE

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
class MargePytorchArguments:
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
"""Which setting of MargeConfig an argument of the reference sets; `distill_attn` lets the last one count."""


def reference_config(**arguments: Any) -> MargeConfig:
    """The shape of a reference model with these constructor arguments; raises UserError for bad ones."""
    _check_names(arguments)
    given = MargePytorchArguments(**arguments)
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
    known = {field.name: field.default for field in fields(MargePytorchArguments)}
    if unknown := sorted(set(arguments) - set(known)):
        raise UserError(
            f"Marge of marge-pytorch 0.2.9 has no argument {', '.join(unknown)}; it has {', '.join(known)}."
        )
    if missing := [name for name, default in known.items() if default is MISSING and name not in arguments]:
        raise UserError(f"Marge of marge-pytorch 0.2.9 cannot be made without {', '.join(missing)}.")


def _check_whole(given: MargePytorchArguments, name: str, least: int) -> None:
    value = getattr(given, name)
    if type(value) is not int or value < least:
        raise UserError(f"{name} is {value!r}; give a whole number from {least} up.")


def _mult(given: MargePytorchArguments, name: str) -> int:
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


EMBEDDINGS = ("encoder.token_emb.weight", "decoder.net.token_emb.weight")
"""One tensor under two names; a state dict has both, a list of parameters the first only."""


def reference_names(config: MargeConfig) -> dict[str, str]:
    """Each parameter of ours -> the reference's; the embeddings under the first of their names."""
    names = {
        "embedding.weight": EMBEDDINGS[0],
        "encoder_positions.weight": "encoder.pos_emb.weight",
        "decoder_positions.weight": "decoder.net.pos_emb.weight",
        "first": "encoder.layers.cls",
        **_same("to_logits", "decoder.net.to_logits"),
    }
    for layer in range(config.enc_depth):
        place = layer - config.retrieval_depth
        part = f"encoder_head.{layer}" if place < 0 else f"encoder_tail.{place}"
        names |= _layer(f"encoder_layers.{layer}", f"encoder.layers.{part}", "think")
    for layer in range(config.base_depth):
        names |= _layer(f"base_layers.{layer}", f"decoder.net.layers.decoder_head.{layer}", "think")
    for layer in range(config.dec_depth):
        ours, theirs = f"layers.{layer}", f"decoder.net.layers.decoder_tail.{layer}"
        names |= _layer(ours, theirs, "ponder")
        names |= _same(f"{ours}.norm_read", f"{theirs}.2.norm")
        names |= {f"{ours}.read.{part}": f"{theirs}.2.fn.{part}" for part in ("beta", "to_q.weight")}
        names[f"{ours}.read.to_kv.weight"] = f"{theirs}.2.fn.to_kv.weight"
        names |= _same(f"{ours}.read.to_out", f"{theirs}.2.fn.to_out")
        names |= _feed_forward(f"{ours}.norm_think", f"{ours}.think", f"{theirs}.3")
    return names


def _same(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def _layer(ours: str, theirs: str, think: str) -> dict[str, str]:
    """Self-attention and the feed-forward layer behind it, which all layers have alike."""
    return {
        **_same(f"{ours}.norm_attend", f"{theirs}.0.norm"),
        f"{ours}.attend.to_qkv.weight": f"{theirs}.0.fn.to_qkv.weight",
        **_same(f"{ours}.attend.to_out", f"{theirs}.0.fn.to_out"),
        **_feed_forward(f"{ours}.norm_{think}", f"{ours}.{think}", f"{theirs}.1"),
    }


def _feed_forward(norm: str, ours: str, theirs: str) -> dict[str, str]:
    return {
        **_same(norm, f"{theirs}.norm"),
        **_same(f"{ours}.0", f"{theirs}.fn.net.0"),
        **_same(f"{ours}.2", f"{theirs}.fn.net.3"),
    }


def in_reference_names(config: MargeConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of our parameters (weights, gradients) -> by the reference's names."""
    return {
        theirs: tensors[ours][None] if ours == "first" else tensors[ours]  # (D,) there is (1, D)
        for ours, theirs in reference_names(config).items()
    }


def marge_from_reference(state_dict: Mapping[str, Tensor], **arguments: Any) -> MARGE:
    """The model of marge-pytorch 0.2.9 with these weights, in eval mode and in their number type.

    `arguments` are those of the reference's constructor. model(target, evidence (B, M, S)) gives its
    logits: within 2e-5 in float32, within 1e-10 after .double(). Raises UserError for arguments that
    the reference has not, and for weights that do not fit them.
    """
    config = reference_config(**arguments)
    model = MARGE(config)
    given = _with_one_embedding(state_dict)
    check_fit(in_reference_names(config, dict(model.named_parameters())), given)
    model.to(given[EMBEDDINGS[0]].dtype)
    with torch.no_grad():
        for ours, theirs in reference_names(config).items():
            weight = model.get_parameter(ours)
            weight.copy_(given[theirs].reshape(weight.shape))
    return model.eval()


def _with_one_embedding(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with their embeddings under one name; raises UserError where the two names disagree."""
    given = dict(state_dict)
    found = [given.pop(name) for name in EMBEDDINGS if name in given]
    if len(found) == 2 and not torch.equal(*found):
        raise UserError(
            f"{' and '.join(EMBEDDINGS)} differ, but encoder and decoder share one table of embeddings. "
            "Save the weights of a whole Marge again."
        )
    if found:
        given[EMBEDDINGS[0]] = found[0]
    return given


def marge_to_reference(model: MARGE) -> dict[str, Tensor]:
    """The state dict of a model as marge-pytorch 0.2.9 reads it.

    Raises UserError for a model of another kind: the reference could not compute what it does.
    """
    reference_arguments(model.config)  # refuses what the reference has not
    state = in_reference_names(model.config, dict(model.named_parameters()))
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    return state | {EMBEDDINGS[1]: state[EMBEDDINGS[0]]}


class ReferenceLoss(NamedTuple):
    """What the reference's forward gives (`total`), and what it is made of; all scalars, in nats."""

    total: Tensor
    lm: Tensor
    distill: Tensor | None  # before its coefficient; None without distill_attn


def reference_embeds(model: MARGE, documents: Tensor, masks: Tensor | None = None) -> Tensor:
    """The reference's `get_embeds`: documents (N, S) -> (N, D), each of length 1."""
    return F.normalize(model.embed(documents, masks), dim=-1)


def reference_loss(
    model: MARGE,
    evidence: Tensor,
    target: Tensor,
    target_embeds: Tensor,
    src_mask: Tensor | None = None,
    tgt_mask: Tensor | None = None,
) -> ReferenceLoss:
    """The reference's forward: evidence (B, M, S), target (B, T), target_embeds (B, D) -> its loss.

    Masks are shaped as what they hide. The mean runs over all tokens but those with id 0, whatever
    `tgt_mask` says; as there, it is NaN where there is no other.
    """
    out = model(
        target[:, :-1],
        evidence,
        target_mask=None if tgt_mask is None else tgt_mask[:, :-1],
        evidence_mask=src_mask,
        target_embeds=target_embeds,
    )
    lm = F.cross_entropy(out.logits.transpose(1, 2), target[:, 1:], ignore_index=model.config.pad_id)
    if out.distill_loss is None:
        return ReferenceLoss(lm, lm, None)
    return ReferenceLoss(lm + model.config.distill * out.distill_loss, lm, out.distill_loss)
