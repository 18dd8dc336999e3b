"""Every setting of the project, declared once, as frozen dataclasses of knobs.

A saved config is the dataclass as JSON. This module knows nothing of files, torch or widgets.
"""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.errors import UserError
from retro_demo.knobs import check_ranges, from_json, knob, knobs, to_json

__all__ = [
    "RETRIEVERS",
    "CorpusConfig",
    "GenerateConfig",
    "TrainConfig",
    "from_json",
    "knobs",
    "to_json",
]


RETRIEVERS = ("dense", "bm25", "bm25-words", "hybrid")
"""How neighbors are found: by embeddings, by BM25 over token ids or words, or by both."""


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
        "Share of the groups of documents kept out of training and of the index, to measure on. The usual "
        "0.15 holds out at least 6 of 20 groups or more; another share is taken as it is.",
        low=0.0,
        high=0.5,
        main=True,
    )
    embedder: str = knob(
        "static",
        "Embedder",
        "What turns a chunk into a vector: static (a small table, fast), minilm (the frozen transformer). "
        "The command line takes minilm:FOLDER and st:NAME (a sentence-transformers model), too.",
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
        "For tables and records (.csv .tsv .parquet .jsonl .json): which column is which, as in "
        "text=body,title=name (ours: id, title, lang, text, group, use); a name with a comma in quotes: "
        'text="Body, English".',
    )
    seed: int = knob(0, "Seed", "Which groups are held out.", low=0, high=2**31 - 1)
    max_megabytes: int = knob(256, "Largest text", "Megabytes of text read at most.", low=1, high=1_000_000)

    def __post_init__(self) -> None:
        check_ranges(self)


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
    retriever: str = knob(
        "dense",
        "Retriever",
        "dense: nearest embeddings; bm25: shared tokens, the rarer the better; bm25-words: shared words; "
        "hybrid: dense candidates in the order of BM25.",
        choices=RETRIEVERS,
        main=True,
    )
    reading: float = knob(
        0.0,
        "Reading lessons",
        "Share of the steps over which neighbors that hold the true continuation, moved and partly "
        "overwritten, fade out: they teach the network to read. For MARGE: evidence that is a partly "
        "overwritten copy of the target.",
        low=0.0,
        high=1.0,
    )
    lessons_kept: float = knob(
        0.0,
        "Lessons kept",
        "Share of the chunks (targets of MARGE) that get one to the very end, lest reading be forgotten.",
        low=0.0,
        high=1.0,
    )
    noise: float = knob(
        0.0,
        "Noisy neighbors",
        "Share of the neighbors in training that are random chunks instead, so that the network learns "
        "to doubt.",
        low=0.0,
        high=1.0,
    )
    neighbor_source: str = knob(
        "retrieved",
        "Neighbors from",
        "retrieved: what the retriever finds; random: random chunks throughout, the control that has the "
        "same network and work but no content.",
        choices=("retrieved", "random"),
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
    precision: str = knob(
        "float32",
        "Precision",
        "Of the matrix products in training: bfloat16 is for GPUs that have it; weights, norms and loss stay "
        "in float32, and measurements too.",
        choices=("float32", "bfloat16"),
    )
    sharded: bool = knob(
        False,
        "Shard the weights",
        "Where several processes train the run together: each keeps a part of weights and optimizer state, "
        "for a network that is too large for one GPU.",
    )
    compile: bool = knob(
        False,
        "Compile",
        "Training steps are compiled first, which takes from half a minute to some minutes each time that a "
        "run starts or goes on: for long runs on GPUs. On CPUs a step gains about a tenth.",
    )
    keep: str = knob(
        "last",
        "Weights to use",
        "Which of its saves a run writes, is measured, explained and exported with: the last one, or the one "
        "with the best held-out loss, which is kept beside it. It can be changed at any time; training goes "
        "on from the last one.",
        choices=("last", "best"),
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.compile and self.sharded:
            raise UserError(
                "compile and sharded are both on, but sharded weights are not compiled: leave one.",
                compile="",
                sharded="",
            )


@dataclass(frozen=True)
class GenerateConfig:
    """How text is written."""

    max_new_tokens: int = knob(128, "New tokens", "Tokens to write at most.", low=1, high=65_536, main=True)
    temperature: float = knob(
        0.6,
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
        "on: neighbors at each chunk border (MARGE: evidence for the passage); off: none; shuffled: those of "
        "another chunk (MARGE: as many passages), drawn at random from the corpus, as a control.",
        choices=("on", "off", "shuffled"),
        main=True,
    )
    retriever: str = knob(
        "",
        "Retriever",
        "dense, bm25, bm25-words or hybrid; empty means the one of the training.",
        choices=("", *RETRIEVERS),
    )
    num_neighbors: int = knob(
        0,
        "Neighbors",
        "Neighbors of each chunk (MARGE: pieces of evidence for the text); 0 means as many as in training.",
        low=0,
        high=100,
    )
    stop: str = knob("", "Stop at", "Writing ends once this text has appeared; empty means never.")

    def __post_init__(self) -> None:
        check_ranges(self)
