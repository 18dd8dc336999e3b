"""Does a reader read? Its facts, edits, bits per byte and cost, beside in-context reading and kNN-LM.

    .venv/bin/python -m benchmarks.reading RUN [--facts 200] [--prompts 60] [--windows 24] [--parts ...]

RUN is a run of kind `reader` on sample:factbook2015. The parts:

- facts: held-out countries, asked for in the words of the 2015 and of the 2026 edition, with each edition as
  the database, the country's own entry in it. A hit: each token of the database's value is the likeliest one.
  "Of reached": of those where a neighbor of the last look, from the country's own entry, holds the value.
- edits: another country's value written into the neighbors.
- bits: bits per byte of held-out windows with neighbors of other documents, of either edition, of another
  window.
- stride: the same windows with more looks than one a chunk.
- corpora: documents that no training saw: made-up data sheets and recipes in two editions, prose of the
  lookup world, and a machine's package records (--packages); half of the prompts under each edition.
- prose: bits per byte of the repository's own documents, and of --prose files, reading against off.
- cost: tokens, milliseconds and memory of each way to write, at one look (evaluation/writing_cost.py).

In-context reading puts the same neighbors of the last look into the base's prompt, in the best of nine
formats; kNN-LM looks the next token up among their states. The choices of both are made on facts of training
countries, and printed. --baseline SECONDS fine-tunes the base's upper blocks for so many seconds of processor
time (give what the reader's own training took, as `time` tells it) and measures it with and without the
reader; --teach SECONDS first gives the reader lessons with that base. Intervals: 95%, over documents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import torch
from benchmarks.reading_arms import fine_tuned
from benchmarks.reading_bits import bits_part, prose_part, stride_part, taught_on, training_windows
from benchmarks.reading_cases import (
    Case,
    Library,
    corpus_in_memory,
    drawn,
    factbook_cases,
    made_sheets,
    package_documents,
    sheet_cases,
    world_cases,
    world_documents,
)
from benchmarks.reading_study import (
    ARMS,
    PARTS,
    Question,
    Study,
    all_arms,
    ask_readers,
    choose,
    mixed,
    open_study,
    other_edition,
    percent,
    share,
    show_hits,
)
from retro_demo.documents.sources import Document
from retro_demo.evaluation.reading_ways import before_text
from retro_demo.evaluation.writing_cost import LookToWrite, writing_costs


def facts_part(study: Study, databases: Sequence[Library], options: argparse.Namespace) -> list[Question]:
    """Facts of held-out countries; the choices are made before, on those of training countries."""
    editions = [one.corpus.documents for one in databases]
    held = study.own.held_out

    def ask(cases: Sequence[Case]) -> list[Question]:
        return mixed([study.ask(case, databases, db) for case in cases for db in (0, 1)], study.seed)

    if {"in-context", "knn"} & set(study.arms):
        trained = factbook_cases(editions[0], editions[1], held, held=False)
        choose(study, ask(drawn(trained, options.choose, study.seed)))
    if "facts" not in options.parts and "edits" not in options.parts:
        return []
    cases = factbook_cases(editions[0], editions[1], held, held=True)
    return ask(drawn(cases, options.facts, study.seed))


def edits_part(study: Study, questions: Sequence[Question], most: int) -> None:
    """Another country's value in the place of the true one, in every neighbor of the prompt that holds it."""
    edited, planted, true = [], [], []
    title_len = study.config.network.title_len
    for one in questions:
        if not one.reach or not one.case.planted or len(edited) == most:
            continue
        value, other = one.case.values[one.database], one.case.planted[one.database]
        rows = one.rows.copy()
        for row in rows.reshape(-1, rows.shape[-1]):
            content = row[title_len:]
            text = study.tokenizer.decode(content[content != 0].tolist())
            if value in text:
                ids = study.tokenizer.encode(text.replace(value, other))[: len(content)]
                content[:] = 0
                content[: len(ids)] = ids
        edited.append(replace(one, rows=rows))
        planted.append(study.tokenizer.encode(f" {other}")[: study.config.chunk_len])
        true.append(one.value)
    if not edited:
        return
    quiet = replace(study, arms=study.readers, tuned=None)
    groups = [one.case.group for one in edited]
    follows, keeps = ask_readers(quiet, edited, planted), ask_readers(quiet, edited, true)
    rows = [
        (arm, percent(share(follows[arm], groups)), percent(share(keeps[arm], groups))) for arm in follows
    ]
    title = f"Edits: another country's value in the neighbors of {len(edited)} facts that were reached"
    study.report.table(title, ("arm", "follows", "keeps the true value"), rows)
    figures = {arm: [share(one[arm], groups).to_json() for one in (follows, keeps)] for arm in follows}
    study.report.figures["edits"] = figures | {"cases": len(edited)}


def corpora_part(study: Study, options: argparse.Namespace) -> None:
    """Prompts on made-up and on strange documents, each under one database."""
    chunk_len = study.config.chunk_len
    kinds: dict[str, tuple[list[list[Document]], list[Case]]] = {}
    for name in ("sheets", "recipes"):
        editions = made_sheets(name, seed=study.seed)
        kinds[name] = [*editions], sheet_cases(editions)
    world = world_documents()
    kinds["lookup world"] = [world], world_cases(world)
    if options.packages:
        packages = package_documents(options.packages)
        kinds["packages"] = [packages], sheet_cases([packages])
    for name, (editions, cases) in kinds.items():
        databases = [
            study.library(
                corpus_in_memory(f"{name}-{i}", documents, study.tokenizer, chunk_len), everything=True
            )
            for i, documents in enumerate(editions)
        ]
        some = drawn(cases, options.prompts, study.seed)
        questions = [study.ask(case, databases, i % len(databases)) for i, case in enumerate(some)]
        questions = mixed(questions, study.seed)
        quiet = replace(study, tuned=None)
        show_hits(study, f"corpora, {name}", questions, all_arms(quiet, questions, options.prompts))


def cost_part(study: Study, question: Question) -> None:
    """Tokens, milliseconds and memory of each way to write behind one look, in turns."""
    model, base = study.model, study.model.base
    text = [i for i in question.prompt if i]
    before = before_text(study.tokenizer, study.form, question.last)
    names = [one.replace("-", "_") for one in study.arms if one != "shuffled"]
    costs = writing_costs(model, LookToWrite(text, question.rows[-1], before), names, study.knn)
    rows = [
        (
            name,
            f"{cost.tokens_per_token:.1f}",
            f"{cost.first_ms:.0f}",
            f"{cost.token_ms:.1f}",
            f"{cost.ms_per_token:.1f}",
            f"{cost.megabytes:.1f}",
        )
        for name, cost in costs.items()
    ]
    size = base.config.num_bytes(base.precision) / 1e6
    title = f"Cost of a look, base in {base.precision} ({size:.0f} MB), {torch.get_num_threads()} threads"
    heads = ("way", "tokens a token", "ms to the first", "ms for each further", "ms a token")
    study.report.table(title, (*heads, "MB beside the base"), rows)
    study.report.figures["cost"] = {name: cost.to_json() for name, cost in costs.items()}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("run", type=Path)
    found.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    found.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--facts", type=int, default=200, help="facts asked for, each under both editions")
    found.add_argument("--slow", type=int, default=120, help="questions for in-context reading and kNN-LM")
    found.add_argument(
        "--choose", type=int, default=16, help="facts of training countries to choose formats on"
    )
    found.add_argument("--edits", type=int, default=80)
    found.add_argument("--windows", type=int, default=24)
    found.add_argument("--prompts", type=int, default=60, help="on each corpus that no training saw")
    found.add_argument("--packages", type=Path, help="a dpkg status file: its records are one more corpus")
    found.add_argument(
        "--prose", type=Path, nargs="*", default=[], help="files of prose to try beside our own"
    )
    found.add_argument(
        "--baseline", type=float, default=0.0, help="processor seconds to fine-tune the base for"
    )
    found.add_argument(
        "--teach", type=float, default=0.0, help="processor seconds to teach the reader on with that base"
    )
    found.add_argument("--precision", default="float32")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--json", help="where the figures go (default: build/benchmarks/reading.json)")
    return found


def main() -> None:
    options = parser().parse_args()
    study = open_study(options)
    clock = time.perf_counter()

    def told(what: str) -> None:
        nonlocal clock
        study.report.figures.setdefault("seconds", {})[what] = round(time.perf_counter() - clock, 1)
        print(f"\n({what}: {time.perf_counter() - clock:.0f} s)", flush=True)
        clock = time.perf_counter()

    corpora = study.own, other_edition(study, options.run)
    databases = [study.library(one, everything=True, keep="all") for one in corpora]
    told("the databases")
    if options.baseline:
        tuned = fine_tuned(study.model, training_windows(study), options.baseline)
        study.tuned = study.model.reading_with(tuned.base)
        print(
            f"\nfine-tuned for {tuned.steps} steps, {tuned.seconds:.0f} s of processor time: "
            f"{tuned.before:.3f} -> {tuned.after:.3f} nats a token of training countries that it did not see"
        )
        told("fine-tuning")
        if options.teach:
            study.tuned = taught_on(study, study.tuned, corpora[1], options.teach)
            told("lessons with the fine-tuned base")
    questions = facts_part(study, databases, options)
    told("choices")
    if "facts" in options.parts:
        show_hits(study, "facts", questions, all_arms(study, questions, options.slow))
        told("facts")
    if "edits" in options.parts:
        edits_part(study, questions, options.edits)
        told("edits")
    if "bits" in options.parts:
        bits_part(study, databases, options)
        told("bits")
    if "stride" in options.parts:
        stride_part(study, databases, options)
        told("stride")
    if "corpora" in options.parts:
        corpora_part(study, options)
        told("corpora")
    if "prose" in options.parts:
        prose_part(study, options)
        told("prose")
    if "cost" in options.parts:
        old, new = (one.corpus.documents for one in databases)
        held = factbook_cases(old, new, study.own.held_out, held=True)
        cost_part(study, study.ask(held[0], databases, 0))
        told("cost")
    study.report.figures |= {"in_context": str(study.form), "knn": str(study.knn)}
    study.report.publish(options.json)


if __name__ == "__main__":
    main()
