"""Named settings of RetroConfig and TrainConfig, by size and by model.

tiny takes about two minutes on two CPU cores, small about an hour, base wants a GPU; random is tiny with
random neighbors, a control; lookup is for the lookup world, where it shows within minutes that facts are
looked up.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "dim": 192,
        "depth": 6,
        "num_heads": 6,
        "cca_layers": (3, 6),
        "enc_dim": 192,
        "steps": 4500,
        "lr": 1.5e-3,
        "warmup": 200,
        "eval_every": 500,
        "save_every": 200,
    },
    "base": {
        "dim": 512,
        "depth": 12,
        "num_heads": 8,
        "cca_layers": (6, 9, 12),
        "enc_dim": 512,
        "enc_depth": 2,
        "batch_size": 32,
        "seq_len": 512,
        "steps": 20_000,
        "lr": 6e-4,
        "warmup": 500,
        "eval_every": 500,
        "eval_tokens": 100_000,
        "save_every": 500,
    },
    # the second control: the work and the network of tiny, but nothing to read
    "random": {"neighbor_source": "random"},
    "lookup": {"steps": 400, "eval_every": 200},
}

MARGE: dict[str, Any] = {
    "dim": 96,
    "beta_start": 20.0,
    "copying_start": True,
    "shifted_keys": True,
    "abstain": True,
    "passage_len": 96,
    "batch_tokens": 1536,
    "evidence_languages": "other",  # where there are several
    "shard_size": 300,
    "lr": 3e-3,
    "warmup": 50,
    "reading": 0.2,
    "lessons_kept": 0.1,
}

MARGE_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": MARGE | {"steps": 600},
    "small": MARGE | {"steps": 3000, "refresh_every": 300, "eval_every": 300, "save_every": 100},
}
"""The same for MARGE: about two minutes, and about twelve, on one core; docs/science.md has the trials."""

BEGUN: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 300, "warmup": 30, "lr": 1.3e-3},
    "random": {"steps": 300, "warmup": 30, "lr": 1.3e-3},
    "small": {"steps": 1000, "warmup": 50, "lr": 5e-4},
    "base": {"steps": 6000, "warmup": 200, "lr": 2e-4},
    "lookup": {"steps": 400, "warmup": 30, "lr": 1.3e-3},
}
"""What changes where a run begins with the weights of another: fewer steps, and smaller ones."""

RETROFIT_LR = {"tiny": 6e-3, "random": 6e-3, "small": 4e-3, "base": 2e-3, "lookup": 6e-3}
"""Learning rates of a retrofit: what it trains is new, and the rest is frozen."""

READING: dict[str, Any] = {
    "shifted_keys": True,
    "copying_start": True,
    "abstain": True,
    "reading": 0.4,
    "lessons_kept": 0.1,
}
"""What makes a network read its neighbors within minutes, in every preset of a model that has some;
docs/science.md has the measurements, one by one."""
