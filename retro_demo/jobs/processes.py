"""Which process is meant by a number. Numbers are given again and clocks are set, so neither tells.

What tells is the moment of its start as the kernel keeps it, counted from the start of the machine.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process as it can be written down; `since` is when that was, on the clock of the machine's start."""

    number: int
    birth: str
    since: float

    @staticmethod
    def of(number: int) -> Process:
        """The process that has this number now."""
        return Process(number, birth(number), time.monotonic())

    @staticmethod
    def read(path: Path) -> Process | None:
        """What `write` wrote; None where nothing is written down, or by an earlier version."""
        try:
            number, born, since = path.read_text("utf-8").split()
            return Process(int(number), born, float(since))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, path: Path) -> None:
        path.write_text(f"{self.number} {self.birth or '-'} {self.since:.2f}\n", "utf-8")

    def is_alive(self) -> bool:
        """Whether this very process runs still, and not another that has its number."""
        return birth(self.number) == self.birth


def birth(number: int) -> str:
    """When a process started, in words without blanks: the same at each look and never another's.

    "" where no process has the number, or one that has ended and that nobody has collected.
    """
    try:
        state, *others = (PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if (PROC / "self" / "stat").exists() else _birth_by_ps(number)
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return "" if state in "ZX" else f"{others[18]}@{boot}"


def _birth_by_ps(number: int) -> str:
    """The same where there is no /proc, as on a Mac."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(number)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return "" if not said or said[0].startswith("Z") else "_".join(said[1:])
