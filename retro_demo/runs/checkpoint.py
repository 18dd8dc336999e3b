"""Run folders: what a run is, its weights, and the state from which its training resumes.

    config.json           RunConfig: model, network, training, corpus and its fingerprint, versions
    model.safetensors     the weights of the last save
    best.safetensors      those of the save with the best held-out loss, which is among its notes: `keep` says
                          which of both is used
    state.safetensors     weights, optimizer and generators of the last save, for resuming
    events.jsonl          all that happened
    tokenizer.json        the tokenizer of the corpus
    imported.json         where the run came from elsewhere (sharing/importing.py)

Each file is written beside itself and renamed. `state.safetensors` alone decides where training resumes, so
a kill between two files cannot mix two saves. Weights and optimizer moments are saved whole, generators for
each process: so one process can resume what many saved, and the other way round. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retro_demo.devices import SINGLE_PROCESS, World, full_tensor, shard_like
from retro_demo.errors import UserError
from retro_demo.events import Event, Started, Warned, read_events
from retro_demo.files import (
    ANEW,
    Header,
    Shapes,
    check_shapes,
    file_hash,
    finite_tensors,
    load_tensors,
    read_header,
    replacing,
    save_tensors,
    write_atomically,
)
from retro_demo.kinds import KINDS, Kind, resolve
from retro_demo.models.config import EvidenceConfig, MargeConfig, NetworkConfig, RetroConfig
from retro_demo.models.layers import lay_out_for_writing
from retro_demo.models.marge import MARGE
from retro_demo.models.memory import shapes_of
from retro_demo.models.retro import RETRO
from retro_demo.output_folder import CONFIG, make_output
from retro_demo.runs.alarms import Point, Watch
from retro_demo.settings import TrainConfig, from_json, seen, settings_of

FORMAT = 1
LAST, BEST, STATE = "model.safetensors", "best.safetensors", "state.safetensors"
IMPORTED = "imported.json"
MOST_THREADS = 4096
MOST_CHARS = 4096  # of a text in config.json
MOST_STEPS = 1_000_000_000
FLOATS = ("F32", "F16", "BF16")  # what weights are kept in
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
    def retrieves(self) -> bool:
        """Whether the network reads anything that is retrieved."""
        return self.kind.retrieves

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
class MargeRun(AnyRun):
    """A run of MARGE, whose evidence is its own business."""

    network: MargeConfig
    evidence: EvidenceConfig

    @property
    def languages(self) -> tuple[str, ...]:
        return self.network.languages


def versions() -> dict[str, str]:
    """What bit-identity on resume depends on, beside the thread count."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


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


def read_any_config(folder: Path) -> AnyRun:
    """The config of a run; raises UserError where there is none or it is not one of ours."""
    path = folder / "config.json"
    if not os.path.isfile(path):  # a name that is too long is none
        raise UserError(
            f"There is no run at {folder}. Train one with: train retro --corpus DIR --out {folder}"
        )
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
    path = weights_with(base, expected)
    if path is None:
        raise UserError(
            f"The weights of the base run at {base} have changed or are gone since this run was set up. "
            "Put them back, or set up a new run."
        )
    tensors = _weights(path, read_run_config(base).network)
    missing, strange = model.load_state_dict(tensors, strict=False)
    if strange or any(not is_of_reader(name) for name in missing):
        raise UserError(f"The weights in {path} do not fit the network that they should begin.")
    config = model.config
    if config.cca_layers and config.copying_start and config.enc_dim == config.dim:
        model.begin_encoder_as_decoder()


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
    return _filled(resolve(config.kind.network)(config.network), tensors).to(device)


def load_model(folder: Path, device: str = "cpu", weights: Path | None = None) -> RETRO:
    """The model of a run in float32 and eval mode; raises UserError where it has no weights that fit.

    `weights`: another file of them than the one that the run is used with.
    """
    network = read_run_config(folder).network
    tensors = _weights(weights or weights_file(folder), network)
    return _filled(RETRO(network), tensors).to(device)


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


MOMENTS = ("step", "exp_avg", "exp_avg_sq")
GENERATOR = re.compile(r"generator\.(cpu|cuda)(\.[1-9][0-9]{0,3})?")
GENERATOR_BYTES = 10_000  # and more is no generator's state


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World = SINGLE_PROCESS,
    *,
    best: Point | None = None,
) -> None:
    """Keep everything that the next step depends on; where it measured `best`, the weights twice.

    Then the weights tell that loss: a record of events may be lost, and what is worse must not replace them.
    Of several processes all must call: each gives its part, the main one writes, nobody leaves before that.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    sources = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for weight, moments in optimizer.state.items():
        for moment, value in moments.items():
            sources[f"optimizer.{moment}.{names[id(weight)]}"] = value
    tensors = {}
    for name, tensor in sources.items():
        full = full_tensor(tensor)  # one after the other: they need not all be on the GPU in full
        if world.is_main:
            tensors[name] = full.detach().cpu()
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    for kind, generator in generators.items():
        for rank, own in enumerate(world.gathered(generator)):
            tensors[_generator(kind, rank)] = own
    if world.is_main:
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        # the state comes last: as long as it is the old one, going on makes these weights once more
        notes = {"step": str(step)} | ({"held_out": repr(float(best.nats))} if best else {})
        save_tensors(folder / LAST, weights, notes)
        save_tensors(folder / STATE, tensors, {"step": str(step), "processes": str(world.size)})
        if best:
            keep_best(folder, step)
    world.any(False)


def keep_best(folder: Path, step: int) -> None:
    """Keep the weights of the last save, of this step, as the best; where that is done, nothing.

    They come after the state, so they are never of a step that is done again after a kill. A kill between
    the two is mended by calling this when the run goes on: the weights of that step are still the last.
    """
    last, best = folder / LAST, folder / BEST
    if step_of(last) == step and step_of(best) != step:
        with replacing(best) as copy:
            shutil.copyfile(last, copy)


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = SINGLE_PROCESS
) -> int:
    """Put the last save back into model, optimizer and generators; returns its step (0 = none yet).

    A process that the save knows nothing of goes on with the generators that it has.
    """
    path = folder / STATE
    if not path.exists():
        return 0
    step, there = saved_step(folder), model.state_dict()
    check_state(path, {name: tuple(tensor.shape) for name, tensor in there.items()})
    tensors, _ = load_tensors(path)
    saved = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    model.load_state_dict({n: shard_like(there[n], t) if n in there else t for n, t in saved.items()})
    for name, weight in model.named_parameters():
        for moment in MOMENTS:
            if (value := tensors.get(f"optimizer.{moment}.{name}")) is not None:  # none: it had no gradient
                value = shard_like(weight, value) if moment != "step" else value.to(weight.device)
                optimizer.state[weight][moment] = value
    try:
        if (generator := tensors.get(_generator("cpu", world.rank))) is not None:
            torch.set_rng_state(generator)
        if (
            torch.cuda.is_available()
            and (generator := tensors.get(_generator("cuda", world.rank))) is not None
        ):
            torch.cuda.set_rng_state(generator)
    except RuntimeError as error:
        raise UserError(f"{path} holds no state of a generator ({error}). {ANEW}") from error
    return step


def check_state(path: Path, shapes: Shapes) -> Header:
    """The header of a saved state; raises UserError where it is not one of a network with weights of these
    shapes: all of them, moments of such weights, generators."""
    header = read_header(path)
    weights = {n.removeprefix("model."): s for n, s in header.shapes.items() if n.startswith("model.")}
    check_shapes(path, weights, shapes)
    for name, (dtype, shape) in header.tensors.items():
        if name.startswith("model."):
            fits = dtype == "F32"
        elif GENERATOR.fullmatch(name):
            fits = dtype == "U8" and len(shape) == 1 and shape[0] <= GENERATOR_BYTES
        else:
            part, moment, weight = (*name.split(".", 2), "", "")[:3]
            fits = part == "optimizer" and moment in MOMENTS and weight in shapes and dtype == "F32"
            fits = fits and shape == (() if moment == "step" else shapes[weight])
        if not fits:
            raise UserError(
                f"{path} holds {seen(name)} ({dtype} {list(shape)}), which no run of this network saves. "
                f"{ANEW}"
            )
    return header


def _generator(kind: str, rank: int) -> str:
    return f"generator.{kind}.{rank}" if rank else f"generator.{kind}"


def can_go_on(folder: Path) -> bool:
    """Whether a training can go on in a run's folder, or begin: nothing begins over weights without a state.

    Only what a kill leaves of the very first save has weights and may begin anew: its record has no save yet.
    """
    if (folder / STATE).exists() or not any((folder / name).exists() for name in (LAST, BEST)):
        return True
    told = {event["event"] for event in read_events(folder / "events.jsonl")}
    return "started" in told and "saved" not in told and not (folder / IMPORTED).exists()


def check_goes_on(folder: Path) -> None:
    """Raise UserError where a training would begin anew, over weights: see `can_go_on`."""
    if can_go_on(folder):
        return
    if (folder / IMPORTED).exists():
        raise UserError(
            f"{folder.name} was imported without its optimizer state, so it cannot be trained on. Import an "
            "export that was made with --with-state, or train a new run."
        )
    raise UserError(
        f"{folder} has weights, but no {STATE} to go on from: it would begin anew, over its weights. "
        "Nothing was touched: train a new run in another folder."
    )


def saved_step(folder: Path) -> int:
    """The step of the last save, 0 where there is none; raises UserError where it is damaged."""
    path = folder / STATE
    return read_header(path).step if path.exists() else 0


def saved_processes(folder: Path) -> int:
    """How many processes trained together up to the last save."""
    path = folder / STATE
    return read_header(path).number("processes", 1) if path.exists() else 1


def go_on(
    out: Path,
    config: AnyRun,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: str,
    world: World,
    watch: Watch,
    told: Mapping[str, Any],
) -> Generator[Event, None, int]:
    """Put back the last save of the run in `out` and tell what begins; the step it goes on from.

    `told` is what else is known of it before it starts. From here to the loop nothing may draw from the
    generators.
    """
    world.seed(config.training.seed, saved_step(out))
    start = load_state(out, model, optimizer, world)
    if world.is_main:
        watch.keeps(*told_by(out / BEST))
        if watch.best is not None and watch.best.step == start:
            keep_best(out, start)
            watch.keeps(step_of(out / BEST))
    parameters = sum(weight.numel() for weight in model.parameters())
    about = {"parameters": parameters, "steps": config.training.steps, "device": device}
    yield Started(config.model, start, about | dict(told))
    if start:
        yield from _otherwise(out, config.versions, world)
    return start


def _otherwise(out: Path, begun_with: dict[str, str], world: World) -> Iterator[Warned]:
    """What a run that goes on does otherwise than before, where that parts it from one that never stopped."""
    if begun_with != versions():
        yield Warned(
            "Versions or machine differ from those this run began with: it goes on, but not bit for bit."
        )
    if (before := saved_processes(out)) != world.size:
        yield Warned(
            f"This run was trained by {before} process{'es' if before > 1 else ''} and goes on with "
            f"{world.size}: the same batches, but sums in another order, so not bit for bit."
        )
