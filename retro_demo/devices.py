"""What this machine offers: the device to compute on and the cores that may really be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
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


def allowed_threads(system: Path = Path("/")) -> int:
    """Cores that this process may really use: what the operating system and its control groups leave.

    A container sees all cores of its host, but gets no more time than its quota; threads beyond it only
    wait for one another. `system` is where /proc and /sys are read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """How many cores the control groups of this process leave it (versions 2 and 1); nothing where all."""
    root = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers]
        else:
            continue
        for mount in mounts:
            # a limit of any group above holds too; in a container its own group is mounted as the root
            inside = mount / path.strip("/")
            for group in (inside, *inside.parents):
                if (quota := _quota(group)) is not None:
                    yield quota
                if group == mount:
                    break


def _quota(group: Path) -> float | None:
    """The cores that one control group leaves; None where it sets no limit, or is not there."""
    try:
        if (both := group / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def allowed_memory() -> int:
    """Bytes of memory that this process may really use: what the machine has and its quota leaves."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 32
    try:
        quota = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return there if quota == "max" else min(there, int(quota))
    except (OSError, ValueError):
        return there
