"""Low-rank updates of a pretrained base (LoRA), and what reads and writes by a base that it does not hold.

Beside the product W x of a matrix stands a second one, U (D x): D begins at random and U at zero, so that
nothing is changed before the first step, and only D and U are trained (LoRA, Hu et al. 2021, section 4.1;
their factor alpha / r is 1 here). The base stays as it is, in any precision, and is shared by all.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.models.llama import Llama
from retro_demo.models.reader_config import BesideBase

Part = TypeVar("Part", bound=nn.Module)
Attached = TypeVar("Attached", bound="OnBase")


class LowRank(nn.Module):
    """x (..., in) -> (..., out) by way of r numbers; `down` (r, in), `up` (out, r), zero before training."""

    def __init__(self, width: int, out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


class OnBase(nn.Module):
    """A network beside a pretrained base, whose weights are none of its own.

    `blocks` are the updates of the base's upper blocks, none where the rank is 0.
    """

    def __init__(self, config: BesideBase) -> None:
        super().__init__()
        tuned = range(config.first_tuned, config.depth) if config.rank else ()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: LowRank(*shape, config.rank) for name, shape in config.matrices.items()})
            for _ in tuned
        )
        self._bases: list[Llama] = []  # as it is, and updated; in a list, since its weights are none of these

    def attach(self: Attached, base: Llama) -> Attached:
        """Read and write by this base, which is shared and stays as it is; returns itself."""
        self._bases = [base, _updated(base, self.blocks) if len(self.blocks) else base]
        return self

    def reading_with(self: Attached, base: Llama) -> Attached:
        """A twin that reads with another base of the same lower blocks, as that is; all else is shared."""
        twin = copy.copy(self)
        twin._bases = [base]
        return twin

    @property
    def pretrained(self) -> Llama:
        """The base as it is."""
        return self._bases[0]

    @property
    def base(self) -> Llama:
        """The base with its updates, which is what reads and writes; IndexError before `attach`."""
        return self._bases[-1]

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.parameters()).device


class _Updated(nn.Module):
    """A frozen product and its update."""

    def __init__(self, frozen: nn.Module, update: nn.Module) -> None:
        super().__init__()
        self.frozen, self.update = frozen, update

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.update(x)


def _updated(base: Llama, updates: nn.ModuleList) -> Llama:
    """A twin of the base that shares all its weights, with updates (one of each of its last blocks)."""
    twin = twin_of(base)
    blocks, first = list(base.blocks), len(base.blocks) - len(updates)
    for place, update in enumerate(updates, start=first):
        block = twin_of(blocks[place])
        for name, one in update.named_children():
            setattr(block, name, _Updated(getattr(block, name), one))
        blocks[place] = block
    twin.blocks = nn.ModuleList(blocks)
    return twin


def twin_of(module: Part) -> Part:
    """The same module, whose parts can be exchanged without changing the original."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
