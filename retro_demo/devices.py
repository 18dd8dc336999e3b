"""What this machine offers: the device to compute on and the cores that may really be used."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from retro_demo.errors import UserError


def choose_device(device: str) -> str:
    """What "auto" means here; raises UserError for a device that is not there."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if device not in there:
        raise UserError(f"The device is {device!r}; choose auto, cpu, cuda or mps.")
    if not there[device]:
        raise UserError(f"There is no {device} device here. Choose auto or cpu.")
    return device


def allowed_threads() -> int:
    """Cores that this process may really use: what the operating system and its quota leave."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def allowed_memory() -> int:
    """Bytes of memory that this process may really use: what the machine has and its quota leaves."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 32
    try:
        quota = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return there if quota == "max" else min(there, int(quota))
    except (OSError, ValueError):
        return there
