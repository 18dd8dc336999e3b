"""Whether somebody asked this process to stop: SIGTERM, the first Ctrl-C, or its own time that is up."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


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
        signal.signal(signal.SIGALRM, note)  # see jobs/allowance.py
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # held back until here: see jobs/jobs.py
    return lambda: bool(asked)
