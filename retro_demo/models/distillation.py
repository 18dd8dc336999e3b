"""Attention distillation: the relevance of a document follows how much the decoder looks at it.

Shapes: B batch of targets, T tokens, M evidence, S evidence length, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def mean_scores(scores: Tensor, present: Tensor, rows: Tensor, eps: float) -> Tensor:
    """Scores (B, H, T, M * S) of a layer -> their mean for each document (B, M); 0 where it has none.

    present (B or 1, M, S) where its tokens stand; rows (B, T, 1) where the target's do; `eps` is
    added to their number.
    """
    batch, heads, steps, _ = scores.shape
    documents, length = present.shape[1:]
    by_document = rearrange(scores, "b h t (m s) -> b h t m s", m=documents, s=length)
    seen = (present[:, None] & rows[..., None]).expand(batch, steps, documents, -1)  # (B, T, M, S)
    total = (by_document * seen[:, None]).sum(dim=(1, 2, 4))
    return total / (heads * seen.sum(dim=(1, 3)) + eps)


def attention_mass(scores: Tensor, seen: Tensor, rows: Tensor, documents: int) -> Tensor:
    """Scores of content alone (B, H, T, M * S) -> the share of attention each document would get (B, M).

    seen (B, T or 1, M * S) as in `marge_layers.Read`; rows (B, T, 1) where the target's tokens stand.
    """
    lowest = -torch.finfo(scores.dtype).max
    weights = scores.masked_fill(~seen[:, None], lowest).softmax(dim=-1) * seen[:, None]
    received = rearrange(weights, "b h t (m s) -> b h t m s", m=documents).sum(dim=-1)
    counted = rows[:, None]
    return (received * counted).sum(dim=(1, 2)) / (scores.shape[1] * rows.sum(dim=1)).clamp(min=1)


def looked(source: str, scores: Tensor, present: Tensor, seen: Tensor, rows: Tensor, eps: float) -> Tensor:
    """What a layer looked at, as logits over documents (B, M): MargeConfig.distill_from says by what."""
    if source == "scores":
        return mean_scores(scores, present, rows, eps)
    return attention_mass(scores, seen, rows, present.shape[1]).clamp(min=1e-6).log()


def distillation(looks: Tensor, relevance: Tensor, visible: Tensor | None) -> Tensor:
    """KL from what the layers looked at, looks (layers, B, M), to the relevance (B, M); in nats a target.

    Shares of attention differ by more than cosines can: for them the relevance comes times beta.
    Source: Izacard and Grave 2020, "Distilling knowledge from reader to retriever", section 3.2.
    """
    hidden = torch.zeros_like(relevance)
    if visible is not None:
        hidden = hidden.masked_fill(~visible, -torch.finfo(relevance.dtype).max)
    teacher = (looks.mean(dim=0) + hidden).softmax(dim=-1).detach()
    student = (relevance + hidden).log_softmax(dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean")
