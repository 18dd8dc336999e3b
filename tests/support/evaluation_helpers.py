"""A corpus with half of its documents held out, and runs on it that need no training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from retro_demo.models.retro import RETRO
from retro_demo.runs.checkpoint import save_weights
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.server.workspace import Workspace, new_code

TINY = {"dim": 16, "depth": 2, "num_heads": 2, "enc_dim": 16, "seq_len": 32, "batch_size": 2}


def visitor_with_runs(home: Path, corpus: Path) -> Workspace:
    """A visitor with a corpus "places", a run "reader" that reads neighbors, and one, "plain", that does not
    read any."""
    space = Workspace.open(home, new_code()).make()
    places = space.folder / "corpora" / "places"
    shutil.copytree(corpus, places)
    make_run(space.folder / "runs" / "reader", places, "retro", seq_len=64)
    make_run(space.folder / "runs" / "plain", places, "lm", seq_len=64)
    return space


def make_run(folder: Path, corpus: Path, model: str, *, base: str = "", **settings: Any) -> Path:
    """A run with random weights, as if it had been trained for `steps` steps."""
    shape: dict[str, Any] = TINY | ({"cca_layers": (1, 2)} if model != "lm" else {}) | {"steps": 10}
    config = plan_run(model, str(corpus), preset="tiny", settings=shape | settings, device="cpu", base=base)
    prepare_run(folder, config)
    torch.manual_seed(config.training.seed)
    network = RETRO(config.network)
    for weight in network.parameters():  # larger than at the start of training: neighbors must matter
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.15)
    save_weights(folder, network, config.training.steps)
    return folder
