"""Write text with RETRO, which retrieves at each chunk border.

This module knows models, corpora and retrievers, not folders of runs and not the page.

Shapes: T tokens, L chunks, C chunk length, K neighbors, R = 2 C neighbor length, H heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retro_demo.corpus.retrievers import Database, describe_neighbors
from retro_demo.corpus.titled_retrieval import about
from retro_demo.errors import UserError
from retro_demo.events import Event, Retrieved
from retro_demo.generation.sampling import Continuation, Written, write_tokens
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO
from retro_demo.models.tuned import Tuned
from retro_demo.retrieval.neighbors import end_of_query
from retro_demo.runs.loading import LoadedRun, ready_run, why_none_found
from retro_demo.settings import GenerateConfig
from retro_demo.tokenizer import Tokenizer


def generate(
    model: RETRO | Reader | Tuned,
    tokenizer: Tokenizer,
    prompt: str,
    config: GenerateConfig,
    *,
    context: int,
    num_neighbors: int,
    database: Database | None,
) -> Iterator[Event | Written]:
    """Yield Retrieved and Token events as the text grows, and at the end one Written.

    At the last token of each chunk its neighbors are looked up, encoded once and kept for the
    chunk that follows (RETRO section 2.4); keys and values of all tokens are kept too. `database`
    None, or retrieval "off", writes without neighbors; "shuffled" gives each chunk the neighbors of
    a chunk drawn from the database. `context` is what the run was trained to read; raises UserError
    where prompt and new tokens do not fit.
    """
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else []
    if not ids:
        raise UserError("The prompt is empty. Write a few words for the text to begin with.")
    if len(ids) >= context:
        raise UserError(
            f"The prompt has {len(ids)} tokens, but this run reads at most {context} with what it writes. "
            "Shorten the prompt, or train a run with a longer context."
        )
    if len(ids) + config.max_new_tokens > context:
        raise UserError(
            f"The prompt has {len(ids)} tokens and you ask for {config.max_new_tokens} more, but this run "
            f"reads at most {context} in all. Ask for at most {context - len(ids)}, or train a run with a "
            "longer context."
        )
    ids = model.before_prompt(len(ids)) + ids
    if config.retrieval == "off":
        database = None
    elif database is not None:
        database = about_text(database, config.title or prompt, config.query_tokens)
    writer = _Writer(
        model,
        database,
        config.num_neighbors or num_neighbors,
        np.random.default_rng(config.seed) if config.retrieval == "shuffled" else None,
        len(ids) + config.max_new_tokens,
    )
    written, probabilities = yield from write_tokens(
        ids, config.max_new_tokens, config, tokenizer, writer.read
    )
    yield Written([*ids, *written], len(ids), probabilities, writer.retrieved)


def go_on(
    run: LoadedRun, prompt: str, ids: list[int], most: int, config: GenerateConfig, rows: np.ndarray
) -> Iterator[Event | Written]:
    """As `write`, from within a text that a run has begun: ids (T,), the prompt first, then what was drawn.

    rows (T // C, K, R) are read as the neighbors of the whole chunks that stand there, whatever a search
    would find. At most so many tokens follow, drawn as if the text had never been broken off.
    """
    assert run.database is not None
    database = about_text(run.database, config.title or prompt, config.query_tokens)
    shuffle = np.random.default_rng(config.seed) if config.retrieval == "shuffled" else None
    num_neighbors = config.num_neighbors or run.config.training.num_neighbors
    writer = _Writer(run.model, database, num_neighbors, shuffle, len(ids) + most, rows)
    drawn = config.max_new_tokens - most
    written, probabilities = yield from write_tokens(ids, most, config, run.tokenizer, writer.read, drawn)
    yield Written([*ids, *written], len(ids), probabilities, writer.retrieved)


def first_line(text: str) -> str:
    """The first line of a text that is not empty: its title, where it has one."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def about_text(database: Database, text: str, query_tokens: int = 0) -> Database:
    """The database, searched for a text: by its title (its first line) where the retriever knows titles, and
    with so many tokens at the end of a query; 0: as many as in training."""
    retriever = end_of_query(about(database.retriever, first_line(text)), query_tokens)
    return Database(database.corpus, retriever)


class _Writer:
    """Feeds tokens to the model, one attending chunk at a time, retrieving at each border."""

    def __init__(
        self,
        model: RETRO | Reader | Tuned,
        database: Database | None,
        num_neighbors: int,
        shuffle: np.random.Generator | None,
        room: int,
        given: np.ndarray | None = None,
    ) -> None:
        """given (L, K, R): the neighbors of the first chunks, which are read in place of what would be
        found."""
        self.model = model
        self.shuffle = shuffle
        self.database = database if model.config.cca_layers else None
        self.num_neighbors = num_neighbors
        self.cache: Any = model.new_cache(room)
        self.tokens: list[int] = []
        self.retrieved: list[Retrieved] = []
        self.given = [] if given is None else list(given)
        for _ in self.given:  # what was drawn for them, so that the chunks that follow get theirs
            self._draw()

    def read(self, ids: list[int]) -> Generator[Retrieved, None, Tensor]:
        """Yield a Retrieved for each border passed; returns the logits (V,) after the last token."""
        chunk_len = self.model.config.chunk_len
        logits = None
        while ids:
            to_border = chunk_len - 1 - self.cache.length % chunk_len or chunk_len
            part, ids = ids[:to_border], ids[to_border:]
            self.tokens += part
            neighbors = None
            if (self.cache.length + 1) % chunk_len == 0 and self.database is not None:
                end = self.cache.length + 1
                number = end // chunk_len - 1
                if number < len(self.given):
                    neighbors = self.given[number]
                else:
                    event, neighbors = self._retrieve(self.tokens[end - chunk_len : end], number)
                    yield event
            logits = self._extend(part, neighbors)
        assert logits is not None
        return logits

    @torch.inference_mode()
    def _extend(self, part: list[int], neighbors: np.ndarray | None) -> Tensor:
        device = next(self.model.parameters()).device
        tokens = torch.tensor([part], device=device)
        there = None if neighbors is None else torch.from_numpy(neighbors)[None].to(device)
        logits = self.model.next_logits(tokens, self.cache, there)[0]
        logits[list(self.model.config.unwritten)] = float("-inf")
        return logits

    def _draw(self) -> np.ndarray | None:
        """The chunk (1,) whose neighbors stand for those of the text; None where they are not shuffled."""
        if self.shuffle is None or self.database is None:
            return None
        corpus = self.database.corpus
        return self.shuffle.choice(np.flatnonzero(~corpus.held_out[corpus.chunks.document]), 1)

    def _retrieve(self, chunk: list[int], number: int) -> tuple[Retrieved, np.ndarray]:
        assert self.database is not None
        begun = time.perf_counter()
        corpus = self.database.corpus
        tokens, own = np.array([chunk]), self._draw()
        if own is not None:
            tokens = corpus.chunks.tokens[own]
        found = self.database.retriever.search(tokens, self.num_neighbors, own=own)
        ms = 1000 * (time.perf_counter() - begun)
        neighbors = describe_neighbors(corpus, found.ids[0], found.scores[0])
        event = Retrieved(number, neighbors, round(ms, 2))
        self.retrieved.append(event)
        return event, corpus.neighbor_rows(found.ids[0], self.model.config.title_len)


def write(run: LoadedRun, prompt: str, config: GenerateConfig) -> Iterator[Event | Written]:
    """`generate` for a loaded run, whose retriever must be the one that config names, if it does.

    Raises UserError for a title that nothing searches for.
    """
    if config.retriever not in ("", run.retriever):
        raise ValueError(f"the run was loaded with retriever {run.retriever!r}, not {config.retriever!r}")
    refuse_title(run, config)
    return generate(
        run.model,
        run.tokenizer,
        prompt,
        config,
        context=run.config.context,
        num_neighbors=run.config.training.num_neighbors,
        database=run.database,
    )


def refuse_title(run: LoadedRun, config: GenerateConfig) -> None:
    """Raise UserError where a title is named for a run that looks nothing up by one.

    What is trained beside a pretrained base reads titles in training alone: in writing, the prompt is all
    that its network reads.
    """
    title = config.title
    if title and config.retrieval == "off":
        raise UserError("With retrieval off no title is searched for. Leave the title or --retrieval out.")
    if title and run.database is None:
        raise UserError(f"{run.folder.name} reads no neighbors, so no title is searched for. Leave it out.")
    if title and run.retriever != "bm25-titles":
        raise UserError(
            f"{run.folder.name} looks up by {run.retriever}, which searches for no title. Leave the title "
            "out, or choose the retriever bm25-titles."
        )


def begin_writing(
    folder: Path,
    prompt: str,
    config: GenerateConfig,
    *,
    device: str,
    corpus: str | None,
    language: str,
    evidence: str,
    stop: Callable[[], bool],
) -> Generator[Event, None, Continuation | None]:
    """Yield what is prepared; returns the text that a run in a folder will write, None after a stop.

    `corpus` as for `ready_run`. Raises UserError where a language or evidence is named, which are MARGE's.
    """
    refuse_evidence(language, evidence)
    run = yield from ready_run(folder, device, corpus, config.retriever, stop)
    if run is None:
        return None
    about = {"retriever": run.retriever, "swapped": run.swapped}
    return Continuation(write(run, prompt, config), run.tokenizer, about, partial(why_none_found, run))


def refuse_evidence(language: str, evidence: str) -> None:
    """Raise UserError where evidence or a language is chosen for another model than MARGE."""
    if language or evidence:
        raise UserError("Only a MARGE writes from chosen evidence or in a chosen language. Leave these out.")
