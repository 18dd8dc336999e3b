"""The neighbor encoder of RETRO: both ways, in the light of the chunk that retrieved.

Shapes: N chunks, K neighbors, R neighbor length, C chunk length, D decoder width, E encoder width.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from retro_demo.models.attention import CrossAttention, FeedForward, SelfAttention, added, key_mask
from retro_demo.models.blocks import attention_shape, make_final_norm, make_norm, residual
from retro_demo.models.linear import Linear
from retro_demo.models.retro_config import RetroConfig


class EncoderLayer(nn.Module):
    """One layer of the neighbor encoder; with `sees_chunk` it attends to the chunk that retrieved."""

    def __init__(self, config: RetroConfig, sees_chunk: bool) -> None:
        super().__init__()
        dim, shape = config.enc_dim, attention_shape(config, config.enc_dim, config.enc_attn_dropout)
        self.norm_attend = make_norm(config, dim)
        self.attend = SelfAttention(dim, shape)
        if sees_chunk:
            self.norm_chunk = make_norm(config, dim)
            self.see_chunk = CrossAttention(dim, config.dim, shape)
        self.sees_chunk = sees_chunk
        self.norm_think = make_norm(config, dim)
        self.think = FeedForward(
            dim,
            config.ff_mult,
            bias=config.biases,
            drop_hidden=config.enc_ff_dropout,
            drop_output=config.dropout,
        )

    def look_at_chunk(self, x: Tensor, states: Tensor, states_present: Tensor) -> Tensor:
        """x (N * K, R, E) attends to states (N, C, D), states_present (N, C) -> (N * K, R, E)."""
        # all neighbors of a chunk are queries of one attention: its keys are made once
        num_chunks, length = states.shape[:2]
        num_neighbors = x.shape[0] // num_chunks
        places = torch.arange(x.shape[1], device=x.device)
        context = self.see_chunk.keys_values(states, torch.arange(length, device=x.device))
        queries = rearrange(x, "(n k) r e -> n (k r) e", k=num_neighbors)
        seen = self.see_chunk(queries, context, places.repeat(num_neighbors), states_present)
        return rearrange(seen, "n (k r) e -> (n k) r e", k=num_neighbors)


class NeighborEncoder(nn.Module):
    """Encode each neighbor by itself, both ways, in the light of the chunk that retrieved it.

    Source: section 2.4 (ENCODER conditioned on H_u by cross-attention), algorithm 1.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.scale = config.enc_scale
        self.from_embedding = (
            nn.Identity()
            if config.enc_dim == config.embed_dim
            else Linear(config.embed_dim, config.enc_dim, bias=config.biases)
        )
        self.norm_states = make_norm(config, config.dim) if config.norm_states else nn.Identity()
        self.layers = nn.ModuleList(
            EncoderLayer(config, number in config.enc_cross_layers)
            for number in range(1, config.enc_depth + 1)
        )
        self.norm = make_final_norm(config, config.enc_dim)
        self.project = (
            Linear(config.enc_dim, config.dim, bias=config.biases) if config.enc_projection else nn.Identity()
        )

    def encoder_layers(self) -> list[EncoderLayer]:
        """The layers in order."""
        return cast(list[EncoderLayer], list(self.layers))

    def forward(self, embedded: Tensor, present: Tensor, states: Tensor, states_present: Tensor) -> Tensor:
        """embedded (N, K, R, D) of N chunks, present (N, K, R), states (N, C, D), states_present (N, C).

        Returns (N, K, R, E). Places of neighbor and chunk both count from 0: N is aligned with
        the chunk (appendix B.1.2: d_enc = i' - i).
        """
        num_neighbors, length = present.shape[1:]
        places = torch.arange(length, device=embedded.device)
        mask = added(key_mask(rearrange(present, "n k r -> (n k) r")), embedded)
        states = self.norm_states(states)
        x = rearrange(self.from_embedding(embedded), "n k r e -> (n k) r e")
        for layer in self.encoder_layers():
            x = residual(x, layer.norm_attend, partial(layer.attend, positions=places, mask=mask), self.scale)
            if layer.sees_chunk:
                look = partial(layer.look_at_chunk, states=states, states_present=states_present)
                x = residual(x, layer.norm_chunk, look, self.scale)
            x = residual(x, layer.norm_think, layer.think, self.scale)
        return rearrange(self.project(self.norm(x)), "(n k) r e -> n k r e", k=num_neighbors)
