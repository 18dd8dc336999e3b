"""The neighbor encoder of RETRO: both ways, in the light of the chunk that retrieved.

Shapes: N chunks, K neighbors, R neighbor length, C chunk length, D decoder width, E encoder width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from retro_demo.attention import CrossAttention, FeedForward, SelfAttention, key_mask
from retro_demo.config import RetroConfig


class EncoderLayer(nn.Module):
    """One layer of the neighbor encoder; with `sees_chunk` it attends to the chunk that retrieved."""

    def __init__(self, config: RetroConfig, sees_chunk: bool) -> None:
        super().__init__()
        dim, heads, dropout = config.enc_dim, config.num_heads, config.dropout
        self.norm_attend = nn.RMSNorm(dim)
        self.attend = SelfAttention(dim, heads, dropout)
        if sees_chunk:
            self.norm_chunk = nn.RMSNorm(dim)
            self.see_chunk = CrossAttention(dim, config.dim, heads, dropout)
        self.sees_chunk = sees_chunk
        self.norm_think = nn.RMSNorm(dim)
        self.think = FeedForward(dim, config.ff_mult, dropout)


class NeighborEncoder(nn.Module):
    """Encode each neighbor by itself, both ways, in the light of the chunk that retrieved it.

    Source: section 2.4 (ENCODER conditioned on H_u by cross-attention), algorithm 1.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        same = config.enc_dim == config.dim
        self.from_embedding = nn.Identity() if same else nn.Linear(config.dim, config.enc_dim, bias=False)
        self.norm_states = nn.RMSNorm(config.dim)
        self.layers = nn.ModuleList(
            EncoderLayer(config, number in config.enc_cross_layers)
            for number in range(1, config.enc_depth + 1)
        )
        self.norm = nn.RMSNorm(config.enc_dim)

    def forward(self, embedded: Tensor, present: Tensor, states: Tensor, states_present: Tensor) -> Tensor:
        """embedded (N, K, R, D) of N chunks, present (N, K, R), states (N, C, D), states_present (N, C).

        Returns (N, K, R, E). Places of neighbor and chunk both count from 0: N is aligned with
        the chunk (appendix B.1.2: d_enc = i' - i).
        """
        num_neighbors, length = present.shape[1:]
        places = torch.arange(length, device=embedded.device)
        chunk_places = torch.arange(states.shape[1], device=embedded.device)
        mask = key_mask(rearrange(present, "n k r -> (n k) r"))
        states = self.norm_states(states)
        x = rearrange(self.from_embedding(embedded), "n k r e -> (n k) r e")
        for layer in cast(Iterable[EncoderLayer], self.layers):
            x = x + layer.attend(layer.norm_attend(x), places, mask)[0]
            if layer.sees_chunk:
                # all neighbors of a chunk are queries of one attention: its keys are made once
                queries = rearrange(layer.norm_chunk(x), "(n k) r e -> n (k r) e", k=num_neighbors)
                context = layer.see_chunk.keys_values(states, chunk_places)
                seen = layer.see_chunk(queries, context, places.repeat(num_neighbors), states_present)
                x = x + rearrange(seen, "n (k r) e -> (n k) r e", k=num_neighbors)
            x = x + layer.think(layer.norm_think(x))
        return rearrange(self.norm(x), "(n k) r e -> n k r e", k=num_neighbors)
