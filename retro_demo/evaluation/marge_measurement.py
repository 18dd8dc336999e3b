"""What an evaluation measures of a MARGE: its arms, which are its controls too, figures and the verdict.

All passages are embedded once, the evidence of each is searched once for each rule, and evidence that several
arms show is encoded once for each batch. The result has what `runner.py` lists, and

names               what people call the arms, in the order to show them in
references          the arms that the others are compared with on the page, the line of the picture first
across_languages    how often the same item is found in another language (evaluation/across_languages.py)
beta                of each layer that reads evidence
swapped             the corpus that is measured on, where it is another one

"Its own evidence helps" only where it beats evidence drawn at random and none at all, each by an interval
that excludes 0. The first says that the model reads what was retrieved, the second that reading it is worth
something. Groups are drawn, not documents: translations of one text are alike.

Shapes: P passages, Q held-out passages, S passage length, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retro_demo.corpus.changes import load_retokenized, prepare_retokenized
from retro_demo.corpus.samples import corpus_folder
from retro_demo.corpus.store import MIN_DOCUMENTS, Corpus, load_corpus
from retro_demo.devices import choose_device
from retro_demo.errors import UserError
from retro_demo.evaluation.across_languages import recall_across_languages
from retro_demo.evaluation.arms import ARMS, TARGETS, EvidenceArms, Windows
from retro_demo.evaluation.baselines import Known, known_documents
from retro_demo.evaluation.losses import LEVEL, Difference, LossTable, Sums, arm_figures, tokens_moved
from retro_demo.evaluation.runner import Pass, Request, nothing_left, weights_used
from retro_demo.evaluation.verdict import Verdict, less, more, with_interval
from retro_demo.events import Event, Progress, Warned
from retro_demo.evidence.passages import Passages, cut_passages
from retro_demo.evidence.reindex import embed_passages, first_tokens
from retro_demo.evidence.vectors import Vectors
from retro_demo.models.marge import MARGE
from retro_demo.paths import data_home
from retro_demo.runs.checkpoint import MargeRun, load_marge, read_marge_config
from retro_demo.runs.loading import load_own_corpus
from retro_demo.runs.provenance import folder_name
from retro_demo.settings import EvaluateConfig

EMBEDDED_AT_ONCE = 4096  # passages between two words on progress
REFERENCES = ("on", "random", "off")
NAMES = {
    "on": "its own evidence",
    "own": "own evidence only",
    "random": "random evidence",
    "off": "no evidence",
    "beta_0": "beta 0",
    "uniform": "uniform relevance",
    "shuffled": "shuffled relevance",
    "same_document": "with the own document",
    "other_documents": "without the own document",
}


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

    def advance(self, one: Pass, done: list[Pass]) -> Iterator[int]:
        """A batch of targets at a time and all arms at once; what is there costs nothing."""
        table, arms, start = self.table, self.study.arms, done[-1].count if done else 0
        for which in arms.batches(one.count):
            end = int(which[-1]) + 1
            if end <= start:
                continue
            missing = [arm for arm in one.names if np.isin(which, table.missing(arm, end)).any()]
            for arm, losses in arms.losses(self.model, missing, which).items():
                table.add(arm, which, losses)
            yield end - start
            start = end

    def result(self, one: Pass, last: dict[str, Any]) -> dict[str, Any]:
        return marge_report(self.study, one.count)


def nothing_held_out(corpus: Corpus, name: str, known: Known) -> str:
    """Why there is nothing to measure on, and what to do."""
    if known.count:
        return nothing_left(corpus, known)
    return (
        f"{name} holds out no document, so there is nothing to measure on. Build it with a larger "
        "--holdout, and train on it."
    )


def _corpus(
    run: Path, config: MargeRun, request: Request, stop: Callable[[], bool]
) -> Generator[Event, None, Corpus | None]:
    """The corpus to measure on, another one in the tokens of the run; None after a stop."""
    if not request.corpus:
        return load_own_corpus(run, config)
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
) -> Generator[Event, None, Vectors | None]:
    """Embeddings (P, D) of all passages; None after a stop."""
    if model.words is not None:  # no transformer reads them: that takes seconds
        yield Progress("embed the passages", 0, len(passages))
        return None if stop() else embed_passages(model, passages.tokens)
    parts = []
    for start in range(0, len(passages), EMBEDDED_AT_ONCE):
        yield Progress("embed the passages", start, len(passages))
        if stop():
            return None
        parts.append(first_tokens(model, passages.tokens[start : start + EMBEDDED_AT_ONCE]))
    return np.concatenate(parts)


def make_marge_study(
    request: Request,
    config: MargeRun,
    corpus: Corpus,
    known: Known,
    passages: Passages,
    left_out: np.ndarray,
    vectors: Vectors,
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
    across = recall_across_languages(
        request.folder("run"),
        corpus,
        passages,
        vectors,
        left_out,
        control=request.folder("control") if request.control else None,
        device=request.device,
    )
    swapped = name_of(corpus, request) if corpus.fingerprint != config.corpus_fingerprint else ""
    return MargeStudy(
        arms=arms,
        table=table,
        config=settings,
        betas=model.betas(),
        across=across,
        swapped=swapped,
        known=known,
    )


def rounds(study: MargeStudy) -> list[int]:
    """Held-out passages read by the end of each round, in whole batches: a batch shares its evidence."""
    table, most = study.table, len(study.arms.targets)
    wanted = study.config.rounds(int(table.there.sum()))
    whole = (-(-table.windows_for(tokens) // TARGETS) * TARGETS for tokens in wanted)
    return sorted({min(most, count) for count in whole})


def name_of(corpus: Corpus, request: Request) -> str:
    """What the corpus is called that is measured on, in the tokens of the run where need be."""
    return folder_name(request.corpus) if request.corpus else corpus.name


@dataclass(frozen=True, kw_only=True)
class MargeStudy:
    """What is being measured: the arms, the table to fill, and what was found about the encoder."""

    arms: EvidenceArms
    table: LossTable
    config: EvaluateConfig
    betas: list[float]
    across: dict[str, Any]
    swapped: str
    known: Known

    @property
    def measured(self) -> list[str]:
        """The arms that are read; the others have the figures of their twins."""
        return [arm for arm in ARMS if not self.arms.twin(arm)]


def marge_report(study: MargeStudy, count: int) -> dict[str, Any]:
    """The figures of all arms on the first `count` held-out passages."""
    arms, table = study.arms, study.table
    sums = Sums(table, count, resamples=study.config.resamples, seed=study.config.seed)
    measured = arm_figures(sums, study.measured, REFERENCES)
    figures = {}
    for arm in ARMS:
        twin = arms.twin(arm)
        figures[arm] = measured[twin] | {"same_as": twin} if twin else measured[arm]
    found = arms.evidence("on", np.arange(count))
    counts = {
        "passages": count,
        "groups": len(sums.documents),
        "documents": len(np.unique(arms.passages.document[arms.targets[:count]])),
        "held_out_passages": len(arms.targets),
        "held_out_groups": len(np.unique(table.windows.document)),
        "known_documents": study.known.count,
        "tokens": int(sums.tokens().sum()),
        "held_out_tokens": int(table.there.sum()),
        "bytes": int(sums.bytes().sum()),
        "k": arms.k,
        "candidates": len(arms.passages),
        "targets_of_a_batch": TARGETS,
        "short_of_evidence": int((found < 0).any(axis=1).sum()),
    }
    against = {
        other: sums.difference("on", other) for other in ("random", "off", "own", "beta_0", "shuffled")
    }
    conclusion = marge_verdict(against, counts, swapped=study.swapped, trained_on=study.known.words)
    return {
        "verdict": conclusion.sentence,
        "helps": conclusion.helps,
        "next": list(conclusion.next),
        "counts": counts,
        "arms": figures,
        "names": NAMES,
        "references": list(REFERENCES[:2]),
        "tokens_moved": {other: tokens_moved(sums, other) for other in ("off", "random")},
        "across_languages": study.across,
        "beta": study.betas,
        "trained_on": study.known.words,
        "swapped": study.swapped,
    }


def marge_verdict(
    against: dict[str, Difference], counts: dict[str, Any], *, swapped: str = "", trained_on: str = ""
) -> Verdict:
    """The verdict; `against` holds "on" minus each of the arms random, off, own, beta_0 and shuffled."""
    decided = counts["groups"] >= MIN_DOCUMENTS
    if not decided:
        helps = None
        claim = (
            f"Not decided: {counts['groups']} held-out groups are too few for an interval; "
            f"at least {MIN_DOCUMENTS} are needed."
        )
    else:
        helps, claim = _claim(against["random"], against["off"])
        claim += f" {_relevance(against)} {_sharing(against['own'])}"
    sentence = f"{claim} {_measured_on(counts)}"
    if swapped:
        sentence += f" Hot swap: the run was trained on another corpus than {swapped}."
    return Verdict(helps, f"{sentence} {trained_on}".strip(), _next(helps, against, counts))


def _claim(on_random: Difference, on_off: Difference) -> tuple[bool | None, str]:
    if more(on_random):
        return False, (
            f"Its own evidence hurts: passages drawn at random do better "
            f"(difference {with_interval(on_random)})."
        )
    if not less(on_random):
        return None, (
            "No measurable benefit: its own evidence did no better than passages drawn at random "
            f"(difference {with_interval(on_random)}, which holds 0)."
        )
    beats = f"It does beat evidence drawn at random ({with_interval(on_random)}), but that alone is no gain."
    if more(on_off):
        return (
            False,
            f"Its own evidence hurts: no evidence at all does better ({with_interval(on_off)}). {beats}",
        )
    if not less(on_off):
        return None, (
            "No measurable benefit: its own evidence did no better than none at all "
            f"(difference {with_interval(on_off)}, which holds 0). {beats}"
        )
    return True, (
        f"Its own evidence helps: it beats evidence drawn at random ({with_interval(on_random)}) and no "
        f"evidence at all ({with_interval(on_off)})."
    )


def _relevance(against: dict[str, Difference]) -> str:
    """Whether it matters how relevant the model holds its evidence."""
    flat, mixed = against["beta_0"], against["shuffled"]
    figures = f"on minus beta 0: {with_interval(flat)}; minus shuffled relevance: {with_interval(mixed)}"
    if less(flat) and less(mixed):
        return f"The learned relevance matters ({figures})."
    if less(flat) or less(mixed):
        which = "without any (beta 0)" if less(flat) else "with that of other passages (shuffled)"
        return f"The learned relevance matters in part: it is worse only {which} ({figures})."
    if more(flat) or more(mixed):
        return f"The learned relevance is of no use, and in part harmful ({figures})."
    return f"The learned relevance is not shown to matter ({figures})."


def _sharing(on_own: Difference) -> str:
    """Whether it matters that a target reads the evidence of the whole batch."""
    if less(on_own):
        return (
            f"Reading the evidence of the whole batch helps, against the own alone ({with_interval(on_own)})."
        )
    if more(on_own):
        return (
            f"Reading the evidence of the whole batch hurts, against the own alone ({with_interval(on_own)})."
        )
    return (
        "Whether a target reads its own evidence alone makes no difference that shows "
        f"({with_interval(on_own)})."
    )


def _measured_on(counts: dict[str, Any]) -> str:
    share = counts["tokens"] / counts["held_out_tokens"]
    part = "all" if share == 1 else f"{share:.0%}"
    short = counts["short_of_evidence"] / counts["passages"]
    return (
        f"Measured on {counts['groups']:,} held-out groups ({counts['passages']:,} passages, "
        f"{counts['tokens']:,} tokens, {part} of them), with k = {counts['k']} passages of evidence for each "
        f"from {counts['candidates']:,} candidates ({short:.1%} found fewer) and {TARGETS} targets a batch; "
        f"{LEVEL}% intervals by a paired bootstrap over groups. One seed."
    )


def _next(helps: bool | None, against: dict[str, Difference], counts: dict[str, Any]) -> tuple[str, ...]:
    """What would change the verdict."""
    steps = []
    if counts["groups"] < MIN_DOCUMENTS:
        steps.append(f"More held-out groups: at least {MIN_DOCUMENTS}.")
    if counts["tokens"] < counts["held_out_tokens"]:
        steps.append("More held-out tokens: the intervals become narrower.")
    if helps is not True:
        steps.append("A longer training: it takes many re-indexes until evidence is worth reading.")
    if helps is not True and not less(against["beta_0"]):
        steps.append("Fewer candidates of no use: evidence in other languages only, or a smaller k.")
    if helps is not False:
        steps.append("Other seeds: one training may be lucky; three would tell.")
    return tuple(steps)
