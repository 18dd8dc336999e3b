"""What comes before the lane in which one text at a time is written, for whoever asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from retro_demo import job_views, service
from retro_demo.library import Library
from retro_demo.ui.form import shows_errors
from retro_demo.workspace import Workspace


def waiting_before(library: Library) -> Callable[..., Iterator[Any]]:
    """A handler that tells how a run's corpus comes along until it is built: nobody waits in the lane."""

    def wait(code: str, name: str | None) -> Iterator[Any]:
        library.forget_stop(code)
        yield gr.skip()
        for build in service.wait_for_corpus(Workspace.open(library.home, code), name) if name else ():
            yield job_views.waiting(build, "The corpus is being prepared")

    return shows_errors(wait)
