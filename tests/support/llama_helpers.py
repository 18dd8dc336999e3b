"""A slow reading of small bases of the Llama family (benchmarks/made_bases.py), to compare ours with.

`slow_logits` is written from the papers' formulas, one head and one layer at a time, by the names of the
folder. benchmarks/transformers_parity.py compares with the library transformers itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.made_bases import SHAPE


def slow_logits(weights: dict[str, Tensor], more: dict[str, Any], ids: Tensor) -> Tensor:
    """ids (T) -> logits (T, V)."""
    told = SHAPE | more
    heads, kv, dim = told["num_attention_heads"], told["num_key_value_heads"], told["hidden_size"]
    size = told.get("head_dim") or dim // heads
    h = weights["model.embed_tokens.weight"][ids]
    later = torch.ones(len(ids), len(ids)).triu(1).bool()

    def norm(x: Tensor, name: str) -> Tensor:
        return (
            x / (x.square().mean(-1, keepdim=True) + told["rms_norm_eps"]).sqrt() * weights[name + ".weight"]
        )

    def projected(x: Tensor, name: str) -> Tensor:
        return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)

    for i in range(told["num_hidden_layers"]):
        at = f"model.layers.{i}."
        x = norm(h, at + "input_layernorm")
        q, k, v = (projected(x, f"{at}self_attn.{name}_proj") for name in "qkv")
        out = []
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            shared = slice(head * kv // heads * size, (head * kv // heads + 1) * size)
            query, key = q[:, mine], k[:, shared]
            if told["model_type"] == "qwen3":
                query, key = norm(query, at + "self_attn.q_norm"), norm(key, at + "self_attn.k_norm")
            scores = turned(query, told) @ turned(key, told).T / math.sqrt(size)
            out.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, shared])
        h = h + projected(torch.cat(out, 1), at + "self_attn.o_proj")
        x = norm(h, at + "post_attention_layernorm")
        gate = torch.nn.functional.silu(projected(x, at + "mlp.gate_proj"))
        h = h + projected(gate * projected(x, at + "mlp.up_proj"), at + "mlp.down_proj")
    name = "model.embed_tokens" if told["tie_word_embeddings"] else "lm_head"
    return projected(norm(h, "model.norm"), name)


def turned(x: Tensor, told: dict[str, Any]) -> Tensor:
    """Each pair (i, i + P / 2) of (T, P) turned by its position times its speed."""
    half = x.shape[1] // 2
    out = x.clone()
    for i in range(half):
        speed = slowed(1000.0 ** (-i / half), told)
        for t in range(len(x)):
            cos, sin = math.cos(t * speed), math.sin(t * speed)
            a, b = x[t, i], x[t, i + half]
            out[t, i], out[t, i + half] = a * cos - b * sin, b * cos + a * sin
    return out


def slowed(speed: float, told: dict[str, Any]) -> float:
    """As Llama 3 does it, or all alike."""
    rope = told.get("rope_parameters") or told.get("rope_scaling")
    if not rope:
        return speed
    if rope.get("type") == "linear":
        return speed / rope["factor"]
    length = 2 * math.pi / speed
    low, high, first = (
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )
    if length < first / high:
        return speed
    if length > first / low:
        return speed / rope["factor"]
    smooth = (first / length - low) / (high - low)
    return (1 - smooth) * speed / rope["factor"] + smooth * speed
