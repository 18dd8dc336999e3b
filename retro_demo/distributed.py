"""The processes that train one run together: who is who, what they agree on, how weights are spread.

`torchrun` starts them and tells each its place by the environment; without it there is one, ALONE. The
first process leads: it alone writes, prints and measures. The engines are torch's: DDP, where each process
has all weights, and FSDP, where each has a part of them. This module knows no model, no files, no batches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from retro_demo.errors import UserError

Model = TypeVar("Model", bound=nn.Module)
PATIENCE = timedelta(hours=2)  # the others wait so long while the leader builds a sample or measures
PEER_GONE = re.compile(
    r"closed by peer|reset by peer|Broken pipe|[Tt]imed out|pair closure|Connection refused|remote process"
)
LOST = (
    "Another process of this training is gone. What was saved last is kept: start all of them again, with "
    "the same command, to go on from there."
)


@dataclass(frozen=True)
class World:
    """The place of this process among `size` that train together; `local_*` count those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all of them must ask."""
        return self.sum(float(flag)) > 0

    def sum(self, number: float) -> float:
        """The sum over all processes, the same in each; all of them must ask."""
        if self.size == 1:
            return number
        there = torch.tensor(number, dtype=torch.float64)
        _reduce(there)
        return there.item()

    def add_up(self, array: np.ndarray) -> None:
        """Put the sum over all processes in place of a float array, the same in each."""
        if self.size > 1:
            _reduce(torch.from_numpy(array))

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The CPU tensor of each process, in their order; all have one shape."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with noticing_loss():
            dist.all_gather(parts, tensor)
        return parts

    def device(self, device: str) -> str:
        """Where this process computes: of several GPUs of one machine each process takes its own."""
        if device != "cuda" or self.size == 1:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{self.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: start as "
                "many as there are GPUs (--nproc-per-node), or train with --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def seed(self, *numbers: int) -> None:
        """Give all processes but the leader generators of their own, from these numbers: for dropout."""
        if not self.leads:
            torch.manual_seed(int(np.random.default_rng([self.rank, *numbers]).integers(2**63)))

    def threads(self, threads: int) -> int:
        """The share of this process in the threads of a run."""
        return max(1, threads // self.local_size)


ALONE = World()


@contextmanager
def noticing_loss() -> Iterator[None]:
    """A block in which processes speak to each other: that one of them is gone becomes a UserError.

    Any other error, such as too little memory or a wrong shape, stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistNetworkError) or PEER_GONE.search(str(error)):
            raise UserError(LOST) from error
        raise


def _reduce(tensor: Tensor) -> None:
    with noticing_loss():
        dist.all_reduce(tensor)


def launched_rank() -> int:
    """The number of this process among those that `torchrun` started, 0 where it started none."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


@contextmanager
def joined() -> Iterator[World]:
    """Join the others that `torchrun` started, until the end of the block; ALONE where there are none."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    if not dist.is_available():
        raise UserError("This torch was built without torch.distributed: train in one process.")
    # what is agreed on goes by the CPU; gradients and weights go between GPUs where there are some
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        places = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
        yield World(dist.get_rank(), dist.get_world_size(), *(int(os.environ[name]) for name in places))
    finally:
        dist.destroy_process_group()


@contextmanager
def led(world: World) -> Iterator[None]:
    """A block whose work is the leader's: nobody goes on before its end, and its failure ends all."""
    try:
        yield
    except BaseException:
        with suppress(UserError):  # where the others are gone too, what failed here is what matters
            world.any(True)
        raise
    if world.any(False):
        raise UserError("The first process of this training has failed; it says why.")


class Learner(nn.Module):
    """A model whose forward is its loss on a batch: what the engines wrap and the loop calls.

    The engines average gradients over the `size` processes; each gives its share of one mean, so its loss
    counts `size` times. With `precision` "bfloat16" matrix products are in half precision (autocast);
    weights, norms, softmax and loss stay in float32.
    """

    def __init__(self, model: nn.Module, size: int, precision: str) -> None:
        super().__init__()
        self.model, self.size, self.precision = model, size, precision

    def forward(self, batch: object) -> Tensor:
        """The loss in nats, times the number of processes."""
        kind = next(self.model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss: Tensor = self.model.loss(batch)[0]  # pyright: ignore[reportCallIssue]
        return loss * self.size


def spread(
    model: nn.Module,
    world: World,
    *,
    sharded: bool,
    precision: str,
    compiled: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """The model as the loop calls it, its weights the leader's in every process.

    With `sharded` each process keeps a part of weights, gradients and optimizer state and borrows the
    rest layer by layer (FSDP); without, all of it (DDP). One process shares with nobody. `compiled`
    compiles what each process does by itself.
    """
    learner = Learner(model, world.size, precision)
    if compiled is not None:
        compiled(learner)
    if world.size == 1:
        return learner
    if sharded:
        return _sharded(learner)
    # unused weights are looked for because a network may have some; and buckets that are never dealt anew
    # add gradients in one order for ever, so that a run goes on bit for bit
    return nn.parallel.DistributedDataParallel(learner, find_unused_parameters=True)


def _sharded(learner: Learner) -> nn.Module:
    """Shard the weights in place: attention to itself and feed-forward layers one by one, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    device = next(learner.parameters()).device
    for weight in [*learner.parameters(), *learner.buffers()]:
        dist.broadcast(weight.data, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for name, part in learner.named_modules():
        if name.endswith((".attend", ".think")):  # what has a forward of its own, with most of the weights
            fully_shard(part, mesh=mesh)
            if hasattr(part, "of_first"):  # called beside forward, so it has to gather the weights too
                register_fsdp_forward_method(part, "of_first")
    single = {weight for weight in learner.parameters() if weight.ndim == 0}  # there is nothing to share
    for weight in single:
        weight.register_post_accumulate_grad_hook(_average_gradient)
    fully_shard(learner, mesh=mesh, ignored_params=single)
    return learner


def _average_gradient(weight: Tensor) -> None:
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    weight.grad /= dist.get_world_size()


def clip_gradients(learner: nn.Module, most: float) -> float:
    """Scale all gradients down to the norm `most` of them together; returns their norm before."""
    gradients = [weight.grad for weight in learner.parameters() if weight.grad is not None]
    if not any(map(_is_sharded, gradients)):
        return nn.utils.clip_grad_norm_(learner.parameters(), most).item()
    norm = torch.stack([whole(torch.linalg.vector_norm(part)) for part in gradients]).norm().item()
    if norm > most:
        for part in gradients:
            part.mul_(most / (norm + 1e-6))
    return norm


class _Gathered(torch.autograd.Function):
    """The tensor (...) of each process, (size, ...), in all of them; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, size: int) -> Tensor:  # pyright: ignore
        ctx.rank = rank
        parts = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.rank], None, None


def shared_rows(
    encode: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, rank: int, size: int
) -> tuple[Tensor, ...]:
    """encode(rows) (N, ...), of which each process does a share; gradients go back to the one that did it."""
    each = -(-len(rows) // size)
    own = rows[rank * each : (rank + 1) * each]
    own = nn.functional.pad(own, (0, 0, 0, each - len(own)))
    return tuple(_Gathered.apply(part, rank, size).flatten(0, 1)[: len(rows)] for part in encode(own))


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full, where each process has a part of it; then all of them must ask."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # pyright: ignore


def part_of(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # pyright: ignore


def like(tensor: Tensor, full: Tensor) -> Tensor:
    """What this process keeps of a tensor in full: the same share, on the same device, as of `tensor`."""
    full = full.to(tensor.device)
    if not _is_sharded(tensor):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, tensor.device_mesh, tensor.placements)  # pyright: ignore


def _is_sharded(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):  # DTensor takes a second to import, and is seldom there
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def for_measuring(model: Model) -> Model:
    """The model to measure or write with: itself, or where its weights are sharded a copy in full.

    All processes must ask. The copy needs memory for the weights alone, without gradients and optimizer.
    """
    if not any(_is_sharded(weight) for weight in model.parameters()):
        return model
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):  # the first weights of the copy are of no use
        copy = type(model)(model.config)  # a model of ours is made from its config alone
    copy.load_state_dict(weights)
    return copy.to(next(iter(weights.values())).device).eval()
