"""A decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Its weights are frozen, in any precision of weight_only.py; the states between its layers are float32 in all
of them. Blocks can be run by parts (`run_blocks`), each with its own length in the cache. This module does
not know files, text or retrieval.

Shapes: B batch, T tokens, D width, H heads, G heads of keys and values, P head width, F width of the
feed-forward, V vocabulary, S cached tokens.

Source: Touvron et al. 2023 (LLaMA, Llama 2); Ainslie et al. 2023 (grouped queries); Llama 3's stretched
rotations; Qwen2's biases and Qwen3's norms of queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.errors import UserError
from retro_demo.models.weight_only import BYTES, frozen_linear, table


@dataclass(frozen=True)
class RopeScaling:
    """How rotations are slowed for texts longer than those of the first training.

    `linear` slows all by `factor`; `llama3` leaves fast ones, slows slow ones, and blends between.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of such a network. Defaults: a tiny one for trials."""

    vocab_size: int = 256
    dim: int = 64
    depth: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    ff_dim: int = 128
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    eps: float = 1e-5
    tied: bool = True  # the output layer is the embedding
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    max_len: int = 2048  # tokens that it may read; no more than a sliding window, which is not implemented

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight that `Llama` reads, in the order in which it does."""
        dim, both = self.dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, dim), "norm": (dim,)}
        if not self.tied:
            shapes["head"] = (self.vocab_size, dim)
        for i in range(self.depth):
            shapes |= {f"{i}.attn_norm": (dim,), f"{i}.qkv": (both, dim)}
            if self.qkv_bias:
                shapes[f"{i}.qkv_bias"] = (both,)
            if self.qk_norm:
                shapes |= {f"{i}.q_norm": (self.head_dim,), f"{i}.k_norm": (self.head_dim,)}
            shapes |= {
                f"{i}.out": (dim, self.num_heads * self.head_dim),
                f"{i}.ff_norm": (dim,),
                f"{i}.gate_up": (2 * self.ff_dim, dim),
                f"{i}.down": (dim, self.ff_dim),
            }
        return shapes

    def num_bytes(self, precision: str = "float32") -> int:
        """What the weights take in memory."""
        sizes = {name: math.prod(shape) for name, shape in self.weight_shapes().items()}
        tables = sum(sizes[name] for name in ("embed", "head") if name in sizes)
        of_tables = max(BYTES[precision], 1.0) * tables
        return int(of_tables + BYTES[precision] * (sum(sizes.values()) - tables))


class KVCache:
    """Keys and values that the blocks have read so far; each block has a length of its own.

    All rows of a batch are equally long. Room grows by doubling; give `room` where the length is known.
    It serves reading without gradients; made in inference mode, it is used there only.
    """

    def __init__(
        self, config: LlamaConfig, batch: int = 1, room: int = 256, device: str | torch.device = "cpu"
    ):
        shape = (batch, config.num_kv_heads, max(1, min(room, config.max_len)), config.head_dim)
        self.lengths = [0] * config.depth
        self._keys = [torch.empty(shape, device=device) for _ in range(config.depth)]
        self._values = [torch.empty(shape, device=device) for _ in range(config.depth)]

    def append(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, G, T, P) after what block `block` has read; gives all of it, (B, G, S + T, P) each."""
        start = self.lengths[block]
        stop = start + keys.shape[2]
        room = self._keys[block].shape[2]
        if stop > room:
            more = max(stop, 2 * room) - room
            self._keys[block] = F.pad(self._keys[block], (0, 0, 0, more))
            self._values[block] = F.pad(self._values[block], (0, 0, 0, more))
        self._keys[block][:, :, start:stop] = keys
        self._values[block][:, :, start:stop] = values
        self.lengths[block] = stop
        return self._keys[block][:, :, :stop], self._values[block][:, :, :stop]

    def fork(self, copies: int = 1) -> KVCache:
        """A cache of its own that goes on from here; with `copies` each row of the batch stands so often."""
        other = KVCache.__new__(KVCache)
        other.lengths = list(self.lengths)
        other._keys = [k.repeat_interleave(copies, 0) if copies > 1 else k.clone() for k in self._keys]
        other._values = [v.repeat_interleave(copies, 0) if copies > 1 else v.clone() for v in self._values]
        return other

    def truncate(self, length: int) -> None:
        """Forget what stands from token `length` on, in every block."""
        self.lengths = [min(length, there) for there in self.lengths]


class LlamaBlock(nn.Module):
    """Attention over the tokens so far, then the gated feed-forward, each added to the stream."""

    def __init__(
        self, config: LlamaConfig, index: int, read: Callable[[str], Tensor], precision: str
    ) -> None:
        super().__init__()
        heads, both = config.num_heads, config.num_heads + config.num_kv_heads
        self.index, self.heads, self.kv_heads, self.rotated = index, heads, config.num_kv_heads, both
        self.head_dim, self.eps, self.shape = config.head_dim, config.eps, (config.dim,)
        bias = read(f"{index}.qkv_bias") if config.qkv_bias else None
        self.attn_norm = _kept(read(f"{index}.attn_norm"))
        self.qkv = frozen_linear(read(f"{index}.qkv"), bias, precision)
        self.out = frozen_linear(read(f"{index}.out"), None, precision)
        self.ff_norm = _kept(read(f"{index}.ff_norm"))
        self.gate_up = frozen_linear(read(f"{index}.gate_up"), None, precision)
        self.down = frozen_linear(read(f"{index}.down"), None, precision)
        self.q_norm = _kept(read(f"{index}.q_norm")) if config.qk_norm else None
        self.k_norm = _kept(read(f"{index}.k_norm")) if config.qk_norm else None

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, mask: Tensor | None
    ) -> Tensor:
        """h (B, T, D), rotations (T, P), mask (T, S + T) or None -> (B, T, D)."""
        x = self.qkv(F.rms_norm(h, self.shape, self.attn_norm, self.eps))
        x = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 G, T, P)
        turned, values = x[:, : self.rotated], x[:, self.rotated :]
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = turned[:, : self.heads], turned[:, self.heads :]
            size = (self.head_dim,)
            turned = torch.cat(
                [
                    F.rms_norm(queries, size, self.q_norm, self.eps),
                    F.rms_norm(keys, size, self.k_norm, self.eps),
                ],
                dim=1,
            )
        turned = torch.addcmul(turned * cos, turned.roll(self.head_dim // 2, -1), sin)
        queries, keys = turned[:, : self.heads], turned[:, self.heads :]
        if cache is not None:
            keys, values = cache.append(self.index, keys, values)
        x = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and h.shape[1] > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        h = h + self.out(x.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(F.rms_norm(h, self.shape, self.ff_norm, self.eps)).chunk(2, dim=-1)
        return h + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """The network. Its blocks count from 0; batches may be padded on the right without a mask."""

    def __init__(
        self,
        config: LlamaConfig,
        read: Callable[[str], Tensor] | None = None,
        *,
        precision: str = "float32",
    ) -> None:
        """`read(name)` gives each weight of `config.weight_shapes()` once, in that order; None: random ones.

        Raises UserError where the precision is unknown or not to be had here.
        """
        super().__init__()
        shapes = config.weight_shapes()
        source = read or (lambda name: _first(name, shapes[name]))
        self.config, self.precision = config, precision
        self.embedding = table(source("embed"), precision)
        self.norm = _kept(source("norm"))
        self.head = self.embedding if config.tied else table(source("head"), precision)
        self.blocks = nn.ModuleList(LlamaBlock(config, i, source, precision) for i in range(config.depth))
        self.register_buffer("cos", torch.empty(0, config.head_dim), persistent=False)
        self.register_buffer("sin", torch.empty(0, config.head_dim), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def in_precision(self, precision: str) -> Llama:
        """A twin with the weights rounded to this precision; itself where it has that already.

        Raises UserError where there are no kernels for it here.
        """
        return self if precision == self.precision else Llama(self.config, self._weight, precision=precision)

    def new_cache(self, batch: int = 1, room: int = 256) -> KVCache:
        """An empty cache on the device of the weights, for about `room` tokens."""
        return KVCache(self.config, batch, room, self.norm.device)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D)."""
        return self.embedding.rows(ids)

    def block(self, h: Tensor, i: int, cache: KVCache | None = None) -> Tensor:
        """Block i on the stream h (B, T, D) -> (B, T, D); with a cache T goes on where the block stopped."""
        return self.run_blocks(h, i, i + 1, cache)

    def run_blocks(self, h: Tensor, first: int, last: int, cache: KVCache | None = None) -> Tensor:
        """Blocks first ... last - 1 on the stream h (B, T, D) -> (B, T, D).

        Raises UserError where the text gets longer than the base reads.
        """
        width, before = h.shape[1], -1
        for i in range(first, last):
            start = cache.lengths[i] if cache else 0
            if start != before:  # the blocks of one call usually stand at one length
                cos, sin = self._rotations(start, start + width)
                mask, before = _mask(start, width, h.device), start
            h = self.blocks[i](h, cos, sin, cache, mask)  # pyright: ignore[reportPossiblyUnboundVariable]
        return h

    def logits(self, h: Tensor) -> Tensor:
        """The stream after the last block, (B, T, D) -> (B, T, V)."""
        return self.head(F.rms_norm(h, self.norm.shape, self.norm, self.config.eps))

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) -> logits (B, T, V); with a cache they go on from what it holds."""
        return self.logits(self.run_blocks(self.embed(ids), 0, self.config.depth, cache))

    def _rotations(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if stop > self.config.max_len:
            raise UserError(
                f"The text has {stop:,} tokens, but this base reads at most {self.config.max_len:,}. "
                "Shorten it."
            )
        if stop > len(self.cos):
            length = min(self.config.max_len, max(256, 2 * stop))
            with torch.inference_mode(False), torch.no_grad():  # they serve training, too
                cos, sin = rotations(self.config, length)
                device = self.norm.device
                # the shorter ones last, so that a thread that reads meanwhile finds both long enough
                self.sin, self.cos = sin.to(device), cos.to(device)
        return self.cos[start:stop], self.sin[start:stop]

    def _weight(self, name: str) -> Tensor:
        """A weight by its name in `LlamaConfig.weight_shapes`, float32."""
        if name in ("embed", "head"):
            return (self.embedding if name == "embed" else self.head).weight
        if name == "norm":
            return self.norm
        index, part = name.split(".")
        block = self.blocks[int(index)]
        if part == "qkv_bias":
            return block.qkv.bias  # pyright: ignore
        found = getattr(block, part)
        return found if isinstance(found, Tensor) else found.weight


def rotations(config: LlamaConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of positions 0 ... length - 1, both (length, P) float32.

    The sine of the first half is negative: a head x is turned as x * cos + roll(x, P / 2) * sin.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    speed = _scaled(1.0 / config.rope_theta**half, config.rope_scaling)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * speed
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)


def _scaled(speed: Tensor, scaling: RopeScaling | None) -> Tensor:
    if scaling is None:
        return speed
    if scaling.kind == "linear":
        return speed / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_len * speed / (2 * math.pi)  # in a text of the first training's length
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return speed * (blend + (1 - blend) / scaling.factor)


def _mask(start: int, width: int, device: torch.device) -> Tensor | None:
    """Who may see whom where tokens follow cached ones; None where `is_causal` or nothing says it."""
    if start == 0 or width == 1:
        return None
    return torch.ones(width, start + width, dtype=torch.bool, device=device).tril(start)


def _first(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight before any training: ones for norms, small random numbers for the rest."""
    return torch.ones(shape) if name.endswith("norm") else torch.randn(shape) * 0.02


def _kept(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.float().contiguous(), requires_grad=False)
