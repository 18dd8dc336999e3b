"""The settings of an explanation, declared once as knobs: flags, form and range checks come from them."""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.config import RETRIEVERS
from retro_demo.knobs import check_ranges, knob

MOST_NEIGHBORS = 10  # beyond, a text is read for minutes


@dataclass(frozen=True)
class ExplainConfig:
    """How a finished text is read again to explain it."""

    retrieval: str = knob(
        "on",
        "Neighbors",
        "on: those that are found for each chunk; off: none; shuffled: those of another chunk, drawn at "
        "random from the corpus, as a control.",
        choices=("on", "off", "shuffled"),
        main=True,
    )
    retriever: str = knob(
        "",
        "Retriever",
        "dense, bm25, bm25-words or hybrid; empty means the one of the training.",
        choices=("", *RETRIEVERS),
        main=True,
    )
    num_neighbors: int = knob(
        0,
        "Neighbors read",
        "How many neighbors of each chunk are read; 0 means as many as in training, at most 10. Up to 6 the "
        "text is read with every subset of them, which takes longer with each.",
        low=0,
        high=MOST_NEIGHBORS,
        main=True,
    )
    page: int = knob(
        1,
        "Page",
        "Which stretch of a long text: a run reads as many tokens at a time as in training.",
        low=1,
        high=1_000_000,
        main=True,
    )
    seed: int = knob(0, "Seed", "Which chunks a shuffled reading draws.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
