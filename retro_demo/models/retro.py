"""RETRO: a causal decoder that reads the neighbors of the chunks before each token.

Token ids in, logits out: the network with its decoder layers and its neighbor encoder (bidirectional,
conditioned on the chunk that retrieved). Nothing here knows text, files, indexes or training. Without
`cca_layers` the same class is the plain decoder that serves as matched baseline (`lm`).

Source: Borgeaud et al. 2022, "Improving language models by retrieving from trillions of tokens",
sections 2.4 and 2.5 and appendix B. Differences, all stated there or in docs/science.md: rotary in
place of Transformer-XL positions (same relative distances), token embeddings shared by encoder,
decoder and output layer. RetroConfig has further options; they live in the parts, not in RETRO.

Shapes: B batch, T tokens, L chunks, N chunks that retrieve, C chunk length, K neighbors, R neighbor length
(N, then F), D decoder width, E encoder width, H heads, P head width, V vocabulary. Positions and chunks
count from 0; layers from 1, as in the paper.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from retro_demo.devices import to_device
from retro_demo.errors import UserError
from retro_demo.models.chunked_cross_attention import ChunkedCrossAttention
from retro_demo.models.config import RetroConfig
from retro_demo.models.layers import (
    CrossAttention,
    FeedForward,
    KeysValues,
    Linear,
    Memory,
    SelfAttention,
    added,
    attention_shape,
    draw_copying_weights,
    draw_deepnet_weights,
    draw_weights,
    key_mask,
    linear,
    make_final_norm,
    make_norm,
    record_attention,
    residual,
)


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


class RetroBatch(NamedTuple):
    """What one step reads: tokens (B, T + 1) and the neighbors of their whole chunks (B, L, K, R).

    `predicted` (): how many tokens the loss is a mean over, where this is a part of a batch.
    """

    tokens: Tensor
    neighbors: Tensor | None
    predicted: Tensor | None = None

    def to(self, device: torch.device) -> RetroBatch:
        neighbors = None if self.neighbors is None else to_device(self.neighbors, device)
        predicted = None if self.predicted is None else to_device(self.predicted, device)
        return RetroBatch(to_device(self.tokens, device), neighbors, predicted)

    def share(self, rank: int, size: int, pad_id: int = 0) -> RetroBatch:
        """Every size-th sequence from `rank` on; the losses of all parts add up to the loss of the batch."""
        neighbors = None if self.neighbors is None else self.neighbors[rank::size]
        return RetroBatch(self.tokens[rank::size], neighbors, (self.tokens[:, 1:] != pad_id).sum())


@dataclass
class DecodeCache:
    """What the tokens so far leave behind for the next one; filled by `RETRO.extend`."""

    tokens: Tensor | None = None  # (B, length)
    output: Tensor | None = None  # (D, V): the output layer, laid out for single tokens
    memories: dict[int, Memory] = field(default_factory=lambda: defaultdict(Memory))  # by layer
    states: Tensor | None = None  # (B, <= C, D): the current chunk at layer min(P), see RETRO.decode
    neighbors: dict[int, KeysValues] = field(default_factory=dict)  # by layer, of the last whole chunk
    neighbors_present: Tensor | None = None  # (B, K * R); None: everywhere
    retrieving: bool = False  # whether anything was retrieved for any chunk so far

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return 0 if self.tokens is None else self.tokens.shape[1]


class RETRO(nn.Module):
    """The retrieval-enhanced transformer: `RETRO(config)(tokens, neighbors)` gives logits."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = config.dec_scale
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        if config.absolute_positions:
            self.positions = nn.Embedding(config.absolute_positions, config.embed_dim)
        same = config.embed_dim == config.dim
        self.to_decoder = nn.Identity() if same else Linear(config.embed_dim, config.dim, bias=config.biases)
        self.layers = nn.ModuleList(
            DecoderLayer(config, number in config.cca_layers) for number in range(1, config.depth + 1)
        )
        self.norm = make_final_norm(config, config.dim)
        self.encoder = NeighborEncoder(config) if config.cca_layers else None
        if not config.tied_output:
            self.to_logits = Linear(config.dim, config.vocab_size, bias=config.biases)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the first weights: small ones, in the layers DeepNet's where these are asked for."""
        draw_weights(self, self.config.depth)
        if self.config.copying_start:
            for layer in self.decoder_layers():
                if layer.retrieves:
                    draw_copying_weights(layer.retrieve)
        if self.config.residual != "pre":
            enc_depth, depth = self.config.enc_depth, self.config.depth
            draw_deepnet_weights(self.layers, (12 * depth) ** -0.25)
            if self.encoder is not None:
                draw_deepnet_weights(self.encoder, 0.87 * (enc_depth**4 * depth) ** -0.0625)

    @torch.no_grad()
    def begin_encoder_as_decoder(self) -> None:
        """Give the encoder's layers the weights of the decoder's first ones, which have the same shape."""
        assert self.encoder is not None
        for own, other in zip(self.encoder.encoder_layers(), self.decoder_layers(), strict=False):
            for part in ("norm_attend", "attend", "norm_think", "think"):
                getattr(own, part).load_state_dict(getattr(other, part).state_dict())

    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers in order; layer number n of the paper is the (n - 1)th."""
        return cast(list[DecoderLayer], list(self.layers))

    def forward(self, tokens: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """tokens (B, T), neighbors (B, L, K, R) or None -> logits (B, T, V).

        neighbors[:, u] belong to chunk u, the tokens u * C ... u * C + C - 1, and are first seen at
        position u * C + C - 1; (B, L, R) is one neighbor for each chunk. `pad_id` stands for no
        token, in both; a neighbor of nothing but padding is absent, and None means that nothing
        was retrieved.
        """
        return self.logits(self.decode(tokens, neighbors))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> (B, T, V)."""
        if self.config.tied_output:
            return linear(self.norm(hidden), self.embedding.weight)
        return self.to_logits(self.norm(hidden))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., D), scaled to the size that a residual stream wants."""
        return self._scaled(self.embedding(tokens))

    def _scaled(self, embedded: Tensor) -> Tensor:
        return embedded * self.config.embed_dim**0.5 if self.config.scale_embeddings else embedded

    def embed_text(self, tokens: Tensor, places: Tensor, start: int = 0) -> Tensor:
        """tokens (B, T) at places (T,) = start ... of the text -> what the first layer reads (B, T, D)."""
        x = self.embedding(tokens)
        if most := self.config.absolute_positions:
            end = start + tokens.shape[1]
            if end > most:
                raise UserError(
                    f"The text has {end} tokens, but this model has positions for {most}. Shorten the text."
                )
            x = x + self.positions(places)
        return self.to_decoder(self._scaled(x))

    def present(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) of the text -> where one stands that may be attended to (B, T)."""
        return tokens != self.config.pad_id if self.config.mask_padding else torch.ones_like(tokens).bool()

    def decode(self, tokens: Tensor, neighbors: Tensor | None = None) -> Tensor:
        """As `forward`, but the last hidden states (B, T, D)."""
        length = tokens.shape[1]
        if neighbors is not None:
            neighbors = neighbors[:, : length // self.config.chunk_len]
            neighbors = neighbors[:, :, None] if neighbors.ndim == 3 else neighbors
        retrieving = neighbors is not None and self.encoder is not None and neighbors.numel() > 0
        present = self.present(tokens)
        places = torch.arange(length, device=tokens.device)
        mask = added(key_mask(present) & (places[:, None] >= places), self.embedding.weight)
        encoded, neighbors_present = None, None
        x = self.embed_text(tokens, places)
        for layer in self.decoder_layers():
            x = residual(x, layer.norm_attend, partial(layer.attend, positions=places, mask=mask), self.scale)
            if retrieving and layer.retrieves:
                if encoded is None:  # the first layer with retrieval: its states condition the encoder
                    assert neighbors is not None
                    encoded, neighbors_present = self.encode_neighbors(neighbors, x, present)
                read = partial(layer.retrieve, encoded=encoded, mask=neighbors_present)
                x = residual(x, layer.norm_retrieve, read, self.scale)
            elif layer.retrieves:
                x = self._without_neighbors(layer, x, retrieving)
            x = residual(x, layer.norm_think, layer.think, self.scale)
        return x

    def _without_neighbors(self, layer: DecoderLayer, x: Tensor, retrieving: bool) -> Tensor:
        """What a layer with retrieval makes of x where it adds nothing: x itself, unless norms come after."""
        kind = self.config.residual
        if kind == "deepnet" or (kind == "deepnet-reference" and retrieving):
            return residual(x, layer.norm_retrieve, torch.zeros_like, self.scale)
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

    def new_cache(self, room: int = 0, batch: int = 1) -> DecodeCache:
        """What texts of about `room` tokens are written with, however many."""
        return DecodeCache(memories=defaultdict(partial(Memory, room) if room else Memory))

    def before_prompt(self, length: int) -> list[int]:
        """What stands before a prompt of so many tokens: nothing; chunks are counted from its first token."""
        return []

    def attention(self, tokens: Tensor, neighbors: Tensor) -> Tensor:
        """tokens (1, T), neighbors (1, L, K, R), L = T // C -> weights (layers, L, H, C, K, R).

        One forward over the finished text: the model is causal and the neighbors are given, so these are the
        weights of each step. Rows past the end of the text are those of no token.
        """
        with record_attention(self) as seen:
            self.decode(tokens, neighbors)
        by_layer = [seen[f"layers.{layer - 1}.retrieve"] for layer in sorted(self.config.cca_layers)]
        length = self.config.neighbor_len
        return rearrange(torch.stack(by_layer), "n l h c (k r) -> n l h c k r", r=length)

    def extend(self, tokens: Tensor, cache: DecodeCache, neighbors: Tensor | None = None) -> Tensor:
        """What `read` reads -> logits (B, n, V), equal to `forward`'s."""
        return self.logits(self.read(tokens, cache, neighbors))

    def next_logits(self, tokens: Tensor, cache: DecodeCache, neighbors: Tensor | None = None) -> Tensor:
        """The same, but the logits (B, V) after the last of the tokens only."""
        hidden = self.read(tokens, cache, neighbors)[:, -1]
        if not self.config.tied_output:
            return self.logits(hidden)
        if cache.output is None:
            cache.output = self.embedding.weight.t().contiguous()
        return self.norm(hidden) @ cache.output

    def read(self, tokens: Tensor, cache: DecodeCache, neighbors: Tensor | None = None) -> Tensor:
        """Read tokens (B, n) after those in the cache -> their last hidden states (B, n, D).

        All n belong to one attending chunk: the last token of a chunk and what follows up to the
        token before the next chunk's last. When they begin with the last token of a chunk,
        `neighbors` (B, K, R) or (B, R) are that chunk's; None there means that nothing was retrieved.
        """
        chunk_len, start, count = self.config.chunk_len, cache.length, tokens.shape[1]
        if (start + 1) // chunk_len != (start + count) // chunk_len:
            raise ValueError(
                f"tokens {start} to {start + count - 1} are not of one attending chunk of {chunk_len}"
            )
        border = (start + 1) % chunk_len == 0
        if neighbors is not None and not border:
            raise ValueError(f"neighbors were given at token {start}, which is not the last of a chunk")
        if neighbors is not None and neighbors.ndim == 2:
            neighbors = neighbors[:, None]
        if neighbors is not None and not cache.retrieving:
            self._begin_retrieving(cache)
        cache.tokens = tokens if cache.tokens is None else torch.cat([cache.tokens, tokens], dim=1)
        places = torch.arange(start, start + count, device=tokens.device)
        if count == 1 and not self.config.mask_padding:
            mask = None
        else:
            everything = torch.arange(start + count, device=tokens.device)
            seen = self.present(cache.tokens)[:, None, :] | (everything == places[:, None])
            mask = added((seen & (everything <= places[:, None]))[:, None], self.embedding.weight)
        if border:
            cache.neighbors, cache.neighbors_present = {}, None
        x = self.embed_text(tokens, places, start)
        first = min(self.config.cca_layers, default=0)
        for number, layer in enumerate(self.decoder_layers(), start=1):
            look_back = partial(layer.attend, positions=places, mask=mask, memory=cache.memories[number])
            x = residual(x, layer.norm_attend, look_back, self.scale)
            if number == first:
                self._keep_states(x, cache, border, neighbors)
            if number in cache.neighbors:
                read = partial(
                    layer.retrieve.attend,
                    context=cache.neighbors[number],
                    position=(start + 1) % chunk_len,
                    mask=cache.neighbors_present,
                )
                x = residual(x, layer.norm_retrieve, read, self.scale)
            elif layer.retrieves:
                x = self._without_neighbors(layer, x, cache.retrieving)
            x = residual(x, layer.norm_think, layer.think, self.scale)
        return x

    def _begin_retrieving(self, cache: DecodeCache) -> None:
        """Note that neighbors come; in the reference's post-norm this changes the tokens before them."""
        cache.retrieving = True
        if self.config.residual != "deepnet-reference" or cache.tokens is None:
            return
        tokens, chunk_len = cache.tokens, self.config.chunk_len
        cache.tokens, cache.states = None, None
        cache.memories.clear()
        while (start := cache.length) < tokens.shape[1]:
            self.read(tokens[:, start : (start + 1) // chunk_len * chunk_len + chunk_len - 1], cache)

    def _keep_states(self, x: Tensor, cache: DecodeCache, border: bool, neighbors: Tensor | None) -> None:
        """Keep the states of the current chunk; at its last token encode its neighbors for all layers."""
        states = x if cache.states is None else torch.cat([cache.states, x], dim=1)
        chunk_len = self.config.chunk_len
        cache.states = states[:, chunk_len:] if border else states
        if neighbors is None or cache.tokens is None:
            return
        end = cache.length - x.shape[1] + 1
        present = self.present(cache.tokens[:, end - chunk_len : end])
        encoded, there = self.encode_neighbors(neighbors[:, None], states[:, :chunk_len], present)
        cache.neighbors_present = None if there.all() else rearrange(there[:, 0], "b k r -> b (k r)")
        for number, layer in enumerate(self.decoder_layers(), start=1):
            if layer.retrieves:
                cache.neighbors[number] = layer.retrieve.neighbor_keys_values(encoded[:, 0])

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
        losses = self.token_losses(batch.tokens, batch.neighbors)
        if batch.predicted is not None:
            return losses.sum() / batch.predicted.clamp(min=1), {}
        return losses.sum() / (batch.tokens[:, 1:] != self.config.pad_id).sum().clamp(min=1), {}
