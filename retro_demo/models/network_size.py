"""How large a network is, counted without making one, and whether this machine can hold it."""

from __future__ import annotations

import torch

from retro_demo.devices import allowed_memory
from retro_demo.errors import UserError
from retro_demo.models.marge import MARGE
from retro_demo.models.marge_config import MargeConfig
from retro_demo.models.retro import RETRO
from retro_demo.models.retro_config import RetroConfig

TRAINING_BYTES = 12  # of a parameter: a save holds the weight and both its moments in memory


def shapes_of(network: RetroConfig | MargeConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of such a network."""
    return {name: tuple(weight.shape) for name, weight in _unfilled(network).state_dict().items()}


def count_parameters(network: RetroConfig | MargeConfig) -> int:
    """Parameters of such a network."""
    return sum(weight.numel() for weight in _unfilled(network).parameters())


def _unfilled(network: RetroConfig | MargeConfig) -> RETRO | MARGE:
    """Such a network without any memory behind its weights; raises UserError where none can be made."""
    try:
        with torch.device("meta"):
            return RETRO(network) if isinstance(network, RetroConfig) else MARGE(network)
    except (ValueError, AssertionError, RuntimeError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"No network can be made of these settings ({str(error)[:200]}).") from error


def check_memory(network: RetroConfig | MargeConfig, step_tokens: int, device: str) -> None:
    """Raise UserError where training such a network can never fit this machine's memory.

    `step_tokens` are those of a step, whose logits lie in this memory too where the device is the CPU.
    It is what is needed at the very least: what passes may still be too much.
    """
    count, there = count_parameters(network), allowed_memory()
    logits = 4 * step_tokens * network.vocab_size if device == "cpu" else 0
    if TRAINING_BYTES * count > there:
        raise UserError(
            f"A network of {count:,} parameters takes at least {TRAINING_BYTES * count / 1e9:,.0f} GB to "
            f"train, but there are {there / 1e9:,.0f} GB of memory here. Choose a smaller --dim or "
            "fewer layers."
        )
    if TRAINING_BYTES * count + logits > there:
        raise UserError(
            f"A step of {step_tokens:,} tokens writes {logits / 1e9:,.0f} GB of logits, but there are "
            f"{there / 1e9:,.0f} GB of memory here. Choose a smaller batch, or a shorter context."
        )
