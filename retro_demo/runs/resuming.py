"""How a training that was stopped or killed resumes: its state, saved whole and put back.

`state.safetensors` (weights, optimizer, generators) alone decides where training resumes, so a kill between
two files cannot mix two saves. Weights and optimizer moments are saved whole, generators for each process: so
one process can resume what many saved, and the other way round.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retro_demo.devices import SINGLE_PROCESS, World, full_tensor, shard_like
from retro_demo.errors import UserError
from retro_demo.events import Event, Started, Warned, read_events
from retro_demo.files import (
    ANEW,
    Header,
    Shapes,
    check_shapes,
    load_tensors,
    read_header,
    replacing,
    save_tensors,
)
from retro_demo.runs.alarms import Point, Watch
from retro_demo.runs.checkpoint import BEST, IMPORTED, LAST, STATE, AnyRun, step_of, told_by, versions
from retro_demo.settings import seen

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "sum")
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


def can_resume(folder: Path) -> bool:
    """Whether a training can go on in a run's folder, or begin: nothing begins over weights without a state.

    Only what a kill leaves of the very first save has weights and may begin anew: its record has no save yet.
    """
    if (folder / STATE).exists() or not any((folder / name).exists() for name in (LAST, BEST)):
        return True
    told = {event["event"] for event in read_events(folder / "events.jsonl")}
    return "started" in told and "saved" not in told and not (folder / IMPORTED).exists()


def check_can_resume(folder: Path) -> None:
    """Raise UserError where a training would begin anew, over weights: see `can_resume`."""
    if can_resume(folder):
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


def resume_training(
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
        yield from _differences_on_resume(out, config.versions, world)
    return start


def _differences_on_resume(out: Path, begun_with: dict[str, str], world: World) -> Iterator[Warned]:
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
