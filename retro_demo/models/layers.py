"""The layers that both models are made of: attention, linear layers, norms, residuals, first weights.

All attention is fused; that to a context (`CrossAttention`) is written out while a `Tap` records it. This
module does not know chunks, retrieval, files or text.

The weights of linear layers stay torch's own; only the product changes. PyTorch leaves float32 products on
CPUs to MKL, which runs AMD processors at half their width. Where these have AVX-512, oneDNN from the same
wheel takes its place: up to 2.3 times as many products a second. Anything else (GPUs, other dtypes,
autocast) is `F.linear` as everywhere, and so is compiled code: Inductor chooses its own products.

Shapes: B batch, T query tokens, S context tokens, D width, E context width, H heads, P head width; of linear
layers N rows, D width in, E width out.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.hooks import RemovableHandle

from retro_demo.models.config import RetroConfig

FEW_ROWS = 16  # up to so many MKL is as fast: the weights are read once, whoever multiplies


@cache
def prefers_onednn() -> bool:
    """Whether this is a processor that MKL does not serve well; always the same on one machine."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # private: a build of torch may lack it
        return False
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., D) @ weight (E, D) transposed, plus bias (E,) -> (..., E)."""
    if torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    many = x.numel() > FEW_ROWS * x.shape[-1]
    if not (plain and many and prefers_onednn()) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return _OneDNN.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


@torch.no_grad()
def lay_out_for_writing(model: nn.Module) -> None:
    """Turn the wide weights of a model on the CPU in memory, so that a single row is multiplied faster.

    A token alone is bound by how fast weights are read: short rows of them (more out than in) cost MKL twice
    the time of their columns. Shapes, names and values stay.
    """
    for layer in model.modules():
        if not isinstance(layer, Linear) or layer.weight.device.type != "cpu":
            continue
        if layer.out_features > layer.in_features:
            layer.weight.data = layer.weight.data.t().contiguous().t()


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows (N, D) @ weight (E, D) transposed -> (N, E), by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(_dense(rows), _dense(weight), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """The matrix by rows or by columns without gaps: oneDNN has fast products for these alone."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _OneDNN(torch.autograd.Function):
    """`F.linear` and its gradients by oneDNN."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = _product(x.reshape(-1, x.shape[-1]), weight, bias)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        rows, before = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad  # pyright: ignore[reportAttributeAccessIssue]
        of_x = _product(rows, weight.t()).view(x.shape) if wants_x else None
        of_weight = None
        if wants_weight:  # oneDNN is faster where the result is wide
            wide = len(weight) > x.shape[-1]
            of_weight = _product(before.t(), rows.t()).t() if wide else _product(rows.t(), before.t())
        return of_x, of_weight, rows.sum(dim=0) if wants_bias else None


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

    def __init__(self, room: int = 0) -> None:
        """`room`: how many tokens will be read, where that is known: then nothing is ever copied."""
        self.length = 0
        self._first_room = room
        self._room: KeysValues | None = None  # (B, H, >= length, P): a token is written where it stays

    def append(self, new: KeysValues) -> KeysValues:
        """Everything that was read, `new` at its end."""
        begun, self.length = self.length, self.length + new.keys.shape[2]
        if self._room is None or self._room.keys.shape[2] < self.length:
            self._room = self._with_room(new, begun)
        for room, part in zip(self._room, new, strict=True):
            room[:, :, begun : self.length] = part
        return KeysValues(*(room[:, :, : self.length] for room in self._room))

    def _with_room(self, new: KeysValues, begun: int) -> KeysValues:
        """The room that was asked for, then twice what is needed, so that what was read is seldom copied."""
        batch, heads, _, width = new.keys.shape
        room = self._first_room if self._first_room >= self.length else 2 * self.length
        rooms = KeysValues(*(part.new_empty(batch, heads, room, width) for part in new))
        if self._room is not None:
            for room, before in zip(rooms, self._room, strict=True):
                room[:, :, :begun] = before[:, :, :begun]
        return rooms


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
    if not half:
        return x
    exact = torch.promote_types(x.dtype, torch.float32)
    # first * cos - second * sin, then second * cos + first * sin: the halves change places. Cosines are
    # alike for an angle and its negative, sines are not: a turn back of the first half is the minus
    backward = torch.cat([-frequencies, frequencies]).to(exact)
    angles = positions.to(exact)[:, None] * backward  # (T, 2 half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turning, rest = (x, None) if x.shape[-1] == 2 * half else x.tensor_split([2 * half], dim=-1)
    turned = torch.addcmul(turning * cos, turning.roll(half, dims=-1), sin)
    return turned if rest is None else torch.cat([turned, rest], dim=-1)


def heads_of(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """x (B, T, parts * H * P) -> (parts, B, H, T, P), without a copy."""
    batch, length, width = x.shape
    return x.view(batch, length, parts, num_heads, width // parts // num_heads).permute(2, 0, 3, 1, 4)


def joined(heads: Tensor) -> Tensor:
    """heads (B, H, T, P) -> (B, T, H * P)."""
    return heads.transpose(1, 2).flatten(2)


class Tap(nn.Identity):
    """What the weights of an attention pass through while somebody looks at them: see record_attention."""

    shown = False


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with rotary positions; always fused."""

    frequencies: Tensor

    def __init__(self, dim: int, shape: AttentionShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        inner = shape.num_heads * shape.dim_head
        self.to_qkv = Linear(dim, 3 * inner, bias=False)
        self.to_out = Linear(inner, dim, bias=shape.bias)
        self.drop_weights = shape.drop_weights
        self.dropout = nn.Dropout(shape.drop_output)
        self.scale = shape.scale
        self.empty_reads_all = shape.empty_reads_all
        self.register_buffer("frequencies", rotary_frequencies(shape.rotary_dims), persistent=False)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, memory: Memory | None = None
    ) -> Tensor:
        """x (B, T, D), positions (T,), mask (B or 1, 1, T, S), True where attended -> (B, T, D).

        With a `memory` the tokens attend to those before them too (S counts both), and are kept in it.
        Without a mask every token sees all S; a mask of numbers is added to the scores.
        """
        qk, v = heads_of(self.to_qkv(x), 3, self.num_heads).split([2, 1])
        q, k = rotate(qk, positions, self.frequencies)
        v = v[0]
        if memory is not None:
            k, v = memory.append(KeysValues(k, v))
        return self._attend(q, k, v, mask)

    def of_first(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """What `forward` gives the first token (B, 1, D), at the cost of one query."""
        inner = self.to_out.in_features
        to_q, to_kv = self.to_qkv.weight.split([inner, 2 * inner])
        q = heads_of(linear(x[:, :1], to_q), 1, self.num_heads)[0]
        k, v = heads_of(linear(x, to_kv), 2, self.num_heads)
        q = rotate(q, positions[:1], self.frequencies)
        return self._attend(q, rotate(k, positions, self.frequencies), v, mask[..., :1, :])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (B, H, T, P), k and v (B, H, S, P), all at their positions -> (B, T, D)."""
        if self.empty_reads_all and mask is not None:
            # a query of zeros likes everything alike, and learns nothing from it
            empty = ~mask.any(dim=-1, keepdim=True)
            q, mask = q.masked_fill(empty, 0.0), mask | empty
        dropped = self.drop_weights if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropped, scale=self.scale)
        return self.dropout(self.to_out(joined(out)))


class CrossAttention(nn.Module):
    """Multi-head attention to a context; within `record_attention` its softmax passes through a tap.

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
        self.to_q = Linear(dim, inner, bias=False)
        self.to_kv = Linear(context_dim, 2 * inner, bias=False)
        self.to_out = Linear(inner, dim, bias=shape.bias)
        self.null_k = nn.Parameter(torch.zeros(inner)) if null or abstain else None
        self.null_v = nn.Parameter(torch.zeros(inner)) if null else None
        self.drop_weights = nn.Dropout(shape.drop_weights)
        self.dropout = nn.Dropout(shape.drop_output)
        self.weights = Tap()
        self.register_buffer("frequencies", rotary_frequencies(shape.rotary_dims), persistent=False)

    def keys_values(self, context: Tensor, positions: Tensor) -> KeysValues:
        """context (B, S, E), positions (S,) -> keys and values; compute once, attend often."""
        return self.placed(self.project(context), positions)

    def project(self, context: Tensor) -> KeysValues:
        """context (B, S, E) -> keys that know no positions yet, and values."""
        return KeysValues(*heads_of(self.to_kv(context), 2, self.num_heads))

    def placed(self, projected: KeysValues, positions: Tensor) -> KeysValues:
        """What `project` gave, its keys at their positions (S,); behind the null key where there is one."""
        k, v = rotate(projected.keys, positions, self.frequencies), projected.values
        if self.null_k is not None:
            value = torch.zeros_like(self.null_k) if self.null_v is None else self.null_v
            k, v = self._behind_null(self.null_k, k), self._behind_null(value, v)
        return KeysValues(k, v)

    def _behind_null(self, null: Tensor, x: Tensor) -> Tensor:
        """null (H * P), x (B, H, S, P) -> (B, H, 1 + S, P)."""
        first = null.view(1, self.num_heads, 1, -1).expand(len(x), -1, -1, -1)
        return torch.cat([first, x], dim=2)

    def forward(
        self, x: Tensor, context: KeysValues, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """x (B, T, D), positions (T,), mask (B, S) True where a token stands, or None -> (B, T, D)."""
        q = rotate(heads_of(self.to_q(x), 1, self.num_heads)[0], positions, self.frequencies)
        anything = None  # (B,): where a query finds anything; None: everywhere
        if mask is not None:
            anything = mask.any(dim=-1) if self.null_v is None else None
            mask = mask if self.null_k is None else F.pad(mask, (1, 0), value=True)
        read = self._read_shown if self.weights.shown else self._read_fused
        out = self.to_out(joined(read(q, context, mask)))
        if anything is not None:
            out = out * anything[:, None, None]
        return self.dropout(out)

    def _read_fused(self, q: Tensor, context: KeysValues, mask: Tensor | None) -> Tensor:
        """q (B, H, T, P) -> (B, H, T, P)."""
        if mask is not None:  # a row of nothing would be no number: `forward` takes it away
            mask = (mask | ~mask.any(dim=-1, keepdim=True))[:, None, None, :]
        dropped = self.drop_weights.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, *context, attn_mask=mask, dropout_p=dropped)

    def _read_shown(self, q: Tensor, context: KeysValues, mask: Tensor | None) -> Tensor:
        """The same, its weights written out and passed through the tap."""
        scores = q @ context.keys.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, S)
        seen = (
            torch.ones_like(scores[:, :1, :1], dtype=torch.bool) if mask is None else mask[:, None, None, :]
        )
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1) * seen
        if self.null_k is None:
            weights = self.weights(weights)
        else:
            weights = torch.cat([weights[..., :1], self.weights(weights[..., 1:])], dim=-1)
        return self.drop_weights(weights) @ context.values


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between: (B, T, D) -> (B, T, D)."""

    def __init__(
        self, dim: int, mult: int, *, bias: bool = False, drop_hidden: float = 0.0, drop_output: float = 0.0
    ) -> None:
        super().__init__(
            Linear(dim, mult * dim, bias=bias),
            nn.Sequential(nn.GELU(), nn.Dropout(drop_hidden)),
            Linear(mult * dim, dim, bias=bias),
            nn.Dropout(drop_output),
        )


def key_mask(present: Tensor) -> Tensor:
    """present (B, S), True where a token stands -> (B, 1, S, S) for self-attention.

    Each token may always see itself, so that the row of a padding token is never empty (the softmax
    of an empty row is NaN); no other token sees what a padding token computes.
    """
    itself = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return (present[:, None, :] | itself)[:, None]


def added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask, True where attended, as what is added to scores (0, or minus infinity), for all layers."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf)


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block, collect what passes through every tap: {name of the layer: (B, H, T, S)}."""
    seen: dict[str, Tensor] = {}

    def listen(name: str, tap: nn.Module) -> RemovableHandle:
        return tap.register_forward_hook(lambda _tap, _inputs, weights: seen.update({name: weights.detach()}))

    taps = {n.rpartition(".")[0]: tap for n, tap in model.named_modules() if isinstance(tap, Tap)}
    handles = [listen(name, tap) for name, tap in taps.items()]
    for tap in taps.values():
        tap.shown = True
    try:
        yield seen
    finally:
        for tap, handle in zip(taps.values(), handles, strict=True):
            tap.shown = False
            handle.remove()


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
