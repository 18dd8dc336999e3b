"""What the Train and Corpus tabs show, as JSON with where it comes from.

This module knows folders and figures; it does not know whose they are or how they are handed out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retro_demo.corpus.building import read_corpus_config
from retro_demo.corpus.corpus import MANIFEST
from retro_demo.explain.evidence_series import reindexes
from retro_demo.jobs.jobs import JobStatus
from retro_demo.paths import SAMPLE
from retro_demo.runs import commands
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.provenance import corpus_provenance, provenance, training_seconds, weights_of


def training_json(folder: Path, status: JobStatus, command: str) -> dict[str, Any]:
    """The loss curve and all held-out measurements of a run; `command` is that of its training."""
    seconds = training_seconds(folder, read_any_config(folder), weights_of(folder)[0])
    return {
        "state": status.state,
        "losses": [_without_kind(event) for event in status.of_kind("step")],
        "held_out": [_without_kind(event) for event in status.of_kind("evaluated")],
        "reindexes": reindexes(status),
        "provenance": provenance(folder, command=command, seconds=seconds or 0.0, settings={}),
    }


def _without_kind(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "event"}


def corpus_json(folder: Path, corpus: str, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of a built corpus; `corpus` is its id."""
    command, seconds = build_command(folder, corpus), statistics["seconds"]
    origin = corpus_provenance(folder, corpus=corpus, command=command, seconds=seconds, settings={})
    return {"statistics": dict(statistics), "provenance": origin}


def search_json(
    folder: Path,
    corpus: str,
    *,
    text: str,
    retriever: str,
    k: int,
    found: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """What a search in a built corpus found, best first; it took so many seconds."""
    settings = {"text": text, "retriever": retriever, "k": k}
    # the text last and behind two dashes: it may begin with one
    words = [commands.place(folder), "-k", str(k), "--retriever", retriever, "--", text]
    command = commands.command("search", *words)
    origin = corpus_provenance(folder, corpus=corpus, command=command, seconds=seconds, settings=settings)
    return settings | {"found": list(found), "provenance": origin}


def build_command(folder: Path, corpus: str) -> str:
    """The command line of a corpus: it goes on with its build, or says that it is done.

    A sample is built when it is used. Sources are named where the corpus is what they make.
    """
    if corpus.startswith(SAMPLE):
        return commands.command("search", corpus, "coast")
    config, sources = read_corpus_config(folder)
    manifest = folder / MANIFEST
    changed = manifest.exists() and json.loads(manifest.read_text("utf-8")).get("history")
    words, out = list(map(str, sources)), ["--out", str(folder.resolve())]
    if changed or not words:
        return commands.command("build-corpus", *out)
    return commands.command("build-corpus", *words, *out, *commands.set_flags(config))
