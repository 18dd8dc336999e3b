"""The settings of documents that are added to a built corpus, and of what documents are worth to a run."""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.config import RETRIEVERS
from retro_demo.knobs import check_ranges, knob


@dataclass(frozen=True)
class AddConfig:
    """How documents join a built corpus; all else is as it was built."""

    fields: str = knob(
        "",
        "Fields",
        "For tables and records (.csv .tsv .parquet .jsonl .json): which column is which, as in "
        "text=body,title=name; empty: as the corpus was built.",
    )
    use: str = knob(
        "",
        "Use",
        "What the new documents are for: training (the database too), database (neighbors only) or held-out "
        "(to measure on). Empty: training, or held out beside a held-out document of the same group or text.",
        choices=("", "training", "database", "held-out"),
        main=True,
    )
    max_megabytes: int = knob(256, "Largest text", "Megabytes of text read at most.", low=1, high=1_000_000)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class WeighConfig:
    """How it is measured what documents are worth to a run."""

    retriever: str = knob(
        "",
        "Retriever",
        "dense, bm25, bm25-words or hybrid; empty means the one of the training.",
        choices=("", *RETRIEVERS),
    )
    num_neighbors: int = knob(
        0, "Neighbors", "Neighbors of each chunk; 0 means as many as in training.", low=0, high=100
    )
    max_tokens: int = knob(
        8192,
        "Tokens",
        "About how many tokens are read at most: of the text, or of held-out text that reads one of the "
        "documents.",
        low=100,
        high=10**9,
        main=True,
    )
    rows: int = knob(20, "Rows", "How many tokens are listed: those that lose most.", low=1, high=1000)
    seed: int = knob(0, "Seed", "In which order held-out text is read.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
