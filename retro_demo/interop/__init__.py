"""Weights of the reference packages RETRO-pytorch and marge-pytorch, read in and written back."""

from retro_demo.interop.marge_pytorch import marge_from_reference, marge_to_reference
from retro_demo.interop.retro_pytorch import (
    in_reference_names,
    reference_names,
    reference_optimizer,
    retro_from_reference,
    retro_to_reference,
)

__all__ = [
    "in_reference_names",
    "marge_from_reference",
    "marge_to_reference",
    "reference_names",
    "reference_optimizer",
    "retro_from_reference",
    "retro_to_reference",
]
