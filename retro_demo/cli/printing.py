"""Events on the terminal: one JSON object a line, or lines for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from retro_demo.corpus.embedding import known_words
from retro_demo.evaluation.arms import REACH, WAYS
from retro_demo.events import Event, Finished, Progress, Refined, Retrieved, Started, Step, Token, Warned
from retro_demo.render.evaluation_views import baseline_of, found_by
from retro_demo.render.job_views import weighed_words
from retro_demo.retrieval.dense import recall_words
from retro_demo.runs.alarms import ahead_words


def print_json(event: Event) -> None:
    print(json.dumps(event.to_json()), flush=True)


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""A text of somebody's may hold what a terminal obeys: it is shown, not sent."""


class Printer:
    """Events as lines for people; a generation streams as text."""

    def __init__(self) -> None:
        self.steps = 0
        self.writing = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token):
            print(event.text.translate(CONTROLS), end="", flush=True)
            self.writing = True
            return
        if self.writing:
            print()
            self.writing = False
        if line := self.line(event):
            print(line.translate(CONTROLS), flush=True)

    def line(self, event: Event) -> str:
        if isinstance(event, Started):
            self.steps = event.about.get("steps", 0)
            if not self.steps:
                return f"{event.job}: begun"
            passes = ahead_words(event.about)
            return f"{event.job}: from step {event.step} of {self.steps}{passes and f'. {passes}'}"
        if isinstance(event, Warned):
            return f"warned: {event.text}"
        if isinstance(event, Progress):
            return f"{event.stage}: {event.done} of {event.total}" + " kB" * (event.stage == "read")
        if isinstance(event, Step):
            speed = f"{event.tokens_per_second:.0f} tokens/s"
            return (
                f"step {event.step} of {self.steps}: loss {event.loss:.4f} nats, {speed}"
                if event.step % 10 == 0
                else ""
            )
        if isinstance(event, Retrieved):
            scores = ["no score" if n["score"] is None else f"{n['score']:.2f}" for n in event.neighbors]
            named = zip(event.neighbors, scores, strict=True)
            found = "; ".join(f"{n['title']} ({score})" for n, score in named) or "none"
            return f"  [chunk {event.chunk + 1}: {found}]"
        if isinstance(event, Refined):
            return f"round {event.round} of {event.rounds} is read"  # the verdict stands at the end, once
        values = {name: value for name, value in event.to_json().items() if name != "event"}
        if isinstance(event, Finished) and "spans" in values and "citations" in values:
            return traced(values)
        if isinstance(event, Finished) and "pairs" in values:
            return explained(values)
        if isinstance(event, Finished) and "weighed" in values:
            return weighed(values)
        if isinstance(event, Finished) and "seeds" in values:
            return study(values)
        if isinstance(event, Finished) and "verdict" in values:
            return evaluation(values)
        if isinstance(event, Finished) and "listed" in values:
            return table(values["listed"])
        if isinstance(event, Finished) and "jobs" in values:
            return jobs_table(values)
        if isinstance(event, Finished) and "neighbors" in values:
            found = "\n\n".join(
                f"{n['score']:.3f}  {n['title']} (chunk {n['chunk']})\n"
                f"  N: {n['text']!r}\n  F: {n['continuation']!r}"
                for n in values["neighbors"]
            )
            return found or values["nothing_found"]
        said = ""
        if isinstance(event, Finished):
            if known := known_words(values):
                said = "\n" + known
                values.pop("unknown_word_pieces")
            if "recall" in values:
                said += "\n" + recall_words(values.pop("recall"))
            if "parameters" in values:  # a training: what was warned of may be long ago, or be mended
                said += "".join(f"\nwarned: {words}" for words in values.pop("warnings", []))
            values = {
                name: value
                for name, value in values.items()
                if name not in ("document_tokens", "text") and value not in ("", None)
            }
        return self.ended(type(event).__name__.lower(), values, said)

    def ended(self, name: str, values: Mapping[str, Any], said: str) -> str:
        """What is printed of an event whose figures have no form of their own; `said`: sentences below."""
        return f"{name}: " + ", ".join(f"{name} {value}" for name, value in values.items()) + said


def table(listed: list[dict[str, Any]]) -> str:
    """Corpora, runs and exports, one a line: kind, name, state, size."""
    listed = [one | {"name": short_place(one["short"])} for one in listed]
    widest = max(len(one["name"]) for one in listed)
    lines = [f"{'kind':10} {'name':{widest}} {'state':11} {'MB':>8}"]
    for one in listed:
        lines.append(f"{one['kind']:10} {one['name']:{widest}} {one['state']:11} {one['bytes'] / 1e6:8.1f}")
    return "\n".join(lines)


def jobs_table(values: dict[str, Any]) -> str:
    """Jobs, one a line: kind, name, state, how far; then how many corpora and runs there are."""
    jobs = [job | {"name": short_place(job["name"])} for job in values["jobs"]]
    widest = max((len(job["name"]) for job in jobs), default=4)
    lines = [f"{'kind':10} {'name':{widest}} {'state':14} progress"] if jobs else ["No job runs or waits."]
    for job in jobs:
        state = f"{job['state']}, place {job['place']}" if job["place"] else job["state"]
        far = f"{job['doing']} {job['done']:,} of {job['total']:,}" if job["doing"] else ""
        lines.append(f"{job['kind']:10} {job['name']:{widest}} {state:14} {far}".rstrip())
        lines += [f"  {job['why']}"] if job["why"] else []
    if "runs" in values:
        own, samples = (
            counted(values[f"{of}corpora"], "corpus", "corpora") + ", " + counted(values[f"{of}runs"], "run")
            for of in ("", "sample_")
        )
        lines.append(f"{own} of yours; {samples} that ship (list shows them)")
    return "\n".join(lines)


def counted(number: int, one: str, more: str = "") -> str:
    """ "1 run" or "2 runs"."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def short_place(name: str) -> str:
    """A path as a shell of this folder takes it at its shortest; anything else as it is."""
    if not os.path.isabs(name):
        return name
    ways, home = [name], os.path.expanduser("~")
    if (here := os.path.relpath(name)) and not here.startswith(os.pardir):
        ways.append(here)
    if home != "/" and name.startswith(home + os.sep):
        ways.append("~" + name[len(home) :])
    return min(ways, key=len)


def explained(values: dict[str, Any]) -> str:
    """An explanation for people: the tokens that gained or lost most, then the figures of the text."""
    rows = [row for row in values["tokens"] if row["gain"] is not None]
    told = sorted(rows, key=lambda row: -abs(row["gain"]))[:10]
    lines = [f"{row['gain']:+.2f} nat  token {row['token'] + 1} {row['text']!r}" for row in told]
    found = values["summary"]
    rows_of_text = [(words, found.get(name), how) for name, (words, how) in FIGURES.items()]
    widest = max(len(words) for words, _, _ in rows_of_text)
    figures = [f"{words:{widest}}  {value:{how}}" for words, value, how in rows_of_text if value is not None]
    return "\n".join([*lines, "", *figures])


FIGURES = {
    "loss_on": ("loss with the neighbors (nats a token)", ".4f"),
    "loss_off": ("loss without them", ".4f"),
    "loss_n_only": ("loss with N alone", ".4f"),
    "loss_f_only": ("loss with F alone", ".4f"),
    "mean_gain": ("mean gain", "+.4f"),
    "helped": ("tokens that retrieval helped", ".1%"),
    "hurt": ("tokens that it hurt", ".1%"),
    "copied": ("copied from a neighbor", ".1%"),
    "distinct_2": ("pairs of tokens that differ", ".1%"),
    "agreement": ("agreement of attention and effect (Spearman)", ".2f"),
    "shapley_permutations": ("orders drawn for the effects (0: all subsets)", "d"),
}
"""What an explanation says of the whole text: the words, and how each figure is written."""


def traced(result: dict[str, Any]) -> str:
    """Where a text came from: its spans, what its sentences cite, and the causes of a phrase."""
    lines = [f"{result['words_found']} of {result['words']} words stand in {result['corpus']} word for word"]
    for span in result["spans"]:
        first = span["places"][0]
        more = f" and {span['documents'] - 1} more" if span["documents"] > 1 else ""
        place = f"{first['title'] or first['document']} at {first['start']}{more}"
        lines.append(f"{span['words']:>4} words  {span['text']!r}: {place}")
    for row in result["citations"]:
        cited = [f"{one['title'] or one['document']} ({one['nats']:+.1f} nat)" for one in row["cited"]]
        lines.append(f"{row['text'].strip()!r} <- {', '.join(cited) or 'no neighbor'}")
    if found := result["phrase"]:
        lines.append(f"{found['phrase']!r} ({found['gain']:+.2f} nat with all neighbors) <-")
        for one in found["sentences"]:
            worth = one["alone"] if one["shapley"] is None else one["shapley"]
            lines.append(f"{worth:+6.2f} nat  {one['text']!r}, {one['title'] or one['document']}")
    return "\n".join([*lines, *filter(None, [result["why_no_citations"]])])


def weighed(result: dict[str, Any]) -> str:
    """The tokens that lose most without the documents, and what is lost over all."""
    lines = [f"{'lost':>6}  {'gain':>6} to {'gain':>6}  token, after what, because of"]
    for row in result["rows"]:
        gains = f"{row['gain_with']:+6.2f} to {row['gain_without']:+6.2f}"
        lines.append(
            f"{row['lost']:+6.2f}  {gains}  {row['token']!r} after {row['context']!r}, {row['because']}"
        )
    return "\n".join([*lines, weighed_words(result)])


def study(result: dict[str, Any]) -> str:
    """What each seed of a study gave, one a line, and the verdict as the last line."""
    lines = [f"{'seed':>4}  {'bits/byte on minus ' + result['against']:30}  run"]
    for seed in result["seeds"]:
        told = seed["difference"] or {"bpb": float("nan"), "bpb_ci": None}
        ends = f" ({told['bpb_ci'][0]:+.4f} to {told['bpb_ci'][1]:+.4f})" if told["bpb_ci"] else ""
        lines.append(f"{seed['seed']:4}  {told['bpb']:+.4f}{ends:23}  {seed['run']}")
    return "\n".join([*lines, *(f"- {step}" for step in result["next"]), result["verdict"]])


def evaluation(result: dict[str, Any]) -> str:
    """The arms as a table, what would change the verdict, and the verdict as the last line."""
    against = baseline_of(result)
    lines = [f"{'arm':16} nats/token  bits/byte  minus {against}, 95% interval"]
    for name, arm in ((name, arm) for name, arm in result["arms"].items() if name not in WAYS):
        line = f"{name:16} {arm['nats']:10.4f} {arm['bpb']:10.4f}"
        difference = arm["differences"].get(against)
        if difference and difference["bpb_ci"]:
            low, high = difference["bpb_ci"]
            line += f"  {difference['bpb']:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(line)
    lines += ways_lines(result.get("ways") or {})
    lines += across_lines(result.get("across_languages") or {})
    if (found := result["arms"]["on"].get("reach")) is not None:
        by_chance = result["arms"].get("shuffled", {}).get("reach", 0.0)
        lines.append(
            f"reach: in {found:.1%} of {result['counts']['looks']:,} looks a neighbor holds the next {REACH} "
            f"tokens in one piece (shuffled: {by_chance:.1%})"
        )
    moved = result["tokens_moved"]["off"]
    lines.append(f"{moved['helped']:.0%} of the tokens helped, {moved['hurt']:.0%} hurt, against off")
    return "\n".join([*lines, *(f"- {step}" for step in result["next"]), result["verdict"]])


def across_lines(found: dict[str, Any]) -> list[str]:
    """How often a MARGE finds the same item in another language, by each way to choose evidence."""
    ways = found_by(found)
    if not ways:  # no MARGE, or an evaluation of before
        return []
    by = next(iter(ways.values()))["by"]
    lines = [f"{'found by':26} one script  all pairs  (recall@1 in another language, by the {by})"]
    for words, way in ways.items():
        one_script = "" if way["same_script"] is None else f"{way['same_script']:.1%}"
        lines.append(f"{words:26} {one_script:>10} {way['all']:>10.1%}")
    chance = f"by chance {found['chance']:.1%}, {found['pool']:.0f} candidates"
    return [*lines, f"{found['queries']:,} held-out documents, {found['pairs']:,} searches; {chance}"]


def ways_lines(ways: dict[str, Any]) -> list[str]:
    """What each way to read of a reader costs, where that was measured."""
    if not ways:
        return []
    lines = [f"{'way to read':16} bits/byte  tokens a token  ms a token  MB  ({ways['tokens']:,} tokens)"]
    for name, arm in ways["arms"].items():
        lines.append(
            f"{name:16} {arm['bpb']:9.4f} {arm['tokens_per_token']:15.1f} {arm['ms_per_token']:11.1f} "
            f"{arm['megabytes']:3.0f}"
        )
    return [*lines, f"in_context: {ways['in_context']}; knn: {ways['knn']}"]
