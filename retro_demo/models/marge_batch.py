"""What one step of MARGE reads, whole or as the part of one of several processes.

Shapes: B batch of targets, T tokens, M evidence, S evidence length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retro_demo.devices import sent


class Part(NamedTuple):
    """What one of `size` processes has of a batch: its share of the targets; predicted tokens of all."""

    rank: int
    size: int
    share: float
    predicted: int


class MargeBatch(NamedTuple):
    """What one step reads: targets (B, T) and the evidence (M, S) of all of them, padded with pad_id.

    `part` says what part of a batch it is, None: all of it. All parts hold all evidence.
    """

    targets: Tensor
    evidence: Tensor
    part: Part | None = None

    @property
    def tokens(self) -> Tensor:
        """What is learned to be written (B, T)."""
        return self.targets

    def to(self, device: torch.device) -> MargeBatch:
        return self._replace(targets=sent(self.targets, device), evidence=sent(self.evidence, device))

    def share(self, rank: int, size: int, pad_id: int = 0) -> MargeBatch:
        """Every size-th target from `rank` on, with all evidence; the parts' losses add up to the batch's.

        A part that no target is left for gets one of which nothing is predicted, and no weight.
        """
        own, predicted = self.targets[rank::size], int((self.targets[:, 1:] != pad_id).sum())
        share = len(own) / len(self.targets)
        if not len(own):
            own = self.targets[:1].clone()
            own[:, 1:] = pad_id
        return MargeBatch(own, self.evidence, Part(rank, size, share, predicted))
