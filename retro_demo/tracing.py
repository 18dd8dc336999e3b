"""What a finished text attended to: its trace, and the numbers read off it. No HTML, no page.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length, H heads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from retro_demo.attention import record_attention
from retro_demo.corpus import write_atomically
from retro_demo.generate import Database, Written
from retro_demo.retro import RETRO
from retro_demo.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trace:
    """A finished text with all that can be shown of it; needs neither run nor corpus any more.

    weights (layers, L, H, C, K, R): row i of chunk u belongs to the token at (u + 1) C - 1 + i.
    `neighbors` holds for each chunk the dicts of `describe_neighbors` and their token labels.
    """

    about: dict[str, Any]
    chunk_len: int
    prompt_tokens: int
    tokens: list[str]
    probabilities: list[float]
    neighbors: list[list[dict[str, Any]]]
    layers: list[int]
    weights: Tensor

    def save(self, path: Path) -> None:
        """Write path.json and path.safetensors."""
        kept = {name: value for name, value in vars(self).items() if name != "weights"}
        save_file({"weights": self.weights.half().contiguous()}, path.with_suffix(".safetensors"))
        write_atomically(path.with_suffix(".json"), json.dumps(kept, ensure_ascii=False).encode())

    @staticmethod
    def load(path: Path) -> Trace:
        """Read what `save` wrote."""
        kept = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return Trace(**kept, weights=load_file(path.with_suffix(".safetensors"))["weights"].float())


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
    """All that can be shown of a generation; without retrieval there are no neighbors and no weights."""
    chunk_len = model.config.chunk_len
    num_chunks = min(len(written.tokens) // chunk_len, len(written.retrieved))
    neighbors: list[list[dict[str, Any]]] = []
    weights = torch.zeros(0)
    if database is not None and num_chunks:
        most = max(1, *(len(event.neighbors) for event in written.retrieved))
        ids = np.full((num_chunks, most), -1, dtype=np.int64)
        for event in written.retrieved[:num_chunks]:
            ids[event.chunk, : len(event.neighbors)] = [neighbor["chunk"] for neighbor in event.neighbors]
        tokens = database.corpus.chunks.with_continuation(ids)  # (L, K, R)
        neighbors = [
            [
                found | {"tokens": tokenizer.token_texts(tokens[event.chunk, place].tolist())}
                for place, found in enumerate(event.neighbors)
            ]
            for event in written.retrieved[:num_chunks]
        ]
        device = model.embedding.weight.device
        weights = trace_attention(
            model,
            torch.tensor([written.tokens], device=device),
            torch.from_numpy(tokens)[None].to(device),
        )
    return Trace(
        about=about,
        chunk_len=chunk_len,
        prompt_tokens=written.prompt_tokens,
        tokens=tokenizer.token_texts(written.tokens),
        probabilities=written.probabilities,
        neighbors=neighbors,
        layers=sorted(model.config.cca_layers) if neighbors else [],
        weights=weights,
    )


def reading_tokens(trace: Trace, chunk: int) -> range:
    """The tokens that attend to the neighbors of a chunk: its last and the C - 1 that follow."""
    first = (chunk + 1) * trace.chunk_len - 1
    return range(first, min(first + trace.chunk_len, len(trace.tokens)))


def attention(trace: Trace, chunk: int, layer: int | None, head: int | None) -> np.ndarray:
    """Weights (rows, K, R) of a chunk; None is the mean over layers or heads."""
    weights = trace.weights[:, chunk].numpy()  # (layers, H, C, K, R)
    weights = weights.mean(0) if layer is None else weights[trace.layers.index(layer)]
    weights = weights.mean(0) if head is None else weights[head]
    return weights[: len(reading_tokens(trace, chunk)), : len(trace.neighbors[chunk])]


def shares(weights: np.ndarray) -> np.ndarray:
    """Weights (rows, K, R) -> the share (K,) of the attention that each neighbor got."""
    by_neighbor = weights.sum(axis=2).mean(axis=0)
    return by_neighbor / max(by_neighbor.sum(), 1e-9)


def why_nothing(trace: Trace, chunk: int) -> str:
    """Why a chunk has no neighbors to show; "" where it has."""
    if not trace.neighbors:
        if trace.about.get("model") == "lm":
            return (
                "This run is a plain language model (lm): it has no way to read neighbors. "
                "Choose a retro run to see some."
            )
        if trace.about.get("config", {}).get("retrieval") == "off":
            return (
                "Retrieval was off, so the model wrote this without neighbors. "
                "Switch it on and generate again to compare."
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
        return f"No neighbor was found for chunk {chunk + 1}."
    return ""


def best_chunk(trace: Trace) -> int:
    """The chunk to show first: the last one that has neighbors and is read by a whole chunk."""
    full = [
        chunk
        for chunk, found in enumerate(trace.neighbors)
        if found and len(reading_tokens(trace, chunk)) == trace.chunk_len
    ]
    return min(full, key=lambda chunk: abs(chunk - len(trace.neighbors) // 2), default=0)
