"""What is asked for, measured against the limits before anything is made: refusals in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retro_demo.belongings import noted_use
from retro_demo.config import GenerateConfig, RetroConfig
from retro_demo.documents import Document
from retro_demo.errors import UserError
from retro_demo.limits import MEGABYTE, Limits, limits_of
from retro_demo.marge_config import MargeConfig
from retro_demo.network_size import count_parameters
from retro_demo.workspace import Workspace, disk_use


def check_run(limits: Limits, network: RetroConfig | MargeConfig, steps: int) -> None:
    """Raise UserError for a run that is larger than one may be here."""
    check_steps(limits, steps)
    if limits.parameters and (count := count_parameters(network)) > limits.parameters:
        raise UserError(
            f"The network has {count / 1e6:.1f} M parameters, and here it may have at most "
            f"{limits.parameters / 1e6:.1f} M. Choose a smaller width (dim) or fewer layers (depth)."
        )


def check_steps(limits: Limits, steps: Any) -> None:
    """Raise UserError for more steps than a run may have here."""
    if limits.steps and isinstance(steps, (int, float)) and steps > limits.steps:
        raise UserError(
            f"The run has {steps:,} steps, and here it may have at most {limits.steps:,}. Choose fewer steps."
        )


def checked_writing(home: Path, **knobs: Any) -> GenerateConfig:
    """How a text shall be written; raises UserError where it is longer than others can wait for here."""
    wanted, most = knobs.get("max_new_tokens", 0), limits_of(home).new_tokens
    if most and isinstance(wanted, (int, float)) and wanted > most:
        raise UserError(
            f"You ask for {wanted:,} new tokens, and here at most {most:,} are written at a "
            "time, because visitors write one after the other. Ask for fewer, and go on from what came."
        )
    return GenerateConfig(**knobs)


def check_space(workspace: Workspace, coming: int = 0) -> None:
    """Raise UserError where a workspace or the disk has no room for `coming` more bytes and for work."""
    limits = limits_of(workspace.home)
    check_disk(workspace.home, limits, coming)
    if most := limits.megabytes_per_visitor * MEGABYTE:
        brought = noted_use(workspace.folder)
        used = disk_use(workspace.folder) + brought
        if used + coming >= most:
            asked = f", and {coming / MEGABYTE:,.1f} MB would join" if coming else ""
            soon = f"{brought / MEGABYTE:,.1f} MB of it, uploads and exports, go after an hour. "
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


def check_text(home: Path, documents: Sequence[Document]) -> None:
    """Raise UserError for documents that hold more text than a corpus may be built of here."""
    most, held = limits_of(home).text_megabytes * MEGABYTE, sum(len(one.text.encode()) for one in documents)
    if most and held > most:
        raise UserError(
            f"The corpus holds {held / MEGABYTE:,.1f} MB of text, and here it may hold at most "
            f"{most / MEGABYTE:,.0f}. Export it without some of its documents, or the run without it."
        )


def checked_text(home: Path, megabytes: int) -> int:
    """The largest text that a corpus may be built of here, for one who asks for so many megabytes."""
    most = limits_of(home).text_megabytes
    return min(megabytes, most) if most else megabytes
