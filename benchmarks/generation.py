"""How much faster cached generation is than computing everything anew for each token.

    .venv/bin/python -m benchmarks.generation [--tokens 128] [--rounds 3]

Both write the same greedy tokens with the network of preset `small` (random weights, so nothing
needs to be trained) and a table for a retriever; they take turns (A B A B), and the ratio is of
medians. One JSON line at the end holds the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from retro_demo.config import RetroConfig, knobs
from retro_demo.presets import PRESETS
from retro_demo.retro import RETRO, DecodeCache

CHUNK, NEIGHBORS, PROMPT = 32, 2, 64


def neighbors_of(chunk: Tensor, table: Tensor) -> Tensor:
    """A stand-in for a search that costs nothing: (1, C) -> (1, K, 2 C)."""
    return table[int(chunk.sum()) % len(table)][None]


@torch.inference_mode()
def cached(model: RETRO, prompt: Tensor, count: int, table: Tensor) -> list[int]:
    """Read each token once; encode each chunk's neighbors once."""
    cache, tokens, logits = DecodeCache(), prompt, None
    unread = prompt
    while tokens.shape[1] < prompt.shape[1] + count:
        while unread.shape[1]:
            step = CHUNK - 1 - cache.length % CHUNK or CHUNK
            border = (cache.length + 1) % CHUNK == 0
            chunk = tokens[:, cache.length + 1 - CHUNK : cache.length + 1]
            found = neighbors_of(chunk, table) if border else None
            logits = model.extend(unread[:, :step], cache, found)
            unread = unread[:, step:]
        assert logits is not None
        unread = logits[:, -1:].argmax(dim=-1)
        tokens = torch.cat([tokens, unread], dim=1)
    return tokens[0].tolist()


@torch.inference_mode()
def recomputed(model: RETRO, prompt: Tensor, count: int, table: Tensor) -> list[int]:
    """The whole forward pass for each token."""
    tokens = prompt
    for _ in range(count):
        chunks = tokens[:, : tokens.shape[1] // CHUNK * CHUNK].split(CHUNK, dim=1)
        neighbors = torch.stack([neighbors_of(chunk, table) for chunk in chunks], dim=1)
        tokens = torch.cat([tokens, model(tokens, neighbors)[:, -1:].argmax(dim=-1)], dim=1)
    return tokens[0].tolist()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=int, default=128, help="new tokens after a prompt of 64")
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    torch.manual_seed(0)
    small, names = PRESETS["small"], [knob.name for knob in knobs(RetroConfig)]
    shape = {name: small[name] for name in names if name in small}
    model = RETRO(RetroConfig(chunk_len=CHUNK, **shape)).eval()
    prompt = torch.randint(2, 4096, (1, PROMPT))
    table = torch.randint(2, 4096, (64, NEIGHBORS, 2 * CHUNK))
    ways = {"cached": cached, "recomputed": recomputed}
    assert cached(model, prompt, 40, table) == recomputed(model, prompt, 40, table), "the two differ"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(chosen.rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way(model, prompt, chosen.tokens, table)
            seconds[name].append(time.perf_counter() - begun)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        speed = chosen.tokens / middle[name]
        span = f"{min(times):.2f} .. {max(times):.2f} s"
        print(f"{name:<12}{speed:8.1f} tokens/s   {span} for {chosen.tokens} tokens")
    ratio = middle["recomputed"] / middle["cached"]
    print(f"cached is {ratio:.1f} times as fast ({torch.get_num_threads()} threads)")
    print(json.dumps({"ratio": round(ratio, 2), "seconds": seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
