"""Every setting of the project, declared once, as frozen dataclasses of knobs.

A saved config is the dataclass as JSON. This module knows nothing of files, torch or widgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retro_demo.errors import UserError
from retro_demo.knobs import check_ranges, from_json, knob, knobs, to_json

__all__ = [
    "PRESETS",
    "CorpusConfig",
    "GenerateConfig",
    "RetroConfig",
    "TrainConfig",
    "from_json",
    "knobs",
    "to_json",
]


@dataclass(frozen=True)
class CorpusConfig:
    """How documents become chunks, vectors and neighbors."""

    chunk_len: int = knob(
        64,
        "Chunk length",
        "Tokens in a chunk (m in the paper, which uses 64).",
        low=4,
        high=512,
        main=True,
    )
    holdout: float = knob(
        0.15,
        "Held out",
        "Share of the groups of documents kept out of training and of the index, to measure on.",
        low=0.0,
        high=0.5,
        main=True,
    )
    embedder: str = knob(
        "static",
        "Embedder",
        "What turns a chunk into a vector: static (a small table, fast), minilm (the frozen transformer), "
        "minilm:FOLDER, or st:NAME for a sentence-transformers model.",
        main=True,
    )
    tokenizer: str = knob(
        "train",
        "Tokenizer",
        "train: a byte-level BPE of this corpus' own; factbook: the one of the shipped sample; "
        "or a tokenizer.json.",
    )
    vocab_size: int = knob(4096, "Vocabulary", "Tokens of a newly trained tokenizer.", low=300, high=65_536)
    num_neighbors: int = knob(
        10,
        "Stored neighbors",
        "Neighbors stored for each chunk; a run uses the first few.",
        low=1,
        high=100,
    )
    window: int = knob(
        4,
        "Exclusion window",
        "Only where one document was split into sections: chunks this near to a query are never "
        "its neighbors.",
        low=1,
        high=1000,
    )
    fields: str = knob(
        "",
        "Fields",
        "For .csv and .jsonl: which column is which, as in text=body,title=name "
        "(ours: id, title, lang, text, group).",
    )
    seed: int = knob(0, "Seed", "Which groups are held out.", low=0, high=2**31 - 1)
    max_megabytes: int = knob(256, "Largest text", "Megabytes of text read at most.", low=1, high=1_000_000)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class RetroConfig:
    """The shape of a RETRO network. Without `cca_layers` it is a plain decoder: the matched `lm`."""

    vocab_size: int = knob(4096, "Vocabulary", "Tokens.", low=4, high=1_000_000, derived=True)
    chunk_len: int = knob(64, "Chunk length", "Tokens in a chunk (m).", low=1, high=512, derived=True)
    pad_id: int = knob(0, "Padding", "Token that stands for nothing.", low=0, high=1_000_000, derived=True)
    dim: int = knob(128, "Width", "Width of the decoder (d).", low=8, high=8192)
    depth: int = knob(4, "Layers", "Decoder layers.", low=1, high=128)
    num_heads: int = knob(4, "Heads", "Attention heads; they divide both widths.", low=1, high=128)
    cca_layers: tuple[int, ...] = knob(
        (2, 4),
        "Layers with retrieval",
        "Decoder layers with chunked cross-attention, counted from 1 (P in the paper).",
        low=1,
        high=128,
    )
    enc_dim: int = knob(128, "Encoder width", "Width of the neighbor encoder (d').", low=8, high=8192)
    enc_depth: int = knob(1, "Encoder layers", "Layers of the neighbor encoder.", low=1, high=32)
    enc_cross_layers: tuple[int, ...] = knob(
        (1,),
        "Encoder layers that see the chunk",
        "Encoder layers that attend to the chunk, counted from 1 (P_enc in the paper).",
        low=1,
        high=32,
    )
    ff_mult: int = knob(
        4, "Feed-forward factor", "Width of the feed-forward layers over the width.", low=1, high=16
    )
    dropout: float = knob(0.0, "Dropout", "Share of activations dropped in training.", low=0.0, high=0.9)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, width in (("dim", self.dim), ("enc_dim", self.enc_dim)):
            if width % (2 * self.num_heads):
                raise UserError(
                    f"{name} is {width}, which {self.num_heads} heads do not divide into even parts. "
                    f"Choose a multiple of {2 * self.num_heads}."
                )
        for name, layers, depth in (
            ("cca_layers", self.cca_layers, self.depth),
            ("enc_cross_layers", self.enc_cross_layers, self.enc_depth),
        ):
            if layers and max(layers) > depth:
                raise UserError(f"{name} names layer {max(layers)}, but there are only {depth}.")

    @property
    def neighbor_len(self) -> int:
        """Tokens of a neighbor with its continuation (r = 2m)."""
        return 2 * self.chunk_len


@dataclass(frozen=True)
class TrainConfig:
    """How a run is trained."""

    steps: int = knob(300, "Steps", "Optimizer steps of the whole run.", low=1, high=10_000_000, main=True)
    batch_size: int = knob(4, "Batch", "Sequences in a step.", low=1, high=4096)
    seq_len: int = knob(
        256, "Context", "Tokens in a sequence: a multiple of the chunk length.", low=8, high=65_536
    )
    num_neighbors: int = knob(
        2, "Neighbors", "Neighbors of each chunk (k in the paper).", low=1, high=100, main=True
    )
    lr: float = knob(
        4e-3,
        "Learning rate",
        "Largest learning rate, after the warm-up.",
        low=1e-7,
        high=1.0,
        main=True,
    )
    warmup: int = knob(50, "Warm-up", "Steps until the learning rate is full.", low=0, high=100_000)
    weight_decay: float = knob(0.1, "Weight decay", "AdamW's decay of matrices.", low=0.0, high=10.0)
    clip: float = knob(1.0, "Clipping", "Largest norm of the gradient.", low=1e-3, high=1e6)
    seed: int = knob(
        0,
        "Seed",
        "Of the weights, of dropout and of the order of the batches.",
        low=0,
        high=2**31 - 1,
        main=True,
    )
    eval_every: int = knob(
        100,
        "Measure every",
        "Steps between two measurements on held-out documents.",
        low=1,
        high=1_000_000,
    )
    eval_tokens: int = knob(
        20_000,
        "Held-out tokens",
        "About how many held-out tokens a measurement reads.",
        low=100,
        high=10**9,
    )
    save_every: int = knob(
        50, "Save every", "Steps between two saves: what a kill can cost.", low=1, high=1_000_000
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class GenerateConfig:
    """How text is written."""

    max_new_tokens: int = knob(128, "New tokens", "Tokens to write at most.", low=1, high=65_536, main=True)
    temperature: float = knob(
        0.8,
        "Temperature",
        "0 takes the likeliest token, 1 samples as the model says.",
        low=0.0,
        high=10.0,
        main=True,
    )
    top_k: int = knob(0, "Top k", "Sample among the k likeliest tokens; 0 means all.", low=0, high=1_000_000)
    top_p: float = knob(
        0.95,
        "Top p",
        "Sample among the likeliest tokens that hold this share together.",
        low=0.0,
        high=1.0,
        main=True,
    )
    seed: int = knob(7, "Seed", "The same seed writes the same text.", low=0, high=2**31 - 1, main=True)
    retrieval: str = knob(
        "on",
        "Retrieval",
        "on: neighbors at each chunk border; off: none.",
        choices=("on", "off"),
        main=True,
    )
    num_neighbors: int = knob(
        0, "Neighbors", "Neighbors of each chunk; 0 means as many as in training.", low=0, high=100
    )
    stop: str = knob("", "Stop at", "Writing ends once this text has appeared; empty means never.")

    def __post_init__(self) -> None:
        check_ranges(self)


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "dim": 192,
        "depth": 6,
        "num_heads": 6,
        "cca_layers": (3, 6),
        "enc_dim": 192,
        "steps": 4500,
        "lr": 1.5e-3,
        "warmup": 200,
        "eval_every": 500,
        "save_every": 200,
    },
    "base": {
        "dim": 512,
        "depth": 12,
        "num_heads": 8,
        "cca_layers": (6, 9, 12),
        "enc_dim": 512,
        "enc_depth": 2,
        "batch_size": 32,
        "seq_len": 512,
        "steps": 20_000,
        "lr": 6e-4,
        "warmup": 500,
        "eval_every": 500,
        "eval_tokens": 100_000,
        "save_every": 500,
    },
}
"""Named settings of RetroConfig and TrainConfig: tiny takes about two minutes on two CPU cores,
small about an hour, base wants a GPU."""
