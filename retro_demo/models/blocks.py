"""What the layers of RETRO's encoder and decoder are put together from: norms, residuals, first weights.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.models.attention import AttentionShape
from retro_demo.models.linear import Linear
from retro_demo.models.retro_config import RetroConfig

INIT_STD = 0.02
COPY_SHARPNESS = 2.0  # a state scores itself about so many times the root of a head's width
COPY_STRENGTH = 0.3  # of what a copier writes at first, beside the size that it read


class GatedRMSNorm(nn.Module):
    """RMSNorm times a learned gate: norm(x) * sigmoid(gate * x), x (..., D)."""

    def __init__(self, dim: int, eps: float | None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.gate = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps) * (x * self.gate).sigmoid()


class Norms(Protocol):
    """What a config says of norms."""

    @property
    def norm(self) -> str: ...

    @property
    def norm_eps(self) -> float: ...


def make_norm(config: Norms, dim: int) -> nn.Module:
    """The norm that `config` asks for, of this width."""
    if config.norm == "layer":
        return nn.LayerNorm(dim, eps=config.norm_eps or 1e-5)
    if config.norm == "gated_rms":
        return GatedRMSNorm(dim, config.norm_eps or None)
    return nn.RMSNorm(dim, eps=config.norm_eps or None)


def make_final_norm(config: RetroConfig, dim: int) -> nn.Module:
    """The norm at the end of a stack; post-norm needs none."""
    wanted = config.final_norm and config.residual == "pre"
    return make_norm(config, dim) if wanted else nn.Identity()


def attention_shape(config: RetroConfig, dim: int, drop_weights: float) -> AttentionShape:
    """How attention in a layer of width `dim` is cut into heads."""
    width = config.head_width(dim)
    return AttentionShape(
        config.num_heads,
        width,
        config.rotary_dims or width,
        bias=config.biases,
        drop_weights=drop_weights,
        drop_output=config.dropout,
    )


def residual(x: Tensor, norm: nn.Module, inner: Callable[[Tensor], Tensor], scale: float | None) -> Tensor:
    """x (B, T, D) + inner(norm(x)); with a `scale` DeepNet's post-norm: norm(scale * x + inner(x))."""
    if scale is None:
        return x + inner(norm(x))
    return norm(scale * x + inner(x))


def draw_weights(model: nn.Module, depth: int) -> None:
    """Draw all matrices from N(0, 0.02); what writes into the residual stream starts smaller.

    The embeddings also are the output layer: at 0.02 the first loss is close to ln V. Biases
    start at 0.
    """
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(weight)
        if weight.ndim < 2:
            continue
        writes = name.endswith(("to_out.weight", "think.2.weight"))
        nn.init.normal_(weight, std=INIT_STD / (2 * depth) ** 0.5 if writes else INIT_STD)


class CopyingAttention(Protocol):
    """An attention to a context with these projections."""

    to_q: Linear
    to_kv: Linear
    to_out: Linear


@torch.no_grad()
def draw_copying_weights(layer: CopyingAttention) -> None:
    """Let cross-attention begin as a copier: like finds like, and what is found is written as it is.

    Queries and keys share one random projection, so the same state in text and neighbor scores
    highest; the output projection is the transpose of an orthogonal value projection, so a token is
    written in the direction of its own embedding.
    """
    inner, dim = layer.to_q.weight.shape
    keys, values = layer.to_kv.weight.chunk(2)
    layer.to_q.weight.normal_(std=(COPY_SHARPNESS / dim) ** 0.5)
    keys.copy_(layer.to_q.weight)
    nn.init.orthogonal_(values)
    layer.to_out.weight.copy_(COPY_STRENGTH * values.T)


@torch.no_grad()
def draw_deepnet_weights(layers: nn.Module, beta: float) -> None:
    """Draw the matrices of a stack as DeepNet does: values, outputs and feed-forward layers smaller.

    Queries, keys and values lie in one matrix here; each has the spread of a matrix of its own.
    Source: Wang et al. 2022 (DeepNet), figure 2.
    """
    for name, weight in layers.named_parameters():
        if weight.ndim < 2:
            continue
        parts = 3 if "to_qkv" in name else 2 if "to_kv" in name else 1
        for number, part in enumerate(weight.chunk(parts), start=1):
            small = "to_out" in name or "think" in name or 1 < parts == number  # the last part: values
            nn.init.xavier_normal_(part, gain=beta if small else 1.0)
