"""Where a figure comes from: all that is needed to make it again, as plain JSON.

Every measurement carries this beside its numbers: which run on which corpus, with
which seed, settings, versions and time, and the command line that repeats it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from functools import cache
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from retro_demo.corpus.store import MANIFEST
from retro_demo.devices import allowed_threads
from retro_demo.events import read_events
from retro_demo.files import read_header
from retro_demo.pretrained.bases import name_of_base
from retro_demo.runs.checkpoint import AnyRun, ReaderRun, read_any_config, versions, weights_file

NOT_COMPARABLE = (
    "This is a small run on a small corpus: its figures are not comparable with those of the papers."
)


def provenance(run: Path, *, command: str, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Origin of a figure measured on `run`, ready for JSON.

    `command` repeats the measurement, `seconds` is how long it took, `settings` are its own settings.
    Raises UserError where there is no run.
    """
    config = without_places(read_any_config(run))
    steps, parameters = weights_of(run)
    return {
        "run": run.name,
        "model": config.model,
        "seed": config.training.seed,
        "steps": steps,
        "parameters": parameters,
        "training_seconds": training_seconds(run, config, steps),
        "trained_on": {"device": config.device, "threads": config.threads, "versions": config.versions},
        "config": json.loads(json.dumps(asdict(config))),
        "corpus": config.corpus,
        "corpus_fingerprint": config.corpus_fingerprint,
        **_of_measurement(command, seconds, settings),
        "note": NOT_COMPARABLE,
    }


def corpus_provenance(
    folder: Path, *, corpus: str, command: str, seconds: float, settings: dict[str, Any]
) -> dict[str, Any]:
    """Origin of a figure of a built corpus that no run had a part in, ready for JSON.

    `corpus` is what it is called; command, seconds and settings as in `provenance`.
    """
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    return {
        "corpus": corpus,
        "corpus_fingerprint": manifest["fingerprint"],
        "seed": manifest["config"]["seed"],
        "config": manifest["config"],
        **_of_measurement(command, seconds, settings),
    }


def _of_measurement(command: str, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "code": code_hash(),
        "versions": versions(),
        "threads": allowed_threads(),
        "settings": settings,
        "seconds": round(seconds, 2),
        "command": command,
    }


def weights_of(run: Path) -> tuple[int, int]:
    """(step, number of parameters) of the weights that a run is used with, by its header; (0, 0) = none."""
    path = weights_file(run)
    if not path.exists():
        return 0, 0
    header = read_header(path)
    return header.step, sum(prod(shape) for shape in header.shapes.values())


def training_seconds(run: Path, config: AnyRun, steps: int) -> float | None:
    """How long the optimizer steps took, from the speeds on record; None where there is no record.

    A shipped run keeps only some of its steps: their mean stands for all. The batches of a MARGE differ
    in size, so their speeds do not tell.
    """
    if not config.kind.even_batches:
        return None
    speeds = [e["tokens_per_second"] for e in read_events(run / "events.jsonl") if e["event"] == "step"]
    if not speeds:
        return None
    tokens = config.training.batch_size * (config.training.seq_len - 1)
    return round(steps * fmean(tokens / max(speed, 1e-9) for speed in speeds), 1)


def folder_name(folder: str) -> str:
    """What a corpus or run is called, without the folders of the machine it lies on."""
    return folder if folder.startswith("sample:") else Path(folder).name


def base_name(config: AnyRun) -> str:
    """What the base of a run is called, "" where it has none."""
    return name_of_base(config.base) if config.kind.trains_pretrained else folder_name(config.base)


def without_places(config: AnyRun) -> AnyRun:
    """The config with names where it has folders of this machine."""
    named: dict[str, Any] = {"corpus": folder_name(config.corpus)}
    if config.base:
        named["base"] = base_name(config)
    if isinstance(config, ReaderRun):
        named["lessons"] = replace(config.lessons, edition=folder_name(config.lessons.edition))
        named["tuned"] = folder_name(config.tuned)
    return replace(config, **named)


@cache
def code_hash() -> str:
    """Which code measured: a hash of this package's sources, the same in every checkout of them."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
