"""A given text explained, and a generated one watched until its trace is made.

The text is read with the neighbors that are found for it. This module knows loaded runs and traces; it does
not know whose they are or how they are shown.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.retrievers import Database, describe_neighbors
from retro_demo.corpus.store import MANIFEST, Corpus, is_built, read_stored_documents
from retro_demo.errors import UserError
from retro_demo.events import Retrieved, Token
from retro_demo.explain.heads import head_rows
from retro_demo.explain.tracing import Trace, as_json, trace
from retro_demo.generation.retro import about_text, first_line, write
from retro_demo.generation.sampling import Written
from retro_demo.retrieval.neighbors import Neighbors
from retro_demo.runs import commands
from retro_demo.runs.loading import LoadedRun, why_none_found
from retro_demo.runs.provenance import folder_name, provenance
from retro_demo.settings import MOST_NEIGHBORS, ExplainConfig, GenerateConfig, to_json
from retro_demo.tokenizer import pieces_of

TITLED = "bm25-titles"
TELLING = 100  # characters: a shorter text may stand in a document by chance


def explain_text(run: LoadedRun, name: str, text: str, config: ExplainConfig) -> Trace:
    """Read a text as if the model had written it, and explain it; one page of it where it is long.

    Raises UserError for an empty text, a page that is not there, or more neighbors than there are.
    """
    ids = run.tokenizer.encode(text) if isinstance(text, str) else []
    if len(ids) < 2:
        raise UserError("There is nothing to explain. Paste a few sentences, or choose a document.")
    size = run.config.page
    pages = -(-len(ids) // size)
    if config.page > pages:
        raise UserError(f"You ask for page {config.page}, but this text has {pages}. Choose one of them.")
    page = ids[(config.page - 1) * size : config.page * size]
    if len(page) < 2:
        raise UserError(f"Page {config.page} holds a single token, which nothing can be said of.")
    about = {"given": True, "prompt": text, "page": config.page, "pages": pages}
    return explain_tokens(run, name, page, 0, config, about)


def explain_written(
    run: LoadedRun, name: str, ids: Sequence[int], prompt_tokens: int, config: ExplainConfig
) -> Trace:
    """As `explain_text`, for a text that a run wrote, as its token ids: the first few were the prompt.

    The words alone would not do: a model can cut them into other tokens than the tokenizer does.
    """
    size, vocab_size = run.config.context, run.tokenizer.vocab_size
    if not 2 <= len(ids) <= size:
        raise UserError(f"You give {len(ids)} tokens; this run reads from 2 to {size} at a time.")
    if not all(0 <= one < vocab_size for one in ids):
        raise UserError(f"A token is a number from 0 to {vocab_size - 1}; these go up to {max(ids)}.")
    if not 0 <= prompt_tokens <= len(ids):
        raise UserError(f"{prompt_tokens} tokens were the prompt, you say, but there are {len(ids)} in all.")
    about: dict[str, object] = {"prompt": run.tokenizer.decode(list(ids[:prompt_tokens]))}
    return explain_tokens(run, name, list(ids), prompt_tokens, config, about)


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
    """As `explain_text`, for tokens of which the first were a prompt; `about` is kept with the trace.

    Raises UserError where neighbors are to be read and the text is too short for any of its tokens to.
    """
    begun = time.perf_counter()
    retrieved: list[Retrieved] = []
    text = run.tokenizer.decode(ids)
    source, database = "", None if config.retrieval == "off" else run.database
    chunk_len = run.model.config.chunk_len
    if database is not None and len(ids) <= chunk_len:  # nothing would be said, and look like a finding
        raise UserError(
            f"The text has {len(ids)} tokens{page_words(about)}, and only those after the first {chunk_len} "
            f"read neighbors. Give at least {chunk_len + 1} tokens, better several times as many."
        )
    if database is not None:
        own = own_document(database.corpus, about)
        source = database.corpus.documents[own].title if own is not None else ""
        retrieved = look_up(run, ids, config, own, title_of(about | {"text": text}))
    written = Written(ids, prompt_tokens, [], retrieved)
    kept = describe(run, name, text, retrieved) | about | {"config": to_json(config), "source": source}
    made = trace(run.model, run.tokenizer, written, database, kept)
    return with_origin(made, run, config, begun)


def page_words(about: Mapping[str, object]) -> str:
    """Which page of a long text is meant, in words."""
    return f" on page {about['page']} of {about['pages']}" if about.get("pages", 1) != 1 else ""


def describe(run: LoadedRun, name: str, text: str, retrieved: Sequence[Retrieved]) -> dict[str, object]:
    """What the page says about any trace."""
    times = [event.ms for event in retrieved]
    # it is said beside each chunk that found none
    why = next(filter(None, (why_none_found(run, [event]) for event in retrieved)), "")
    nothing: dict[str, object] = {"nothing_found": why} if why else {}
    return nothing | {
        "run": name,
        "model": run.config.model,
        "text": text,
        "corpus": run.config.corpus_fingerprint,
        "database": run.swapped or folder_name(run.config.corpus),
        "swapped": bool(run.swapped),
        "retriever": run.retriever,
        "by_title": run.retriever == TITLED,
        "query_tokens": run.config.training.query_tokens,
        "versions": run.config.versions,
        "search_times": times,
        "search_ms": round(sum(times) / len(times), 2) if times else None,
    }


def with_origin(made: Trace, run: LoadedRun, config: ExplainConfig | GenerateConfig, begun: float) -> Trace:
    """The trace with where it comes from, and the command that makes its explanation again."""
    seconds = time.perf_counter() - begun
    made.about["provenance"] = provenance(
        run.folder,
        command=command_of(made, run, config),
        seconds=seconds,
        settings=to_json(config) | {"database": made.about["database"], "retriever": run.retriever},
    )
    made.about.setdefault("seconds", round(seconds, 3))
    return made


def command_of(made: Trace, run: LoadedRun, config: ExplainConfig | GenerateConfig) -> str:
    """The command line that reads the same tokens with the same neighbors on the same kind of machine."""
    words = [commands.name_for_command(run.folder)]
    if made.about.get("given"):
        words += [f"--text={made.about['prompt']}"]  # one word: a text may begin with a dash
        words += ["--page", str(made.about["page"])] * (made.about["page"] > 1)
    else:
        words += ["--tokens", ",".join(map(str, made.ids)), "--prompt-tokens", str(made.prompt_tokens)]
    if run.database is not None:
        words += (
            ["--corpus", commands.name_for_command(run.corpus_folder)]
            if run.corpus_folder is not None
            else []
        )
        words += ["--retriever", run.retriever, "--retrieval", config.retrieval]
        words += ["--num-neighbors", str(neighbors_read(run, config))]
        words += ["--seed", str(config.seed)] if config.retrieval == "shuffled" else []
    words += ["--device", next(run.model.parameters()).device.type]
    return commands.command("explain", *words)


def document_of(corpus: Corpus, text: str) -> int | None:
    """The document that holds the text word for word; None where none does, or the text is too short."""
    wanted = text.strip()
    if len(wanted) < TELLING:
        return None
    return next((number for number, one in enumerate(corpus.documents) if wanted in one.text), None)


def own_document(corpus: Corpus, about: Mapping[str, Any]) -> int | None:
    """The document that the text of a trace stands in; None for one that a run wrote."""
    return document_of(corpus, str(about["prompt"])) if about.get("given") else None


def too_close(corpus: Corpus, own: int | None) -> np.ndarray:
    """Chunks, bool (N,), that may not be neighbors of a text of document `own`, as in training.

    They are that document and its near-duplicates; of one document cut into sections also the
    chunks within the exclusion window around the section.
    """
    chunks = corpus.chunks
    if own is None:
        return np.zeros(len(chunks), dtype=bool)
    ends = np.flatnonzero(chunks.document == own)[[0, -1]]
    first, last = corpus.excluded(ends, np.tile(np.arange(len(chunks)), (2, 1)))
    return first | last


def search_apart(
    database: Database, query: np.ndarray, k: int, own: np.ndarray | None, banned: np.ndarray
) -> Neighbors:
    """The k nearest of a query (1, C) that are not `banned` (N,); own as in `Retriever.search`."""
    fetch = k
    while True:
        found = database.retriever.search(query, fetch, own=own)
        kept = (found.ids[0] >= 0) & ~banned[found.ids[0]]
        if kept.sum() >= k or found.ids[0, -1] < 0 or fetch >= len(banned):
            return Neighbors(found.ids[:, kept][:, :k], found.scores[:, kept][:, :k])
        fetch = min(4 * fetch, len(banned))


def neighbors_read(run: LoadedRun, config: ExplainConfig | GenerateConfig) -> int:
    """How many neighbors of each chunk are read: as many as in training, where the settings name no number.

    To be explained a text is never read with more than MOST_NEIGHBORS, unless it was written so.
    """
    usual = run.config.training.num_neighbors
    most = MOST_NEIGHBORS if isinstance(config, ExplainConfig) else usual
    return config.num_neighbors or min(usual, most)


def title_of(about: Mapping[str, Any]) -> str:
    """What a text is about, as it is looked up: as its writer said, else its first line."""
    return about.get("written_with", {}).get("title") or first_line(str(about.get("prompt") or about["text"]))


def look_up(
    run: LoadedRun, ids: list[int], config: ExplainConfig | GenerateConfig, own: int | None, title: str
) -> list[Retrieved]:
    """The neighbors of each whole chunk of a text; what is `too_close` to document `own` is none of them.

    Shuffled, each chunk gets those of a chunk drawn from the rest of the database.
    """
    assert run.database is not None
    query_tokens = config.query_tokens if isinstance(config, GenerateConfig) else 0
    database = about_text(run.database, title, query_tokens)
    corpus, k = database.corpus, neighbors_read(run, config)
    chunk_len = run.model.config.chunk_len
    chunks = np.array(ids[: len(ids) // chunk_len * chunk_len], dtype=np.int64).reshape(-1, chunk_len)
    queries, chunk_of_own, banned = chunks, None, too_close(corpus, own)
    if own is not None:
        first = int(np.flatnonzero(corpus.chunks.document == own)[0])
        chunk_of_own = np.full(len(chunks), first)
    if config.retrieval == "shuffled":
        drawn = np.random.default_rng(config.seed)
        pool = np.flatnonzero(~corpus.held_out[corpus.chunks.document] & ~banned)
        if not len(pool):
            raise UserError("Every chunk of the corpus is too close to this text. Choose another text.")
        chunk_of_own = drawn.choice(pool, len(chunks))
        queries = corpus.chunks.tokens[chunk_of_own]
    retrieved = []
    for number, query in enumerate(queries):
        begun = time.perf_counter()
        there = None if chunk_of_own is None else chunk_of_own[[number]]
        found = search_apart(database, query[None], k, there, banned)
        ms = 1000 * (time.perf_counter() - begun)
        neighbors = describe_neighbors(corpus, found.ids[0], found.scores[0])
        retrieved.append(Retrieved(number, neighbors, round(ms, 2)))
    add_bm25(run, chunks, retrieved)
    return retrieved


def add_bm25(run: LoadedRun, chunks: np.ndarray, retrieved: Sequence[Retrieved]) -> None:
    """Note the BM25 score of each neighbor too: a second opinion on how much it shares."""
    for event in retrieved:
        ids = np.array([[one["chunk"] for one in event.neighbors]], dtype=np.int64)
        if ids.size:
            before = Neighbors(ids, np.zeros(ids.shape, np.float32))
            ranked = run.bm25.rescore(chunks[[event.chunk]], before, ids.shape[1])
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


FIELD = re.compile(r"([^\n:]{2,40}):[ \t]+\S[^\n]{0,60}")


def unfinished(folder: Path, count: int = 4) -> list[str]:
    """Beginnings of texts about documents of a built corpus, up to where a short value would stand.

    Title, a blank line, the line before, "FIELD:"; of documents without fields the title and first words.
    """
    documents = read_stored_documents(folder / "documents.jsonl")
    held_out = json.loads((folder / MANIFEST).read_text("utf-8"))["held_out"]
    shown = [one for one, held in zip(documents, held_out, strict=True) if not held]
    prompts = []
    for one in shown[:: max(1, len(shown) // count)][:count]:
        lines = [line.strip() for line in one.text.splitlines() if line.strip() and line != one.title]
        fields = [place for place, line in enumerate(lines) if FIELD.fullmatch(line)]
        words = " ".join(" ".join(lines).split()[:8])
        if fields:
            at = fields[len(fields) // 2]
            words = "\n".join([*lines[max(0, at - 1) : at], f"{lines[at].split(':')[0]}:"])
        prompts.append(f"{one.title}\n\n{words}" if one.title else words)
    return prompts


def openings(folder: Path, count: int = 4) -> list[str]:
    """The first words of held-out documents of a built corpus: prompts whose texts no run has seen."""
    documents = read_stored_documents(folder / "documents.jsonl")
    held_out = json.loads((folder / MANIFEST).read_text("utf-8"))["held_out"]
    shown = [one.text.split() for one, held in zip(documents, held_out, strict=True) if held]
    return [" ".join(words[:12]) for words in shown[:: max(1, len(shown) // count)][:count] if words]


def document_text(folder: Path, number: int) -> str:
    """The text of a document of a built corpus by its number; raises UserError where it has no such one."""
    documents = read_stored_documents(folder / "documents.jsonl") if is_built(folder) else []
    if not 0 <= number < len(documents):
        raise UserError(f"There is no document {number} in this corpus; it has {len(documents)}.")
    return documents[number].text


LOOK_SECONDS = 0.12  # between two looks at a growing text
SIDES = ("on", "off", "shuffled")


@dataclass(frozen=True)
class Writing:
    """A text so far: one piece of text for each token (the prompt's first), and what was found.

    What pads a prompt has empty pieces.
    """

    pieces: list[str]
    prompt_tokens: int
    chunk_len: int
    retrieved: list[Retrieved]
    seconds: float
    trace: Trace | None = None
    most: int = 0
    """so many tokens were asked for"""

    @property
    def new_tokens(self) -> int:
        return len(self.pieces) - self.prompt_tokens


def watch_writing(
    run: LoadedRun, name: str, prompt: str, config: GenerateConfig, stop: Callable[[], bool]
) -> Iterator[Writing]:
    """Yield the growing text a few times a second, and at last, with its trace, what it became.

    A stop ends the text where it is. Raises UserError as `generate` does.
    """
    tokens = run.tokenizer.encode(prompt) if isinstance(prompt, str) else []
    tokens = run.model.before_prompt(len(tokens)) + tokens
    so_far = Written(tokens, len(tokens), [], [])
    seconds = yield from watch_growing(run, so_far, write(run, prompt, config), config.max_new_tokens, stop)
    made = make_trace(run, name, prompt, config, so_far, seconds)
    yield Writing(
        made.pieces,
        so_far.prompt_tokens,
        made.chunk_len,
        so_far.retrieved,
        seconds,
        made,
        config.max_new_tokens,
    )


def watch_growing(
    run: LoadedRun, so_far: Written, events: Iterator[Any], most: int, stop: Callable[[], bool]
) -> Generator[Writing, None, float]:
    """Yield a text a few times a second while `events` write on in it; returns the seconds that it took."""
    pieces = pieces_of(run.tokenizer, so_far.tokens)
    begun = time.perf_counter()
    shown, known = 0.0, len(so_far.tokens)
    for event in events:
        if isinstance(event, Retrieved):
            so_far.retrieved.append(event)
        elif isinstance(event, Token):
            so_far.tokens.append(event.id)
            pieces.append(event.text)
            so_far.probabilities.append(event.probability)
        seconds = time.perf_counter() - begun
        if seconds - shown > LOOK_SECONDS or len(pieces) == known + 1:
            shown = seconds
            found = list(so_far.retrieved)
            chunk_len = run.model.config.chunk_len
            yield Writing(list(pieces), so_far.prompt_tokens, chunk_len, found, seconds, most=most)
        if stop():
            break
    return time.perf_counter() - begun


def make_trace(
    run: LoadedRun, name: str, prompt: str, config: GenerateConfig, written: Written, seconds: float
) -> Trace:
    """The trace of a finished generation, with what the page says about it."""
    begun = time.perf_counter()
    database = None if config.retrieval == "off" else run.database
    chunk_len = run.model.config.chunk_len
    if database is not None:
        whole = np.array(written.tokens[: len(written.tokens) // chunk_len * chunk_len], dtype=np.int64)
        add_bm25(run, whole.reshape(-1, chunk_len), written.retrieved)
        if len(written.retrieved) < len(whole) // chunk_len:  # the text ended before its last chunk was read
            title = config.title or first_line(prompt)
            last = look_up(run, written.tokens, config, None, title)[len(written.retrieved) :]
            written = replace(written, retrieved=[*written.retrieved, *last])
    about = describe(run, name, run.tokenizer.decode(written.tokens), written.retrieved) | {
        "prompt": prompt,
        "config": to_json(config),
        "written_with": to_json(config),
        **({"query_tokens": config.query_tokens} if config.query_tokens else {}),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(len(written.probabilities) / max(seconds, 1e-9), 1),
    }
    made = trace(run.model, run.tokenizer, written, database, about)
    return with_origin(made, run, config, begun)


def write_sides(
    run: LoadedRun, name: str, prompt: str, config: GenerateConfig, stop: Callable[[], bool]
) -> Iterator[dict[str, Writing]]:
    """The same prompt and seed with retrieval on, off and shuffled: yields the sides as they grow."""
    sides: dict[str, Writing] = {}
    for side in SIDES:
        for writing in watch_writing(run, name, prompt, replace(config, retrieval=side), stop):
            sides[side] = writing
            yield dict(sides)


def trace_values(kept: Trace, edit: dict[str, Any] | None = None) -> dict[str, Any]:
    """A trace as JSON for people: weights as their mean over heads, rounded.

    What followed from another neighbor (see edits.edit_json) stands under "edit".
    """
    values = as_json(kept) | ({"edit": edit} if edit else {})
    if kept.neighbors:
        mean = kept.weights.mean(dim=2)  # (layers, L, C, K, R)
        values["attention_mean_over_heads"] = [
            {
                "layer": layer,
                "weights": [[round(w, 4) for w in row] for row in rows.flatten(2).flatten(0, 1).tolist()],
            }
            for layer, rows in zip(kept.layers, mean, strict=True)
        ]
        values["heads"] = head_rows(kept)
        values["attention_shape"] = "rows: chunk by reading token; columns: neighbor by its tokens"
    return values
