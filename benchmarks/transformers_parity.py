"""Logits and tokens of pretrained bases against the library `transformers`, on random weights.

It needs transformers, which nothing else here does: make an environment of its own, and run there.

    python -m venv /tmp/parity
    /tmp/parity/bin/pip install -r requirements.txt transformers
    /tmp/parity/bin/python -m benchmarks.transformers_parity
    /tmp/parity/bin/python -m benchmarks.transformers_parity --folder A_BASE_ON_THIS_MACHINE

Each family is made small with random weights by transformers itself, saved as it saves, and read here; the
largest difference of a logit (float32) has to be under 1e-4. One JSON line a family; exit 1 if one is over.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from retro_demo.models.llama import Llama
from retro_demo.pretrained.llama_folder import load_llama

LIMIT = 1e-4
SIZE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2": ("Llama", {"tie_word_embeddings": True, "rope_theta": 100_000.0}),
    "TinyLlama": ("Llama", {"tie_word_embeddings": False}),
    "Llama 2 (all heads)": ("Llama", {"num_key_value_heads": 4}),
    "Llama, linear scaling": ("Llama", {"rope_parameters": LINEAR}),
    "Llama 3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, window 256": ("Mistral", {"sliding_window": 256}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 32}),
}


def main() -> int:
    """Compare, print a line each, and say by the exit status whether all is near enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--folder", type=Path, help="a base on this machine, in place of random ones")
    folder = parser.parse_args().folder
    found = [compare(folder.name, folder)] if folder else [compare_random(name) for name in FAMILIES]
    return int(any(one["largest_difference"] > LIMIT for one in found))


def compare_random(name: str) -> dict[str, Any]:
    """A small network of a family, its norms and biases moved away from ones and zeros."""
    import transformers

    kind, more = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZE | more)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += 0.1 * torch.randn_like(weight)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder, max_shard_size="200KB" if name == "Qwen3" else "1GB")
        return compare(name, Path(folder))


def compare(name: str, folder: Path) -> dict[str, Any]:
    """The largest difference of a logit: read at once, and by parts with a cache."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_llama(folder, "float32")
    ids = torch.randint(0, ours.config.vocab_size, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = theirs(ids).logits
        differences = [float((logits - wanted).abs().max()) for logits in (ours(ids), by_parts(ours, ids))]
    found = {
        "family": name,
        "largest_difference": max(differences),
        "largest_logit": float(wanted.abs().max()),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(found), flush=True)
    return found


def by_parts(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a reading in three parts, the last one token long."""
    cache = model.new_cache(len(ids), 8)
    return torch.cat([model(part, cache) for part in (ids[:, :120], ids[:, 120:-1], ids[:, -1:])], dim=1)


if __name__ == "__main__":
    sys.exit(main())
