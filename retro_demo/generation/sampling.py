"""The next token from a network's logits, and the one loop that writes a text from them.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retro_demo.events import Event, Retrieved, Token
from retro_demo.settings import GenerateConfig
from retro_demo.tokenizer import TextStream, Tokenizer

FEW = 512  # likeliest tokens, in which sampling looks first
COLDEST = 1e-4  # below it logits over temperature leave the range of float32


@dataclass(frozen=True)
class Written:
    """One generation so far: all token ids with the prompt first, and what each chunk retrieved."""

    tokens: list[int]
    prompt_tokens: int
    probabilities: list[float]
    retrieved: list[Retrieved]


@dataclass(frozen=True)
class Continuation:
    """A text that a run of any kind is about to write.

    `about` is what else its end tells; `why_none` says of what was looked up why nothing was found, "" where
    something was.
    """

    events: Iterator[Event | Written]
    tokenizer: Tokenizer
    about: dict[str, str]
    why_none: Callable[[Sequence[Retrieved]], str] = lambda retrieved: ""


def write_tokens(
    start: list[int],
    most: int,
    config: GenerateConfig,
    tokenizer: Tokenizer,
    read: Callable[[list[int]], Generator[Event, None, Tensor]],
    drawn: int = 0,
) -> Generator[Event, None, tuple[list[int], list[float]]]:
    """Yield a Token for each that follows `start`, at most so many; returns their ids and probabilities.

    `read` takes the tokens that were not read yet and returns the logits (V,) of the next one; what it
    yields is passed on. The last `drawn` tokens of `start` were drawn with the same seed: what follows is
    drawn as if the text had never been broken off.
    """
    generator = torch.Generator().manual_seed(config.seed)
    if config.temperature >= COLDEST:
        for _ in range(drawn):
            torch.rand(1, dtype=torch.float64, generator=generator)
    stream, text = TextStream(tokenizer), ""
    written: list[int] = []
    probabilities: list[float] = []
    unread = start
    for _ in range(most):
        logits = yield from read(unread)
        # a base may have room for more tokens than its vocabulary names
        chosen, probability = next_token(logits[: tokenizer.vocab_size], config, generator)
        if chosen == tokenizer.eos_id:
            break
        written.append(chosen)
        probabilities.append(probability)
        piece = stream.push(chosen)
        text += piece
        yield Token(chosen, piece, probability)
        if config.stop and config.stop in text:
            break
        unread = [chosen]
    return written, probabilities


@torch.inference_mode()
def next_token(logits: Tensor, config: GenerateConfig, generator: torch.Generator) -> tuple[int, float]:
    """logits (V,) -> a sampled id and the probability that the model itself gave it.

    Temperature 0 (all below COLDEST) takes the likeliest. top_k and top_p keep the likeliest
    tokens, at least one.
    """
    probabilities = logits.float().softmax(dim=-1)
    if config.temperature < COLDEST:
        best = logits.argmax()
        chosen, probability = torch.stack([best.double(), probabilities.take(best).double()]).tolist()
        return int(chosen), probability
    ranked, order = _ranked((logits.float() / config.temperature).softmax(dim=-1), config.top_p)
    before = ranked.cumsum(dim=-1) - ranked
    kept = before < config.top_p
    if config.top_k:
        kept[config.top_k :] = False
    kept[0] = True
    # drawn on the CPU: the same seed writes the same text on every device. One copy brings all that is
    # needed of a token, because each makes the host wait for the device; float32 holds ids up to 2^24
    weights, ids, own = torch.stack([ranked * kept, order.float(), probabilities[order]]).cpu()
    shares = weights.double().cumsum(dim=0)
    drawn = torch.rand(1, dtype=torch.float64, generator=generator) * shares[-1]
    place = min(int(torch.searchsorted(shares, drawn, right=True)), int(weights.count_nonzero()) - 1)
    return int(ids[place]), own[place].item()


def _ranked(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """probabilities (V,) -> the highest, best first, ties by id, with more than `top_p` of all; their ids.

    On a CPU sorting a whole vocabulary takes longer than some layers, and what is drawn is nearly always
    among the first few. A GPU sorts it at once, and is not to be asked whether a few were enough.
    """
    if probabilities.device.type == "cpu" and len(probabilities) > FEW:
        few = probabilities.topk(FEW).indices.sort().values  # by id, so that a stable sort keeps ties so
        ranked, places = probabilities[few].sort(descending=True, stable=True)
        if ranked[:-1].sum() > top_p and ranked[-2] > ranked[-1]:
            return ranked[:-1], few[places[:-1]]
    return probabilities.sort(descending=True, stable=True)
