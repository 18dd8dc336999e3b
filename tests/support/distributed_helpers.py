"""What tests of distributed share with others."""

from __future__ import annotations

from pathlib import Path

from marge_training_helpers import SETTINGS as MARGE_SETTINGS
from marge_training_helpers import folder as two_languages  # noqa: F401
from torchrun_helpers import of
from train_helpers import SETTINGS

from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.training.trainer import run_training


def prepare(out: Path, corpus: Path, model: str = "retro", **changes) -> Path:
    usual = MARGE_SETTINGS if model == "marge" else SETTINGS | {"batch_size": 3}
    base = changes.pop("base", "")
    settings = usual | {"dropout": 0.0} | changes
    if base:  # what shapes the decoder is the base's
        settings = {
            name: value for name, value in settings.items() if name not in ("dim", "depth", "num_heads")
        }
    prepare_run(out, plan_run(model, str(corpus), settings=settings, device="cpu", base=base))
    return out


def alone(out: Path, stop_after: int | None = None, device: str = "cpu") -> list[dict]:
    events: list[dict] = []
    for event in run_training(
        out, lambda: stop_after is not None and len(of(events, "step")) >= stop_after, device=device
    ):
        events.append(event.to_json())
    return events
