"""The one training loop. It knows nothing of text, file names, interfaces or which model it trains.

A model offers `loss(batch)` and the batches offer `train_batch(step)`; what else differs between
models lives there.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retro_demo.config import TrainConfig
from retro_demo.distributed import ALONE, LOST, World, clip_gradients
from retro_demo.errors import UserError
from retro_demo.events import Event, Saved, Step, Stopped

LR_FLOOR = 0.1  # the cosine ends at a tenth (RETRO section 3.1)
PEER_GONE = re.compile(r"closed by peer|reset by peer|Broken pipe|Timed out waiting|remote process")


class Batches(Protocol):
    """Where batches come from; a batch has `tokens`, moves with `to(device)` and splits with `share`."""

    def train_batch(self, step: int) -> Any: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its caller: the arms' losses (an Evaluated at the end), a save, whether to stop.

    Where several processes train together, all of them call each of these at the same place.
    `refresh` comes before the batch of each step and once behind the last one: MARGE re-indexes there.
    """

    evaluate: Callable[[int], Iterable[Event]]
    save: Callable[[int], None]
    stop: Callable[[], bool]
    refresh: Callable[[int], Iterable[Event]] = lambda step: ()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, embeddings and gains do not. The order of parameters is the model's."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = [w for w in model.parameters() if w.requires_grad]
    decayed = [w for w in weights if w.ndim >= 2 and id(w) not in embeddings]
    others = [w for w in weights if w.ndim == 1 or id(w) in embeddings]
    numbers = [w for w in weights if w.ndim == 0]  # apart from the others, which may be sharded
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": numbers, "weight_decay": 0.0},
    ]
    fused = all(w.device.type in ("cpu", "cuda") for w in weights)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=fused)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to a tenth of it at the last step; step from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (LR_FLOOR + (1 - LR_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(
    learner: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    start: int,
    hooks: Hooks,
    world: World = ALONE,
) -> Iterator[Event]:
    """Advance a model, as `distributed.spread` gives it, from step `start` to the last one.

    Yields what happens. Each of several processes takes its part of each batch and tells the loss of the
    whole. Raises UserError when the loss is no longer a number; what was saved before stays.
    """
    device = next(learner.parameters()).device
    for step in range(start, config.steps):
        yield from hooks.refresh(step)
        if step == 0:
            yield from hooks.evaluate(0)
        begun = time.perf_counter()
        batch = batches.train_batch(step)
        own = (batch if world.size == 1 else batch.share(world.rank, world.size)).to(device)
        rate = learning_rate(step, config)
        loss, norm = _optimizer_step(learner, own, optimizer, rate, config.clip, world)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"The loss became {loss} (gradient {norm}) at step {step + 1}. The last save is kept; train "
                f"a new run with a learning rate below {config.lr:g}."
            )
        speed = batch.tokens[:, 1:].numel() / (time.perf_counter() - begun)
        done = step + 1
        yield Step(done, loss, rate, round(speed, 1), norm)
        last = done == config.steps
        if last:
            yield from hooks.refresh(done)
        if last or done % config.eval_every == 0:
            yield from hooks.evaluate(done)
        stopping = hooks.stop()
        if last or stopping or done % config.save_every == 0:
            hooks.save(done)
            yield Saved(done)
        if stopping and not last:
            yield Stopped(done)
            return


def _optimizer_step(
    learner: nn.Module,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip: float,
    world: World = ALONE,
) -> tuple[float, float]:
    """One step; returns loss (nats, of all processes' parts) and the gradient's norm before clipping."""
    learner.train()
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    try:
        own: Tensor = learner(batch)
        own.backward()
    except RuntimeError as error:
        if world.size > 1 and PEER_GONE.search(str(error)):
            raise UserError(LOST) from error
        raise
    norm = clip_gradients(learner, clip)
    loss = world.sum(own.item()) / world.size
    if math.isfinite(loss) and math.isfinite(norm):  # else the weights would be lost before the loop says so
        optimizer.step()
    return loss, norm
