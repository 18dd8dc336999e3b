"""GGUF files of the architecture `llama`: weights in any of its kinds of numbers, and the tokenizer inside.

The heads of a file are read here, because the gguf package takes seconds for a vocabulary; the numbers are
spread out by that package.

Source: the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retro_demo.errors import UserError, describe_error
from retro_demo.models.llama import Llama, LlamaConfig, RopeScaling
from retro_demo.pretrained.llama_folder import AGAIN, MOST_LAYERS, build, check_free_memory
from retro_demo.pretrained.tokenizer import PretrainedTokenizer
from retro_demo.settings import seen

MAGIC = b"GGUF"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MOST_ENTRIES = 10_000_000
CONTROL = 3  # the kind of a token that is special; 4 was added by somebody and is ordinary text
ADDED = 4
SPLITTERS = ("smollm", "gpt-2")


@dataclass(frozen=True)
class Gguf:
    """A file as read: its notes, and name -> (shape, kind of numbers, first byte) of each tensor."""

    path: Path
    notes: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]
    raw: mmap.mmap

    def tensor(self, name: str) -> Tensor:
        """Spread out to float32. Raises UserError where the numbers are of a kind that is not read."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        if name not in self.tensors:
            raise UserError(f"{self.path} lacks the tensor {seen(name)}. {AGAIN}")
        shape, kind, first = self.tensors[name]
        try:
            numbers = GGMLQuantizationType(kind)
            block, size = GGML_QUANT_SIZES[numbers]
            row = shape[-1] // block * size
            count = int(np.prod(shape[:-1], dtype=np.int64)) * row
            data = np.frombuffer(self.raw, np.uint8, count, first)
            if numbers in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
                kinds = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
                spread = data.view(kinds[numbers]).astype(np.float32)
            else:
                spread = dequantize(data.reshape(-1, row), numbers)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path} keeps {seen(name)} in numbers that are not read ({error})."
            ) from error
        except (ValueError, KeyError, OverflowError) as error:
            raise UserError(f"{self.path} is damaged at {seen(name)} ({error}). {AGAIN}") from error
        return torch.from_numpy(np.ascontiguousarray(spread, dtype=np.float32).reshape(shape))


class _Reader:
    """Values one after the other from a file in memory."""

    def __init__(self, raw: mmap.mmap) -> None:
        self.raw, self.at = raw, 4

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.raw, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def count(self) -> int:
        value = self.number("Q")
        if value > MOST_ENTRIES:
            raise ValueError(f"{value:,} entries")
        return value

    def text(self) -> str:
        size = self.number("Q")
        if size > len(self.raw) - self.at:
            raise ValueError("a text longer than the file")
        self.at += size
        return self.raw[self.at - size : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        of, count = self.number("I"), self.count()
        if of == TEXT:
            return [self.text() for _ in range(count)]
        if of == ARRAY:
            raise ValueError("a list of lists")
        size = count * struct.calcsize("<" + NUMBERS[of])
        found = struct.unpack_from(f"<{count}{NUMBERS[of]}", self.raw, self.at)
        self.at += size
        return list(found)


def read_gguf(path: Path) -> Gguf:
    """The head of a file. Raises UserError where it is none, damaged, or cut off."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise UserError(f"{path} is no GGUF file.")
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Reader(raw)
        version = reader.number("I")
        if version not in (2, 3):
            raise UserError(f"{path} is GGUF of version {version}; 2 and 3 are read.")
        num_tensors, num_notes = reader.count(), reader.count()
        notes = {}
        for _ in range(num_notes):
            name = reader.text()
            notes[name] = reader.value(reader.number("I"))
        heads = []
        for _ in range(num_tensors):
            name = reader.text()
            size = reader.number("I")
            if size > 4:
                raise ValueError(f"{size} dimensions")
            shape = tuple(reader.number("Q") for _ in range(size))[::-1]
            heads.append((name, shape, reader.number("I"), reader.number("Q")))
        aligned = int(notes.get("general.alignment", 32))
        start = -(-reader.at // aligned) * aligned
        return Gguf(path, notes, {n: (shape, kind, start + at) for n, shape, kind, at in heads}, raw)
    except OSError as error:
        raise UserError(describe_error(error) or f"{path} cannot be read ({error.strerror}).") from error
    except (struct.error, ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{path} is a damaged GGUF file ({error}). {AGAIN}") from error


def gguf_config(file: Gguf) -> LlamaConfig:
    """The shape that a file tells. UserError where it is of another kind or needs what is not read."""
    notes, path = file.notes, file.path
    if (kind := notes.get("general.architecture")) != "llama":
        raise UserError(f"{path} is GGUF of the architecture {seen(kind)}, and only llama is read.")
    if notes.get("llama.expert_count"):
        raise UserError(f"{path} is a mixture of experts, which is not read.")
    if "rope_freqs.weight" in file.tensors:
        raise UserError(
            f"{path} scales its rotary positions by a table. Take the folder of safetensors instead."
        )
    scaling = None
    if (kind := notes.get("llama.rope.scaling.type", "none")) == "linear":
        scaling = RopeScaling("linear", float(notes["llama.rope.scaling.factor"]))
    elif kind != "none":
        raise UserError(f"{path} scales its rotary positions by {seen(kind)}, which is not read.")
    try:
        heads, dim = int(notes["llama.attention.head_count"]), int(notes["llama.embedding_length"])
        head_dim = int(notes.get("llama.attention.key_length", dim // heads))
        if notes.get("llama.rope.dimension_count", head_dim) != head_dim:
            raise UserError(f"{path} turns a part of each head only, which is not read.")
        config = LlamaConfig(
            vocab_size=len(notes["tokenizer.ggml.tokens"]),
            dim=dim,
            depth=int(notes["llama.block_count"]),
            num_heads=heads,
            num_kv_heads=int(notes.get("llama.attention.head_count_kv", heads)),
            head_dim=head_dim,
            ff_dim=int(notes["llama.feed_forward_length"]),
            rope_theta=float(notes.get("llama.rope.freq_base", 10_000.0)),
            rope_scaling=scaling,
            eps=float(notes["llama.attention.layer_norm_rms_epsilon"]),
            tied="output.weight" not in file.tensors,
            max_len=int(notes["llama.context_length"]),
        )
        if (
            not 0 < config.depth <= MOST_LAYERS
            or config.num_kv_heads < 1
            or heads % config.num_kv_heads
            or head_dim % 2
        ):
            raise ValueError(f"{heads} heads of {head_dim}, {config.num_kv_heads} of keys")
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} does not describe a network ({type(error).__name__}: {error}). {AGAIN}"
        ) from error
    return config


def names_in_file(config: LlamaConfig) -> dict[str, list[str]]:
    """Name of a weight here -> the tensors of the file that stand below each other in it."""
    names = {"embed": ["token_embd.weight"], "norm": ["output_norm.weight"]}
    if not config.tied:
        names["head"] = ["output.weight"]
    for i in range(config.depth):
        parts = {
            "attn_norm": ["attn_norm"],
            "qkv": ["attn_q", "attn_k", "attn_v"],
            "out": ["attn_output"],
            "ff_norm": ["ffn_norm"],
            "gate_up": ["ffn_gate", "ffn_up"],
            "down": ["ffn_down"],
        }
        names |= {
            f"{i}.{name}": [f"blk.{i}.{part}.weight" for part in found] for name, found in parts.items()
        }
    return names


def load_gguf(file: Gguf, precision: str, exchanged: int = 0) -> Llama:
    """The network of a file. Raises UserError where it is not whole, or does not fit into memory."""
    config, names = gguf_config(file), {}
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    names, shapes = names_in_file(config), config.weight_shapes()
    check_free_memory(config, precision, file.path.name)

    def parts_of(name: str) -> list[Tensor]:
        parts = [file.tensor(part) for part in names[name]]
        rows = sum(part.shape[0] for part in parts if part.dim())
        if (rows, *parts[0].shape[1:]) != shapes[name] or len({part.shape[1:] for part in parts}) > 1:
            found = " + ".join(str(list(part.shape)) for part in parts)
            raise UserError(f"{file.path} has {seen(name)} as {found}, not {list(shapes[name])}. {AGAIN}")
        return [
            _halves(part, heads[kind]) if (kind := title.split(".")[-2]) in heads else part
            for title, part in zip(names[name], parts, strict=True)
        ]

    return build(config, parts_of, precision, file.path, exchanged)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys as rotated by halves; GGUF has the two halves of each head interleaved."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def gguf_tokenizer(file: Gguf) -> PretrainedTokenizer:
    """The tokenizer inside a file. Raises UserError where it is of a kind that is not read."""
    notes, path = file.notes, file.path
    kind, splitter = notes.get("tokenizer.ggml.model"), notes.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or splitter not in SPLITTERS:
        raise UserError(
            f"{path} has a tokenizer of the kind {seen(kind)} that splits as {seen(splitter)}; read are "
            f"gpt2 with {' or '.join(SPLITTERS)}. Take the folder of safetensors "
            "with its tokenizer.json instead."
        )
    parts = [notes.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges")]
    tokens, kinds, merges = (part if isinstance(part, list) else [] for part in parts)
    if not tokens or not merges or len(kinds) > len(tokens):
        raise UserError(f"{path} has no whole tokenizer. {AGAIN}")
    steps: list[dict[str, Any]] = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ]
    if splitter == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    added = [
        {"id": i, "content": tokens[i], "special": kind == CONTROL, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, kind in enumerate(kinds)
        if kind in (CONTROL, ADDED)
    ]
    stored = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [str(merge).split(" ", 1) for merge in merges],
        },
    }
    return PretrainedTokenizer(stored, len(tokens), path)
