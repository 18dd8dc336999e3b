"""The forward pass of all-MiniLM-L6-v2 in plain torch.

Owns the arithmetic alone: word pieces in, one vector a text out. It knows no files and no text;
retrieval/embedding.py reads the weights and tokenizes.

Shapes: B batch, T word pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retro_demo.models import linear

TOKENS = 2048  # word pieces of a usual batch


class MiniLM:
    """A BERT encoder of 6 layers, 12 heads and width 384, read from its tensors.

    Source: Devlin et al. 2019 (BERT), with the weights of sentence-transformers/all-MiniLM-L6-v2.
    """

    num_layers = 6
    num_heads = 12

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """weights by their names in the file, all on one device."""
        self._weights = dict(weights)
        for number in range(self.num_layers):  # one product in place of three
            part = f"encoder.layer.{number}.attention.self"
            for kind in ("weight", "bias"):
                roles = [self._weights.pop(f"{part}.{role}.{kind}") for role in ("query", "key", "value")]
                self._weights[f"{part}.{kind}"] = torch.cat(roles)
        self._packed = _packed(self._weights)

    @classmethod
    def fits(cls, weights: dict[str, Tensor]) -> bool:
        """Whether these tensors are a BERT of this depth and width."""
        last = f"encoder.layer.{cls.num_layers - 1}.output.dense.weight"
        beyond = f"encoder.layer.{cls.num_layers}.output.dense.weight"
        return last in weights and weights[last].shape == (384, 1536) and beyond not in weights

    def __call__(self, ids: Tensor) -> Tensor:
        """Word pieces (B, T), 0 = padding -> mean over the real positions (B, 384)."""
        real = ids != 0
        mask = None if bool(real.all()) else real[:, None, None, :]
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm("embeddings.LayerNorm", hidden)
        for number in range(self.num_layers):
            layer = f"encoder.layer.{number}"
            mixed = self._attend(f"{layer}.attention.self", hidden, mask)
            mixed = self._linear(f"{layer}.attention.output.dense", mixed)
            hidden = self._norm(f"{layer}.attention.output.LayerNorm", hidden + mixed)
            wide = F.gelu(self._linear(f"{layer}.intermediate.dense", hidden))
            narrow = self._linear(f"{layer}.output.dense", wide)
            hidden = self._norm(f"{layer}.output.LayerNorm", hidden + narrow)
        return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)

    def _attend(self, part: str, hidden: Tensor, mask: Tensor | None) -> Tensor:
        both = self._linear(part, hidden).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = both.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)

    def _linear(self, part: str, hidden: Tensor) -> Tensor:
        bias = self._weights[f"{part}.bias"]
        if part in self._packed:
            return torch.ops.mkldnn._linear_pointwise(hidden, self._packed[part], bias, "none", [], "")
        return F.linear(hidden, self._weights[f"{part}.weight"], bias)

    def _norm(self, part: str, hidden: Tensor) -> Tensor:
        scale, shift = self._weights[f"{part}.weight"], self._weights[f"{part}.bias"]
        return F.layer_norm(hidden, scale.shape, scale, shift, eps=1e-12)


def _packed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of the encoder as oneDNN wants them; none where it is not to multiply (models/linear.py).

    Packed they are read faster still: 195 GFLOP/s against 88 by MKL on a core of an AMD EPYC (2,304 x 384
    times 384 x 1,536, the same to 5e-6).
    """
    if weights["embeddings.LayerNorm.weight"].device.type != "cpu" or not linear.prefers_onednn():
        return {}
    return {
        name.removesuffix(".weight"): torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), TOKENS)
        for name, matrix in weights.items()
        if name.startswith("encoder.") and name.endswith(".weight") and matrix.ndim == 2
    }
