"""What this machine offers: the device to compute on and the cores that may really be used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
        if lends_gpu():  # torch says there is one, but only a call that is lent it may touch it
            return "cpu"
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if device not in there:
        raise UserError(f"The device is {device!r}; choose auto, cpu, cuda or mps.")
    if not there[device]:
        raise UserError(f"There is no {device} device here. Choose auto or cpu.")
    return device


def lends_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether GPUs are lent for a call and there is none otherwise, as on Hugging Face's ZeroGPU."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def lent_device() -> str:
    """The device that the call has in which this is asked."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def allowed_threads(system: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Cores that this process may really use: what the operating system and its control groups leave.

    A container sees all cores of its host, but gets no more time than its quota; threads beyond it only
    wait for one another. `system` is where /proc and /sys are read; a Space says CPU_CORES besides.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota(group) for group in _groups(system, "cpu"))
    told = environment.get("CPU_CORES", "") if "SPACE_ID" in environment else ""
    limits = [int(quota) for quota in quotas if quota is not None]
    limits += [int(float(told))] if told.replace(".", "", 1).isdecimal() else []
    return max(1, min([cores, *limits]))


def compute_as_served() -> None:
    """Let torch use half of those threads in this process, which writes and explains.

    A token alone is many small products, and waking a second thread for each costs more than it brings:
    with one of two threads a text takes half as long. Trainings beside it have the rest.
    """
    torch.set_num_threads(max(1, allowed_threads() // 2))


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """The control groups of this process that a controller (cpu, memory) has a say in, versions 2 and 1.

    A limit of any group above holds too; in a container its own group is mounted as the root.
    """
    root = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controller, root / controllers]
        else:
            continue
        for mount in mounts:
            inside = mount / path.strip("/")
            for group in (inside, *inside.parents):
                yield group
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


def allowed_memory(system: Path = Path("/")) -> int:
    """Bytes of memory that this process may really use: what the machine and its control groups leave."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 32
    limits = (_memory_limit(group) for group in _groups(system, "memory"))
    return min([there, *(limit for limit in limits if limit is not None)])


def _memory_limit(group: Path) -> int | None:
    """The bytes that one control group leaves; None where it sets no limit, or is not there."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):
            continue
    return None
