"""The layers that MARGE is made of; `models/marge.py` runs them.

Shapes: B batch of targets, T tokens, M evidence, S evidence length, N documents, D width, H heads,
P head width. Evidence that the whole batch shares has 1 in place of B.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from retro_demo.models.config import MargeConfig
from retro_demo.models.layers import (
    AttentionShape,
    KeysValues,
    Linear,
    Memory,
    SelfAttention,
    Tap,
    heads_of,
    joined,
    make_norm,
    rotary_frequencies,
    rotate,
)


class Evidence(NamedTuple):
    """Encoded evidence: states (B, M, S, D), where tokens stand (B, M, S), embeddings (B, M, D)."""

    states: Tensor
    present: Tensor
    embeddings: Tensor


class Read(NamedTuple):
    """What a layer reads of the evidence: its tokens' keys and values, and what is added to their scores.

    keys, values (B, H, M * S, P); bias (B, 1, T or 1, M * S): beta times relevance, next to minus infinity
    where a token of a target may not look; anything (B, T or 1, 1), whether it may look anywhere.
    """

    context: KeysValues
    bias: Tensor
    anything: Tensor


@dataclass
class WriteCache:
    """The evidence, and what the tokens so far leave behind for the next one; see `MARGE.extend`."""

    relevance: Tensor  # (B, M)
    seen: Tensor  # (B, 1, M * S)
    contexts: list[KeysValues]  # by layer with evidence
    memories: dict[str, Memory] = field(default_factory=lambda: defaultdict(Memory))
    reads: list[Read] = field(default_factory=list)  # made of these once, by layer
    output: Tensor | None = None  # (D, V): the output layer, laid out for single tokens
    length: int = 0


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
        Linear(dim, 2 * inner if config.gated else inner, bias=config.biases),
        GEGLU() if config.gated else nn.GELU(),
        Linear(inner, dim, bias=config.biases),
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

    def forward(
        self, x: Tensor, places: Tensor, attends: Tensor | None, memory: Memory | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); places, masks and memory are `SelfAttention`'s."""
        x = x + self.attend(self.norm_attend(x), places, attends, memory)
        return x + self.think(self.norm_think(x))


class EvidenceLayer(nn.Module):
    """A decoder layer that reads the evidence between self-attention and feed-forward."""

    def __init__(self, config: MargeConfig) -> None:
        super().__init__()
        self.norm_attend = make_norm(config, config.dim)
        self.attend = SelfAttention(config.dim, attention_shape(config, config.dec_attn_dropout))
        self.ponders = config.extra_ff
        if self.ponders:
            self.norm_ponder = make_norm(config, config.dim)
            self.ponder = make_feed_forward(config, config.ff_mult)
        self.norm_read = make_norm(config, config.dim)
        self.read = EvidenceAttention(config)
        self.norm_think = make_norm(config, config.dim)
        self.think = make_feed_forward(config, config.dec_ff_mult)

    def forward(
        self, x: Tensor, places: Tensor, attends: Tensor | None, read: Read, memory: Memory | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) -> (B, T, D), and the scores of its look at the evidence (see `EvidenceAttention`)."""
        x = x + self.attend(self.norm_attend(x), places, attends, memory)
        if self.ponders:
            x = x + self.ponder(self.norm_ponder(x))
        look, scores = self.read(self.norm_read(x), places, read)
        x = x + look
        return x + self.think(self.norm_think(x)), scores


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
        self.to_q = Linear(config.dim, config.dim, bias=False)
        self.to_kv = Linear(config.dim, 2 * config.dim, bias=False)
        self.to_out = Linear(config.dim, config.dim, bias=config.biases)
        self.beta = nn.Parameter(torch.tensor(float(config.beta_start)))
        self.null_k = nn.Parameter(torch.zeros(config.dim)) if config.abstain else None
        self.shifted_keys = config.shifted_keys
        self.gives_scores = config.distill > 0
        self.scale = shape.dim_head**-0.5 if shape.scale is None else shape.scale
        self.empty_reads_all = shape.empty_reads_all
        self.drop_weights = nn.Dropout(shape.drop_weights)
        self.dropout = nn.Dropout(shape.drop_output)
        self.weights = Tap()
        self.register_buffer("frequencies", rotary_frequencies(shape.rotary_dims), persistent=False)

    def keys_values(self, states: Tensor) -> KeysValues:
        """states (B, M, S, D) -> keys and values (B, H, M * S, P); places count from 0 in each document.

        With `shifted_keys` a token is found by the token before it, as in RETRO's models/retro.py.
        """
        places = torch.arange(states.shape[2], device=states.device).repeat(states.shape[1])
        projected = self.to_kv(states)
        if self.shifted_keys:
            keys, values = projected.chunk(2, dim=-1)
            projected = torch.cat([F.pad(keys[:, :, :-1], (0, 0, 1, 0)), values], dim=-1)
        k, v = heads_of(projected.flatten(1, 2), 2, self.num_heads)
        return KeysValues(rotate(k, places, self.frequencies), v)

    def ready(self, context: KeysValues, relevance: Tensor, seen: Tensor) -> Read:
        """Evidence of this relevance (B, M), seen (B, T or 1, M * S) True where a target's token may look."""
        tokens = context.keys.shape[2] // max(1, relevance.shape[1])  # of each document
        spread = relevance[:, :, None].expand(-1, -1, tokens).flatten(1)
        bias = torch.where(seen, (self.beta * spread)[:, None], -torch.finfo(spread.dtype).max)
        return Read(context, bias[:, None], seen.any(dim=-1, keepdim=True))

    def forward(self, x: Tensor, positions: Tensor, read: Read) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), positions (T,) -> (B, T, D), zeros where no token of evidence may be seen.

        Beside it the scores of content alone (B, H, T, M * S), before relevance and masks, for distillation.
        """
        q = rotate(heads_of(self.to_q(x), 1, self.num_heads)[0], positions, self.frequencies) * self.scale
        wanted = torch.is_grad_enabled() or self.weights.shown or self.gives_scores
        if wanted or self.null_k is not None or not read.bias.shape[-1]:
            out, scores = self._read(q, read)  # fused, the bias would get no gradient
        else:
            shape, scores = (len(q), -1, -1, -1), None
            keys, values = read.context.keys.expand(shape), read.context.values.expand(shape)
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=read.bias, scale=1.0)
        out = self.to_out(joined(out))
        if not self.empty_reads_all:
            out = out * read.anything
        return self.dropout(out), scores

    def _read(self, q: Tensor, read: Read) -> tuple[Tensor, Tensor]:
        """Attention written out, and its scores: q (B, H, T, P) -> (B, H, T, P), (B, H, T, M * S)."""
        scores = self._products(q, read.context.keys.transpose(-1, -2))
        biased = scores + read.bias
        if self.null_k is not None:  # one more key, which is always seen and has nothing to say
            null = self.null_k.view(1, self.num_heads, -1, 1)
            biased = torch.cat([biased, q @ null], dim=-1)
        weights = biased.softmax(dim=-1)[..., : scores.shape[-1]]
        if self.weights.shown and not self.empty_reads_all:
            weights = weights * read.anything[:, None]
        return self._products(self.drop_weights(self.weights(weights)), read.context.values), scores

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        """left (B, H, T, X) @ right (B or 1, H, X, Y); what is shared is one product, not B of them."""
        if len(right) == len(left):
            return left @ right
        flat = rearrange(left, "b h t x -> 1 h (b t) x") @ right
        return rearrange(flat, "1 h (b t) y -> b h t y", b=len(left))
