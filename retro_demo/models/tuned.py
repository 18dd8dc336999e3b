"""A pretrained base, fine-tuned by low-rank updates: the matched baseline of a reader (models/reader.py).

The base stays as it is, in any precision, and is shared with all who read with it. Beside the product W x
of each matrix of its upper blocks stands a second one, U (D x): D begins at random and U at zero, so that
nothing is changed before the first step, and only D and U are trained (LoRA, Hu et al. 2021, section 4.1;
their factor alpha / r is 1 here). It reads no neighbors.

Shapes: B batch, T tokens of the text, P tokens of a title, N of both with the beginning of text, r rank, D
width, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.models.llama import KVCache, Llama
from retro_demo.models.reader import begun, text_of, token_nats
from retro_demo.models.reader_config import TunedConfig

Part = TypeVar("Part", bound=nn.Module)


class TextBatch(NamedTuple):
    """What one step reads: tokens (B, T + 1), titles (B, P)."""

    tokens: Tensor
    titles: Tensor

    def to(self, device: torch.device) -> TextBatch:
        return TextBatch(*(part.to(device) for part in self))

    def share(self, rank: int, size: int) -> TextBatch:
        """Every size-th sequence from `rank` on."""
        return TextBatch(*(part[rank::size] for part in self))


class LowRank(nn.Module):
    """x (..., in) -> (..., out) by way of r numbers; 0 before it is trained."""

    def __init__(self, width: int, out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


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


@dataclass
class TextCache:
    """What the tokens so far leave behind for the next one; filled by `Tuned.next_logits`."""

    memory: KVCache

    @property
    def length(self) -> int:
        """Tokens read so far; the beginning of text is none of them."""
        return max(0, self.memory.lengths[0] - 1)


class Tuned(nn.Module):
    """`Tuned(config)` has the weights that are trained; `attach` gives it the base that they update."""

    def __init__(self, config: TunedConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: LowRank(*shape, config.rank) for name, shape in config.matrices.items()})
            for _ in range(config.first_tuned, config.depth)
        )
        self._base: list[Llama] = []  # as it is, and updated; in a list, since its weights are none of these

    def attach(self, base: Llama) -> Tuned:
        """Update this base, which is shared and stays as it is; returns itself."""
        self._base = [base, _updated(base, self.blocks)]
        return self

    @property
    def base(self) -> Llama:
        """The base as it is."""
        return self._base[0]

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.parameters()).device

    def _stream(self, ids: Tensor, memory: KVCache | None = None) -> Tensor:
        """ids (B, N) -> the stream after the last block (B, N, D)."""
        model, first = self._base[1], self.config.first_tuned
        with torch.no_grad():
            stream = model.run_blocks(model.embed(ids), 0, first, memory)
        return model.run_blocks(stream, first, self.config.depth, memory)

    def forward(
        self, tokens: Tensor, neighbors: Tensor | None = None, titles: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T), titles (B, P) or None -> logits (B, T, V); titles and padding as for `Reader`."""
        if neighbors is not None:
            raise ValueError("a fine-tuned base reads no neighbors")
        ids, start = begun(tokens, titles, self.config)
        return self.base.logits(text_of(self._stream(ids), start, tokens.shape[1]))

    def before_prompt(self, length: int) -> list[int]:
        """Padding before a prompt of so many tokens: none, since nothing is looked up at its end."""
        return []

    def new_cache(self, room: int, batch: int = 1) -> TextCache:
        """What texts of `room` tokens at most are written with."""
        return TextCache(self.base.new_cache(batch, room + 1))

    @torch.inference_mode()
    def next_logits(self, tokens: Tensor, cache: TextCache, neighbors: Tensor | None = None) -> Tensor:
        """Read tokens (B, n) after those in the cache -> the logits (B, V) after the last of them."""
        if neighbors is not None:
            raise ValueError("a fine-tuned base reads no neighbors")
        if not cache.memory.lengths[0]:
            tokens = torch.cat([tokens.new_full((len(tokens), 1), self.config.begin_id), tokens], 1)
        return self.base.logits(self._stream(tokens, cache.memory)[:, -1:])[:, 0]

    def token_losses(
        self, tokens: Tensor, neighbors: Tensor | None = None, titles: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T + 1) -> loss of each token after the first (B, T), in nats; padding costs 0."""
        return token_nats(self(tokens[:, :-1], neighbors, titles), tokens[:, 1:], self.config.pad_id)

    def loss(self, batch: TextBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of all tokens after the first, in nats."""
        nats = self.token_losses(batch.tokens, titles=batch.titles)
        return nats.sum() / (batch.tokens[:, 1:] != self.config.pad_id).sum().clamp(min=1), {}
