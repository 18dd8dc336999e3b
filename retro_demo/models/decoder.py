"""One layer of RETRO's decoder; `models/retro.py` runs them."""

from __future__ import annotations

from torch import nn

from retro_demo.models.attention import FeedForward, SelfAttention
from retro_demo.models.blocks import attention_shape, make_norm
from retro_demo.models.cca import ChunkedCrossAttention
from retro_demo.models.retro_config import RetroConfig


class DecoderLayer(nn.Module):
    """FFW(CCA(ATTN(x))), or FFW(ATTN(x)) where the layer has no cross-attention (section 2.4)."""

    def __init__(self, config: RetroConfig, retrieves: bool) -> None:
        super().__init__()
        dim, shape = config.dim, attention_shape(config, config.dim, config.dec_attn_dropout)
        self.norm_attend = make_norm(config, dim)
        self.attend = SelfAttention(dim, shape)
        if retrieves:
            self.norm_retrieve = make_norm(config, dim)
            self.retrieve = ChunkedCrossAttention(
                config.chunk_len,
                dim,
                config.encoded_dim,
                shape,
                null=config.null_kv,
                abstain=config.abstain,
                positions=config.cca_positions,
                shifted_keys=config.shifted_keys,
            )
        self.retrieves = retrieves
        self.norm_think = make_norm(config, dim)
        self.think = FeedForward(
            dim,
            config.ff_mult,
            bias=config.biases,
            drop_hidden=config.dec_ff_dropout,
            drop_output=config.dropout,
        )
