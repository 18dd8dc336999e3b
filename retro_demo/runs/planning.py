"""What a new run is, of RETRO or of MARGE: its config from preset, settings and base, written or compared.

Nothing is trained here; training/trainer.py does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retro_demo.corpus.embedding import check_found
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.devices import allowed_threads, choose_device
from retro_demo.errors import UserError
from retro_demo.evidence.passages import languages_of
from retro_demo.files import file_hash, replacing
from retro_demo.jobs.lifecycle import is_running
from retro_demo.models.config import EvidenceConfig, MargeConfig, RetroConfig
from retro_demo.models.memory import check_memory
from retro_demo.output_folder import CONFIG, check_output, make_output
from retro_demo.paths import SAMPLE, data_home, run_folder
from retro_demo.presets import MARGE_PRESETS, PRESETS, preset_settings
from retro_demo.runs.checkpoint import (
    BEST,
    MODELS,
    STATE,
    AnyRun,
    MargeRun,
    RunConfig,
    config_bytes,
    differences,
    has_weights,
    read_any_config,
    read_run_config,
    saved_step,
    versions,
    weights_file,
    write_run_config,
)
from retro_demo.settings import TrainConfig, knobs
from retro_demo.tokenizer import Tokenizer

READER_KNOBS = frozenset(
    {
        "cca_layers",
        "enc_dim",
        "enc_depth",
        "enc_cross_layers",
        "enc_attn_dropout",
        "enc_ff_dropout",
        "enc_projection",
        "norm_states",
        "null_kv",
        "abstain",
        "cca_positions",
        "shifted_keys",
        "copying_start",
    }
)
"""What a run that begins with an lm's weights may choose of its network; the rest is the base's."""


def fitting_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Those of the usual layers with cross-attention (default: of RetroConfig) that a decoder so deep has."""
    usual = RetroConfig.cca_layers if layers is None else layers
    return tuple(layer for layer in usual if layer <= depth) or (depth,)


def make_run_config(
    model: str,
    corpus: str,
    *,
    preset: str = "",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    base: str = "",
) -> RunConfig:
    """The config of a new run: preset, then `settings` (knobs of RetroConfig and TrainConfig).

    `corpus` is a folder or "sample:NAME", `base` too: the run whose weights this one begins with. An
    `lm` or `retro` trains all of them on; a `retrofit` freezes them and trains encoder and
    cross-attention alone (RETRO section 4.2). Raises UserError for unknown names and bad values.
    """
    if model not in MODELS:
        raise UserError(f"There is no model {model!r}; choose one of {', '.join(MODELS)}.")
    if model == "marge":
        raise ValueError("a MARGE run is planned by make_marge_config")
    if model == "retrofit" and not base:
        raise UserError(
            "A retrofit teaches a trained lm to read neighbors: name it with --base RUN. "
            "Without one, train an lm first."
        )
    begun_from = read_run_config(run_folder(base)) if base else None
    preset = preset or (begun_from.preset if begun_from else "tiny")
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    folder = corpus_folder(data_home()[0], corpus)
    built = load_corpus(folder)
    chosen = preset_settings(model, preset, begun=bool(base)) | dict(settings or {})
    names = {kind: {knob.name for knob in knobs(kind)} for kind in (RetroConfig, TrainConfig)}
    if unknown := sorted(set(chosen) - names[RetroConfig] - names[TrainConfig]):
        raise UserError(f"There is no setting {', '.join(unknown)}.")
    shape = {name: value for name, value in chosen.items() if name in names[RetroConfig]}
    if "dim" in shape:  # an encoder as wide as the decoder, unless somebody says otherwise
        shape.setdefault("enc_dim", shape["dim"])
    if begun_from is not None:
        check_base(begun_from, base, built, settings or {})
        decoder = begun_from.network
        reader = {name: value for name, value in shape.items() if name in READER_KNOBS}
        shape = decoder_shape(decoder) | reader
        if "enc_dim" not in (settings or {}):  # that of a preset belongs to the decoder of the preset
            shape["enc_dim"] = decoder.dim
        if "cca_layers" not in (settings or {}):
            shape["cca_layers"] = fitting_layers(shape.get("cca_layers"), decoder.depth)
    # the matched baseline is the same decoder without cross-attention and encoder
    shape |= {"cca_layers": ()} if model == "lm" else {}
    shape |= {
        "vocab_size": built.tokenizer.vocab_size,
        "chunk_len": built.config.chunk_len,
        "pad_id": built.tokenizer.pad_id,
    }
    training = TrainConfig(**{name: value for name, value in chosen.items() if name in names[TrainConfig]})
    return RunConfig(
        model=model,
        preset=preset,
        corpus=corpus if folder != Path(corpus) else str(folder.resolve()),
        corpus_fingerprint=built.fingerprint,
        network=RetroConfig(**shape),
        training=training,
        lesson_steps=round(training.reading * training.steps),
        threads=allowed_threads(),
        device=choose_device(device),
        versions=versions(),
        base=base if not base or base.startswith(SAMPLE) else str(Path(base).resolve()),
        base_weights=file_hash(weights_file(run_folder(base))) if base else "",
    )


def decoder_shape(network: RetroConfig) -> dict[str, Any]:
    """The settings of a network that a run keeps when it begins with its weights."""
    return {name: value for name, value in asdict(network).items() if name not in READER_KNOBS}


def check_base(config: RunConfig, base: str, corpus: Corpus, settings: Mapping[str, Any]) -> None:
    """Raise UserError where a run cannot begin with the weights of this one."""
    if not has_weights(run_folder(base)):
        raise UserError(f"The base run {base} has no weights yet. Let it train until its first save.")
    if config.network.cca_layers:
        raise UserError(
            f"The base run {base} is a {config.model}; begin with an lm, which reads no neighbors."
        )
    ours = Tokenizer.load(run_folder(base) / "tokenizer.json")
    if ours.fingerprint != corpus.tokenizer.fingerprint:
        raise UserError(
            f"The base run {base} speaks another tokenizer than the corpus {corpus.name}. Build the corpus "
            "with --tokenizer naming the tokenizer.json of the base run."
        )
    shape = {knob.name for knob in knobs(RetroConfig)} - READER_KNOBS
    for name in sorted(shape & set(settings)):
        if settings[name] != getattr(config.network, name):
            raise UserError(
                f"{name} is {settings[name]}, but the base run {base} has {getattr(config.network, name)}. "
                "The decoder keeps the shape of its base.",
                **{name: ""},
            )


def prepare_run(out: Path, wanted: AnyRun) -> None:
    """Write down a new run, or check that a second call means the same one; more steps extend it."""
    if not check_output(out, "run"):
        check_size(wanted)
        corpus = load_corpus(corpus_folder(data_home()[0], wanted.corpus))
        if isinstance(wanted, RunConfig):
            check_windows(corpus, wanted.training.seq_len, wanted.training.num_neighbors)
            if wanted.retrieves:
                check_found(corpus, wanted.training.retriever)
        make_output(out)
        with replacing(out / CONFIG) as unfinished:  # comes last, and begun first it says whose folder it is
            unfinished.write_bytes(config_bytes(wanted))
            corpus.tokenizer.save(out / "tokenizer.json")
        return
    there = read_any_config(out)
    changed = differences(there, wanted)
    if changed and is_running(out):
        raise UserError(f"{out} is being trained ({'; '.join(changed)}). Stop it first, or wait for its end.")
    only_steps = [f"steps {there.training.steps} -> {wanted.training.steps}"]
    if not changed:
        # the same corpus at another place, or the same weights on other machines
        training = replace(there.training, sharded=wanted.training.sharded)
        if (moved := replace(there, corpus=wanted.corpus, training=training)) != there:
            write_run_config(out, moved)
        return
    if changed != only_steps or wanted.training.steps < there.training.steps:
        raise UserError(
            f"{out} already holds another run ({'; '.join(changed)}). Choose another folder; "
            "only a larger number of steps extends a run."
        )
    extend_run(out, wanted.training.steps)


def keep_weights(out: Path, keep: str) -> None:
    """Choose which weights a run is used with, "last" or "best"; both stay where they are.

    Raises UserError where it has no best save and, being at its end, comes to none.
    """
    there = read_any_config(out)
    chosen = replace(there, training=replace(there.training, keep=keep))
    ended = has_weights(out) and saved_step(out) in (0, there.training.steps)  # 0: it has no state
    if keep == "best" and ended and not (out / BEST).exists():
        raise UserError(
            f"No best save of {out.name} was kept: no text of its corpus is held out, it was trained by a "
            "release that kept none, or it came without one. Use the last one, or train a new run."
        )
    if chosen != there:
        write_run_config(out, chosen)


def check_size(config: AnyRun) -> None:
    """Raise UserError where the run can never be trained in the memory of this machine."""
    training = config.training
    whole = isinstance(config, RunConfig)  # the batches of a MARGE follow from its corpus
    check_memory(config.network, training.batch_size * training.seq_len * whole, config.device)


def extend_run(out: Path, steps: int) -> None:
    """Let a run go on to more steps; its learning rate follows the longer schedule from here."""
    there = read_any_config(out)
    if is_running(out):
        raise UserError(f"{out.name} is being trained. Stop it first, or wait for its end.")
    if steps <= there.training.steps:
        raise UserError(f"This run already has {there.training.steps} steps; {steps} would not extend it.")
    if not (out / STATE).exists() and has_weights(out):
        raise UserError(
            "This run ships without its optimizer state, so it cannot be trained longer. Train a new one."
        )
    write_run_config(out, replace(there, training=replace(there.training, steps=steps)))


def check_windows(corpus: Corpus, seq_len: int, num_neighbors: int) -> None:
    """Raise UserError where windows of this length, or so many neighbors, do not fit the corpus."""
    chunk_len, stored = corpus.config.chunk_len, corpus.neighbor_ids.shape[1]
    if seq_len % chunk_len or seq_len < 2 * chunk_len:
        raise UserError(
            f"The context is {seq_len} tokens, but this corpus has chunks of {chunk_len}: "
            f"choose a multiple of {chunk_len}, at least {2 * chunk_len}."
        )
    if num_neighbors > stored:
        raise UserError(
            f"You ask for {num_neighbors} neighbors, but this corpus stores {stored}. "
            "Ask for fewer, or build the corpus with more."
        )


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
