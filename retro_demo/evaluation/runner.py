"""The verb `evaluate` as a job: it measures a run against its controls, in rounds that grow.

    config.json     what is measured (evaluation/request.py)
    events.jsonl    progress; after each round `refined` with all figures, at the end `finished`
    table.npz       the loss of every token under every arm (evaluation/losses.py)

The first round gives a verdict from a stated part of the held-out text; each later one reads more of it
and the same again, so figures only become sharper. An evaluation that was stopped resumes.

Of a MARGE all passages are embedded once, the evidence of each is searched once for each rule, and evidence
that several arms show is encoded once for each batch.

Shapes: P passages, Q held-out passages, S passage length, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.building import open_index
from retro_demo.corpus.changes import load_edition, prepare_edition
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.devices import allowed_threads, choose_device
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import TARGETS, Arms, EvidenceArms, Windows, held_out_windows
from retro_demo.evaluation.baselines import (
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
from retro_demo.evaluation.losses import LossTable, prepended_neighbors, read_arm, read_prepended
from retro_demo.evaluation.overlap import Overlaps
from retro_demo.evaluation.report import WAS, MargeStudy, Study, curves, marge_report, report
from retro_demo.evaluation.request import Request, read_request
from retro_demo.events import Event, Finished, Progress, Refined, Started, Stopped, Warned, cut_back
from retro_demo.evidence.passages import Passages, cut_passages
from retro_demo.evidence.reindex import embed_passages, recall, scripts_of
from retro_demo.files import file_hash
from retro_demo.jobs.lifecycle import claim, record
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
from retro_demo.runs.provenance import code_hash, place_name, provenance
from retro_demo.settings import EvaluateConfig

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
    study = make_marge_study(request, config, corpus, known, passages, left_out, vectors, model)
    work = MargeWork(study, model, out / "table.npz", what_marge_reads(request, study, corpus))
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
        result["provenance"] = _marge_provenance(request, corpus, count, time.perf_counter() - begun)
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


def what_marge_reads(request: Request, study: MargeStudy, corpus: Corpus) -> dict[str, str]:
    """Which weights read what: a table of losses of others is not gone on with."""
    return {
        "run": file_hash(weights_file(request.folder("run"))),
        "k": str(study.arms.k),
        "seed": str(study.config.seed),
        "corpus": corpus.fingerprint,
        "code": code_hash(),
    }


class MargeWork:
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


def _marge_provenance(request: Request, corpus: Corpus, count: int, seconds: float) -> dict[str, Any]:
    origin = provenance(
        request.folder("run"), command=request.command(), seconds=seconds, settings=asdict(request.settings)
    )
    return origin | {
        "measured_on": name_of(corpus, request),
        "measured_on_fingerprint": corpus.fingerprint,
        "split": f"held-out documents, {count} passages from the front of the order drawn with the seed",
        "weights": {"run": file_hash(weights_file(request.folder("run")))},
    }


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


def run_evaluation(out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Measure what was prepared in `out`, alone and on record, to its end or until `stop` says so."""
    request = read_request(out)
    places, _ = trainings([request.folder(name) for name in request.runs])
    for corpus in {*places.values(), request.corpus} - {""}:
        yield from ensure_sample(corpus, stop)
    is_marge = isinstance(read_any_config(request.folder("run")), MargeRun)
    with claim(out):
        cut_back(out / "events.jsonl", 0)
        events = evaluate_marge if is_marge else _evaluate
        yield from record(out, events(out, request, stop))


def _evaluate(out: Path, request: Request, stop: Callable[[], bool]) -> Iterator[Event]:
    begun = time.perf_counter()
    yield Started("evaluation", about=asdict(request))
    torch.set_num_threads(allowed_threads())
    device = choose_device(request.device)
    other = corpus_folder(data_home()[0], request.corpus) if request.corpus else None
    config = read_run_config(request.folder("run"))
    if other and config.retrieves:
        for event in prepare_edition(load_corpus(other), request.folder("run"), config.network.chunk_len):
            yield event
            if stop():
                yield Stopped()
                return
    loaded = load_run(request.folder("run"), device, other)
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
    weights = weights_used(request) | ({WAS: file_hash(was.weights)} if was else {})
    work = Work(study, models, out / "table.npz", weights | what_is_read(arms))
    study.table.load(work.path, work.weights)
    passes = plan(study.table, request, loaded.retriever, arms.k, before=bool(was))
    parts: dict[str, SmallerDatabase] = {}
    result: dict[str, Any] = {}
    total, done = sum(work.cost(one, passes[:place]) for place, one in enumerate(passes)), 0
    rounds = passes[-1].round
    for place, one in enumerate(passes):
        if one.is_curve:
            parts = search_parts(arms, one, request.settings)
        yield from find_neighbors(arms, one)
        for cost in work.advance(one, passes[:place]):
            done += cost
            yield Progress(f"round {one.round} of {rounds}", done, total)
            if stop():
                work.save()
                yield Stopped()
                return
        work.save()
        if one.is_curve:
            result["curves"] = curves(study, one.windows, parts)
        else:
            result = report(study, one.names, one.windows)
        result["provenance"] = _provenance(request, loaded, one, time.perf_counter() - begun, weights)
        yield Refined(one.round, rounds, result)
    yield Finished(result)


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
    which = np.arange(one.windows)
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
    queries = np.unique(arms.windows.rows[: one.windows])
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


def weights_used(request: Request) -> dict[str, str]:
    """The hash of the weights of each run that is measured."""
    return {name: file_hash(weights_file(request.folder(name))) for name in request.runs}


def what_is_read(arms: Arms) -> dict[str, str]:
    """Which neighbors are read, by which code: a table of losses of others is not gone on with."""
    chosen = {"retriever": arms.own, "k": str(arms.k), "seed": str(arms.seed)}
    return chosen | {"corpus": arms.corpus.fingerprint, "code": code_hash()}


@dataclass(frozen=True)
class Pass:
    """A stretch of work: these arms on the first `windows` windows; `round` as people count."""

    round: int
    names: list[str]
    windows: int
    is_curve: bool = False


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


@dataclass(frozen=True)
class Work:
    """Fills the table, a batch of windows at a time; what is there already costs nothing."""

    study: Study
    models: dict[str, RETRO]
    path: Path
    weights: dict[str, str]

    def cost(self, one: Pass, before: list[Pass]) -> int:
        """Windows that this pass reads, over all arms; a prepended chunk counts as a window of its own."""
        return sum(self._weight(name) * (one.windows - _known(name, before)) for name in one.names)

    def _weight(self, name: str) -> int:
        return self.study.table.windows.rows.shape[1] - 1 if name in PREPEND else 1

    def advance(self, one: Pass, before: list[Pass]) -> Iterator[int]:
        """Measure what the table lacks; yields the cost of each stretch that is done."""
        table = self.study.table
        for name in one.names:
            missing = table.missing(name, one.windows)
            if free := one.windows - _known(name, before) - len(missing):
                yield free * self._weight(name)  # found in the table of an evaluation that was stopped
            for start in range(0, len(missing), self.study.config.batch_size):
                which = missing[start : start + self.study.config.batch_size]
                table.add(name, which, self._read(name, which))
                yield len(which) * self._weight(name)

    def _read(self, name: str, which: np.ndarray) -> np.ndarray:
        if name in PREPEND:
            wanted = name == "prepend"
            return read_prepended(self.models["baseline"], self.study.arms, which, neighbors=wanted)
        model, arm = READERS.get(name, ("run", name))
        return read_arm(self.models[model], self.study.arms, arm, which)

    def save(self) -> None:
        self.study.table.save(self.path, self.weights)


def _known(name: str, before: list[Pass]) -> int:
    """How many windows this arm was measured on in the passes before."""
    return max((one.windows for one in before if name in one.names), default=0)


def _provenance(
    request: Request, loaded: LoadedRun, one: Pass, seconds: float, weights: dict[str, str]
) -> dict[str, Any]:
    origin = provenance(
        request.folder("run"), command=request.command(), seconds=seconds, settings=asdict(request.settings)
    )
    assert loaded.database is not None
    return origin | {
        "measured_on": loaded.database.corpus.name,
        "measured_on_fingerprint": loaded.database.corpus.fingerprint,
        "split": f"held-out documents, {one.windows} windows from the front of the order drawn with the seed",
        "weights": weights,
    }
