"""Run folders: what a run is, and its weights.

    config.json           RunConfig: model, network, training, corpus and its fingerprint, versions
    model.safetensors     the weights of the last save
    best.safetensors      those of the save with the best held-out loss, which is among its notes: `keep` says
                          which of both is used
    state.safetensors     weights, optimizer and generators of the last save: runs/resuming.py
    events.jsonl          all that happened
    tokenizer.json        the tokenizer of the corpus
    imported.json         where the run came from elsewhere (sharing/importing.py)

Each file is written beside itself and renamed. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retro_demo.errors import NotFound, UserError
from retro_demo.files import (
    ANEW,
    Header,
    check_shapes,
    file_hash,
    finite_tensors,
    read_header,
    save_tensors,
    write_atomically,
)
from retro_demo.kinds import KINDS, Kind, resolve
from retro_demo.models.config import EvidenceConfig, MargeConfig, NetworkConfig, RetroConfig
from retro_demo.models.layers import lay_out_for_writing
from retro_demo.models.marge import MARGE
from retro_demo.models.memory import shapes_of
from retro_demo.models.reader import Reader
from retro_demo.models.reader_config import BesideBase, LessonConfig, ReaderConfig, TunedConfig
from retro_demo.models.retro import RETRO
from retro_demo.models.tuned import Tuned
from retro_demo.output_folder import CONFIG, kind_of, make_output
from retro_demo.paths import CHECKPOINTS, MISSING, SAMPLE, data_home
from retro_demo.pretrained.bases import (
    Base,
    base_fingerprint,
    describe_base,
    find_base,
    load_base,
    name_of_base,
)
from retro_demo.pretrained.precision import fastest_precision, training_precision
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.settings import TrainConfig, from_json, seen, settings_of

FORMAT = 1
LAST, BEST, STATE = "model.safetensors", "best.safetensors", "state.safetensors"
IMPORTED = "imported.json"
MOST_THREADS = 4096
MOST_CHARS = 4096  # of a text in config.json
MOST_STEPS = 1_000_000_000
MOST_PAGE = 1024  # tokens: explaining more takes gigabytes and minutes
HASH = re.compile(r"[0-9a-f]{64}")
FLOATS = ("F32", "F16", "BF16")  # what weights are kept in
Beside = TypeVar("Beside", Reader, Tuned)  # what reads with a pretrained base
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class AnyRun:
    """All that decides what a run becomes, as config.json keeps it; each kind of network adds to it."""

    model: str
    preset: str
    corpus: str  # folder, or "sample:NAME"
    corpus_fingerprint: str
    network: NetworkConfig
    training: TrainConfig
    threads: int
    device: str
    versions: dict[str, str]
    lesson_steps: int = 0  # steps over which reading lessons fade out: more steps do not bring them back
    format: int = FORMAT

    @property
    def kind(self) -> Kind:
        """The row of the table of kinds that this run belongs to."""
        return KINDS[self.model]

    @property
    def base(self) -> str:
        """The run whose weights this one began with: a folder, "sample:NAME" or, for none, ""."""
        return ""

    @property
    def base_weights(self) -> str:
        """Hash of the weights that it began with."""
        return ""

    @property
    def begun_with(self) -> str:
        """The run whose weights it began with, as `base` names one; a pretrained base is no run."""
        return self.base

    @property
    def begins_with(self) -> str:
        """What `--base` names to train such a run."""
        return self.begun_with or self.base

    @property
    def retrieves(self) -> bool:
        """Whether the network reads anything that is retrieved."""
        return self.kind.retrieves

    @property
    def context(self) -> int:
        """Tokens that it reads at a time when it writes or explains."""
        return self.settings[self.kind.context]

    @property
    def retokenizes(self) -> bool:
        """Whether it reads its own corpus, too, in another tokenizer than the corpus was built with."""
        return False

    @property
    def page(self) -> int:
        """Tokens of a page, where a longer text is explained."""
        return self.context

    def with_base(self, network: Any, folder: Path) -> Any:
        """The network of the run in a folder, ready to be used; UserError where what it stands on is gone."""
        return network

    @property
    def base_bytes(self) -> int:
        """What the weights of a base beside its own take in training; UserError where it is gone."""
        return 0

    @property
    def missing(self) -> str:
        """What it needs that is not on this machine, in a sentence; "" where all is there."""
        return ""

    @property
    def chunk_len(self) -> int:
        """Tokens of a chunk, where it reads neighbors of chunks in its own corpus or another one, else 0."""
        return 0

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that its texts are marked with."""
        return ()

    @property
    def parts(self) -> dict[str, Any]:
        """The fields that hold settings, by name."""
        return {name: getattr(self, name) for name in self.kind.parts}

    @property
    def settings(self) -> dict[str, Any]:
        """All its settings with their values, those of training first."""
        values = {
            one.name: getattr(p, one.name) for p in reversed(self.parts.values()) for one in settings_of(p)
        }
        return {name: value for name, value in values.items() if name in self.kind.settings()}

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step's batch; where batches are not even (`Kind.even_batches`), at most so many."""
        return math.prod(self.settings[name] for name in self.kind.batch)


@dataclass(frozen=True, kw_only=True)
class RunConfig(AnyRun):
    """A run with the network of RETRO."""

    network: RetroConfig
    base: str = ""
    base_weights: str = ""

    @property
    def retrieves(self) -> bool:
        """Whether the network reads neighbors at all."""
        return bool(self.network.cca_layers)

    @property
    def chunk_len(self) -> int:
        return self.network.chunk_len if self.retrieves else 0


@dataclass(frozen=True, kw_only=True)
class PretrainedRun(RunConfig):
    """A run that stands on a pretrained base; `base` names it, `base_weights` is its hash."""

    network: BesideBase  # pyright: ignore[reportIncompatibleVariableOverride]
    base_context: int = 2048  # tokens that the base reads at most

    def __post_init__(self) -> None:
        if not self.base or not HASH.fullmatch(self.base_weights):
            raise UserError(
                f"A {self.model} run names its base and the hash of its weights, not "
                f"{seen(self.base_weights)}."
            )
        if not 2 <= self.context <= MOST_STEPS:
            raise UserError(
                f"The base reads {seen(self.base_context)} tokens at a time, which leaves no room behind a "
                f"title of {self.network.title_len}. Choose another base, or a smaller --title-len."
            )

    @property
    def begun_with(self) -> str:
        return ""

    @property
    def context(self) -> int:
        # a title stands before a text, and its beginning
        return self.base_context - self.network.title_len - 1

    def with_context(self, tokens: int) -> PretrainedRun:
        """The same run, which reads so many tokens at a time."""
        return replace(self, base_context=tokens + self.network.title_len + 1)

    @property
    def page(self) -> int:
        return min(self.context, MOST_PAGE)

    @property
    def retokenizes(self) -> bool:
        return True

    @property
    def missing(self) -> str:
        try:
            self.found_base()
        except UserError as error:
            return str(error)
        return ""

    @property
    def base_bytes(self) -> int:
        return describe_base(self.found_base()).config.num_bytes(training_precision())

    def found_base(self) -> Path:
        """Where its base is. Raises UserError where it is gone or has other weights."""
        name = name_of_base(self.base)
        if self.base.startswith(f"{MISSING}/"):
            raise UserError(
                f"This run reads with the base {name} (weights {self.base_weights[:16]}), which was not here "
                "when it was imported. Get that base, and import the run again with --base naming it."
            )
        path = find_base(self.base)
        if (found := base_fingerprint(path)) != self.base_weights:
            raise UserError(
                f"The base {name} has other weights than the one that this run was trained on "
                f"({found[:16]}, not {self.base_weights[:16]}). Put that one back, or train a new run."
            )
        return path

    def with_base(self, network: Beside, folder: Path, precision: str = "") -> Beside:
        """Attach the base. Raises UserError where it is gone, another one, or has another tokenizer."""
        self.found_base()
        fastest = fastest_precision(data_home()[0]) if network.device.type == "cpu" else "bfloat16"
        base = load_base(self.base, precision or fastest, device=str(network.device))
        self._check_fits(base, folder)
        network.attach(base.model)
        return network

    def _check_fits(self, base: Base, folder: Path) -> None:
        """Raise UserError where a base of the right weights is read otherwise than when the run was made."""
        there, network = base.model.config, self.network
        shape = (there.vocab_size, there.dim, there.depth, there.num_heads)
        wanted = (network.vocab_size, network.dim, network.depth, network.num_heads)
        inside = (
            max(network.begin_id, network.pad_id) < there.vocab_size and self.base_context <= there.max_len
        )
        if shape != wanted or not inside:
            raise UserError(
                f"The config.json of {folder.name} does not fit its base {name_of_base(self.base)}: one of "
                "both was changed. Put it back, or train a new run."
            )
        own, theirs = folder / "tokenizer.json", base.tokenizer.fingerprint
        if file_hash(own) != theirs and load_tokenizer(own).fingerprint != theirs:
            raise UserError(
                f"The base {name_of_base(self.base)} has another tokenizer than {folder.name} was trained "
                "with. Put that one back, or train a new run."
            )


@dataclass(frozen=True, kw_only=True)
class ReaderRun(PretrainedRun):
    """A pretrained base that was taught to read neighbors.

    `edition_fingerprint`: of the corpus `lessons.edition`. `tuned` is the run that the base was fine-tuned in
    before, a folder or "sample:NAME" ("": it is as it was), `tuned_weights` the hash of what that had come
    to, and `tuned_tokens` how many tokens that had read. Its updates are kept with the weights of this run,
    which do without it from then on.
    """

    network: ReaderConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    lessons: LessonConfig
    edition_fingerprint: str = ""
    tuned: str = ""
    tuned_weights: str = ""
    tuned_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuned and not HASH.fullmatch(self.tuned_weights):
            raise UserError(
                "A reader of a fine-tuned base names the hash of its weights, not "
                f"{seen(self.tuned_weights)}."
            )

    @property
    def begun_with(self) -> str:
        return self.tuned


@dataclass(frozen=True, kw_only=True)
class TunedRun(PretrainedRun):
    """A pretrained base that was fine-tuned."""

    network: TunedConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(frozen=True, kw_only=True)
class MargeRun(AnyRun):
    """A run of MARGE, whose evidence is its own business."""

    network: MargeConfig
    evidence: EvidenceConfig

    @property
    def languages(self) -> tuple[str, ...]:
        return self.network.languages


def versions() -> dict[str, str]:
    """What bit-identity on resume depends on, beside the thread count."""
    return {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}


def write_run_config(folder: Path, config: AnyRun) -> None:
    make_output(folder)
    write_atomically(folder / CONFIG, config_bytes(config))


def config_bytes(config: AnyRun) -> bytes:
    """What `write_run_config` writes."""
    return (json.dumps(asdict(config), indent=2) + "\n").encode()


def read_run_config(folder: Path) -> RunConfig:
    """The config of a run of the RETRO family; raises UserError where there is none or it is MARGE's."""
    config = read_any_config(folder)
    if not isinstance(config, RunConfig):
        raise UserError(
            f"The run {folder.name} is a {config.model.upper()}, which has no neighbors of chunks. "
            "Choose a RETRO."
        )
    return config


def read_marge_config(folder: Path) -> MargeRun:
    """The config of a MARGE run; raises UserError where there is none or it is another model's."""
    config = read_any_config(folder)
    if not isinstance(config, MargeRun):
        raise UserError(f"The run {folder.name} is a {config.model}. Choose a MARGE, which has evidence.")
    return config


NAME_A_RUN = "Name the folder of a run; the verb list shows what there is."


def read_any_config(folder: Path) -> AnyRun:
    """The config of a run; raises UserError where there is none or it is not one of ours."""
    path = folder / "config.json"
    if not os.path.isfile(path):  # a name that is too long is none
        if folder.parent == CHECKPOINTS:  # where nobody should train one
            raise NotFound("run", folder, "The verb list names what ships.", named=SAMPLE + folder.name)
        if os.path.isdir(folder):  # that of somebody's own
            raise NotFound("run", folder, NAME_A_RUN)
        raise NotFound("run", folder, f"Train one with: train retro --corpus DIR --out {folder}")
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["format"] != FORMAT:
            raise UserError(f"{path} has format {values['format']}; this version reads {FORMAT}.")
        if values["model"] not in KINDS:
            raise ValueError(f"the model is {seen(values['model'])}")
        kind = KINDS[values["model"]]
        parts = {name: from_json(part, values[name]) for name, part in kind.part_types().items()}
        config = resolve(kind.config)(**values | parts)
        _check_types(config)
        return config
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if (found := kind_of(folder)) not in ("", "run", "export"):  # an export of one has its config
            raise NotFound("run", folder, NAME_A_RUN, found=found) from error
        raise UserError(
            f"{path} is not the config of a run ({error}). Was it edited? Train the run anew."
        ) from error


def _check_types(config: AnyRun) -> None:
    """Raise ValueError for what no setting guards: a name that is none, a number that is a text."""
    kinds = {"str": str, "int": int}
    for one in fields(config):
        value = getattr(config, one.name)
        if one.type in kinds and type(value) is not kinds[str(one.type)]:
            raise ValueError(f"{one.name} is {seen(value)}")
        if isinstance(value, str) and len(value) > MOST_CHARS:
            raise ValueError(f"{one.name} has {len(value):,} characters")
    if config.device.split(":")[0] not in DEVICES:
        raise ValueError(f"the device is {seen(config.device)}")
    if not 1 <= config.threads <= MOST_THREADS or not 0 <= config.lesson_steps <= MOST_STEPS:
        raise ValueError(f"threads {config.threads}, lesson_steps {config.lesson_steps}")
    told = [text for pair in config.versions.items() for text in pair]
    if len(told) > 40 or not all(isinstance(text, str) and len(text) <= 100 for text in told):
        raise ValueError(f"versions is {seen(config.versions)}")


def differences(old: AnyRun, new: AnyRun) -> list[str]:
    """What a second call asks otherwise, as "steps 300 -> 400"; place of work and versions aside."""
    if old.model != new.model:
        return [f"model {old.model} -> {new.model}"]
    before, after = _flat(old), _flat(new)
    aside = {"threads", "device", "corpus", "preset", "lesson_steps", "sharded", "keep"}
    return [
        f"{name} {before[name]} -> {after[name]}"
        for name in before
        if name not in aside and before[name] != after[name]
    ]


def _flat(config: AnyRun) -> dict[str, Any]:
    """The fields of a config that are no dicts, with those of its parts."""
    values = asdict(config)
    inner = {name: value for part in config.parts for name, value in values[part].items()}
    return {name: value for name, value in values.items() if not isinstance(value, dict)} | inner


def save_weights(folder: Path, model: nn.Module, step: int, dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors; a `dtype` of float16 halves it, for shipping."""
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in model.state_dict().items()}
    save_tensors(folder / LAST, tensors, {"step": str(step)})


def has_weights(folder: Path) -> bool:
    """Whether a run has a save that it can be used with."""
    return (folder / LAST).exists()


def step_of(path: Path) -> int:
    """The step of a file of weights, 0 where there is none or it is damaged: it is replaced then."""
    return told_by(path)[0]


def told_by(path: Path) -> tuple[int, float | None]:
    """The step of a file of weights and, of one that was the best, its held-out loss (nats a token).

    (0, None) where there is none or it is damaged. Of a best save of before there is no loss, either.
    """
    try:
        header = read_header(path) if path.exists() else None
        return (header.step, header.held_out) if header else (0, None)
    except UserError:
        return 0, None


def weights_file(folder: Path) -> Path:
    """The weights that a run is used with: those of its last save, or of its best one (`keep`).

    A run whose best save was never kept (by a release before there was one, or because no text is held
    out) is used with the last. Raises UserError where there is no run.
    """
    best = folder / BEST
    return best if read_any_config(folder).training.keep == "best" and best.exists() else folder / LAST


def weights_with(folder: Path, digest: str) -> Path | None:
    """The weights of a run, last or best, that have this hash; None where neither has."""
    files = [folder / name for name in (LAST, BEST)]
    return next((path for path in files if path.exists() and file_hash(path) == digest), None)


def begin_from(model: RETRO, base: Path, expected: str) -> None:
    """Copy the weights of the run `base` into a fresh model, whose other weights stay as they are.

    With `copying_start` the encoder begins as the base's first layers: what it makes of a neighbor is
    then like what the decoder makes of the text. Raises UserError where the base is gone, or is not
    the one that was meant (by its hash).
    """
    path = _weights_begun_with(base, expected)
    tensors = _weights(path, read_run_config(base).network)
    missing, strange = model.load_state_dict(tensors, strict=False)
    if strange or any(not is_of_reader(name) for name in missing):
        raise UserError(f"The weights in {path} do not fit the network that they should begin.")
    config = model.config
    if config.cca_layers and config.copying_start and config.enc_dim == config.dim:
        model.begin_encoder_as_decoder()


def begin_with_updates(model: Reader, tuned: Path, expected: str) -> None:
    """Copy the updates of the run `tuned` into a fresh reader. Raises UserError as `begin_from`."""
    path = _weights_begun_with(tuned, expected)
    missing, strange = model.load_state_dict(_weights(path, read_run_config(tuned).network), strict=False)
    if strange or any(name.startswith("blocks.") for name in missing):
        raise UserError(f"The weights in {path} do not fit the reader that they should begin.")


def _weights_begun_with(base: Path, expected: str) -> Path:
    """The weights of a base run that have this hash; raises UserError where they changed or are gone."""
    path = weights_with(base, expected)
    if path is None:
        raise UserError(
            f"The weights of the base run at {base} have changed or are gone since this run was set up. "
            "Put them back, or set up a new run."
        )
    return path


def is_of_reader(name: str) -> bool:
    """Whether a weight belongs to encoder or chunked cross-attention, not to the plain decoder."""
    return name.startswith("encoder.") or "retrieve." in name


def freeze_decoder(model: RETRO) -> None:
    """Leave encoder and cross-attention alone to be trained: without neighbors nothing ever changes."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_of_reader(name))


def load_network(folder: Path, device: str = "cpu") -> nn.Module:
    """The network of a run of any kind, as `load_model`."""
    config = read_any_config(folder)
    tensors = _weights(weights_file(folder), config.network)
    return config.with_base(_filled(resolve(config.kind.network)(config.network), tensors).to(device), folder)


def load_model(folder: Path, device: str = "cpu", weights: Path | None = None) -> RETRO:
    """The model of a run in float32 and eval mode; raises UserError where it has no weights that fit.

    `weights`: another file of them than the one that the run is used with.
    """
    config = read_run_config(folder)
    tensors = _weights(weights or weights_file(folder), config.network)
    return config.with_base(_filled(resolve(config.kind.network)(config.network), tensors).to(device), folder)


def load_marge(folder: Path, device: str = "cpu") -> MARGE:
    """The same for a run of MARGE."""
    network = read_marge_config(folder).network
    tensors = _weights(weights_file(folder), network)
    return _filled(MARGE(network), tensors).to(device)


def _weights(path: Path, network: NetworkConfig) -> dict[str, Tensor]:
    """The saved weights in float32; raises UserError where there are none that fit the network."""
    if not path.exists():
        raise UserError(f"The run at {path.parent} has no weights yet. Let it train until its first save.")
    check_weights(path, network)
    return {name: tensor.float() for name, tensor in finite_tensors(path)}


def check_weights(path: Path, network: NetworkConfig) -> Header:
    """The header of a file of weights; raises UserError where they are not those of the network, no more and
    no less. So neither takes memory where the two do not fit."""
    header = read_header(path)
    check_shapes(path, header.shapes, shapes_of(network))
    for name, (dtype, _) in header.tensors.items():
        if dtype not in FLOATS:
            raise UserError(f"{path} keeps {seen(name)} as {dtype}; it must be {' or '.join(FLOATS)}. {ANEW}")
    return header


Network = TypeVar("Network", bound=nn.Module)


def _filled(model: Network, tensors: Mapping[str, Tensor]) -> Network:
    model.load_state_dict(tensors)
    lay_out_for_writing(model)
    return model.eval()
