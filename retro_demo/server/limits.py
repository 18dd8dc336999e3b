"""What a visitor may use of the machine: the limits, strict on a public page, and the address of a request.

The limits are declared once. The server writes those that hold into its data folder; every process that
starts work there reads them. The page sets the address of the request that is being answered; queue and
limits read it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from retro_demo.console import add_flags
from retro_demo.errors import UserError
from retro_demo.files import replacing
from retro_demo.settings import check_ranges, from_json, knob, knobs

FILE = "limits.json"
PREFIX = "RETRO_DEMO_LIMIT_"  # of the environment's variables: RETRO_DEMO_LIMIT_STEPS
MEGABYTE = 1_000_000
MOST = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """The limits of a server; 0 is no limit. The defaults are those of a private one."""

    running: int = knob(
        0, "Jobs at work", "Builds, trainings and evaluations at work at a time.", low=0, high=MOST
    )
    running_per_visitor: int = knob(
        2, "Jobs at work of a visitor", "How many of them one visitor may have at work.", low=0, high=MOST
    )
    trainings_per_device: int = knob(
        0, "Trainings on a device", "How many runs may train on one device at a time.", low=0, high=MOST
    )
    waiting: int = knob(0, "Jobs in the queue", "How many jobs may wait for a place.", low=0, high=MOST)
    waiting_per_visitor: int = knob(
        0,
        "Jobs in the queue of a visitor",
        "How many of them one visitor may have waiting.",
        low=0,
        high=MOST,
    )
    waiting_per_address: int = knob(
        0,
        "Jobs in the queue of an address",
        "How many of them may have been asked for from one address: a visitor can make any number of "
        "workspaces.",
        low=0,
        high=MOST,
    )
    calls_per_address: int = knob(
        0,
        "Calls that wait of an address",
        "How many calls of one address may wait for a lane, such as that in which texts are written.",
        low=0,
        high=MOST,
    )
    megabytes_per_visitor: int = knob(
        0, "Megabytes of a visitor", "What a workspace may hold before more is refused.", low=0, high=MOST
    )
    megabytes_of_all: int = knob(
        0,
        "Megabytes of all visitors",
        "What all workspaces may hold together; beyond, those that nobody used for longest are deleted.",
        low=0,
        high=MOST,
    )
    text_megabytes: int = knob(
        0, "Megabytes of text", "The largest text that a corpus may be built of.", low=0, high=MOST
    )
    free_megabytes: int = knob(
        0,
        "Free disk",
        "Megabytes of the disk that stay free: below, uploads and new work are refused.",
        low=0,
        high=MOST,
    )
    steps: int = knob(0, "Steps", "The most optimizer steps of a run.", low=0, high=MOST)
    parameters: int = knob(0, "Parameters", "The most parameters of a run.", low=0, high=MOST)
    context: int = knob(
        0,
        "Tokens at a time",
        "The most tokens that a run may read at a time: its context, or a passage of a MARGE.",
        low=0,
        high=MOST,
    )
    neighbors: int = knob(
        0,
        "Neighbors",
        "The most neighbors of a chunk that a run may read, or a text be written with.",
        low=0,
        high=MOST,
    )
    reading_megabytes: int = knob(
        0,
        "Memory of a reading",
        "Megabytes that explaining one stretch of text with a run may take: probabilities of all tokens of "
        "the vocabulary, attention, activations.",
        low=0,
        high=MOST,
    )
    new_tokens: int = knob(
        0, "Tokens of a text", "The most tokens that a text may be asked for at a time.", low=0, high=MOST
    )
    weighed_tokens: int = knob(
        0,
        "Tokens weighed",
        "The most tokens read to say what documents are worth, each as often as it is read: with, without, "
        "without each one.",
        low=0,
        high=MOST,
    )
    minutes: int = knob(
        0,
        "Minutes of a job",
        "After so many minutes a job saves and leaves; it can be resumed.",
        low=0,
        high=MOST,
    )
    memory_share: float = knob(
        0.0, "Memory of a job", "Share of the memory of the machine that one job may take.", low=0, high=1
    )
    nice: int = knob(0, "Niceness", "How far jobs stand back behind the page (as `nice`).", low=0, high=19)
    keep_days: int = knob(
        0, "Days kept", "Workspaces that nobody used for so many days are deleted.", low=0, high=MOST
    )
    requests_per_minute: int = knob(
        0, "Requests a minute", "Requests of one address; more are answered with 429.", low=0, high=MOST
    )
    upload_megabytes_per_hour: int = knob(
        0,
        "Megabytes uploaded an hour",
        "Megabytes of uploads of one address within an hour; more are answered with 429.",
        low=0,
        high=MOST,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


PRIVATE = Limits()
PUBLIC = Limits(
    running=2,
    running_per_visitor=1,
    trainings_per_device=1,
    waiting=40,
    waiting_per_visitor=3,
    waiting_per_address=8,
    calls_per_address=8,
    megabytes_per_visitor=1000,
    megabytes_of_all=20_000,
    text_megabytes=20,
    free_megabytes=2000,
    steps=5000,
    parameters=10_000_000,
    context=1024,
    neighbors=10,
    reading_megabytes=2000,
    new_tokens=500,
    weighed_tokens=40_000,
    minutes=90,
    memory_share=0.4,
    nice=10,
    keep_days=14,
    requests_per_minute=900,
    upload_megabytes_per_hour=2000,
)


def for_strangers(limits: Limits) -> bool:
    """Whether a page with these limits expects strangers: it counts by addresses, or deletes by age."""
    return any(
        (
            limits.requests_per_minute,
            limits.calls_per_address,
            limits.waiting_per_address,
            limits.upload_megabytes_per_hour,
            limits.keep_days,
        )
    )


def on_space(environment: Mapping[str, str]) -> bool:
    """Whether this is a Hugging Face Space, which is public unless somebody says otherwise."""
    return environment.get("SYSTEM") == "spaces" or "SPACE_ID" in environment


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a server: where it listens, whom it serves, and each limit."""
    parser.add_argument("--host", help="address to listen on (default: Gradio's, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: Gradio's, 7860)")
    parser.add_argument("--mcp", action="store_true", help="also serve the HTTP endpoints as tools (MCP)")
    parser.add_argument(
        "--public",
        action=argparse.BooleanOptionalAction,
        default=on_space(os.environ),
        help="serve strangers: the strict limits hold (default: on a Space)",
    )
    parser.add_argument(
        "--behind-proxy",
        type=int,
        choices=range(10),
        default=1 if on_space(os.environ) else 0,
        metavar="N",
        help="how many proxies of yours stand before it, such as nginx, each of which must add to "
        "X-Forwarded-For: the limit of requests counts whom the first of them heard (default: 0; a Space: 1)",
    )
    add_flags(parser, Limits)


def chosen_limits(public: bool, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Limits:
    """The public or private set with what the environment says, then the flags; UserError for bad values."""
    values: dict[str, Any] = {}
    for field in knobs(Limits):
        variable = PREFIX + field.name.upper()
        if said := environment.get(variable):
            try:
                values[field.name] = type(field.default)(said)
            except ValueError:
                raise UserError(f"{variable} is {said[:80]!r}. Set it to a number, 0 for no limit.") from None
    return replace(PUBLIC if public else PRIVATE, **values | dict(flags))


def keep_limits(home: Path, limits: Limits) -> None:
    """Let these limits hold for all that is started in a data folder from now on."""
    with replacing(home / FILE) as file:
        file.write_text(json.dumps(asdict(limits), indent=1), "utf-8")


def limits_of(home: Path, otherwise: Limits = PRIVATE) -> Limits:
    """The limits that hold in a data folder; others, the private ones, where no server said what holds."""
    path = home / FILE
    try:
        now = path.stat()
        return _read(path, now.st_mtime_ns, now.st_size, now.st_ino)
    except FileNotFoundError:
        return otherwise


@lru_cache(maxsize=64)
def _read(path: Path, _mtime_ns: int, _size: int, _inode: int) -> Limits:
    """A file of limits, read once: each request asks for them. It is replaced, never written to."""
    return from_json(Limits, json.loads(path.read_text("utf-8")))


VISITOR = "x-retro-demo-visitor"
"""The header in which ui/middleware.py passes that on; what a visitor writes there is dropped."""
ADDRESS: ContextVar[str] = ContextVar("address", default="")
"""A hash of the address, of a server's lifetime: equal for requests of one address; "" where nobody knows.

A variable of the request's own context, because between the page and the queue lie ten ways to start a job.
"""
SITS_HERE = "x-retro-demo-here"
"""The header by which the middleware says that the visitor sits at this machine; dropped from outside."""
HERE: ContextVar[bool] = ContextVar("here", default=False)
"""Whether the request comes from this machine and the page is not for strangers: who asks may see folders."""
