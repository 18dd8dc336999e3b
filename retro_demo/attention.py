"""The attention layers that the models are made of, and the tap through which weights are seen.

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


class AttentionShape(NamedTuple):
    """How an attention is cut into heads, and what it drops in training."""

    num_heads: int
    dim_head: int
    rotary_dims: int  # of each head; the rest of it knows no positions
    bias: bool = False  # of the output projection
    drop_weights: float = 0.0
    drop_output: float = 0.0
    scale: float | None = None  # of the scores; None: the inverse root of a head's width
    empty_reads_all: bool = False  # a query that may see nothing averages over everything


class KeysValues(NamedTuple):
    """Projected context, ready to be attended to: keys and values, both (B, H, S, P)."""

    keys: Tensor
    values: Tensor


class Memory:
    """The keys and values of all tokens that a layer has read so far; grows with every reading."""

    def __init__(self) -> None:
        self.kept: KeysValues | None = None

    def append(self, new: KeysValues) -> KeysValues:
        """Everything that was read, `new` at its end."""
        if self.kept is not None:
            new = KeysValues(*(torch.cat(pair, dim=2) for pair in zip(self.kept, new, strict=True)))
        self.kept = new
        return new


def rotary_frequencies(dims: int) -> Tensor:
    """Angle per position of each of dims / 2 pairs: from 1 down to almost 1 / 10000."""
    half = dims // 2
    return ROTARY_BASE ** (-torch.arange(half, dtype=torch.float32) / half)


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary positions: x (B, H, T, P) turned by the angles of positions (T,).

    The product of a rotated query and a rotated key depends on the difference of their positions
    only. The first two dimensions per frequency turn, the rest of P passes through; angles are
    never computed in half precision. Source: Su et al. 2021 (RoFormer), section 3.2.
    """
    half = frequencies.shape[0]
    exact = torch.promote_types(x.dtype, torch.float32)
    angles = positions.to(exact)[:, None] * frequencies.to(exact)  # (T, half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat(turned + [rest] if rest.shape[-1] else turned, dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with rotary positions; always fused."""

    frequencies: Tensor

    def __init__(self, dim: int, shape: AttentionShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        inner = shape.num_heads * shape.dim_head
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=shape.bias)
        self.drop_weights = shape.drop_weights
        self.dropout = nn.Dropout(shape.drop_output)
        self.scale = shape.scale
        self.empty_reads_all = shape.empty_reads_all
        self.register_buffer("frequencies", rotary_frequencies(shape.rotary_dims), persistent=False)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, memory: Memory | None = None) -> Tensor:
        """x (B, T, D), positions (T,), mask (B or 1, 1, T, S), True where attended -> (B, T, D).

        With a `memory` the tokens attend to those before them too (S counts both), and are kept in it.
        """
        q, k, v = rearrange(self.to_qkv(x), "b t (n h p) -> n b h t p", n=3, h=self.num_heads)
        q, k = rotate(q, positions, self.frequencies), rotate(k, positions, self.frequencies)
        if memory is not None:
            k, v = memory.append(KeysValues(k, v))
        if self.empty_reads_all:  # a query of zeros likes everything alike, and learns nothing from it
            empty = ~mask.any(dim=-1, keepdim=True)
            q, mask = q.masked_fill(empty, 0.0), mask | empty
        dropped = self.drop_weights if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropped, scale=self.scale)
        return self.dropout(self.to_out(rearrange(out, "b h t p -> b t (h p)")))


class CrossAttention(nn.Module):
    """Multi-head attention to a context, its softmax written out and passed through a tap.

    A query that may see no key at all gets zeros, not an average: with nothing retrieved the layer
    adds nothing. There are no biases by default, so zero weights give a zero output.

    With `null` or `abstain` there is one more key, learned and always seen, to turn to where no other is
    of use: with `null` it has a value, learned too, with `abstain` it writes nothing. The tap shows the
    others' weights; what they lack to 1 is its.
    """

    frequencies: Tensor

    def __init__(
        self, dim: int, context_dim: int, shape: AttentionShape, *, null: bool = False, abstain: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        inner = shape.num_heads * shape.dim_head
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=shape.bias)
        self.null_k = nn.Parameter(torch.zeros(inner)) if null or abstain else None
        self.null_v = nn.Parameter(torch.zeros(inner)) if null else None
        self.drop_weights = nn.Dropout(shape.drop_weights)
        self.dropout = nn.Dropout(shape.drop_output)
        self.weights = nn.Identity()  # the tap: see record_attention
        self.register_buffer("frequencies", rotary_frequencies(shape.rotary_dims), persistent=False)

    def keys_values(self, context: Tensor, positions: Tensor) -> KeysValues:
        """context (B, S, E), positions (S,) -> keys and values; compute once, attend often."""
        return self.placed(self.project(context), positions)

    def project(self, context: Tensor) -> KeysValues:
        """context (B, S, E) -> keys that know no positions yet, and values."""
        return KeysValues(*rearrange(self.to_kv(context), "b s (n h p) -> n b h s p", n=2, h=self.num_heads))

    def placed(self, projected: KeysValues, positions: Tensor) -> KeysValues:
        """What `project` gave, its keys at their positions (S,); behind the null key where there is one."""
        k, v = rotate(projected.keys, positions, self.frequencies), projected.values
        if self.null_k is not None:
            value = torch.zeros_like(self.null_k) if self.null_v is None else self.null_v
            k, v = self._behind_null(self.null_k, k), self._behind_null(value, v)
        return KeysValues(k, v)

    def _behind_null(self, null: Tensor, x: Tensor) -> Tensor:
        """null (H * P), x (B, H, S, P) -> (B, H, 1 + S, P)."""
        first = rearrange(null, "(h p) -> 1 h 1 p", h=self.num_heads).expand(len(x), -1, -1, -1)
        return torch.cat([first, x], dim=2)

    def forward(self, x: Tensor, context: KeysValues, positions: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, D), positions (T,), mask (B, S) True where a token stands -> (B, T, D)."""
        q = rearrange(self.to_q(x), "b t (h p) -> b h t p", h=self.num_heads)
        q = rotate(q, positions, self.frequencies)
        scores = q @ context.keys.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, S)
        anything = mask.any(dim=-1) if self.null_v is None else torch.ones_like(mask[:, 0])
        if self.null_k is not None:
            mask = F.pad(mask, (1, 0), value=True)
        seen = mask[:, None, None, :]
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1) * seen
        if self.null_k is None:
            weights = self.weights(weights)
        else:
            weights = torch.cat([weights[..., :1], self.weights(weights[..., 1:])], dim=-1)
        out = self.drop_weights(weights) @ context.values
        out = self.to_out(rearrange(out, "b h t p -> b t (h p)"))
        if self.to_out.bias is not None:  # where nothing is seen, the bias must not be added either
            out = out * anything[:, None, None]
        return self.dropout(out)


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between: (B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        dim: int,
        mult: int,
        *,
        bias: bool = False,
        drop_hidden: float = 0.0,
        drop_output: float = 0.0,
    ) -> None:
        super().__init__(
            nn.Linear(dim, mult * dim, bias=bias),
            nn.Sequential(nn.GELU(), nn.Dropout(drop_hidden)),
            nn.Linear(mult * dim, dim, bias=bias),
            nn.Dropout(drop_output),
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

    taps = {name: getattr(layer, "weights", None) for name, layer in model.named_modules()}
    handles = [listen(name, tap) for name, tap in taps.items() if isinstance(tap, nn.Identity)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
