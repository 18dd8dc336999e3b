"""A study that takes seconds: tiny runs of a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retro_demo.training.study import Study, prepare_study, run_study

QUICK: dict[str, Any] = {
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "cca_layers": (2,),
    "enc_dim": 16,
    "seq_len": 32,
    "batch_size": 2,
    "steps": 4,
    "eval_every": 2,
    "eval_tokens": 200,
    "save_every": 2,
}


def prepare(
    out: Path, corpus: Path, *, base: str = "", seeds: int = 1, runs: str = "", **changes: Any
) -> Path:
    settings = QUICK | changes
    prepare_study(out, Study(str(corpus), base=base, seeds=seeds, settings=settings, device="cpu", runs=runs))
    return out


def advance(out: Path, stop_at: str = "") -> list[dict[str, Any]]:
    """The events of a study; it is asked to stop once it tells of a stage whose name begins so."""
    told: list[dict[str, Any]] = []
    for event in run_study(out, lambda: bool(stop_at) and told[-1].get("stage", "").startswith(stop_at)):
        told.append(event.to_json())
    return told
