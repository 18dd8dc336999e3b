"""What tests of retro share with others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retro_demo.models.config import RetroConfig
from retro_demo.models.retro import RETRO, DecodeCache

VOCAB, CHUNK, CHUNKS, NEIGHBORS = 40, 4, 4, 2


TOLERANCE = 1e-5


CONFIG = RetroConfig(
    vocab_size=VOCAB,
    chunk_len=CHUNK,
    dim=16,
    depth=4,
    num_heads=2,
    cca_layers=(2, 4),
    enc_dim=24,
    enc_depth=2,
    enc_cross_layers=(1,),
)


def tiny_retro(config: RetroConfig = CONFIG, seed: int = 0) -> RETRO:
    """Weights ten times the usual ones, so that every path shows in the logits."""
    torch.manual_seed(seed)
    model = RETRO(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return model


def example(length: int = CHUNK * CHUNKS, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCAB, (batch, length), generator=generator)
    shape = (batch, length // CHUNK, NEIGHBORS, 2 * CHUNK)
    return tokens, torch.randint(1, VOCAB, shape, generator=generator)


def other(tokens: Tensor) -> Tensor:
    """Another token at each place, never padding."""
    return tokens % (VOCAB - 1) + 1


def read_in_pieces(model: RETRO, tokens: Tensor, neighbors: Tensor | None, prompt: int = 1) -> Tensor:
    """The logits (B, T, V) of a prompt read in pieces and of one token at a time after it."""
    cache, logits, chunk_len = DecodeCache(), [], model.config.chunk_len
    while (start := cache.length) < tokens.shape[1]:
        chunk, place = divmod(start + 1, chunk_len)
        border = (chunk + 1) * chunk_len - 1  # where the next piece begins at the latest
        found = neighbors[:, chunk - 1] if neighbors is not None and place == 0 else None
        logits.append(model.extend(tokens[:, start : min(border, max(prompt, start + 1))], cache, found))
    return torch.cat(logits, dim=1)


@pytest.fixture
def model() -> RETRO:
    return tiny_retro()
