"""What writing costs in each way to read neighbors: tokens through the base, milliseconds, memory.

Measured is one look and the tokens up to the next one, with the text before it known already. What a way can
keep it keeps: a reader and kNN-LM the keys and values of the text; neighbors in the prompt stand before the
text, so all of it is read anew. Searching costs all ways the same and is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from retro_demo.evaluation.reading_ways import IN_CONTEXT, KNN, KnnFormat, KnnStates, knn_mix
from retro_demo.models.reader import Reader

TURNS = 3  # the ways in turns, so that what else the machine does hits all alike


@dataclass(frozen=True)
class WritingCost:
    """What a way costs at one look.

    tokens_per_token: tokens through the whole base for each one written; what passes through a part of the
    layers counts as that part. Milliseconds to the first token behind the look, for each further one, and for
    each on average; megabytes beside the base's weights.
    """

    tokens_per_token: float
    first_ms: float
    token_ms: float
    ms_per_token: float
    megabytes: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class LookToWrite:
    """What each way begins with: ids of the text (title first), rows of neighbors (K, R), and the ids that
    stand before the text in a prompt."""

    text: Sequence[int]
    rows: np.ndarray
    before: Sequence[int]

    @property
    def neighbor_tokens(self) -> int:
        return int((self.rows != 0).sum())


@torch.inference_mode()
def writing_costs(
    model: Reader, look: LookToWrite, names: Sequence[str], knn: KnnFormat, turns: int = TURNS
) -> dict[str, WritingCost]:
    """The cost of each of the ways `names` ("off", an output of the reader, IN_CONTEXT, KNN)."""
    count = model.config.chunk_len
    begun: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            writing = _writing(model, look, name, knn, count)
            start = time.perf_counter()
            next(writing)
            first = time.perf_counter()
            for _ in writing:
                pass
            begun[name].append((first - start, time.perf_counter() - first))
    costs = {}
    for name, seconds in begun.items():
        first = 1000 * median(one for one, _ in seconds)
        rest = 1000 * median(other for _, other in seconds)
        costs[name] = WritingCost(
            _tokens(model, look, name),
            first,
            rest / (count - 1),
            (first + rest) / count,
            _megabytes(model, look, name),
        )
    return costs


def _writing(model: Reader, look: LookToWrite, name: str, knn: KnnFormat, count: int) -> Iterator[int]:
    """Tokens of greedy text; what was known before the look is read here, before the first is asked for."""
    begin = {IN_CONTEXT: _in_context, KNN: partial(_by_states, knn=knn)}.get(name)
    step = begin(model, look, count) if begin else _by_reader(model, look, name, count)

    def tokens() -> Iterator[int]:
        written = None
        for _ in range(count):
            written = int(step(written).argmax())
            yield written

    return tokens()


Step = Callable[[int | None], Tensor]
"""The logits (V,) after a token that was written; None: after the text, with the look."""


def _by_reader(model: Reader, look: LookToWrite, name: str, count: int) -> Step:
    twin = model if name == "off" else model.writing_by(name)
    twin = twin.writing_by(twin.outputs).attach(model.pretrained)  # neighbors are read anew
    text = torch.tensor([[*model.before_prompt(len(look.text)), *look.text]], device=model.device)
    rows = None if name == "off" else torch.from_numpy(look.rows)[None].to(model.device)
    cache = twin.new_cache(text.shape[1] + count)
    twin.next_logits(text[:, :-1], cache)

    def step(written: int | None) -> Tensor:
        if written is None:
            return twin.next_logits(text[:, -1:], cache, rows)[0]
        return twin.next_logits(torch.tensor([[written]], device=model.device), cache)[0]

    return step


def _in_context(model: Reader, look: LookToWrite, count: int) -> Step:
    base = model.base
    whole = [model.config.begin_id, *look.before, *look.text]
    cache = base.new_cache(1, len(whole) + count)

    def step(written: int | None) -> Tensor:
        ids = torch.tensor([whole if written is None else [written]], device=model.device)
        stream = base.run_blocks(base.embed(ids), 0, base.config.depth, cache)
        return base.logits(stream[:, -1:])[0, 0]

    return step


def _by_states(model: Reader, look: LookToWrite, count: int, knn: KnnFormat) -> Step:
    base = model.base
    whole = [model.config.begin_id, *look.text]
    cache = base.new_cache(1, len(whole) + count)
    found: list[tuple[Tensor, Tensor]] = []

    def read(ids: list[int]) -> Tensor:
        there = base.embed(torch.tensor([ids], device=model.device))
        return base.run_blocks(there, 0, base.config.depth, cache)[:, -1:]

    read(whole[:-1])

    def step(written: int | None) -> Tensor:
        if written is None:
            found.append(KnnStates(model).neighbors(look.rows))
        keys, tokens = found[0]
        stream = read([whole[-1] if written is None else written])
        logits = base.logits(stream)[0]
        # by the last states: those of other layers cost the same
        query = torch.nn.functional.normalize(stream[0].float(), dim=-1)
        return knn_mix(logits, query, keys[:, -1], tokens, knn)[0]

    return step


def _tokens(model: Reader, look: LookToWrite, name: str) -> float:
    """Tokens through the whole base for each one that is written up to the next look."""
    count = model.config.chunk_len
    if name == "off":
        return 1.0
    if name == IN_CONTEXT:
        return 1 + (len(look.before) + len(look.text)) / count
    share = 1.0 if name == KNN else model.config.first_written / model.config.depth
    return 1 + look.neighbor_tokens * share / count


def _megabytes(model: Reader, look: LookToWrite, name: str) -> float:
    """Keys and values of what stands in the cache, states of neighbors, and the weights of a reader."""
    config, base, neighbors = model.config, model.base.config, look.neighbor_tokens
    held = len(look.text) + config.chunk_len + (len(look.before) if name == IN_CONTEXT else 0)
    size = held * 2 * base.depth * base.num_kv_heads * base.head_dim * 4
    if name == KNN:
        size += neighbors * (len(config.match_layers) + 1) * base.dim * 4
    elif name not in ("off", IN_CONTEXT):
        size += sum(part.numel() * part.element_size() for part in model.parameters())
        size += neighbors * len(config.match_layers) * base.dim * 2
    return size / 1e6
