"""The ways to read of `retro_demo.evaluation.reading_ways`, scored behind prompts; and the base fine-tuned.

All are scored in the same way: the logits after a prompt and after each token of a value but the last. What
the frozen lower layers make of a text is computed once and serves every arm.

Shapes: B batch, T tokens, L looks, K neighbors, C chunk length, P tokens of a title, R = P + 2 C, n scored
places, D width, V vocabulary.
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

from retro_demo.evaluation.reading_ways import LEAST, PromptFormat, before_text
from retro_demo.models.llama import Llama
from retro_demo.models.low_rank import twin_of
from retro_demo.models.reader import Ahead, Reader
from retro_demo.tokenizer import Tokenizer


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
    every: int | None = None,
) -> dict[str, Tensor]:
    """Arm ("attention", "copy", "both") -> (B, n, V), as `Reader.forward`, for the places alone.

    neighbors (B, L, K, R); `off`: the logits of the base, where they are known; `every` as in `looks`.
    """
    rows = torch.from_numpy(neighbors)
    keys = model.keys_of(rows)
    log_weights, found, read_at = model.looks(
        text.tokens, Ahead(text.stream, text.start, text.queries, keys), rows, every=every
    )
    batch, first = len(rows), model.config.chunk_len - 1
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
    # the mixture of the copy head where it is asked for: a look's readers begin at the token that it comes at
    weights = log_weights.reshape(batch, -1, log_weights.shape[-1])
    which = (places - first).clamp(min=0)
    mine = weights.gather(1, which[..., None].expand(-1, -1, weights.shape[-1]))
    tokens = found.tokens.reshape(batch, -1, found.tokens.shape[-1])
    tokens = tokens.gather(1, (which // read_at.shape[1])[..., None].expand(-1, -1, tokens.shape[-1]))
    reads = (places >= first)[..., None]
    for arm, by in (("both", "attention"), ("copy", "copy")):
        if arm in arms:
            logits = out[by].float()
            copied = torch.zeros_like(logits).scatter_add(2, tokens, mine[..., 1:].exp())
            mixed = torch.logaddexp(mine[..., :1] + logits.log_softmax(-1), copied.clamp(min=LEAST).log())
            out[arm] = torch.where(reads, mixed, logits)
    return {arm: out[arm] for arm in arms}


# In the prompt


def in_context(
    tokenizer: Tokenizer, form: PromptFormat, neighbors: Sequence[tuple[str, str]], prompt: Sequence[int]
) -> list[int]:
    """The prompt's ids with neighbors (title, text), nearest first, before it. A neighbor "" is left out."""
    return [*before_text(tokenizer, form, neighbors), *(i for i in prompt if i)]


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
    """The base with the blocks above the reader's look-up trained on windows for so many processor seconds.

    They are counted of all cores, so that others at work on the machine take nothing from it.
    windows(step) -> tokens (B, T + 1), titles (B, P); negative steps are to validate on, and the best of six
    states by them is kept. The lower blocks are shared, so a reader reads with either base.
    """
    base = model.base
    twin = twin_of(base)
    first = model.config.first_written
    upper = [copy.deepcopy(block) for block in list(base.blocks)[first:]]
    twin.blocks = nn.ModuleList([*list(base.blocks)[:first], *upper])
    weights = [part.requires_grad_(True) for block in upper for part in block.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    trained = model.reading_with(twin)

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
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10) * max(0.05, 1 - spent / seconds)
        optimizer.zero_grad()
        loss(step).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        spent += time.process_time() - begun
        if spent >= marks[0]:
            marks.pop(0)
            if (now := validate()) < best:
                best, kept = now, [part.detach().clone() for part in weights]
    for part, good in zip(weights, kept, strict=True):
        part.data.copy_(good)
        part.requires_grad_(False)
    return Tuned(twin, step, spent, before, best)
