"""An evaluation of RETRO or MARGE as HTML: the verdict, what would change it, a table behind each figure.

Draws from the plain dict of evaluation/runner.py. Of a MARGE it shows also its encoder across languages, and
beta. The figures are render/plots.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from retro_demo.evaluation.arms import arm_name, arms_in_order, names_of
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.render.html_parts import badge, bar, duration, esc, failure, note, standing, table, term
from retro_demo.render.wording import on_page

VERDICTS = {True: ("helps", "yes"), False: ("does not help", "no"), None: ("not decided", "open")}


ARM_TERMS = {
    "baseline": "matched baseline",
    "baseline_before": "baseline before",
    "off": "retrieval off",
    "on": "retrieval on",
    "dense": "embedder",
    "bm25": "BM25",
    "bm25-words": "BM25",
    "bm25-titles": "BM25",
    "hybrid": "hybrid",
    "n_only": "N",
    "f_only": "F",
    "random": "random chunks",
    "shuffled": "shuffled",
    "wrong_order": "wrong chunk order",
    "prepend": "prepend",
    "prepend_control": "prepend",
    "control_random": "control",
    "control_real": "control",
    "attention": "cross-attention",
    "copy": "copy head",
    "both": "reader",
    "in_context": "in the prompt",
    "knn": "kNN-LM",
}
"""The word of the glossary that explains an arm."""


def baseline_of(result: Mapping[str, Any]) -> str:
    """The arm that the others are drawn against: the matched baseline, else retrieval off.

    That of a MARGE is told by its result.
    """
    if "references" in result:
        return result["references"][0]
    return "baseline" if "baseline" in result["arms"] else "off"


def second_of(result: Mapping[str, Any]) -> str:
    """The other arm that all are compared with in the table."""
    return result["references"][1] if "references" in result else "shuffled"


def evaluation_status(status: JobStatus | None) -> str:
    """How far an evaluation is; its failure in a sentence."""
    if status is None:
        return ""
    last = status.of_kind("progress")
    words = ""
    if status.state == "running":
        words = bar(0, "The process starts: it reads the run and its corpus.")
        if last:
            event = last[-1]
            words = bar(event["done"] / max(1, event["total"]), f"{event['stage']}: {_percent(event)}")
    warned = "".join(note(event["text"], "warning") for event in status.of_kind("warned"))
    return f"<h3>Evaluation {badge(status.state)}</h3>{standing(status)}{words}{warned}{failure(status)}"


def _percent(event: Mapping[str, Any]) -> str:
    return f"{event['done'] / max(1, event['total']):.0%} of the reading"


def verdict_html(result: Mapping[str, Any] | None, round_words: str = "") -> str:
    """The verdict, large, with what it was measured on."""
    if result is None:
        return note(
            "No verdict yet. Choose a run that reads neighbors, and its matched baseline, and press "
            "Evaluate: the first verdict takes about a minute."
        )
    _, kind = VERDICTS[result["helps"]]
    claim, rest = split_claim(result["verdict"])
    title = result.get("title") or claim
    if "title" in result:
        rest = result["verdict"]
    moved = "".join(
        moved_html(values, arm_name(other, names_of(result)))
        for other, values in result["tokens_moved"].items()
    )
    return (
        f'<section class="verdict {kind}"><p class="claim">{esc(title)}</p>{grounds_table(result)}{moved}'
        f"<details><summary>In full</summary><p class='grounds'>{esc(rest)}</p></details>"
        f'<p class="caption">{esc(round_words)}</p></section>'
    )


GROUNDS = {
    "baseline": "matched baseline",
    "baseline_before": "the baseline before",
    "shuffled": "neighbors of another text",
    "random": "random neighbors",
    "off": "no neighbors",
}
"""What a run is compared with in the verdict, in the order of the table."""


def grounds_table(result: Mapping[str, Any]) -> str:
    """What the verdict stands on: the run's difference to each control, and on how much text."""
    of_marge, arms, rows = "names" in result, result["arms"], []
    for other, words in GROUNDS.items():
        found = _minus(arms, "on", other)
        if found is None or (of_marge and other == "shuffled"):  # of relevance, there
            continue
        bpb, ci = found
        told = (
            "not measurably different" if not ci or ci[0] <= 0 <= ci[1] else "better" if bpb < 0 else "worse"
        )
        words = words.replace("neighbors", "evidence") if of_marge else words
        if other == "baseline" and (rival := (result.get("match") or {}).get("rival")):
            words = f"{esc(rival)} ({words})"
        rows.append(
            f"<tr><th>{words}</th><td>{bpb:+.4f}</td><td>{_interval(ci, '+.4f')}</td><td>{told}</td></tr>"
        )
    counts = result["counts"]
    on = f"{counts['documents']:,} held-out documents, {counts['tokens']:,} tokens"
    head = "<th>compared with</th><th>bits per byte</th><th>95% interval</th><th>this run is</th>"
    return f"{table(head, rows)}<p class='caption'>Less is better. Measured on {on}; one seed.</p>"


def _minus(arms: Mapping[str, Any], arm: str, other: str) -> tuple[float, list[float] | None] | None:
    """Bits per byte of an arm minus another, with the interval; None where that was not measured."""
    if other in arms.get(arm, {}).get("differences", {}):
        found = arms[arm]["differences"][other]
        return found["bpb"], found["bpb_ci"]
    found = arms.get(other, {}).get("differences", {}).get(arm)
    if found is None:
        return None
    ci = found["bpb_ci"]
    return -found["bpb"], [-ci[1], -ci[0]] if ci else None


def split_claim(sentence: str) -> tuple[str, str]:
    """The verdict's claim up to its first figures, and the rest."""
    claim, *rest = re.split(r" (?=\()|(?<=\.) ", sentence, maxsplit=1)
    return claim, "".join(rest)


def moved_html(moved: Mapping[str, float], reference: str) -> str:
    """How many tokens retrieval helped and hurt against what is called so, as a bar with words."""
    helped, hurt, threshold = moved["helped"], moved["hurt"], moved["threshold"]
    # in words: in the verdict beside it a minus is the better sign, in a gain it is the plus
    mean = f"{abs(moved['mean']):.4f} nat a token {'better' if moved['mean'] > 0 else 'worse'}"
    return (
        f'<div class="moved"><div class="twosided" role="img" '
        f'aria-label="{helped:.0%} helped, {hurt:.0%} hurt">'
        f'<i class="helped" style="width:{100 * helped:.1f}%"></i>'
        f'<i class="hurt" style="width:{100 * hurt:.1f}%"></i></div>'
        f"<p class='caption'>Against {esc(reference)}: {helped:.0%} of the tokens helped, "
        f"{hurt:.0%} hurt (by more than {esc(threshold)} nat), {mean} on average.</p></div>"
    )


def next_html(result: Mapping[str, Any] | None) -> str:
    """What would change the verdict, the missing control first."""
    if result is None:
        return ""
    items = "".join(f"<li>{esc(on_page(step))}</li>" for step in result["next"])
    return f"<h3>What would change this verdict?</h3><ul class='next'>{items}</ul>"


def arms_caption(result: Mapping[str, Any] | None) -> str:
    """What the dots mean, or what will stand here."""
    if result is None:
        return note("Each arm of the evaluation will stand here as a dot with its interval.")
    line = arm_name(baseline_of(result), names_of(result))
    what = "evidence or relevance" if "names" in result else "neighbors"
    return (
        f"<p class='caption'>Each arm reads the same held-out text with other {what}; lower is better. "
        f"Dashed line: {esc(line)}. The bar around a dot is the 95% {term('interval')} of its difference to "
        "that line, over the same documents.</p>"
    )


def arms_table(result: Mapping[str, Any]) -> str:
    """All arms with their differences to `baseline_of` and `second_of` the result."""
    reference, second, names = baseline_of(result), second_of(result), names_of(result)
    has_reach = any("reach" in arm for arm in result["arms"].values())
    rows = []
    for name in arms_in_order(result):
        arm, called = result["arms"][name], arm_name(name, names)
        same = f" (= {arm_name(arm['same_as'], names)})" if "same_as" in arm else ""
        shown = esc(called) if "names" in result else term(ARM_TERMS.get(name, "oracle"), called)
        rows.append(
            f"<tr><th>{shown}{esc(same)}</th>"
            f"<td>{arm['nats']:.4f}</td><td>{arm['bpb']:.4f}</td><td>{_interval(arm['ci'])}</td>"
            f"{_difference(arm, reference)}{_difference(arm, second)}"
            + f"<td>{_reach(arm)}</td>" * has_reach
            + "</tr>"
        )
    other = term("shuffled") if second == "shuffled" else esc(arm_name(second, names))
    head = (
        f"<th>arm</th><th>nats a token</th><th>{term('bits per byte')}</th><th>95% interval</th>"
        f"<th>minus {esc(arm_name(reference, names))}</th><th>95% interval</th>"
        f"<th>minus {other}</th><th>95% interval</th>" + f"<th>{term('reach')}</th>" * has_reach
    )
    return table(head, rows)


def ways_html(result: Mapping[str, Any]) -> str:
    """The ways in which one base may read the same neighbors, with worth and cost; "" for other runs."""
    found = result.get("ways")
    if not found:
        return ""
    rows = []
    for name, arm in found["arms"].items():
        way = found["own"] if name == "on" else name
        called = term(ARM_TERMS[way], arm_name(way)) + " (this run)" * (name == "on")
        difference = arm["differences"].get("off")
        cells = (
            f"{difference['bpb']:+.3f}" if difference else "",
            _interval(difference["bpb_ci"], "+.3f") if difference else "",
            f"{arm['tokens_per_token']:.1f}",
            f"{arm['ms_per_token']:.0f}",
            f"{arm['megabytes']:.0f}",
        )
        rows.append(
            f"<tr><th>{called}</th><td>{arm['bpb']:.3f}</td>{''.join(map('<td>{}</td>'.format, cells))}</tr>"
        )
    head = (
        f"<th>way to read</th><th>{term('bits per byte')}</th><th>minus {term('retrieval off', 'off')}</th>"
        "<th>95% interval</th><th>tokens a token</th><th>ms a token</th><th>MB</th>"
    )
    caption = (
        f"<p class='caption'>The same base, corpus and neighbors, on {found['tokens']:,} tokens of "
        f"{found['documents']:,} held-out documents; only the reader is trained. "
        f"In the prompt: {esc(found['in_context'])}; kNN-LM: {esc(found['knn'])}; both "
        "chosen on documents that are not held out. Tokens through the base and milliseconds, for each token "
        f"written, over one look and the {found['chunk_len']} tokens behind it ({found['threads']} threads, "
        f"base in {esc(found['precision'])}); MB beside the base's {found['base_megabytes']:.0f}.</p>"
    )
    return f"<h2>Other ways to read the same neighbors</h2>{table(head, rows)}{caption}"


def _reach(arm: Mapping[str, Any]) -> str:
    return f"{arm['reach']:.1%}" if "reach" in arm else ""


def _difference(arm: Mapping[str, Any], reference: str) -> str:
    if reference not in arm["differences"]:
        return "<td></td><td></td>"
    difference = arm["differences"][reference]
    return f"<td>{difference['bpb']:+.4f}</td><td>{_interval(difference['bpb_ci'], '+.4f')}</td>"


def _interval(ci: Sequence[float] | None, form: str = ".4f") -> str:
    return f"{ci[0]:{form}} to {ci[1]:{form}}" if ci else ""


def leakage_table(leakage: Mapping[str, Any]) -> str:
    """bpb(alpha) of each arm with the chunks that are left; few are greyed."""
    arms = list(leakage["bpb"])
    rows = []
    for index, name in enumerate(leakage["alpha_names"]):
        values = [leakage["bpb"][arm][index] for arm in arms]
        cells = "".join(f"<td>{'' if value is None else f'{value:.4f}'}</td>" for value in values)
        few = ' class="few"' if leakage["greyed"][index] else ""
        rows.append(
            f"<tr{few}><th>{esc(name)}</th><td>{leakage['chunks'][index]:,}</td>"
            f"<td>{leakage['chunks_per_bin'][index]:,}</td>{cells}</tr>"
        )
    heads = "".join(f"<th>{esc(arm_name(arm))}</th>" for arm in arms)
    return table(f"<th>{term('overlap')} at most</th><th>chunks</th><th>of these new</th>{heads}", rows)


def buckets_table(leakage: Mapping[str, Any]) -> str:
    """The gain by the longest common run, with intervals; buckets of few chunks are greyed."""
    rows = []
    for bucket in leakage["buckets"]:
        cells = "".join(_gain(bucket["gain"], other) for other in ("baseline", "off", "shuffled"))
        few = ' class="few"' if bucket["greyed"] else ""
        rows.append(f"<tr{few}><th>{esc(bucket['tokens'])}</th><td>{bucket['chunks']:,}</td>{cells}</tr>")
    head = "<th>longest run, tokens</th><th>chunks</th>" + "".join(
        f"<th>gain against {esc(arm_name(other))}, nats</th><th>95% interval</th>"
        for other in ("baseline", "off", "shuffled")
    )
    return table(head, rows)


def _gain(gains: Mapping[str, Any], reference: str) -> str:
    if reference not in gains:
        return "<td></td><td></td>"
    gain = gains[reference]
    return f"<td>{gain['nats']:+.4f}</td><td>{_interval(gain['nats_ci'], '+.4f')}</td>"


def curves_table(curves: Mapping[str, Any]) -> str:
    """Loss by database size and by k; what was not measured has no rows."""
    reference = arm_name(curves["reference"])
    rows = [
        f"<tr><th>{esc(point['percent'])}% ({point['documents']:,} documents, "
        f"{point['tokens']:,} tokens)</th>"
        f"<td>{point['bpb']:.4f}</td>{_difference({'differences': {'x': point['difference']}}, 'x')}</tr>"
        for point in curves["database_sizes"]
    ]
    rows += [
        f"<tr><th>k = {esc(point['k'])}</th><td>{point['bpb']:.4f}</td>"
        f"{_difference({'differences': {'x': point['difference']}}, 'x')}</tr>"
        for point in curves["neighbor_counts"]
    ]
    head = f"<th>database or k</th><th>{term('bits per byte')}</th><th>minus {esc(reference)}</th>"
    return table(head + "<th>95% interval</th>", rows)


def origin_html(result: Mapping[str, Any] | None) -> str:
    """Where the figures come from, in a line; the whole of it is in the download."""
    if result is None or "provenance" not in result:
        return ""
    origin = result["provenance"]
    minutes = origin["training_seconds"]
    trained = f", trained in {duration(minutes)} on {esc(origin['trained_on']['device'])}" if minutes else ""
    return (
        f"<p class='caption'>{esc(origin['model'])}, {origin['parameters'] / 1e6:.2f} M "
        f"{term('parameters')}, {origin['steps']:,} {term('step', 'steps')}, {term('seed')} "
        f"{esc(origin['seed'])}{trained}. Measured in {duration(origin['seconds'])}. "
        f"{esc(origin['note'])}</p>"
    )


PARTS = (("", "all pairs"), ("_same_script", "of one script"), ("_other_script", "of two scripts"))


def across_html(result: Mapping[str, Any]) -> str:
    """How often the encoder finds the same item in another language, beside chance."""
    found = result["across_languages"]
    if not found:
        return note("No held-out item stands in two languages, so there is no recall across languages.")
    rows = [
        f"<tr><th>{words}</th><td>{found[f'recall_at_1{part}']:.1%}</td><td>{found[f'mrr{part}']:.3f}</td></tr>"
        for part, words in PARTS
        if f"recall_at_1{part}" in found
    ]
    caption = (
        f"<p class='caption'>{found['queries']:,} held-out documents look among all documents of each other "
        f"language, held out or not: {found['pairs']:,} pairs, {found['pool']:.1f} candidates on average. By "
        f"chance the first would be right in {found['chance']:.1%}.</p>"
    )
    shown = table("<th>languages</th><th>recall@1</th><th>mean reciprocal rank</th>", rows)
    return caption + shown + _ways_html(found)


FOUND_BY = {
    "untrained": "untrained",
    "words": "words alone",
    "learned": "learned part",
    "trained": "trained",
    "control": "control (random evidence)",
}


def found_by(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The recall across languages of each way to choose evidence that was measured, by its name in words."""
    return {words: found[name] for name, words in FOUND_BY.items() if name in found}


def _ways_html(found: Mapping[str, Any]) -> str:
    """The same by what the run chooses evidence by: untrained, by its parts, trained and by its control."""
    ways = found_by(found)
    if not ways:  # an evaluation of before
        return ""
    rows = [
        f"<tr><th>{words}</th><td>{_share(way['same_script'])}</td><td>{_share(way['all'])}</td></tr>"
        for words, way in ways.items()
    ]
    by = next(iter(ways.values()))["by"]
    caption = f"<p class='caption'>recall@1 by the {by} by which it chooses evidence.</p>"
    return caption + table("<th>found by</th><th>of one script</th><th>all pairs</th>", rows)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def beta_html(result: Mapping[str, Any]) -> str:
    """How much relevance weighs, for each layer that reads evidence."""
    rows = [f"<tr><th>{number}</th><td>{one:.3f}</td></tr>" for number, one in enumerate(result["beta"], 1)]
    caption = (
        "<p class='caption'>A passage that is more relevant by 1 gets e<sup>beta</sup> times the "
        "attention. Beta is learned.</p>"
    )
    return caption + table("<th>layer with evidence</th><th>beta</th>", rows)
