"""A neighbor of a trace changed, swapped or deleted: what the run then expects, and how it writes on.

That nothing moves before the tokens that read the neighbor is computed here, not assumed. This module knows
loaded runs and traces; it does not know whose they are or how they are shown.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.retrievers import describe_neighbors
from retro_demo.errors import UserError
from retro_demo.explain.attribution import TOP, log_probabilities
from retro_demo.explain.text import own_document, search_apart, title_of, too_close
from retro_demo.explain.tracing import Trace, top_words, words_of
from retro_demo.generation.retro import about_text
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO
from retro_demo.runs.loading import LoadedRun

STOPPED = "You stopped it: the text stays as it was."
MOVED = 1e-5  # a logarithm of a probability that differs by less has not moved


@dataclass(frozen=True)
class Edit:
    """What changed by reading `after` instead of `before` at one place.

    kl (T,): KL(p_before || p_after) of the next token after each token, in nats. first: the first
    token that reads the neighbor; `moved_before` of the tokens before it have another prediction
    now, the largest difference of a log-probability there is `largest_before`. top_ids and
    top_probabilities (3, T, TOP): before, after, and with retrieval off.
    """

    chunk: int
    neighbor: int
    before: np.ndarray
    after: np.ndarray
    kl: np.ndarray
    first: int
    moved_before: int
    largest_before: float
    top_ids: np.ndarray
    top_probabilities: np.ndarray


def fit(parts: Sequence[Sequence[int]], chunk_len: int, pad: int = 0) -> tuple[np.ndarray, list[int]]:
    """Tokens of N and of F -> one neighbor (R,), each part cut or padded to C; and how many were cut."""
    row = np.full((2, chunk_len), pad, dtype=np.int64)
    for place, part in enumerate(parts):
        row[place, : len(part[:chunk_len])] = part[:chunk_len]
    return row.reshape(-1), [max(0, len(part) - chunk_len) for part in parts]


def replaced(neighbors: np.ndarray, chunk: int, neighbor: int, after: np.ndarray) -> np.ndarray:
    """neighbors (L, K, R) with another one at a place; all padding deletes it."""
    changed = neighbors.copy()
    changed[chunk, neighbor] = after
    return changed


def never() -> bool:
    """Nobody wants an end."""
    return False


def check_wanted(stop: Callable[[], bool]) -> None:
    """Raise UserError where whoever asked for a reading wants it to end."""
    if stop():
        raise UserError(STOPPED)


def edit_neighbor(
    model: RETRO | Reader,
    tokens: np.ndarray,
    neighbors: np.ndarray,
    chunk: int,
    neighbor: int,
    after: np.ndarray,
    stop: Callable[[], bool] = never,
) -> Edit:
    """Read the text twice more: tokens (T,), neighbors (L, K, R), after (R,), padding where deleted.

    `stop` is asked before each reading; raises UserError where it says so.
    """
    changed = replaced(neighbors, chunk, neighbor, after)
    read = []
    for rows in (neighbors[None], changed[None], None):
        check_wanted(stop)
        # one forward each, of equal shape: equal inputs then give equal bits
        read.append(log_probabilities(model, tokens, rows)[0])
    old, new, off = read
    first = (chunk + 1) * model.config.chunk_len - 1
    apart = (old - new)[:first].abs().amax(dim=-1).cpu().numpy()
    tops = [one.exp().topk(min(TOP, one.shape[-1])) for one in (old, new, off)]
    return Edit(
        chunk,
        neighbor,
        neighbors[chunk, neighbor],
        after,
        (old.double().exp() * (old.double() - new.double())).sum(dim=-1).clamp(min=0).cpu().numpy(),
        first,
        int((apart > MOVED).sum()),
        float(apart.max(initial=0)),
        np.stack([top.indices.cpu().numpy() for top in tops]).astype(np.int32),
        np.stack([top.values.cpu().numpy() for top in tops]).astype(np.float32),
    )


@torch.inference_mode()
def write_on(
    model: RETRO | Reader,
    tokens: np.ndarray,
    versions: np.ndarray,
    chunk: int,
    count: int,
    eos: int,
    stop: Callable[[], bool] = never,
) -> list[list[int]]:
    """How the text would go on after `chunk`, for each version of the neighbors (B, L, K, R).

    The likeliest tokens, at most `count` and at most as many as read this chunk's neighbors
    (C), up to an end of text. What the versions read before the chunk should be the same. `stop` as for
    `edit_neighbor`.
    """
    device = next(model.parameters()).device
    chunk_len, end = model.config.chunk_len, (chunk + 1) * model.config.chunk_len
    text = torch.from_numpy(tokens[:end].astype(np.int64)).to(device).expand(len(versions), -1)
    read = torch.from_numpy(versions.astype(np.int64)).to(device)
    cache: Any = model.new_cache(end + chunk_len, len(versions))
    logits = torch.empty(0)
    for start in range(-1, end - 1, chunk_len):  # one attending chunk at a time
        check_wanted(stop)
        part = text[:, max(0, start) : start + chunk_len]
        if part.shape[1]:
            seen = read[:, start // chunk_len] if start >= 0 else None
            logits = model.next_logits(part, cache, seen)
    logits = model.next_logits(text[:, -1:], cache, read[:, chunk])
    written: list[list[int]] = [[] for _ in versions]
    for step in range(min(count, chunk_len)):
        check_wanted(stop)
        logits[:, list(model.config.unwritten)] = float("-inf")
        chosen = logits.argmax(dim=-1)
        for one, token in zip(written, chosen.tolist(), strict=True):
            one.append(token)
        if step + 1 < min(count, chunk_len):
            logits = model.next_logits(chosen[:, None], cache)
    return [one[: one.index(eos)] if eos in one else one for one in written]


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


def worded_row(
    run: LoadedRun, trace: Trace, chunk: int, neighbor: int, n_text: str, f_text: str
) -> tuple[np.ndarray, list[int]]:
    """Another text as the row (R,) of a neighbor, under the title that it has, and how many tokens of N and
    of F were cut; both texts empty: padding, which deletes it. Raises UserError where there is no such
    neighbor."""
    check_place(trace, chunk, neighbor)
    row, cut = fit([run.tokenizer.encode(n_text), run.tokenizer.encode(f_text)], trace.chunk_len)
    titles = trace.rows.shape[-1] - trace.neighbor_tokens.shape[-1]
    # its own title stays, unless nothing is left that it could head
    own = trace.rows[chunk, neighbor, :titles] * bool(row.any())
    return np.concatenate([own, row]), cut


def rewrite(run: LoadedRun, trace: Trace, chunk: int, neighbor: int, n_text: str, f_text: str) -> Rewritten:
    """Put another text in place of a neighbor, retokenized; both empty delete it.

    Raises UserError where there is no such neighbor.
    """
    row, cut = worded_row(run, trace, chunk, neighbor, n_text, f_text)
    return reread(run, trace, chunk, neighbor, row, cut)


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


def swapped_row(run: LoadedRun, trace: Trace, chunk: int, neighbor: int, other: int) -> np.ndarray:
    """Another chunk of the database, with its continuation (and title), as the row (R,) of a neighbor."""
    check_place(trace, chunk, neighbor)
    assert run.database is not None
    corpus = run.database.corpus
    if not 0 <= other < len(corpus.chunks):
        raise UserError(f"There is no chunk {other} in this corpus; it has {len(corpus.chunks)}.")
    return corpus.neighbor_rows(np.array(other), run.model.config.title_len)


def swap(run: LoadedRun, trace: Trace, chunk: int, neighbor: int, other: int) -> Rewritten:
    """Read another chunk of the database, with its continuation, in place of a neighbor."""
    return reread(run, trace, chunk, neighbor, swapped_row(run, trace, chunk, neighbor, other), [0, 0])


def reread(
    run: LoadedRun,
    trace: Trace,
    chunk: int,
    neighbor: int,
    row: np.ndarray,
    cut: list[int],
    stop: Callable[[], bool] = never,
) -> Rewritten:
    """Read a text once more with a row (R,) in place of a neighbor; `cut` tokens of it did not fit.

    `stop` as for `edit_neighbor`.
    """
    tokens = np.array(trace.ids)
    titles = trace.rows.shape[-1] - trace.neighbor_tokens.shape[-1]
    edit = edit_neighbor(run.model, tokens, trace.rows, chunk, neighbor, row, stop)
    versions = np.stack([trace.rows, replaced(trace.rows, chunk, neighbor, row)])
    eos = run.tokenizer.eos_id
    written = write_on(run.model, tokens, versions, chunk, trace.chunk_len, eos, stop)
    texts = (neighbor_texts(run, one[titles:]) for one in (edit.before, edit.after))
    before, after = ("\n".join(one).strip() for one in texts)
    goes_on = [run.tokenizer.decode(one) for one in written]
    return Rewritten(edit, words_of(run.tokenizer, edit.top_ids), before, after, cut, *goes_on)


def candidates(run: LoadedRun, trace: Trace, chunk: int) -> list[dict[str, Any]]:
    """Chunks of the database that could stand in place of a neighbor: the next in rank, best first.

    As with what was found, none is too close to the document that the text stands in.
    """
    assert run.database is not None
    database = about_text(run.database, title_of(trace.about), trace.about.get("query_tokens", 0))
    corpus = database.corpus
    own = own_document(corpus, trace.about)
    first = None if own is None else np.flatnonzero(corpus.chunks.document == own)[:1]
    query = np.array([trace.ids[chunk * trace.chunk_len : (chunk + 1) * trace.chunk_len]])
    read = {one["chunk"] for one in trace.neighbors[chunk]}
    found = search_apart(database, query, len(read) + CANDIDATES, first, too_close(corpus, own))
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
