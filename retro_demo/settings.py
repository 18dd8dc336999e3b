"""Settings of corpora, training, generation, evaluation, explanation and changes, each declared once.

A setting is a field of a frozen dataclass with its label, range and help in the
metadata. The command line, the forms of the page, the range checks and docs/settings.md all read these. A
saved config is the dataclass as JSON. This module knows nothing of files, torch or widgets. Elsewhere are
host and port (ui/serve.py), networks (models/config.py) and limits of visitors (server/limits.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from retro_demo.errors import UserError

Config = TypeVar("Config")
SEEDS = (0, 2**31 - 1)


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    within: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    main: bool = False,
    derived: bool = False,
) -> Any:
    """A dataclass field that people can set; of numbers `within` is the lowest and the highest.

    `main` settings stand in view on a form, the others under "All settings"; a `derived` one follows from
    something else (the vocabulary from the tokenizer, say) and is offered nowhere.
    """
    low, high = within or (None, None)
    said = {"label": label, "help": help, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata={**said, "main": main, "derived": derived})


def settings_of(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a config (class or instance) that people can set, in order."""
    return [f for f in dataclasses.fields(config) if "label" in f.metadata and not f.metadata["derived"]]


def check_ranges(config: Any) -> None:
    """Refuse a value of the wrong kind or outside its range, whichever door it came by."""
    for setting_field in dataclasses.fields(config):
        if "label" not in setting_field.metadata:
            continue
        name, meta, value = setting_field.name, setting_field.metadata, getattr(config, setting_field.name)
        if not _same_kind(value, setting_field.default):
            kind = {int: "a whole number", float: "a number", tuple: "a list of whole numbers"}
            wanted = kind.get(type(setting_field.default), type(setting_field.default).__name__)
            raise UserError(f"{name} is {seen(value)}, but it must be {wanted}.", **{name: meta["label"]})
        if meta["choices"] and value not in meta["choices"]:
            choices = ", ".join(filter(None, meta["choices"]))
            raise UserError(f"{name} is {seen(value)}; choose one of {choices}.", **{name: meta["label"]})
        for number in value if isinstance(value, tuple) else (value,):
            low, high = meta["low"], meta["high"]
            outside = (low is not None and number < low) or (high is not None and number > high)
            if outside or (isinstance(number, float) and not math.isfinite(number)):
                said = f"{name} is {seen(number)}; it must lie between {low} and {high}."
                raise UserError(said, **{name: meta["label"]})


class Settings:
    """A config whose values are checked whenever one is made."""

    def __post_init__(self) -> None:
        check_ranges(self)


def seen(value: Any) -> str:
    """A value as an error names it: strangers' values can be long."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def whole(value: Any, name: str) -> int:
    """A whole number from a form or from JSON, where 8.0 means 8; raises UserError for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not int:
        raise UserError(f"{name} is {seen(value)}, but it must be a whole number.")
    return value


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """The config of class `kind` with these values; raises UserError for unknown names or values."""
    if not isinstance(values, Mapping):
        raise UserError(f"{kind.__name__} is {seen(values)}, but it must be an object with its settings.")
    names = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(values) - names):
        raise UserError(
            f"{kind.__name__} has no setting {seen(', '.join(unknown))}; it has {', '.join(sorted(names))}."
        )
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )


RETRIEVERS = ("dense", "bm25", "bm25-words", "bm25-titles", "hybrid")
"""How neighbors are found: by embeddings, by BM25 over token ids, words, or words and titles, or by both."""


def another_retriever(*, main: bool = False) -> Any:
    """The setting of those who may read through another retriever than in training."""
    said = "dense, bm25, bm25-words, bm25-titles or hybrid; empty means the one of the training."
    return setting("", "Retriever", said, choices=("", *RETRIEVERS), main=main)


AUTO = "auto"
"""The embedder that a build chooses by what it measures."""


@dataclass(frozen=True)
class CorpusConfig(Settings):
    """How documents become chunks, vectors and neighbors."""

    chunk_len: int = setting(
        64, "Chunk length", "Tokens in a chunk (m in the paper, which uses 64).", within=(4, 512), main=True
    )
    holdout: float = setting(
        0.15,
        "Held out",
        "Share of the groups of documents kept out of training and of the index, to measure on. The usual "
        "0.15 holds out at least 6 of 20 groups or more; another share is taken as it is.",
        within=(0.0, 0.5),
        main=True,
    )
    embedder: str = setting(
        AUTO,
        "Embedder",
        "What turns a chunk into a vector: static (a small table, fast), words (words and their parts, for "
        "every script), minilm (the frozen transformer); auto takes static, or words where static does "
        "not know a fifth of the text. The command line takes minilm:FOLDER and st:NAME (a "
        "sentence-transformers model), too.",
        main=True,
    )
    tokenizer: str = setting(
        "train",
        "Tokenizer",
        "train: a byte-level BPE of this corpus' own; factbook: the one of the World Factbook samples; "
        "or a tokenizer.json.",
    )
    vocab_size: int = setting(
        4096, "Vocabulary", "Tokens of a newly trained tokenizer.", within=(300, 65_536)
    )
    num_neighbors: int = setting(
        10, "Stored neighbors", "Neighbors stored for each chunk; a run uses the first few.", within=(1, 100)
    )
    window: int = setting(
        4,
        "Exclusion window",
        "Only where one document was split into sections: chunks this near to a query are never "
        "its neighbors.",
        within=(1, 1000),
    )
    fields: str = setting(
        "",
        "Fields",
        "For tables and records (.csv .tsv .parquet .jsonl .json): which column is which, as in "
        "text=body,title=name (ours: id, title, lang, text, group, use); a name with a comma in quotes: "
        'text="Body, English".',
    )
    seed: int = setting(0, "Seed", "Which groups are held out.", within=SEEDS)
    max_megabytes: int = setting(
        256, "Largest text", "Megabytes of text read at most.", within=(1, 1_000_000)
    )


@dataclass(frozen=True)
class TrainConfig:
    """How a run is trained."""

    steps: int = setting(300, "Steps", "Optimizer steps of the whole run.", within=(1, 10_000_000), main=True)
    batch_size: int = setting(4, "Batch", "Sequences in a step.", within=(1, 4096))
    seq_len: int = setting(
        256, "Context", "Tokens in a sequence: a multiple of the chunk length.", within=(8, 65_536)
    )
    num_neighbors: int = setting(
        2, "Neighbors", "Neighbors of each chunk (k in the paper).", within=(1, 100), main=True
    )
    retriever: str = setting(
        "dense",
        "Retriever",
        "dense: nearest embeddings; bm25: shared tokens, the rarer the better; bm25-words: shared words; "
        "bm25-titles: shared words, labels and titles; hybrid: dense candidates in the order of BM25.",
        choices=RETRIEVERS,
        main=True,
    )
    query_tokens: int = setting(
        0,
        "Query",
        "How many tokens at the end of a chunk are searched for; 0 means all of it.",
        within=(0, 4096),
    )
    reading: float = setting(
        0.0,
        "Reading lessons",
        "Share of the steps over which neighbors that hold the true continuation, moved and partly "
        "overwritten, fade out: they teach the network to read. For MARGE: evidence that is a partly "
        "overwritten copy of the target.",
        within=(0.0, 1.0),
    )
    lessons_kept: float = setting(
        0.0,
        "Lessons kept",
        "Share of the chunks (targets of MARGE) that get one to the very end, lest reading be forgotten.",
        within=(0.0, 1.0),
    )
    noise: float = setting(
        0.0,
        "Noisy neighbors",
        "Share of the neighbors in training that are random chunks instead, so that the network learns "
        "to doubt.",
        within=(0.0, 1.0),
    )
    neighbor_source: str = setting(
        "retrieved",
        "Neighbors from",
        "retrieved: what the retriever finds; random: random chunks throughout, the control that has the "
        "same network and work but no content.",
        choices=("retrieved", "random"),
    )
    lr: float = setting(
        4e-3, "Learning rate", "Largest learning rate, after the warm-up.", within=(1e-7, 1.0), main=True
    )
    warmup: int = setting(50, "Warm-up", "Steps until the learning rate is full.", within=(0, 100_000))
    weight_decay: float = setting(0.1, "Weight decay", "AdamW's decay of matrices.", within=(0.0, 10.0))
    clip: float = setting(1.0, "Clipping", "Largest norm of the gradient.", within=(1e-3, 1e6))
    seed: int = setting(0, "Seed", "Seeds the weights, dropout and batch order.", within=SEEDS, main=True)
    eval_every: int = setting(
        100, "Measure every", "Steps between two measurements on held-out documents.", within=(1, 1_000_000)
    )
    eval_tokens: int = setting(
        20_000, "Held-out tokens", "About how many held-out tokens a measurement reads.", within=(100, 10**9)
    )
    save_every: int = setting(
        50, "Save every", "Steps between two saves: what a kill can cost.", within=(1, 1_000_000)
    )
    precision: str = setting(
        "float32",
        "Precision",
        "Of the matrix products in training: bfloat16 is for GPUs that have it; weights, norms and loss stay "
        "in float32, and measurements too.",
        choices=("float32", "bfloat16"),
    )
    sharded: bool = setting(
        False,
        "Shard the weights",
        "Where several processes train the run together: each keeps a part of weights and optimizer state, "
        "for a network that is too large for one GPU.",
    )
    compile: bool = setting(
        False,
        "Compile",
        "Training steps are compiled first, which takes from half a minute to some minutes each time that a "
        "run starts or goes on: for long runs on GPUs. On CPUs a step gains about a tenth.",
    )
    keep: str = setting(
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
class GenerateConfig(Settings):
    """How text is written."""

    max_new_tokens: int = setting(
        128, "New tokens", "Tokens to write at most.", within=(1, 65_536), main=True
    )
    temperature: float = setting(
        0.6,
        "Temperature",
        "0 takes the likeliest token, 1 samples as the model says.",
        within=(0.0, 10.0),
        main=True,
    )
    top_k: int = setting(
        0, "Top k", "Sample among the k likeliest tokens; 0 means all.", within=(0, 1_000_000)
    )
    top_p: float = setting(
        0.95,
        "Top p",
        "Sample among the likeliest tokens that hold this share together.",
        within=(0.0, 1.0),
        main=True,
    )
    seed: int = setting(
        7,
        "Seed",
        "The same seed writes the same text. Where nothing else was changed, Generate on the page takes the "
        "next one.",
        within=SEEDS,
        main=True,
    )
    retrieval: str = setting(
        "on",
        "Retrieval",
        "on: neighbors at each chunk border (MARGE: evidence for the passage); off: none; shuffled: those of "
        "another chunk (MARGE: as many passages), drawn at random from the corpus, as a control.",
        choices=("on", "off", "shuffled"),
        main=True,
    )
    retriever: str = another_retriever()
    num_neighbors: int = setting(
        0,
        "Neighbors",
        "Neighbors of each chunk (MARGE: pieces of evidence for the text); 0 means as many as in training.",
        within=(0, 100),
    )
    query_tokens: int = setting(
        0,
        "Query",
        "How many tokens at the end of what is written are searched for; 0 means as many as in training.",
        within=(0, 4096),
    )
    title: str = setting(
        "",
        "Title",
        "What the text is about: bm25-titles searches for it, too. Empty means the first line of the prompt.",
    )
    stop: str = setting("", "Stop at", "Writing ends once this text has appeared; empty means never.")


GROWTH = 3  # each round reads so many times the tokens of the one before


@dataclass(frozen=True)
class EvaluateConfig:
    """How a run is measured against its controls."""

    max_tokens: int = setting(
        60_000,
        "Tokens",
        "Held-out tokens to read, rounded up to whole windows (a MARGE: passages); 0 means all. More tokens "
        "make the intervals narrower.",
        within=(0, 10**9),
        main=True,
    )
    first_tokens: int = setting(
        8_000,
        "Tokens of the first verdict",
        "The first verdict stands on so many held-out tokens; each later round reads three times as many.",
        within=(100, 10**9),
    )
    num_neighbors: int = setting(
        0,
        "Neighbors",
        "Neighbors of each chunk (k); 0 means as many as in training.",
        within=(0, 100),
        main=True,
    )
    retrievers: str = setting(
        "dense, bm25",
        "Retrievers to compare",
        f"Each is an arm of its own, any of {', '.join(RETRIEVERS)}; empty: only the run's own.",
    )
    corruption: tuple[int, ...] = setting(
        (0, 20, 50),
        "Oracle corruption",
        "Percent of the tokens overwritten in the oracle arms, where the best neighbor is the chunk itself "
        "with its true continuation.",
        within=(0, 100),
    )
    prepend: str = setting(
        "on",
        "Prepend arm",
        "on: also put the neighbors in front of the text that the matched baseline reads or, of a run with a "
        "pretrained base, its base (which is read by kNN-LM, too). It is slow: each chunk is read by itself.",
        choices=("on", "off"),
    )
    database_sizes: tuple[int, ...] = setting(
        (),
        "Database sizes",
        "Percent of the database's documents to search in, such as 1, 5, 20, 100, on the tokens of the "
        "first verdict; empty: not measured.",
        within=(1, 100),
        main=True,
    )
    neighbor_counts: tuple[int, ...] = setting(
        (),
        "Numbers of neighbors",
        "Values of k to compare, such as 1, 2, 4, 10, on the tokens of the first verdict; empty: not "
        "measured.",
        within=(1, 100),
        main=True,
    )
    resamples: int = setting(
        2000, "Resamples", "Draws of the bootstrap over documents.", within=(200, 100_000)
    )
    batch_size: int = setting(8, "Batch", "Sequences read at once; it changes no figure.", within=(1, 4096))
    seed: int = setting(
        0,
        "Seed",
        "Of the order of the documents, of random and shuffled neighbors and of the bootstrap.",
        within=SEEDS,
        main=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in self.retriever_names():
            if name not in RETRIEVERS:
                raise UserError(
                    f"There is no retriever {name!r} to compare; choose any of {', '.join(RETRIEVERS)}."
                )

    def retriever_names(self) -> list[str]:
        """The retrievers to compare, each once."""
        return list(dict.fromkeys(part.strip() for part in self.retrievers.split(",") if part.strip()))

    def rounds(self, available: int) -> list[int]:
        """Tokens read by the end of each round, the last one all that are wanted of those available."""
        wanted = min(self.max_tokens or available, available)
        rounds, tokens = [], self.first_tokens
        while tokens * 2 < wanted:  # a last round that adds little would cost more than it tells
            rounds.append(tokens)
            tokens *= GROWTH
        return [*rounds, wanted]


MOST_NEIGHBORS = 10  # beyond, a text is read for minutes


@dataclass(frozen=True)
class ExplainConfig(Settings):
    """How a finished text is read again to explain it."""

    retrieval: str = setting(
        "on",
        "Neighbors",
        "on: those that are found for each chunk; off: none; shuffled: those of another chunk, drawn at "
        "random from the corpus, as a control.",
        choices=("on", "off", "shuffled"),
        main=True,
    )
    retriever: str = another_retriever(main=True)
    num_neighbors: int = setting(
        0,
        "Neighbors read",
        "How many neighbors of each chunk are read; 0 means as many as in training, at most 10. Up to 6 the "
        "text is read with every subset of them, which takes longer with each.",
        within=(0, MOST_NEIGHBORS),
        main=True,
    )
    page: int = setting(
        1,
        "Page",
        "Which stretch of a long text: a run reads as many tokens at a time as in training.",
        within=(1, 1_000_000),
        main=True,
    )
    seed: int = setting(0, "Seed", "Which chunks a shuffled reading draws.", within=SEEDS)


@dataclass(frozen=True)
class AddConfig(Settings):
    """How documents join a built corpus; all else is as it was built."""

    fields: str = setting(
        "",
        "Fields",
        "For tables and records (.csv .tsv .parquet .jsonl .json): which column is which, as in "
        "text=body,title=name; empty: as the corpus was built.",
    )
    use: str = setting(
        "",
        "Use",
        "What the new documents are for: training (the database too), database (neighbors only) or held-out "
        "(to measure on). Empty: training, or held out beside a held-out document of the same group or text.",
        choices=("", "training", "database", "held-out"),
        main=True,
    )
    max_megabytes: int = setting(
        256, "Largest text", "Megabytes of text read at most.", within=(1, 1_000_000)
    )


@dataclass(frozen=True)
class WeighConfig(Settings):
    """How it is measured what documents are worth to a run."""

    retriever: str = another_retriever()
    num_neighbors: int = setting(
        0, "Neighbors", "Neighbors of each chunk; 0 means as many as in training.", within=(0, 100)
    )
    max_tokens: int = setting(
        8192,
        "Tokens",
        "About how many tokens are read at most: of the text, or of held-out text that reads one of the "
        "documents.",
        within=(100, 10**9),
        main=True,
    )
    rows: int = setting(20, "Rows", "How many tokens are listed: those that lose most.", within=(1, 1000))
    seed: int = setting(0, "Seed", "In which order held-out text is read.", within=SEEDS)


@dataclass(frozen=True)
class OriginsConfig(Settings):
    """Which stretches of a text count as standing in the corpus (OLMoTrace: 10 times, 0.05 spans a token)."""

    least_words: int = setting(
        5,
        "Words of a span",
        "A stretch of fewer words is left out. In scripts without spaces a word is a character.",
        within=(1, 1000),
        main=True,
    )
    max_frequency: int = setting(
        10, "Times at most", "A stretch that the corpus holds more often is left out.", within=(1, 10_000)
    )
    max_density: float = setting(
        0.05, "Spans a word", "So many spans for each word of the text are kept, the longest.", within=(0, 1)
    )
    max_documents: int = setting(
        10, "Documents of a span", "So many documents are listed for each span.", within=(1, 100)
    )
