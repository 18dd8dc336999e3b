"""Where to compute: the device, the cores and memory allowed, the processes of one training, torch.compile.

`torchrun` starts the processes that train one run together and tells each its rank by the environment;
without it there is one (SINGLE_PROCESS). The first process is the main one: it alone writes, prints and
measures. The engines are torch's: DDP, where each process has all weights, and FSDP, where each has a part.

torch.compile is used for the loss of a training step where this machine can compile. Modules are compiled in
place, so names of weights, saves and measurements stay.

This module does not know models, files or batches.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from retro_demo.errors import UserError


def choose_device(device: str) -> str:
    """What "auto" means here; raises UserError for a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        if lends_gpu():  # torch says there is one, but only a call that is lent it may touch it
            return "cpu"
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if device not in there:
        raise UserError(f"The device is {device!r}; choose auto, cpu, cuda or mps.")
    if not there[device]:
        raise UserError(f"There is no {device} device here. Choose auto or cpu.")
    return device


def lends_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether GPUs are lent for a call and there is none otherwise, as on Hugging Face's ZeroGPU."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def lent_device() -> str:
    """The device that the call has in which this is asked."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; to a GPU from pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def allowed_threads(system: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Cores that this process may really use: what the operating system and its control groups leave.

    A container sees all cores of its host, but gets no more time than its quota; threads beyond it only
    wait for one another. `system` is where /proc and /sys are read; a Space says CPU_CORES besides.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota(group) for group in _groups(system, "cpu"))
    told = environment.get("CPU_CORES", "") if "SPACE_ID" in environment else ""
    limits = [int(quota) for quota in quotas if quota is not None]
    limits += [int(float(told))] if told.replace(".", "", 1).isdecimal() else []
    return max(1, min([cores, *limits]))


def compute_as_served() -> None:
    """Let torch use half of those threads in this process, which writes and explains.

    A token alone is many small products, and waking a second thread for each costs more than it brings:
    with one of two threads a text takes half as long. Trainings beside it have the rest.
    """
    torch.set_num_threads(max(1, allowed_threads() // 2))


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """The control groups of this process that a controller (cpu, memory) has a say in, versions 2 and 1.

    A limit of any group above holds too; in a container its own group is mounted as the root.
    """
    root = system / "sys/fs/cgroup"
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controller, root / controllers]
        else:
            continue
        for mount in mounts:
            inside = mount / path.strip("/")
            for group in (inside, *inside.parents):
                yield group
                if group == mount:
                    break


def _quota(group: Path) -> float | None:
    """The cores that one control group leaves; None where it sets no limit, or is not there."""
    try:
        if (both := group / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def allowed_memory(system: Path = Path("/")) -> int:
    """Bytes of memory that this process may really use: by the machine, control groups and its own limit."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 32
    limits = (_memory_limit(group) for group in _groups(system, "memory"))
    return min([there, *(limit for limit in (*limits, _own_limit()) if limit is not None)])


def free_memory(system: Path = Path("/")) -> int:
    """Bytes of memory that are free now: of the machine, and of what its control groups leave."""
    free = allowed_memory(system)
    about = system / "proc/meminfo"
    if about.exists() and (found := re.search(r"^MemAvailable:\s+(\d+) kB", about.read_text(), re.M)):
        free = min(free, int(found[1]) * 1024)
    for group in _groups(system, "memory"):
        limit, used = _memory_limit(group), _memory_used(group)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def _own_limit() -> int | None:
    """What this process may write to, as jobs/worker.py sets it on a public page; None where it is free."""
    try:
        import resource  # there is none on Windows
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def give_memory_back() -> None:
    """Return freed memory to the operating system, where the C library keeps it for the next time (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _memory_used(group: Path) -> int | None:
    """Bytes that the processes of one control group hold, without files that can be read again."""
    for name in ("memory.current", "memory.usage_in_bytes"):
        try:
            used = int((group / name).read_text())
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
            return used - int(cached[1]) if cached else used
        except (OSError, ValueError):
            continue
    return None


def _memory_limit(group: Path) -> int | None:
    """The bytes that one control group leaves; None where it sets no limit, or is not there."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):
            continue
    return None


Model = TypeVar("Model", bound=nn.Module)
PATIENCE = timedelta(hours=2)  # the others wait so long while the main process builds a sample or measures
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
    def is_main(self) -> bool:
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
        """Give all processes but the main one generators of their own, from these numbers: for dropout."""
        if not self.is_main:
            torch.manual_seed(int(np.random.default_rng([self.rank, *numbers]).integers(2**63)))

    def threads(self, threads: int) -> int:
        """The share of this process in the threads of a run."""
        return max(1, threads // self.local_size)


SINGLE_PROCESS = World()


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
def process_group() -> Iterator[World]:
    """Join the processes that `torchrun` started, until the end of the block; else SINGLE_PROCESS."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield SINGLE_PROCESS
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
def on_main(world: World) -> Iterator[None]:
    """A block of work for the main process: the others wait for its end, and its failure ends all."""
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


def wrap_model(
    model: nn.Module,
    world: World,
    *,
    sharded: bool,
    precision: str,
    compiled: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """The model as the loop calls it, its weights those of the main one in every process.

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
    # unused weights are looked for because a network may have some; and buckets that are never dealt again
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


def clip_gradients(learner: nn.Module, max_norm: float) -> float:
    """Scale all gradients down to the norm `max_norm` of them together; returns their norm before."""
    gradients = [weight.grad for weight in learner.parameters() if weight.grad is not None]
    if not any(map(_is_sharded, gradients)):
        return nn.utils.clip_grad_norm_(learner.parameters(), max_norm).item()
    norm = torch.stack([full_tensor(torch.linalg.vector_norm(part)) for part in gradients]).norm().item()
    if norm > max_norm:
        for part in gradients:
            part.mul_(max_norm / (norm + 1e-6))
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


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor in full, where each process has a part of it; then all of them must ask."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # pyright: ignore


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # pyright: ignore


def shard_like(tensor: Tensor, full: Tensor) -> Tensor:
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
    weights = {name: full_tensor(weight) for name, weight in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):  # the first weights of the copy are of no use
        copy = type(model)(model.config)  # a model of ours is made from its config alone
    copy.load_state_dict(weights)
    return copy.to(next(iter(weights.values())).device).eval()


BACKEND = "inductor"


def no_compiler(device: str) -> str:
    """Why nothing can be compiled for a device here, as a sentence to warn with; "" where it can be.

    Something small is compiled, with its gradient: Inductor wants a C++ compiler for CPUs and Triton for
    GPUs, and nothing else tells for sure that it finds them.
    """
    if lends_gpu():
        return "ZeroGPU compiles nothing: the run goes on without. `compile` off leaves this sentence out."
    x = torch.ones(2, 2, device=device, requires_grad=True)
    try:
        torch.compile(_small, backend=BACKEND, dynamic=False)(x).backward()
    except Exception as error:  # whatever a compiler that is missing, or broken, raises
        return (
            f"Nothing can be compiled for {device} here ({type(error).__name__}): the run goes on without. "
            "A C++ compiler (on GPUs Triton, too) would change that; `compile` off leaves this sentence out."
        )
    return ""


def compile_loss(learner: nn.Module) -> None:
    """Compile the forward of a learner in place, and with it the gradient, at its first call.

    The code is for batches of just one shape, which those of RETRO have.
    """
    learner.compile(backend=BACKEND, dynamic=False)


def _small(x: Tensor) -> Tensor:
    return (x @ x).square().mean()
