"""Builds, corpora, runs and the worth of documents as HTML: progress, statistics, lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro_demo.corpus.embedding import doubt_of_statistics, known_words
from retro_demo.errors import listed
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.kinds import kind_named
from retro_demo.render.html_parts import (
    badge,
    bar,
    duration,
    esc,
    failure,
    note,
    saved_as,
    size,
    standing,
    status_line,
    table,
    term,
    theirs,
)
from retro_demo.render.wording import on_page
from retro_demo.retrieval.dense import recall_words
from retro_demo.runs.alarms import Watch, ahead_words, passes_words
from retro_demo.runs.checkpoint import AnyRun
from retro_demo.server.planned import Training

OPERATIONS = 6  # of a parameter for each token, forward and backward
PRETRAINED_TOKENS_A_SECOND = 450  # with SmolLM2-135M on two cores
OPERATIONS_A_SECOND = 40e9  # one core: 47e9 for both shipped sizes of RETRO, 44e9 for MARGE, 30e9 for tiny
STAGES = {
    "read": "kB read",
    "split": "documents compared and split",
    "tokenizer": "tokens in the vocabulary",
    "chunks": "chunks cut",
    "embed": "chunks embedded",
    "index": "vectors indexed",
    "neighbors": "chunks given their neighbors",
}


def build_status(status: JobStatus, title: str) -> str:
    """How far a build is, stage by stage; its warnings; its failure in a sentence."""
    last = {event["stage"]: event for event in status.of_kind("progress")}
    items = []
    for index, (stage, words) in enumerate(STAGES.items()):
        event = last.get(stage)
        done = event is not None and event["done"] >= event["total"]
        mark = "done" if done else "now" if event or _is_next(index, last, status.state) else ""
        count = f"{event['done']:,} of {event['total']:,} " if event else ""
        share = event["done"] / max(event["total"], 1) if event else 0
        items.append(f'<li class="{mark}" style="--share:{100 * share:.0f}%">{count}{esc(words)}</li>')
    finished = status.state == "finished"
    stages = "" if finished else f'<ol class="stages">{"".join(items)}</ol>'
    told = [] if finished else status.of_kind("warned")  # of one that is finished they stand with its figures
    warned = "".join(note(on_page(event["text"]), "warning") for event in told)
    return f"<h3>{esc(title)} {badge(status.state)}</h3>{standing(status)}{stages}{warned}{failure(status)}"


def waiting(status: JobStatus, title: str) -> str:
    """A build in one line, for those who wait for it."""
    if status.queue_position:
        turn = f"it waits for its turn, place {status.queue_position} of {status.waiting} in the queue"
        return status_line(f"{esc(title)}: {turn}. The text begins after that.")
    last = (status.of_kind("progress") or [{"stage": "read", "done": 0, "total": 0}])[-1]
    count = (
        f": {last['done']:,} of {last['total']:,} {STAGES.get(last['stage'], '')}" if last["total"] else ""
    )
    return status_line(f"{esc(title)}{esc(count)}. The text begins after that.")


def _is_next(index: int, last: Mapping[str, Any], state: str) -> bool:
    before = list(STAGES)[index - 1] if index else None
    return (
        state == "running"
        and (before is None or before in last)
        and not any(stage in last for stage in list(STAGES)[index:])
    )


def corpus_statistics(stats: Mapping[str, Any] | None) -> str:
    """The figures of a built corpus, with small pictures."""
    if stats is None:
        return note("Statistics appear here when the build finishes.")
    held = stats["held_out_documents"]
    facts = [
        (f"{stats['documents']:,}", term("document", "documents")),
        (f"{stats['chunks']:,}", f"{term('chunk', 'chunks')} of {stats['chunk_len']} tokens"),
        (f"{stats['tokens']:,}", term("token", "tokens")),
        (f"{stats['bytes_per_token']:.2f}", "bytes a token"),
        (f"{stats['vocabulary']:,}", "tokens in the vocabulary"),
        (size(stats["bytes"]), "of text"),
    ]
    boxes = "".join(f"<div><b>{value}</b><span>{words}</span></div>" for value, words in facts)
    doubted = doubt_of_statistics(stats)
    warned = [*stats["warnings"], doubted] if doubted else stats["warnings"]
    warnings = "".join(note(on_page(text), "warning") for text in warned)
    share = held / max(stats["documents"], 1)
    return (
        f'{warnings}<div class="facts">{boxes}</div><div class="pictures">'
        f"<figure data-picture='lengths'>{histogram(stats['document_tokens'], stats.get('held_out'))}"
        f"<figcaption>Tokens in a {term('document')}; held-out ones in strong color</figcaption>"
        f"{saved_as()}</figure>"
        f"<figure>{split_bar(share)}<figcaption>{held:,} of {stats['documents']:,} documents are "
        f"{term('held out')}</figcaption></figure>"
        f"<figure>{duplicates(stats)}</figure></div>"
        f'<p class="caption">{esc(stats["device"])} {term("index", "Index")}: {esc(stats["index"])}, '
        f"{term('embedder')}: {esc(stats['embedder'])}. {stats['chunks_short_of_neighbors']:,} chunks "
        f"have fewer neighbors than asked for. {esc(recall_words(stats.get('recall')))} "
        f"{esc(known_words(stats))} "
        f"Built in {duration(stats['seconds'])}.</p>"
    )


def histogram(lengths: Sequence[int], held_out: Sequence[bool] | None, bins: int = 24) -> str:
    """Document lengths (D,) as bars; held-out documents at the foot of each."""
    values = np.asarray(lengths, dtype=float)
    counts, edges = np.histogram(values, bins=bins)
    held = np.asarray(held_out if held_out is not None else np.zeros(len(values)), dtype=bool)
    below, _ = np.histogram(values[held[: len(values)]], bins=edges)
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<i title="{low:.0f} to {high:.0f} tokens: {n} documents, {h} held out" '
        f'style="height:{100 * n / top:.0f}%"><u style="height:{100 * h / max(n, 1):.0f}%"></u></i>'
        for n, h, low, high in zip(counts, below, edges[:-1], edges[1:], strict=True)
    )
    said = (
        f"Histogram of the lengths of {len(values):,} documents: from {values.min():,.0f} to "
        f"{values.max():,.0f} tokens, half of them below {np.median(values):,.0f}."
    )
    return (
        f'<div class="histogram" role="img" aria-label="{said}">{bars}</div>'
        f'<div class="ends"><span>{edges[0]:,.0f}</span><span>{edges[-1]:,.0f}</span></div>'
    )


def split_bar(share: float) -> str:
    """The held-out share as a bar."""
    inner = f'<i style="width:{100 * share:.1f}%"></i>'
    return f'<div class="split" role="img" aria-label="{share:.0%} held out">{inner}</div>'


def duplicates(stats: Mapping[str, Any]) -> str:
    """Duplicates in a sentence, with examples."""
    exact, near = stats["exact_duplicates"], stats["near_duplicates"]
    words = f"{exact:,} exact duplicates, {near:,} {term('near-duplicate', 'near-duplicates')}"
    rows = [
        f"<tr><td>{theirs(one)}</td><td>{theirs(other)}</td><td>{alike:.2f}</td></tr>"
        for one, other, alike in stats["duplicate_examples"]
    ]
    more = table("<th>document</th><th>is almost</th><th>alike</th>", rows) if rows else ""
    caption = "They stay on one side of the split and never help each other."
    return f"<p><b>{words}</b></p>{more}<figcaption>{caption}</figcaption>"


def corpora_table(rows: Sequence[tuple[str, str, int | None, int]]) -> str:
    """(name, state, documents, bytes) of each corpus."""
    body = [
        f"<tr><th>{esc(name)}</th><td>{badge(state)}</td>"
        f"<td>{'' if documents is None else f'{documents:,}'}</td><td>{size(used)}</td></tr>"
        for name, state, documents, used in rows
    ]
    return table("<th>corpus</th><th>state</th><th>documents</th><th>on disk</th>", body)


def runs_table(rows: Sequence[tuple[str, str, str, str, int]]) -> str:
    """(name, state, model, steps, bytes) of each run."""
    body = [
        f"<tr><th>{esc(name)}</th><td>{badge(state)}</td><td>{esc(model)}</td>"
        f"<td>{esc(steps)}</td><td>{size(used)}</td></tr>"
        for name, state, model, steps, used in rows
    ]
    return table("<th>run</th><th>state</th><th>model</th><th>steps</th><th>on disk</th>", body)


def run_status(status: JobStatus, title: str, steps: int, left: float | None) -> str:
    """A run in words: state, step, loss, speed and how many seconds are left, if that is known."""
    done = status.of_kind("step")
    started = status.of_kind("started")
    doing = _doing(status)
    head = f"<h3>{esc(title.removeprefix('sample:'))} {badge(status.state)}</h3>"
    head += standing(status)
    if not done:
        words = doing or ("The process starts: it reads the corpus." if status.state == "running" else "")
        return head + (bar(0, words) if words else "") + failure(status)
    last = done[-1]
    rate = float(np.median([step["tokens_per_second"] for step in done[-20:]]))
    words = f"step {last['step']:,} of {steps:,} · loss {_recent(done):.3f} nats · {rate:,.0f} tokens/s"
    if doing:
        words += f" · {doing}"
    if left is not None:
        words += f" · about {duration(left)} left"
    about = started[-1].get("about", {}) if started else {}
    if isinstance(about.get("parameters"), int):
        words += f" · {about['parameters'] / 1e6:.1f} M parameters on {about.get('device', '')}"
    return head + bar(last["step"] / max(steps, 1), words) + failure(status)


def _doing(status: JobStatus) -> str:
    """What a run that is at work does beside its steps, "" where it makes steps."""
    last = status.events[-1] if status.events else {}
    if status.state != "running" or last.get("event") != "progress":
        return ""
    return f"{last['stage']}: {last['done']:,} of {last['total']:,}"


def _recent(done: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([step["loss"] for step in done[-10:]]))


def alarms_html(status: JobStatus, config: AnyRun, best: tuple[int, float | None]) -> str:
    """What the run has to say of itself as things stand, and how often it has read its training text.

    best: what its best save tells, step and held-out loss, as `checkpoint.told_by` has them.
    """
    watch = Watch(config.training, status.events, curriculum_steps=config.lesson_steps)
    watch.keeps(*best)
    done = status.of_kind("step")
    notes = "".join(
        note(on_page(words), "warning") for words in watch.warnings(ended=status.state == "finished")
    )
    passes = watch.passes(done[-1]["step"]) if done else 0.0
    read = f"So far it has read its training text {passes_words(passes)}."
    return notes + (f'<p class="caption">{read}</p>' if passes else "")


def arms_html(status: JobStatus) -> str:
    """The last held-out measurement, and what the model wrote then."""
    measured = status.of_kind("evaluated")
    if not measured:
        return note("Held-out loss and a sample text stand here after the first measurement.")
    last = measured[-1]
    if not last["arms"]:
        return note("No document of this corpus is held out, so nothing can be measured on unseen text.")
    cells = [
        f"<tr><th>{_arm(name, last['arms'])}</th>"
        f"<td>{arm['nats']:.4f}</td><td>{arm['bpb']:.4f}</td><td>{arm['tokens']:,.0f}</td></tr>"
        for name, arm in last["arms"].items()
    ]
    figures = table(
        f"<th>held out, step {last['step']:,}</th><th>nats a token</th>"
        f"<th>{term('bits per byte')}</th><th>tokens</th>",
        cells,
    )
    text = ""
    if sample := last.get("sample"):
        head = f'<p class="caption">What it writes at step {last["step"]:,}</p>'
        text = f'{head}<div class="sample" dir="auto">{esc(sample)}</div>'
    return figures + text


def _arm(name: str, arms: Mapping[str, Any]) -> str:
    """An arm with its explanation; where evidence was drawn at random too, the run is a MARGE."""
    if "random" in arms:
        return {
            "on": term("evidence", "own evidence"),
            "random": term("random evidence"),
            "off": term("no evidence"),
        }.get(name, esc(name))
    return term("retrieval " + name) if name in ("on", "off") else esc(name)


def gap_of(status: JobStatus) -> float | None:
    """Held-out loss off minus on at the last measurement, in nats; None where it was not measured."""
    measured = status.of_kind("evaluated")
    arms = measured[-1]["arms"] if measured else {}
    return arms["off"]["nats"] - arms["on"]["nats"] if {"on", "off"} <= set(arms) else None


def retrieval_gain(status: JobStatus, evaluation: Mapping[str, Any] | None) -> str:
    """What retrieval is worth to a run, as HTML that names where the figure is from; "" where none is known.

    An evaluation (see evaluation/runner.py) goes before the training's own measurement, which has no
    baseline.
    """
    if evaluation is not None:
        differences = evaluation["arms"]["on"]["differences"]
        tokens = f"{evaluation['counts']['tokens']:,} held-out tokens"
        if "references" in evaluation:  # of a MARGE, whose matched baseline is itself without evidence
            nats = -differences["off"]["nats"]
            return f"own {term('evidence')} or none: {nats:+.2f} nat ({tokens})"
        if evaluation["match"] and not evaluation["match"]["unfit"]:
            bpb = differences["baseline"]["bpb"]
            if title := evaluation.get("title"):
                return esc(title[0].lower() + title[1:])
            return f"on minus matched baseline {bpb:+.4f} {term('bits per byte')} ({tokens})"
        nats = -differences["off"]["nats"]
        return f"on/off {term('gap')} {nats:+.2f} nat ({tokens}, no matched baseline)"
    gap = gap_of(status)
    if gap is None:
        return ""
    tokens = status.of_kind("evaluated")[-1]["arms"]["on"]["tokens"]
    return f"on/off {term('gap')} {gap:+.2f} nat ({tokens:,.0f} held-out tokens, in training)"


def seconds_of(part: Training) -> float:
    """About how long one training takes on one CPU core (a pretrained base: on two)."""
    tokens = part.tokens * part.steps
    if kind_named(part.model).trains_pretrained:  # nearly all is the work of the frozen base
        return tokens / PRETRAINED_TOKENS_A_SECOND
    return OPERATIONS * part.parameters * tokens / OPERATIONS_A_SECOND


def estimates(
    parts: Sequence[Training],
    preset: str,
    minutes: int = 0,
    passes: Mapping[str, float] | None = None,
    seeds: int = 0,
) -> str:
    """What trainings will be and take, before they start; `minutes`: those a job may be at work, 0 = any.

    `seeds`: how often a study makes all of them, 0 = this is no study. `passes` over the training text as
    `run_actions.passes_ahead` has them.
    """
    seconds = sum(map(seconds_of, parts)) * max(1, seeds)
    first, most = parts[0], parts[-1] if len(parts) < 2 else max(parts, key=lambda part: part.parameters)
    kind = kind_named(first.model)
    machine = "two CPU cores" if kind.trains_pretrained else "one CPU core"
    leave = ""
    if minutes and seconds > 60 * minutes:
        leave = f" After {minutes} minutes at work it saves and leaves, and can be resumed."
    steps = f"<b>{first.steps:,}</b> {term('step', 'steps' if first.steps != 1 else 'step')}"
    told = f"{steps} of {'' if kind.even_batches else 'at most '}{first.tokens:,} tokens"
    if seeds:
        each = " + ".join(f"{term(part.model)} {part.steps:,}" for part in parts)
        told = f"{term('step', 'steps')}: {each}, then the verdict"
        told += f"; all of it with <b>{seeds}</b> seeds" if seeds > 1 else ""
    return (
        f'<p class="estimate"><b>{most.parameters / 1e6:.2f} M</b> {term("parameters")} · about '
        f"<b>{duration(seconds)}</b> on {machine}, far less on a GPU · {told} · {term('preset', preset)}."
        f"{leave} {ahead_words(passes or {})}</p>"
    )


def weighed_words(result: Mapping[str, Any]) -> str:
    """What is lost over all, in sentences."""
    names = listed(result["weighed"], 3)
    read = ""
    if "held_out_chunks" in result:
        read = (
            f"{result['held_out_chunks_finding']:,} of {result['held_out_chunks']:,} held-out chunks find "
            f"{names}. "
        )
    nats = result["nats"]
    if not result["tokens"] or not result["chunks_reading"]:
        return read + f"No chunk of what was read finds {names}, so nothing would be lost."
    lost, gain = nats["without"] - nats["with"], nats["off"] - nats["with"]
    return (
        f"{read}Over the {result['tokens']:,} tokens read, forgetting costs {lost:+.4f} nat a token; all "
        f"neighbors together are worth {gain:+.4f}."
    )


def weighed_html(result: Mapping[str, Any] | None) -> str:
    """The sentence, then the tokens that lose most."""
    if result is None:
        return ""
    rows = [
        f"<tr><td dir='auto'>{esc(row['context'])}<mark>{esc(row['token'])}</mark></td>"
        f"<td>{row['lost']:+.2f}</td><td>{row['log_p_with']:.2f}</td><td>{row['log_p_without']:.2f}</td>"
        f"<td>{row['log_p_off']:.2f}</td><td>{theirs(row['because'])}</td></tr>"
        for row in result["rows"]
        if row["lost"] > 0
    ]
    head = (
        f"<th>token, after what</th><th>{term('nat', 'nats')} lost</th><th>log p with</th><th>without</th>"
        f"<th>{term('retrieval off')}</th><th>because of</th>"
    )
    return note(weighed_words(result)) + (table(head, rows) if rows else "")
