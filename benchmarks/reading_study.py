"""What the parts of `benchmarks.reading` share: the run, its questions, and how each arm answers them.

Shapes: L looks, K neighbors, R tokens of a neighbor, n questions, V vocabulary.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Report, torch

import numpy as np  # isort: skip

from benchmarks.reading_arms import in_context, off_logits, read_text, reader_logits
from benchmarks.reading_cases import (
    Case,
    Library,
    library,
    prompt_ids,
    reached,
)
from retro_demo.corpus.changes import load_retokenized, prepare_retokenized
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.corpus.store import Corpus, load_corpus
from retro_demo.evaluation.losses import Estimate, draws, ratio
from retro_demo.evaluation.reading_ways import (
    KnnFormat,
    KnnStates,
    PromptFormat,
    knn_formats,
    knn_mix,
    plain_logits,
    prompt_formats,
)
from retro_demo.models.reader import Reader
from retro_demo.paths import data_home
from retro_demo.pretrained.bases import load_base
from retro_demo.runs.checkpoint import ReaderRun, load_model, read_run_config
from retro_demo.runs.loading import load_own_corpus
from retro_demo.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
EDITIONS = ("sample:factbook2015", "sample:factbook2026")
PARTS = ("facts", "edits", "bits", "stride", "corpora", "prose", "cost")
READERS = ("attention", "copy", "both")
ARMS = ("off", *READERS, "shuffled", "in-context", "knn")
BATCH = 8
RESAMPLES = 2000


@dataclass(frozen=True)
class Question:
    """A case under one database: ids of prompt and value, and what is read at each look of the prompt.

    Of a value of more than a chunk its first chunk: behind it the next look would come.
    """

    case: Case
    database: int
    prompt: list[int]
    value: list[int]
    rows: np.ndarray  # (L, K, R)
    last: list[tuple[str, str]]  # title and text of the neighbors of the last look
    reach: bool


@dataclass
class Study:
    """What all parts share."""

    model: Reader
    tokenizer: Tokenizer
    config: ReaderRun
    arms: Sequence[str]
    seed: int
    report: Report
    own: Corpus
    form: PromptFormat = PromptFormat()
    knn: KnnFormat = KnnFormat()
    tuned: Reader | None = None

    @property
    def k(self) -> int:
        return self.config.training.num_neighbors

    @property
    def readers(self) -> list[str]:
        return [arm for arm in READERS if arm in self.arms]

    def library(self, corpus: Corpus, *, everything: bool, keep: str = "") -> Library:
        place = data_home()[0] / "benchmarks" / f"{keep}-{corpus.fingerprint}.safetensors" if keep else None
        query = self.config.training.query_tokens or self.config.chunk_len
        title_len = self.config.network.title_len
        return library(corpus, title_len, query, everything=everything, keep=place)

    def ask(self, case: Case, databases: Sequence[Library], which: int, *, whole_title: str = "") -> Question:
        """A case under the which-th database."""
        database = databases[which]
        prompt = prompt_ids(self.tokenizer, case.prompt, case.title, self.config.chunk_len)
        ids = database.look(prompt, whole_title or case.title, self.k)
        last = database.texts(ids[-1])
        value = case.values[which]
        own = database.corpus.documents[_entry(database, case)].title
        reach = reached(last, own, value.strip("\n"))
        written = self.tokenizer.encode(f" {value}")[: self.config.chunk_len]
        return Question(case, which, prompt, written, database.rows(ids), last, reach)


def _entry(database: Library, case: Case) -> int:
    """The document that a case is about, in this database."""
    documents = database.corpus.documents
    by = {one.title: i for i, one in enumerate(documents)} | {one.id: i for i, one in enumerate(documents)}
    return by.get(case.group, by.get(case.title, 0))


def open_study(options: argparse.Namespace) -> Study:
    """The run, with its base in the precision that is asked for, and its own corpus."""
    config = read_run_config(options.run)
    if not isinstance(config, ReaderRun):
        raise SystemExit(f"{options.run} is a {config.model}: name a run of kind reader.")
    list(ensure_sample(config.corpus))
    stored = load_corpus(corpus_folder(data_home()[0], config.corpus))
    list(prepare_retokenized(stored, options.run, config.chunk_len))
    own = load_own_corpus(options.run, config)
    model: Any = load_model(options.run)
    model.attach(load_base(config.base, options.precision).model)
    gc.collect()
    report = Report("reading")
    return Study(model, own.tokenizer, config, options.arms, options.seed, report, own)


def other_edition(study: Study, run: Path) -> Corpus:
    """The 2026 edition in the base's tokenizer."""
    list(ensure_sample(EDITIONS[1]))
    stored = load_corpus(corpus_folder(data_home()[0], EDITIONS[1]))
    list(prepare_retokenized(stored, run, study.config.chunk_len))
    return load_retokenized(stored, run, study.config.chunk_len)


# Answers


def batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Numbers of questions of about one length, so many at a time."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt) + len(questions[i].value))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def hits_of(logits: torch.Tensor, value: Sequence[int]) -> bool:
    """logits (n, V): whether each token of the value is the likeliest one; padding is never written."""
    likeliest = logits[: len(value), 1:].argmax(-1) + 1
    return likeliest.tolist() == list(value)


def ask_readers(
    study: Study, questions: Sequence[Question], values: Sequence[Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    """Arm -> whether greedy text gives the value (n,); `values`: other ones than the database's."""
    wanted = [question.value for question in questions] if values is None else values
    names = ["off"] * ("off" in study.arms) + study.readers
    names += ["shuffled"] * ("shuffled" in study.arms and bool(study.readers))
    names += ["tuned", "tuned + reader"] * (study.tuned is not None)
    hits = {name: np.zeros(len(questions), bool) for name in names}
    for which in batches(questions):
        some = [questions[i] for i in which]
        looks = max(len(one.rows) for one in some)
        width = max(len(questions[i].prompt) + len(wanted[i]) - 1 for i in which)
        tokens = np.zeros((len(some), width), np.int64)
        rows = np.zeros((len(some), looks, *some[0].rows.shape[1:]), np.int64)
        most = max(len(wanted[i]) for i in which)
        places = np.zeros((len(some), most), np.int64)
        for at, (i, one) in enumerate(zip(which, some, strict=True)):
            ids = [*one.prompt, *wanted[i][:-1]]
            tokens[at, : len(ids)] = ids
            rows[at, : len(one.rows)] = one.rows
            places[at] = np.minimum(len(one.prompt) - 1 + np.arange(most), width - 1)
        text, where = read_text(study.model, tokens), torch.from_numpy(places)
        logits = {"off": off_logits(study.model, text, where)} if "off" in hits else {}
        logits |= reader_logits(study.model, text, rows, where, study.readers, logits.get("off"))
        if "shuffled" in hits:
            arm = study.model.outputs if study.model.outputs in study.readers else study.readers[0]
            moved = np.zeros_like(rows)
            for at, i in enumerate(which):
                theirs = questions[donor_of(questions, i)].rows[-len(questions[i].rows) :]
                moved[at, len(questions[i].rows) - len(theirs) : len(questions[i].rows)] = theirs
            logits["shuffled"] = reader_logits(study.model, text, moved, where, [arm], logits.get("off"))[arm]
        if study.tuned is not None:
            arm = study.model.outputs
            logits["tuned"] = off_logits(study.tuned, text, where)
            logits["tuned + reader"] = reader_logits(study.tuned, text, rows, where, [arm], logits["tuned"])[
                arm
            ]
        for name in names:
            for at, i in enumerate(which):
                hits[name][i] = hits_of(logits[name][at], wanted[i])
    return hits


def donor_of(questions: Sequence[Question], number: int) -> int:
    """The next question about something else, whose neighbors are no help; itself where there is none."""
    count, group = len(questions), questions[number].case.group
    after = ((number + step) % count for step in range(1, count))
    return next((other for other in after if questions[other].case.group != group), number)


def ask_in_context(
    study: Study, questions: Sequence[Question], form: PromptFormat
) -> tuple[np.ndarray, float]:
    """(hits (n,), tokens of a prompt on average)."""
    hits, read = np.zeros(len(questions), bool), 0
    texts = [in_context(study.tokenizer, form, one.last, one.prompt) + one.value[:-1] for one in questions]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), BATCH):
        which = order[start : start + BATCH]
        counts = [len(questions[i].value) for i in which]
        logits = plain_logits(
            study.model.base, study.model.config.begin_id, [texts[i] for i in which], counts
        )
        for i, one in zip(which, logits, strict=True):
            hits[i] = hits_of(one, questions[i].value)
            read += len(texts[i])
    return hits, read / max(1, len(texts))


def ask_knn(study: Study, questions: Sequence[Question], forms: Sequence[KnnFormat]) -> np.ndarray:
    """Hits (forms, n) of kNN-LM over the tokens of the neighbors of the last look."""
    hits, states = np.zeros((len(forms), len(questions)), bool), KnnStates(study.model)
    for place, one in enumerate(questions):
        ids = [i for i in one.prompt if i] + one.value[:-1]
        read, stream = states.read(ids)
        queries = read[-len(one.value) :]
        keys, tokens = states.neighbors(one.rows[-1])
        with torch.inference_mode():
            logits = study.model.base.logits(stream[None, -len(one.value) :])[0]
        for number, form in enumerate(forms):
            mixed = knn_mix(logits, queries[:, form.layer], keys[:, form.layer], tokens, form)
            hits[number, place] = hits_of(mixed, one.value)
    return hits


def choose(study: Study, questions: Sequence[Question]) -> None:
    """The best format of in-context reading and kNN-LM on questions of training countries; printed."""
    if "in-context" in study.arms:
        formats = prompt_formats(study.k)
        right = [int(ask_in_context(study, questions, form)[0].sum()) for form in formats]
        study.form = formats[int(np.argmax(right))]
        rows = [(str(form), f"{n} of {len(questions)}") for form, n in zip(formats, right, strict=True)]
        title = f"In-context reading, facts of training countries; chosen: {study.form}"
        study.report.table(title, ("format", "right"), rows)
    if "knn" in study.arms:
        formats = knn_formats(study.model)
        counts = ask_knn(study, questions, formats).sum(axis=1)
        study.knn = formats[int(counts.argmax())]
        print(f"\nkNN-LM, the best of {len(formats)}: {study.knn}: {counts.max()} of {len(questions)}")


def share(hits: np.ndarray, groups: Sequence[str], chosen: np.ndarray | None = None) -> Estimate:
    """The share of hits among the chosen, with an interval over groups."""
    kept = np.ones(len(hits), bool) if chosen is None else chosen
    _, place = np.unique(np.array(groups), return_inverse=True)
    above = np.bincount(place, weights=hits & kept).astype(float)
    below = np.bincount(place, weights=kept).astype(float)
    return ratio(above, below, draws(len(above), RESAMPLES, 0))


def percent(one: Estimate) -> str:
    if math.isnan(one.value):
        return "-"
    return f"{one.value:.0%}" + (f" [{one.low:.0%}, {one.high:.0%}]" if one.ci else "")


def show_hits(study: Study, name: str, questions: Sequence[Question], hits: dict[str, np.ndarray]) -> None:
    """The table of a part: each arm of all and of those reached, by database."""
    reach = np.array([one.reach for one in questions])
    database = np.array([one.database for one in questions])
    groups = [one.case.group for one in questions]
    rows, figures = [], {}
    for arm, there in hits.items():
        n = len(there)  # an arm that is slow was asked the first questions only
        cells, kept = [], {}
        for which in sorted(set(database.tolist())):
            mine = database[:n] == which
            both = [share(there, groups[:n], mine), share(there, groups[:n], mine & reach[:n])]
            cells += map(percent, both)
            kept[which] = [one.to_json() for one in both]
        reached_all = share(there, groups[:n], reach[:n])
        rows.append((arm, n, *cells, percent(reached_all)))
        figures[arm] = {"questions": n, "databases": kept, "reached": reached_all.to_json()}
    heads = ["arm", "questions"]
    for which in sorted(set(database.tolist())):
        rate = reach[database == which].mean()
        heads += [f"database {which}: of all", f"of reached ({rate:.0%})"]
    study.report.table(f"{name}: greedy text gives the database's value", [*heads, "of all reached"], rows)
    study.report.figures[name] = figures


def mixed(questions: list[Question], seed: int) -> list[Question]:
    """The questions in an order drawn with the seed, so that any number from the front is a fair part."""
    return [questions[i] for i in np.random.default_rng([seed, 13]).permutation(len(questions))]


def all_arms(study: Study, questions: list[Question], slow: int) -> dict[str, np.ndarray]:
    """The hits of every arm; in-context reading and kNN-LM on the first `slow` questions."""
    hits = ask_readers(study, questions)
    if "in-context" in study.arms:
        hits["in-context"], read = ask_in_context(study, questions[:slow], study.form)
        print(f"\nin-context reading: {read:.0f} tokens a prompt")
    if "knn" in study.arms:
        hits["knn"] = ask_knn(study, questions[:slow], [study.knn])[0]
    if slow < len(questions):  # what these two are to be compared with
        hits |= {f"{arm}, the first {slow}": hits[arm][:slow] for arm in study.readers}
    return hits
