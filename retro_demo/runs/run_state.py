"""What a training goes on from: state.safetensors of a run folder, the same whoever wrote it.

One process can take up what many have left, and the other way round: weights and optimizer moments are
kept whole, generators for each process.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retro_demo.distributed import ALONE, World, like, whole
from retro_demo.errors import UserError
from retro_demo.events import Event, Started, Warned
from retro_demo.knobs import seen
from retro_demo.runs.alarms import Point, Watch
from retro_demo.runs.checkpoint import BEST, IMPORTED, LAST, STATE, AnyRun, step_of, told_by, versions
from retro_demo.tensor_files import ANEW, Head, Shapes, check_shapes, load_tensors, read_head, save_tensors
from retro_demo.whole_files import replacing

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
GENERATOR = re.compile(r"generator\.(cpu|cuda)(\.[1-9][0-9]{0,3})?")
GENERATOR_BYTES = 10_000  # and more is no generator's state


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World = ALONE,
    *,
    best: Point | None = None,
) -> None:
    """Keep everything that the next step depends on; where it measured `best`, the weights twice.

    Then the weights tell that loss: a record of events may be lost, and what is worse must not replace them.
    Of several processes all must call: each gives its part, the leader writes, nobody leaves before that.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    sources = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for weight, moments in optimizer.state.items():
        for kind, value in moments.items():
            sources[f"optimizer.{kind}.{names[id(weight)]}"] = value
    tensors = {}
    for name, tensor in sources.items():
        full = whole(tensor)  # one after the other: they need not all be on the GPU in full
        if world.leads:
            tensors[name] = full.detach().cpu()
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    for kind, generator in generators.items():
        for rank, own in enumerate(world.gathered(generator)):
            tensors[_generator(kind, rank)] = own
    if world.leads:
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


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = ALONE) -> int:
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
    model.load_state_dict({n: like(there[n], t) if n in there else t for n, t in saved.items()})
    for name, weight in model.named_parameters():
        for kind in MOMENTS:
            if (value := tensors.get(f"optimizer.{kind}.{name}")) is not None:  # none: it had no gradient
                value = like(weight, value) if kind != "step" else value.to(weight.device)
                optimizer.state[weight][kind] = value
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


def check_state(path: Path, shapes: Shapes) -> Head:
    """The head of a saved state; raises UserError where it is not one of a network with weights of these
    shapes: all of them, moments of such weights, generators."""
    head = read_head(path)
    weights = {n.removeprefix("model."): s for n, s in head.shapes.items() if n.startswith("model.")}
    check_shapes(path, weights, shapes)
    for name, (kind, shape) in head.tensors.items():
        if name.startswith("model."):
            fits = kind == "F32"
        elif GENERATOR.fullmatch(name):
            fits = kind == "U8" and len(shape) == 1 and shape[0] <= GENERATOR_BYTES
        else:
            part, moment, weight = (*name.split(".", 2), "", "")[:3]
            fits = part == "optimizer" and moment in MOMENTS and weight in shapes and kind == "F32"
            fits = fits and shape == (() if moment == "step" else shapes[weight])
        if not fits:
            raise UserError(
                f"{path} holds {seen(name)} ({kind} {list(shape)}), which no run of this network saves. "
                f"{ANEW}"
            )
    return head


def _generator(kind: str, rank: int) -> str:
    return f"generator.{kind}.{rank}" if rank else f"generator.{kind}"


def check_goes_on(folder: Path) -> None:
    """Raise UserError where a run was imported without its state: it would begin anew, over its weights."""
    if (folder / IMPORTED).exists() and not (folder / STATE).exists():
        raise UserError(
            f"{folder.name} was imported without its optimizer state, so it cannot be trained on. Import an "
            "export that was made with --with-state, or train a new run."
        )


def saved_step(folder: Path) -> int:
    """The step of the last save, 0 where there is none; raises UserError where it is damaged."""
    path = folder / STATE
    return read_head(path).step if path.exists() else 0


def saved_processes(folder: Path) -> int:
    """How many processes trained together up to the last save."""
    path = folder / STATE
    return read_head(path).number("processes", 1) if path.exists() else 1


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
    if world.leads:
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
