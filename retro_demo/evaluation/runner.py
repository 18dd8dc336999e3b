"""The verb `evaluate`: a job that measures a run of any kind against its controls, in rounds that grow.

    config.json     what is measured (evaluation/request.py)
    events.jsonl    progress; after each round `refined` with all figures, at the end `finished`
    table.npz       the loss of every token under every arm (evaluation/losses.py)

The first round gives a verdict from a stated part of the held-out text; each later one reads more of it
and the same again, so figures only become sharper. A stopped evaluation goes on where it stood.

What differs between kinds is a class that the table of kinds names (`Kind.measurement`): what is read, in
which passes, and which figures follow. For a MARGE all passages are embedded once, the evidence of each is
searched once for each rule, and evidence that several arms show is encoded once for each batch.

Shapes: P passages, Q held-out passages, S passage length, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from retro_demo.corpus.building import open_index
from retro_demo.corpus.changes import load_retokenized, prepare_retokenized
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.devices import allowed_threads, choose_device
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import TARGETS, Arms, EvidenceArms, Windows, held_out_windows
from retro_demo.evaluation.baselines import (
    Before,
    Known,
    SmallerDatabase,
    before,
    got_worse,
    known_documents,
    match,
    part_of_database,
    search_part,
    trainings,
)
from retro_demo.evaluation.copied_text import Overlaps
from retro_demo.evaluation.losses import LossTable, prepended_neighbors, read_arm, read_prepended
from retro_demo.evaluation.report import WAS, MargeStudy, Study, curves, marge_report, report
from retro_demo.evaluation.request import Request, read_request
from retro_demo.events import Event, Finished, Progress, Refined, Started, Stopped, Warned, cut_back
from retro_demo.evidence.passages import Passages, cut_passages
from retro_demo.evidence.reindex import embed_passages, recall, scripts_of
from retro_demo.files import file_hash
from retro_demo.jobs.lifecycle import claim, record
from retro_demo.kinds import resolve
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import (
    MargeRun,
    load_marge,
    load_model,
    read_any_config,
    read_marge_config,
    read_run_config,
    weights_file,
)
from retro_demo.runs.loading import LoadedRun, load_own_corpus, load_run
from retro_demo.runs.provenance import code_hash, folder_name, provenance
from retro_demo.settings import EvaluateConfig

EMBEDDED_AT_ONCE = 4096  # passages between two words on progress
SAVE_SECONDS = 30.0

READERS = {
    "baseline": ("baseline", "off"),
    WAS: (WAS, "off"),
    "control_random": ("control", "random"),
    "control_real": ("control", "on"),
}
"""Arms of other models: which model reads them, and with which neighbors."""

PREPEND = ("prepend", "prepend_control")
NOT_SEARCHED = -2
SEARCHED_AT_ONCE = 1024


@dataclass(frozen=True)
class Pass:
    """A stretch of work: these arms on the first `count` windows or passages; `round` as people count."""

    round: int
    names: list[str]
    count: int
    is_curve: bool = False


class Measurement(Protocol):
    """What an evaluation of one kind of run measures; `open` makes it."""

    table: LossTable  # to fill
    passes: list[Pass]
    total: int  # what all passes cost, in the units of `advance`
    units: str  # that a pass counts
    weights: dict[str, str]  # which weights read, by their hash
    read: dict[str, str]  # what else decides the losses
    corpus: Corpus
    measured_on: str

    @classmethod
    def open(cls, request: Request, stop: Callable[[], bool]) -> Generator[Event, None, Any]:
        """Yield what is prepared; returns the measurement, None after a stop.

        Raises UserError where there is nothing to measure on.
        """
        ...

    def find(self, one: Pass) -> Iterator[Event]:
        """Search for what a pass reads."""
        ...

    def advance(self, one: Pass, before: list[Pass]) -> Iterator[int]:
        """Measure what the table lacks; yields the cost of each stretch that is done."""
        ...

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        """All figures after a pass; `last` are those after the pass before."""
        ...


def run_evaluation(out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Measure what was prepared in `out`, alone and on record, to its end or until `stop` says so."""
    request = read_request(out)
    places, _ = trainings([request.folder(name) for name in request.runs])
    for corpus in {*places.values(), request.corpus} - {""}:
        yield from ensure_sample(corpus, stop)
    with claim(out):
        cut_back(out / "events.jsonl", 0)
        yield from record(out, _evaluate(out, request, stop))


def _evaluate(out: Path, request: Request, stop: Callable[[], bool]) -> Iterator[Event]:
    begun = time.perf_counter()
    yield Started("evaluation", about=asdict(request))
    torch.set_num_threads(allowed_threads())
    kind = read_any_config(request.folder("run")).kind
    work: Measurement | None = yield from resolve(kind.measurement).open(request, stop)
    if work is None:
        yield Stopped()
        return
    path = out / "table.npz"
    # a table of losses of other weights, code or neighbors is not gone on with
    read = work.weights | work.read | {"corpus": work.corpus.fingerprint, "code": code_hash()}
    work.table.load(path, read)
    result: dict[str, Any] = {}
    done, rounds = 0, work.passes[-1].round
    for place, one in enumerate(work.passes):
        yield from work.find(one)
        saved = time.monotonic()
        for cost in work.advance(one, work.passes[:place]):
            done += cost
            if time.monotonic() - saved > SAVE_SECONDS:
                work.table.save(path, read)
                saved = time.monotonic()
            yield Progress(f"round {one.round} of {rounds}", done, work.total)
            if stop():
                work.table.save(path, read)
                yield Stopped()
                return
        work.table.save(path, read)
        result = work.result(one, result)
        result["provenance"] = _provenance(request, work, one.count, time.perf_counter() - begun)
        yield Refined(one.round, rounds, result)
    yield Finished(result)


def _provenance(request: Request, work: Measurement, count: int, seconds: float) -> dict[str, Any]:
    origin = provenance(
        request.folder("run"), command=request.command(), seconds=seconds, settings=asdict(request.settings)
    )
    return origin | {
        "measured_on": work.measured_on,
        "measured_on_fingerprint": work.corpus.fingerprint,
        "split": f"held-out documents, {count} {work.units} from the front of the order drawn with the seed",
        "weights": work.weights,
    }


def weights_used(request: Request) -> dict[str, str]:
    """The hash of the weights of each run that is measured."""
    return {name: file_hash(weights_file(request.folder(name))) for name in request.runs}


def name_of(corpus: Corpus, request: Request) -> str:
    """What the corpus is called that is measured on, in the tokens of the run where need be."""
    return folder_name(request.corpus) if request.corpus else corpus.name


class RetroMeasurement:
    """The arms of a run that reads neighbors, with its baseline and control."""

    units = "windows"

    def __init__(
        self, request: Request, study: Study, loaded: LoadedRun, models: dict[str, RETRO], was: Before | None
    ) -> None:
        assert loaded.database is not None
        self.request, self.study, self.models = request, study, models
        self.table, self.corpus = study.table, loaded.database.corpus
        self.measured_on = self.corpus.name
        self.weights = weights_used(request) | ({WAS: file_hash(was.weights)} if was else {})
        arms = study.arms
        self.read = {"retriever": arms.own, "k": str(arms.k), "seed": str(arms.seed)}
        self.passes = plan(self.table, request, loaded.retriever, arms.k, before=was is not None)
        self.total = sum(self._cost(one, self.passes[:place]) for place, one in enumerate(self.passes))
        self._parts: dict[str, SmallerDatabase] = {}

    @classmethod
    def open(
        cls, request: Request, stop: Callable[[], bool]
    ) -> Generator[Event, None, RetroMeasurement | None]:
        run, device = request.folder("run"), choose_device(request.device)
        other = corpus_folder(data_home()[0], request.corpus) if request.corpus else None
        config = read_run_config(run)
        if other and config.retrieves:
            for event in prepare_retokenized(load_corpus(other), run, config.network.chunk_len):
                yield event
                if stop():
                    return None
        loaded = load_run(run, device, other)
        assert loaded.database is not None
        models = {"run": loaded.model} | {
            name: load_model(request.folder(name), device) for name in request.runs[1:]
        }
        if was := before(request.folder("baseline")) if request.baseline else None:
            models[WAS] = load_model(was.run, device, was.weights)
        corpus = loaded.database.corpus
        known = known_documents(corpus, [request.folder(name) for name in request.runs])
        if known.words:
            yield Warned(known.words)
        arms = make_arms(loaded, corpus, request.settings, known)
        study = make_study(arms, request, loaded, known, was.words if was else "")
        inside = corpus.held_out[corpus.chunks.document[study.database]].sum()
        if inside:
            yield Warned(
                f"{inside:,} held-out chunks stand in the index: retrieval can look up the very text that is "
                "measured. No figure here says that it helps."
            )
        return cls(request, study, loaded, models, was)

    def find(self, one: Pass) -> Iterator[Event]:
        if one.is_curve:
            self._parts = search_parts(self.study.arms, one, self.request.settings)
        yield from find_neighbors(self.study.arms, one)

    def advance(self, one: Pass, before: list[Pass]) -> Iterator[int]:
        """A batch of windows at a time; what is there already costs nothing."""
        table = self.table
        for name in one.names:
            missing = table.missing(name, one.count)
            if free := one.count - _known(name, before) - len(missing):
                yield free * self._weight(name)  # found in the table of an evaluation that was stopped
            for start in range(0, len(missing), self.study.config.batch_size):
                which = missing[start : start + self.study.config.batch_size]
                table.add(name, which, self._read(name, which))
                yield len(which) * self._weight(name)

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        if one.is_curve:
            return last | {"curves": curves(self.study, one.count, self._parts)}
        return report(self.study, one.names, one.count)

    def _cost(self, one: Pass, before: list[Pass]) -> int:
        """Windows that this pass reads, over all arms; a prepended chunk counts as a window of its own."""
        return sum(self._weight(name) * (one.count - _known(name, before)) for name in one.names)

    def _weight(self, name: str) -> int:
        return self.table.windows.rows.shape[1] - 1 if name in PREPEND else 1

    def _read(self, name: str, which: np.ndarray) -> np.ndarray:
        if name in PREPEND:
            wanted = name == "prepend"
            return read_prepended(self.models["baseline"], self.study.arms, which, neighbors=wanted)
        model, arm = READERS.get(name, ("run", name))
        return read_arm(self.models[model], self.study.arms, arm, which)


def _known(name: str, before: list[Pass]) -> int:
    """How many windows this arm was measured on in the passes before."""
    return max((one.count for one in before if name in one.names), default=0)


def make_arms(loaded: LoadedRun, corpus: Corpus, config: EvaluateConfig, known: Known) -> Arms:
    """The arms of a run on a corpus; raises UserError where there is nothing to measure on."""
    chunks_per_window = loaded.config.training.seq_len // corpus.config.chunk_len
    windows = held_out_windows(corpus, chunks_per_window, config.seed, known.documents)
    if known.count and not len(windows):
        raise UserError(
            f"{known.words} Nothing is left of {int(corpus.held_out.sum()):,} to measure on. Choose a corpus "
            "that holds out text of its own."
        )
    if not len(windows):
        raise UserError(
            f"{corpus.name} holds out no document of more than one chunk, so there is nothing to measure on. "
            "Build it with a larger --holdout."
        )
    k = config.num_neighbors or loaded.config.training.num_neighbors
    stored = corpus.neighbor_ids.shape[1]
    if (most := max(k, *config.neighbor_counts, 0)) > stored:
        raise UserError(
            f"You ask for {most} neighbors, but {corpus.name} stores {stored}. Ask for fewer, or build the "
            "corpus with more."
        )
    tables = {
        name: np.full(corpus.neighbor_ids.shape, NOT_SEARCHED, dtype=np.int64)
        for name in (loaded.retriever, *config.retriever_names())
    }
    if "dense" in tables:
        tables["dense"] = corpus.neighbor_ids.astype(np.int64)
    return Arms(corpus, windows, tables, loaded.retriever, k, config.seed)


def find_neighbors(arms: Arms, one: Pass) -> Iterator[Event]:
    """Fill the tables that a pass reads, for its windows and those whose neighbors they are shown.

    No more than that: searching for all chunks of a corpus would outlast the first verdict.
    """
    which = np.arange(one.count)
    shown = np.concatenate([arms.windows.rows[which, :-1], arms.another_sequence(which)])
    # the overlap of a chunk with its own neighbors needs those of a window's last chunk too
    everything = np.concatenate([arms.windows.rows[which].reshape(-1), shown.reshape(-1)])
    for name in (arms.own, *(name for name in one.names if name in arms.tables)):
        table = arms.tables[name]
        rows = np.unique(everything if name == arms.own else shown)
        missing = rows[(rows >= 0) & (table[rows, 0] == NOT_SEARCHED)]
        finder = load_retriever(arms.corpus, name) if len(missing) else None
        for start in range(0, len(missing), SEARCHED_AT_ONCE):
            assert finder is not None
            part = missing[start : start + SEARCHED_AT_ONCE]
            tokens = arms.corpus.chunks.tokens[part]
            table[part] = finder.search(tokens, table.shape[1], own=part).ids
            yield Progress(f"neighbors by {name}", start + len(part), len(missing))


def search_parts(arms: Arms, one: Pass, config: EvaluateConfig) -> dict[str, SmallerDatabase]:
    """Search in parts of the database for the curve; their tables join those of the arms."""
    parts = {}
    queries = np.unique(arms.windows.rows[: one.count])
    for name in (name for name in one.names if name.startswith("db")):
        parts[name] = part_of_database(arms.corpus, int(name[2:]), config.seed)
        arms.tables[name] = search_part(arms.corpus, arms.own, parts[name], queries[queries >= 0], arms.k)
    return parts


def make_study(arms: Arms, request: Request, loaded: LoadedRun, known: Known, was: str) -> Study:
    """The table to fill, the database as it is, how the baseline compares, and what it `was` before."""
    windows, corpus = arms.windows, arms.corpus
    table = LossTable(windows, arms.tokens(np.arange(len(windows))), corpus.bytes_of_tokens())
    # a chunk without a vector is not in the index, and BM25 finds it
    retrievable = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
    database = np.union1d(open_index(corpus).ids, retrievable)
    most = table.windows_for(request.settings.rounds(int(table.there.sum()))[-1])
    overlaps = Overlaps(corpus.chunks, windows.rows[:most, 1:], database)
    compared = match(request.folder("run"), request.folder("baseline")) if request.baseline else None
    worse = got_worse(request.folder("baseline")) if request.baseline else ""
    return Study(
        arms, table, request.settings, database, compared, loaded.swapped, known, overlaps, was, worse
    )


def plan(table: LossTable, request: Request, own: str, k: int, *, before: bool) -> list[Pass]:
    """The rounds of an evaluation: what decides comes first, what is slow and the curves last.

    `before`: whether what the baseline was before is measured beside it.
    """
    config = request.settings
    names = ["baseline"] * bool(request.baseline) + [WAS] * before + ["off", "on", "shuffled"]
    names += ["control_random"] * bool(request.control)
    core = [*names, *["control_real"] * bool(request.control), "random", "wrong_order", "n_only", "f_only"]
    core += [f"oracle_{percent}" for percent in sorted(set(config.corruption))]
    core += [name for name in config.retriever_names() if name != own]
    slow: list[str] = []
    fits = prepended_neighbors(k, table.windows.rows.shape[1])
    if request.baseline and config.prepend == "on" and fits:
        slow = list(PREPEND)
    rounds = [table.windows_for(tokens) for tokens in config.rounds(int(table.there.sum()))]
    passes = [Pass(1, names, rounds[0]), Pass(1, core, rounds[0])]
    if slow:
        passes.append(Pass(1, core + slow, rounds[0]))
    passes += [Pass(number, core + slow, windows) for number, windows in enumerate(rounds[1:], start=2)]
    curve = [f"k{k}" for k in sorted(set(config.neighbor_counts))]
    curve += [f"db{percent}" for percent in sorted(set(config.database_sizes))]
    return [*passes, Pass(len(rounds), curve, rounds[0], is_curve=True)] if curve else passes


class MargeMeasurement:
    """The arms of a MARGE, which are its controls too."""

    units = "passages"

    def __init__(self, request: Request, study: MargeStudy, corpus: Corpus, model: MARGE) -> None:
        self.study, self.model, self.table, self.corpus = study, model, study.table, corpus
        self.measured_on = name_of(corpus, request)
        self.weights = weights_used(request)
        self.read = {"k": str(study.arms.k), "seed": str(study.config.seed)}
        counts = rounds(study)
        self.passes = [Pass(number, study.measured, count) for number, count in enumerate(counts, start=1)]
        self.total = counts[-1]

    @classmethod
    def open(
        cls, request: Request, stop: Callable[[], bool]
    ) -> Generator[Event, None, MargeMeasurement | None]:
        run = request.folder("run")
        config = read_marge_config(run)
        corpus = yield from _corpus(run, config, request, stop)
        if corpus is None:
            return None
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
            return None
        study = make_marge_study(request, config, corpus, known, passages, left_out, vectors, model)
        return cls(request, study, corpus, model)

    def find(self, one: Pass) -> Iterator[Event]:
        yield Progress("search for evidence", one.round - 1, len(self.passes))
        self.study.arms.search(self.study.measured, one.count)

    def advance(self, one: Pass, before: list[Pass]) -> Iterator[int]:
        """A batch of targets at a time and all arms at once; what is there costs nothing."""
        table, arms, done = self.table, self.study.arms, before[-1].count if before else 0
        for which in arms.batches(one.count):
            end = int(which[-1]) + 1
            if end <= done:
                continue
            missing = [arm for arm in one.names if np.isin(which, table.missing(arm, end)).any()]
            for arm, losses in arms.losses(self.model, missing, which).items():
                table.add(arm, which, losses)
            yield end - done
            done = end

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        return marge_report(self.study, one.count)


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
    for event in prepare_retokenized(other, run, other.config.chunk_len):
        yield event
        if stop():
            return None
    return load_retokenized(other, run, other.config.chunk_len)


def _embedded(
    model: MARGE, passages: Passages, stop: Callable[[], bool]
) -> Generator[Event, None, np.ndarray | None]:
    """Embeddings (P, D) of all passages; None after a stop."""
    parts = []
    for start in range(0, len(passages), EMBEDDED_AT_ONCE):
        yield Progress("embed the passages", start, len(passages))
        if stop():
            return None
        parts.append(embed_passages(model, passages.tokens[start : start + EMBEDDED_AT_ONCE]))
    return np.concatenate(parts)


def make_marge_study(
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
