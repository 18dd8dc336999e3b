"""The floor of a training step: the time of its matrix products alone, and what else it must move in memory.

Record the products of a forward and backward pass, then run these and nothing else on memory that is
already there: no softmax, norm, copy, optimizer or Python between. Fused attention counts as the products
it cannot do without: two forward, four backward. A product runs by the library that computed it
(models/layers.py has oneDNN where that is the faster one), so the floor is the machine's and not MKL's.
Products of one shape and layout share their memory, which flatters the floor a little where it stays in a
cache.

Everything that is no product reads its inputs and writes its results; `moved` counts these bytes, and
`copying` measures how many a second this machine copies. Only fewer bytes, that is fused operations, would
take less time than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Product(NamedTuple):
    """One matrix product, maybe batched: (M, K) @ (K, N) or (G, M, K) @ (G, K, N)."""

    left: Layout
    right: Layout
    onednn: bool = False

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.left[0].numel() * self.right[0][-1]


class RecordProducts(TorchDispatchMode):
    """Within the block, note every matrix product that is computed, backward passes included.

    `moved`: bytes that all other operations read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.moved = 0

    @property
    def flops(self) -> int:
        return sum(product.flops for product in self.products)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._note(args[0], args[1])
        elif name in ("addmm", "baddbmm", "_addmm_activation"):
            self._note(args[1], args[2])
        elif name == "_linear_pointwise":  # oneDNN: x and the weight of a linear layer
            self._note(args[0], args[1].mT, onednn=True)
        elif name.startswith("_scaled_dot_product") and name.endswith("_attention_math"):
            raise RuntimeError(f"{name} was not taken apart: its products would go uncounted")
        elif name.startswith("_scaled_dot_product"):
            self._note_attention(args, "backward" in name)
        else:
            made = func(*args, **(kwargs or {}))
            self.moved += _moved(
                list(_tensors([args, kwargs])), list(_tensors(made)), func._schema.is_mutable
            )
            return made
        return func(*args, **(kwargs or {}))

    def _note(self, left: Tensor, right: Tensor, onednn: bool = False) -> None:
        self.products.append(Product(_layout(left), _layout(right), onednn))

    def _note_attention(self, args: Any, backward: bool) -> None:
        grad, q, k, v = args[:4] if backward else (None, *args[:3])
        heads, queries, keys = q.shape[:-2].numel(), q.shape[-2], k.shape[-2]
        q, k, v = (torch.empty(heads, *part.shape[-2:], dtype=q.dtype, device="meta") for part in (q, k, v))
        weights = torch.empty(heads, queries, keys, dtype=q.dtype, device="meta")
        if grad is None:
            pairs = [(q, k.mT), (weights, v)]
        else:
            grad = torch.empty(heads, queries, v.shape[-1], dtype=q.dtype, device="meta")
            pairs = [(weights.mT, grad), (grad, v.mT), (weights, k), (weights.mT, q)]
        for left, right in pairs:
            self._note(left, right)


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors among the arguments or results of an operation."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _moved(read: list[Tensor], made: list[Tensor], changes_inputs: bool) -> int:
    """Bytes that an operation reads and writes; a view moves none, what is there twice counts once."""
    known = {tensor.untyped_storage().data_ptr() for tensor in read}
    written = [t for t in made if changes_inputs or t.untyped_storage().data_ptr() not in known]
    if not written and not changes_inputs:
        return 0
    once = {(t.data_ptr(), t.shape): min(t.nbytes, t.untyped_storage().nbytes()) for t in read}
    return sum(once.values()) + sum(t.nbytes for t in written)


def copying(megabytes: int = 512, rounds: int = 5) -> float:
    """Bytes a second that this process reads and writes when it copies memory, at best."""
    source = torch.ones(megabytes << 18)
    goal, best = torch.empty_like(source), float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        goal.copy_(source)
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best


def _layout(matrix: Tensor) -> Layout:
    return matrix.shape, matrix.stride(), matrix.dtype


def record_products(step: Callable[[], object]) -> RecordProducts:
    """Run `step` once and give back what it multiplied."""
    with RecordProducts() as recorded:
        step()
    return recorded


def replay(products: list[Product], device: str = "cpu") -> Callable[[], None]:
    """A function that computes the products in their order, on memory of its own, and nothing else."""
    memory: dict[Any, Tensor] = {}

    def matrix(role: str, layout: Layout) -> Tensor:
        if (role, layout) not in memory:
            shape, strides, dtype = layout
            size = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
            flat = torch.randn(size, device=device).to(dtype)
            memory[role, layout] = flat.as_strided(shape, strides)
        return memory[role, layout]

    calls: list[Callable[[], Tensor]] = []
    for left, right, onednn in products:
        if not (left[0].numel() and right[0].numel()):
            continue
        first, second = matrix("left", left), matrix("right", right)
        if onednn:  # it knows no place for its result
            calls.append(partial(torch.ops.mkldnn._linear_pointwise, first, second.mT, None, "none", [], ""))
            continue
        shape = torch.Size([*left[0][:-1], right[0][-1]])
        out = matrix("out", (shape, torch.empty(shape, device="meta").stride(), left[2]))
        calls.append(partial(torch.mm if len(shape) == 2 else torch.bmm, first, second, out=out))

    @torch.no_grad()
    def run() -> None:
        for multiply in calls:
            multiply()

    return run
