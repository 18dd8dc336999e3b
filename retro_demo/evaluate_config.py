"""The settings of an evaluation, declared once as knobs: flags, form and range checks come from them."""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.config import RETRIEVERS
from retro_demo.errors import UserError
from retro_demo.knobs import check_ranges, knob

GROWTH = 3  # each round reads so many times the tokens of the one before


@dataclass(frozen=True)
class EvaluateConfig:
    """How a run is measured against its controls."""

    max_tokens: int = knob(
        60_000,
        "Tokens",
        "Held-out tokens to read, rounded up to whole windows (a MARGE: passages); 0 means all. More tokens "
        "make the intervals narrower.",
        low=0,
        high=10**9,
        main=True,
    )
    first_tokens: int = knob(
        8_000,
        "Tokens of the first verdict",
        "The first verdict stands on so many held-out tokens; each later round reads three times as many.",
        low=100,
        high=10**9,
    )
    num_neighbors: int = knob(
        0,
        "Neighbors",
        "Neighbors of each chunk (k); 0 means as many as in training.",
        low=0,
        high=100,
        main=True,
    )
    retrievers: str = knob(
        "dense, bm25",
        "Retrievers to compare",
        f"Each is an arm of its own, any of {', '.join(RETRIEVERS)}; empty: only the run's own.",
    )
    corruption: tuple[int, ...] = knob(
        (0, 20, 50),
        "Oracle corruption",
        "Percent of the tokens overwritten in the oracle arms, where the best neighbor is the chunk itself "
        "with its true continuation.",
        low=0,
        high=100,
    )
    prepend: str = knob(
        "on",
        "Prepend arm",
        "on: also put the neighbors in front of the text that the matched baseline reads. It is slow: each "
        "chunk is read by itself.",
        choices=("on", "off"),
    )
    database_sizes: tuple[int, ...] = knob(
        (),
        "Database sizes",
        "Percent of the database's documents to search in, such as 1, 5, 20, 100, on the tokens of the "
        "first verdict; empty: not measured.",
        low=1,
        high=100,
        main=True,
    )
    neighbor_counts: tuple[int, ...] = knob(
        (),
        "Numbers of neighbors",
        "Values of k to compare, such as 1, 2, 4, 10, on the tokens of the first verdict; empty: not "
        "measured.",
        low=1,
        high=100,
        main=True,
    )
    resamples: int = knob(2000, "Resamples", "Draws of the bootstrap over documents.", low=200, high=100_000)
    batch_size: int = knob(8, "Batch", "Sequences read at once; it changes no figure.", low=1, high=4096)
    seed: int = knob(
        0,
        "Seed",
        "Of the order of the documents, of random and shuffled neighbors and of the bootstrap.",
        low=0,
        high=2**31 - 1,
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
