"""A generation as somebody watches it: the text so far, then the finished trace.

This module knows loaded runs and traces; it does not know whose they are or how they are shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro_demo.config import GenerateConfig
from retro_demo.events import Retrieved, Token
from retro_demo.generate import Written
from retro_demo.knobs import to_json
from retro_demo.loading import LoadedRun, write
from retro_demo.tokenizer import TextStream, Tokenizer
from retro_demo.tracing import Trace, trace

LOOK_SECONDS = 0.12  # between two looks at a growing text


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


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds; characters of several tokens stand with the last of them."""
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    if pieces:
        pieces[-1] += stream.flush()
    return pieces


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
    yield Writing(made.about["pieces"], prompt_tokens, chunk_len, retrieved, seconds, made)


def make_trace(
    run: LoadedRun,
    name: str,
    prompt: str,
    config: GenerateConfig,
    written: Written,
    seconds: float,
) -> Trace:
    """The trace of a finished generation, with what the page says about it."""
    searches = [event.ms for event in written.retrieved]
    about = {
        "run": name,
        "model": run.config.model,
        "prompt": prompt,
        "text": run.tokenizer.decode(written.tokens),
        "pieces": pieces_of(run.tokenizer, written.tokens),
        "config": to_json(config),
        "corpus": run.config.corpus_fingerprint,
        "versions": run.config.versions,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(len(written.probabilities) / max(seconds, 1e-9), 1),
        "search_ms": round(sum(searches) / len(searches), 2) if searches else None,
    }
    database = run.database if config.retrieval == "on" else None
    return trace(run.model, run.tokenizer, written, database, about)


def export_trace(kept: Trace, path: Path) -> None:
    """Write a trace as one JSON file for people: weights as their mean over heads, rounded."""
    values: dict[str, Any] = {name: value for name, value in vars(kept).items() if name != "weights"}
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
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
