"""What a server with many threads sees to, so that a process forked from it never waits for one of them.

A fork has all memory of its parent, but of its threads only the one that forked. A lock that another one
held at that moment is held in the fork for good: whoever asks for it hangs.
"""

from __future__ import annotations

import os
import tempfile
import threading
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from retro_demo.config import TrainConfig
from retro_demo.evidence.passages import Passages
from retro_demo.models.network_size import count_parameters
from retro_demo.models.retro import RETRO
from retro_demo.models.retro_config import RetroConfig
from retro_demo.runs.loading import LoadedRun
from retro_demo.server.library import Library
from retro_demo.training.train import clip_gradients, make_optimizer

SMALL = RetroConfig(vocab_size=8, dim=8, depth=1, num_heads=1, chunk_len=4, cca_layers=(1,), enc_dim=8)


def rehearse() -> None:
    """Do what a training does, on the CPU and before anything else runs, so that no fork does it first.

    torch imports its compiler with the first network, which takes seconds, in which the lock of that import
    is held: a fork that was made meanwhile, and makes a network, waits for it without end. Other calls pay
    those seconds from the quota of a visitor. Files of tensors hold a lock of their own for the blink of
    their first opening, one for each kind of array. There is no backward pass: from the first one on
    autograd may have threads, and refuses to work in a fork of their process.
    """
    _open_tensors()
    count_parameters(SMALL)
    model = RETRO(SMALL)
    optimizer = make_optimizer(model, TrainConfig())
    tokens = torch.ones(1, 2 * SMALL.chunk_len, dtype=torch.long)
    model(tokens, torch.ones(1, 2, 1, 2 * SMALL.chunk_len, dtype=torch.long))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    clip_gradients(model, 1.0)
    optimizer.step()


def _open_tensors() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.safetensors"
        save_file({"any": torch.zeros(1)}, path)
        for arrays in ("pt", "numpy"):
            with safe_open(path, arrays) as file:
                file.get_tensor("any")


def prepare_forks(library: Library) -> None:
    """From now on a fork waits until the library loads nothing, and finds its locks free."""
    os.register_at_fork(before=library.hold, after_in_parent=library.let_go, after_in_child=library.let_go)
    os.register_at_fork(after_in_child=_free_properties)


def _free_properties() -> None:
    """Until Python 3.12 each cached property has a lock, held for as long as a thread works it out."""
    for owner in (LoadedRun, Passages):
        for value in vars(owner).values():
            if isinstance(value, cached_property) and "lock" in vars(value):
                vars(value)["lock"] = threading.RLock()
