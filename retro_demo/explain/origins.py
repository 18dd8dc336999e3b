"""Where a text came from: its spans in a whole corpus, and for a run citations and the cause of a phrase.

Plain JSON: the command line and the HTTP endpoint pass it on, the page draws it. A trace of a run reads the
corpus of that run alone, or the one that is put in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.corpus.verbatim import Origins, VerbatimIndex, check_text
from retro_demo.errors import UserError
from retro_demo.events import Progress
from retro_demo.explain.phrases import (
    PhraseAttribution,
    attribute_phrase,
    cite,
    find_phrase,
    phrase_json,
    plan_attribution,
)
from retro_demo.explain.text import explain_text, explain_written, page_words
from retro_demo.explain.tracing import Trace
from retro_demo.runs.loading import LoadedRun
from retro_demo.settings import ExplainConfig, OriginsConfig


@dataclass(frozen=True)
class SearchedCorpus:
    """A corpus with the index of all its text."""

    corpus: Corpus
    index: VerbatimIndex


def load_searched(folder: Path) -> SearchedCorpus:
    """Read a built corpus and index its text: about a second for each 5 MB. Raises as `load_corpus`."""
    corpus = load_corpus(folder)
    return SearchedCorpus(corpus, VerbatimIndex(corpus.documents))


def origins_json(corpus: Corpus, text: str, found: Origins) -> dict[str, Any]:
    """Spans for programs, with the id and title of each document and whether it is held out."""
    spans = []
    for span in found.spans:
        places = []
        for place in span.places:
            one = corpus.documents[place.document]
            held_out = bool(corpus.held_out[place.document])
            named = {"document": one.id, "title": one.title, "held_out": held_out}
            places.append(named | {"start": place.start, "end": place.end})
        spans.append(asdict(span) | {"text": text[span.start : span.end], "places": places})
    share = found.words_found / max(1, found.words)
    figures = {"words": found.words, "words_found": found.words_found, "share_found": share}
    return {"corpus": corpus.name, "text": text, "spans": spans} | figures | {"left_out": found.left_out}


def trace_spans(searched: SearchedCorpus, text: str, config: OriginsConfig) -> dict[str, Any]:
    """The spans of a text in a corpus; what only a run can tell is empty, and `why_no_citations` says so."""
    return origins_json(searched.corpus, text, searched.index.find(text, config)) | {
        "citations": [],
        "why_no_citations": "No run is named whose neighbors could be cited.",
        "phrase": None,
    }


def trace_run(
    run: LoadedRun,
    name: str,
    searched: SearchedCorpus,
    written: str | Sequence[int],
    *,
    prompt_tokens: int = 0,
    explain: ExplainConfig | None = None,
    config: OriginsConfig | None = None,
    phrase: str = "",
    occurrence: int = 1,
    most_tokens: int = 0,
) -> Iterator[Progress | dict[str, Any]]:
    """As `trace_spans`, with citations by sentence and, where asked, the sentences that caused a phrase.

    `written`: a text, of which one page is read by the run where it is long, or the token ids of one that it
    wrote. The last that is yielded is the result. Raises UserError as `explain_text`, and for a phrase that
    cannot be attributed. A text too short to read neighbors has spans alone, and the reason is told.
    """
    text = written if isinstance(written, str) else run.tokenizer.decode(list(written))
    check_text(text)
    found = trace_spans(searched, text, config or OriginsConfig())
    why = unable_to_cite(run, text if isinstance(written, str) else written)
    if why:
        if phrase:
            raise UserError(why)
        yield found | {"why_no_citations": why}
        return
    reading = explain or ExplainConfig()
    if isinstance(written, str):
        trace = explain_text(run, name, written, reading)
    else:
        trace = explain_written(run, name, written, prompt_tokens, reading)
    found |= cited_json(trace)
    if phrase:
        place = find_phrase("".join(trace.pieces), phrase, occurrence, page_words(trace.about))
        plan = plan_attribution(trace, *place, most_tokens)
        yield Progress("attribute", 0, plan.readings)  # what it costs is said before
        for step in attribute_phrase(run.model, trace, plan):
            if isinstance(step, PhraseAttribution):
                found |= {"phrase": phrase_json(trace, step)}
            else:
                yield step
    yield found | {"provenance": trace.about["provenance"]}


def unable_to_cite(run: LoadedRun, written: str | Sequence[int]) -> str:
    """Why a run can cite nothing for a text; "" where it can."""
    if run.database is None:
        return f"{run.folder.name} ({run.config.model}) reads no neighbors that could be cited."
    ids = run.tokenizer.encode(written) if isinstance(written, str) else written
    chunk_len = run.model.config.chunk_len
    if len(ids) <= chunk_len:
        return (
            f"The text has {len(ids)} tokens, and only those after the first {chunk_len} read neighbors that "
            "could be cited. Give a longer text."
        )
    return ""


def cited_json(trace: Trace) -> dict[str, Any]:
    """The citations of a trace for programs; offsets count characters of `read_text`, which the run read."""
    citations = cite(trace)
    return {
        "run": trace.about["run"],
        "read_text": "".join(trace.pieces),
        "page": trace.about.get("page", 1),
        "pages": trace.about.get("pages", 1),
        "citations": citations,
        "why_no_citations": "" if citations else "The text was read without neighbors.",
    }
