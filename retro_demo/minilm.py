"""The forward pass of all-MiniLM-L6-v2 in plain torch.

Owns the arithmetic alone: word pieces in, one vector a text out. It knows no files and no text;
embedding.py reads the weights and tokenizes.

Shapes: B batch, T word pieces.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


class MiniLM:
    """A BERT encoder of 6 layers, 12 heads and width 384, read from its tensors.

    Source: Devlin et al. 2019 (BERT), with the weights of sentence-transformers/all-MiniLM-L6-v2.
    """

    num_layers = 6
    num_heads = 12

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    @classmethod
    def fits(cls, weights: dict[str, Tensor]) -> bool:
        """Whether these tensors are a BERT of this depth and width."""
        last = f"encoder.layer.{cls.num_layers - 1}.output.dense.weight"
        beyond = f"encoder.layer.{cls.num_layers}.output.dense.weight"
        return last in weights and weights[last].shape == (384, 1536) and beyond not in weights

    def __call__(self, ids: Tensor) -> Tensor:
        """Word pieces (B, T), 0 = padding -> mean over the real positions (B, 384)."""
        real = ids != 0
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm("embeddings.LayerNorm", hidden)
        for number in range(self.num_layers):
            layer = f"encoder.layer.{number}"
            mixed = self._attend(f"{layer}.attention.self", hidden, real)
            mixed = self._linear(f"{layer}.attention.output.dense", mixed)
            hidden = self._norm(f"{layer}.attention.output.LayerNorm", hidden + mixed)
            wide = F.gelu(self._linear(f"{layer}.intermediate.dense", hidden))
            narrow = self._linear(f"{layer}.output.dense", wide)
            hidden = self._norm(f"{layer}.output.LayerNorm", hidden + narrow)
        return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)

    def _attend(self, part: str, hidden: Tensor, real: Tensor) -> Tensor:
        query, key, value = (
            self._linear(f"{part}.{role}", hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for role in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, real[:, None, None, :])
        return mixed.transpose(1, 2).flatten(2)

    def _linear(self, part: str, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._weights[f"{part}.weight"], self._weights[f"{part}.bias"])

    def _norm(self, part: str, hidden: Tensor) -> Tensor:
        scale, shift = self._weights[f"{part}.weight"], self._weights[f"{part}.bias"]
        return F.layer_norm(hidden, scale.shape, scale, shift, eps=1e-12)
