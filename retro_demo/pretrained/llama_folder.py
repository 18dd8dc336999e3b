"""Folders of the Llama family as on the Hub: config.json, safetensors (whole or in shards), tokenizer.json.

Read: Llama 2 and 3, SmolLM2 and TinyLlama (`llama`), Mistral (`mistral`), Qwen2 and Qwen2.5 (`qwen2`), Qwen3
(`qwen3`). What such a folder may say and this network cannot do is refused in a sentence.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from retro_demo.devices import free_memory
from retro_demo.errors import UserError, listed
from retro_demo.files import check_shapes, file_hash, read_header
from retro_demo.models.llama import Llama, LlamaConfig, RopeScaling
from retro_demo.settings import seen

KINDS = ("llama", "mistral", "qwen2", "qwen3")
WHOLE, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
AGAIN = "Download the base again."
FLOATS = ("F32", "F16", "BF16")
MOST_LAYERS = 1000
MARGIN = 200_000_000  # bytes beside the weights: one matrix as it is read, and a text


def read_config(folder: Path) -> LlamaConfig:
    """The shape that config.json tells. Raises UserError where it is missing, damaged or of another kind."""
    told = _json(folder / "config.json")
    kind = told.get("model_type")
    if kind not in KINDS:
        raise UserError(
            f"{folder} holds a base of the kind {seen(kind)}, which is not read. Choose one of the Llama "
            f"family: {', '.join(KINDS)}."
        )
    try:
        return _config(told, kind, folder)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe a network ({type(error).__name__}: {error}). {AGAIN}"
        ) from error


def _config(told: dict[str, Any], kind: str, folder: Path) -> LlamaConfig:
    biased = told.get("attention_bias", False) or told.get("mlp_bias", False)
    refused = {
        "hidden_act": told.get("hidden_act", "silu") != "silu",
        "attention_bias or mlp_bias": biased,
        "quantization_config": told.get("quantization_config") is not None,
        "partial_rotary_factor": told.get("partial_rotary_factor", 1.0) != 1.0,
        "pretraining_tp": told.get("pretraining_tp", 1) != 1 and biased,
    }
    if found := [name for name, there in refused.items() if there]:
        raise UserError(
            f"{folder} asks for {listed(found)} in config.json, which this network does not have."
        )
    rope = dict(told.get("rope_parameters") or told.get("rope_scaling") or {})  # by newer and older versions
    num_heads, dim = _count(told["num_attention_heads"]), _count(told["hidden_size"])
    max_len = _count(told["max_position_embeddings"])
    if window := _window(told, kind):  # up to there, attention is the plain one
        max_len = min(max_len, window)
    config = LlamaConfig(
        vocab_size=_count(told["vocab_size"]),
        dim=dim,
        depth=_count(told["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=_count(told.get("num_key_value_heads") or num_heads),
        head_dim=_count(told.get("head_dim") or dim // num_heads),
        ff_dim=_count(told["intermediate_size"]),
        rope_theta=float(rope.get("rope_theta") or told.get("rope_theta") or 10_000.0),
        rope_scaling=_scaling(rope, folder),
        eps=float(told["rms_norm_eps"]),
        tied=bool(told.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        max_len=max_len,
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2 or config.depth > MOST_LAYERS:
        raise ValueError(
            f"{config.depth} layers, {num_heads} heads of {config.head_dim}, {config.num_kv_heads} of keys"
        )
    return config


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ValueError(f"{seen(value)} is no count")
    return value


def _window(told: dict[str, Any], kind: str) -> int | None:
    """Tokens that a token sees at most, where the base was trained so."""
    window = told.get("sliding_window") if kind == "mistral" or told.get("use_sliding_window") else None
    return None if window is None else _count(window)


def _scaling(rope: dict[str, Any], folder: Path) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            _count(rope["original_max_position_embeddings"]),
        )
    raise UserError(
        f"{folder} scales its rotary positions by {seen(kind)}, which is not read. Choose a base with none, "
        "linear or llama3."
    )


def names_in_folder(config: LlamaConfig) -> dict[str, list[str]]:
    """Name of a weight here -> the tensors of the folder that stand below each other in it."""
    names = {"embed": ["model.embed_tokens.weight"], "norm": ["model.norm.weight"]}
    if not config.tied:
        names["head"] = ["lm_head.weight"]
    for i in range(config.depth):
        layer = f"model.layers.{i}."
        names[f"{i}.attn_norm"] = [f"{layer}input_layernorm.weight"]
        names[f"{i}.qkv"] = [f"{layer}self_attn.{part}_proj.weight" for part in "qkv"]
        if config.qkv_bias:
            names[f"{i}.qkv_bias"] = [f"{layer}self_attn.{part}_proj.bias" for part in "qkv"]
        if config.qk_norm:
            names |= {f"{i}.{part}_norm": [f"{layer}self_attn.{part}_norm.weight"] for part in "qk"}
        names[f"{i}.out"] = [f"{layer}self_attn.o_proj.weight"]
        names[f"{i}.ff_norm"] = [f"{layer}post_attention_layernorm.weight"]
        names[f"{i}.gate_up"] = [f"{layer}mlp.{part}_proj.weight" for part in ("gate", "up")]
        names[f"{i}.down"] = [f"{layer}mlp.down_proj.weight"]
    return names


def shapes_in_folder(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Tensor of the folder -> its shape."""
    rows = {
        "q_proj": config.num_heads * config.head_dim,
        "k_proj": config.num_kv_heads * config.head_dim,
        "v_proj": config.num_kv_heads * config.head_dim,
        "gate_proj": config.ff_dim,
        "up_proj": config.ff_dim,
    }
    shapes = {}
    whole = config.weight_shapes()
    for name, parts in names_in_folder(config).items():
        for part in parts:
            first = rows.get(part.split(".")[-2], whole[name][0])
            shapes[part] = (first, *whole[name][1:])
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, in order. Raises UserError where one of them is missing."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} has neither {WHOLE} nor {INDEX}: it holds no weights that are read.")
    placed = _json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(v, str) for v in placed.values()):
        raise UserError(f"{folder / INDEX} does not say where the weights are. {AGAIN}")
    names = sorted(set(placed.values()))
    if any(Path(name).name != name for name in names):
        raise UserError(f"{folder / INDEX} names files outside its folder. {AGAIN}")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UserError(f"{folder} lacks {listed(missing)}, of {len(names)} files of weights. {AGAIN}")
    return [folder / name for name in names]


def fingerprint(files: list[Path]) -> str:
    """sha256 of the weights: of the file, or of the hashes of all shards."""
    hashes = [file_hash(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def check_free_memory(config: LlamaConfig, precision: str, name: str) -> None:
    """Raise UserError where the weights would not fit into what is free now."""
    needed, free = config.num_bytes(precision) + MARGIN, free_memory()
    if needed > free:
        raise UserError(
            f"{name} needs {needed / 1e6:,.0f} MB of memory in {precision}, and {free / 1e6:,.0f} MB are "
            "free. Close something, choose a smaller base, or load it in fewer bits (int8)."
        )


def load_llama(folder: Path, precision: str, exchanged: int = 0) -> Llama:
    """The network of a folder; `exchanged` as for `build`.

    Raises UserError where it is not whole, or does not fit into memory.
    """
    config = read_config(folder)
    files = weight_files(folder)
    where: dict[str, Path] = {}
    there: dict[str, tuple[int, ...]] = {}
    wanted = shapes_in_folder(config)
    for file in files:
        for name, (kind, shape) in read_header(file, AGAIN).tensors.items():
            unused = name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")
            if unused:  # what older versions saved beside the weights
                continue
            if kind not in FLOATS:
                raise UserError(f"{file} keeps {seen(name)} as {kind}; only {', '.join(FLOATS)} are read.")
            where[name], there[name] = file, shape
    check_shapes(folder, there, wanted, AGAIN)
    check_free_memory(config, precision, folder.name)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in files}
        names = names_in_folder(config)
        return build(
            config,
            lambda name: [opened[where[part]].get_tensor(part) for part in names[name]],
            precision,
            folder,
            exchanged,
        )


def build(
    config: LlamaConfig,
    parts_of: Callable[[str], list[Tensor]],
    precision: str,
    source: Path,
    exchanged: int = 0,
) -> Llama:
    """The network from parts of weights, each of which is put into its precision as soon as it is read.

    `exchanged`: the token that takes the place of token 0, and 0 its (`PretrainedTokenizer`).
    """

    def read(name: str) -> Tensor:
        parts = [part.float() for part in parts_of(name)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not math.isfinite(float(whole.sum())) and not bool(whole.isfinite().all()):
            raise UserError(f"{source} has values in {seen(name)} that are not finite. {AGAIN}")
        if exchanged and name in ("embed", "head"):
            whole[[0, exchanged]] = whole[[exchanged, 0]]
        return whole

    try:
        return Llama(config, read, precision=precision).eval()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source} cannot be read to its end ({error}). {AGAIN}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} is no folder of a base: it has no {path.name}. Name a folder with config.json, "
            f"{WHOLE} and {TOKENIZER}."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file. {AGAIN}") from error
    if not isinstance(told, dict):
        raise UserError(f"{path} holds no settings. {AGAIN}")
    return told
