"""A pretrained base, fine-tuned by low-rank updates: the matched baseline of a reader (models/reader.py).

It reads no neighbors; all that it has are the updates of models/low_rank.py.

Shapes: B batch, T tokens of the text, P tokens of a title, N of both with the beginning of text, r rank, D
width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retro_demo.models.llama import KVCache
from retro_demo.models.low_rank import OnBase
from retro_demo.models.reader import begun, text_of, token_nats
from retro_demo.models.reader_config import TunedConfig


class TextBatch(NamedTuple):
    """What one step reads: tokens (B, T + 1), titles (B, P)."""

    tokens: Tensor
    titles: Tensor

    def to(self, device: torch.device) -> TextBatch:
        return TextBatch(*(part.to(device) for part in self))

    def share(self, rank: int, size: int) -> TextBatch:
        """Every size-th sequence from `rank` on."""
        return TextBatch(*(part[rank::size] for part in self))


@dataclass
class TextCache:
    """What the tokens so far leave behind for the next one; filled by `Tuned.next_logits`."""

    memory: KVCache

    @property
    def length(self) -> int:
        """Tokens read so far; the beginning of text is none of them."""
        return max(0, self.memory.lengths[0] - 1)


class Tuned(OnBase):
    """`Tuned(config)` has the weights that are trained; `attach` gives it the base that they update."""

    def __init__(self, config: TunedConfig) -> None:
        super().__init__(config)
        self.config = config

    def _stream(self, ids: Tensor, memory: KVCache | None = None) -> Tensor:
        """ids (B, N) -> the stream after the last block (B, N, D)."""
        model, first = self.base, self.config.first_tuned
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
