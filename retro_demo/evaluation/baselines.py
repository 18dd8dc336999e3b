"""What a run is compared with: matched baselines, what it was trained on, smaller databases.

A plain `lm` is a fair baseline where it has the same text and tokens and no less training or size: one that
had less would make retrieval look good. That of a reader is its pretrained base, fine-tuned. Differences are
reported; where the two cannot be compared token by token, the comparison is refused.

A run must not be measured on documents that it was trained on. Its own corpus holds its held-out documents
out of all batches. Those of another corpus (hot swap), or of a corpus that its base was not trained on, may
have stood in a training: so the texts are compared.

A smaller database drops documents and searches the held-out chunks again in the rest. Parts are nested: the
documents of 5% are among those of 20%.

Shapes: N chunks, K neighbors, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.chunks import find_duplicates
from retro_demo.corpus.retrievers import retriever_over, search_stored
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.store import Corpus, load_corpus, word_ids
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.events import read_events
from retro_demo.files import load_array
from retro_demo.kinds import KINDS
from retro_demo.models.config import RetroConfig
from retro_demo.models.reader_config import TunedConfig
from retro_demo.paths import data_home, run_folder
from retro_demo.pretrained.tokenizer import load_tokenizer
from retro_demo.retrieval.bm25 import LexicalIndex
from retro_demo.retrieval.dense import VectorIndex
from retro_demo.retrieval.neighbors import end_of_query
from retro_demo.runs.alarms import best_of, has_risen, held_out
from retro_demo.runs.checkpoint import (
    BEST,
    ReaderRun,
    RunConfig,
    TunedRun,
    read_any_config,
    read_run_config,
    step_of,
    weights_file,
    weights_with,
)
from retro_demo.runs.planning import READER_SETTINGS
from retro_demo.runs.provenance import base_name, folder_name, training_seconds, weights_of
from retro_demo.settings import TrainConfig, settings_of

DECODER = ("dim", "depth", "ff_mult")


@dataclass(frozen=True)
class Match:
    """How a baseline compares, in words; `unfit` says why it is no match, "" = it is one."""

    words: str
    unfit: str


@dataclass(frozen=True)
class EarlierBaseline:
    """What a baseline was before, to be measured beside it: weights of a run, and what they are in words."""

    run: Path
    weights: Path
    words: str


AS_IT_IS = "the pretrained model as it is"
"""What the baseline of a reader was before, in words: what the reader is, too, with retrieval off."""


def before_reading(config: RunConfig) -> str:
    """The same of a reader whose base may have been fine-tuned."""
    return "the pretrained model, fine-tuned for less" if config.begun_with else AS_IT_IS


def match(run: Path, baseline: Path) -> Match:
    """Compare a baseline with a run; raises UserError where no comparison makes sense."""
    ours, theirs = read_run_config(run), read_run_config(baseline)
    if theirs.retrieves:
        wanted = "its base, fine-tuned" if ours.kind.trains_pretrained else "an lm"
        raise UserError(
            f"The baseline {baseline.name} is a {theirs.model}, which retrieves too. Name {wanted}, that was "
            "trained on the same corpus."
        )
    _check_same_family(ours, theirs, run, baseline)
    check_same_tokens(run, baseline)
    steps, parameters = weights_of(run)
    their_steps, their_parameters = weights_of(baseline)
    seen, their_seen = tokens_seen(run), tokens_seen(baseline)
    words = (
        f"The run saw {_count(seen)} tokens in training ({_steps(ours, steps)}, {parameters / 1e6:.2f} M "
        f"parameters), the baseline {_count(their_seen)} ({_steps(theirs, their_steps)}, "
        f"{their_parameters / 1e6:.2f} M)"
    )
    if ours.kind.trains_pretrained:
        own = None if ours.begun_with else training_seconds(run, ours, steps)  # of half the work alone
        seconds = own, training_seconds(baseline, theirs, their_steps)
        words += _times(*seconds, alike=seen == their_seen, again=_lessons_come_again(ours))
    return Match(words, _unfit(ours, theirs, seen, their_seen))


def _check_same_family(ours: RunConfig, theirs: RunConfig, run: Path, baseline: Path) -> None:
    """Raise UserError where one of a run and its baseline has a pretrained base and the other has none."""
    if ours.kind.trains_pretrained and not theirs.kind.trains_pretrained:
        raise UserError(
            f"The baseline {baseline.name} is an lm without a pretrained base, but {run.name} reads with "
            f"{base_name(ours)}: name that base, fine-tuned (train lm --base {base_name(ours)})."
        )
    if theirs.kind.trains_pretrained and not ours.kind.trains_pretrained:
        raise UserError(
            f"The baseline {baseline.name} is the pretrained base {base_name(theirs)}, fine-tuned, which "
            f"{run.name} has not. Name an lm that was trained on the same corpus."
        )


def _lessons_come_again(config: RunConfig) -> bool:
    """Whether a reader had lessons more than once, which were prepared before its steps."""
    training = config.training
    return isinstance(config, ReaderRun) and config.lessons.lessons < training.steps * training.batch_size


def _times(ours: float | None, theirs: float | None, *, alike: bool, again: bool) -> str:
    """How many seconds the steps of both took, in words; `alike`: whether both saw as many tokens."""
    matched = "tokens are matched, time is not" if alike else "neither tokens nor time are matched"
    if ours is None or theirs is None:
        return f"; {matched}"
    return (
        f"; {matched}: their steps took {ours / 60:.1f} and {theirs / 60:.1f} minutes"
        + ", and the lessons of the run were prepared before" * again
    )


def earlier_baseline(baseline: Path) -> EarlierBaseline | None:
    """What a baseline began from, else its best save where it is measured with the last; None = neither.

    Trained for too long it is an easy opponent, and a frozen retrofit would look good beside it.
    """
    config = read_run_config(baseline)
    if config.kind.trains_pretrained:
        return None  # it began as what its reader is with retrieval off
    if config.base and (weights := weights_with(run_folder(config.base), config.base_weights)):
        return EarlierBaseline(run_folder(config.base), weights, "what the baseline began from")
    best = baseline / BEST
    if not best.exists() or weights_file(baseline) == best:
        return None
    step = step_of(best)
    if step in (0, weights_of(baseline)[0]):
        return None
    return EarlierBaseline(baseline, best, f"the best save of the baseline (step {step:,})")


def got_worse(baseline: Path) -> str:
    """That a baseline was better before than with the weights that it is used with, as its own training
    measured it, in words; "" = it was not.

    A best save, too, may be worse than what the baseline began from: that is no save of its own.
    """
    points = held_out(e for e in read_events(baseline / "events.jsonl") if e["event"] == "evaluated")
    used = step_of(weights_file(baseline))
    points = [point for point in points if point.step <= used]
    best = best_of(points)
    if best is None or not has_risen(points, ended=True):
        return ""
    return (
        f"The baseline was better before, as its own training measured it: {best.nats:.3f} nats a token at "
        f"step {best.step:,}, {points[-1].nats:.3f} at step {points[-1].step:,}. What the run gains on it "
        "may be its loss."
    )


def unfit_control(run: Path, control: Path) -> str:
    """Why a run is no control, or one that would be an easy opponent; "" where it is a fair one."""
    ours, theirs = read_run_config(run), read_run_config(control)
    if not theirs.retrieves or theirs.training.neighbor_source != "random":
        return "it was not trained with random neighbors"
    return _unfit(ours, theirs, tokens_seen(run), tokens_seen(control))


def check_same_tokens(run: Path, other: Path) -> None:
    """Raise UserError where two runs do not read the same tokens of a text."""
    tokenizers = [load_tokenizer(folder / "tokenizer.json") for folder in (run, other)]
    if tokenizers[0].fingerprint != tokenizers[1].fingerprint:
        raise UserError(
            f"{other.name} speaks another tokenizer than {run.name}, so their losses are not about the same "
            "tokens. Train it on the same corpus."
        )


def _unfit(ours: RunConfig, theirs: RunConfig, seen: int | None, their_seen: int | None) -> str:
    """Why the baseline would be an easy opponent; "" where it is none."""
    if ours.corpus_fingerprint != theirs.corpus_fingerprint:
        return "it was trained on another corpus"
    if theirs.training.seq_len < ours.training.seq_len:
        return f"it was trained on {theirs.training.seq_len} tokens of context, not {ours.training.seq_len}"
    if isinstance(ours, ReaderRun) and isinstance(theirs, TunedRun):
        if theirs.base_weights != ours.base_weights:
            return "it began with another base"
        if theirs.network.first_tuned > ours.network.first_changed:
            return (
                f"only the layers above {theirs.network.first_tuned} were trained, and the run changes those "
                f"above {ours.network.first_changed}"
            )
        least = ours.network.rank or TunedConfig.rank
        if theirs.network.rank < least:
            return f"its updates have rank {theirs.network.rank}, not {least}"
    for name in () if ours.kind.trains_pretrained else DECODER:
        one, other = getattr(ours.network, name), getattr(theirs.network, name)
        if other < one:
            return f"its decoder is smaller ({name} {other}, not {one})"
    if seen is None or their_seen is None:
        return "it is not known how many tokens it was trained on, because a base run is gone"
    if their_seen < seen:
        return f"it saw only {their_seen:,} tokens in training, the run {seen:,}"
    return ""


def tokens_seen(run: Path) -> int | None:
    """Tokens read in training up to the saved weights, those of the base run included; None = unknown.

    What a pretrained base has read does not count: it is the same for all that are compared. Its
    fine-tuning does.
    Of a run that is used with its best save all of the training counts: it was chosen from all of it.
    """
    config = read_run_config(run)
    own = _trained_steps(run) * config.training.batch_size * config.training.seq_len
    if isinstance(config, ReaderRun):
        return own + config.tuned_tokens
    if not config.begun_with:
        return own
    base = run_folder(config.begun_with)
    before = tokens_seen(base) if (base / "config.json").exists() else None
    return None if before is None else before + own


def _trained_steps(run: Path) -> int:
    saved = [weights_of(run)[0]]
    if read_run_config(run).training.keep == "best":
        saved += [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "saved"]
    return max(saved)


def _steps(config: RunConfig, steps: int) -> str:
    return f"{steps:,} steps" + (" after those of its base" if config.begun_with else "")


def _count(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else f"{tokens:,}"


def baseline_settings(run: Path) -> dict[str, Any]:
    """The settings of the baseline (`Kind.baseline`) that would match a run, for `planning.plan_run` with the
    run's base.

    From scratch it is the same decoder trained the same way. For a retrofit it is the base trained on
    for as many steps, at the learning rate of its preset for that: the retrofit's is for fresh weights.
    So it is for a reader, from the layer on which it writes into. One that reads with a fine-tuned base has
    that base, fine-tuned for as many tokens as both took.
    """
    config = read_run_config(run)
    if isinstance(config, ReaderRun):
        tuned = KINDS[config.kind.baseline]
        known = tuned.settings()
        settings = {name: getattr(config.training, name) for name in known if known[name] is TrainConfig}
        settings |= {name: getattr(config.network, name) for name in ("chunk_len", "title_len")}
        usual = tuned.preset_settings(config.preset if config.preset in tuned.presets else "tiny")
        settings |= {"first_tuned": config.network.first_changed, "lr": usual["lr"]}
        if config.tuned:
            a_step = config.training.batch_size * config.training.seq_len
            more = -(-config.tuned_tokens // a_step)
            settings |= {"rank": config.network.rank, "steps": config.training.steps + more}
        return settings
    shape = {setting.name for setting in settings_of(RetroConfig)} - READER_SETTINGS
    settings = {name: getattr(config.network, name) for name in sorted(shape)}
    settings |= {setting.name: getattr(config.training, setting.name) for setting in settings_of(TrainConfig)}
    if config.base:
        settings["lr"] = KINDS["lm"].preset_settings(config.preset, begun=True)["lr"]
    return settings


@dataclass(frozen=True)
class Known:
    """Held-out documents, bool (D,), that stood in a training; why some training could not be looked at."""

    documents: np.ndarray
    unchecked: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return int(self.documents.sum())

    @property
    def words(self) -> str:
        """What was left out and what could not be checked, in sentences; "" where there is nothing to say."""
        said = []
        if self.count:
            said.append(
                f"Left out, as the training of a run that is measured held them: {self.count:,} held-out "
                "documents of this corpus."
            )
        if self.unchecked:
            said.append(
                "It could not be checked whether the training held the documents that are measured on: "
                + " ".join(self.unchecked)
            )
        return " ".join(said)


def trainings(runs: Iterable[Path]) -> tuple[dict[str, str], list[str]]:
    """The corpora that runs and their bases were trained on, fingerprint -> place, and which base is gone."""
    places: dict[str, str] = {}
    gone: list[str] = []
    for run in runs:
        config = read_any_config(run)
        places[config.corpus_fingerprint] = config.corpus
        while config.begun_with:
            base = run_folder(config.begun_with)
            if not (base / "config.json").exists():
                gone.append(f"The base run {base.name} is gone.")
                break
            config = read_run_config(base)
            places[config.corpus_fingerprint] = config.corpus
        if config.kind.trains_pretrained:
            gone.append(f"What the pretrained base {folder_name(config.base)} has read is not known.")
    return places, gone


def known_documents(corpus: Corpus, runs: Iterable[Path]) -> Known:
    """Which held-out documents of `corpus` stood in the training of these runs or their bases.

    A document counts as known where a training document has its id and title, its words, or nearly its
    words (corpus/chunks.py). Nothing is compared where all were trained on this very corpus. Of a corpus
    that was changed (corpus/changes.py), what was forgotten since counts by id and title.
    """
    places, unchecked = trainings(runs)
    places.pop(corpus.fingerprint, None)
    trained: list[Document] = []
    gone: set[tuple[str, str]] = set()
    for fingerprint, place in places.items():
        try:
            there = load_corpus(corpus_folder(data_home()[0], place))
        except UserError:
            unchecked.append(f"The corpus {folder_name(place)} is gone or damaged.")
            continue
        later = changes_since(there, fingerprint)
        if later is None:
            unchecked.append(f"The corpus {folder_name(place)} has changed since.")
            continue
        gone |= {(id_, title) for step in later for id_, title in step["forgotten"]}
        unread = there.held_out | there.database_only
        trained += [one for one, out in zip(there.documents, unread, strict=True) if not out]
    known = np.zeros(len(corpus.documents), dtype=bool)
    held_out = np.flatnonzero(corpus.held_out)
    asked = [corpus.documents[number] for number in held_out]
    if (trained or gone) and asked:
        cluster = find_duplicates(word_ids([one.text for one in (*trained, *asked)])).cluster
        named = {(one.id, one.title) for one in trained} | gone
        known[held_out] = np.isin(cluster[len(trained) :], cluster[: len(trained)])
        known[held_out] |= [(one.id, one.title) in named for one in asked]
    return Known(known, tuple(dict.fromkeys(unchecked)))


def changes_since(corpus: Corpus, fingerprint: str) -> list[dict[str, Any]] | None:
    """The changes (corpus/changes.py) that made this corpus of the one with that fingerprint, or None."""
    if corpus.fingerprint == fingerprint:
        return []
    history = corpus.manifest.get("history", [])
    first = next((i for i, step in enumerate(history) if step["fingerprint"] == fingerprint), None)
    return None if first is None else history[first:]


@dataclass(frozen=True)
class SmallerDatabase:
    """A part of the database: its documents, chunk ids and tokens."""

    documents: int
    ids: np.ndarray
    tokens: int


def part_of_database(corpus: Corpus, percent: int, seed: int) -> SmallerDatabase:
    """`percent` of the documents that may be retrieved, at least one, drawn with the seed."""
    documents = np.flatnonzero(~corpus.held_out)
    order = np.random.default_rng([seed, 5]).permutation(documents)
    kept = order[: max(1, round(len(order) * percent / 100))]
    ids = np.flatnonzero(np.isin(corpus.chunks.document, kept))
    return SmallerDatabase(len(kept), ids, int((corpus.chunks.tokens[ids] != 0).sum()))


def search_part(
    corpus: Corpus,
    retriever: str,
    part: SmallerDatabase,
    queries: np.ndarray,
    k: int,
    query_tokens: int = 0,
) -> np.ndarray:
    """A table (N, k) of chunk ids, -1 = none, filled for the chunk ids `queries` (Q,)."""

    def vectors() -> VectorIndex:
        stored = load_array(corpus.folder / "vectors.npy", mapped=True)[part.ids]
        return VectorIndex.build(np.asarray(stored), part.ids.astype(np.int64), factory="Flat")

    def words(terms_of: Callable[[np.ndarray], list[list[str]]]) -> LexicalIndex:
        return LexicalIndex.build(terms_of(part.ids), part.ids)

    finder = end_of_query(retriever_over(corpus, retriever, vectors, words), query_tokens)
    table = np.full((len(corpus.chunks), k), -1, dtype=np.int64)
    table[queries] = search_stored(corpus, finder, queries, k).ids
    return table
