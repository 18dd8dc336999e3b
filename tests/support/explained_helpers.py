"""What tests of explained share with others."""

from __future__ import annotations

SETTINGS = {
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "cca_layers": (2,),
    "enc_dim": 16,
    "steps": 3,
    "seq_len": 64,
    "batch_size": 2,
    "eval_tokens": 200,
}
