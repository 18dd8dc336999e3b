"""Held-out loss of a model with and without its neighbors, in nats a token and bits a byte.

Only positions that retrieval can reach count (from the last token of the first chunk on), the same
ones for every arm.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from retro_demo.models.retro import RETRO
from retro_demo.training.batches import RetroBatches


@torch.inference_mode()
def measure_arms(
    model: RETRO, batches: RetroBatches, bytes_of_tokens: np.ndarray, max_tokens: int
) -> dict[str, dict[str, float]]:
    """Loss of each arm on the held-out documents: {"on": {nats, bpb, tokens}, "off": ...}.

    "off" is the same model without neighbors; a plain `lm` has no other arm. bytes_of_tokens (V,):
    bpb = nats / (ln 2 * bytes of the original text). Empty where nothing is held out.
    """
    model.eval()
    device = next(model.parameters()).device
    pad, first = model.config.pad_id, model.config.chunk_len - 1
    width = torch.from_numpy(bytes_of_tokens).to(device)
    arms = ("on", "off") if batches.retrieves else ("off",)
    nats = dict.fromkeys(arms, 0.0)
    tokens, size = 0, 0
    for _, batch in batches.held_out_batches(max_tokens):
        batch = batch.to(device)
        for arm in arms:
            losses = model.token_losses(batch.tokens, batch.neighbors if arm == "on" else None)
            nats[arm] += losses[:, first:].cpu().double().sum().item()
        targets = batch.tokens[:, 1:][:, first:]
        tokens += int((targets != pad).sum())
        size += int(width[targets].sum())
    if not tokens:
        return {}
    return {
        arm: {"nats": total / tokens, "bpb": total / math.log(2) / max(1, size), "tokens": tokens}
        for arm, total in nats.items()
    }
