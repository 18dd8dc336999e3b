"""What a visitor can ask of where a text came from, and of a document at a place.

Corpora and runs are named by their ids in a workspace, so nobody's text is looked for in a corpus of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retro_demo.corpus.opening import OpenedDocument, open_document, place_in, place_of_chunk, place_of_tokens
from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.explain.origins import SearchedCorpus, trace_run, trace_spans
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.loading import LoadedRun
from retro_demo.server import service
from retro_demo.server.limits import check_neighbors, limits_of, weighed_tokens
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace
from retro_demo.settings import ExplainConfig, OriginsConfig


@dataclass(frozen=True)
class TraceTarget:
    """What a visitor names: a run, a corpus, or a run that reads another corpus than its own."""

    run: str = ""
    corpus: str = ""

    def __post_init__(self) -> None:
        if not self.run and not self.corpus:
            raise UserError("Neither a run nor a corpus is named. Name one whose documents are searched.")


def searched(cache: ModelCache, workspace: Workspace, asked: TraceTarget) -> SearchedCorpus:
    """The corpus that is searched, with its index, which is made once; UserError where it is not built."""
    if asked.corpus:
        return cache.searched(service.built_corpus(workspace, asked.corpus))
    title, folder = service.corpus_of_run(workspace, asked.run)
    if not folder.exists():
        raise UserError(f"The corpus {title} of {asked.run} is not here, so nothing can be looked for in it.")
    return cache.searched(folder)


def loaded(
    cache: ModelCache, workspace: Workspace, asked: TraceTarget, retriever: str = ""
) -> LoadedRun | None:
    """The run that is named, ready to read; None for none, or one that reads no neighbors of chunks."""
    if not asked.run:
        return None
    config = read_any_config(workspace.run(asked.run))
    if config.kind.chosen_evidence or not config.retrieves:
        return None
    service.check_ready(workspace, asked.run, asked.corpus)
    other = service.built_corpus(workspace, asked.corpus) if asked.corpus else None
    return cache.run(workspace.run(asked.run), other, retriever)


def trace(
    cache: ModelCache,
    workspace: Workspace,
    asked: TraceTarget,
    text: str,
    *,
    phrase: str = "",
    occurrence: int = 1,
    explain: ExplainConfig | None = None,
    config: OriginsConfig | None = None,
) -> Iterator[Progress | dict[str, Any]]:
    """Where a text came from, as `trace_run`, or as `trace_spans` without a run that reads neighbors.

    Of a phrase so many tokens are read as `weighed_tokens` allows here.
    """
    config, explain = config or OriginsConfig(), explain or ExplainConfig()
    limits = limits_of(workspace.home)
    check_neighbors(limits, explain.num_neighbors)
    run = loaded(cache, workspace, asked, explain.retriever)
    if run is None:
        if phrase:
            raise UserError("A phrase is attributed to neighbors: name a run that reads some.")
        yield trace_spans(searched(cache, workspace, asked), text, config)
        return
    yield from trace_run(
        run,
        asked.run,
        searched(cache, workspace, asked),
        text,
        explain=explain,
        config=config,
        phrase=phrase,
        occurrence=occurrence,
        most_tokens=weighed_tokens(limits, run.config),
    )


def open_at(
    cache: ModelCache,
    workspace: Workspace,
    asked: TraceTarget,
    document: str,
    start: int = 0,
    end: int = 0,
) -> OpenedDocument:
    """A document (id or title) at characters start to end - 1."""
    corpus = searched(cache, workspace, asked).corpus
    return open_document(corpus, place_in(corpus, document, start, end))


def open_chunk(cache: ModelCache, workspace: Workspace, asked: TraceTarget, chunk: int) -> OpenedDocument:
    """The document beside N and F: at a chunk, as the run or corpus numbers it, and its continuation."""
    corpus = _as_read(cache, workspace, asked)
    return open_document(corpus, place_of_chunk(corpus, chunk, 2))


def open_tokens(
    cache: ModelCache, workspace: Workspace, asked: TraceTarget, first: int, end: int
) -> OpenedDocument:
    """The document of a sentence of a neighbor, at its tokens as an attribution names them."""
    corpus = _as_read(cache, workspace, asked)
    if not 0 <= first < end <= corpus.chunks.tokens.size:
        raise UserError(
            f"Tokens {first} to {end} are none of the {corpus.chunks.tokens.size:,} of this corpus."
        )
    return open_document(corpus, place_of_tokens(corpus, first, end))


def _as_read(cache: ModelCache, workspace: Workspace, asked: TraceTarget) -> Corpus:
    """The corpus in the chunks in which the run reads it."""
    run = loaded(cache, workspace, asked)
    if run is not None and run.database is not None:
        return run.database.corpus
    return searched(cache, workspace, asked).corpus
