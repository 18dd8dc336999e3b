"""Readers of a few steps on small random bases, which the tests write themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.made_bases import write_base
from retro_demo.runs.planning import plan_run, prepare_run

DEEP_ENOUGH = {"num_hidden_layers": 5, "tie_word_embeddings": True}
SETTINGS: dict[str, Any] = {
    "lessons": 6,
    "steps": 6,
    "warmup": 2,
    "batch_size": 2,
    "seq_len": 32,
    "chunk_len": 8,
    "title_len": 4,
    "match_dim": 16,
    "query_tokens": 8,
    "eval_every": 3,
    "eval_tokens": 100,
    "save_every": 2,
}


TUNED = {
    name: value for name, value in SETTINGS.items() if name not in ("lessons", "match_dim", "query_tokens")
}


def small_base(folder: Path, **more: Any) -> Path:
    """A folder of a random base with five layers."""
    write_base(folder, DEEP_ENOUGH | more)
    return folder


def changed_base(folder: Path) -> Path:
    """A base of the same shape and tokenizer with other weights."""
    weights = write_base(small_base(folder), DEEP_ENOUGH)
    save_file({name: weight + 1 for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def prepare_reader(out: Path, corpus: Path, base: Path, **changes: Any) -> Path:
    """A reader of this base set up in the folder `out`; nothing is trained yet."""
    settings = SETTINGS | changes
    prepare_run(out, plan_run("retrofit", str(corpus), settings=settings, device="cpu", base=str(base)))
    return out


def prepare_tuned(out: Path, corpus: Path, base: Path, **changes: Any) -> Path:
    """This base set up to be fine-tuned in the folder `out`, as the matched baseline of such a reader."""
    settings = TUNED | changes
    prepare_run(out, plan_run("lm", str(corpus), settings=settings, device="cpu", base=str(base)))
    return out
