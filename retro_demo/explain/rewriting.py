"""A written text written anew from where an edited neighbor is read, and how much of a text is copied.

What a run writes with an edit is a text as any other: what stands before the neighbor's readers stays, and
from there on the run draws with the same seed and looks up as it would. This module knows loaded runs and
traces; it does not know whose they are or how they are shown.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retro_demo.evaluation.copied_text import LONG, copied_spans
from retro_demo.events import Retrieved
from retro_demo.explain.edits import neighbor_texts
from retro_demo.explain.text import Writing, add_bm25, look_up, title_of, watch_growing, with_origin
from retro_demo.explain.tracing import Trace, trace
from retro_demo.generation.retro import go_on, write
from retro_demo.generation.sampling import Written
from retro_demo.runs.loading import LoadedRun
from retro_demo.settings import GenerateConfig

OF_THE_READING = ("tokens", "pieces")  # of a neighbor, which a trace adds to what was found
STALE = ("off", "provenance", "seconds", "search_times", "search_ms", "tokens_per_second", "edited", "again")


@dataclass(frozen=True)
class EditedRow:
    """What is read in place of a neighbor: row (R,), with its title in front where the model reads titles;
    `other` describes another chunk of the corpus that it is, None for words that somebody wrote."""

    chunk: int
    neighbor: int
    row: np.ndarray
    other: dict[str, Any] | None = None


def is_written(shown: Trace) -> bool:
    """Whether a run wrote this text on from a prompt, so that it can write it anew."""
    return "written_with" in shown.about


def left_to_write(shown: Trace, chunk: int) -> int:
    """How many tokens would be written anew if a neighbor of this chunk changed; 0 for a given text."""
    if not is_written(shown):
        return 0
    written = (chunk + 1) * shown.chunk_len - shown.prompt_tokens
    return max(0, settings_of_text(shown).max_new_tokens - written)


def settings_of_text(shown: Trace) -> GenerateConfig:
    """The settings that a text was written with."""
    return GenerateConfig(**shown.about["written_with"])


def write_anew(run: LoadedRun, shown: Trace, edit: EditedRow, stop: Callable[[], bool]) -> Iterator[Writing]:
    """Yield a text with an edited neighbor as it grows, and at last with its trace.

    There must be something left to write, see `left_to_write`; a prompt that stands past the neighbor's
    readers stays.
    """
    chunk_len, config = shown.chunk_len, settings_of_text(shown)
    border = max((edit.chunk + 1) * chunk_len, shown.prompt_tokens)
    chunks = border // chunk_len
    rows = shown.rows[:chunks].copy()
    rows[edit.chunk, edit.neighbor] = edit.row
    old = [
        Retrieved(number, [_found(one) for one in found], 0.0)
        for number, found in enumerate(shown.neighbors[:chunks])
    ]
    if edit.other is not None:
        old[edit.chunk].neighbors[edit.neighbor] = dict(edit.other)
    ids = shown.ids[:border]
    most = config.max_new_tokens - (border - shown.prompt_tokens)
    so_far = Written(ids, shown.prompt_tokens, shown.probabilities[: border - shown.prompt_tokens], old)
    begun = time.perf_counter()
    events = go_on(run, str(shown.about["prompt"]), list(ids), most, config, rows)
    seconds = yield from watch_growing(run, so_far, events, config.max_new_tokens, stop)
    made = _trace(run, shown, so_far, edit, rows)
    made.about["seconds"] = round(seconds, 3)
    made = with_origin(made, run, config, begun)
    # no command line takes an edit: /explain does, with what is said here
    made.about["provenance"] |= {"command": "", "edited": made.about["edited"]}
    yield Writing(
        made.pieces,
        shown.prompt_tokens,
        chunk_len,
        so_far.retrieved,
        seconds,
        made,
        config.max_new_tokens,
    )


def _found(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in OF_THE_READING}


def _trace(run: LoadedRun, shown: Trace, so_far: Written, edit: EditedRow, rows: np.ndarray) -> Trace:
    """The trace of what was written with an edited neighbor."""
    assert run.database is not None
    config, chunk_len = settings_of_text(shown), shown.chunk_len
    place = so_far.retrieved[edit.chunk].neighbors[edit.neighbor]
    n_text, f_text = neighbor_texts(run, edit.row[-2 * chunk_len :])
    place |= {"text": n_text, "continuation": f_text, "edited": True}
    whole = np.array(so_far.tokens[: len(so_far.tokens) // chunk_len * chunk_len], dtype=np.int64)
    missing = len(whole) // chunk_len - len(so_far.retrieved)
    if missing > 0:  # the text ended before its last chunk was read
        title = config.title or title_of(shown.about)
        so_far.retrieved.extend(look_up(run, so_far.tokens, config, None, title)[-missing:])
    fresh = [event for event in so_far.retrieved if event.chunk >= len(rows)]
    queries = whole.reshape(-1, chunk_len)
    add_bm25(run, queries, fresh)
    kept = {name: value for name, value in shown.about.items() if name not in STALE}
    about = kept | {
        "text": run.tokenizer.decode(so_far.tokens),
        "edited": {
            "chunk": edit.chunk,
            "neighbor": edit.neighbor,
            "text": n_text,
            "continuation": f_text,
        },
    }
    return trace(run.model, run.tokenizer, so_far, run.database, about, rows)


def write_off(run: LoadedRun, shown: Trace, stop: Callable[[], bool]) -> list[int]:
    """What the run writes from the same prompt and seed with retrieval off: token ids, the prompt first."""
    config = replace(settings_of_text(shown), retrieval="off", retriever="", title="")
    run = replace(run, database=None)
    for event in write(run, str(shown.about["prompt"]), config):
        if isinstance(event, Written):
            return event.tokens
        if stop():
            break
    return []


def copied_shares(shown: Trace, ids: Sequence[int]) -> list[float]:
    """Of the tokens of `ids` that could read the neighbors of a trace, the share copied from each rank (K,).

    ids (T,) begin with the prompt of the trace: its own text, or what the run writes without its neighbors.
    Copied are LONG tokens or more that stand in one piece in a neighbor of the chunk before.
    """
    num_neighbors, chunk_len = shown.neighbor_tokens.shape[1], shown.chunk_len
    most = min(len(ids), (len(shown.neighbors) + 1) * chunk_len)
    first = max(shown.prompt_tokens, chunk_len)
    shares = [0.0] * num_neighbors
    if most <= first:
        return shares
    tokens = np.array(ids[:most])
    for span in copied_spans(tokens, shown.neighbor_tokens[: most // chunk_len]):
        if span.length >= LONG:
            shares[span.neighbor] += max(0, span.end - max(span.start, first)) / (most - first)
    return shares
