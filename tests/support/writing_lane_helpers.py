"""What tests of writing lane share with others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from inspect import isgenerator
from typing import Any

import gradio as gr
from held_back import PATIENCE

from retro_demo.errors import UserError
from retro_demo.server.limits import PRIVATE, Limits
from retro_demo.ui.linked_view import ExplainHandlers
from retro_demo.ui.page import build_app


def handlers(home, limits: Limits = PRIVATE) -> list[Any]:
    return list(build_app(home, limits=limits)[0].fns.values())


def named(known: list[Any], name: str) -> list[Any]:
    return [one for one in known if getattr(one.fn, "__name__", "") == name]


def answer(fn: Callable[..., Any], *values: Any) -> list[Any]:
    """What a handler said before it ended, an error included; [] where it has not ended in time."""
    said: list[Any] = []

    def call() -> None:
        heard: list[Any] = []
        try:
            result = fn(*values)
            heard.extend(result if isgenerator(result) else [result])
        except (UserError, gr.Error) as error:
            heard.append(str(error))
        said.extend(heard)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return said


def edited(inside: ExplainHandlers, code: str, name: str, event: gr.EventData) -> Iterator[dict[Any, Any]]:
    """The steps of an edit, once its run has all that it reads."""
    return going_on(inside, code, inside.ask_edit(code, name, event))


def going_on(inside: ExplainHandlers, code: str, waits: Iterator[dict[Any, Any]]) -> Iterator[dict[Any, Any]]:
    """The steps of what was asked for in an edited text."""
    asked, *_ = waits
    return inside.edit(code, asked[inside.view.wish], asked[inside.view.token])
