"""Folders, events and traces -> HTML and numbers for the page; escapes all text of others.

This module knows nothing of gradio. Whatever came from a corpus, a file name, a prompt or a visitor
passes through `esc` here and nowhere else.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro_demo.glossary import explain
from retro_demo.jobs import JobStatus
from retro_demo.tracing import Trace, reading_tokens, shares, why_nothing
from retro_demo.workspace import without_folders
from retro_demo.writing import Writing

COLORS = ("#3a7ebf", "#d9702b", "#219f7a", "#b565a0", "#b8901a", "#7a6fd0")
"""One color for each neighbor everywhere; told apart by color-blind eyes, on light and on dark."""

# what the page's template language would take for its own
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def esc(text: object) -> str:
    """Text as HTML that shows it, whatever it holds."""
    return html.escape(str(text)).translate(_TEMPLATE)


def term(word: str, shown: str = "") -> str:
    """A word with its explanation at hand."""
    return f'<abbr tabindex="0" title="{esc(explain(word))}">{esc(shown or word)}</abbr>'


def color(place: int) -> str:
    return COLORS[place % len(COLORS)]


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


def trail(corpus: str, stats: Mapping[str, Any] | None, run: str, gap: float | None) -> str:
    """The line at the top: corpus > index > run > text."""
    count = f" ({stats['documents']:,} documents)" if stats else " (being prepared)"
    index = f"{stats['embedder']}, {stats['index']}" if stats else "..."
    worth = f", on/off {term('gap')} {gap:+.2f} nat" if gap is not None else ""
    parts = [
        f"{term('corpus')}: <b>{esc(corpus)}</b>{count}",
        f"{term('index')}: <b>{esc(index)}</b>",
        f"{term('run')}: <b>{esc(run.removeprefix('sample:'))}</b>{worth}",
        "text",
    ]
    return '<nav class="trail">' + " <i>›</i> ".join(f"<span>{p}</span>" for p in parts) + "</nav>"


def text_html(
    pieces: Sequence[str], prompt_tokens: int, chunk_len: int, selected: int = -1, *, going: bool
) -> str:
    """The text, chunk by chunk; each chunk can be chosen with the mouse or the keyboard."""
    if not pieces:
        return note("Nothing written yet. Give a prompt and press Generate.")
    blocks = []
    for start in range(0, len(pieces), chunk_len):
        number = start // chunk_len
        tokens = "".join(
            f'<span data-t="{i}"{_kind(i, prompt_tokens)}>{esc(piece)}</span>'
            for i, piece in enumerate(pieces[start : start + chunk_len], start)
        )
        chosen = number == selected
        blocks.append(
            f'<div class="chunk{" chosen" if chosen else ""}" role="button" tabindex="0" '
            f'data-chunk="{number}" data-len="{chunk_len}" aria-pressed="{str(chosen).lower()}" '
            f'aria-label="Chunk {number + 1}"><span class="number">{number + 1}</span>'
            f'<div class="tokens">{tokens}</div></div>'
        )
    legend = (
        '<p class="legend"><span class="prompt">prompt</span> <span>written by the model</span> '
        '<span class="reads">tokens that read the neighbors of the chosen chunk</span></p>'
    )
    return f'<div class="text{" going" if going else ""}">{"".join(blocks)}</div>{legend}'


def _kind(token: int, prompt_tokens: int) -> str:
    return ' class="prompt"' if token < prompt_tokens else ""


def writing_html(writing: Writing) -> str:
    """A growing text."""
    going = writing.trace is None
    return text_html(writing.pieces, writing.prompt_tokens, writing.chunk_len, going=going)


def trace_text(trace: Trace, selected: int) -> str:
    """The text of a finished trace."""
    pieces = trace.about.get("pieces", trace.tokens)
    return text_html(pieces, trace.prompt_tokens, trace.chunk_len, selected, going=False)


def speed(tokens: int, seconds: float, search_ms: float | None, chunks: int, going: bool) -> str:
    """What a generation costs, in a line."""
    rate = f"{tokens / seconds:.0f} tokens/s" if seconds > 0 and tokens else "starting"
    found = f" · search {search_ms:.1f} ms a chunk, {chunks} chunks" if search_ms is not None else ""
    words = f"{'Writing' if going else 'Written'}: {tokens} tokens · {rate}{found}"
    return f'<p class="speed" role="status">{words}</p>'


def writing_speed(writing: Writing) -> str:
    times = [event.ms for event in writing.retrieved]
    mean = sum(times) / len(times) if times else None
    return speed(writing.new_tokens, writing.seconds, mean, len(times), writing.trace is None)


def trace_speed(trace: Trace) -> str:
    about = trace.about
    tokens = len(trace.probabilities)
    return speed(tokens, about.get("seconds", 0), about.get("search_ms"), len(trace.neighbors), False)


def intro(trace: Trace | None, *, example: bool) -> str:
    """One sentence that says what is being looked at."""
    if trace is None:
        return note(
            "No text yet. Choose a run, write a prompt and press Generate; "
            "without a run, train one on the Train tab."
        )
    seed = trace.about.get("config", {}).get("seed", 7)
    run = esc(str(trace.about.get("run", "")).removeprefix("sample:"))
    mark = f'<span class="mark">example, made with seed {esc(seed)}</span> ' if example else ""
    if not trace.neighbors:
        return f'<p class="intro">{mark}Text by <b>{run}</b>, written without {term("retrieval")}.</p>'
    return (
        f'<p class="intro">{mark}Text by <b>{run}</b>: after each {term("chunk")} it looked up '
        f"{term('neighbor', 'neighbors')} in its {term('corpus')}, and read them through "
        f"{term('cross-attention')} while it wrote on.</p>"
    )


def neighbors_html(trace: Trace, chunk: int, weights: np.ndarray | None) -> str:
    """The neighbors of the chosen chunk as cards: N and F apart, score, share of the attention."""
    if weights is None:
        return note(why_nothing(trace, chunk))
    tokens = reading_tokens(trace, chunk)
    share = shares(weights)
    cards = "".join(
        neighbor_card(neighbor, place, float(share[place]))
        for place, neighbor in enumerate(trace.neighbors[chunk])
    )
    which = f"token {tokens[0] + 1}" + (f" to {tokens[-1] + 1}" if len(tokens) > 1 else "")
    return (
        f'<p class="caption">Found with the text of chunk {chunk + 1}; read by {which}: its last token '
        f"and the beginning of chunk {chunk + 2}.</p>{cards}"
    )


def neighbor_card(neighbor: Mapping[str, Any], place: int, share: float | None = None) -> str:
    """One neighbor; with a share, also how much of the attention it got."""
    mass = ""
    if share is not None:
        mass = (
            f'<span class="mass">{term("mass")} {share:.0%}</span>'
            f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
        )
    after = neighbor["continuation"] or "(the document ends here)"
    return (
        f'<article class="card" style="--own:{color(place)}"><header><b>{place + 1} '
        f"{esc(neighbor['title'] or neighbor['document'])}</b><span>{term('score')} "
        f"{neighbor['score']:.2f}</span>{mass}</header>"
        f"<p><em>{term('N')}</em>{esc(neighbor['text'])}</p>"
        f"<p><em>{term('F')}</em>{esc(after)}</p></article>"
    )


def attention_table(trace: Trace, chunk: int, weights: np.ndarray | None, most: int = 8) -> str:
    """The numbers behind the heatmap: for each reading token, what it read most."""
    if weights is None:
        return note(why_nothing(trace, chunk))
    rows = []
    for row, token in zip(weights, reading_tokens(trace, chunk), strict=True):
        places = np.argsort(-row, axis=None)[:most]
        cells = []
        for place in places:
            k, r = np.unravel_index(place, row.shape)
            label = trace.neighbors[chunk][k]["tokens"][r]
            part = "N" if r < trace.chunk_len else "F"
            cells.append(f"{k + 1}{part} {esc(label)} <small>{row[k, r]:.3f}</small>")
        mass = " ".join(f"<td>{value:.2f}</td>" for value in row.sum(axis=1))
        rows.append(
            f"<tr><td>{token + 1}</td><th>{esc(trace.tokens[token])}</th>{mass}"
            f"<td>{' · '.join(cells)}</td></tr>"
        )
    heads = "".join(f"<th>mass {k + 1}</th>" for k in range(weights.shape[1]))
    return table(
        f"<th>token</th><th>text</th>{heads}<th>most read (neighbor, part, token, weight)</th>", rows
    )


def table(head: str, rows: Sequence[str]) -> str:
    """A table that scrolls within itself; head and rows are HTML."""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def found_html(neighbors: Sequence[Mapping[str, Any]]) -> str:
    """What a search found."""
    if not neighbors:
        return note("Nothing was found.")
    return "".join(neighbor_card(neighbor, place) for place, neighbor in enumerate(neighbors))


STATES = {
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
        f'aria-valuenow="{percent:.0f}"><i style="width:{percent:.1f}%"></i></div>'
        f'<p class="caption">{esc(words)}</p>'
    )


def failure(status: JobStatus) -> str:
    """The sentence of a failed job and the end of its log."""
    errors = status.of_kind("failed")
    if status.state == "interrupted":
        said = note(
            "The process ended without a word (was it killed?). Resume goes on from the last save.", "bad"
        )
    elif status.state == "failed":
        said = note(without_folders(errors[-1]["error"]) if errors else "It failed.", "bad")
    else:
        return ""
    tail = without_folders(status.log_tail.strip())
    return said + (
        f"<details><summary>End of the log</summary><pre>{esc(tail)}</pre></details>" if tail else ""
    )
