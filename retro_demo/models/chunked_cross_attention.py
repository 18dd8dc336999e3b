"""Chunked cross-attention: how the tokens after a chunk read its neighbors.

Source: Borgeaud et al. 2022, "Improving language models by retrieving from trillions of tokens", section 2.4
and appendix B.1.2.

Shapes: B batch, T tokens, L chunks, C chunk length, K neighbors, R neighbor length (N, then F), D decoder
width, E encoder width, H heads, P head width. Positions and chunks count from 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from retro_demo.models.layers import AttentionShape, CrossAttention, KeysValues


class ChunkedCrossAttention(CrossAttention):
    """Let the tokens after each chunk attend to that chunk's neighbors.

    The last token of chunk u and the first C - 1 tokens of chunk u + 1 attend to the neighbors of
    chunk u, so no token sees a neighbor found with text after it. The tokens before the last of
    the first chunk get zeros. The softmax runs over all neighbors of the chunk together.

    Relative distances: the query at place i of its C (i = 0 is the last token of chunk u) and the
    neighbor token i' stand i - i' + C - 1 apart, so N is aligned with chunk u and F with what
    follows. Source: section 2.4, equation for CCA; appendix B.1.2 for the distances.
    """

    def __init__(
        self,
        chunk_len: int,
        dim: int,
        context_dim: int,
        shape: AttentionShape,
        *,
        null: bool = False,
        abstain: bool = False,
        positions: str = "paper",
        shifted_keys: bool = False,
    ) -> None:
        super().__init__(dim, context_dim, shape, null=null, abstain=abstain)
        self.chunk_len = chunk_len
        self.positions = positions
        self.shifted_keys = shifted_keys

    def query_positions(self, position: int, count: int, device: torch.device) -> Tensor:
        """Rotary positions (count,) of the tokens at `position` and after it in their attending chunk."""
        places = torch.arange(position, position + count, device=device)
        if self.positions == "reference":  # shifted twice: all but the first query stand at 0
            return (places == 0) * (2 * self.chunk_len - 2)
        return places + self.chunk_len - 1

    def neighbor_keys_values(self, encoded: Tensor) -> KeysValues:
        """encoded (B, K, R, E) -> keys and values (B, H, K * R, P); each neighbor starts at 0.

        With `shifted_keys` a token is found by the token before it: whoever looks for what was just
        written finds what followed it there. The first token of a neighbor has the key 0.
        """
        num_neighbors, length = encoded.shape[1:3]
        places = torch.arange(length, device=encoded.device).repeat(num_neighbors)
        keys, values = self.project(rearrange(encoded, "b k r e -> b (k r) e"))
        if self.shifted_keys:
            keys = rearrange(keys, "b h (k r) p -> b h k r p", k=num_neighbors)[..., :-1, :]
            keys = rearrange(F.pad(keys, (0, 0, 1, 0)), "b h k r p -> b h (k r) p")
        return self.placed(KeysValues(keys, values), places)

    def attend(self, x: Tensor, context: KeysValues, position: int, mask: Tensor | None) -> Tensor:
        """x (B, T, D): tokens of one attending chunk, the first at `position` in it -> (B, T, D)."""
        positions = self.query_positions(position, x.shape[1], x.device)
        return super().forward(x, context, positions, mask)

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
