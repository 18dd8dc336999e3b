"""RETRO: a causal decoder that reads the neighbors of the chunks before each token.

Token ids in, logits out. Nothing here knows of text, files, indexes or training. Without
`cca_layers` the same class is the plain decoder that serves as matched baseline (`lm`).

Source: Borgeaud et al. 2022, "Improving language models by retrieving from trillions of tokens",
sections 2.4 and 2.5 and appendix B. Differences, all stated there or in docs/science.md: rotary in
place of Transformer-XL positions (same relative distances), token embeddings shared by encoder,
decoder and output layer.

Shapes: B batch, T tokens, L chunks, C chunk length, K neighbors, R neighbor length (N, then F),
D width, V vocabulary. Positions and chunks count from 0; layers from 1, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from retro_demo.attention import CrossAttention, FeedForward, KeysValues, SelfAttention, key_mask
from retro_demo.config import RetroConfig
from retro_demo.encoder import NeighborEncoder

INIT_STD = 0.02


class RetroBatch(NamedTuple):
    """What one step reads: tokens (B, T + 1) and the neighbors of their whole chunks (B, L, K, R)."""

    tokens: Tensor
    neighbors: Tensor | None

    def to(self, device: torch.device) -> RetroBatch:
        neighbors = None if self.neighbors is None else self.neighbors.to(device, non_blocking=True)
        return RetroBatch(self.tokens.to(device, non_blocking=True), neighbors)


class ChunkedCrossAttention(CrossAttention):
    """Let the tokens after each chunk attend to that chunk's neighbors.

    The last token of chunk u and the first C - 1 tokens of chunk u + 1 attend to the neighbors of
    chunk u, so no token sees a neighbor found with text after it. The tokens before the last of
    the first chunk get zeros. The softmax runs over all neighbors of the chunk together.

    Relative distances: the query at place i of its C (i = 0 is the last token of chunk u) and the
    neighbor token i' stand i - i' + C - 1 apart, so N is aligned with chunk u and F with what
    follows. Source: section 2.4, equation for CCA; appendix B.1.2 for the distances.
    """

    def __init__(self, chunk_len: int, dim: int, context_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim, context_dim, num_heads, dropout)
        self.chunk_len = chunk_len

    def neighbor_keys_values(self, encoded: Tensor) -> KeysValues:
        """encoded (B, K, R, E) -> keys and values (B, H, K * R, P); each neighbor starts at 0."""
        places = torch.arange(encoded.shape[2], device=encoded.device).repeat(encoded.shape[1])
        return self.keys_values(rearrange(encoded, "b k r e -> b (k r) e"), places)

    def attend(self, x: Tensor, context: KeysValues, place: int, mask: Tensor) -> Tensor:
        """x (B, T, D): tokens of one attending chunk, the first at `place` in it -> (B, T, D)."""
        places = torch.arange(place, place + x.shape[1], device=x.device) + self.chunk_len - 1
        return super().forward(x, context, places, mask)

    def forward(self, x: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, T, D), encoded (B, L, K, R, E), mask (B, L, K, R) -> (B, T, D), T >= L * C."""
        batch, length, _ = x.shape
        num_chunks, shift = encoded.shape[1], self.chunk_len - 1
        covered = num_chunks * self.chunk_len
        queries = F.pad(x[:, shift : shift + covered], (0, 0, 0, max(0, shift + covered - length)))
        out = self.attend(
            rearrange(queries, "b (l c) d -> (b l) c d", l=num_chunks),
            self.neighbor_keys_values(rearrange(encoded, "b l k r e -> (b l) k r e")),
            0,
            rearrange(mask, "b l k r -> (b l) (k r)"),
        )
        out = rearrange(out, "(b l) c d -> b (l c) d", b=batch)
        return F.pad(out, (0, 0, shift, max(0, length - shift - covered)))[:, :length]


class DecoderLayer(nn.Module):
    """FFW(CCA(ATTN(x))), or FFW(ATTN(x)) where the layer has no cross-attention (section 2.4)."""

    def __init__(self, config: RetroConfig, retrieves: bool) -> None:
        super().__init__()
        dim, heads, dropout = config.dim, config.num_heads, config.dropout
        self.norm_attend = nn.RMSNorm(dim)
        self.attend = SelfAttention(dim, heads, dropout)
        if retrieves:
            self.norm_retrieve = nn.RMSNorm(dim)
            self.retrieve = ChunkedCrossAttention(config.chunk_len, dim, config.enc_dim, heads, dropout)
        self.retrieves = retrieves
        self.norm_think = nn.RMSNorm(dim)
        self.think = FeedForward(dim, config.ff_mult, dropout)


@dataclass
class DecodeCache:
    """What the tokens so far leave behind for the next one; filled by `RETRO.extend`."""

    length: int = 0
    keys_values: dict[int, KeysValues] = field(default_factory=dict)  # by layer
    states: Tensor | None = None  # (B, <= C, D): the current chunk at layer min(P), see RETRO.decode
    present: Tensor | None = None  # (B, length): where tokens stand
    neighbors: dict[int, KeysValues] = field(default_factory=dict)  # by layer, of the last whole chunk
    neighbors_present: Tensor | None = None  # (B, K * R)


class RETRO(nn.Module):
    """The retrieval-enhanced transformer: `RETRO(config)(tokens, neighbors)` gives logits."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            DecoderLayer(config, number in config.cca_layers) for number in range(1, config.depth + 1)
        )
        self.norm = nn.RMSNorm(config.dim)
        self.encoder = NeighborEncoder(config) if config.cca_layers else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all matrices from N(0, 0.02); what writes into the residual stream starts smaller.

        The embeddings also are the output layer: at 0.02 the first loss is close to ln V.
        """
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            writes = name.endswith(("to_out.weight", "think.2.weight"))
            nn.init.normal_(weight, std=INIT_STD / (2 * self.config.depth) ** 0.5 if writes else INIT_STD)

    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers in order; layer number n of the paper is the (n - 1)th."""
        return cast(list[DecoderLayer], list(self.layers))

    def forward(self, tokens: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """tokens (B, T), neighbors (B, L, K, R) or None -> logits (B, T, V).

        neighbors[:, u] belong to chunk u, the tokens u * C ... u * C + C - 1, and are first seen at
        position u * C + C - 1. `pad_id` stands for no token, in both; a neighbor of nothing but
        padding is absent, and None means that nothing was retrieved.
        """
        return self.logits(self.decode(tokens, neighbors))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> (B, T, V)."""
        return self.norm(hidden) @ self.embedding.weight.T

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., D), scaled to the size that a residual stream wants."""
        return self.embedding(tokens) * self.config.dim**0.5

    def decode(self, tokens: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """As `forward`, but the last hidden states (B, T, D)."""
        length, chunk_len = tokens.shape[1], self.config.chunk_len
        num_chunks = length // chunk_len
        if neighbors is not None:
            neighbors = neighbors[:, :num_chunks]
        retrieving = neighbors is not None and self.encoder is not None and neighbors.numel() > 0
        present = tokens != self.config.pad_id
        places = torch.arange(length, device=tokens.device)
        mask = key_mask(present) & (places[:, None] >= places)
        encoded, neighbors_present = None, None
        x = self.embed(tokens)
        for layer in self.decoder_layers():
            x = x + layer.attend(layer.norm_attend(x), places, mask)[0]
            if retrieving and layer.retrieves:
                if encoded is None:  # the first layer with retrieval: its states condition the encoder
                    assert neighbors is not None
                    encoded, neighbors_present = self.encode_neighbors(neighbors, x, present)
                x = x + layer.retrieve(layer.norm_retrieve(x), encoded, neighbors_present)
            x = x + layer.think(layer.norm_think(x))
        return x

    def encode_neighbors(self, neighbors: Tensor, states: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """neighbors (B, L, K, R), states (B, T, D) and present (B, T) of the decoder, T >= L * C.

        Returns the encoded neighbors (B, L, K, R, E) and where their tokens stand (B, L, K, R).
        """
        assert self.encoder is not None
        batch, num_chunks = neighbors.shape[:2]
        covered = num_chunks * self.config.chunk_len
        flat = rearrange(neighbors, "b l k r -> (b l) k r")
        encoded = self.encoder(
            self.embed(flat),
            flat != self.config.pad_id,
            rearrange(states[:, :covered], "b (l c) d -> (b l) c d", l=num_chunks),
            rearrange(present[:, :covered], "b (l c) -> (b l) c", l=num_chunks),
        )
        return rearrange(encoded, "(b l) k r e -> b l k r e", b=batch), neighbors != self.config.pad_id

    def extend(self, tokens: Tensor, cache: DecodeCache, neighbors: Tensor | None = None) -> Tensor:
        """Read tokens (B, n) after those in the cache -> logits (B, n, V), equal to `forward`'s.

        All n belong to one attending chunk: the last token of a chunk and what follows up to the
        token before the next chunk's last. When they begin with the last token of a chunk,
        `neighbors` (B, K, R) are that chunk's; None there means that nothing was retrieved.
        """
        chunk_len, start, count = self.config.chunk_len, cache.length, tokens.shape[1]
        if (start + 1) // chunk_len != (start + count) // chunk_len:
            raise ValueError(
                f"tokens {start} to {start + count - 1} are not of one attending chunk of {chunk_len}"
            )
        border = (start + 1) % chunk_len == 0
        if neighbors is not None and not border:
            raise ValueError(f"neighbors were given at token {start}, which is not the last of a chunk")
        present = tokens != self.config.pad_id
        cache.present = present if cache.present is None else torch.cat([cache.present, present], dim=1)
        places = torch.arange(start, start + count, device=tokens.device)
        everything = torch.arange(start + count, device=tokens.device)
        itself = everything == places[:, None]
        mask = ((cache.present[:, None, :] | itself) & (everything <= places[:, None]))[:, None]
        if border:
            cache.neighbors, cache.neighbors_present = {}, None
        x = self.embed(tokens)
        first = min(self.config.cca_layers, default=0)
        for number, layer in enumerate(self.decoder_layers(), start=1):
            attended, cache.keys_values[number] = layer.attend(
                layer.norm_attend(x), places, mask, cache.keys_values.get(number)
            )
            x = x + attended
            if number == first:
                encoded = self._end_of_chunk(x, cache, border, neighbors)
                if encoded is not None:
                    for later, other in enumerate(self.decoder_layers(), start=1):
                        if other.retrieves:
                            cache.neighbors[later] = other.retrieve.neighbor_keys_values(encoded)
            if number in cache.neighbors:
                assert cache.neighbors_present is not None
                place = (start + 1) % chunk_len
                x = x + layer.retrieve.attend(
                    layer.norm_retrieve(x), cache.neighbors[number], place, cache.neighbors_present
                )
            x = x + layer.think(layer.norm_think(x))
        cache.length += count
        return self.logits(x)

    def _end_of_chunk(
        self, x: Tensor, cache: DecodeCache, border: bool, neighbors: Tensor | None
    ) -> Tensor | None:
        """Keep the states of the current chunk; at its last token encode its neighbors (B, K, R, E)."""
        states = x if cache.states is None else torch.cat([cache.states, x], dim=1)
        if not border:
            cache.states = states
            return None
        chunk_len = self.config.chunk_len
        cache.states = states[:, chunk_len:]
        if neighbors is None:
            return None
        assert cache.present is not None
        present = cache.present[:, cache.length + 1 - chunk_len : cache.length + 1]
        encoded, there = self.encode_neighbors(neighbors[:, None], states[:, :chunk_len], present)
        cache.neighbors_present = rearrange(there[:, 0], "b k r -> b (k r)")
        return encoded[:, 0]

    def token_losses(self, tokens: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """tokens (B, T + 1) -> loss of each token after the first (B, T), in nats; padding costs 0."""
        logits = self(tokens[:, :-1], neighbors)
        losses = F.cross_entropy(
            rearrange(logits, "b t v -> (b t) v"),
            rearrange(tokens[:, 1:], "b t -> (b t)"),
            ignore_index=self.config.pad_id,
            reduction="none",
        )
        return rearrange(losses, "(b t) -> b t", b=tokens.shape[0])

    def loss(self, batch: RetroBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the batch's tokens in nats, and figures to report beside it (none here)."""
        losses = self.token_losses(*batch)
        return losses.sum() / (batch.tokens[:, 1:] != self.config.pad_id).sum().clamp(min=1), {}
