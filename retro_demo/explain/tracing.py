"""A finished text with all that can be shown of it: what it read, and what that did to it.

The trace needs neither run nor corpus any more. No HTML, no page here.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length, H heads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from retro_demo.corpus.search import Database
from retro_demo.explain.explain import Numbers, measure
from retro_demo.generation.generate import Written
from retro_demo.models.attention import record_attention
from retro_demo.models.retro import RETRO
from retro_demo.tensor_files import save_tensors
from retro_demo.tokenizer import Tokenizer, pieces_of
from retro_demo.whole_files import write_atomically

FORMAT = 2


@dataclass(frozen=True)
class Trace:
    """A finished text, explained.

    ids, tokens, pieces (T): the tokens, their labels, and the text that each adds. weights
    (layers, L, H, C, K, R): row i of chunk u belongs to the token at (u + 1) C - 1 + i.
    neighbor_tokens (L, K, R): what was read, 0 = padding; `neighbors` holds for each chunk the dicts
    of `describe_neighbors` with labels ("tokens") and text ("pieces") of their R tokens. `words` are
    the labels of the tokens that `numbers` name.
    """

    about: dict[str, Any]
    chunk_len: int
    prompt_tokens: int
    ids: list[int]
    tokens: list[str]
    pieces: list[str]
    probabilities: list[float]
    neighbors: list[list[dict[str, Any]]]
    layers: list[int]
    words: dict[int, str]
    weights: Tensor
    neighbor_tokens: np.ndarray
    numbers: Numbers

    def save(self, path: Path) -> None:
        """Write path.json and path.safetensors."""
        arrays = {"weights": self.weights.half(), "neighbor_tokens": torch.from_numpy(self.neighbor_tokens)}
        for name, value in vars(self.numbers).items():
            if isinstance(value, np.ndarray):
                arrays[f"numbers.{name}"] = torch.from_numpy(value)
        kept = {name: value for name, value in vars(self).items() if name not in arrays | {"numbers": 0}}
        kept |= {"format": FORMAT, "permutations": self.numbers.permutations}
        save_tensors(path.with_suffix(".safetensors"), arrays, {})
        write_atomically(path.with_suffix(".json"), json.dumps(kept, ensure_ascii=False).encode())

    @staticmethod
    def load(path: Path) -> Trace | None:
        """Read what `save` wrote; None where an earlier version of this app wrote it."""
        kept = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if kept.pop("format", 1) != FORMAT:
            return None
        arrays = load_file(path.with_suffix(".safetensors"))
        numbers = {f.name: arrays.get(f"numbers.{f.name}") for f in fields(Numbers)}
        known = {name: value.numpy() for name, value in numbers.items() if value is not None}
        kept["words"] = {int(token): word for token, word in kept["words"].items()}
        return Trace(
            numbers=Numbers(**known, permutations=kept.pop("permutations")),
            weights=arrays["weights"].float(),
            neighbor_tokens=arrays["neighbor_tokens"].numpy(),
            **kept,
        )


@torch.inference_mode()
def trace_attention(model: RETRO, tokens: Tensor, neighbors: Tensor) -> Tensor:
    """tokens (1, T), neighbors (1, L, K, R), L = T // C -> weights (layers, L, H, C, K, R).

    One forward over the finished text: the model is causal and the neighbors are given, so these
    are the weights of each step. Rows past the end of the text are those of no token.
    """
    with record_attention(model) as seen:
        model.decode(tokens, neighbors)
    by_layer = [seen[f"layers.{layer - 1}.retrieve"] for layer in sorted(model.config.cca_layers)]
    return rearrange(torch.stack(by_layer), "n l h c (k r) -> n l h c k r", r=model.config.neighbor_len).cpu()


def trace(
    model: RETRO, tokenizer: Tokenizer, written: Written, database: Database | None, about: dict
) -> Trace:
    """All that can be shown of a text; without retrieval there are no neighbors and no weights."""
    chunk_len = model.config.chunk_len
    num_chunks = min(len(written.tokens) // chunk_len, len(written.retrieved))
    neighbors: list[list[dict[str, Any]]] = []
    read = np.zeros((0, 0, model.config.neighbor_len), dtype=np.int64)
    weights = torch.zeros(0)
    if database is not None and num_chunks:
        most = max(1, *(len(event.neighbors) for event in written.retrieved))
        ids = np.full((num_chunks, most), -1, dtype=np.int64)
        for event in written.retrieved[:num_chunks]:
            ids[event.chunk, : len(event.neighbors)] = [neighbor["chunk"] for neighbor in event.neighbors]
        read = database.corpus.chunks.with_continuation(ids)  # (L, K, R)
        neighbors = [
            [
                found | labeled(tokenizer, read[event.chunk, place])
                for place, found in enumerate(event.neighbors)
            ]
            for event in written.retrieved[:num_chunks]
        ]
        device = next(model.parameters()).device
        text = torch.tensor([written.tokens], device=device)
        weights = trace_attention(model, text, torch.from_numpy(read)[None].to(device))
    numbers = measure(model, np.array(written.tokens), read)
    return Trace(
        about=about | {"null_slot": model.config.null_kv or model.config.abstain},
        chunk_len=chunk_len,
        prompt_tokens=written.prompt_tokens,
        ids=written.tokens,
        tokens=tokenizer.token_texts(written.tokens),
        pieces=pieces_of(tokenizer, written.tokens),
        probabilities=written.probabilities,
        neighbors=neighbors,
        layers=sorted(model.config.cca_layers) if neighbors else [],
        words=words_of(tokenizer, numbers.top_ids),
        weights=weights,
        neighbor_tokens=read,
        numbers=numbers,
    )


def labeled(tokenizer: Tokenizer, row: np.ndarray) -> dict[str, list[str]]:
    """Labels and text of the tokens of a neighbor (R,); padding has neither.

    N and F are decoded apart: each is a chunk of its own.
    """
    half = len(row) // 2
    pieces = pieces_of(tokenizer, row[:half].tolist()) + pieces_of(tokenizer, row[half:].tolist())
    return {"tokens": tokenizer.token_texts(row.tolist()), "pieces": pieces}


def words_of(tokenizer: Tokenizer, ids: np.ndarray) -> dict[int, str]:
    """The labels of some tokens."""
    known = np.unique(ids).tolist()
    return dict(zip(known, tokenizer.token_texts(known), strict=True))


def reading_tokens(trace: Trace, chunk: int) -> range:
    """The tokens that attend to the neighbors of a chunk: its last and the C - 1 that follow."""
    first = (chunk + 1) * trace.chunk_len - 1
    return range(first, min(first + trace.chunk_len, len(trace.tokens)))


def attention(trace: Trace, layer: int | None, head: int | None) -> np.ndarray:
    """Weights (L, C, K, R) of all chunks; None is the mean over layers or heads."""
    weights = trace.weights.numpy()  # (layers, L, H, C, K, R)
    weights = weights.mean(0) if layer is None else weights[trace.layers.index(layer)]
    return weights.mean(1) if head is None else weights[:, head]


def by_token(trace: Trace, of_rows: np.ndarray) -> np.ndarray:
    """What is known of reading tokens (L, C, ...) -> of all tokens (T, ...); 0 where nothing is read."""
    rows = of_rows.reshape(-1, *of_rows.shape[2:])
    out = np.zeros((len(trace.tokens), *rows.shape[1:]))
    first = trace.chunk_len - 1
    count = max(0, min(len(rows), len(out) - first))
    out[first : first + count] = rows[:count]
    return out


def mass(trace: Trace) -> np.ndarray:
    """How much each token attends to each neighbor (T, K), mean over layers and heads."""
    if not trace.neighbors:
        return np.zeros((len(trace.tokens), 0))
    return by_token(trace, attention(trace, None, None).sum(axis=-1))


def null_mass(trace: Trace) -> np.ndarray | None:
    """How much each token attends to nothing at all (T,): to the null slot; None where there is none."""
    if not trace.about.get("null_slot") or not trace.neighbors:
        return None
    return by_token(trace, 1 - attention(trace, None, None).sum(axis=(-1, -2)))


def entropy(trace: Trace) -> np.ndarray:
    """How widely each token's attention is spread (T,), in nats, mean over layers and heads."""
    if not trace.neighbors:
        return np.zeros(len(trace.tokens))
    weights = trace.weights.numpy()
    spread = -(weights * np.log(np.maximum(weights, 1e-12))).sum(axis=(-1, -2))  # (layers, L, H, C)
    return by_token(trace, spread.mean(axis=(0, 2)))


def why_nothing(trace: Trace, chunk: int = 0) -> str:
    """Why a chunk has no neighbors to show; "" where it has."""
    if not trace.neighbors:
        if trace.about.get("model") == "lm":
            return (
                "This run is a plain language model (lm): it has no way to read neighbors. "
                "Choose a retro run to see some."
            )
        if trace.about.get("config", {}).get("retrieval") == "off":
            return (
                "Retrieval was off, so the model read this without neighbors. "
                "Switch it on and try again to compare."
            )
        return (
            "The text ended before its first chunk was full, so nothing was looked up. Ask for more tokens."
        )
    if chunk >= len(trace.neighbors):
        return (
            f"Chunk {chunk + 1} was not full when the text ended, so nothing was looked up for it. "
            "Choose an earlier one."
        )
    if not trace.neighbors[chunk]:
        why = trace.about.get("nothing_found", "No neighbor was found.")  # traces of 0.5.0 do not say why
        return f"Chunk {chunk + 1}: {why}"
    return ""
