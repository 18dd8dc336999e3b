"""A neighbor of a trace changed, swapped or deleted: what the run expects then, and how it writes on.

This module knows loaded runs and traces; it does not know whose they are or how they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.corpus.search import describe_neighbors
from retro_demo.errors import UserError
from retro_demo.explain.editing import Edit, edit_neighbor, fit, replaced, write_on
from retro_demo.explain.explained import own_document, search_apart, too_close
from retro_demo.explain.findings import top_words
from retro_demo.explain.tracing import Trace, words_of
from retro_demo.runs.loading import LoadedRun

CANDIDATES = 8


@dataclass(frozen=True)
class Rewritten:
    """An edit in words: both texts of the neighbor, how many tokens did not fit, how the text goes on."""

    edit: Edit
    words: dict[int, str]
    before: str
    after: str
    cut: list[int]
    goes_on_before: str
    goes_on_after: str


def neighbor_texts(run: LoadedRun, row: np.ndarray) -> tuple[str, str]:
    """N and F of a neighbor (R,) as text, for editing."""
    half = len(row) // 2
    return run.tokenizer.decode(row[:half].tolist()), run.tokenizer.decode(row[half:].tolist())


def check_place(trace: Trace, chunk: int, neighbor: int) -> None:
    """Raise UserError where a trace has no such neighbor; both count from 0."""
    if not 0 <= chunk < len(trace.neighbors):
        raise UserError(
            f"Chunk {chunk} has no neighbors; those of this text count from 0 to {len(trace.neighbors) - 1}."
        )
    if not 0 <= neighbor < len(trace.neighbors[chunk]):
        raise UserError(
            f"Chunk {chunk} has no neighbor {neighbor}; it has {len(trace.neighbors[chunk])}, counted from 0."
        )


def rewrite(run: LoadedRun, trace: Trace, chunk: int, neighbor: int, n_text: str, f_text: str) -> Rewritten:
    """Put another text in place of a neighbor, tokenized anew; both empty delete it.

    Raises UserError where there is no such neighbor.
    """
    check_place(trace, chunk, neighbor)
    row, cut = fit([run.tokenizer.encode(n_text), run.tokenizer.encode(f_text)], trace.chunk_len)
    return _rewrite(run, trace, chunk, neighbor, row, cut)


def edit_by_values(run: LoadedRun, trace: Trace, values: Mapping[str, Any]) -> Rewritten:
    """As `rewrite`, from values that came from outside: chunk, neighbor, text, continuation."""
    known = {"chunk", "neighbor", "text", "continuation"}
    if not isinstance(values, Mapping) or set(values) - known:
        raise UserError(f"An edit has {', '.join(sorted(known))}; this one is {str(values)[:200]}.")
    places = [values.get("chunk", 0), values.get("neighbor", 0)]
    texts = [values.get("text", ""), values.get("continuation", "")]
    if any(type(one) not in (int, float) or one != int(one) for one in places):
        raise UserError(f"chunk and neighbor are {places}; give whole numbers, counted from 0.")
    if not all(isinstance(one, str) for one in texts):
        raise UserError("The text and the continuation of an edit must be text.")
    return rewrite(run, trace, int(places[0]), int(places[1]), *texts)


def swap(run: LoadedRun, trace: Trace, chunk: int, neighbor: int, other: int) -> Rewritten:
    """Read another chunk of the database, with its continuation, in place of a neighbor."""
    check_place(trace, chunk, neighbor)
    assert run.database is not None
    chunks = run.database.corpus.chunks
    if not 0 <= other < len(chunks):
        raise UserError(f"There is no chunk {other} in this corpus; it has {len(chunks)}.")
    return _rewrite(run, trace, chunk, neighbor, chunks.with_continuation(np.array(other)), [0, 0])


def _rewrite(
    run: LoadedRun, trace: Trace, chunk: int, neighbor: int, row: np.ndarray, cut: list[int]
) -> Rewritten:
    tokens = np.array(trace.ids)
    edit = edit_neighbor(run.model, tokens, trace.neighbor_tokens, chunk, neighbor, row)
    versions = np.stack([trace.neighbor_tokens, replaced(trace.neighbor_tokens, chunk, neighbor, row)])
    written = write_on(run.model, tokens, versions, chunk, trace.chunk_len, run.tokenizer.eos_id)
    before, after = ("\n".join(neighbor_texts(run, one)).strip() for one in (edit.before, edit.after))
    goes_on = [run.tokenizer.decode(one) for one in written]
    return Rewritten(edit, words_of(run.tokenizer, edit.top_ids), before, after, cut, *goes_on)


def candidates(run: LoadedRun, trace: Trace, chunk: int) -> list[dict[str, Any]]:
    """Chunks of the database that could stand in place of a neighbor: the next in rank, best first.

    As with what was found, none is too close to the document that the text stands in.
    """
    assert run.database is not None
    corpus = run.database.corpus
    own = own_document(corpus, trace.about)
    first = None if own is None else np.flatnonzero(corpus.chunks.document == own)[:1]
    query = np.array([trace.ids[chunk * trace.chunk_len : (chunk + 1) * trace.chunk_len]])
    read = {one["chunk"] for one in trace.neighbors[chunk]}
    found = search_apart(run.database, query, len(read) + CANDIDATES, first, too_close(corpus, own))
    described = describe_neighbors(corpus, found.ids[0], found.scores[0])
    return [one for one in described if one["chunk"] not in read]


def edit_json(made: Rewritten) -> dict[str, Any]:
    """An edit for programs: the proof, KL of each position, the next tokens where it moved most.

    "strip" has the next tokens before, after and without retrieval at each position that can depend on it.
    """
    edit = made.edit
    shown = edit.first + int(edit.kl[edit.first :].argmax())

    def tops(position: int) -> dict[str, Any]:
        return {
            name: top_words(
                made.words, edit.top_ids[place, position], edit.top_probabilities[place, position]
            )
            for place, name in enumerate(("before", "after", "off"))
        }

    return {
        "chunk": edit.chunk,
        "neighbor": edit.neighbor,
        "before": made.before,
        "after": made.after,
        "tokens_cut": made.cut,
        "first_position": edit.first,
        "earlier_positions_changed": edit.moved_before,
        "largest_earlier_difference": edit.largest_before,
        "kl": [round(value, 6) for value in edit.kl.tolist()],
        "position": shown,
        "top": tops(shown),
        "strip": [{"position": i} | tops(i) for i in range(edit.first, len(edit.kl))],
        "goes_on_before": made.goes_on_before,
        "goes_on_after": made.goes_on_after,
    }
