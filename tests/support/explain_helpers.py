"""What tests of explain share with others."""

from __future__ import annotations

import numpy as np
import torch

from retro_demo.models.config import RetroConfig
from retro_demo.models.retro import RETRO

C, VOCAB = 4, 40


def tiny() -> RETRO:
    torch.manual_seed(0)
    shape = {"dim": 16, "depth": 3, "num_heads": 2, "cca_layers": (2, 3), "enc_dim": 16}
    model = RETRO(RetroConfig(vocab_size=VOCAB, chunk_len=C, **shape))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6)
    return model.eval()


MODEL = tiny()


def text_and_neighbors(k: int, length: int = 3 * C + 2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(2, VOCAB, length), rng.integers(2, VOCAB, (length // C, k, 2 * C))
