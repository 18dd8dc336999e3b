"""What a visitor may take of the machine, and requests measured against it before anything is made.

The limits are declared once, strict on a public page. The server writes those that hold into its data folder;
every process that starts work there reads them. The page sets the address of the request that is being
answered; queue and limits read it. A request over a limit is refused in a sentence.
"""

from __future__ import annotations

import json
import shutil
from bisect import bisect_right
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from retro_demo.errors import UserError
from retro_demo.files import replacing
from retro_demo.kinds import kind_of_shape, resolve
from retro_demo.models.config import NetworkConfig
from retro_demo.models.memory import count_parameters
from retro_demo.runs.checkpoint import AnyRun
from retro_demo.server.workspace import Workspace, disk_use, noted_use
from retro_demo.settings import GenerateConfig, Settings, from_json, setting, settings_of

FILE = "limits.json"
PREFIX = "RETRO_DEMO_LIMIT_"  # of the environment's variables: RETRO_DEMO_LIMIT_STEPS
MEGABYTE = 1_000_000
MOST = 1_000_000_000
SLOWER = 16  # times that a pretrained base reads a token slower than the small networks, about


def _limit(label: str, help: str, default: int = 0) -> Any:
    return setting(default, label, help, within=(0, MOST))


@dataclass(frozen=True)
class Limits(Settings):
    """The limits of a server; 0 is no limit. The defaults are those of a private one."""

    running: int = _limit("Jobs at work", "Builds, trainings and evaluations at work at a time.")
    running_per_visitor: int = _limit(
        "Jobs at work of a visitor", "How many of them one visitor may have at work.", 2
    )
    trainings_per_device: int = _limit(
        "Trainings on a device", "How many runs may train on one device at a time."
    )
    waiting: int = _limit("Jobs in the queue", "How many jobs may wait for a place.")
    waiting_per_visitor: int = _limit(
        "Jobs in the queue of a visitor", "How many of them one visitor may have waiting."
    )
    waiting_per_address: int = _limit(
        "Jobs in the queue of an address",
        "How many of them may have been asked for from one address: a visitor can make any number of "
        "workspaces.",
    )
    calls_per_address: int = _limit(
        "Calls that wait of an address",
        "How many calls of one address may wait for a lane, such as that in which texts are written.",
    )
    megabytes_per_visitor: int = _limit(
        "Megabytes of a visitor", "What a workspace may hold before more is refused."
    )
    megabytes_of_all: int = _limit(
        "Megabytes of all visitors",
        "What all workspaces may hold together; beyond, those that nobody used for longest are deleted.",
    )
    text_megabytes: int = _limit("Megabytes of text", "The largest text that a corpus may be built of.")
    free_megabytes: int = _limit(
        "Free disk", "Megabytes of the disk that stay free: below, uploads and new work are refused."
    )
    steps: int = _limit("Steps", "The most optimizer steps of a run.")
    parameters: int = _limit("Parameters", "The most parameters of a run.")
    context: int = _limit(
        "Tokens at a time",
        "The most tokens that a run may read at a time: its context, or a passage of a MARGE.",
    )
    neighbors: int = _limit(
        "Neighbors", "The most neighbors of a chunk that a run may read, or a text be written with."
    )
    reading_megabytes: int = _limit(
        "Memory of a reading",
        "Megabytes that explaining one stretch of text with a run may take: probabilities of all tokens of "
        "the vocabulary, attention, activations.",
    )
    new_tokens: int = _limit("Tokens of a text", "The most tokens that a text may be asked for at a time.")
    weighed_tokens: int = _limit(
        "Tokens weighed",
        "The most tokens read to say what documents are worth, each as often as it is read: with, without, "
        "without each one.",
    )
    minutes: int = _limit(
        "Minutes of a job", "After so many minutes a job saves and leaves; it can be resumed."
    )
    memory_share: float = setting(
        0.0, "Memory of a job", "Share of the memory of the machine that one job may take.", within=(0, 1)
    )
    nice: int = setting(0, "Niceness", "How far jobs stand back behind the page (as `nice`).", within=(0, 19))
    keep_days: int = _limit("Days kept", "Workspaces that nobody used for so many days are deleted.")
    requests_per_minute: int = _limit(
        "Requests a minute", "Requests of one address; more are answered with 429."
    )
    upload_megabytes_per_hour: int = _limit(
        "Megabytes uploaded an hour",
        "Megabytes of uploads of one address within an hour; more are answered with 429.",
    )


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


def chosen_limits(public: bool, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Limits:
    """The public or private set with what the environment says, then the flags; UserError for bad values."""
    values: dict[str, Any] = {}
    for field in settings_of(Limits):
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
READS: ContextVar[str] = ContextVar("reads", default="")
"""The languages that whoever asks reads, as their browser tells them (Accept-Language)."""
"""Whether the request comes from this machine and the page is not for strangers: who asks may see folders."""


def check_run(limits: Limits, network: NetworkConfig, steps: int) -> None:
    """Raise UserError for a run that is larger than one may be here."""
    check_steps(limits, steps)
    if limits.parameters and (count := count_parameters(network)) > limits.parameters:
        raise UserError(
            f"The network has {count / 1e6:.1f} M parameters, and here it may have at most "
            f"{limits.parameters / 1e6:.1f} M. {kind_of_shape(network).smaller}"
        )


def check_training(limits: Limits, config: AnyRun, steps: int | None = None) -> None:
    """Raise UserError for a run that is larger, longer or reads more at a time than may be trained here.

    `steps`: those that it shall have, where it goes on to more.
    """
    check_run(limits, config.network, config.training.steps if steps is None else steps)
    check_reading(limits, config)


def check_settings(limits: Limits, network: NetworkConfig, settings: Mapping[str, Any]) -> None:
    """As `check_run` and `check_reading`, for a run that is not made yet: its network, its other settings."""
    check_run(limits, network, settings["steps"])
    tokens = settings[kind_of_shape(network).context]
    check_context(limits, network, tokens, settings.get("num_neighbors", 0))


def check_steps(limits: Limits, steps: Any) -> None:
    """Raise UserError for more steps than a run may have here."""
    if limits.steps and isinstance(steps, (int, float)) and steps > limits.steps:
        raise UserError(
            f"The run has {steps:,} steps, and here it may have at most {limits.steps:,}. Choose fewer steps."
        )


def check_reading(limits: Limits, config: AnyRun) -> None:
    """Raise UserError for a run that reads more at a time than the page can, where all wait for the end."""
    settings = config.settings
    check_context(limits, config.network, settings[config.kind.context], settings.get("num_neighbors", 0))


def check_context(limits: Limits, network: NetworkConfig, tokens: int, neighbors: int) -> None:
    """As `check_reading`, for a network that reads so many tokens at a time with neighbors of each chunk."""
    kind = kind_of_shape(network)
    if limits.context and tokens > limits.context:
        raise UserError(
            f"The run reads {tokens:,} tokens at a time, and here it may read at most {limits.context:,}. "
            f"Choose a smaller {kind.context}, or use the run on a machine of your own."
        )
    check_neighbors(limits, neighbors)
    megabytes = resolve(kind.memory)(network, tokens, limits.neighbors or neighbors)
    if limits.reading_megabytes and megabytes > limits.reading_megabytes:
        raise UserError(
            f"Explaining a text of this run takes up to {megabytes:,.0f} MB, for {tokens:,} tokens with "
            f"{kind.reading_grows_with.format(**vars(network))}, and here it may take at most "
            f"{limits.reading_megabytes:,}. Choose fewer of these."
        )


def served_context(limits: Limits, config: AnyRun) -> int:
    """Tokens that a run may read at a time here.

    A reader's base reads far longer texts than it was taught with: it gets as many of them as the limits
    leave, where any other run is refused by `check_reading`.
    """
    if not config.kind.trains_pretrained:
        return config.context
    most = min(config.context, limits.context or config.context)
    if not limits.reading_megabytes:
        return most
    neighbors = limits.neighbors or config.settings.get("num_neighbors", 0)
    megabytes = resolve(config.kind.memory)
    fits = bisect_right(
        range(1, most + 1), limits.reading_megabytes, key=lambda n: megabytes(config.network, n, neighbors)
    )
    return max(fits, config.settings[config.kind.context])


def weighed_tokens(limits: Limits, config: AnyRun) -> int:
    """Tokens that may be read to say what documents are worth; a base takes far longer over each."""
    return -(-limits.weighed_tokens // (SLOWER if config.kind.trains_pretrained else 1))


def check_neighbors(limits: Limits, neighbors: Any) -> None:
    """Raise UserError for more neighbors of a chunk than may be read here."""
    if limits.neighbors and isinstance(neighbors, (int, float)) and neighbors > limits.neighbors:
        raise UserError(
            f"{neighbors:,} neighbors of each chunk are asked for (--num-neighbors), and here at most "
            f"{limits.neighbors:,} are read. Choose fewer."
        )


def checked_writing(home: Path, **settings: Any) -> GenerateConfig:
    """How a text shall be written; raises UserError where it is longer than others can wait for here."""
    limits, wanted = limits_of(home), settings.get("max_new_tokens", 0)
    check_neighbors(limits, settings.get("num_neighbors", 0))
    most = limits.new_tokens
    if most and isinstance(wanted, (int, float)) and wanted > most:
        raise UserError(
            f"You ask for {wanted:,} new tokens, and here at most {most:,} are written at a "
            "time, because visitors write one after the other. Ask for fewer, and go on from what came."
        )
    return GenerateConfig(**settings)


def check_space(workspace: Workspace, coming: int = 0) -> None:
    """Raise UserError where a workspace or the disk has no room for `coming` more bytes and for work."""
    limits = limits_of(workspace.home)
    check_disk(workspace.home, limits, coming)
    if most := limits.megabytes_per_visitor * MEGABYTE:
        brought = noted_use(workspace.folder)
        used = disk_use(workspace.folder) + brought
        if used + coming >= most:
            asked = f", and {coming / MEGABYTE:,.1f} MB would join" if coming else ""
            soon = (
                f"{brought / MEGABYTE:,.1f} MB of it are uploads and exports, which go after an hour, and "
                "samples made ready for its runs. "
            )
            raise UserError(
                f"This workspace holds {used / MEGABYTE:,.1f} of {most / MEGABYTE:,.0f} MB{asked}. "
                f"{soon if brought else ''}Delete a run or a corpus first."
            )


def check_disk(home: Path, limits: Limits, coming: int = 0) -> None:
    """Raise UserError where less of the disk is free, or would be with `coming` bytes, than shall stay so."""
    free = shutil.disk_usage(home).free / MEGABYTE
    if free - coming / MEGABYTE < limits.free_megabytes:
        on_their_way = f", {coming / MEGABYTE:,.1f} MB would come" if coming else ""
        raise UserError(
            f"The disk of this server is nearly full ({free:,.0f} MB are free, {limits.free_megabytes:,} MB "
            f"stay so{on_their_way}). Nothing new can begin; what is there can be read, downloaded and "
            "deleted."
        )


def check_text(home: Path, held: int) -> None:
    """Raise UserError for documents that hold more text (bytes) than a corpus may be built of here."""
    most = limits_of(home).text_megabytes * MEGABYTE
    if most and held > most:
        raise UserError(
            f"The corpus holds {held / MEGABYTE:,.1f} MB of text, and here it may hold at most "
            f"{most / MEGABYTE:,.0f}. Export it without some of its documents, or the run without it."
        )


def checked_text(home: Path, megabytes: int) -> int:
    """The largest text that a corpus may be built of here, for one who asks for so many megabytes."""
    most = limits_of(home).text_megabytes
    return min(megabytes, most) if most else megabytes


def checked_addition(home: Path, megabytes: int, held: int, coming: int) -> int:
    """As `checked_text`, for files of so many bytes that join a corpus which holds so many of text.

    Rounded up to whole megabytes: an archive may fill the last one, and nothing joins then. Raises UserError
    where the files are larger than what is left.
    """
    most = limits_of(home).text_megabytes
    if not most:
        return megabytes
    left = most * MEGABYTE - held
    if left <= 0 or coming > left:
        raise UserError(
            f"The corpus holds {held / MEGABYTE:,.1f} MB of text and {coming / MEGABYTE:,.1f} MB would join, "
            f"and here it may hold at most {most:,} MB. Forget documents first, or build another corpus."
        )
    return min(megabytes, -(-left // MEGABYTE))
