"""Folders, events and traces -> HTML and numbers for the page; escapes all text of others.

This module knows nothing of gradio. Whatever came from a corpus, a file name, a prompt or a visitor
passes through `esc` here and nowhere else.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from retro_demo.glossary import GLOSSARY, explain
from retro_demo.jobs.jobs import JobStatus
from retro_demo.paths import without_folders
from retro_demo.server.telling import on_page

COLORS = ("#3a7ebf", "#d9702b", "#219f7a", "#b565a0", "#b8901a", "#7a6fd0")
"""Colors of curves; told apart by color-blind eyes, on light and on dark."""

NEIGHBOR_COLORS = ("#1f9678", "#b0569e", "#a8830f", "#7468d4", "#5a7f8c", "#94623f")
"""One color for each neighbor everywhere; none is the blue or the orange that say helped and hurt."""

MOST_LABEL = 60  # characters

# what the page's template language would take for its own
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


TABLE = "A table; the arrow keys scroll it where it is larger than its frame"


def esc(text: object) -> str:
    """Text as HTML that shows it, whatever it holds."""
    return html.escape(str(text)).translate(_TEMPLATE)


def theirs(text: object) -> str:
    """Text of others within a line of ours, such as a title: it runs in its own direction.

    A block of their text has dir="auto" in its place.
    """
    return f"<bdi>{esc(text)}</bdi>"


def isolated(text: object) -> str:
    """As `theirs`, where there are no tags: what runs from right to left stands between two isolates."""
    turned = any(unicodedata.bidirectional(one) in ("R", "AL") for one in str(text))
    return f"\u2068{text}\u2069" if turned else str(text)


def label(text: object) -> str:
    """Text of others in a figure: neither a tag nor a template of plotly, and of a bounded length."""
    words = str(text)
    if len(words) > MOST_LABEL:
        words = f"{words[: MOST_LABEL // 2]}…{words[-MOST_LABEL // 2 :]}"
    return esc(isolated(words))


def term(word: str, shown: str = "") -> str:
    """A word with its explanation at hand."""
    return f'<abbr tabindex="0" title="{esc(explain(word))}">{esc(shown or word)}</abbr>'


def glossary() -> str:
    """All words of the field, each with its sentence."""
    words = "".join(f"<dt>{esc(word)}</dt><dd>{esc(sentence)}</dd>" for word, sentence in GLOSSARY.items())
    return f'<dl class="glossary">{words}</dl>'


def color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def neighbor_color(place: int) -> str:
    return NEIGHBOR_COLORS[place % len(NEIGHBOR_COLORS)]


def language_name(language: str) -> str:
    """A document's language as it is shown: documents need not name one."""
    return language or "none given"


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def note(text: str, kind: str = "") -> str:
    """A plain paragraph: an empty state, a hint, or (kind "warning", "bad") more than that."""
    return f'<p class="note {esc(kind)}">{esc(text)}</p>'


def trail(corpus: str, stats: Mapping[str, Any] | None, run: str, worth: str) -> str:
    """The line at the top: corpus > index > run, with its worth (HTML, "" = unknown) > text."""
    count = f" ({stats['documents']:,} documents)" if stats else " (being prepared)"
    index = f"{stats['embedder']}, {stats['index']}" if stats else "..."
    parts = [
        f"{term('corpus')}: <b>{esc(corpus)}</b>{count}",
        f"{term('index')}: <b>{esc(index)}</b>",
        f"{term('run')}: <b>{esc(run.removeprefix('sample:'))}</b>{worth and ', '}{worth}",
        "text",
    ]
    return '<nav class="trail">' + " <i>›</i> ".join(f"<span>{p}</span>" for p in parts) + "</nav>"


def passage(name: str, inside: str) -> str:
    """A passage of a document behind its letter (N or F), which has no say in its direction."""
    return f'<p dir="auto"><em dir="ltr">{term(name)}</em>{inside}</p>'


def neighbor_card(neighbor: Mapping[str, Any], place: int) -> str:
    """One neighbor as a search found it: N, F and score."""
    after = neighbor["continuation"] or "(the document ends here)"
    return (
        f'<article class="card" style="--own:{neighbor_color(place)}"><header><b>{place + 1} '
        f"{theirs(neighbor['title'] or neighbor['document'])}</b><span>{term('score')} "
        f"{neighbor['score']:.2f}</span></header>"
        f"{passage('N', esc(neighbor['text']))}{passage('F', esc(after))}</article>"
    )


def table(head: str, rows: Sequence[str]) -> str:
    """A table that scrolls within itself; head and rows are HTML."""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{TABLE}"><table>{body}</table></div>'


def found_html(neighbors: Sequence[Mapping[str, Any]], *, doubted: str = "", nothing: str = "") -> str:
    """What a search found, after why that may be unrelated; `nothing` says why there is none."""
    warned = note(doubted, "warning") if doubted else ""
    if not neighbors:
        return warned + note(nothing)
    return warned + "".join(neighbor_card(neighbor, place) for place, neighbor in enumerate(neighbors))


STATES = {
    "waiting": "waiting",
    "running": "running",
    "finished": "finished",
    "stopped": "stopped, can go on",
    "failed": "failed",
    "interrupted": "interrupted, can go on",
    "new": "not started",
    "shipped": "shipped",
}


def badge(state: str) -> str:
    return f'<span class="badge {esc(state)}">{esc(STATES.get(state, state))}</span>'


def bar(share: float, words: str) -> str:
    """How far something is, in words and as a bar."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}" aria-label="{esc(words)}"><i style="width:{percent:.1f}%"></i></div>'
        f'<p class="caption">{esc(words)}</p>'
    )


def standing(status: JobStatus) -> str:
    """Where a waiting job stands in the queue, and why one stopped that nobody stopped; else ""."""
    if status.place:
        return note(
            f"It waits for its turn: place {status.place} of {status.waiting} in the queue. It starts by "
            "itself, also when you close the page; Stop takes it out of the queue."
        )
    stopped = status.of_kind("stopped")
    if status.state == "stopped" and stopped and (why := stopped[-1].get("why")):
        return note(why, "warning")
    return ""


def failure(status: JobStatus) -> str:
    """The sentence of a failed job and the end of its log."""
    errors = status.of_kind("failed")
    if status.state == "interrupted":
        said = note(on_page(status.why), "bad")
    elif status.state == "failed":
        said = note(on_page(errors[-1]["error"]) if errors else "It failed.", "bad")
    else:
        return ""
    tail = without_folders(status.log_tail.strip())
    return said + (
        f"<details><summary>End of the log</summary><pre>{esc(tail)}</pre></details>" if tail else ""
    )
