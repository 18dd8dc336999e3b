"""Whether a plain lm is a fair baseline for a run: same text, same tokens, no less training or size.

A baseline that had less would make retrieval look good. What differs is said, or refused where the two
cannot be compared token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro_demo.checkpoint import RunConfig, read_run_config
from retro_demo.config import RetroConfig, TrainConfig
from retro_demo.errors import UserError
from retro_demo.knobs import knobs
from retro_demo.planning import READER_KNOBS
from retro_demo.presets import preset_settings
from retro_demo.provenance import weights_of
from retro_demo.tokenizer import Tokenizer
from retro_demo.workspace import run_folder

DECODER = ("dim", "depth", "ff_mult")


@dataclass(frozen=True)
class Match:
    """How a baseline compares, in words; `unfit` says why it is no match, "" = it is one."""

    words: str
    unfit: str


def match(run: Path, baseline: Path) -> Match:
    """Compare a baseline with a run; raises UserError where no comparison makes sense."""
    ours, theirs = read_run_config(run), read_run_config(baseline)
    if theirs.retrieves:
        raise UserError(
            f"The baseline {baseline.name} is a {theirs.model}, which retrieves too. Name an lm "
            "that was trained on the same corpus."
        )
    check_same_tokens(run, baseline)
    steps, parameters = weights_of(run)
    their_steps, their_parameters = weights_of(baseline)
    seen, their_seen = tokens_seen(run), tokens_seen(baseline)
    words = (
        f"The run saw {_count(seen)} tokens in training ({_steps(ours, steps)}, {parameters / 1e6:.2f} M "
        f"parameters), the baseline {_count(their_seen)} ({_steps(theirs, their_steps)}, "
        f"{their_parameters / 1e6:.2f} M)"
    )
    return Match(words, _unfit(ours, theirs, seen, their_seen))


def unfit_control(run: Path, control: Path) -> str:
    """Why a run is no control, or one that would be an easy opponent; "" where it is a fair one."""
    ours, theirs = read_run_config(run), read_run_config(control)
    if not theirs.retrieves or theirs.training.neighbor_source != "random":
        return "it was not trained with random neighbors"
    return _unfit(ours, theirs, tokens_seen(run), tokens_seen(control))


def check_same_tokens(run: Path, other: Path) -> None:
    """Raise UserError where two runs do not read the same tokens of a text."""
    tokenizers = [Tokenizer.load(folder / "tokenizer.json") for folder in (run, other)]
    if tokenizers[0].fingerprint != tokenizers[1].fingerprint:
        raise UserError(
            f"{other.name} speaks another tokenizer than {run.name}, so their losses are not about the same "
            "tokens. Train it on the same corpus."
        )


def _unfit(ours: RunConfig, theirs: RunConfig, seen: int | None, their_seen: int | None) -> str:
    """Why the baseline would be an easy opponent; "" where it is none."""
    if ours.corpus_fingerprint != theirs.corpus_fingerprint:
        return "it was trained on another corpus"
    if theirs.training.seq_len < ours.training.seq_len:
        return f"it was trained on {theirs.training.seq_len} tokens of context, not {ours.training.seq_len}"
    for name in DECODER:
        one, other = getattr(ours.network, name), getattr(theirs.network, name)
        if other < one:
            return f"its decoder is smaller ({name} {other}, not {one})"
    if seen is None or their_seen is None:
        return "it is not known how many tokens it was trained on, because a base run is gone"
    if their_seen < seen:
        return f"it saw only {their_seen:,} tokens in training, the run {seen:,}"
    return ""


def tokens_seen(run: Path) -> int | None:
    """Tokens read in training up to the saved weights, those of the base run included; None = unknown."""
    config = read_run_config(run)
    own = weights_of(run)[0] * config.training.batch_size * config.training.seq_len
    if not config.base:
        return own
    base = run_folder(config.base)
    before = tokens_seen(base) if (base / "config.json").exists() else None
    return None if before is None else before + own


def _steps(config: RunConfig, steps: int) -> str:
    return f"{steps:,} steps" + (" after those of its base" if config.base else "")


def _count(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else f"{tokens:,}"


def baseline_settings(run: Path) -> dict[str, Any]:
    """The knobs of an lm that would match a run, for `planning.make_run_config` with the run's base.

    From scratch it is the same decoder trained the same way. For a retrofit it is the base trained on
    for as many steps, at the learning rate of its preset for that: the retrofit's is for fresh weights.
    """
    config = read_run_config(run)
    shape = {knob.name for knob in knobs(RetroConfig)} - READER_KNOBS
    settings = {name: getattr(config.network, name) for name in sorted(shape)}
    settings |= {knob.name: getattr(config.training, knob.name) for knob in knobs(TrainConfig)}
    if config.base:
        settings["lr"] = preset_settings("lm", config.preset, begun=True)["lr"]
    return settings
