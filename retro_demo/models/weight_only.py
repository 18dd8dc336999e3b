"""Frozen linear layers: weights in 32, 16, 8 or 4 bits, the numbers between layers always in float32.

Only weights are rounded, never the numbers that a layer is given (scales found anew for each text, "dynamic
int8", ruin a small model). A token alone is bound by how fast weights are read, so fewer bits are faster.

Shapes: D width in, E width out, G groups of 32 weights in a row.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.errors import UserError
from retro_demo.models.layers import FEW_ROWS, linear

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.625}  # of a weight, scales included
GROUP = 32  # weights of a row that share a scale in int4
ROUNDED = 16  # the kernel for 4 bits takes rows by so many


class FrozenLinear(nn.Module):
    """x (..., D) float32 -> (..., E) float32 by a weight (E, D) in float32; `weight` reads it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.stored = _frozen(weight)
        self.bias = None if bias is None else _frozen(bias)

    @property
    def weight(self) -> Tensor:
        """(E, D) float32."""
        return self.stored.float()

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight, as an embedding: index (...) -> (..., D) float32."""
        return F.embedding(index, self.stored).float()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.stored, self.bias)


class Bfloat16Linear(FrozenLinear):
    """The weight in bfloat16; sums are float32 inside a product."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight.bfloat16(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return _plus(F.linear(x.bfloat16(), self.stored).float(), self.bias)


class Int8Linear(nn.Module):
    """The weight in 8 bits with a scale for each row.

    A few rows of x are multiplied by torch's kernel for it; for many the weight is spread out again, in
    bfloat16 where the processor has units for it, because those products are bound by arithmetic. So are
    those with a gradient, of which the kernel has none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # the kernel wants bfloat16 scales: rounded before the weights are, they are the same for all products
        scale = (weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127).bfloat16()
        steps = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("stored", steps.to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else _frozen(bias)
        self.stored: Tensor
        self.scale: Tensor

    @property
    def weight(self) -> Tensor:
        """(E, D) float32, as rounded."""
        return self.stored * self.scale.float()[:, None]

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight, as an embedding: index (...) -> (..., D) float32."""
        return F.embedding(index, self.stored) * self.scale.float()[index][..., None]

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= FEW_ROWS * x.shape[-1] and x.device.type == "cpu"
        if few and not (x.requires_grad and torch.is_grad_enabled()):
            rows = x.reshape(-1, x.shape[-1]).bfloat16()
            out = torch._weight_int8pack_mm(rows, self.stored, self.scale)
            return _plus(out.view(*x.shape[:-1], -1).float(), self.bias)
        if has_bfloat16_units() or x.device.type != "cpu":  # 8 bits fit the 8 of bfloat16's fraction
            out = F.linear(x.bfloat16(), self.stored.bfloat16()).float() * self.scale
        else:
            out = linear(x, self.weight)
        return _plus(out, self.bias)


class Int4Linear(nn.Module):
    """The weight in 4 bits, a scale and a middle for each 32 of a row; on the CPU, without gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        groups = weight.float().unflatten(1, (-1, GROUP))  # (E, G, 32)
        low, high = groups.amin(dim=2), groups.amax(dim=2)
        scale = ((high - low) / 15).clamp_min(1e-12)
        steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        packed = torch._convert_weight_to_int4pack_for_cpu(steps.flatten(1).to(torch.int32), 1)
        both = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).bfloat16().contiguous()
        self.register_buffer("packed", packed)
        self.register_buffer("scales", both)  # (G, E, 2): the kernel takes a step s as (s - 8) scale + middle
        self.bias = None if bias is None else _frozen(bias)
        self.packed: Tensor
        self.scales: Tensor

    @property
    def weight(self) -> Tensor:
        """(E, D) float32, as rounded: the kernel's product with the identity, for its layout is its own."""
        width = self.scales.shape[0] * GROUP
        return self._product(torch.eye(width, dtype=torch.bfloat16)).T.float()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        return _plus(self._product(rows).view(*x.shape[:-1], -1).float(), self.bias)

    def _product(self, rows: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales)


AnyLinear = FrozenLinear | Int8Linear | Int4Linear


def frozen_linear(weight: Tensor, bias: Tensor | None, precision: str) -> AnyLinear:
    """A layer that keeps a weight (E, D) in this precision.

    A weight that the kernel for 4 bits does not take (rows no multiple of 32, or their number none of 16) is
    kept in 8. Raises UserError where this build of torch has no kernel for the precision.
    """
    check_precision(precision)
    if precision == "int4" and (weight.shape[1] % GROUP or weight.shape[0] % ROUNDED):
        return Int8Linear(weight, bias)
    kinds = {"float32": FrozenLinear, "bfloat16": Bfloat16Linear, "int8": Int8Linear, "int4": Int4Linear}
    return kinds[precision](weight, bias)


def table(weight: Tensor, precision: str) -> FrozenLinear | Int8Linear:
    """An embedding or the output layer (V, D): in 8 bits where the rest has 4, which would hurt it."""
    if precision in ("int8", "int4"):
        return Int8Linear(weight)
    return FrozenLinear(weight) if precision == "float32" else Bfloat16Linear(weight)


@cache
def check_precision(precision: str) -> None:
    """Raise UserError where weights cannot be kept so here: a kernel is missing, or there is no such name."""
    if precision not in PRECISIONS:
        raise UserError(f"The precision {precision!r} is not known. Choose one of {', '.join(PRECISIONS)}.")
    try:
        if precision == "int8":
            Int8Linear(torch.ones(ROUNDED, GROUP))(torch.ones(1, GROUP))
        if precision == "int4":
            Int4Linear(torch.ones(ROUNDED, GROUP))(torch.ones(1, GROUP))
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"This build of torch ({torch.__version__}) cannot multiply weights in {precision} on this "
            "machine. Choose float32 or bfloat16."
        ) from error


@cache
def has_bfloat16_units() -> bool:
    """Whether this processor multiplies in bfloat16 by units of its own; elsewhere that is the slow way."""
    about = Path("/proc/cpuinfo")
    flags = about.read_text() if about.exists() else ""
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _plus(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out + bias


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
