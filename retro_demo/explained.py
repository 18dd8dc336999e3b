"""A finished text, somebody's or the model's own, read with the neighbors that are found for it.

This module knows loaded runs and traces; it does not know whose they are or how they are shown.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro_demo.corpus import MANIFEST, Corpus, read_stored_documents
from retro_demo.errors import UserError
from retro_demo.events import Retrieved
from retro_demo.explain_config import ExplainConfig
from retro_demo.generate import Database, Written, describe_neighbors
from retro_demo.knobs import knobs, to_json
from retro_demo.lexical import LexicalRetriever
from retro_demo.loading import LoadedRun, load_retriever
from retro_demo.neighbors import Neighbors
from retro_demo.provenance import place_name, provenance
from retro_demo.tracing import Trace, trace
from retro_demo.workspace import is_built

TELLING = 100  # characters: a shorter text may stand in a document by chance


def explain_text(run: LoadedRun, name: str, text: str, config: ExplainConfig) -> Trace:
    """Read a text as if the model had written it, and explain it; one page of it where it is long.

    Raises UserError for an empty text, a page that is not there, or more neighbors than there are.
    """
    ids = run.tokenizer.encode(text) if isinstance(text, str) else []
    if len(ids) < 2:
        raise UserError("There is nothing to explain. Paste a few sentences, or choose a document.")
    size = run.config.training.seq_len
    pages = -(-len(ids) // size)
    if config.page > pages:
        raise UserError(f"You ask for page {config.page}, but this text has {pages}. Choose one of them.")
    page = ids[(config.page - 1) * size : config.page * size]
    if len(page) < 2:
        raise UserError(f"Page {config.page} holds a single token, which nothing can be said of.")
    about = {"given": True, "prompt": text, "page": config.page, "pages": pages}
    return explain_tokens(run, name, page, 0, config, about)


def explain_again(run: LoadedRun, shown: Trace, config: ExplainConfig) -> Trace:
    """The text of a trace read once more, with other neighbors, another retriever or another corpus."""
    about = shown.about
    if about.get("given"):
        return explain_text(run, about["run"], about["prompt"], config)
    kept = {name: about[name] for name in ("prompt", "written_with") if name in about}
    return explain_tokens(run, about["run"], shown.ids, shown.prompt_tokens, config, kept)


def explain_tokens(
    run: LoadedRun,
    name: str,
    ids: list[int],
    prompt_tokens: int,
    config: ExplainConfig,
    about: dict[str, object],
) -> Trace:
    """As `explain_text`, for tokens of which the first were a prompt; `about` is kept with the trace."""
    begun = time.perf_counter()
    retrieved: list[Retrieved] = []
    text = run.tokenizer.decode(ids)
    source = ""
    if run.database is not None:
        own = document_of(run.database.corpus, str(about["prompt"])) if about.get("given") else None
        source = run.database.corpus.documents[own].title if own is not None else ""
        retrieved = look_up(run, ids, config, own)
    written = Written(ids, prompt_tokens, [], retrieved)
    kept = describe(run, name, text, retrieved) | about | {"config": to_json(config), "source": source}
    made = trace(run.model, run.tokenizer, written, run.database, kept)
    return with_origin(made, run, config, begun)


def describe(run: LoadedRun, name: str, text: str, retrieved: Sequence[Retrieved]) -> dict[str, object]:
    """What the page says about any trace."""
    times = [event.ms for event in retrieved]
    return {
        "run": name,
        "model": run.config.model,
        "text": text,
        "corpus": run.config.corpus_fingerprint,
        "database": run.swapped or place_name(run.config.corpus),
        "swapped": bool(run.swapped),
        "retriever": run.retriever,
        "versions": run.config.versions,
        "search_times": times,
        "search_ms": round(sum(times) / len(times), 2) if times else None,
    }


def with_origin(made: Trace, run: LoadedRun, config: ExplainConfig, begun: float) -> Trace:
    """The trace with where it comes from, and the command that makes its explanation again."""
    kept = [k.name for k in knobs(config) if k.name != "page" and getattr(config, k.name) != k.default]
    flags = [f"--{name.replace('_', '-')} {getattr(config, name)}" for name in kept]
    text = shlex.quote(str(made.about["text"]))  # of a long text its page
    seconds = time.perf_counter() - begun
    made.about["provenance"] = provenance(
        run.folder,
        command=" ".join(["python -m retro_demo explain", place_of(run.folder), f"--text {text}", *flags]),
        seconds=seconds,
        settings=to_json(config) | {"database": made.about["database"], "retriever": run.retriever},
    )
    made.about.setdefault("seconds", round(seconds, 3))
    return made


def place_of(run: Path) -> str:
    """How a command names a run, without the folders of this machine."""
    return f"checkpoints/{run.name}" if run.parent.name == "checkpoints" else run.name


def document_of(corpus: Corpus, text: str) -> int | None:
    """The document that holds the text word for word; None where none does, or the text is too short."""
    wanted = text.strip()
    if len(wanted) < TELLING:
        return None
    return next((number for number, one in enumerate(corpus.documents) if wanted in one.text), None)


def look_up(run: LoadedRun, ids: list[int], config: ExplainConfig, own: int | None) -> list[Retrieved]:
    """The neighbors of each whole chunk of a text.

    Where the text is of document `own` of this corpus, that document and its near-duplicates are
    never its neighbors, as in training.
    """
    assert run.database is not None
    corpus, k = run.database.corpus, config.num_neighbors or run.config.training.num_neighbors
    chunk_len = run.model.config.chunk_len
    chunks = np.array(ids[: len(ids) // chunk_len * chunk_len], dtype=np.int64).reshape(-1, chunk_len)
    queries, chunk_of_own = chunks, None
    if own is not None:
        first = int(np.flatnonzero(corpus.chunks.document == own)[0])
        chunk_of_own = np.full(len(chunks), first)
    if config.retrieval == "shuffled":
        drawn = np.random.default_rng(config.seed)
        chunk_of_own = drawn.choice(np.flatnonzero(~corpus.held_out[corpus.chunks.document]), len(chunks))
        queries = corpus.chunks.tokens[chunk_of_own]
    retrieved = []
    for number, query in enumerate(queries):
        begun = time.perf_counter()
        there = None if chunk_of_own is None else chunk_of_own[[number]]
        found = run.database.retriever.search(query[None], k, own=there)
        ms = 1000 * (time.perf_counter() - begun)
        neighbors = describe_neighbors(corpus, found.ids[0], found.scores[0])
        for one in neighbors:
            cluster = corpus.cluster[corpus.chunks.document[one["chunk"]]]
            one["same_document"] = own is not None and bool(cluster == corpus.cluster[own])
        retrieved.append(Retrieved(number, neighbors, round(ms, 2)))
    add_bm25(run.database, chunks, retrieved)
    return retrieved


def add_bm25(database: Database, chunks: np.ndarray, retrieved: Sequence[Retrieved]) -> None:
    """Note the BM25 score of each neighbor too: a second opinion on how much it shares."""
    lexical = load_retriever(database.corpus, "bm25")
    assert isinstance(lexical, LexicalRetriever)
    for event in retrieved:
        ids = np.array([[one["chunk"] for one in event.neighbors]], dtype=np.int64)
        if ids.size:
            before = Neighbors(ids, np.zeros(ids.shape, np.float32))
            ranked = lexical.rescore(chunks[[event.chunk]], before, ids.shape[1])
            score = dict(zip(ranked.ids[0].tolist(), ranked.scores[0].tolist(), strict=True))
            for one in event.neighbors:
                one["bm25"] = round(score[one["chunk"]], 3)


def held_out_documents(folder: Path) -> list[tuple[str, int]]:
    """(title, number) of the held-out documents of a corpus folder; none before it is built."""
    if not is_built(folder):
        return []
    held_out = json.loads((folder / MANIFEST).read_text("utf-8"))["held_out"]
    documents = read_stored_documents(folder / "documents.jsonl")
    return [(one.title or one.id, i) for i, one in enumerate(documents) if held_out[i]]


def document_text(folder: Path, number: int) -> str:
    """The text of a document of a built corpus by its number; raises UserError where it has no such one."""
    documents = read_stored_documents(folder / "documents.jsonl") if is_built(folder) else []
    if not 0 <= number < len(documents):
        raise UserError(f"There is no document {number} in this corpus; it has {len(documents)}.")
    return documents[number].text
