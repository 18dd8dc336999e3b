"""Keep what a job tells in its folder, a failure too."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from retro_demo.errors import UserError
from retro_demo.events import (
    Event,
    Failed,
    Stopped,
    append_event,
)
from retro_demo.jobs.allowance import time_is_up
from retro_demo.troubles import LIGHTER, said

log = logging.getLogger(__name__)


def record(folder: Path, events: Iterable[Event], lighter: str = LIGHTER) -> Iterator[Event]:
    """Keep each event in the folder's events.jsonl, a failure too, and pass it on.

    This is the outermost frame of a job: a bug becomes one sentence here, and stays a bug above. A full disk
    or too little memory is no bug; `lighter` says what needs less memory.
    """
    path = folder / "events.jsonl"
    try:
        for event in events:
            if isinstance(event, Stopped):
                event = replace(event, why=time_is_up())
            append_event(path, event)
            yield event
    except UserError as error:
        _tell(path, str(error))
        raise
    except Exception as error:
        if trouble := said(error, lighter):
            log.warning("job %s: %s", folder.name, error)
            _tell(path, trouble)
            raise UserError(trouble) from error
        number = secrets.token_hex(4)
        log.exception("job %s failed (log id %s)", folder.name, number)
        _tell(path, f"Something went wrong inside the program ({type(error).__name__}, log id {number}).")
        raise


def _tell(path: Path, sentence: str) -> None:
    try:
        append_event(path, Failed(sentence))
    except OSError as error:  # not even room for that: who looks at the job sees a full disk
        log.warning("the end of a job could not be kept (%s): %s", error, sentence)
