"""What comes from a visitor as files, and what HTTP endpoints share beside: the events of a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from retro_demo import service
from retro_demo.errors import UserError
from retro_demo.workspace import without_folders


def followed(folder: Path, what: str, **about: str) -> Iterator[dict[str, Any]]:
    """The events of the job in a folder until it ends, with each what it is `about`, as corpus=ID; before
    them its places in the queue, if it waits.

    Raises UserError where it fails; `what` is what it does, as in "The build was interrupted."
    """
    sent, place = 0, 0
    for status in service.follow(folder):
        if status.place not in (0, place):
            place = status.place
            yield {"event": "waiting", "place": place, "waiting": status.waiting} | about
        for event in status.events[sent:]:
            yield json.loads(without_folders(json.dumps(event))) | about
        sent = len(status.events)
    if status.state in ("failed", "interrupted"):
        failed = status.of_kind("failed")
        raise UserError(failed[-1]["error"] if failed else f"The {what} was interrupted. {status.why}")
    if place and status.state == "new":
        raise UserError(f"The {what} was taken out of the queue before it began. Resume it on the page.")


def documents_picker(label: str, elem_id: str, height: int) -> gr.File:
    """Where a visitor chooses files of documents, of every kind that is read."""
    types = [".txt", ".md", ".jsonl", ".csv", ".pdf", ".zip", ".gz"]
    return gr.File(label=label, file_count="multiple", file_types=types, elem_id=elem_id, height=height)


def uploaded(file: Any) -> tuple[str, Path]:
    """Name and place of an uploaded file; raises UserError for what was not uploaded here."""
    values = file if isinstance(file, dict) else getattr(file, "model_dump", dict)()
    path = Path(str(values.get("path") or "")).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise UserError("A file was not uploaded here. Send it with gradio_client's handle_file.")
    return str(values.get("orig_name") or path.name), path
