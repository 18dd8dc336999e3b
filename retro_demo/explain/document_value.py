"""What documents are worth to a run: which tokens lose their gain where the documents are forgotten.

The same text is read with the neighbors that the database gives and with those that it gives without the
documents, found by the same search. Of several documents each is left out alone, too, so that a loss has a
cause. Nothing is changed on disk.

Shapes: T tokens, L = T // C chunks, C chunk length, K neighbors, R = 2 C, N chunks of the corpus.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_demo.corpus.changes import find_documents
from retro_demo.corpus.retrievers import Database, neighbor_table
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import held_out_windows
from retro_demo.explain.attribution import log_probabilities, losses_of, read_losses
from retro_demo.explain.text import document_of, too_close
from retro_demo.generation.retro import about_text
from retro_demo.runs import commands
from retro_demo.runs.loading import LoadedRun
from retro_demo.runs.provenance import provenance
from retro_demo.settings import WeighConfig, to_json
from retro_demo.tokenizer import pieces_of

CONTEXT = 12  # tokens shown before one that lost


@dataclass(frozen=True)
class Passage:
    """A stretch of text to read: tokens (T,), the chunks (L,) of the corpus they are, what may not be read.

    own is None for text from outside; banned (N,) bool are the chunks too close to it.
    """

    title: str
    tokens: np.ndarray
    own: np.ndarray | None
    banned: np.ndarray


def weigh(run: LoadedRun, documents: Sequence[str], config: WeighConfig, text: str = "") -> dict[str, Any]:
    """Which tokens lose most where the documents (ids or titles) are forgotten, as plain JSON.

    Read is the text, or held-out text of the corpus that finds one of the documents. Losses in nats.
    Raises UserError for a run that reads no neighbors, and where no neighbor could be of the documents.
    """
    begun = time.perf_counter()
    if run.database is None:
        raise UserError(
            f"{run.folder.name} ({run.config.model}) reads no documents. Name a run that retrieves."
        )
    if not documents:
        raise UserError("No document is named. Name those to weigh.")
    corpus = run.database.corpus
    names = find_documents(corpus, documents)
    numbers = np.flatnonzero(np.isin([one.id for one in corpus.documents], names))
    numbers = numbers[~corpus.held_out[numbers]]
    if not len(numbers):
        raise UserError("These documents are held out, so they are nobody's neighbor. Name others.")
    k = config.num_neighbors or run.config.training.num_neighbors
    if text:
        passages, found = list(_pages(run, text, config.max_tokens)), {}
    else:
        passages, found = _held_out(run, numbers, k, config)
    rows: list[dict[str, Any]] = []
    totals = np.zeros(5)
    database = about_text(run.database, text)
    for number, passage in enumerate(passages):
        more, part = _weigh_passage(run, database, passage, numbers, k)
        rows += [{"passage": number} | row for row in more]
        totals += part
    rows.sort(key=lambda row: -row["lost"])
    tokens, reading, before, after, off = totals.tolist()
    words = [commands.name_for_command(run.folder)]
    words += [f"--text={text}"] * bool(text)
    words += (
        ["--corpus", commands.name_for_command(run.corpus_folder)] if run.corpus_folder is not None else []
    )
    words += [*commands.set_flags(config), "--", *documents]  # an id or a title may begin with a dash
    return {
        "weighed": [corpus.documents[number].title for number in numbers],
        "passages": len(passages),
        "tokens": int(tokens),
        "chunks_reading": int(reading),
        **found,
        "nats": {
            name: value / tokens if tokens else None
            for name, value in (("with", before), ("without", after), ("off", off))
        },
        "rows": rows[: config.rows],
        "provenance": provenance(
            run.folder,
            command=commands.command("weigh", *words),
            seconds=time.perf_counter() - begun,
            settings=to_json(config) | {"retriever": run.retriever, "database": corpus.fingerprint},
        ),
    }


def _pages(run: LoadedRun, text: str, most: int) -> Iterator[Passage]:
    """A text in stretches that the run reads at a time."""
    assert run.database is not None
    corpus, size = run.database.corpus, run.config.training.seq_len
    ids = run.tokenizer.encode(text)[:most]
    least = run.model.config.chunk_len + 1
    if len(ids) < least:
        raise UserError(
            f"The text has {len(ids)} tokens, and only those after the first {least - 1} read neighbors. "
            f"Give at least {least} tokens, better several times as many."
        )
    own = document_of(corpus, text)
    title = "the text" if own is None else corpus.documents[own].title
    for start in range(0, len(ids) - least + 1, size):
        page = np.array(ids[start : start + size])
        if len(page) >= least:
            first = None
            if own is not None:
                first = np.full(len(page) // (least - 1), np.flatnonzero(corpus.chunks.document == own)[0])
            yield Passage(title, page, first, too_close(corpus, own))


def _held_out(
    run: LoadedRun, numbers: np.ndarray, k: int, config: WeighConfig
) -> tuple[list[Passage], dict[str, int]]:
    """Windows of held-out documents that find one of the documents; how many chunks do, of how many."""
    assert run.database is not None
    corpus = run.database.corpus
    chunk_len = run.model.config.chunk_len
    table = neighbor_table(corpus, run.retriever, run.config.training.query_tokens)[:, :k]
    finds = np.any((table >= 0) & np.isin(corpus.chunks.document[table], numbers), axis=1)  # (N,)
    windows = held_out_windows(corpus, run.config.training.seq_len // chunk_len, config.seed)
    held_out = corpus.held_out[corpus.chunks.document]
    figures = {
        "held_out_chunks": int(held_out.sum()),
        "held_out_chunks_finding": int(np.sum(finds & held_out)),
    }
    passages, read = [], 0
    for rows, document in zip(windows.rows, windows.document.tolist(), strict=True):
        rows = rows[rows >= 0]
        if read < config.max_tokens and np.take(finds, rows[:-1]).any():
            tokens = corpus.chunks.tokens[rows].reshape(-1)
            tokens = tokens[: np.flatnonzero(tokens)[-1] + 1]
            own = rows[: len(tokens) // chunk_len]
            passages.append(
                Passage(corpus.documents[document].title, tokens, own, too_close(corpus, document))
            )
            read += len(tokens)
    return passages, figures


def _ranked(database: Database, passage: Passage, numbers: np.ndarray, k: int, chunk_len: int) -> np.ndarray:
    """The nearest chunks of each chunk of a passage: ids (L, F), best first, -1 = none.

    So many that k which may be read are left without these documents, where there are as many: what would
    be found without any of them follows from one search.
    """
    corpus = database.corpus
    queries = passage.tokens[: len(passage.tokens) // chunk_len * chunk_len].reshape(-1, chunk_len)
    banned = passage.banned | np.isin(corpus.chunks.document, numbers)
    fetch = min(4 * k, len(banned))
    while True:
        ids = database.retriever.search(queries, fetch, own=passage.own).ids
        left = ((ids >= 0) & ~banned[ids]).sum(axis=1)
        if ((left >= k) | (ids[:, -1] < 0)).all() or fetch == len(banned):
            return np.pad(ids, ((0, 0), (0, max(0, k - fetch))), constant_values=-1)
        fetch = min(4 * fetch, len(banned))


def _weigh_passage(
    run: LoadedRun, database: Database, passage: Passage, numbers: np.ndarray, k: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """One row for each token that can read neighbors; tokens, chunks that read the documents, and losses."""
    corpus, chunk_len = database.corpus, run.model.config.chunk_len
    tokens = passage.tokens

    there = _ranked(database, passage, numbers, k, chunk_len)  # (L, F)

    def neighbors(without: np.ndarray) -> np.ndarray:
        """The neighbors (L, k) that the database gives where these documents are not in it."""
        gone = (there < 0) | passage.banned[there] | np.isin(corpus.chunks.document[there], without)
        first = np.argsort(gone, axis=1, kind="stable")[:, :k]  # those that stay, in their order
        return np.take_along_axis(np.where(gone, -1, there), first, axis=1)

    given = neighbors(np.zeros(0, dtype=np.int64))
    read = np.where(given >= 0, corpus.chunks.document[given], -1)  # (L, k) documents
    present = np.intersect1d(numbers, read)
    alone = [neighbors(np.array([number])) for number in present] if len(present) > 1 else []
    reads = np.stack([given, neighbors(numbers), *alone])
    losses = read_losses(run.model, tokens, corpus.neighbor_rows(reads, run.model.config.title_len))
    off = losses_of(log_probabilities(run.model, tokens, None), tokens)[0]
    which = np.argmax(losses[2:] - losses[0], axis=0) if alone else np.zeros(len(tokens), dtype=int)
    shown = np.arange(chunk_len - 1, len(tokens) - 1)
    pieces = pieces_of(run.tokenizer, tokens.tolist())
    rows = []
    for t in shown if len(present) else ():
        before, after, without = losses[0, t], losses[1, t], off[t]
        rows.append(
            {
                "position": int(t) + 1,
                "token": pieces[t + 1],
                "context": "".join(pieces[max(0, t + 1 - CONTEXT) : t + 1]),
                "text": passage.title,
                "log_p_with": -float(before),
                "log_p_without": -float(after),
                "log_p_off": -float(without),
                "lost": float(after - before),
                "gain_with": float(without - before),
                "gain_without": float(without - after),
                "because": corpus.documents[int(present[which[t]])].title,
            }
        )
    reading = np.isin(read, numbers).any(axis=1).sum()
    totals = [len(shown), reading, losses[0, shown].sum(), losses[1, shown].sum(), off[shown].sum()]
    return rows, np.array(totals, dtype=float)
