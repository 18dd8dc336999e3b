"""marge-pytorch 0.2.9, in and out: its weights as one of our models, numbers and all.

Where it departs from the paper it is followed, since its weights were trained so: relevance is the
product of the target's normalized embedding and the evidence's raw one, scores are scaled by the root
of the whole width, heads are always 8, a layer with evidence has a second feed-forward layer, the first
4 decoder layers read no evidence, and what a mask hides attends to everything alike. What merely fails
there works here: masks in generation, and no need of a GPU (`interop/interop_marge_sampling.py`).

Source: github.com/lucidrains/marge-pytorch (MIT), version 0.2.9; written anew. Nothing of it is
imported. Shapes: B batch of targets, T tokens, M evidence of each target, S evidence length, N
documents, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retro_demo.errors import UserError
from retro_demo.interop.interop_marge_config import reference_arguments, reference_config
from retro_demo.interop.interop_weights import check_fit
from retro_demo.models.marge import MARGE
from retro_demo.models.marge_config import MargeConfig

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
