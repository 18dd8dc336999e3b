"""What a trace says, in figures: who helped, what was copied, and whether attention tells the truth.

Plain JSON values out; the page draws them, the command line and the HTTP endpoint give them as they are.

Shapes: T tokens, L chunks, C chunk length, K neighbors.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from retro_demo.evaluation.arm_figures import helped_and_hurt
from retro_demo.explain.copying import Span, copied_spans, copy_ratio, distinct, shown_ahead, suffixes
from retro_demo.explain.explain import rank_correlation
from retro_demo.explain.tracing import Trace, attention, entropy, mass, null_mass, reading_tokens


def spans(trace: Trace) -> list[Span]:
    """The copied stretches of a text."""
    return copied_spans(np.array(trace.ids), trace.neighbor_tokens) if trace.neighbors else []


def with_targets(trace: Trace, chunk: int) -> list[int]:
    """The tokens that read the neighbors of a chunk and have a successor to be judged by."""
    return [i for i in reading_tokens(trace, chunk) if i + 1 < len(trace.tokens)]


def pairs(trace: Trace) -> list[dict[str, Any]]:
    """One row for each neighbor of each chunk that was read: its share of the attention, its effect.

    mass: mean share of the attention. shapley: by how many nats a token it lowered the loss.
    shown: the share of the next chunk that it holds in one piece.
    """
    if not trace.neighbors:
        return []
    weights = attention(trace, None, None).sum(axis=-1)  # (L, C, K)
    shown = shown_ahead(np.array(trace.ids), trace.neighbor_tokens)
    rows = []
    for chunk, found in enumerate(trace.neighbors):
        readers = with_targets(trace, chunk)
        for place in range(len(found) if readers else 0):
            rows.append(
                {
                    "chunk": chunk,
                    "neighbor": place,
                    "mass": float(weights[chunk, : len(readers), place].mean()),
                    "shapley": float(trace.numbers.shapley[readers, place].mean()),
                    "shown": float(shown[chunk, place]),
                }
            )
    return rows


def agreement(trace: Trace) -> float | None:
    """Spearman's rho of attention and effect over all (chunk, neighbor); None where there are too few."""
    rows = pairs(trace)
    return rank_correlation(np.array([r["mass"] for r in rows]), np.array([r["shapley"] for r in rows]))


def summary(trace: Trace) -> dict[str, Any]:
    """The figures of the whole text; only tokens that could read neighbors count."""
    numbers, first = trace.numbers, trace.chunk_len - 1
    begun = max(trace.prompt_tokens, trace.chunk_len)
    written = trace.ids[trace.prompt_tokens :]
    least = (trace.chunk_len * len(trace.neighbors)) if trace.neighbors else 0
    return helped_and_hurt(numbers.gain[first:] if trace.neighbors else numbers.gain[:0]) | {
        "loss_on": _mean(numbers.loss_on[first:]),
        "loss_off": _mean(numbers.loss_off[first:]),
        "loss_n_only": _mean(numbers.loss_n[first:]),
        "loss_f_only": _mean(numbers.loss_f[first:]),
        "copied": copy_ratio(spans(trace), begun, min(len(trace.ids), least + trace.chunk_len)),
        "distinct_2": distinct(written, 2),
        "agreement": agreement(trace),
        "shapley_permutations": trace.numbers.permutations,
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def token_rows(trace: Trace) -> list[dict[str, Any]]:
    """One row for each token: how expected it was with and without neighbors, and where it stands in them.

    `copied` is the longest suffix that ends with it in a neighbor that it could read; null where
    something is not known (the first token) or not there.
    """
    numbers = trace.numbers
    spread, shares, null = entropy(trace), mass(trace), null_mass(trace)
    length, which, place = suffixes(np.array(trace.ids), trace.neighbor_tokens)
    rows = []
    for t, text in enumerate(trace.pieces):
        reads = (
            bool(trace.neighbors) and trace.chunk_len <= t and t // trace.chunk_len <= len(trace.neighbors)
        )
        row: dict[str, Any] = {"token": t, "text": text, "prompt": t < trace.prompt_tokens}
        row |= {name: _known(getattr(numbers, name)[t - 1]) if t else None for name in LOSSES}
        row["gain"] = _known(numbers.gain[t - 1]) if t and trace.neighbors else None
        row["entropy"] = _known(spread[t - 1]) if reads else None
        row["mass"] = [_known(value) for value in shares[t - 1]] if reads else []
        row["null_mass"] = _known(null[t - 1]) if reads and null is not None else None
        row["shapley"] = [_known(value) for value in numbers.shapley[t - 1]] if reads else []
        row["copied"] = int(length[t])
        row["from"] = source_of(trace, int(which[t]), int(place[t])) if length[t] else None
        rows.append(row)
    return rows


LOSSES = ("loss_on", "loss_off", "loss_n", "loss_f")


def source_of(trace: Trace, neighbor: int, place: int) -> dict[str, Any]:
    """A place in a neighbor as people name it: N or F, and the token there from 0."""
    return {
        "neighbor": neighbor,
        "part": "N" if place < trace.chunk_len else "F",
        "place": place % trace.chunk_len,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def timeline(trace: Trace) -> list[dict[str, Any]]:
    """One row for each chunk that looked something up: the query, what was found, what it was worth.

    gain, copied: of the tokens that read it (null where there are none). nearest: the best score;
    where it falls from chunk to chunk, a text drifts away from the corpus.
    """
    by_chunk: dict[int, list[dict[str, Any]]] = {}
    for row in pairs(trace):
        by_chunk.setdefault(row["chunk"], []).append(row)
    times = trace.about.get("search_times", [])
    copied = spans(trace)
    rows = []
    for chunk, found in enumerate(trace.neighbors):
        start, end = chunk * trace.chunk_len, (chunk + 1) * trace.chunk_len
        readers = with_targets(trace, chunk)
        rows.append(
            {
                "chunk": chunk,
                "query": "".join(trace.pieces[start:end]),
                "nearest": found[0]["score"] if found else None,
                "ms": times[chunk] if chunk < len(times) else None,
                "gain": _mean(trace.numbers.gain[readers]) if readers else None,
                "copied": copy_ratio(copied, end, end + len(readers)) if readers else None,
                "neighbors": [
                    {name: one[name] for name in NAMED if name in one} | effect
                    for one, effect in zip(found, by_chunk.get(chunk) or [{}] * len(found), strict=True)
                ],
            }
        )
    return rows


NAMED = ("document", "title", "score", "bm25")


def as_json(trace: Trace) -> dict[str, Any]:
    """Everything but the single attention weights, with where it comes from."""
    return {
        "about": trace.about,
        "chunk_len": trace.chunk_len,
        "prompt_tokens": trace.prompt_tokens,
        "summary": summary(trace),
        "tokens": token_rows(trace),
        "spans": [asdict(span) for span in spans(trace)],
        "chunks": timeline(trace),
        "neighbors": trace.neighbors,
        "pairs": pairs(trace),
        "top": top_rows(trace),
    }


def top_rows(trace: Trace) -> list[dict[str, Any]]:
    """For each token, and for what would follow the last: the likeliest ones, retrieval on and off."""
    return [
        {
            "after": i,
            "on": top_words(trace.words, trace.numbers.top_ids[0, i], trace.numbers.top_probabilities[0, i]),
            "off": top_words(trace.words, trace.numbers.top_ids[1, i], trace.numbers.top_probabilities[1, i]),
        }
        for i in range(len(trace.tokens))
    ]


def top_words(words: dict[int, str], ids: np.ndarray, probabilities: np.ndarray) -> list[tuple[str, float]]:
    """(label, probability) of the likeliest tokens."""
    return [
        (words[token], round(p, 4)) for token, p in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]
