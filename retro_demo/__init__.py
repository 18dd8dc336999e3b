"""Retrieval-augmented language models to train, look into and measure.

The names below are imported on first use: `python -m retro_demo` has settings to make before torch
is loaded, and a `--help` should not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retro_demo.errors import UserError
    from retro_demo.models.config import MargeConfig, RetroConfig
    from retro_demo.models.marge import MARGE
    from retro_demo.models.retro import RETRO

__all__ = ["MARGE", "RETRO", "MargeConfig", "RetroConfig", "UserError", "__version__"]
__version__ = "0.5.0"

_HOMES = {
    "MARGE": "models.marge",
    "MargeConfig": "models.config",
    "RETRO": "models.retro",
    "RetroConfig": "models.config",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
