"""Where a text came from, as HTML: the text with its spans and citations, the causes of a phrase, a document.

Buttons name what they open in data attributes, which assets/origins.js passes on. Offsets count characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from retro_demo.corpus.opening import OpenedDocument
from retro_demo.explain.phrases import AttributionPlan
from retro_demo.render.html_parts import esc, neighbor_color, note, table, term, theirs

Rows = Sequence[Mapping[str, Any]]
SHOWN_WORDS = 14  # of a long span, half of them at its end


def origins_html(found: Mapping[str, Any]) -> str:
    """A text with its spans filled and numbered, a citation behind each sentence, and the spans as a list."""
    spans, citations = found["spans"], found["citations"]
    left = {name: count for name, count in found["left_out"].items() if count}
    reasons = ", ".join(f"{count} {name}" for name, count in left.items())
    plural = "verbatim span" + "s" * (len(spans) != 1)
    kinds = f"{len(spans)} {term('verbatim span', plural)}"
    said = (
        f"<p class='finding'><b>{found['share_found']:.0%}</b> of {found['words']:,} words stand word for "
        f"word in <b>{theirs(found['corpus'])}</b>: {kinds}"
        + (f"; left out: {esc(reasons)}" if reasons else "")
        + ".</p>"
    )
    listed = "".join(_span_item(span, number) for number, span in enumerate(spans))
    text = _traced_text(found["text"], spans, citations)
    why = note(found["why_no_citations"]) if found["why_no_citations"] else ""
    hint = (
        "<p class='caption'>Colors are spans; a number in brackets behind a sentence is a "
        f"{term('citation')}. Select words with the mouse to ask which sentences of the neighbors they owe "
        "themselves to.</p>"
        if citations
        else ""
    )
    return f"{said}{hint}{text}{why}<ol class='spans'>{listed}</ol>"


def _traced_text(text: str, spans: Rows, citations: Rows) -> str:
    """Pieces of the text with the place where each begins; each character is of the longest of its spans."""
    owner = np.full(len(text), -1)
    for number in reversed(range(len(spans))):
        owner[spans[number]["start"] : spans[number]["end"]] = number
    edges = {0, len(text), *(_end_of_words(row) for row in citations)}
    edges |= set((np.flatnonzero(np.diff(owner)) + 1).tolist())
    behind = {_end_of_words(row): row for row in citations}
    parts = []
    for start, end in pairwise(sorted(edges)):
        number = int(owner[start])
        kind = f' class="in-span" style="--own:{neighbor_color(number)}" title="span {number + 1}"'
        parts.append(f'<span data-at="{start}"{kind if number >= 0 else ""}>{esc(text[start:end])}</span>')
        if end in behind:
            parts.append(_cited(behind[end]))
    return f'<div class="traced sample" dir="auto" tabindex="0">{"".join(parts)}</div>'


def _end_of_words(row: Mapping[str, Any]) -> int:
    """Where a sentence ends without the blanks behind it."""
    return row["start"] + len(row["text"].rstrip())


def _cited(row: Mapping[str, Any]) -> str:
    """The documents that a sentence owes itself to, as numbers of neighbors that open them."""
    buttons = []
    for one in row["cited"]:
        place = one["places"][0]
        name = f"{one['title'] or one['document']}: {one['nats']:+.1f} nat, chunk {place['chunk'] + 1}"
        buttons.append(
            f'<button type="button" class="cite" style="--own:{neighbor_color(place["neighbor"])}" '
            f'data-chunk="{place["corpus_chunk"]}" title="{esc(name)}" aria-label="Open {esc(name)}">'
            f"[{place['neighbor'] + 1}]</button>"
        )
    return f"<sup>{''.join(buttons)}</sup>" if buttons else ""


def _span_item(span: Mapping[str, Any], number: int) -> str:
    words = span["text"].split()
    half = SHOWN_WORDS // 2
    quote = span["text"] if len(words) <= SHOWN_WORDS else " ".join([*words[:half], "…", *words[-half:]])
    more = span["documents"] - len(span["places"])
    opened = "".join(
        f'<button type="button" data-document="{esc(place["document"])}" data-start="{place["start"]}" '
        f'data-end="{place["end"]}">{theirs(place["title"] or place["document"])}'
        f"{' (held out)' if place['held_out'] else ''}</button>"
        for place in span["places"]
    )
    times = f"{span['words']} words" + (f", {span['times']} times" if span["times"] > 1 else "")
    return (
        f'<li style="--own:{neighbor_color(number)}"><q dir="auto">{esc(quote)}</q> <span>{times}</span> '
        f"<div class='acts'>{opened}{f' and {more} more' if more > 0 else ''}</div></li>"
    )


def document_html(shown: OpenedDocument) -> str:
    """A document in a frame of its own, scrolled to the place, which is marked."""
    before, place, after = (
        shown.text[: shown.start],
        shown.text[shown.start : shown.end],
        shown.text[shown.end :],
    )
    held = " (held out: no run was trained on it, and none can find it)" if shown.held_out else ""
    around = {"before": shown.before, "after": shown.after}
    cut = [f"{count:,} characters {where} it are left out" for where, count in around.items() if count]
    return (
        f'<section class="opened" aria-label="Document">'
        f"<h3>{theirs(shown.title or shown.document)}{held}</h3>"
        f'<div class="sample whole" dir="auto" tabindex="0">{esc(before)}<mark>{esc(place)}</mark>'
        f"{esc(after)}</div>"
        f"<p class='caption'>{esc('; '.join(cut))}</p></section>"
    )


def plan_html(plan: AttributionPlan, phrase: str) -> str:
    """What attributing a phrase will read, said before."""
    count, tried = plan.readings, len(plan.sentences)
    few = min(plan.few, tried)
    combined = f", then {few} of them in every combination" if few > 1 else ""
    left = f" {plan.left_out} of neighbors that mattered less are not tried." if plan.left_out else ""
    return note(
        f"“{phrase.strip()}”: {tried} sentence{'s' * (tried != 1)} of its neighbors would be taken "
        f"out one by one{combined}. The run reads the first {plan.length} tokens {count} times.{left}"
    )


def phrase_html(found: Mapping[str, Any]) -> str:
    """The sentences that a phrase owes itself to, most first, each with a button that opens it."""
    rows = []
    for one in found["sentences"]:
        shapley = "–" if one["shapley"] is None else f"{one['shapley']:+.2f}"
        rows.append(
            f"<tr><td>{shapley}</td><td>{one['alone']:+.2f}</td><th dir='auto'>{esc(one['text'])}</th>"
            f'<td><button type="button" data-first="{one["first_token"]}" data-end="{one["end_token"]}">'
            f"{theirs(one['title'] or one['document'])}</button></td></tr>"
        )
    head = f"<th>{term('effect')} (nat)</th><th>alone (nat)</th><th>sentence</th><th>document</th>"
    return (
        f"<p class='finding'>“{esc(found['phrase'].strip())}”: all neighbors together were worth "
        f"{found['gain']:+.2f} nat.</p>{table(head, rows)}"
        f"<p class='caption'>Read {found['readings']} times. Alone: what is lost without it; effect: "
        "its share in every combination of the few that matter most.</p>"
    )
