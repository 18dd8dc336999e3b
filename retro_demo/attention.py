"""The attention layers that RETRO is made of, and the tap through which weights are seen.

Only the weights that people look at are written out (`CrossAttention`); the rest is fused. This
module knows nothing of chunks, retrieval, files or text.

Shapes: B batch, T query tokens, S context tokens, D width, E context width, H heads, P head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ROTARY_BASE = 10_000.0


class KeysValues(NamedTuple):
    """Projected context, ready to be attended to: keys and values, both (B, H, S, P)."""

    keys: Tensor
    values: Tensor


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions: x (B, H, T, P) turned by the angles of positions (T,).

    The product of a rotated query and a rotated key depends on the difference of their positions
    only. Source: Su et al. 2021 (RoFormer), section 3.2.
    """
    half = x.shape[-1] // 2
    frequencies = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.float()[:, None] * frequencies  # (T, P / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with rotary positions; always fused."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """x (B, T, D), positions (T,), mask (B or 1, 1, T, S), True where attended -> (B, T, D).

        The keys and values come back too, behind those of `past` where it is given (S counts both).
        """
        q, k, v = rearrange(self.to_qkv(x), "b t (n h p) -> n b h t p", n=3, h=self.num_heads)
        q, k = rotate(q, positions), rotate(k, positions)
        if past is not None:
            k, v = torch.cat([past.keys, k], dim=2), torch.cat([past.values, v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.dropout(self.to_out(rearrange(out, "b h t p -> b t (h p)"))), KeysValues(k, v)


class CrossAttention(nn.Module):
    """Multi-head attention to a context, its softmax written out and passed through a tap.

    A query that may see no key at all gets zeros, not an average: with nothing retrieved the layer
    adds nothing. There are no biases, so zero weights give a zero output.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.weights = nn.Identity()  # the tap: see record_attention

    def keys_values(self, context: Tensor, positions: Tensor) -> KeysValues:
        """context (B, S, E), positions (S,) -> keys and values; compute once, attend often."""
        k, v = rearrange(self.to_kv(context), "b s (n h p) -> n b h s p", n=2, h=self.num_heads)
        return KeysValues(rotate(k, positions), v)

    def forward(self, x: Tensor, context: KeysValues, positions: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, D), positions (T,), mask (B, S) True where a token stands -> (B, T, D)."""
        q = rotate(rearrange(self.to_q(x), "b t (h p) -> b h t p", h=self.num_heads), positions)
        scores = q @ context.keys.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, S)
        seen = mask[:, None, None, :]
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1) * seen
        out = self.weights(weights) @ context.values
        return self.dropout(self.to_out(rearrange(out, "b h t p -> b t (h p)")))


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, mult: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(dim, mult * dim, bias=False),
            nn.GELU(),
            nn.Linear(mult * dim, dim, bias=False),
            nn.Dropout(dropout),
        )


def key_mask(present: Tensor) -> Tensor:
    """present (B, S), True where a token stands -> (B, 1, S, S) for self-attention.

    Each token may always see itself, so that the row of a padding token is never empty (the softmax
    of an empty row is NaN); no other token sees what a padding token computes.
    """
    itself = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return (present[:, None, :] | itself)[:, None]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block, collect what passes through every tap: {name of the layer: (B, H, T, S)}."""
    seen: dict[str, Tensor] = {}

    def listen(name: str, tap: nn.Module) -> RemovableHandle:
        return tap.register_forward_hook(lambda _tap, _inputs, weights: seen.update({name: weights.detach()}))

    handles = [
        listen(name, layer.weights)
        for name, layer in model.named_modules()
        if isinstance(layer, CrossAttention)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
