"""How RETRO-pytorch 0.3.9 samples and writes, to compare with; our own way is `generation/retro.py`.

Shapes: B batch, T tokens, C chunk length, K neighbors, R neighbor length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from retro_demo.models.retro import RETRO, DecodeCache

EOS = 102  # [SEP] of its tokenizer


def top_k(logits: Tensor, thres: float = 0.9) -> Tensor:
    """logits (B, V) with all but the largest share 1 - thres (at least one) at minus infinity."""
    kept = max(int((1 - thres) * logits.shape[-1]), 1)
    largest, places = logits.topk(kept, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, places, largest)


def top_p(logits: Tensor, thres: float = 0.9) -> Tensor:
    """logits (B, V) with all but the likeliest at minus infinity, those that hold 1 - thres together.

    So thres 0.9 keeps the mass 0.1, and not 0.9 as its name promises; at least one token stays.
    """
    ranked, order = logits.sort(dim=-1, descending=True)
    before = F.pad(ranked.softmax(dim=-1).cumsum(dim=-1), (1, -1))  # the mass of the likelier ones
    dropped = (before > 1 - thres).scatter(-1, order, before > 1 - thres)
    return logits.masked_fill(dropped, float("-inf"))


def gumbel_sample(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """logits (B, V) -> ids (B,) drawn by the Gumbel trick, with the same random numbers as there."""
    uniform = torch.zeros_like(logits).uniform_(0, 1, generator=generator)
    noise = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    return (logits / temperature + noise).argmax(dim=-1)


@torch.inference_mode()
def generate_as_reference(
    model: RETRO,
    start: Tensor,
    retrieve: Callable[[Tensor], Tensor],
    *,
    filter_logits: Callable[[Tensor, float], Tensor] = top_k,
    thres: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    eos_id: int = EOS,
) -> Tensor:
    """start (B, T) and what follows up to one token more than the model has positions for (B, ...).

    `retrieve` maps chunks (N, C) to their neighbors (N, K, R); it is asked once for the whole chunks
    of `start` and at each border after it. Writing ends early once all texts hold `eos_id` (the
    start counts too, as there), and what follows it becomes padding. Keys and values are kept, so
    this is fast; the tokens are those of the reference.
    """
    chunk_len, most = model.config.chunk_len, model.config.absolute_positions
    generator = generator or torch.Generator(start.device)
    cache, tokens = DecodeCache(), start
    whole = start.shape[1] // chunk_len
    found: list[Tensor] = []  # (B, K, R) of each chunk
    if whole:
        chunks = rearrange(start[:, : whole * chunk_len], "b (l c) -> (b l) c", c=chunk_len)
        found += rearrange(retrieve(chunks), "(b l) k r -> l b k r", l=whole).unbind()
    while tokens.shape[1] <= most:
        while (place := cache.length) < tokens.shape[1]:
            chunk, border = divmod(place + 1, chunk_len)
            end = chunk * chunk_len + chunk_len - 1  # where the next attending chunk begins
            logits = model.next_logits(tokens[:, place:end], cache, None if border else found[chunk - 1])
        kept = filter_logits(logits, thres)
        tokens = torch.cat([tokens, gumbel_sample(kept, temperature, generator)[:, None]], dim=1)
        ended = tokens == eos_id
        if ended.any(dim=-1).all():
            after = F.pad(ended, (1, -1)).cumsum(dim=-1) > 0
            return tokens.masked_fill(after, model.config.pad_id)
        if tokens.shape[1] % chunk_len == 0:
            found.append(retrieve(tokens[:, -chunk_len:]))
    return tokens
