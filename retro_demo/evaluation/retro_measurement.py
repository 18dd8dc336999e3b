"""What an evaluation measures of a run that reads neighbors: its arms, its baseline, its control.

The result has what `runner.py` lists, and

leakage       {"database": ..., "neighbors": ...}: bpb by overlap, see evaluation/copied_text.py
arms          has also `reach`: the share of the looks whose neighbors hold what comes next, see arms.py
title         the verdict in a student's words
curves        loss by the size of the database and by k, where they were measured
ways          of a reader: the ways to read the same neighbors on the tokens of the first verdict, with costs
match         how run and baseline compare, in words
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from retro_demo.corpus.building import open_index
from retro_demo.corpus.retrievers import load_retriever
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.store import Corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import NOT_SEARCHED, WAYS, Arms, held_out_windows, neighbors_missing, reach
from retro_demo.evaluation.baselines import (
    EarlierBaseline,
    Known,
    Match,
    SmallerDatabase,
    before_reading,
    earlier_baseline,
    got_worse,
    known_documents,
    match,
    part_of_database,
    search_part,
)
from retro_demo.evaluation.copied_text import Overlaps, leakage
from retro_demo.evaluation.losses import (
    LossTable,
    Sums,
    arm_figures,
    prepended_neighbors,
    read_arm,
    read_prepended,
    tokens_moved,
)
from retro_demo.evaluation.reading_ways import IN_CONTEXT, KNN, ReadingWays
from retro_demo.evaluation.runner import Pass, Request, nothing_left, weights_used
from retro_demo.evaluation.verdict import VerdictFigures, verdict
from retro_demo.evaluation.writing_cost import LookToWrite, writing_costs
from retro_demo.events import Event, Progress, Warned
from retro_demo.files import file_hash
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import load_model, read_run_config
from retro_demo.runs.loading import LoadedRun, load_run, make_ready
from retro_demo.settings import EvaluateConfig

WAS = "baseline_before"
"""The arm of what the baseline was before: what it began from, or a better save of it."""


READERS = {
    "baseline": ("baseline", "off"),
    WAS: (WAS, "off"),
    "control_random": ("control", "random"),
    "control_real": ("control", "on"),
}
"""Arms of other models: which model reads them, and with which neighbors."""

PREPEND = ("prepend", "prepend_control")
SEARCHED_AT_ONCE = 1024


class RetroMeasurement:
    """The arms of a run that reads neighbors, with its baseline and control."""

    units = "windows"

    def __init__(
        self,
        request: Request,
        study: RetroStudy,
        loaded: LoadedRun,
        models: dict[str, RETRO],
        was: EarlierBaseline | None,
    ) -> None:
        assert loaded.database is not None
        self.request, self.study, self.models = request, study, models
        self.table, self.corpus = study.table, loaded.database.corpus
        self.measured_on = self.corpus.name
        self.weights = weights_used(request) | ({WAS: file_hash(was.weights)} if was else {})
        arms = study.arms
        self.read = {"retriever": arms.own, "k": str(arms.k), "seed": str(arms.seed)}
        self.ways = ReadingWays(loaded.model, arms) if isinstance(loaded.model, Reader) else None
        ways = self.ways.names if self.ways and request.settings.prepend == "on" else []
        self.passes = plan(self.table, request, loaded.retriever, arms.k, ways, with_was=was is not None)
        self.total = sum(self._cost(one, self.passes[:place]) for place, one in enumerate(self.passes))
        self._parts: dict[str, SmallerDatabase] = {}

    @classmethod
    def open(
        cls, request: Request, stop: Callable[[], bool]
    ) -> Generator[Event, None, RetroMeasurement | None]:
        run, device = request.folder("run"), choose_device(request.device)
        other = corpus_folder(data_home()[0], request.corpus) if request.corpus else None
        config = read_run_config(run)
        if (other and config.retrieves) or config.retokenizes:
            for event in make_ready(request.corpus or config.corpus, run, config):
                yield event
                if stop():
                    return None
        loaded = load_run(run, device, other)
        assert loaded.database is not None
        models = {"run": loaded.model} | {
            name: load_model(request.folder(name), device) for name in request.runs[1:]
        }
        if was := earlier_baseline(request.folder("baseline")) if request.baseline else None:
            models[WAS] = load_model(was.run, device, was.weights)
        corpus = loaded.database.corpus
        known = known_documents(corpus, [request.folder(name) for name in request.runs])
        if known.words:
            yield Warned(known.words)
        arms = make_arms(loaded, corpus, request.settings, known)
        study = make_study(arms, request, loaded, known, was)
        inside = corpus.held_out[corpus.chunks.document[study.database]].sum()
        if inside:
            yield Warned(
                f"{inside:,} held-out chunks stand in the index: retrieval can look up the very text that is "
                "measured. No figure here says that it helps."
            )
        return cls(request, study, loaded, models, was)

    def find(self, one: Pass) -> Iterator[Event]:
        arms = self.study.arms
        if one.kind == "curve":
            self._parts = search_parts(arms, one, self.request.settings)
        yield from find_neighbors(arms, one)
        if one.kind == "ways" and self.ways:
            yield from self.ways.choose(load_retriever(self.corpus, arms.own, arms.query_tokens))

    def advance(self, one: Pass, done: list[Pass]) -> Iterator[int]:
        """A batch of windows at a time; what is there already costs nothing."""
        table = self.table
        for name in one.names:
            missing = table.missing(name, one.count)
            if free := one.count - _known(name, done) - len(missing):
                yield free * self._weight(name)  # found in the table of an evaluation that was stopped
            for start in range(0, len(missing), self.study.config.batch_size):
                which = missing[start : start + self.study.config.batch_size]
                table.add(name, which, self._read(name, which))
                yield len(which) * self._weight(name)

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        if one.kind == "curve":
            return last | {"curves": curves(self.study, one.count, self._parts)}
        if one.kind == "ways" and self.ways:
            found = ways_report(self.study, self.ways, one)
        else:
            found, last = last.get("ways", {}), report(self.study, one.names, one.count)
        of_ways = {name: figures for name, figures in found.get("arms", {}).items() if name in WAYS}
        return last | {"arms": last["arms"] | of_ways, "ways": found}

    def _cost(self, one: Pass, done: list[Pass]) -> int:
        """Windows that this pass reads, over all arms; a prepended chunk counts as a window of its own."""
        return sum(self._weight(name) * (one.count - _known(name, done)) for name in one.names)

    def _weight(self, name: str) -> int:
        return self.table.windows.rows.shape[1] - 1 if name in (*PREPEND, IN_CONTEXT, KNN) else 1

    def _read(self, name: str, which: np.ndarray) -> np.ndarray:
        if name in PREPEND:
            wanted = name == "prepend"
            return read_prepended(self.models["baseline"], self.study.arms, which, neighbors=wanted)
        if name in WAYS and self.ways:
            return self.ways.read(name, which)
        model, arm = READERS.get(name, ("run", name))
        return read_arm(self.models[model], self.study.arms, arm, which)


def _known(name: str, done: list[Pass]) -> int:
    """How many windows this arm was measured on in the passes that are done."""
    return max((one.count for one in done if name in one.names), default=0)


def make_arms(loaded: LoadedRun, corpus: Corpus, config: EvaluateConfig, known: Known) -> Arms:
    """The arms of a run on a corpus; raises UserError where there is nothing to measure on."""
    chunks_per_window = loaded.config.training.seq_len // corpus.config.chunk_len
    windows = held_out_windows(corpus, chunks_per_window, config.seed, known.documents)
    if known.count and not len(windows):
        raise UserError(nothing_left(corpus, known))
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
    query_tokens = loaded.config.training.query_tokens
    if "dense" in tables and not query_tokens:
        tables["dense"] = corpus.neighbor_ids.astype(np.int64)
    title_len = loaded.model.config.title_len
    return Arms(corpus, windows, tables, loaded.retriever, k, config.seed, title_len, query_tokens)


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
        finder = load_retriever(arms.corpus, name, arms.query_tokens) if len(missing) else None
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
        rows, k = queries[queries >= 0], arms.k
        arms.tables[name] = search_part(arms.corpus, arms.own, parts[name], rows, k, arms.query_tokens)
    return parts


def make_study(
    arms: Arms, request: Request, loaded: LoadedRun, known: Known, was: EarlierBaseline | None
) -> RetroStudy:
    """The table to fill, the database as it is, how the baseline compares, and what it `was` before."""
    windows, corpus = arms.windows, arms.corpus
    table = LossTable(windows, arms.tokens(np.arange(len(windows))), corpus.bytes_of_tokens())
    # a chunk without a vector is not in the index, and BM25 finds it
    retrievable = np.flatnonzero(~corpus.held_out[corpus.chunks.document])
    database = np.union1d(open_index(corpus).ids, retrievable)
    most = table.windows_for(request.settings.rounds(int(table.there.sum()))[-1])
    overlaps = Overlaps(corpus.chunks, windows.rows[:most, 1:], database)
    compared = match(request.folder("run"), request.folder("baseline")) if request.baseline else None
    pretrained = loaded.config.kind.trains_pretrained
    rival = "training longer" if loaded.config.base else VerdictFigures.rival
    return RetroStudy(
        arms=arms,
        table=table,
        config=request.settings,
        database=database,
        match=compared,
        swapped=loaded.swapped,
        known=known,
        overlaps=overlaps,
        before="off" if pretrained else WAS if was else "",
        was=before_reading(loaded.config) if pretrained else was.words if was else "",
        got_worse=got_worse(request.folder("baseline")) if request.baseline else "",
        rival="fine-tuning without neighbors" if pretrained else rival,
        frozen=loaded.config.kind.freezes_base,
    )


MOST_OF_WAYS = 8000
"""Tokens on which a reader is compared with other ways to read: in the prompt costs several times as much."""


def plan(
    table: LossTable, request: Request, own: str, k: int, ways: list[str], *, with_was: bool
) -> list[Pass]:
    """The rounds of an evaluation: what decides comes first, what is slow and the curves last.

    `ways`: in which a reader is read, too; `with_was`: whether what the baseline was before is measured.
    """
    config = request.settings
    names = ["baseline"] * bool(request.baseline) + [WAS] * with_was + ["off", "on", "shuffled"]
    names += ["control_random"] * bool(request.control)
    core = [*names, *["control_real"] * bool(request.control), "random", "wrong_order", "n_only", "f_only"]
    core += [f"oracle_{percent}" for percent in sorted(set(config.corruption))]
    core += [name for name in config.retriever_names() if name != own]
    slow: list[str] = []
    fits = prepended_neighbors(k, table.windows.rows.shape[1])
    if request.baseline and config.prepend == "on" and fits and not ways:
        slow = list(PREPEND)
    rounds = [table.windows_for(tokens) for tokens in config.rounds(int(table.there.sum()))]
    passes = [Pass(1, names, rounds[0]), Pass(1, core, rounds[0])]
    if ways:
        passes.append(Pass(1, ways, min(rounds[0], table.windows_for(MOST_OF_WAYS)), "ways"))
    if slow:
        passes.append(Pass(1, core + slow, rounds[0]))
    passes += [Pass(number, core + slow, windows) for number, windows in enumerate(rounds[1:], start=2)]
    curve = [f"k{k}" for k in sorted(set(config.neighbor_counts))]
    curve += [f"db{percent}" for percent in sorted(set(config.database_sizes))]
    return [*passes, Pass(len(rounds), curve, rounds[0], "curve")] if curve else passes


@dataclass(frozen=True, kw_only=True)
class RetroStudy:
    """What is being measured: the arms and their table, and the database as the index has it."""

    arms: Arms
    table: LossTable
    config: EvaluateConfig
    database: np.ndarray  # chunk ids in the index
    match: Match | None  # of the baseline, None = there is none
    swapped: str
    known: Known
    overlaps: Overlaps
    before: str = ""  # the arm of what the baseline was before, where that is measured too
    was: str = ""  # what that is, in words
    got_worse: str = ""  # that the training of the baseline tells that it was better, in words
    rival: str = VerdictFigures.rival  # what the baseline is, in a student's words
    frozen: bool = False  # whether the run is, without neighbors, what it began with


def report(study: RetroStudy, names: list[str], count: int) -> dict[str, Any]:
    """The figures of these arms on the first `count` windows, which all of them were measured on."""
    arms, table, corpus = study.arms, study.table, study.arms.corpus
    sums = Sums(table, count, resamples=study.config.resamples, seed=study.config.seed)
    figures = arm_figures(sums, names)
    if arms.own not in figures:
        figures[arms.own] = figures["on"] | {"same_as": "on"}
    looks = 0
    for name in (name for name in figures if name in ("on", "shuffled", "random", *arms.tables)):
        reached, looks = reach(arms, name, np.arange(count))
        figures[name] = figures[name] | {"reach": reached / max(1, looks)}
    short, asked = neighbors_missing(arms, np.arange(count))
    counts = {
        "documents": len(sums.documents),
        "held_out_documents": len(np.unique(table.windows.document)),
        "known_documents": study.known.count,
        "windows": count,
        "tokens": int(sums.tokens().sum()),
        "held_out_tokens": int(table.there.sum()),
        "bytes": int(sums.bytes().sum()),
        "chunks": int((table.windows.rows[:count, 1:] >= 0).sum()),
        "database_documents": len(np.unique(corpus.chunks.document[study.database])),
        "database_chunks": len(study.database),
        "database_tokens": int((corpus.chunks.tokens[study.database] != 0).sum()),
        "held_out_chunks_in_index": int(corpus.held_out[corpus.chunks.document[study.database]].sum()),
        "k": arms.k,
        "queries": asked,
        "queries_short": short,
        "looks": looks,
        "retriever": arms.own,
    }
    said = verdict(_evidence(study, sums, names, counts))
    tokens = table.tokens.reshape(len(table.windows), -1, table.chunk_len)[:, 1:]
    moved = {other: tokens_moved(sums, other) for other in ("off", "baseline") if other in names}
    longest = study.overlaps.of(count, arms.tables[arms.own])
    found = {name: leakage(sums, runs, tokens, names) for name, runs in longest.items()}
    return {
        "verdict": said.sentence,
        "title": said.title,
        "helps": said.helps,
        "next": list(said.next),
        "counts": counts,
        "arms": figures,
        "tokens_moved": moved,
        "leakage": found,
        "curves": {},
        "ways": {},
        "trained_on": study.known.words,
        "match": asdict(study.match) | {"before": study.before, "rival": study.rival, "frozen": study.frozen}
        if study.match
        else None,
    }


def _evidence(study: RetroStudy, sums: Sums, names: list[str], counts: dict[str, Any]) -> VerdictFigures:
    against = {
        other: sums.difference("on", other) if other in names else None
        for other in ("baseline", "shuffled", "control_random", study.before)
    }
    known = "baseline" in names and study.before in names
    return VerdictFigures(
        on_baseline=against["baseline"],
        on_shuffled=against["shuffled"],
        on_control=against["control_random"],
        baseline_bpb=sums.bpb("baseline").value if "baseline" in names else float("nan"),
        documents=counts["documents"],
        tokens=counts["tokens"],
        held_out_tokens=counts["held_out_tokens"],
        database_tokens=counts["database_tokens"],
        k=counts["k"],
        share_short=counts["queries_short"] / max(1, counts["queries"]),
        match=study.match.words if study.match else "",
        unfit=study.match.unfit if study.match else "",
        swapped=study.swapped,
        leaked=counts["held_out_chunks_in_index"],
        trained_on=study.known.words,
        was=study.was,
        baseline_on_was=sums.difference("baseline", study.before) if known else None,
        on_was=against[study.before] if known else None,
        got_worse=study.got_worse,
        rival=study.rival,
        frozen=study.frozen,
        oracle_bpb=sums.bpb("oracle_0").value if "oracle_0" in names else None,
    )


def ways_report(study: RetroStudy, ways: ReadingWays, one: Pass) -> dict[str, Any]:
    """The ways to read of a pass, beside off and the reader's own, on the same windows; with costs."""
    sums = Sums(study.table, one.count, resamples=study.config.resamples, seed=study.config.seed)
    model, own = ways.model, ways.model.outputs
    names = ["off", "on", *one.names]
    figures = arm_figures(sums, names, ("off", "on"))
    looks, _ = ways.looks(np.arange(one.count))
    look = max(looks, key=lambda it: ((it.neighbors >= 0).sum(), len(it.before)))
    rows = ways.corpus.neighbor_rows(look.neighbors, model.config.title_len)
    begun = LookToWrite(look.before, rows, ways.before(look, ways.form))
    costs = writing_costs(model, begun, ["off", own, *one.names], ways.knn)
    for name in names:
        figures[name] |= costs[own if name == "on" else name].to_json()
    return {
        "arms": {name: figures[name] for name in names},
        "own": own,
        "documents": len(sums.documents),
        "tokens": int(sums.tokens().sum()),
        "in_context": str(ways.form),
        "knn": str(ways.knn),
        "chunk_len": model.config.chunk_len,
        "precision": model.base.precision,
        "base_megabytes": model.base.config.num_bytes(model.base.precision) / 1e6,
        "threads": torch.get_num_threads(),
    }


def curves(study: RetroStudy, count: int, parts: dict[str, SmallerDatabase]) -> dict[str, Any]:
    """Loss by database size and by k on the first `count` windows, beside off and baseline."""
    sums = Sums(study.table, count, resamples=study.config.resamples, seed=study.config.seed)
    known = [name for name in ("baseline", "off", "on") if sums.has(name)]
    reference = known[0]

    def point(arm: str) -> dict[str, Any]:
        return {"bpb": sums.bpb(arm).value, "difference": sums.difference(arm, reference).to_json()}

    sizes = [
        {"percent": int(name[2:]), "documents": part.documents, "tokens": part.tokens} | point(name)
        for name, part in parts.items()
        if sums.has(name)
    ]
    numbers = sorted(set(study.config.neighbor_counts))
    return {
        "reference": reference,
        "tokens": int(sums.tokens().sum()),
        "documents": len(sums.documents),
        "flat": {name: sums.bpb(name).value for name in known},
        "database_sizes": sizes,
        "neighbor_counts": [{"k": k} | point(f"k{k}") for k in numbers if sums.has(f"k{k}")],
    }
