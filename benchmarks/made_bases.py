"""Small bases of the Llama family with random weights: a folder as the Hub has them, or one GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm2": {"tie_word_embeddings": True},
    "tinyllama": {},
    "llama2": {"num_key_value_heads": 4},
    "llama linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3, newer names": {"rope_parameters": LLAMA3 | {"rope_theta": 1000.0}, "rope_theta": None},
    "mistral": {"model_type": "mistral", "sliding_window": 64, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
}
TEXTS = [
    "The harbor of Brazil has 1234 ships. ",
    "A chief of state: höher, 東京!\n\n",
    "ships and harbors " * 9,
]


def weights_of(told: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights by the names of a folder."""
    draw = torch.Generator().manual_seed(0)
    dim, heads, kv = told["hidden_size"], told["num_attention_heads"], told["num_key_value_heads"]
    size, inner = told.get("head_dim") or dim // heads, told["intermediate_size"]

    def some(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=draw) + (1.0 if len(shape) == 1 else 0.0)

    weights = {"model.embed_tokens.weight": some(told["vocab_size"], dim), "model.norm.weight": some(dim)}
    if not told["tie_word_embeddings"]:
        weights["lm_head.weight"] = some(told["vocab_size"], dim)
    for i in range(told["num_hidden_layers"]):
        at = f"model.layers.{i}."
        weights |= {f"{at}{name}_layernorm.weight": some(dim) for name in ("input", "post_attention")}
        for name, rows in (("q", heads * size), ("k", kv * size), ("v", kv * size)):
            weights[f"{at}self_attn.{name}_proj.weight"] = some(rows, dim)
            if told["model_type"] == "qwen2":
                weights[f"{at}self_attn.{name}_proj.bias"] = some(rows)
        if told["model_type"] == "qwen3":
            weights |= {f"{at}self_attn.{name}_norm.weight": some(size) for name in "qk"}
        weights[f"{at}self_attn.o_proj.weight"] = some(dim, heads * size)
        weights |= {f"{at}mlp.{name}_proj.weight": some(inner, dim) for name in ("gate", "up")}
        weights[f"{at}mlp.down_proj.weight"] = some(dim, inner)
    return weights


def write_base(folder: Path, more: dict[str, Any] | None = None, shards: int = 1) -> dict[str, Tensor]:
    """A folder of a base, in so many files; returns its weights."""
    told = SHAPE | (more or {})
    weights = weights_of(told)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    byte_level().save(str(folder / "tokenizer.json"))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return weights
    names = sorted(weights)
    files = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    for n, file in enumerate(files):
        save_file({name: weights[name] for name in names[n::shards]}, folder / file)
    placed = {name: files[i % shards] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return weights


def byte_level() -> Tokenizer:
    """As SmolLM2's: digits apart, GPT-2's pattern; three special tokens before the bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    )
    return backend


def write_gguf(
    path: Path, *, architecture: str = "llama", pre: str = "smollm", quantized: bool = False
) -> Path:
    """The base of `write_base` with tied embeddings, as llama.cpp's converter writes it."""
    told = SHAPE | FAMILIES["smollm2"]
    weights = weights_of(told)
    stored = json.loads(byte_level().to_str())
    tokens = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    tokens += [f"[unused{n}]" for n in range(told["vocab_size"] - len(tokens))]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(3)
    writer.add_context_length(told["max_position_embeddings"])
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "_proj": "",
    }
    for name, weight in weights.items():
        array = weight.numpy()
        if heads := {"q": 4, "k": 2}.get(name.split(".")[-2][0]) if "self_attn" in name else None:
            array = array.reshape(heads, 2, len(array) // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        for theirs, new in names.items():
            name = name.replace(theirs, new)
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantized and array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
