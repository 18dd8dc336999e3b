"""The limits that a worker process keeps to by itself, and its request to stop.

The server passes the allowance (time, memory, niceness) in the environment, so it holds while the server is
away. A stop comes as SIGTERM, as the first Ctrl-C, or when the allowed time is over. This module is imported
before torch, so it uses the standard library only.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "RETRO_DEMO_ALLOWANCE"


@dataclass(frozen=True)
class Allowance:
    """Seconds at work, bytes of memory and niceness of one worker; 0 is no limit."""

    seconds: int = 0
    memory: int = 0
    nice: int = 0

    def to_environment(self) -> dict[str, str]:
        """The variable that tells a new process of it; empty where there is nothing to tell."""
        return {VARIABLE: json.dumps(asdict(self))} if self != UNLIMITED else {}


UNLIMITED = Allowance()


def own_allowance() -> Allowance:
    """The allowance that this process was started with."""
    return Allowance(**json.loads(os.environ.get(VARIABLE, "{}")))


def keep_to_allowance() -> None:
    """Let the operating system hold this process to its allowance; time up is SIGALRM, which asks to stop.

    The memory is what a process writes to (RLIMIT_DATA): address space alone, of which torch and CUDA
    reserve much more than they use, costs nothing.
    """
    own = own_allowance()
    if own.nice:
        os.nice(own.nice)
    if own.memory:
        import resource  # there is none on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (own.memory, own.memory))
    if own.seconds:
        signal.setitimer(signal.ITIMER_REAL, own.seconds)


def time_is_up() -> str:
    """Why this process stops, in a sentence, where its time is up; else ""."""
    seconds = own_allowance().seconds
    if not seconds or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        return ""
    return (
        f"It was at work for {seconds / 60:.3g} minutes, the most that one job may here. What it has is "
        "saved: resume it to go on, behind those who wait."
    )


def stop_on_signal() -> Callable[[], bool]:
    """From now on SIGTERM, SIGALRM and the first Ctrl-C only ask; the answer tells whether they did."""
    asked: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, note)  # the time that this worker may take is up
    if hasattr(signal, "pthread_sigmask"):
        # held back until here by jobs/lifecycle.py
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return lambda: bool(asked)
