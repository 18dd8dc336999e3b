"""What the positions in chunked cross-attention are worth: a task in which neighbors hold the answer.

Random tokens, which nothing predicts; each chunk's neighbors are the chunk and its true
continuation with a fifth of the tokens overwritten. A model that reads the aligned neighbor token
gets far below the entropy of the tokens; one whose queries do not know their place cannot.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retro_demo.models.config import RetroConfig
from retro_demo.models.retro import RETRO

VOCAB, CHUNKS, NEIGHBORS, CORRUPTED, WIDTH = 64, 4, 2, 0.2, 64
NOTHING_KNOWN = math.log(VOCAB - 1)


def copy_batch(generator: torch.Generator, chunk_len: int, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Tokens (B, L * C) and neighbors (B, L - 1, K, 2 C) that hold them, corrupted."""
    tokens = torch.randint(1, VOCAB, (batch, CHUNKS * chunk_len), generator=generator)
    true = tokens.unfold(1, 2 * chunk_len, chunk_len)[:, :, None].expand(-1, -1, NEIGHBORS, -1)
    noise = torch.randint(1, VOCAB, true.shape, generator=generator)
    struck = torch.rand(true.shape, generator=generator) < CORRUPTED
    return tokens, torch.where(struck, noise, true)


def loss_after_training(positions: str, *, chunk_len: int, steps: int, seed: int) -> float:
    """Mean loss (nats) of the last five steps, on the tokens that retrieval can reach."""
    torch.manual_seed(seed)
    config = RetroConfig(
        vocab_size=VOCAB,
        chunk_len=chunk_len,
        dim=WIDTH,
        enc_dim=WIDTH,
        depth=2,
        cca_layers=(1, 2),
        cca_positions=positions,
    )
    model, generator, losses = RETRO(config), torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if chunk_len == 16 else 5e-3)
    for _ in range(steps):
        loss = model.token_losses(*copy_batch(generator, chunk_len))[:, chunk_len - 1 :].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-5:]) / 5


def test_the_papers_positions_learn_to_copy_where_the_references_do_not():
    paper, reference = (
        loss_after_training(positions, chunk_len=8, steps=45, seed=0) for positions in ("paper", "reference")
    )

    assert reference > NOTHING_KNOWN - 0.4
    assert paper < reference - 0.7


@pytest.mark.proof
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_100_steps_the_papers_positions_are_at_least_a_nat_ahead(seed):
    paper, reference = (
        loss_after_training(positions, chunk_len=16, steps=100, seed=seed)
        for positions in ("paper", "reference")
    )

    assert paper < reference - 1
