"""The layers that MARGE is made of; `marge.py` runs them.

Shapes: B batch of targets, T tokens, M evidence, S evidence length, N documents, D width, H heads,
P head width. Evidence that the whole batch shares has 1 in place of B.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from retro_demo.attention import AttentionShape, KeysValues, SelfAttention, rotary_frequencies, rotate
from retro_demo.blocks import make_norm
from retro_demo.marge_config import MargeConfig


class Evidence(NamedTuple):
    """Encoded evidence: states (B, M, S, D), where tokens stand (B, M, S), embeddings (B, M, D)."""

    states: Tensor
    present: Tensor
    embeddings: Tensor


class Read(NamedTuple):
    """What a layer reads of the evidence: its tokens' keys and values, relevance and mask.

    keys, values (B, H, M * S, P); relevance (B, M); seen (B, T or 1, M * S), True where a token of a
    target may look; documents M.
    """

    context: KeysValues
    relevance: Tensor
    seen: Tensor


def attention_shape(config: MargeConfig, drop_weights: float) -> AttentionShape:
    """How all attention is cut into heads, and what share of its weights it drops."""
    width = config.dim // config.num_heads
    return AttentionShape(
        config.num_heads,
        width,
        0 if config.absolute_positions else width,
        bias=config.biases,
        drop_weights=drop_weights,
        drop_output=config.dropout,
        scale=config.dim**-0.5 if config.full_width_scale else None,
        empty_reads_all=not config.blind_padding,
    )


class GEGLU(nn.Module):
    """value * gelu(gate), both halves of the last axis. Source: Shazeer 2020."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


def make_feed_forward(config: MargeConfig, mult: int) -> nn.Sequential:
    """(B, T, D) -> (B, T, D): wide by `mult`, or gated, then at two thirds of that for as many weights."""
    dim, inner = config.dim, mult * config.dim
    if config.gated:
        inner = int(mult / 3 * 2) * dim
    return nn.Sequential(
        nn.Linear(dim, 2 * inner if config.gated else inner, bias=config.biases),
        GEGLU() if config.gated else nn.GELU(),
        nn.Linear(inner, dim, bias=config.biases),
        nn.Dropout(config.dropout),
    )


class PlainLayer(nn.Module):
    """Self-attention and feed-forward, each behind its norm: encoder and base of the decoder."""

    def __init__(self, config: MargeConfig, mult: int, drop_weights: float) -> None:
        super().__init__()
        self.norm_attend = make_norm(config, config.dim)
        self.attend = SelfAttention(config.dim, attention_shape(config, drop_weights))
        self.norm_think = make_norm(config, config.dim)
        self.think = make_feed_forward(config, mult)


class EvidenceLayer(nn.Module):
    """A decoder layer that reads the evidence between self-attention and feed-forward."""

    def __init__(self, config: MargeConfig) -> None:
        super().__init__()
        self.norm_attend = make_norm(config, config.dim)
        self.attend = SelfAttention(config.dim, attention_shape(config, config.dec_attn_dropout))
        if config.extra_ff:
            self.norm_ponder = make_norm(config, config.dim)
            self.ponder = make_feed_forward(config, config.ff_mult)
        self.norm_read = make_norm(config, config.dim)
        self.read = EvidenceAttention(config)
        self.norm_think = make_norm(config, config.dim)
        self.think = make_feed_forward(config, config.dec_ff_mult)


class EvidenceAttention(nn.Module):
    """Attention over the tokens of all evidence, biased by beta times the relevance of their document.

    softmax over all M * S tokens of Q K / sqrt(P) + beta * f(x, z): the loss reaches the relevance
    through this bias alone. Source: Lewis et al. 2020, section 2.2; one beta for each layer.
    """

    frequencies: Tensor

    def __init__(self, config: MargeConfig) -> None:
        super().__init__()
        shape = attention_shape(config, config.dec_attn_dropout)
        self.num_heads = shape.num_heads
        self.to_q = nn.Linear(config.dim, config.dim, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * config.dim, bias=False)
        self.to_out = nn.Linear(config.dim, config.dim, bias=config.biases)
        self.beta = nn.Parameter(torch.tensor(float(config.beta_start)))
        self.null_k = nn.Parameter(torch.zeros(config.dim)) if config.abstain else None
        self.shifted_keys = config.shifted_keys
        self.scale = shape.dim_head**-0.5 if shape.scale is None else shape.scale
        self.empty_reads_all = shape.empty_reads_all
        self.drop_weights = nn.Dropout(shape.drop_weights)
        self.dropout = nn.Dropout(shape.drop_output)
        self.weights = nn.Identity()  # the tap: see attention.record_attention
        self.register_buffer("frequencies", rotary_frequencies(shape.rotary_dims), persistent=False)

    def keys_values(self, states: Tensor) -> KeysValues:
        """states (B, M, S, D) -> keys and values (B, H, M * S, P); places count from 0 in each document.

        With `shifted_keys` a token is found by the token before it, as in RETRO's cca.py.
        """
        k, v = rearrange(self.to_kv(states), "b m s (n h p) -> n b h m s p", n=2, h=self.num_heads)
        if self.shifted_keys:
            k = F.pad(k[..., :-1, :], (0, 0, 1, 0))
        places = torch.arange(states.shape[2], device=states.device).repeat(states.shape[1])
        k, v = (rearrange(part, "b h m s p -> b h (m s) p") for part in (k, v))
        return KeysValues(rotate(k, places, self.frequencies), v)

    def forward(self, x: Tensor, positions: Tensor, read: Read) -> tuple[Tensor, Tensor]:
        """x (B, T, D), positions (T,) -> (B, T, D), zeros where no token of evidence may be seen.

        Beside it the scores of content alone (B, H, T, M * S), before relevance and masks.
        """
        q = rearrange(self.to_q(x), "b t (h p) -> b h t p", h=self.num_heads)
        q = rotate(q, positions, self.frequencies)
        scores = self._products(q, read.context.keys.transpose(-1, -2)) * self.scale
        documents = read.relevance.shape[1]
        length = scores.shape[-1] // max(1, documents)
        bias = (self.beta * read.relevance).repeat_interleave(length, dim=1)
        seen = read.seen[:, None]
        lowest = -torch.finfo(scores.dtype).max
        biased = (scores + bias[:, None, None]).masked_fill(~seen, lowest)
        if self.null_k is not None:  # one more key, which is always seen and has nothing to say
            null = rearrange(self.null_k, "(h p) -> 1 h p 1", h=self.num_heads)
            biased = torch.cat([biased, q @ null * self.scale], dim=-1)
        weights = biased.softmax(dim=-1)[..., : scores.shape[-1]]
        if not self.empty_reads_all:
            weights = weights * seen
        weights = self.drop_weights(self.weights(weights))
        out = self.to_out(rearrange(self._products(weights, read.context.values), "b h t p -> b t (h p)"))
        if not self.empty_reads_all and self.to_out.bias is not None:
            out = out * read.seen.any(dim=-1, keepdim=True)
        return self.dropout(out), scores

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        """left (B, H, T, X) @ right (B or 1, H, X, Y); what is shared is one product, not B of them."""
        if len(right) == len(left):
            return left @ right
        flat = rearrange(left, "b h t x -> 1 h (b t) x") @ right
        return rearrange(flat, "1 h (b t) y -> b h t y", b=len(left))
