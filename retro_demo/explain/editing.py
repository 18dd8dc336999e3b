"""Another text in place of a neighbor: what the model would have expected, and where that begins.

Token ids in, numbers out. The claim that nothing before the neighbor's readers moves is computed
here, not assumed.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retro_demo.explain.explain import TOP, log_probabilities
from retro_demo.models.retro import RETRO, DecodeCache

MOVED = 1e-5  # a logarithm of a probability that differs by less has not moved


@dataclass(frozen=True)
class Edit:
    """What changed by reading `after` instead of `before` at one place.

    kl (T,): KL(p_before || p_after) of the next token after each token, in nats. first: the first
    token that reads the neighbor; `moved_before` of the tokens before it have another prediction
    now, the largest difference of a log-probability there is `largest_before`. top_ids and
    top_probabilities (3, T, TOP): before, after, and with retrieval off.
    """

    chunk: int
    neighbor: int
    before: np.ndarray
    after: np.ndarray
    kl: np.ndarray
    first: int
    moved_before: int
    largest_before: float
    top_ids: np.ndarray
    top_probabilities: np.ndarray


def fit(parts: Sequence[Sequence[int]], chunk_len: int, pad: int = 0) -> tuple[np.ndarray, list[int]]:
    """Tokens of N and of F -> one neighbor (R,), each part cut or padded to C; and how many were cut."""
    row = np.full((2, chunk_len), pad, dtype=np.int64)
    for place, part in enumerate(parts):
        row[place, : len(part[:chunk_len])] = part[:chunk_len]
    return row.reshape(-1), [max(0, len(part) - chunk_len) for part in parts]


def replaced(neighbors: np.ndarray, chunk: int, neighbor: int, after: np.ndarray) -> np.ndarray:
    """neighbors (L, K, R) with another one at a place; all padding deletes it."""
    changed = neighbors.copy()
    changed[chunk, neighbor] = after
    return changed


def edit_neighbor(
    model: RETRO,
    tokens: np.ndarray,
    neighbors: np.ndarray,
    chunk: int,
    neighbor: int,
    after: np.ndarray,
) -> Edit:
    """Read the text twice more: tokens (T,), neighbors (L, K, R), after (R,), padding where deleted."""
    changed = replaced(neighbors, chunk, neighbor, after)
    # one forward each, of equal shape: equal inputs then give equal bits
    reads = (neighbors[None], changed[None], None)
    old, new, off = (log_probabilities(model, tokens, read)[0] for read in reads)
    first = (chunk + 1) * model.config.chunk_len - 1
    apart = (old - new)[:first].abs().amax(dim=-1).cpu().numpy()
    tops = [one.exp().topk(min(TOP, one.shape[-1])) for one in (old, new, off)]
    return Edit(
        chunk,
        neighbor,
        neighbors[chunk, neighbor],
        after,
        (old.double().exp() * (old.double() - new.double())).sum(dim=-1).clamp(min=0).cpu().numpy(),
        first,
        int((apart > MOVED).sum()),
        float(apart.max(initial=0)),
        np.stack([top.indices.cpu().numpy() for top in tops]).astype(np.int32),
        np.stack([top.values.cpu().numpy() for top in tops]).astype(np.float32),
    )


@torch.inference_mode()
def write_on(
    model: RETRO, tokens: np.ndarray, versions: np.ndarray, chunk: int, count: int, eos: int
) -> list[list[int]]:
    """How the text would go on after `chunk`, for each version of the neighbors (B, L, K, R).

    The likeliest tokens, at most `count` and at most as many as read this chunk's neighbors
    (C), up to an end of text. What the versions read before the chunk should be the same.
    """
    device = next(model.parameters()).device
    chunk_len, end = model.config.chunk_len, (chunk + 1) * model.config.chunk_len
    text = torch.from_numpy(tokens[:end].astype(np.int64)).to(device).expand(len(versions), -1)
    read = torch.from_numpy(versions.astype(np.int64)).to(device)
    cache, logits = DecodeCache(), torch.empty(0)
    for start in range(-1, end - 1, chunk_len):  # one attending chunk at a time
        part = text[:, max(0, start) : start + chunk_len]
        if part.shape[1]:
            seen = read[:, start // chunk_len] if start >= 0 else None
            logits = model.next_logits(part, cache, seen)
    logits = model.next_logits(text[:, -1:], cache, read[:, chunk])
    written: list[list[int]] = [[] for _ in versions]
    for step in range(min(count, chunk_len)):
        logits[:, model.config.pad_id] = float("-inf")
        chosen = logits.argmax(dim=-1)
        for one, token in zip(written, chosen.tolist(), strict=True):
            one.append(token)
        if step + 1 < min(count, chunk_len):
            logits = model.next_logits(chosen[:, None], cache)
    return [one[: one.index(eos)] if eos in one else one for one in written]
