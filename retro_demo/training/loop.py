"""The one training loop.

A model offers `loss(batch)` and the batches offer `train_batch(step)`; what else differs between models lives
there. The loop does not know text, file names, interfaces or which model it trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from retro_demo.devices import SINGLE_PROCESS, World, clip_gradients, local_tensor, noticing_loss
from retro_demo.errors import UserError
from retro_demo.events import Evaluated, Event, Finished, Saved, Step, Stopped
from retro_demo.runs.alarms import Watch
from retro_demo.settings import TrainConfig

LR_FLOOR = 0.1  # the cosine ends at a tenth (RETRO section 3.1)


class Batches(Protocol):
    """Where batches come from; a batch has `tokens`, moves with `to(device)` and splits with `share`."""

    def train_batch(self, step: int) -> Any: ...


@dataclass(frozen=True)
class Hooks:
    """What the loop asks of its caller: the arms' losses (an Evaluated at the end), a save, whether to stop.

    A save is told whether held-out loss was never lower than at its step. Where several processes train
    together, all of them call each of these at the same place.
    `refresh` comes before the batch of each step and once behind the last one: MARGE re-indexes there.
    Where it is `due`, the batch of that step cannot be made before.
    """

    evaluate: Callable[[int], Iterable[Event]]
    save: Callable[[int, bool], None]
    stop: Callable[[], bool]
    refresh: Callable[[int], Iterable[Event]] = lambda step: ()
    due: Callable[[int], bool] = lambda step: False


def make_optimizer(
    model: nn.Module,
    config: TrainConfig,
    apart: Sequence[nn.Parameter] = (),
    kind: type[torch.optim.AdamW] = torch.optim.AdamW,
) -> torch.optim.AdamW:
    """AdamW; matrices decay, embeddings and gains do not. The order of parameters is the model's.

    The weights `apart` are none of its business.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others = {id(w) for w in apart}
    weights = [w for w in model.parameters() if w.requires_grad and id(w) not in others]
    decayed = [w for w in weights if w.ndim >= 2 and id(w) not in embeddings]
    plain = [w for w in weights if w.ndim == 1 or id(w) in embeddings]
    numbers = [w for w in weights if w.ndim == 0]  # apart from the plain ones, which may be sharded
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": numbers, "weight_decay": 0.0},
    ]
    fused = all(w.device.type in ("cpu", "cuda") for w in weights)
    return kind(groups, lr=config.lr, betas=(0.9, 0.95), fused=fused)


class _WithRelevance(torch.optim.AdamW):
    """AdamW, and Adagrad for some weights that begin to learn later: one state of both."""

    def begin(self, own: list[nn.Parameter], lr: float, waits: int) -> None:
        """Own weights, which AdamW does not have, learn at this rate after so many steps."""
        self.others = torch.optim.Adagrad(own, lr=lr)
        self.waits = waits
        self.state.update(self.others.state)
        self.others.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step(closure)
        done = max((int(self.state[w].get("step", 0)) for w in self.param_groups[0]["params"][:1]), default=0)
        if done > self.waits:
            self.others.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.others.zero_grad(set_to_none)


def with_relevance(
    model: nn.Module, config: TrainConfig, own: list[nn.Parameter], lr: float, waits: int
) -> torch.optim.Optimizer:
    """`make_optimizer`, where `own` weights learn by Adagrad at their rate, and only after so many steps."""
    if not own:
        return make_optimizer(model, config)
    optimizer = cast(_WithRelevance, make_optimizer(model, config, own, _WithRelevance))
    optimizer.begin(own, lr, waits)
    return optimizer


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
    watch: Watch,
    world: World = SINGLE_PROCESS,
) -> Iterator[Event]:
    """Advance a model, as `devices.spread` gives it, from step `start` to the last one.

    Yields what happens; `watch` knows what happened before. Each of several processes takes its part of
    each batch and tells the loss of the whole. Raises UserError when the loss is no longer a number; what
    was saved before stays.
    """
    device = next(learner.parameters()).device

    def begun_batch(step: int) -> tuple[int, Any]:
        """How many tokens a step predicts, and this process' part of its batch, on its way to the device."""
        batch = batches.train_batch(step)
        own = batch if world.size == 1 else batch.share(world.rank, world.size)
        return batch.tokens[:, 1:].numel(), own.to(device)

    def batch_after(step: int) -> tuple[int, Any] | None:
        """The batch of the next step, where there is one and nothing comes between that may change it."""
        following = step + 1
        return None if following == config.steps or hooks.due(following) else begun_batch(following)

    def measured(step: int) -> Generator[Event, None, bool]:
        """Measure; whether these weights are the best so far, which only the main process can tell."""
        for event in hooks.evaluate(step):
            yield event
            if isinstance(event, Evaluated):
                yield from watch.measured(step, event.arms)
        best = watch.best
        return world.any(best is not None and best.step == step)

    ahead: tuple[int, Any] | None = None
    for step in range(start, config.steps):
        yield from hooks.refresh(step)
        if step == 0:
            yield from measured(0)
        begun = time.perf_counter()
        tokens, own = ahead or begun_batch(step)
        rate = learning_rate(step, config)
        loss, norm, ahead = _optimizer_step(
            learner, own, optimizer, rate, config.clip, world, partial(batch_after, step)
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _diverged(f"The loss became {loss} (gradient {norm})", step + 1, config)
        speed = tokens / (time.perf_counter() - begun)
        done = step + 1
        yield Step(done, loss, rate, round(speed, 1), norm)
        yield from watch.stepped(done, loss)
        last, best = done == config.steps, False
        if last:
            yield from hooks.refresh(done)
        if last or done % config.eval_every == 0:
            best = yield from measured(done)
        stopping = hooks.stop()
        # the best weights are a copy of a save, so that they never are of a step that a kill undoes
        if last or stopping or best or done % config.save_every == 0:
            if world.any(not _is_sound(learner)):  # a save of them would replace one that is sound
                raise _diverged("Weights became infinite or not a number", done, config)
            hooks.save(done, best)
            yield Saved(done)
        if stopping and not last:
            yield Stopped(done)
            return
    parameters = sum(weight.numel() for weight in learner.parameters())
    yield Finished({"step": config.steps, "parameters": parameters} | watch.figures())


def _diverged(what: str, step: int, config: TrainConfig) -> UserError:
    return UserError(
        f"{what} at step {step}. The last save is kept; train a new run with a learning rate below "
        f"{config.lr:g}."
    )


@torch.no_grad()
def _is_sound(learner: nn.Module) -> bool:
    """Whether all weights that this process has are numbers."""
    return all(bool(local_tensor(weight).isfinite().all()) for weight in learner.parameters())


def _optimizer_step(
    learner: nn.Module,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip: float,
    world: World = SINGLE_PROCESS,
    meanwhile: Callable[[], Any] = lambda: None,
) -> tuple[float, float, Any]:
    """One step; gives back loss (nats, of all processes' parts) and the gradient's norm before clipping.

    The third is what `meanwhile` gives, which runs while a GPU still works on the gradient.
    """
    learner.train()
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    with noticing_loss():
        own: Tensor = learner(batch)
        own.backward()
        gained = meanwhile()
        norm = clip_gradients(learner, clip)
    loss = world.sum(own.item()) / world.size
    if math.isfinite(loss) and math.isfinite(norm):  # else the weights would be lost before the loop says so
        optimizer.step()
    return loss, norm, gained
