"""What is asked for, measured against the limits before anything is made: refusals in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro_demo.config import GenerateConfig
from retro_demo.errors import UserError
from retro_demo.explain.evidence_reading import MOST_EVIDENCE
from retro_demo.models.marge_config import MargeConfig
from retro_demo.models.network_size import count_parameters
from retro_demo.models.reading_size import marge_megabytes, retro_megabytes
from retro_demo.models.retro_config import RetroConfig
from retro_demo.runs.checkpoint import AnyRun, MargeRun
from retro_demo.server.belongings import noted_use
from retro_demo.server.limits import MEGABYTE, Limits, limits_of
from retro_demo.server.workspace import Workspace, disk_use


def check_run(limits: Limits, network: RetroConfig | MargeConfig, steps: int) -> None:
    """Raise UserError for a run that is larger than one may be here."""
    check_steps(limits, steps)
    if limits.parameters and (count := count_parameters(network)) > limits.parameters:
        raise UserError(
            f"The network has {count / 1e6:.1f} M parameters, and here it may have at most "
            f"{limits.parameters / 1e6:.1f} M. Choose a smaller --dim or fewer layers."
        )


def check_settings(limits: Limits, network: RetroConfig | MargeConfig, settings: Mapping[str, Any]) -> None:
    """As `check_run` and `check_reading`, for a run that is not made yet: its network and its other knobs."""
    check_run(limits, network, settings["steps"])
    tokens = settings["passage_len" if isinstance(network, MargeConfig) else "seq_len"]
    check_context(limits, network, tokens, settings.get("num_neighbors", 0))


def check_steps(limits: Limits, steps: Any) -> None:
    """Raise UserError for more steps than a run may have here."""
    if limits.steps and isinstance(steps, (int, float)) and steps > limits.steps:
        raise UserError(
            f"The run has {steps:,} steps, and here it may have at most {limits.steps:,}. Choose fewer steps."
        )


def check_reading(limits: Limits, config: AnyRun) -> None:
    """Raise UserError for a run that reads more at a time than the page can, where all wait for the end."""
    marge = isinstance(config, MargeRun)
    tokens = config.evidence.passage_len if marge else config.training.seq_len
    check_context(limits, config.network, tokens, 0 if marge else config.training.num_neighbors)


def check_context(limits: Limits, network: RetroConfig | MargeConfig, tokens: int, neighbors: int) -> None:
    """As `check_reading`, for a network that reads so many tokens at a time with neighbors of each chunk."""
    if limits.context and tokens > limits.context:
        name = "passage_len" if isinstance(network, MargeConfig) else "seq_len"
        raise UserError(
            f"The run reads {tokens:,} tokens at a time, and here it may read at most {limits.context:,}. "
            f"Choose a smaller {name}, or use the run on a machine of your own."
        )
    check_neighbors(limits, neighbors)
    if isinstance(network, MargeConfig):
        megabytes = marge_megabytes(network, tokens, MOST_EVIDENCE)
    else:
        megabytes = retro_megabytes(network, tokens, limits.neighbors or neighbors)
    if limits.reading_megabytes and megabytes > limits.reading_megabytes:
        raise UserError(
            f"Explaining a text of this run takes up to {megabytes:,.0f} MB, for {tokens:,} tokens with a "
            f"vocabulary of {network.vocab_size:,} and {network.num_heads} heads, and here it may take at "
            f"most {limits.reading_megabytes:,}. Choose fewer of these."
        )


def check_neighbors(limits: Limits, neighbors: Any) -> None:
    """Raise UserError for more neighbors of a chunk than may be read here."""
    if limits.neighbors and isinstance(neighbors, (int, float)) and neighbors > limits.neighbors:
        raise UserError(
            f"{neighbors:,} neighbors of each chunk are asked for (--num-neighbors), and here at most "
            f"{limits.neighbors:,} are read. Choose fewer."
        )


def checked_writing(home: Path, **knobs: Any) -> GenerateConfig:
    """How a text shall be written; raises UserError where it is longer than others can wait for here."""
    limits, wanted = limits_of(home), knobs.get("max_new_tokens", 0)
    check_neighbors(limits, knobs.get("num_neighbors", 0))
    most = limits.new_tokens
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
