"""What the Train and Corpus tabs show, as JSON with where it comes from.

This module knows folders and figures; it does not know whose they are or how they are handed out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retro_demo.building import read_corpus_config
from retro_demo.checkpoint import read_any_config
from retro_demo.evidence_series import reindexes
from retro_demo.jobs import JobStatus
from retro_demo.knobs import knobs
from retro_demo.provenance import corpus_provenance, provenance, training_seconds, weights_of
from retro_demo.workspace import SAMPLE

PROGRAM = ["python", "-m", "retro_demo"]


def training_json(folder: Path, status: JobStatus, command: str) -> dict[str, Any]:
    """The loss curve and all held-out measurements of a run; `command` trains it again."""
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
    command = shlex.join(build_command(folder, corpus))
    origin = corpus_provenance(
        folder, corpus=corpus, command=command, seconds=statistics["seconds"], settings={}
    )
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
    words = [*PROGRAM, "search", "-k", str(k), "--retriever", retriever, "--", corpus, text]
    origin = corpus_provenance(
        folder, corpus=corpus, command=shlex.join(words), seconds=seconds, settings=settings
    )
    return settings | {"found": list(found), "provenance": origin}


def build_command(folder: Path, corpus: str) -> list[str]:
    """The command line that builds a corpus again, of files by their names; a sample is built when used."""
    if corpus.startswith(SAMPLE):
        return [*PROGRAM, "search", corpus, "coast"]
    config, sources = read_corpus_config(folder)
    words = [*PROGRAM, "build-corpus", *(source.name for source in sources), "--out", f"{corpus}-again"]
    for knob in knobs(config):
        if (value := getattr(config, knob.name)) != knob.default:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{knob.name.replace('_', '-')}", shown]
    return words
