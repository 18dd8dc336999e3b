"""What each arm of an evaluation lets the model read, for RETRO and for MARGE.

An arm of RETRO reads the same held-out text and differs from the next in nothing but the neighbors of each
chunk, so a difference of losses is a difference of neighbors:

    off                 none
    on                  what the run's own retriever finds
    dense, bm25, ...    what another retriever finds
    n_only, f_only      the run's own, with the continuation F or the neighbor N masked
    random              random chunks of the database, the same exclusion
    shuffled            the neighbors of another sequence, from another document
    wrong_order         the neighbors of other chunks of the same window
    oracle_20           the best neighbor is the chunk itself with its true continuation, 20% overwritten
    k4                  the run's own retriever, 4 neighbors
    db5                 the run's own retriever, 5% of the database's documents

All are functions of the seed and the chunk alone, not of batches or rounds.

An arm of MARGE reads the same held-out passages with other evidence or relevance:

    on            its own evidence, found by its own encoder; a batch of targets shares theirs
    own           each target sees only what was found for it
    random        passages of other groups, drawn at random, in place of what was found
    off           no evidence at all
    beta_0        relevance weighs nothing
    uniform       all evidence is as relevant as the mean; the softmax cannot tell it from beta_0
    shuffled      each passage of evidence has the relevance of another one of the batch
    same_document, other_documents   evidence with and without the target's own document

The reviews of the MARGE paper asked for these. Evidence of a held-out passage may be held out, too: its
translations are.

Shapes: W windows, L chunks of a window, C chunk length, K neighbors (for MARGE: evidence of one target), N
chunks of the corpus; P passages, Q held-out passages, G targets of a batch, M evidence, S passage length, D
width, V tokens.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retro_demo.corpus.store import Corpus
from retro_demo.events import MEASURING, Progress
from retro_demo.evidence.passages import Passages, in_evidence_set, nearest, other_groups
from retro_demo.evidence.vectors import Vectors
from retro_demo.models.config import EvidenceConfig
from retro_demo.models.marge import MARGE
from retro_demo.models.marge_layers import WriteCache
from retro_demo.models.reader_config import OUTPUTS

NUMBERED = re.compile(r"(oracle_|k|db)(\d+)")
RANDOM_TRIES = 20  # draws for a random chunk that is not excluded, before its place stays empty


@dataclass(frozen=True)
class Windows:
    """Held-out text to read: rows (W, L) of chunk ids, -1 = nothing, each of one document (W,).

    The first chunk of a window is context only; every held-out chunk but the first of a document is
    measured in exactly one window. The order is the one to measure in: one window of each document,
    in an order drawn with the seed, then a second one of each, and so on. So a part from the front
    holds as many documents as it can, and more windows add to it.
    """

    rows: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def held_out_windows(
    corpus: Corpus, chunks_per_window: int, seed: int, left_out: np.ndarray | None = None
) -> Windows:
    """All windows of `chunks_per_window` chunks through the held-out documents, in the order to measure.

    `left_out` (D,), bool: documents that are not to be measured on.
    """
    measured = corpus.held_out if left_out is None else corpus.held_out & ~left_out
    rng = np.random.default_rng([seed, 0])
    step = chunks_per_window - 1
    turns: list[tuple[int, int, np.ndarray]] = []  # (turn of this window in its document, place, rows)
    for place, document in enumerate(rng.permutation(np.flatnonzero(measured))):
        ids = np.flatnonzero(corpus.chunks.document == document)
        windows = [ids[i : i + chunks_per_window] for i in range(0, len(ids) - 1, step)]
        for turn, which in enumerate(rng.permutation(len(windows))):
            turns.append((turn, place, windows[which]))
    turns.sort(key=lambda item: item[:2])
    rows = np.full((len(turns), chunks_per_window), -1, dtype=np.int64)
    for row, (_, _, ids) in zip(rows, turns, strict=True):
        row[: len(ids)] = ids
    return Windows(rows, corpus.chunks.document[rows[:, 0]])


@dataclass(frozen=True)
class Arms:
    """What the arms choose from: the windows, and a table of neighbors for each retriever.

    tables: retriever -> chunk ids (N, stored), best first, -1 = none, of which only the rows of the
    windows that are asked for need be filled; a name such as "db5" stands for the run's own retriever
    in 5% of the database. `own` is the run's retriever, k its neighbors.
    """

    corpus: Corpus
    windows: Windows
    tables: dict[str, np.ndarray]
    own: str
    k: int
    seed: int
    title_len: int = 0
    query_tokens: int = 0

    def ids(self, name: str, which: np.ndarray) -> np.ndarray:
        """Chunk ids of the neighbors (w, L - 1, K) that arm `name` shows in the windows `which` (w,).

        An oracle's best neighbor is the chunk itself. -1 = none; "off" shows nothing at all. Raises
        KeyError for an arm that has no table.
        """
        chunks = self.windows.rows[which, :-1]  # the last chunk's neighbors act on no measured token
        shown = np.full((*chunks.shape, self.k), -1, dtype=np.int64)
        if name == "off":
            return shown
        if name == "random":
            return self._random(chunks)
        if name == "shuffled":
            return self._allowed(chunks, self._found(self.own, self.another_sequence(which), self.k))
        if name == "wrong_order":
            return self._found(self.own, _other_chunks(chunks, self._whole(chunks)), self.k)
        kind, number = _parsed(name)
        of_own = name in ("on", "n_only", "f_only") or kind in ("oracle_", "k")
        shown = self._found(self.own if of_own else name, chunks, number if kind == "k" else self.k)
        if kind == "oracle_":
            shown[..., 1:] = shown[..., :-1].copy()
            shown[..., 0] = np.where(self._whole(chunks), chunks, -1)
        return shown

    def neighbors(self, name: str, which: np.ndarray) -> np.ndarray:
        """Tokens of those neighbors (w, L - 1, K, 2 C): chunk N, then its continuation F; 0 = nothing.

        For a reader a title of `title_len` tokens stands before them.
        """
        tokens = self.corpus.neighbor_rows(self.ids(name, which), self.title_len)
        content = tokens[..., self.title_len :]
        chunk_len = self.corpus.config.chunk_len
        if name == "n_only":
            content[..., chunk_len:] = 0
        if name == "f_only":
            content[..., :chunk_len] = 0
        kind, number = _parsed(name)
        if kind == "oracle_" and number:
            content[..., 0, :] = self._overwritten(content[..., 0, :], which, number)
        return tokens

    def titles(self, which: np.ndarray) -> np.ndarray:
        """The titles that a reader reads before the windows (w, P)."""
        return self.corpus.title_rows(self.title_len)[self.windows.document[which]]

    def tokens(self, which: np.ndarray) -> np.ndarray:
        """Tokens of the windows (w, L C), 0 = padding."""
        rows = self.windows.rows[which]
        tokens = np.where((rows >= 0)[..., None], self.corpus.chunks.tokens[rows], 0)
        return tokens.reshape(len(rows), -1).astype(np.int64)

    def _whole(self, chunks: np.ndarray) -> np.ndarray:
        """Which chunks have something to help with: text of their document follows them."""
        return self.corpus.chunks.has_continuation(chunks)

    def _found(self, table: str, chunks: np.ndarray, k: int) -> np.ndarray:
        """The k neighbors (..., k) of chunks (...) in a table; none for a document's last chunk."""
        ids = self.tables[table][chunks][..., :k]
        return np.where(self._whole(chunks)[..., None], ids, -1).astype(np.int64)

    def _allowed(self, chunks: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The ids (w, l, K) that are not excluded for their chunks (w, l); -1 in place of the others."""
        flat = ids.reshape(-1, ids.shape[-1])
        out = self.corpus.excluded(chunks.reshape(-1), flat)
        return np.where(out, -1, flat).reshape(ids.shape)

    def _random(self, chunks: np.ndarray) -> np.ndarray:
        """Random chunks of the database, none that is excluded for its chunk: (w, L - 1, K)."""
        database = self.database
        shown = np.full((*chunks.shape, self.k), -1, dtype=np.int64)
        for place in zip(*np.nonzero(self._whole(chunks)), strict=True):
            own = int(chunks[place])
            rng = np.random.default_rng([self.seed, 1, own])
            drawn = np.unique(rng.choice(database, self.k * RANDOM_TRIES))
            drawn = rng.permutation(drawn)[None]
            allowed = drawn[~self.corpus.excluded(np.array([own]), drawn)][: self.k]
            shown[place][: len(allowed)] = allowed
        return shown

    @cached_property
    def database(self) -> np.ndarray:
        """Chunk ids that may be retrieved."""
        return np.flatnonzero(~self.corpus.held_out[self.corpus.chunks.document])

    @cached_property
    def _database_tokens(self) -> np.ndarray:
        """All tokens of the database, one behind the other, without padding."""
        tokens = self.corpus.chunks.tokens[self.database]
        return tokens[tokens != 0]

    def another_sequence(self, which: np.ndarray) -> np.ndarray:
        """Chunks (w, L - 1) of another window for each, of another document, at the same places.

        Held-out windows of at least the same length where there are any, else training windows.
        """
        rows = self.windows.rows
        length = (rows >= 0).sum(axis=1)
        cluster = self.corpus.cluster[self.windows.document]
        chosen = np.empty((len(which), rows.shape[1] - 1), dtype=np.int64)
        for row, window in enumerate(which):
            rng = np.random.default_rng([self.seed, 2, rows[window, 0]])
            donors = np.flatnonzero((cluster != cluster[window]) & (length >= length[window]))
            if len(donors):
                donor = rows[rng.choice(donors)]
            else:
                start = rng.choice(self.database)
                donor = np.minimum(start + np.arange(rows.shape[1]), len(self.corpus.chunks) - 1)
            there = rows[window, :-1] >= 0
            chosen[row] = np.where(there, donor[:-1], -1)
        return chosen

    def _overwritten(self, tokens: np.ndarray, which: np.ndarray, percent: int) -> np.ndarray:
        """tokens (w, L - 1, 2 C) of which `percent` are replaced by tokens drawn from the database."""
        out = tokens.copy()
        for row, window in enumerate(which):
            rng = np.random.default_rng([self.seed, 3, percent, self.windows.rows[window, 0]])
            hit = (rng.random(tokens[row].shape) < percent / 100) & (tokens[row] != 0)
            out[row][hit] = rng.choice(self._database_tokens, int(hit.sum()))
        return out


def _parsed(name: str) -> tuple[str, int]:
    match = NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else ("", 0)


def _other_chunks(chunks: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """chunks (w, l) -> for each the one half a window away, round the window; -1 where there is none.

    Never the next one: its neighbors were found with the very text that is to be predicted. So of
    few chunks each gets the one before it, and the first of two gets none.
    """
    other = np.full(chunks.shape, -1, dtype=np.int64)
    for row in range(len(chunks)):
        there = np.flatnonzero(whole[row])
        source = np.roll(there, len(there) // 2)
        good = (source != there) & (source != there + 1)
        other[row, there[good]] = chunks[row, source[good]]
    return other


def neighbors_missing(arms: Arms, which: np.ndarray) -> tuple[int, int]:
    """(queries with fewer than k neighbors, queries) of arm "on" in the windows `which`."""
    ids = arms.ids("on", which)
    asked = arms.corpus.chunks.has_continuation(arms.windows.rows[which, :-1])
    short = (ids < 0).any(axis=-1) & asked
    return int(short.sum()), int(asked.sum())


REACH = 4
"""Tokens in one piece: fewer are often there by chance, and a value seldom has more."""


def reach(arms: Arms, name: str, which: np.ndarray) -> tuple[int, int]:
    """(looks whose neighbors hold the right continuation, looks) of an arm in the windows `which`.

    A look is at the end of a chunk; what is right is that the next REACH tokens of the text stand in one
    piece in one of its neighbors. Looks behind which the text has fewer tokens are not counted.
    """
    chunk_len = arms.corpus.config.chunk_len
    rows = arms.windows.rows[which, 1:]
    following = np.where((rows >= 0)[..., None], arms.corpus.chunks.tokens[rows][..., :REACH], 0)
    asked = (following != 0).all(axis=-1)  # (w, L - 1)
    content = arms.neighbors(name, which)[..., -2 * chunk_len :]
    pieces = np.lib.stride_tricks.sliding_window_view(content, following.shape[-1], axis=-1)
    there = (pieces == following[:, :, None, None]).all(axis=-1).any(axis=(2, 3))
    return int((there & asked).sum()), int(asked.sum())


ARM_NAMES = {
    "baseline": "matched baseline",
    "baseline_before": "the baseline before",
    "off": "retrieval off",
    "on": "retrieval on",
    "dense": "dense",
    "bm25": "BM25",
    "bm25-words": "BM25 over words",
    "bm25-titles": "BM25 over words, labels and titles",
    "hybrid": "hybrid",
    "n_only": "N only",
    "f_only": "F only",
    "random": "random chunks",
    "shuffled": "shuffled",
    "wrong_order": "wrong chunk order",
    "prepend": "baseline, prepended",
    "prepend_control": "baseline, short context",
    "control_random": "control, random neighbors",
    "control_real": "control, real neighbors",
    "attention": "cross-attention",
    "copy": "copy head",
    "both": "both",
    "in_context": "in the prompt",
    "knn": "kNN-LM",
}


def arm_name(name: str, names: Mapping[str, str] = ARM_NAMES) -> str:
    """What people call an arm; `names` are those of `names_of` the result."""
    if oracle := re.fullmatch(r"oracle_(\d+)", name):
        return f"oracle, {oracle[1]}% overwritten"
    return names.get(name, name)


WAYS = (*OUTPUTS, "in_context", "knn")
"""Arms that have a table of their own: ways in which one base may read; see reading_ways.py."""


def arms_in_order(result: Mapping[str, Any]) -> list[str]:
    """The arms as they are shown: the ones that decide first, oracles at the end, without WAYS."""
    order = list(names_of(result))
    shown = [one for one in result["arms"] if one not in WAYS]
    return sorted(shown, key=lambda one: (order.index(one) if one in order else 99, f"{one:>12}"))


def names_of(result: Mapping[str, Any]) -> Mapping[str, str]:
    """What people call the arms of a result, in the order to show them in: that of a MARGE brings its own."""
    return result.get("names") or ARM_NAMES


LIVE_ARMS = ("on", "random", "off")
ARMS = ("on", "own", "random", "off", "beta_0", "uniform", "shuffled", "same_document", "other_documents")
TARGETS = 8  # of a batch, here as in no training: so that arms are alike for every run
NOT_SEARCHED = -2
SCORES_AT_ONCE = 2_000_000  # written out by one look at the evidence: more leaves the caches of a CPU


class EvidenceArms:
    """Held-out passages in a fixed order, and what each arm shows them."""

    def __init__(
        self,
        passages: Passages,
        vectors: Vectors,
        config: EvidenceConfig,
        seed: int,
        *,
        k: int = 0,
        left_out: np.ndarray | None = None,
        abstains: bool = False,
    ) -> None:
        """vectors (P, D): embeddings of all passages, by the model that is measured.

        k: evidence of each target, 0 = as much as in training on average; `left_out` (P,), bool:
        passages that are not to be measured on; `abstains`: whether the model may turn to no evidence.
        """
        self.abstains = abstains
        self.passages, self.vectors, self.config, self.seed = passages, vectors, config, seed
        self.k = k or max(1, round(config.evidence_per_target))
        held_out = passages.held_out & ((passages.position == 0) | (not config.first_passages))
        if left_out is not None:
            held_out = held_out & ~left_out
        self.targets = np.random.default_rng([seed, 5]).permutation(np.flatnonzero(held_out))  # (Q,)
        self.candidates = in_evidence_set(passages, config)  # (P,)
        self._found: dict[bool, np.ndarray] = {}  # same document allowed or not -> ids (Q, K)

    def batches(self, count: int | None = None) -> list[np.ndarray]:
        """Places in `targets` of each batch, G at a time, of the first `count` targets (None: all)."""
        count = len(self.targets) if count is None else count
        return [np.arange(i, min(i + TARGETS, count)) for i in range(0, count, TARGETS)]

    def twin(self, arm: str) -> str:
        """The arm that reads the very same and so need not be measured beside it; "" = none.

        `uniform` adds a constant to the scores of a target, which no softmax sees: unless there is one
        more key beside those of the evidence, to which the model can turn.
        """
        if arm == "uniform":
            return "" if self.abstains else "beta_0"
        own_rule = "same_document" if self.config.same_document else "other_documents"
        return "on" if arm == own_rule else ""

    def evidence(self, arm: str, which: np.ndarray) -> np.ndarray:
        """Passage ids (G, K) that the arm finds for the targets at the places `which`, -1 = none."""
        found = self._searched(self._allows_own_document(arm), which)
        if arm != "random":
            return found
        # one draw for each target, the same for every model, of all that could be evidence in other groups
        drawn = np.stack([self._drawn(one) for one in self.targets[which]])
        return np.where(found >= 0, drawn, -1)

    def search(self, arms: Iterable[str], count: int) -> None:
        """Find the evidence of the first `count` targets at once, once for each rule that the arms follow."""
        for rule in {self._allows_own_document(arm) for arm in arms if arm != "off"}:
            self._searched(rule, np.arange(count))

    def _allows_own_document(self, arm: str) -> bool:
        return {"same_document": True, "other_documents": False}.get(arm, self.config.same_document)

    def _searched(self, same_document: bool, which: np.ndarray) -> np.ndarray:
        table = self._found.setdefault(same_document, np.full((len(self.targets), self.k), NOT_SEARCHED))
        missing = which[table[which, 0] == NOT_SEARCHED]
        if len(missing):
            rule, asking = replace(self.config, same_document=same_document), self.targets[missing]
            table[missing], _ = nearest(self.vectors, self.passages, rule, asking, self.candidates, self.k)
        return table[which]

    def _drawn(self, target: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 6, target])
        candidates = np.flatnonzero(self.candidates)
        ids = rng.permutation(candidates[other_groups(self.passages, self.config, target, candidates)])
        return np.concatenate([ids[: self.k], np.full(max(0, self.k - len(ids)), -1, dtype=np.int64)])

    @torch.inference_mode()
    def losses(self, model: MARGE, arms: Iterable[str], which: np.ndarray) -> dict[str, np.ndarray]:
        """Losses (G, S - 1) of the targets at the places `which` under each arm, in nats; padding costs 0.

        The targets are read as one batch. Evidence that several arms show is encoded once.
        """
        targets = self._tokens(model, self.targets[which])
        losses: dict[str, Tensor] = {}
        shown: dict[bytes, WriteCache] = {}
        for arm in arms:
            if arm == "off":
                losses[arm] = model.token_losses(targets, None)
                continue
            found = self.evidence(arm, which)
            shared = self._shared(found, which)
            if not len(shared):
                losses[arm] = model.token_losses(targets, None)
                continue
            if (key := shared.tobytes()) not in shown:
                encoded = model.encode_evidence(self._tokens(model, shared))
                relevance = model.relevance(model.embed(targets), encoded.embeddings)
                shown[key] = model.begin(encoded, relevance)
            visible = (found[:, :, None] == shared).any(axis=1) if arm == "own" else None
            losses[arm] = _read(model, targets, self._changed(shown[key], arm, which, visible))
        width = self.passages.tokens.shape[1] - 1
        return {
            arm: F.pad(values.float(), (0, width - values.shape[1])).cpu().numpy()
            for arm, values in losses.items()
        }

    def _tokens(self, model: MARGE, ids: np.ndarray) -> Tensor:
        """Their tokens, no wider than the longest."""
        width = max(2, int(self.passages.lengths[ids].max(initial=2)))
        return torch.from_numpy(self.passages.tokens[ids, :width]).to(next(model.parameters()).device)

    def _shared(self, found: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The evidence (M,) of a batch: what is to be written is no evidence for another target either."""
        shared, content = np.unique(found[found >= 0]), self.passages.content
        return shared[~np.isin(content[shared], content[self.targets[which]])]

    def _changed(
        self, shown: WriteCache, arm: str, which: np.ndarray, visible: np.ndarray | None
    ) -> WriteCache:
        """The evidence of a batch as an arm has it; visible (G, M): what each target may see, None = all."""
        relevance, seen = shown.relevance, shown.seen
        if visible is not None:
            mine = torch.from_numpy(visible).to(seen.device)
            seen = seen & mine.repeat_interleave(seen.shape[2] // mine.shape[1], dim=1)[:, None]
        elif arm == "beta_0":
            relevance = torch.zeros_like(relevance)
        elif arm == "uniform":
            relevance = relevance.mean(dim=1, keepdim=True).expand_as(relevance)
        elif arm == "shuffled":  # around one circle, so that none keeps its own
            order = np.random.default_rng([self.seed, 7, int(which[0])]).permutation(relevance.shape[1])
            relevance = torch.empty_like(relevance)
            relevance[:, order] = shown.relevance[:, np.roll(order, 1)]
        return WriteCache(relevance, seen, shown.contexts)


def _read(model: MARGE, targets: Tensor, shown: WriteCache) -> Tensor:
    """Losses (G, T - 1) of targets (G, T), a few at a time: what they share was made before."""
    cells = model.config.num_heads * targets.shape[1] * shown.seen.shape[2]
    size, parts = max(1, SCORES_AT_ONCE // cells), []
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        part = WriteCache(shown.relevance[rows], shown.seen[rows], shown.contexts)
        parts.append(model.extend(targets[rows], part)[:, :-1])
    return F.cross_entropy(
        torch.cat(parts).transpose(1, 2), targets[:, 1:], ignore_index=model.config.pad_id, reduction="none"
    )


def measure_live(
    model: MARGE, arms: EvidenceArms, bytes_of_tokens: np.ndarray, max_tokens: int
) -> Generator[Progress, None, dict[str, dict[str, float]]]:
    """Loss of the arms on, random and off on about so many held-out tokens; empty where none are held out.

    bytes_of_tokens (V,) of the text's tokens: bpb = nats / (ln 2 * bytes of the original text). Yields how
    far it is, at each tenth.
    """
    totals = {arm: 0.0 for arm in LIVE_ARMS}
    tokens = size = 0
    model.eval()
    before = np.cumsum(arms.passages.lengths[arms.targets] - 1)
    total = min(max_tokens, int(before[-1])) if len(before) else 0
    tenths = 0
    yield Progress(MEASURING, 0, total)
    arms.search(LIVE_ARMS, min(len(arms.targets), int(np.searchsorted(before, max_tokens)) + TARGETS))
    for which in arms.batches():
        if tokens >= max_tokens:
            break
        written = arms.passages.tokens[arms.targets[which]][:, 1:]
        for arm, losses in arms.losses(model, LIVE_ARMS, which).items():
            totals[arm] += float(losses.sum(dtype=np.float64))
        tokens += int((written != 0).sum())
        size += int(bytes_of_tokens[written].sum())
        if 10 * tokens // total > tenths:
            tenths = 10 * tokens // total
            yield Progress(MEASURING, min(tokens, total), total)
    if not tokens:
        return {}
    return {
        arm: {"nats": total / tokens, "bpb": total / np.log(2) / max(1, size), "tokens": tokens}
        for arm, total in totals.items()
    }
