"""A generation as somebody watches it: the text so far, then the finished trace.

This module knows loaded runs and traces; it does not know whose they are or how they are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retro_demo.config import GenerateConfig
from retro_demo.events import Retrieved, Token
from retro_demo.explain.explained import add_bm25, describe, look_up, with_origin
from retro_demo.explain.findings import as_json
from retro_demo.explain.tracing import Trace, trace
from retro_demo.generation.generate import Written, write
from retro_demo.knobs import to_json
from retro_demo.runs.loading import LoadedRun
from retro_demo.tokenizer import pieces_of

LOOK_SECONDS = 0.12  # between two looks at a growing text
SIDES = ("on", "off", "shuffled")


@dataclass(frozen=True)
class Writing:
    """A text so far: one piece of text for each token (the prompt's first), and what was found."""

    pieces: list[str]
    prompt_tokens: int
    chunk_len: int
    retrieved: list[Retrieved]
    seconds: float
    trace: Trace | None = None

    @property
    def new_tokens(self) -> int:
        return len(self.pieces) - self.prompt_tokens


def watch_writing(
    run: LoadedRun, name: str, prompt: str, config: GenerateConfig, stop: Callable[[], bool]
) -> Iterator[Writing]:
    """Yield the growing text a few times a second, and at last, with its trace, what it became.

    A stop ends the text where it is. Raises UserError as `generate` does.
    """
    tokens = run.tokenizer.encode(prompt) if isinstance(prompt, str) else []
    pieces = pieces_of(run.tokenizer, tokens)
    prompt_tokens = len(tokens)
    chunk_len = run.model.config.chunk_len
    probabilities: list[float] = []
    retrieved: list[Retrieved] = []
    begun = time.perf_counter()
    shown = 0.0
    for event in write(run, prompt, config):
        if isinstance(event, Retrieved):
            retrieved.append(event)
        elif isinstance(event, Token):
            tokens.append(event.id)
            pieces.append(event.text)
            probabilities.append(event.probability)
        seconds = time.perf_counter() - begun
        if seconds - shown > LOOK_SECONDS or len(probabilities) == 1:
            shown = seconds
            yield Writing(list(pieces), prompt_tokens, chunk_len, list(retrieved), seconds)
        if stop():
            break
    seconds = time.perf_counter() - begun
    written = Written(tokens, prompt_tokens, probabilities, retrieved)
    made = make_trace(run, name, prompt, config, written, seconds)
    yield Writing(made.pieces, prompt_tokens, chunk_len, retrieved, seconds, made)


def make_trace(
    run: LoadedRun,
    name: str,
    prompt: str,
    config: GenerateConfig,
    written: Written,
    seconds: float,
) -> Trace:
    """The trace of a finished generation, with what the page says about it."""
    begun = time.perf_counter()
    database = None if config.retrieval == "off" else run.database
    chunk_len = run.model.config.chunk_len
    if database is not None:
        whole = np.array(written.tokens[: len(written.tokens) // chunk_len * chunk_len], dtype=np.int64)
        add_bm25(run, whole.reshape(-1, chunk_len), written.retrieved)
        if len(written.retrieved) < len(whole) // chunk_len:  # the text ended before its last chunk was read
            last = look_up(run, written.tokens, config, None)[len(written.retrieved) :]
            written = replace(written, retrieved=[*written.retrieved, *last])
    about = describe(run, name, run.tokenizer.decode(written.tokens), written.retrieved) | {
        "prompt": prompt,
        "config": to_json(config),
        "written_with": to_json(config),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(len(written.probabilities) / max(seconds, 1e-9), 1),
    }
    made = trace(run.model, run.tokenizer, written, database, about)
    return with_origin(made, run, config, begun)


def write_sides(
    run: LoadedRun, name: str, prompt: str, config: GenerateConfig, stop: Callable[[], bool]
) -> Iterator[dict[str, Writing]]:
    """The same prompt and seed with retrieval on, off and shuffled: yields the sides as they grow."""
    sides: dict[str, Writing] = {}
    for side in SIDES:
        for writing in watch_writing(run, name, prompt, replace(config, retrieval=side), stop):
            sides[side] = writing
            yield dict(sides)


def trace_values(kept: Trace, edit: dict[str, Any] | None = None) -> dict[str, Any]:
    """A trace as JSON for people: weights as their mean over heads, rounded.

    What followed from another neighbor (see rewriting.edit_json) stands under "edit".
    """
    values = as_json(kept) | ({"edit": edit} if edit else {})
    if kept.neighbors:
        mean = kept.weights.mean(dim=2)  # (layers, L, C, K, R)
        values["attention_mean_over_heads"] = [
            {
                "layer": layer,
                "weights": [[round(w, 4) for w in row] for row in rows.flatten(2).flatten(0, 1).tolist()],
            }
            for layer, rows in zip(kept.layers, mean, strict=True)
        ]
        values["attention_shape"] = "rows: chunk by reading token; columns: neighbor by its tokens"
    return values
