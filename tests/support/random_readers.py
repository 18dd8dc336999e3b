"""A run of kind `reader` on a tiny random base, as if it had been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.made_bases import write_base
from retro_demo.models.reader import Reader
from retro_demo.pretrained.bases import load_base
from retro_demo.runs.checkpoint import save_weights
from retro_demo.runs.planning import plan_run, prepare_run

SHAPE: dict[str, Any] = {
    "chunk_len": 8,
    "title_len": 4,
    "match_layers": (1,),
    "write_layers": (1, 2),
    "match_dim": 8,
    "seq_len": 32,
    "batch_size": 2,
    "lessons": 2,
    "steps": 2,
}


def make_reader(folder: Path, corpus: Path | str, base: Path) -> Path:
    """A reader with random weights whose base is written into `base`, where it is not yet."""
    if not base.exists():
        write_base(base, {"tie_word_embeddings": True, "max_position_embeddings": 512})
    config = plan_run("retrofit", str(corpus), settings=SHAPE, device="cpu", base=str(base))
    prepare_run(folder, config)
    torch.manual_seed(0)
    network = Reader(config.network).attach(load_base(base).model)  # pyright: ignore[reportArgumentType]
    network.fit(torch.randint(3, 290, (4, 32)))
    save_weights(folder, network, config.training.steps)
    return folder
