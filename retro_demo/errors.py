"""Errors for the user: our own sentences, system errors as sentences, short lists of names.

`UserError` is the only error that the user sees. Libraries report a full disk or too little memory by
errors of their own types, so system errors are recognized by their words, too. Lists of names in sentences
stay short however long they are.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """A user error; the message says how to fix it.

    The text is shown as it is, so it says what is wrong, the value seen and what to do.
    Everything else that is raised is a bug: logged with its traceback, shown as one plain sentence.
    `labels` are names of settings that stand in the text as they are, with what the page calls them ("" =
    what it calls any setting of that name): see render/wording.py.
    """

    def __init__(self, text: str = "", **labels: str) -> None:
        super().__init__(text)
        self.labels = labels


class NotFound(UserError):
    """There is no run, or no corpus (`kind`), at a place that the user named; `advice` says what to do.

    `named` is the name of what would ship with the code; `found` what of ours lies at the place instead.
    """

    def __init__(self, kind: str, place: Path, advice: str, *, named: str = "", found: str = "") -> None:
        self.kind, self.place, self.advice = kind, place, advice
        self.where = named or f"at {place}"
        self.instead = f" What lies there is a{'n' * found.startswith('e')} {found}." if found else ""
        super().__init__(self.guessing(""))

    def guessing(self, guess: str) -> str:
        """The sentence with a guess at what was meant."""
        return f"There is no {self.kind} {self.where}.{self.instead}{guess} {self.advice}"


FULL = {errno.ENOSPC: "The disk is full", errno.EDQUOT: "The disk quota is used up"}
TOO_LARGE = "A file would become larger than this system lets one be"
WORDS = [
    (re.compile(r"No space left on device|\d+ requested and \d+ written"), FULL[errno.ENOSPC]),
    (re.compile(r"[Qq]uota exceeded"), FULL[errno.EDQUOT]),
    (re.compile(r"File too large"), TOO_LARGE),
]
NO_MEMORY = re.compile(
    r"annot allocate memory|can't allocate memory|not enough memory|bad_alloc|out of memory", re.IGNORECASE
)
OF_A_GPU = re.compile(r"CUDA|MPS|HIP|GPU")
MEMORY_ADVICE = (
    "Try again when other jobs have ended, or ask for less: a smaller --batch-size, --seq-len or network for "
    "a run, less text for a corpus."
)
LEAST_FREE = 1_000_000  # bytes of the disk; below, a job can hardly say any more why it ends


def describe_error(error: BaseException, advice: str = MEMORY_ADVICE) -> str:
    """What a full disk or too little memory is to the user; "" where the error is neither.

    `advice` says what needs less memory.
    """
    text, number = str(error), (error.errno or 0) if isinstance(error, OSError) else 0
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        return _no_memory("", advice)
    full = FULL.get(number, "") or (TOO_LARGE if number == errno.EFBIG else "")
    full = full or next((words for pattern, words in WORDS if pattern.search(text)), "")
    if full:
        return (
            f"{full}, so something could not be saved. Make room (delete corpora or runs that you do not "
            "need), then go on: what was saved before is whole."
        )
    return _no_memory(text, advice) if NO_MEMORY.search(text) else ""


def _no_memory(text: str, advice: str) -> str:
    return f"There is not enough memory{' on the GPU' if OF_A_GPU.search(text) else ''} for this. {advice}"


def why_interrupted(by_signal: int, free: int) -> str:
    """Why a process likely ended without a word: by this signal (0 = unknown), with so many bytes of disk."""
    if free < LEAST_FREE:
        return "The disk is full, so it could not even say so. Make room, then resume from the last save."
    if by_signal == signal.SIGKILL:
        return (
            "The process was killed from outside (signal 9). If it was nobody on purpose, the system ran out "
            "of memory: a smaller --batch-size, --seq-len or network needs less. Resume goes on from the "
            "last save."
        )
    if by_signal in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        return (
            f"The process was told to end ({_name(by_signal)}) before it could save. Resume goes on from the "
            "last save."
        )
    if by_signal:
        return (
            f"The process crashed ({_name(by_signal)}); the end of the log may say why. Resume goes on from "
            "the last save."
        )
    return "The process ended without a word (was it killed?). Resume goes on from the last save."


def _name(number: int) -> str:
    try:
        return f"signal {number}, {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


SHOWN = 5


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """`["a", "b", "c"]` -> `"a, b, c"`; of more than `shown` the first, as in `"a, b and 3 more"`."""
    more = len(names) - shown
    first = ", ".join(names[:shown])
    return f"{first} and {more:,} more" if more > 0 else first
