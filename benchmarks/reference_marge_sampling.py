"""How marge-pytorch 0.2.9 samples and writes, to compare with; our own way is `generation/marge.py`.

Shapes: B batch, T tokens, M evidence of each text, S evidence length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retro_demo.models.marge import MARGE
from retro_demo.models.marge_layers import WriteCache


def top_k(logits: Tensor, thres: float = 0.9) -> Tensor:
    """logits (B, V) with all but the largest share 1 - thres at minus infinity.

    Where that is less than one token none is left, and the token 0 will be drawn.
    """
    largest, places = logits.topk(int((1 - thres) * logits.shape[-1]), dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, places, largest)


def gumbel_sample(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """logits (B, V) -> ids (B,) drawn by the Gumbel trick, with the same random numbers as there."""
    uniform = torch.zeros_like(logits).uniform_(0, 1, generator=generator)
    noise = -(-(uniform + 1e-9).log() + 1e-9).log()
    return (logits / temperature + noise).argmax(dim=-1)


@torch.inference_mode()
def reference_generate(
    model: MARGE,
    prime: Tensor,
    seq_len: int,
    evidence: Tensor,
    similarities: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    filter_logits: Callable[[Tensor, float], Tensor] = top_k,
    thres: float = 0.9,
    temperature: float = 1.0,
    eos_token: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """prime (B, T) or (T,), evidence (B, M, S) -> the `seq_len` tokens that follow (B, seq_len), alone.

    Relevance is what `similarities` (B, M) says, 1 for all evidence by default; it is not computed.
    `mask` (B, M, S) hides tokens of the evidence. The model sees the last tokens only, as many as it
    has positions for, the first of them at position 0. Writing ends early where all texts get
    `eos_token` in the same step. Keys and values are kept until the window begins to move.
    """
    most = model.config.absolute_positions
    generator = generator or torch.Generator(prime.device)
    text = prime if prime.ndim == 2 else prime[None]
    start = text.shape[1]
    encoded = model.encode_evidence(evidence, mask)
    if similarities is None:
        similarities = torch.ones(evidence.shape[:2], device=prime.device)
    ready = cache = model.begin(encoded, similarities)
    for _ in range(seq_len):
        if text.shape[1] > most:
            cache = WriteCache(ready.relevance, ready.seen, ready.contexts)
        logits = model.next_logits(text[:, -most:][:, cache.length :], cache)
        drawn = gumbel_sample(filter_logits(logits, thres), temperature, generator)
        text = torch.cat([text, drawn[:, None]], dim=1)
        if eos_token is not None and (drawn == eos_token).all():
            break
    written = text[:, start:]
    return written if prime.ndim == 2 else written[0]
