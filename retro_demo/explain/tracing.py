"""The trace of a text: its attention, the spans copied from neighbors, and findings in figures.

A trace holds all that can be shown of a finished text, so it needs neither run nor corpus any more. Copied
spans are what the text has in common with the neighbors that it could read; repetition is counted, too.
Findings say which neighbors helped, what was copied, and whether attention agrees with the effect. They are
plain JSON: the page draws them, the command line and the HTTP endpoint pass them on. No HTML here.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F), H heads.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from retro_demo.corpus.retrievers import Database
from retro_demo.evaluation.copied_text import (
    Span,
    copied_spans,
    copy_ratio,
    distinct,
    shown_ahead,
    suffixes,
)
from retro_demo.evaluation.losses import helped_and_hurt
from retro_demo.explain.attribution import Numbers, measure, rank_correlation
from retro_demo.files import save_tensors, write_atomically
from retro_demo.generation.sampling import Written
from retro_demo.kinds import KINDS
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO
from retro_demo.tokenizer import Tokenizer, pieces_of

FORMAT = 2


@dataclass(frozen=True)
class Trace:
    """A finished text, explained.

    ids, tokens, pieces (T): the tokens, their labels, and the text that each adds. weights
    (layers, L, H, C, K, R): row i of chunk u belongs to the token at (u + 1) C - 1 + i.
    neighbor_tokens (L, K, R): what was read, 0 = padding; `neighbors` holds for each chunk the dicts
    of `describe_neighbors` with labels ("tokens") and text ("pieces") of their R tokens. neighbor_titles
    (L, K, P): the tokens of titles that a reader read before them. `words` are
    the labels of the tokens that `numbers` name.
    """

    about: dict[str, Any]
    chunk_len: int
    prompt_tokens: int
    ids: list[int]
    tokens: list[str]
    pieces: list[str]
    probabilities: list[float]
    neighbors: list[list[dict[str, Any]]]
    layers: list[int]
    words: dict[int, str]
    weights: Tensor
    neighbor_tokens: np.ndarray
    numbers: Numbers
    neighbor_titles: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.int64))

    @property
    def rows(self) -> np.ndarray:
        """What the network read: the neighbors with their titles (L, K, P + R)."""
        if not self.neighbor_titles.size:
            return self.neighbor_tokens
        return np.concatenate([self.neighbor_titles, self.neighbor_tokens], axis=-1)

    @property
    def padding(self) -> int:
        """Tokens before the prompt that stand for nothing: they let it end where a chunk does."""
        return next((place for place, token in enumerate(self.ids) if token), 0)

    def save(self, path: Path) -> None:
        """Write path.json and path.safetensors."""
        arrays = {"weights": self.weights.half()}
        for name in ("neighbor_tokens", "neighbor_titles"):
            arrays[name] = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
        for name, value in vars(self.numbers).items():
            if isinstance(value, np.ndarray):
                arrays[f"numbers.{name}"] = torch.from_numpy(value)
        kept = {name: value for name, value in vars(self).items() if name not in arrays | {"numbers": 0}}
        kept |= {"format": FORMAT, "permutations": self.numbers.permutations}
        save_tensors(path.with_suffix(".safetensors"), arrays, {})
        write_atomically(path.with_suffix(".json"), json.dumps(kept, ensure_ascii=False).encode())

    @staticmethod
    def load(path: Path) -> Trace | None:
        """Read what `save` wrote; None where an earlier version of this app wrote it."""
        kept = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if kept.pop("format", 1) != FORMAT:
            return None
        arrays = load_file(path.with_suffix(".safetensors"))
        numbers = {f.name: arrays.get(f"numbers.{f.name}") for f in fields(Numbers)}
        known = {name: value.numpy() for name, value in numbers.items() if value is not None}
        kept["words"] = {int(token): word for token, word in kept["words"].items()}
        return Trace(
            numbers=Numbers(**known, permutations=kept.pop("permutations")),
            weights=arrays["weights"].float(),
            neighbor_tokens=arrays["neighbor_tokens"].numpy(),
            **({"neighbor_titles": arrays["neighbor_titles"].numpy()} if "neighbor_titles" in arrays else {}),
            **kept,
        )


def trace(
    model: RETRO | Reader,
    tokenizer: Tokenizer,
    written: Written,
    database: Database | None,
    about: dict,
    rows: np.ndarray | None = None,
) -> Trace:
    """All that can be shown of a text; without retrieval there are no neighbors and no weights.

    rows (L', K, R): what its first chunks read, where that is not what was found, with titles in front.
    """
    chunk_len = model.config.chunk_len
    num_chunks = min(len(written.tokens) // chunk_len, len(written.retrieved))
    neighbors: list[list[dict[str, Any]]] = []
    titles = model.config.title_len
    read = np.zeros((0, 0, model.config.neighbor_len), dtype=np.int64)
    weights = torch.zeros(0)
    if database is not None and num_chunks:
        most = max(1, *(len(event.neighbors) for event in written.retrieved))
        ids = np.full((num_chunks, most), -1, dtype=np.int64)
        for event in written.retrieved[:num_chunks]:
            ids[event.chunk, : len(event.neighbors)] = [neighbor["chunk"] for neighbor in event.neighbors]
        read = database.corpus.neighbor_rows(ids, titles)  # (L, K, R)
        if rows is not None:
            read[: len(rows), : rows.shape[1]] = rows[:num_chunks]
        neighbors = [
            [
                found | labeled(tokenizer, read[event.chunk, place, titles:])
                for place, found in enumerate(event.neighbors)
            ]
            for event in written.retrieved[:num_chunks]
        ]
        device = next(model.parameters()).device
        text = torch.tensor([written.tokens], device=device)
        with torch.inference_mode():
            weights = model.attention(text, torch.from_numpy(read)[None].to(device)).cpu()
    numbers = measure(model, np.array(written.tokens), read)
    look_up = {"look_up": model.look_up_use()} if isinstance(model, Reader) and neighbors else {}
    return Trace(
        about=about | {"null_slot": model.config.has_null} | look_up,
        chunk_len=chunk_len,
        prompt_tokens=written.prompt_tokens,
        ids=written.tokens,
        tokens=tokenizer.token_texts(written.tokens),
        pieces=pieces_of(tokenizer, written.tokens),
        probabilities=written.probabilities,
        neighbors=neighbors,
        layers=model.config.attention_layers if neighbors else [],
        words=words_of(tokenizer, numbers.top_ids),
        weights=weights,
        neighbor_tokens=read[..., titles:],
        numbers=numbers,
        neighbor_titles=read[..., :titles],
    )


def labeled(tokenizer: Tokenizer, row: np.ndarray) -> dict[str, list[str]]:
    """Labels and text of the tokens of a neighbor (R,); padding has neither.

    N and F are decoded apart: each is a chunk of its own.
    """
    half = len(row) // 2
    pieces = pieces_of(tokenizer, row[:half].tolist()) + pieces_of(tokenizer, row[half:].tolist())
    return {"tokens": tokenizer.token_texts(row.tolist()), "pieces": pieces}


def words_of(tokenizer: Tokenizer, ids: np.ndarray) -> dict[int, str]:
    """The labels of some tokens."""
    known = np.unique(ids).tolist()
    return dict(zip(known, tokenizer.token_texts(known), strict=True))


def reading_tokens(trace: Trace, chunk: int) -> range:
    """The tokens that attend to the neighbors of a chunk: its last and the C - 1 that follow."""
    first = (chunk + 1) * trace.chunk_len - 1
    return range(first, min(first + trace.chunk_len, len(trace.tokens)))


def attention(trace: Trace, layer: int | None, head: int | None) -> np.ndarray:
    """Weights (L, C, K, R) of all chunks; None is the mean over layers or heads."""
    weights = trace.weights.numpy()  # (layers, L, H, C, K, R)
    weights = weights.mean(0) if layer is None else weights[trace.layers.index(layer)]
    return weights.mean(1) if head is None else weights[:, head]


def by_token(trace: Trace, of_rows: np.ndarray) -> np.ndarray:
    """What is known of reading tokens (L, C, ...) -> of all tokens (T, ...); 0 where nothing is read."""
    rows = of_rows.reshape(-1, *of_rows.shape[2:])
    out = np.zeros((len(trace.tokens), *rows.shape[1:]))
    first = trace.chunk_len - 1
    count = max(0, min(len(rows), len(out) - first))
    out[first : first + count] = rows[:count]
    return out


def mass(trace: Trace) -> np.ndarray:
    """How much each token attends to each neighbor (T, K), mean over layers and heads."""
    if not trace.neighbors:
        return np.zeros((len(trace.tokens), 0))
    return by_token(trace, attention(trace, None, None).sum(axis=-1))


def null_mass(trace: Trace) -> np.ndarray | None:
    """How much each token attends to nothing at all (T,): to the null slot; None where there is none."""
    if not trace.about.get("null_slot") or not trace.neighbors:
        return None
    return by_token(trace, 1 - attention(trace, None, None).sum(axis=(-1, -2)))


def entropy(trace: Trace) -> np.ndarray:
    """How widely each token's attention is spread (T,), in nats, mean over layers and heads."""
    if not trace.neighbors:
        return np.zeros(len(trace.tokens))
    weights = trace.weights.numpy()
    spread = -(weights * np.log(np.maximum(weights, 1e-12))).sum(axis=(-1, -2))  # (layers, L, H, C)
    return by_token(trace, spread.mean(axis=(0, 2)))


def why_nothing(trace: Trace, chunk: int = 0) -> str:
    """Why a chunk has no neighbors to show; "" where it has."""
    if not trace.neighbors:
        kind = KINDS.get(trace.about.get("model", ""))
        if kind and not kind.retrieves:
            return (
                f"This run ({kind.name}) has no way to read neighbors. Choose one that retrieves to see some."
            )
        if trace.about.get("config", {}).get("retrieval") == "off":
            return (
                "Retrieval was off, so the model read this without neighbors. "
                "Switch it on and try again to compare."
            )
        return (
            "The text ended before its first chunk was full, so nothing was looked up. Ask for more tokens."
        )
    if chunk >= len(trace.neighbors):
        return (
            f"Chunk {chunk + 1} was not full when the text ended, so nothing was looked up for it. "
            "Choose an earlier one."
        )
    if not trace.neighbors[chunk]:
        why = trace.about.get("nothing_found", "No neighbor was found.")  # traces of 0.5.0 do not say why
        return f"Chunk {chunk + 1}: {why}"
    return ""


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
        start = max(start, end - (trace.about.get("query_tokens") or trace.chunk_len))
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
        "padding": trace.padding,
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
