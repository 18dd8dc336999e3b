"""The lane in which one text at a time is written: what comes before, and the end that a visitor asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from retro_demo import job_views, service, swaps
from retro_demo.errors import UserError
from retro_demo.library import Library
from retro_demo.ui.form import shows_errors
from retro_demo.workspace import Workspace

MOST = 1_000  # texts that were asked for and have not ended; the queue of the page holds 256


class Lane:
    """The texts that visitors asked for on one part of the page, and which of them shall end."""

    def __init__(self, library: Library) -> None:
        self.home = library.home
        self._stopped: dict[str, bool] = {}  # by code, the one that was asked for longest ago first
        self._lock = threading.Lock()

    def waiting(self) -> Callable[..., Iterator[Any]]:
        """A handler that tells how what a run is to read comes along: nobody waits for that in the lane.

        Its inputs: the visitor's code, the run, and the other corpus that it reads where one can be chosen.
        """

        def wait(code: str, name: str | None, other: str = "") -> Iterator[Any]:
            workspace = Workspace.open(self.home, code)
            self._expect(code)
            yield gr.skip()
            for build in service.wait_for_corpus(workspace, name, other) if name else ():
                if name and self._stopped.get(code):
                    if other:
                        swaps.stop_edition(workspace, workspace.run(name), workspace.corpus(other))
                    raise UserError("You stopped it: no text is written.")
                yield job_views.waiting(build, "The corpus is being prepared")

        return shows_errors(wait)

    def stopping(self) -> Callable[[Any], None]:
        """A handler that ends the text which a visitor asked for, also one that waits for its turn."""

        def stop(code: Any) -> None:
            Workspace.open(self.home, code)  # refuses what is no code
            with self._lock:
                if code in self._stopped:
                    self._stopped[code] = True

        return shows_errors(stop)

    @contextmanager
    def text(self, code: str) -> Iterator[Callable[[], bool]]:
        """While a text is written: what says whether its visitor wants it to end."""
        if code not in self._stopped:
            self._expect(code)
        try:
            yield lambda: self._stopped.get(code, False)
        finally:
            with self._lock:
                self._stopped.pop(code, None)

    def _expect(self, code: str) -> None:
        with self._lock:
            self._stopped.pop(code, None)
            self._stopped[code] = False
            while len(self._stopped) > MOST:  # who asked for it left before its turn
                del self._stopped[next(iter(self._stopped))]
