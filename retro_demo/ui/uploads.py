"""What the HTTP endpoints share: files that a program sent, and the events of a corpus in the making."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from retro_demo import service
from retro_demo.errors import UserError
from retro_demo.workspace import Workspace


def followed(space: Workspace, corpus: str, what: str) -> Iterator[dict[str, Any]]:
    """The events of the job that builds or changes a corpus, its id with each, until it ends; before them
    its places in the queue, if it waits.

    Raises UserError where it fails; `what` is what it does, as in "The build was interrupted."
    """
    sent, place = 0, 0
    for status in service.follow(space.corpus(corpus)):
        if status.place not in (0, place):
            place = status.place
            yield {"event": "waiting", "place": place, "waiting": status.waiting, "corpus": corpus}
        for event in status.events[sent:]:
            yield event | {"corpus": corpus}
        sent = len(status.events)
    if status.state in ("failed", "interrupted"):
        failed = status.of_kind("failed")
        raise UserError(failed[-1]["error"] if failed else f"The {what} was interrupted. {status.why}")
    if place and status.state == "new":
        raise UserError(f"The {what} was taken out of the queue before it began. Resume it on the page.")


def uploaded(file: Any) -> tuple[str, Path]:
    """Name and place of an uploaded file; raises UserError for what was not uploaded here."""
    values = file if isinstance(file, dict) else getattr(file, "model_dump", dict)()
    path = Path(str(values.get("path") or "")).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise UserError("A file was not uploaded here. Send it with gradio_client's handle_file.")
    return str(values.get("orig_name") or path.name), path
