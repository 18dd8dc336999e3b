"""torch.compile for the loss of a training step, where this machine can compile.

This module knows no model. Modules are compiled in place: names of weights, saves and measurements stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retro_demo.devices import lends_gpu

BACKEND = "inductor"


def no_compiler(device: str) -> str:
    """Why nothing can be compiled for a device here, as a sentence to warn with; "" where it can be.

    Something small is compiled, with its gradient: Inductor wants a C++ compiler for CPUs and Triton for
    GPUs, and nothing else tells for sure that it finds them.
    """
    if lends_gpu():
        return "ZeroGPU compiles nothing: the run goes on without. `compile` off leaves this sentence out."
    x = torch.ones(2, 2, device=device, requires_grad=True)
    try:
        torch.compile(_small, backend=BACKEND, dynamic=False)(x).backward()
    except Exception as error:  # whatever a compiler that is missing, or broken, raises
        return (
            f"Nothing can be compiled for {device} here ({type(error).__name__}): the run goes on without. "
            "A C++ compiler (on GPUs Triton, too) would change that; `compile` off leaves this sentence out."
        )
    return ""


def compile_loss(learner: nn.Module) -> None:
    """Compile the forward of a learner in place, and with it the gradient, at its first call.

    The code is for batches of just one shape, which those of RETRO have.
    """
    learner.compile(backend=BACKEND, dynamic=False)


def _small(x: Tensor) -> Tensor:
    return (x @ x).square().mean()
