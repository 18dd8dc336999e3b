"""Linear layers whose products run as fast as the processor allows; their weights stay torch's own.

PyTorch leaves float32 products on CPUs to MKL, which runs AMD processors at half their width. Where these
have AVX-512, oneDNN from the same wheel takes its place: up to 2.3 times as many products a second.
Anything else (GPUs, other number types, autocast) is `F.linear` as everywhere, and so is what is compiled:
Inductor chooses its own products.

Shapes: N rows, D width in, E width out.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

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
