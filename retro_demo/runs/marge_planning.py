"""What a new MARGE run is: its config from preset and settings. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retro_demo.config import TrainConfig, knobs
from retro_demo.corpus.corpus import load_corpus
from retro_demo.corpus.samples import corpus_folder
from retro_demo.devices import allowed_threads, choose_device
from retro_demo.errors import UserError
from retro_demo.evidence.passages import languages_of
from retro_demo.models.marge_config import EvidenceConfig, MargeConfig
from retro_demo.paths import data_home
from retro_demo.presets import MARGE_PRESETS
from retro_demo.runs.checkpoint import AnyRun, MargeRun, versions
from retro_demo.runs.planning import make_run_config

MARGE_TRAINING = (
    "steps",
    "reading",
    "lessons_kept",
    "lr",
    "warmup",
    "weight_decay",
    "clip",
    "seed",
    "eval_every",
    "eval_tokens",
    "save_every",
    "precision",
    "sharded",
    "keep",
)
"""The knobs of TrainConfig that mean something to MARGE; its batches follow from EvidenceConfig."""


def marge_settings() -> dict[str, type]:
    """Each knob that a MARGE run has, with the config that it belongs to."""
    own = {knob.name: kind for kind in (MargeConfig, EvidenceConfig) for knob in knobs(kind)}
    return own | dict.fromkeys(MARGE_TRAINING, TrainConfig)


def usual_settings(preset: str, languages: Sequence[str]) -> dict[str, Any]:
    """What a preset sets where the documents are in these languages."""
    alone = {"evidence_languages": "any"} if len(languages) == 1 else {}  # no other can be had
    return MARGE_PRESETS[preset] | alone


def make_marge_config(
    corpus: str,
    *,
    preset: str = "",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> MargeRun:
    """The config of a new run: preset, then `settings`; `corpus` is a folder or "sample:NAME".

    Raises UserError for unknown names and bad values, and where there are no two documents to be
    each other's evidence.
    """
    preset = preset or "tiny"
    if preset not in MARGE_PRESETS:
        raise UserError(f"MARGE has no preset {preset!r}; choose one of {', '.join(MARGE_PRESETS)}.")
    known = marge_settings()
    if unknown := sorted(set(settings or {}) - set(known)):
        raise UserError(f"MARGE has no setting {', '.join(unknown)}. Leave it out.")
    folder = corpus_folder(data_home()[0], corpus)
    built = load_corpus(folder)
    languages = languages_of(built)
    chosen = usual_settings(preset, languages) | dict(settings or {})
    parts = {
        kind: {name: value for name, value in chosen.items() if known[name] is kind}
        for kind in (MargeConfig, EvidenceConfig, TrainConfig)
    }
    training = TrainConfig(**parts[TrainConfig])
    return MargeRun(
        model="marge",
        preset=preset,
        corpus=corpus if folder != Path(corpus) else str(folder.resolve()),
        corpus_fingerprint=built.fingerprint,
        network=MargeConfig(
            vocab_size=built.tokenizer.vocab_size,
            pad_id=built.tokenizer.pad_id,
            languages=languages,
            **parts[MargeConfig],
        ),
        evidence=EvidenceConfig(**parts[EvidenceConfig]),
        training=training,
        lesson_steps=round(training.reading * training.steps),
        threads=allowed_threads(),
        device=choose_device(device),
        versions=versions(),
    )


def plan_run(
    model: str,
    corpus: str,
    *,
    preset: str = "",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    base: str = "",
) -> AnyRun:
    """The config of a new run of any model; see `make_run_config` and `make_marge_config`."""
    if model != "marge":
        return make_run_config(model, corpus, preset=preset, settings=settings, device=device, base=base)
    if base:
        raise UserError(f"A MARGE begins with no other run ({base}): leave the base out.")
    return make_marge_config(corpus, preset=preset, settings=settings, device=device)
