"""A stand-in for Hugging Face's `spaces`: its decorator, with a forked process and no GPU.

As in spaces 0.51 (spaces/zero/wrappers.py) the process is forked, kept for the next call of the same
function, and runs each call in a thread of its own; arguments and results are pickled; of an exception
only the name of its class comes back, unless it is a gr.Error. SPACES_STAND_IN_CALLS names a file with one
line for each call, which is written here, and SPACES_STAND_IN_QUOTA one with the number of calls left.
SPACES_STAND_IN_GATE names one with the number of calls that are let through; others wait until it is gone.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

assert "torch" not in sys.modules, "spaces must be imported before torch"

import gradio as gr

fork = multiprocessing.get_context("fork")


def GPU(task, duration=60):
    assert not inspect.iscoroutinefunction(task)
    kept: list[_Worker] = []

    def calls(args, kwargs):
        """The results of a call as they come: ("ok", value) ..., then ("end", None) or an error."""
        _spend(task.__name__, duration)
        worker = kept.pop() if kept and kept[-1].process.is_alive() else _Worker(task)
        worker.stop.clear()
        worker.sent.put((args, kwargs))
        try:
            while True:
                kind, value = worker.back.get()
                if kind == "gradio":
                    raise value
                if kind == "error":
                    raise gr.Error(repr(value), title="ZeroGPU worker error")
                if kind == "end":
                    return
                try:
                    yield value
                except GeneratorExit:
                    worker.stop.set()
                    while worker.back.get()[0] == "ok":
                        pass
                    raise
        finally:
            kept.append(worker)

    if inspect.isgeneratorfunction(task):

        @functools.wraps(task)
        def stream(*args, **kwargs):
            yield from calls(args, kwargs)

        return stream

    @functools.wraps(task)
    def once(*args, **kwargs):
        (value,) = calls(args, kwargs)
        return value

    return once


def _spend(name, duration):
    left = Path(os.environ["SPACES_STAND_IN_QUOTA"])
    number = int(left.read_text()) if left.exists() else 1
    if number < 1:
        raise gr.Error(
            f"You have exceeded your free ZeroGPU quota ({duration}s requested vs. 0s left). "
            "Try again in 5:00:00. <a href='https://huggingface.co/join'>Create a free account</a>",
            title="ZeroGPU quota exceeded",
        )
    if left.exists():
        left.write_text(str(number - 1))
    gate = Path(os.environ["SPACES_STAND_IN_GATE"])
    with suppress(FileNotFoundError):
        while not (through := int(gate.read_text() or 0)):
            time.sleep(0.02)
        gate.write_text(str(through - 1))
    with open(os.environ["SPACES_STAND_IN_CALLS"], "a") as calls:
        calls.write(f"{name} {duration}\n")


class _Worker:
    def __init__(self, task):
        self.sent, self.back, self.stop = fork.SimpleQueue(), fork.SimpleQueue(), fork.Event()
        self.process = fork.Process(target=self.work, args=(task, os.getpid()), daemon=True)
        self.process.start()

    def work(self, task, server):
        threading.Thread(target=_leave_with, args=(server,), daemon=True).start()
        while True:
            args, kwargs = self.sent.get()
            thread = threading.Thread(target=self.call, args=(task, args, kwargs))
            thread.start()
            thread.join()

    def call(self, task, args, kwargs):
        try:
            if inspect.isgeneratorfunction(task):
                pieces = task(*args, **kwargs)
                for piece in pieces:
                    if self.stop.is_set():
                        pieces.close()
                        break
                    self.back.put(("ok", piece))
            else:
                self.back.put(("ok", task(*args, **kwargs)))
        except gr.Error as error:
            self.back.put(("gradio", error))
        except Exception as error:
            self.back.put(("error", type(error).__name__))
        else:
            self.back.put(("end", None))


def _leave_with(server):
    while os.getppid() == server:
        time.sleep(0.2)
    os._exit(0)
