"""Write text with RETRO, which retrieves at each chunk border.

This module knows models, corpora and retrievers, not folders of runs and not the page.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length, H heads.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retro_demo.corpus.retrievers import Database, describe_neighbors
from retro_demo.errors import UserError
from retro_demo.events import Event, Retrieved, Token
from retro_demo.models.layers import Memory
from retro_demo.models.retro import RETRO, DecodeCache
from retro_demo.runs.loading import LoadedRun
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


def generate(
    model: RETRO,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerateConfig,
    *,
    context: int,
    num_neighbors: int,
    database: Database | None,
) -> Iterator[Event | Written]:
    """Yield Retrieved and Token events as the text grows, and at the end one Written.

    At the last token of each chunk its neighbors are looked up, encoded once and kept for the
    chunk that follows (RETRO section 2.4); keys and values of all tokens are kept too. `database`
    None, or retrieval "off", writes without neighbors; "shuffled" gives each chunk the neighbors of
    a chunk drawn from the database. `context` is what the run was trained to read; raises UserError
    where prompt and new tokens do not fit.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else []
    if not ids:
        raise UserError("The prompt is empty. Write a few words for the text to begin with.")
    if len(ids) >= context:
        raise UserError(
            f"The prompt has {len(ids)} tokens, but this run reads at most {context} with what it writes. "
            "Shorten the prompt, or train a run with a longer context."
        )
    if len(ids) + config.max_new_tokens > context:
        raise UserError(
            f"The prompt has {len(ids)} tokens and you ask for {config.max_new_tokens} more, but this run "
            f"reads at most {context} in all. Ask for at most {context - len(ids)}, or train a run with a "
            "longer context."
        )
    writer = _Writer(
        model,
        None if config.retrieval == "off" else database,
        config.num_neighbors or num_neighbors,
        np.random.default_rng(config.seed) if config.retrieval == "shuffled" else None,
        len(ids) + config.max_new_tokens,
    )
    generator = torch.Generator().manual_seed(config.seed)
    stream, text = TextStream(tokenizer), ""
    written, probabilities = list(ids), []
    logits = yield from writer.read(ids)
    for _ in range(config.max_new_tokens):
        chosen, probability = next_token(logits, config, generator)
        if chosen == tokenizer.eos_id:
            break
        written.append(chosen)
        probabilities.append(probability)
        piece = stream.push(chosen)
        text += piece
        yield Token(chosen, piece, probability)
        if (config.stop and config.stop in text) or len(probabilities) == config.max_new_tokens:
            break
        logits = yield from writer.read([chosen])
    yield Written(written, len(ids), probabilities, writer.retrieved)


class _Writer:
    """Feeds tokens to the model, one attending chunk at a time, retrieving at each border."""

    def __init__(
        self,
        model: RETRO,
        database: Database | None,
        num_neighbors: int,
        shuffle: np.random.Generator | None,
        room: int,
    ) -> None:
        self.model = model
        self.shuffle = shuffle
        self.database = database if model.config.cca_layers else None
        self.num_neighbors = num_neighbors
        self.cache = DecodeCache(memories=defaultdict(lambda: Memory(room)))
        self.tokens: list[int] = []
        self.retrieved: list[Retrieved] = []

    def read(self, ids: list[int]) -> Generator[Retrieved, None, Tensor]:
        """Yield a Retrieved for each border passed; returns the logits (V,) after the last token."""
        chunk_len = self.model.config.chunk_len
        logits = None
        while ids:
            to_border = chunk_len - 1 - self.cache.length % chunk_len or chunk_len
            part, ids = ids[:to_border], ids[to_border:]
            self.tokens += part
            neighbors = None
            if (self.cache.length + 1) % chunk_len == 0 and self.database is not None:
                end = self.cache.length + 1
                event, neighbors = self._retrieve(self.tokens[end - chunk_len : end], end // chunk_len - 1)
                yield event
            logits = self._extend(part, neighbors)
        assert logits is not None
        return logits

    @torch.inference_mode()
    def _extend(self, part: list[int], neighbors: np.ndarray | None) -> Tensor:
        device = self.model.embedding.weight.device
        tokens = torch.tensor([part], device=device)
        there = None if neighbors is None else torch.from_numpy(neighbors)[None].to(device)
        logits = self.model.next_logits(tokens, self.cache, there)[0]
        logits[self.model.config.pad_id] = float("-inf")  # padding is no text
        return logits

    def _retrieve(self, chunk: list[int], number: int) -> tuple[Retrieved, np.ndarray]:
        assert self.database is not None
        begun = time.perf_counter()
        corpus = self.database.corpus
        tokens, own = np.array([chunk]), None
        if self.shuffle is not None:
            own = self.shuffle.choice(np.flatnonzero(~corpus.held_out[corpus.chunks.document]), 1)
            tokens = corpus.chunks.tokens[own]
        found = self.database.retriever.search(tokens, self.num_neighbors, own=own)
        ms = 1000 * (time.perf_counter() - begun)
        neighbors = describe_neighbors(corpus, found.ids[0], found.scores[0])
        event = Retrieved(number, neighbors, round(ms, 2))
        self.retrieved.append(event)
        return event, corpus.chunks.with_continuation(found.ids[0])


def write(run: LoadedRun, prompt: str, config: GenerateConfig) -> Iterator[Event | Written]:
    """`generate` for a loaded run, whose retriever must be the one that config names, if it does."""
    if config.retriever not in ("", run.retriever):
        raise ValueError(f"the run was loaded with retriever {run.retriever!r}, not {config.retriever!r}")
    return generate(
        run.model,
        run.tokenizer,
        prompt,
        config,
        context=run.config.training.seq_len,
        num_neighbors=run.config.training.num_neighbors,
        database=run.database,
    )
