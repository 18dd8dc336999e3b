"""Ways to make one base read the same neighbors: a reader's, in the prompt, kNN-LM; and the base fine-tuned.

All are scored in the same way: the logits after a prompt and after each token of a value but the last. What
the frozen lower layers make of a text is computed once and serves every arm.

Shapes: B batch, T tokens, L looks, K neighbors, C chunk length, P tokens of a title, R = P + 2 C, n scored
places, J tokens that can be found, S states of a token, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.models.llama import Llama
from retro_demo.models.reader import Ahead, Reader
from retro_demo.tokenizer import Tokenizer

LEAST = 1e-30


class Text(NamedTuple):
    """Texts (B, T), padded behind, and what the lower layers make of them (`Reader.lower_text`)."""

    tokens: Tensor
    stream: Tensor
    start: Tensor
    queries: Tensor


@torch.inference_mode()
def read_text(model: Reader, tokens: np.ndarray, titles: np.ndarray | None = None) -> Text:
    """tokens (B, T), titles (B, P)."""
    ids = torch.from_numpy(tokens)
    before = None if titles is None else torch.from_numpy(titles)
    return Text(ids, *model.lower_text(ids, before))


def pick(stream: Tensor, start: Tensor, places: Tensor) -> Tensor:
    """What stands at the tokens `places` (B, n) of the texts in a stream (B, N, ...)."""
    return stream[torch.arange(len(stream))[:, None], start[:, None] + places]


@torch.inference_mode()
def off_logits(model: Reader, text: Text, places: Tensor) -> Tensor:
    """(B, n, V) of the base alone."""
    return model.base.logits(pick(model.upper(text.stream, None), text.start, places))


@torch.inference_mode()
def reader_logits(
    model: Reader,
    text: Text,
    neighbors: np.ndarray,
    places: Tensor,
    arms: Sequence[str],
    off: Tensor | None = None,
) -> dict[str, Tensor]:
    """Arm ("attention", "copy", "both") -> (B, n, V), as `Reader.forward`, for the places alone.

    neighbors (B, L, K, R); `off`: the logits of the base, where they are known.
    """
    rows = torch.from_numpy(neighbors)
    keys = model.keys_of(rows)
    log_weights, found, read_at = model.looks(
        text.tokens, Ahead(text.stream, text.start, text.queries, keys), rows
    )
    batch, chunk_len = len(rows), model.config.chunk_len
    real = (read_at < text.tokens.shape[1]).flatten()
    out = {}
    if {"attention", "both"} & set(arms):
        looked = log_weights[..., 1:].exp() @ found.values
        at = text.start[:, None] + read_at.flatten()[real]
        read = torch.zeros_like(text.stream).index_put(
            (torch.arange(batch)[:, None], at), looked.reshape(batch, -1, looked.shape[-1])[:, real]
        )
        out["attention"] = model.base.logits(pick(model.upper(text.stream, read), text.start, places))
    if "copy" in arms:
        out["copy"] = off_logits(model, text, places) if off is None else off
    # the mixture of the copy head where it is asked for: a look's readers begin at its chunk's last token
    weights = log_weights.reshape(batch, -1, log_weights.shape[-1])
    which = (places - (chunk_len - 1)).clamp(min=0)
    mine = weights.gather(1, which[..., None].expand(-1, -1, weights.shape[-1]))
    tokens = found.tokens.reshape(batch, -1, found.tokens.shape[-1])
    tokens = tokens.gather(1, (which // chunk_len)[..., None].expand(-1, -1, tokens.shape[-1]))
    reads = (places >= chunk_len - 1)[..., None]
    for arm, by in (("both", "attention"), ("copy", "copy")):
        if arm in arms:
            logits = out[by].float()
            copied = torch.zeros_like(logits).scatter_add(2, tokens, mine[..., 1:].exp())
            mixed = torch.logaddexp(mine[..., :1] + logits.log_softmax(-1), copied.clamp(min=LEAST).log())
            out[arm] = torch.where(reads, mixed, logits)
    return {arm: out[arm] for arm in arms}


# In the prompt

STYLES = ("plain", "titles", "instruction")
INSTRUCTION = "Below are passages from a reference work, then a text that agrees with them.\n\nPassages:\n\n"


@dataclass(frozen=True)
class PromptFormat:
    """How neighbors stand in a prompt: style, how many of them, and which way round."""

    style: str = "plain"
    count: int = 2
    nearest_last: bool = True

    def __str__(self) -> str:
        order = "nearest last" if self.nearest_last else "nearest first"
        return f"{self.style}, {self.count} neighbor{'s' * (self.count > 1)}" + f", {order}" * (
            self.count > 1
        )


FORMATS = [
    PromptFormat(style, count, last) for style in STYLES for count, last in ((2, True), (2, False), (1, True))
]


def in_context(
    tokenizer: Tokenizer, form: PromptFormat, neighbors: Sequence[tuple[str, str]], prompt: Sequence[int]
) -> list[int]:
    """The prompt's ids with neighbors (title, text), nearest first, before it. A neighbor "" is left out."""
    shown = [one for one in neighbors if one[1]][: form.count]
    if form.nearest_last:
        shown = shown[::-1]
    parts = [text.strip() if form.style == "plain" else f"{title}\n\n{text.strip()}" for title, text in shown]
    before = "".join(f"{part}\n\n" for part in parts)
    if form.style == "instruction":
        before = f"{INSTRUCTION}{before}Text:\n\n"
    return [*tokenizer.encode(before), *(i for i in prompt if i)] if parts else [i for i in prompt if i]


@torch.inference_mode()
def plain_logits(
    base: Llama, begin: int, texts: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[Tensor]:
    """The base's logits (n, V) at the last n tokens of each text, `counts` of them."""
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest + 1, dtype=torch.int64)
    ids[:, 0] = begin
    for row, text in zip(ids, texts, strict=True):
        row[1 : len(text) + 1] = torch.tensor(text)
    h = base.run_blocks(base.embed(ids), 0, base.config.depth)
    ends = [len(text) + 1 for text in texts]
    return [
        base.logits(h[None, i, end - n : end])[0] for i, (end, n) in enumerate(zip(ends, counts, strict=True))
    ]


# kNN-LM


@dataclass(frozen=True)
class KnnFormat:
    """kNN-LM (Khandelwal et al. 2020): the layer whose states are compared, the temperature, the weight."""

    layer: int = 0  # place among the layers that are tried
    scale: float = 20.0  # of the cosine
    weight: float = 0.5

    def __str__(self) -> str:
        return f"weight {self.weight:g}, cosine times {self.scale:g}, states {self.layer}"


KNN_FORMATS = [
    KnnFormat(layer, scale, weight)
    for layer in range(3)
    for scale in (10.0, 25.0, 60.0)
    for weight in (0.25, 0.5, 0.75, 0.9)
]


def knn_mix(logits: Tensor, queries: Tensor, keys: Tensor, tokens: Tensor, form: KnnFormat) -> Tensor:
    """logits (n, V), unit queries (n, D), unit keys (J, D) of tokens (J,) -> log probabilities (n, V)."""
    own = logits.float().log_softmax(-1)
    if not len(tokens):
        return own
    near = (queries @ keys.T * form.scale).softmax(-1)
    found = torch.zeros_like(own).index_add_(1, tokens, near)
    return ((1 - form.weight) * own.exp() + form.weight * found).clamp(min=LEAST).log()


class KnnStates:
    """Unit states of the base at some layers and at its last: of texts, and of neighbors, each read once."""

    def __init__(self, model: Reader) -> None:
        self.model, self.base = model, model.base
        self._kept: dict[bytes, Tensor] = {}

    @torch.inference_mode()
    def states(self, ids: Sequence[int]) -> Tensor:
        """ids (N,) -> (N + 1, S + 1, D): after the beginning of text and after each token."""
        stream = self.base.embed(torch.tensor([[self.model.config.begin_id, *ids]]))
        found = []
        for number in range(self.base.config.depth):
            stream = self.base.block(stream, number)
            if number + 1 in (*self.model.config.match_layers, self.base.config.depth):
                found.append(F.normalize(stream[0].float(), dim=-1))
        return torch.stack(found, dim=1)

    def neighbors(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """rows (K, R) -> keys (J, S + 1, D) and tokens (J,) of what stands in the neighbors, titles aside."""
        title_len = self.model.config.title_len
        keys, tokens = [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]
        for row in rows:
            ids = row[row != 0].tolist()
            content = row[title_len:]
            count = int((content != 0).sum())
            if not count:
                continue
            name = row.tobytes()
            if name not in self._kept:
                self._kept[name] = self.states(ids)[len(ids) - count : -1]
            keys.append(self._kept[name])
            tokens.append(torch.tensor(ids[-count:]))
        return torch.cat(keys[1:]) if len(keys) > 1 else keys[0], torch.cat(tokens)


# The base fine-tuned


@dataclass(frozen=True)
class Tuned:
    """A base whose upper blocks were trained: what it became, steps, validation loss before and after."""

    base: Llama
    steps: int
    seconds: float
    before: float
    after: float


def fine_tuned(
    model: Reader,
    windows: Callable[[int], tuple[np.ndarray, np.ndarray]],
    seconds: float,
    *,
    lr: float = 1e-4,
) -> Tuned:
    """The base with the blocks above the reader's look-up trained on windows for so many seconds.

    windows(step) -> tokens (B, T + 1), titles (B, P); negative steps are to validate on, and the best of six
    states by them is kept. The lower blocks are shared, so a reader reads with either base.
    """
    base = model.base
    twin = copy.copy(base)
    twin._modules = dict(base._modules)
    first = model.config.first_written
    upper = [copy.deepcopy(block) for block in list(base.blocks)[first:]]
    twin.blocks = nn.ModuleList([*list(base.blocks)[:first], *upper])
    weights = [part.requires_grad_(True) for block in upper for part in block.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    trained = copy.copy(model)
    trained._base, trained._kept = [twin], model._kept

    def loss(step: int) -> Tensor:
        tokens, titles = windows(step)
        text = read_text(model, tokens[:, :-1], titles)
        text = Text(*(part.clone() for part in text))  # out of inference mode
        places = torch.arange(tokens.shape[1] - 1).expand(len(tokens), -1)
        logits = twin.logits(pick(trained.upper(text.stream, None), text.start, places))
        return F.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten(), ignore_index=0
        )

    def validate() -> float:
        with torch.no_grad():
            return float(np.mean([loss(-1 - i).item() for i in range(6)]))

    best = before = validate()
    kept = [part.detach().clone() for part in weights]
    spent, step, marks = 0.0, 0, [seconds * (i + 1) / 6 for i in range(6)]
    while marks:
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10) * max(0.05, 1 - spent / seconds)
        optimizer.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        spent += time.perf_counter() - begun
        if spent >= marks[0]:
            marks.pop(0)
            if (now := validate()) < best:
                best, kept = now, [part.detach().clone() for part in weights]
    for part, good in zip(weights, kept, strict=True):
        part.data.copy_(good)
        part.requires_grad_(False)
    return Tuned(twin, step, spent, before, best)


def with_base(model: Reader, base: Llama) -> Reader:
    """The reader with another base of the same lower blocks; what it made of neighbors is shared."""
    twin = copy.copy(model)
    twin._base, twin._kept = [base], model._kept
    return twin
