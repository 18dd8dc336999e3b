"""Write a passage with MARGE: from evidence that was chosen, or that its own encoder finds.

This module knows models and corpora, not the page. Relevance is computed from what is written of the passage
so far: an empty passage has none, so all chosen evidence is then equally relevant.

Shapes: P passages, D width, M evidence, S evidence length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.events import Event, Retrieved, Token
from retro_demo.evidence.passages import Passages, cut_passages, in_evidence_set
from retro_demo.evidence.reindex import embed_passages
from retro_demo.evidence.vectors import Vectors, relevance_of_text
from retro_demo.generation.sampling import Continuation, Written, write_tokens
from retro_demo.models.marge import MARGE
from retro_demo.runs.checkpoint import MargeRun, load_marge, read_marge_config
from retro_demo.runs.loading import load_own_corpus
from retro_demo.settings import GenerateConfig
from retro_demo.tokenizer import Tokenizer

MOST_CHOSEN = 64  # passages: more than a batch of training holds, and within a few seconds


@dataclass(frozen=True)
class LoadedMarge:
    """A MARGE run in memory, its passages embedded by its own encoder: vectors of length 1."""

    folder: Path
    config: MargeRun
    model: MARGE
    tokenizer: Tokenizer
    corpus: Corpus
    passages: Passages
    vectors: Vectors


def load_marge_run(folder: Path, device: str = "auto") -> LoadedMarge:
    """Read a run and its corpus, and embed its passages; raises UserError where they do not fit."""
    config = read_marge_config(folder)
    corpus = load_own_corpus(folder, config)
    model = load_marge(folder, choose_device(device))
    passages = cut_passages(corpus, config.evidence.passage_len, config.network.languages)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    vectors = embed_passages(model, passages.tokens)
    return LoadedMarge(folder, config, model, tokenizer, corpus, passages, vectors)


def choose_passages(run: LoadedMarge, documents: Sequence[str]) -> np.ndarray:
    """All passages (M,) of the documents with these ids; raises UserError for unknown ones and too many."""
    known = {document.id: i for i, document in enumerate(run.corpus.documents)}
    if strange := [name for name in documents if name not in known]:
        raise UserError(
            f"{run.corpus.name} has no document {strange[0][:80]!r}. Give ids such as "
            f"{run.corpus.documents[0].id!r}, separated by commas."
        )
    chosen = np.flatnonzero(np.isin(run.passages.document, [known[name] for name in documents]))
    if len(chosen) > MOST_CHOSEN:
        raise UserError(
            f"The chosen documents have {len(chosen):,} passages; a text is written from at most "
            f"{MOST_CHOSEN}. Choose fewer documents."
        )
    return chosen


def find_passages(run: LoadedMarge, tokens: Sequence[int], count: int) -> np.ndarray:
    """The passages (count,) that are most relevant to a text of these tokens, best first, never the same.

    Where the run was trained with evidence in other languages only, so is what is found.
    """
    text = np.array([[*tokens]], dtype=np.int64)
    scores = relevance_of_text(run.vectors, embed_passages(run.model, text))
    own = [token for token in tokens[1:] if token != run.tokenizer.eos_id]
    for passage in np.flatnonzero(run.passages.lengths >= len(own)):
        there = run.passages.tokens[passage, 1:]
        if there[(there != 0) & (there != run.tokenizer.eos_id)].tolist() == own:
            scores[passage] = -np.inf
    scores[~_may_be_found(run, tokens[0])] = -np.inf
    best = np.argsort(-scores, kind="stable")[:count]
    return best[np.isfinite(scores[best])]


def _may_be_found(run: LoadedMarge, language_token: int) -> np.ndarray:
    """Which passages the run takes for evidence of a text in this language, bool (P,), as in training."""
    may = in_evidence_set(run.passages, run.config.evidence)
    if run.config.evidence.evidence_languages == "other":
        may = may & (run.passages.tokens[:, 0] != language_token)
    return may


def likely_language(run: LoadedMarge, prompt: str, documents: Sequence[str]) -> str:
    """What to write in where nobody says: the language of the passage most like the prompt.

    Without a prompt that of the first chosen document. The encoder does not see what language a text
    is marked with, so like is told by what stands in it.
    """
    known = run.config.network.languages
    if len(known) == 1 or not (prompt or documents):
        return known[0]
    if prompt:
        # a longer one has no room anyway, and its embedding would take memory as the square of its length
        words = run.tokenizer.encode(prompt)[: run.config.evidence.passage_len - 1]
        tokens = np.array([[run.config.network.vocab_size, *words]], dtype=np.int64)
        like = int(relevance_of_text(run.vectors, embed_passages(run.model, tokens)).argmax())
    else:
        like = int(choose_passages(run, documents[:1])[0])
    return known[run.passages.language[like]]


def first_token(run: LoadedMarge, language: str) -> int:
    """The token of a language that the run knows; raises UserError for another."""
    known = run.config.network.languages
    if language not in known:
        raise UserError(
            f"This run writes no {language[:80]!r}. Choose one of {', '.join(filter(None, known)) or 'none'}."
        )
    return run.config.network.vocab_size + known.index(language)


def describe_passages(
    run: LoadedMarge, ids: np.ndarray, relevance: np.ndarray | None
) -> list[dict[str, Any]]:
    """Passage ids and relevance (M,) -> a dict for each: passage, document, title, language, score, text.

    The score is None where no relevance was computed.
    """
    described = []
    scores = [None] * len(ids) if relevance is None else relevance.round(4).tolist()
    for passage, score in zip(ids.tolist(), scores, strict=True):
        document = run.corpus.documents[run.passages.document[passage]]
        described.append(
            {
                "passage": passage,
                "document": document.id,
                "title": document.title,
                "language": document.lang,
                "score": score,
                "text": run.tokenizer.decode(run.passages.tokens[passage, 1:].tolist()),
            }
        )
    return described


def write_from_evidence(
    run: LoadedMarge,
    prompt: str,
    config: GenerateConfig,
    *,
    language: str = "",
    documents: Sequence[str] = (),
    passages: np.ndarray | None = None,
) -> Iterator[Event | Written]:
    """Yield a Retrieved with the evidence, Token events as the passage grows, and at the end one Written.

    `documents` are ids of evidence to write from; none: the prompt finds its own (retrieval "shuffled"
    takes random passages, "off" none); `passages` are ids (M,) in place of all that. `language`: default
    the likely one. A text ends where its passage is full, at the latest. Raises UserError where there is
    neither prompt nor evidence, no room, or evidence is chosen and refused or counted, too.
    """
    if not isinstance(prompt, str):
        raise UserError(f"The prompt is {prompt!r}, which is no text. Give a text, or nothing.")
    language = language or likely_language(run, prompt, documents)
    start = [first_token(run, language), *run.tokenizer.encode(prompt)]
    room = run.config.evidence.passage_len - len(start)
    if documents and config.retrieval == "off":
        raise UserError(
            "Evidence is chosen and retrieval is off. Leave the evidence out, or turn retrieval on."
        )
    if documents and config.num_neighbors:
        raise UserError(
            f"Evidence is chosen, and {config.num_neighbors} pieces are asked for. All passages of the "
            "chosen documents are read: leave the number out, or choose no evidence."
        )
    if len(start) == 1 and not documents:
        raise UserError("There is neither a prompt nor evidence. Begin the text, or choose documents.")
    if room < 1:
        raise UserError(
            f"The prompt has {len(start) - 1} tokens, but a passage of this run has "
            f"{run.config.evidence.passage_len - 1}: nothing can follow. Shorten it."
        )
    begun = time.perf_counter()
    ids = _evidence(run, start, config, documents) if passages is None else passages
    device = run.model.embedding.weight.device
    with torch.inference_mode():
        shown = run.passages.tokens[ids] if len(ids) else np.zeros((0, 1), dtype=np.int64)
        encoded = run.model.encode_evidence(torch.from_numpy(shown).to(device))
        target = torch.tensor([start], device=device)
        relevance = run.model.relevance(run.model.embed(target), encoded.embeddings)
        if len(start) == 1:
            relevance = torch.zeros_like(relevance)
        most = min(room, config.max_new_tokens)
        cache = run.model.begin(encoded, relevance, room=len(start) + most)
    known = None if len(start) == 1 else relevance[0].float().cpu().numpy()
    described = describe_passages(run, ids, known)
    retrieved = Retrieved(0, described, round(1000 * (time.perf_counter() - begun), 2))
    yield retrieved

    def read(part: list[int]) -> Generator[Event, None, Tensor]:
        with torch.inference_mode():
            logits = run.model.next_logits(torch.tensor([part], device=device), cache)[0]
            logits[run.model.config.pad_id] = float("-inf")
            logits[run.model.config.vocab_size :] = float("-inf")  # a language is no text
        yield from ()
        return logits

    written, probabilities = yield from write_tokens(start, most, config, run.tokenizer, read)
    yield Written([*start[1:], *written], len(start) - 1, probabilities, [retrieved])


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
    """Yield what is prepared; returns the text that a MARGE in a folder will write.

    `language` "" is the likely one, `evidence` are ids of documents with commas between, "" for what it
    finds. Raises UserError where another corpus or retriever is named.
    """
    refuse_retriever(corpus or "", config)
    yield from ensure_sample(read_marge_config(folder).corpus, stop)
    run = load_marge_run(folder, device)
    documents = ids_of(run, evidence)
    language = language or likely_language(run, prompt, documents)
    events = write_from_evidence(run, prompt, config, language=language, documents=documents)
    return Continuation(events, run.tokenizer, {"language": language})


def refuse_retriever(corpus: str, config: GenerateConfig) -> None:
    """Raise UserError where another corpus or retriever, or a title to search for, is named for a MARGE."""
    if corpus or config.retriever or config.title:
        raise UserError(
            "A MARGE finds evidence in its own corpus by itself. Leave the corpus, the retriever and the "
            "title out."
        )


def ids_of(run: LoadedMarge, evidence: object) -> list[str]:
    """The ids in a text such as "udhr/01/eng, udhr/02/eng", or in a list; an id may hold a comma itself."""
    if isinstance(evidence, list) and all(isinstance(name, str) for name in evidence):
        return evidence
    if not isinstance(evidence, str):
        raise UserError(
            f"The evidence is {evidence!r}. Give ids of documents with commas between, or a list."
        )
    if any(evidence.strip() == document.id for document in run.corpus.documents):
        return [evidence.strip()]
    return [name.strip() for name in evidence.split(",") if name.strip()]


def grown(
    run: LoadedMarge, prompt: str, events: Iterable[Event | Written], name: str
) -> Iterator[dict[str, Any]]:
    """What `write_from_evidence` tells as the HTTP endpoint does: {"text", "new_tokens", "done"}.

    The evidence comes with the end.
    """
    begun = time.perf_counter()
    pieces: list[str] = []
    for event in events:
        if isinstance(event, Token):
            pieces.append(event.text)
            yield {"text": prompt + "".join(pieces), "new_tokens": len(pieces), "done": False}
        elif isinstance(event, Written):
            chunks = [{"chunk": e.chunk, "ms": e.ms, "neighbors": e.neighbors} for e in event.retrieved]
            yield {
                "text": run.tokenizer.decode(event.tokens),
                "new_tokens": len(event.tokens) - event.prompt_tokens,
                "run": name,
                "seconds": round(time.perf_counter() - begun, 3),
                "chunks": chunks,
                "done": True,
            }


def _evidence(
    run: LoadedMarge, start: list[int], config: GenerateConfig, documents: Sequence[str]
) -> np.ndarray:
    """Ids (M,) of the passages to write from."""
    if config.retrieval == "off":
        return np.zeros(0, dtype=np.int64)
    chosen = choose_passages(run, documents) if documents else None
    count = config.num_neighbors or max(1, round(run.config.evidence.evidence_per_target))
    if config.retrieval == "shuffled":
        count = count if chosen is None else len(chosen)
        candidates = np.flatnonzero(_may_be_found(run, start[0]))
        return np.random.default_rng(config.seed).permutation(candidates)[:count]
    return find_passages(run, start, count) if chosen is None else chosen
