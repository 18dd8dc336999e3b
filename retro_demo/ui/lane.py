"""The lane in which one text at a time is written: what comes before, and the end that a visitor asks for."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.render import job_views
from retro_demo.server import service, swaps
from retro_demo.server.library import Library
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import shows_errors

MOST = 1_000  # texts that were asked for and have not ended; the queue of the page holds 256
FOLLOWERS = 3  # of one code: as many pages of a visitor can wait for a corpus at a time
STOPPED = "You stopped it: no text is written."
TOO_MANY = (
    f"More than {FOLLOWERS} things that you asked for wait for a corpus, so the one asked for first waits no "
    "longer. Ask again when the corpus is ready."
)


@dataclass(eq=False)
class Asked:
    """Something that a visitor asked for and that has not ended."""

    code: str
    end: str = ""
    """why it shall end, in a sentence"""


class Lane:
    """The texts that visitors asked for on one part of the page, and which of them shall end.

    Each has a token. A page keeps that of the text it asked for last, so Stop ends no text of another page
    of the same visitor.
    """

    def __init__(self, library: Library) -> None:
        self.home = library.home
        self._asked: dict[str, Asked] = {}  # by token, the one that was asked for longest ago first
        self._followers: list[Asked] = []
        self._lock = threading.Lock()

    def waiting(self) -> Callable[..., Iterator[Any]]:
        """A handler that tells how what a run is to read comes along: nobody waits for that in the lane.

        Its inputs: the visitor's code, the run, and the other corpus that it reads where one can be chosen;
        its outputs: what is said, and the token of the text.
        """

        def wait(code: str, name: str | None, other: str = "") -> Iterator[list[Any]]:
            workspace, token = Workspace.open(self.home, code), secrets.token_hex(8)
            asked = self._expect(token, code)
            yield [gr.skip(), token]
            with self.follower(asked):
                for build in service.wait_for_corpus(workspace, name, other) if name else ():
                    if name and other and asked.end == STOPPED:
                        swaps.stop_edition(workspace, workspace.run(name), workspace.corpus(other))
                    if asked.end:
                        raise UserError(asked.end)
                    yield [job_views.waiting(build, "The corpus is being prepared"), gr.skip()]

        return shows_errors(wait)

    def stopping(self) -> Callable[[Any, str], None]:
        """A handler that ends the text of a token, also one that waits for its turn."""

        def stop(code: Any, token: str) -> None:
            Workspace.open(self.home, code)  # refuses what is no code
            with self._lock:
                if token in self._asked and self._asked[token].code == code:
                    self._asked[token].end = STOPPED

        return shows_errors(stop)

    @contextmanager
    def text(self, code: str, token: str) -> Iterator[Callable[[], bool]]:
        """While a text is written: what says whether its visitor wants it to end."""
        asked = self._asked.get(token) or (self._expect(token, code) if token else Asked(code))
        try:
            yield lambda: bool(asked.end)
        finally:
            with self._lock:
                self._asked.pop(token, None)

    @contextmanager
    def follower(self, asked: Asked) -> Iterator[None]:
        """While a handler follows a build: of too many of one code the oldest is told to end."""
        with self._lock:
            self._followers.append(asked)
            for one in [one for one in self._followers if one.code == asked.code][:-FOLLOWERS]:
                one.end = one.end or TOO_MANY
        try:
            yield
        finally:
            with self._lock:
                self._followers.remove(asked)

    def _expect(self, token: str, code: str) -> Asked:
        with self._lock:
            asked = self._asked[token] = Asked(code)
            while len(self._asked) > MOST:  # who asked for it left before its turn
                del self._asked[next(iter(self._asked))]
        return asked
