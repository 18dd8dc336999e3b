"""`evaluate` on a run of MARGE: the losses of its arms, in rounds that grow.

The folder is that of any evaluation (evaluation/evaluating.py): config.json, events.jsonl and table.npz. All
passages are embedded once, the evidence of each is searched once for each rule, and evidence that
several arms show is encoded once for each batch.

Shapes: P passages, Q held-out passages, S passage length, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.corpus import Corpus, load_corpus
from retro_demo.corpus.editions import load_edition, prepare_edition
from retro_demo.corpus.samples import corpus_folder
from retro_demo.devices import allowed_threads, choose_device
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import Windows
from retro_demo.evaluation.evaluation_request import Request
from retro_demo.evaluation.loss_table import LossTable
from retro_demo.evaluation.marge_arms import TARGETS, EvidenceArms
from retro_demo.evaluation.marge_evaluate_report import MargeStudy, marge_report
from retro_demo.evaluation.trained_on import Known, known_documents
from retro_demo.events import Event, Finished, Progress, Refined, Started, Stopped, Warned
from retro_demo.evidence.cross_lingual import recall, scripts_of
from retro_demo.evidence.evidence_store import embed_passages
from retro_demo.evidence.passages import Passages, cut_passages
from retro_demo.models.marge import MARGE
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import MargeRun, load_marge, read_marge_config, weights_file
from retro_demo.runs.loading import load_own_corpus
from retro_demo.runs.provenance import code_hash, place_name, provenance
from retro_demo.whole_files import file_hash

EMBEDDED_AT_ONCE = 4096  # passages between two words on progress
SAVE_SECONDS = 30.0


def evaluate_marge(out: Path, request: Request, stop: Callable[[], bool]) -> Iterator[Event]:
    """Measure the arms of a run; raises UserError where nothing is held out or a language is unknown."""
    begun = time.perf_counter()
    yield Started("evaluation", about=asdict(request))
    torch.set_num_threads(allowed_threads())
    run = request.folder("run")
    config = read_marge_config(run)
    corpus = yield from _corpus(run, config, request, stop)
    if corpus is None:
        return
    known = known_documents(corpus, [run])
    if known.words:
        yield Warned(known.words)
    passages = cut_passages(corpus, config.evidence.passage_len, config.network.languages)
    left_out = known.documents[passages.document]
    if not (passages.held_out & ~left_out).any():
        raise UserError(nothing_held_out(corpus, name_of(corpus, request), known))
    model = load_marge(run, choose_device(request.device))
    vectors = yield from _embedded(model, passages, stop)
    if vectors is None:
        return
    study = make_study(request, config, corpus, known, passages, left_out, vectors, model)
    work = Work(study, model, out / "table.npz", what_is_read(request, study, corpus))
    study.table.load(work.path, work.weights)
    counts = rounds(study)
    result: dict[str, Any] = {}
    done = 0
    for number, count in enumerate(counts, start=1):
        yield Progress("search for evidence", number - 1, len(counts))
        study.arms.search(study.measured, count)
        for passages_read in work.advance(done, count):
            yield Progress(f"round {number} of {len(counts)}", passages_read, counts[-1])
            if stop():
                work.save()
                yield Stopped()
                return
        work.save()
        done = count
        result = marge_report(study, count)
        result["provenance"] = _provenance(request, corpus, count, time.perf_counter() - begun)
        yield Refined(number, len(counts), result)
    yield Finished(result)


def name_of(corpus: Corpus, request: Request) -> str:
    """What the corpus is called that is measured on, in the tokens of the run where need be."""
    return place_name(request.corpus) if request.corpus else corpus.name


def nothing_held_out(corpus: Corpus, name: str, known: Known) -> str:
    """Why there is nothing to measure on, and what to do."""
    if known.count:
        return (
            f"{known.words} Nothing is left of {int(corpus.held_out.sum()):,} to measure on. Choose a corpus "
            "that holds out text of its own."
        )
    return (
        f"{name} holds out no document, so there is nothing to measure on. Build it with a larger "
        "--holdout, and train on it."
    )


def _corpus(
    run: Path, config: MargeRun, request: Request, stop: Callable[[], bool]
) -> Generator[Event, None, Corpus | None]:
    """The corpus to measure on, another one in the tokens of the run; None after a stop."""
    if not request.corpus:
        return load_own_corpus(config)
    other = load_corpus(corpus_folder(data_home()[0], request.corpus))
    # refused before the corpus is made anew in the run's tokens, which takes its time
    cut_passages(other, config.evidence.passage_len, config.network.languages)
    for event in prepare_edition(other, run, other.config.chunk_len):
        yield event
        if stop():
            yield Stopped()
            return None
    return load_edition(other, run, other.config.chunk_len)


def _embedded(
    model: MARGE, passages: Passages, stop: Callable[[], bool]
) -> Generator[Event, None, np.ndarray | None]:
    """Embeddings (P, D) of all passages; None after a stop."""
    parts = []
    for start in range(0, len(passages), EMBEDDED_AT_ONCE):
        yield Progress("embed the passages", start, len(passages))
        if stop():
            yield Stopped()
            return None
        parts.append(embed_passages(model, passages.tokens[start : start + EMBEDDED_AT_ONCE]))
    return np.concatenate(parts)


def make_study(
    request: Request,
    config: MargeRun,
    corpus: Corpus,
    known: Known,
    passages: Passages,
    left_out: np.ndarray,
    vectors: np.ndarray,
    model: MARGE,
) -> MargeStudy:
    """The arms, an empty table for their losses, and how well the encoder finds other languages."""
    settings = request.settings
    arms = EvidenceArms(
        passages,
        vectors,
        config.evidence,
        settings.seed,
        k=settings.num_neighbors,
        left_out=left_out,
        abstains=config.network.abstain,
    )
    tokens = passages.tokens[arms.targets]
    ids = np.broadcast_to(arms.targets[:, None], tokens.shape)  # a table of single tokens, each a chunk
    table = LossTable(Windows(ids, passages.group[arms.targets]), tokens, corpus.bytes_of_tokens())
    across = recall(
        vectors, passages, passages.held_out & ~left_out, scripts_of(corpus, config.network.languages)
    )
    swapped = name_of(corpus, request) if corpus.fingerprint != config.corpus_fingerprint else ""
    return MargeStudy(arms, table, settings, model.betas(), across, swapped, known)


def rounds(study: MargeStudy) -> list[int]:
    """Held-out passages read by the end of each round, in whole batches: a batch shares its evidence."""
    table, most = study.table, len(study.arms.targets)
    wanted = study.config.rounds(int(table.there.sum()))
    whole = (-(-table.windows_for(tokens) // TARGETS) * TARGETS for tokens in wanted)
    return sorted({min(most, count) for count in whole})


def what_is_read(request: Request, study: MargeStudy, corpus: Corpus) -> dict[str, str]:
    """Which weights read what: a table of losses of others is not gone on with."""
    return {
        "run": file_hash(weights_file(request.folder("run"))),
        "k": str(study.arms.k),
        "seed": str(study.config.seed),
        "corpus": corpus.fingerprint,
        "code": code_hash(),
    }


class Work:
    """Fills the table, a batch of targets at a time and all arms at once; what is there costs nothing."""

    def __init__(self, study: MargeStudy, model: MARGE, path: Path, weights: dict[str, str]) -> None:
        self.study, self.model, self.path, self.weights = study, model, path, weights
        self.saved = time.monotonic()

    def advance(self, first: int, count: int) -> Iterator[int]:
        """Measure what the table lacks of the targets from `first` to `count`; yields how many are read."""
        table, arms = self.study.table, self.study.arms
        for which in arms.batches(count):
            if which[-1] < first:
                continue
            missing = [
                arm
                for arm in self.study.measured
                if np.isin(which, table.missing(arm, int(which[-1]) + 1)).any()
            ]
            for arm, losses in arms.losses(self.model, missing, which).items():
                table.add(arm, which, losses)
            if time.monotonic() - self.saved > SAVE_SECONDS:
                self.save()
            yield int(which[-1]) + 1

    def save(self) -> None:
        self.study.table.save(self.path, self.weights)
        self.saved = time.monotonic()


def _provenance(request: Request, corpus: Corpus, count: int, seconds: float) -> dict[str, Any]:
    origin = provenance(
        request.folder("run"), command=request.command(), seconds=seconds, settings=asdict(request.settings)
    )
    return origin | {
        "measured_on": name_of(corpus, request),
        "measured_on_fingerprint": corpus.fingerprint,
        "split": f"held-out documents, {count} passages from the front of the order drawn with the seed",
        "weights": {"run": file_hash(weights_file(request.folder("run")))},
    }
