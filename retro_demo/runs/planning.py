"""What a new run is, of any kind: its config from preset, settings and base, written down or compared.

Nothing is trained here; training/trainer.py does that."""

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
from retro_demo.kinds import KINDS, Kind, kind_named, resolve
from retro_demo.models.config import RetroConfig
from retro_demo.models.llama import LlamaConfig
from retro_demo.models.memory import check_memory
from retro_demo.output_folder import CONFIG, check_output, make_output
from retro_demo.paths import SAMPLE, data_home, run_folder
from retro_demo.pretrained.bases import BaseShape, base_config, describe_base, is_pretrained
from retro_demo.runs.checkpoint import (
    BEST,
    LAST,
    AnyRun,
    MargeRun,
    PretrainedRun,
    RunConfig,
    TunedRun,
    config_bytes,
    differences,
    has_weights,
    read_any_config,
    read_run_config,
    step_of,
    versions,
    weights_file,
    write_run_config,
)
from retro_demo.runs.resuming import can_resume, saved_step
from retro_demo.settings import settings_of
from retro_demo.tokenizer import Tokenizer

READER_SETTINGS = frozenset(
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
FIRST_WRITTEN = 0.6
"""Share of the depth of a pretrained base below which nothing is trained."""

OF_BASE = ("vocab_size", "num_heads", "num_kv_heads", "head_dim", "ff_dim", "dim", "depth")
"""What the shape of a network beside a pretrained base takes from that base."""


def fitting_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Those of the usual layers with cross-attention (default: of RetroConfig) that a decoder so deep has."""
    usual = RetroConfig.cca_layers if layers is None else layers
    return tuple(layer for layer in usual if layer <= depth) or (depth,)


def plan_run(
    model: str,
    corpus: str,
    *,
    preset: str = "",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    base: str = "",
    hub: bool = False,
) -> AnyRun:
    """The config of a new run: its preset, then `settings`.

    `corpus` is a folder or "sample:NAME", `base` too: the run whose weights this one begins with, or a
    pretrained base (`hub`: one of the Hub may be fetched). An `lm` or `retro` trains all of them on; a
    `retrofit` freezes them and trains encoder and cross-attention alone (RETRO section 4.2). Of a pretrained
    base an `lm` is a fine-tuning, a `retrofit` a reader; this may begin with such a fine-tuning, too. Raises
    UserError for unknown names and bad values, and for a MARGE where there are no two
    documents to be each other's evidence.
    """
    kind, given = kind_of_run(model, base, hub), dict(settings or {})
    pretrained = bool(base) and kind.trains_pretrained
    tuned = _fine_tuned(base, hub) if pretrained else None
    begun_from = read_run_config(run_folder(base)) if base and not pretrained else None
    shape = begun_from.network if begun_from else None
    if pretrained:
        shape = describe_base(tuned.base if tuned else base, hub=hub)
    preset = preset or (begun_from.preset if begun_from else "tiny")
    if preset not in kind.presets:
        raise UserError(
            f"The model {kind.name} has no preset {preset!r}; choose one of {', '.join(kind.presets)}."
        )
    if edition := given.get("edition", ""):
        given["edition"] = edition = _from_anywhere(edition)
    own, planner = kind.settings(), resolve(kind.planner)
    if unknown := sorted(set(given) - set(own)):
        raise UserError(f"The model {kind.name} has no setting {', '.join(unknown)}. Leave it out.")
    folder = corpus_folder(data_home()[0], corpus)
    built = load_corpus(folder)
    if begun_from is not None:
        check_base(begun_from, base, built, given)
    usual = planner.preset(kind, preset, shape)
    chosen = usual | planner.of_corpus(built) | given | dict(kind.always)
    values = {name: kind.settings_of_part(name, chosen) for name in kind.parts}
    values["network"] = planner.network(values["network"], built, shape)
    if tuned:
        values["network"] |= _shape_of_updates(tuned)
    parts = {name: part(**values[name]) for name, part in kind.part_types().items()}
    return resolve(kind.config)(
        model=kind.name,
        preset=preset,
        corpus=corpus if folder != Path(corpus) else str(folder.resolve()),
        corpus_fingerprint=built.fingerprint,
        lesson_steps=round(parts["training"].reading * parts["training"].steps),
        threads=allowed_threads(),
        device=choose_device(device),
        versions=versions(),
        **parts,
        **_beginning(base, shape, edition, tuned),
    )


def kind_of_run(model: str, base: str, hub: bool) -> Kind:
    """The kind that a run becomes by its base; raises UserError where the two do not go together."""
    kind = kind_named(model)
    if base and is_pretrained(base, hub=hub and bool(kind.of_pretrained)):
        if not kind.of_pretrained:
            raise UserError(
                f"A {model} cannot begin with the pretrained base {base}. Train a retrofit on it: "
                f"train retrofit --base {base}"
            )
        return kind_named(kind.of_pretrained)
    of_pretrained = KINDS.get(kind.of_pretrained)
    if base and of_pretrained and of_pretrained.retrieves and _fine_tuned(base, hub):
        return of_pretrained
    if kind.trains_pretrained:
        raise UserError(
            f"The model {kind.name} needs a pretrained base: name it with --base smollm2, or a folder."
        )
    if kind.base == "must" and not base:
        raise UserError(
            "A retrofit teaches a trained lm to read neighbors: name it with --base RUN. "
            "Without one, train an lm first."
        )
    if kind.base == "cannot" and base:
        raise UserError(f"The model {model} begins with no other run ({base}): leave the base out.")
    return kind


def shape_beside(kind: Kind, chosen: dict[str, Any], base: str) -> dict[str, Any]:
    """The shape of a network beside a pretrained base, as it is or fine-tuned, from what was chosen of it.

    Raises UserError where there is no such base.
    """
    tuned = _fine_tuned(base, False)
    shape = resolve(kind.planner).beside(chosen, base_config(tuned.base if tuned else base))
    return shape | (_shape_of_updates(tuned) if tuned else {})


def _shape_of_updates(tuned: TunedRun) -> dict[str, Any]:
    """What a reader takes of the shape of a base that was fine-tuned."""
    return {name: getattr(tuned.network, name) for name in ("first_tuned", "rank")}


def _fine_tuned(base: str, hub: bool) -> TunedRun | None:
    """The run of this name, where it fine-tuned a pretrained base; None where it is such a base, or another
    run. Raises UserError where it has no weights yet, or its base is gone or another one."""
    if is_pretrained(base, hub=hub):
        return None
    folder = run_folder(base)
    config = read_any_config(folder)
    if not isinstance(config, TunedRun):
        return None
    if not has_weights(folder):
        raise UserError(f"The base run {base} has no weights yet. Let it train until its first save.")
    if is_running(folder):
        raise UserError(f"The base run {base} is being trained. Wait for its end, or stop it first.")
    config.found_base()
    return config


def _beginning(
    base: str, shape: BaseShape | RetroConfig | None, edition: str, tuned: TunedRun | None
) -> dict[str, Any]:
    """What a config keeps of what the run begins with."""
    if not base:
        return {}
    if not isinstance(shape, BaseShape):
        weights = file_hash(weights_file(run_folder(base)))
        return {"base": _from_anywhere(base), "base_weights": weights}
    known = {"base": shape.place, "base_weights": shape.fingerprint, "base_context": shape.config.max_len}
    if tuned:
        folder = run_folder(base)
        known |= {
            "tuned": _from_anywhere(base),
            "tuned_weights": file_hash(weights_file(folder)),
            "tuned_tokens": step_of(folder / LAST) * tuned.tokens_per_step,
        }
    if edition:
        other = load_corpus(corpus_folder(data_home()[0], edition))
        known["edition_fingerprint"] = other.fingerprint
    return known


def _from_anywhere(place: str) -> str:
    """A place by a name that leads there whatever folder one is in."""
    return place if place.startswith(SAMPLE) else str(Path(place).resolve())


class Planner:
    """What the settings of a kind of run follow from; here nothing but its preset."""

    @staticmethod
    def preset(kind: Kind, preset: str, base: Any = None) -> dict[str, Any]:
        """What a preset sets; where a run begins with weights of a network like `base`, it fits to that."""
        return kind.preset_settings(preset)

    @staticmethod
    def of_corpus(corpus: Corpus) -> dict[str, Any]:
        """What the documents make usual, whatever the preset says."""
        return {}

    @staticmethod
    def network(shape: dict[str, Any], corpus: Corpus, base: Any = None) -> dict[str, Any]:
        """The shape of the network on a corpus, from what was chosen of it."""
        return shape | {"vocab_size": corpus.tokenizer.vocab_size, "pad_id": corpus.tokenizer.pad_id}

    @staticmethod
    def usual(config: Any, preset: str) -> dict[str, Any]:
        """What would have been set had nobody said anything but the preset."""
        return config.kind.preset_settings(preset)

    @staticmethod
    def tokenizer(config: Any, corpus: Corpus) -> Tokenizer:
        """The one that the run reads and writes with."""
        return corpus.tokenizer

    @staticmethod
    def check(config: Any, corpus: Corpus) -> None:
        """Raise UserError where the settings do not fit the corpus."""


class RetroPlanner(Planner):
    """What the settings of a run with the network of RETRO follow from."""

    @staticmethod
    def preset(kind: Kind, preset: str, base: RetroConfig | None = None) -> dict[str, Any]:
        settings = kind.preset_settings(preset, begun=base is not None)
        if base is None:
            return settings
        layers = fitting_layers(settings.get("cca_layers"), base.depth)
        return settings | decoder_shape(base) | {"enc_dim": base.dim, "cca_layers": layers}

    @staticmethod
    def network(shape: dict[str, Any], corpus: Corpus, base: Any = None) -> dict[str, Any]:
        """An encoder is as wide as the decoder, unless somebody says otherwise."""
        width = {"enc_dim": shape["dim"]} if "dim" in shape else {}
        return Planner.network(width | shape, corpus) | {"chunk_len": corpus.config.chunk_len}

    @staticmethod
    def usual(config: RunConfig, preset: str) -> dict[str, Any]:
        base = config.network if config.base else None
        settings = RetroPlanner.preset(config.kind, preset, base)
        width = config.network.dim
        follows = {"enc_dim": width} if width != settings.get("dim", RetroConfig.dim) else {}
        return follows | settings | dict(config.kind.always)

    @staticmethod
    def check(config: RunConfig, corpus: Corpus) -> None:
        check_windows(corpus, config.training.seq_len, config.training.num_neighbors)
        if config.retrieves:
            check_found(corpus, config.training.retriever)


class MargePlanner(Planner):
    """The same for a run of MARGE."""

    @staticmethod
    def of_corpus(corpus: Corpus) -> dict[str, Any]:
        return _of_languages(languages_of(corpus))

    @staticmethod
    def network(shape: dict[str, Any], corpus: Corpus, base: Any = None) -> dict[str, Any]:
        return Planner.network(shape, corpus) | {"languages": languages_of(corpus)}

    @staticmethod
    def usual(config: MargeRun, preset: str) -> dict[str, Any]:
        return Planner.usual(config, preset) | _of_languages(config.network.languages)


class PretrainedPlanner(Planner):
    """The same for what is trained beside a pretrained base."""

    @staticmethod
    def layers(depth: int) -> dict[str, Any]:
        """Where it changes a base of so many layers, unless somebody says otherwise: where those of a base of
        30 layers were tried, at 40 to 90% of its depth."""
        raise NotImplementedError

    @classmethod
    def beside(cls, shape: dict[str, Any], base: LlamaConfig) -> dict[str, Any]:
        """The shape of the network beside a base, from what was chosen of it."""
        return cls.layers(base.depth) | shape | {name: getattr(base, name) for name in OF_BASE}

    @classmethod
    def network(cls, shape: dict[str, Any], corpus: Corpus, base: BaseShape | None = None) -> dict[str, Any]:
        assert base is not None
        if base.tokenizer.token_bytes(0):  # and no special token is there to take its place
            raise UserError(
                f"The first token of the base {base.place} stands for text, and corpora are filled up with "
                "it. Choose a base whose tokenizer has a special token."
            )
        return cls.beside(shape, base.config) | {"pad_id": 0, "begin_id": base.begin_id}

    @staticmethod
    def tokenizer(config: PretrainedRun, corpus: Corpus) -> Tokenizer:
        return describe_base(config.base).tokenizer

    @staticmethod
    def check(config: PretrainedRun, corpus: Corpus) -> None:
        length, chunk_len = config.training.seq_len, config.network.chunk_len
        if length % chunk_len or length < 2 * chunk_len:
            raise UserError(
                f"The context is {length} tokens, but a chunk has {chunk_len}: choose a multiple of "
                f"{chunk_len}, at least {2 * chunk_len}."
            )
        if length > config.context:
            raise UserError(
                f"The context is {length} tokens, but the base reads at most {config.context} behind a "
                f"title. Choose a smaller --seq-len, a multiple of {chunk_len}."
            )
        if not (~(corpus.held_out | corpus.database_only)).any():
            raise UserError("No document of this corpus is for training. Build it with some that are.")


class ReaderPlanner(PretrainedPlanner):
    """The same for a pretrained base that learns to read neighbors."""

    @staticmethod
    def layers(depth: int) -> dict[str, Any]:
        return {
            "match_layers": layers_at((0.4, FIRST_WRITTEN), depth),
            "write_layers": layers_at((FIRST_WRITTEN, 0.73, 0.87), depth),
        }


class TunedPlanner(PretrainedPlanner):
    """The same for one that is fine-tuned: above the layer at which a reader would begin to write."""

    @staticmethod
    def layers(depth: int) -> dict[str, Any]:
        return {"first_tuned": layers_at((FIRST_WRITTEN,), depth)[0]}


def layers_at(shares: Sequence[float], depth: int) -> tuple[int, ...]:
    """Layers at these shares of the depth of a base, ascending, each once, below the last one."""
    return tuple(sorted({min(depth - 1, max(1, round(share * depth))) for share in shares}))


def _of_languages(languages: Sequence[str]) -> dict[str, Any]:
    """No evidence in another language can be had where there is but one."""
    return {"evidence_languages": "any"} if len(languages) == 1 else {}


def decoder_shape(network: RetroConfig) -> dict[str, Any]:
    """The settings of a network that a run keeps when it begins with its weights."""
    return {name: value for name, value in asdict(network).items() if name not in READER_SETTINGS}


def check_base(config: RunConfig, base: str, corpus: Corpus, settings: Mapping[str, Any]) -> None:
    """Raise UserError where a run cannot begin with the weights of this one."""
    if not has_weights(run_folder(base)):
        raise UserError(f"The base run {base} has no weights yet. Let it train until its first save.")
    if config.network.cca_layers or config.kind.trains_pretrained:
        raise UserError(
            f"The base run {base} is a {config.model}; begin with an lm, which reads no neighbors and has no "
            "base of its own, or with a pretrained base."
        )
    ours = Tokenizer.load(run_folder(base) / "tokenizer.json")
    if ours.fingerprint != corpus.tokenizer.fingerprint:
        raise UserError(
            f"The base run {base} speaks another tokenizer than the corpus {corpus.name}. Build the corpus "
            "with --tokenizer naming the tokenizer.json of the base run."
        )
    shape = {setting.name for setting in settings_of(RetroConfig)} - READER_SETTINGS
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
        resolve(wanted.kind.planner).check(wanted, corpus)
        make_output(out)
        with replacing(out / CONFIG) as unfinished:  # comes last, and begun first it says whose folder it is
            unfinished.write_bytes(config_bytes(wanted))
            resolve(wanted.kind.planner).tokenizer(wanted, corpus).save(out / "tokenizer.json")
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
    tokens = config.tokens_per_step if config.kind.even_batches else 0
    check_memory(config.network, tokens, config.device, config.base_bytes)


def extend_run(out: Path, steps: int) -> None:
    """Let a run go on to more steps; its learning rate follows the longer schedule from here."""
    there = read_any_config(out)
    if is_running(out):
        raise UserError(f"{out.name} is being trained. Stop it first, or wait for its end.")
    if steps <= there.training.steps:
        raise UserError(f"This run already has {there.training.steps} steps; {steps} would not extend it.")
    if not can_resume(out):
        raise UserError(
            "This run ships without its optimizer state, so it cannot be trained longer. Train a new one."
        )
    write_run_config(out, replace(there, training=replace(there.training, steps=steps)))


def check_windows(corpus: Corpus, seq_len: int, num_neighbors: int) -> None:
    """Raise UserError where windows of this length, or so many neighbors, do not fit the corpus."""
    check_lengths(corpus.config.chunk_len, corpus.neighbor_ids.shape[1], seq_len, num_neighbors)


def check_lengths(chunk_len: int, stored: int, seq_len: int, num_neighbors: int) -> None:
    """As `check_windows`, for a corpus with chunks of this length and so many stored neighbors of each."""
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
