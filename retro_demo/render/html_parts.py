"""The parts that all views share: escaping, tables, progress, text while it grows.

Whatever came from a corpus, a file name, a prompt or a visitor passes through `esc` here and nowhere else.
Like all of render/, this module knows nothing of gradio.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from retro_demo.explain.text import SIDES, Writing
from retro_demo.explain.tracing import Trace, summary
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.paths import SAMPLE, without_folders
from retro_demo.render.wording import GLOSSARY, explain, on_page

COLORS = ("#3a7ebf", "#d9702b", "#219f7a", "#b565a0", "#b8901a", "#7a6fd0")
"""Colors of curves; told apart by color-blind eyes, on light and on dark."""

NEIGHBOR_COLORS = ("#1f9678", "#b0569e", "#a8830f", "#7468d4", "#5a7f8c", "#94623f")
"""One color for each neighbor everywhere; none is the blue or the orange that say helped and hurt."""

MOST_LABEL = 60  # characters
AGREES, TELLS = 0.7, 0.3  # rank correlations: from here on attention agrees with effect, or in part

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


def term(word: str, shown: str = "", more: str = "") -> str:
    """A word with its explanation at hand, and perhaps with more that is to be known of it there.

    A finger or a click brings it; for the keyboard, which would stop at each word, there is the glossary.
    """
    words = f"{explain(word)} {more}".strip()
    return f'<abbr tabindex="-1" title="{esc(words)}">{esc(shown or word)}</abbr>'


def glossary() -> str:
    """All words of the field, each with its sentence."""
    words = "".join(f"<dt>{esc(word)}</dt><dd>{esc(sentence)}</dd>" for word, sentence in GLOSSARY.items())
    return f'<dl class="glossary">{words}</dl>'


def color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def neighbor_color(index: int) -> str:
    return NEIGHBOR_COLORS[index % len(NEIGHBOR_COLORS)]


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


def breadcrumb(corpus: str, stats: Mapping[str, Any] | None, run: str, gain: str) -> str:
    """The line at the top: corpus > index > run, with its worth (HTML, "" = unknown) > text."""
    count = f" ({stats['documents']:,} documents)" if stats else " (being prepared)"
    index = f"{stats['embedder']}, {stats['index']}" if stats else "..."
    parts = [
        f"{term('corpus')}: <b>{esc(corpus)}</b>{count}",
        f"{term('index')}: <b>{esc(index)}</b>",
        f"{term('run')}: <b>{esc(run.removeprefix('sample:'))}</b>{gain and ', '}{gain}",
        "text",
    ]
    return '<nav class="trail">' + " <i>›</i> ".join(f"<span>{p}</span>" for p in parts) + "</nav>"


def corpus_breadcrumb(corpus: str, stats: Mapping[str, Any] | None) -> str:
    """The line at the top where a corpus alone is looked at."""
    words = f"{term('corpus')}: <b>{esc(corpus)}</b>"
    if stats:
        index = f"{stats['embedder']}, {stats['index']}"
        words += f" ({stats['documents']:,} documents) <i>›</i> {term('index')}: <b>{esc(index)}</b>"
    return f'<nav class="trail"><span>{words}</span></nav>'


def passage(name: str, inside: str) -> str:
    """A passage of a document behind its letter (N or F), which has no say in its direction."""
    return f'<p dir="auto"><em dir="ltr">{term(name)}</em>{inside}</p>'


DOCUMENT_ENDS = "(the document ends here)"
ONLY_THE_END = "(no words: this chunk holds only the end mark of its document)"


def neighbor_card(neighbor: Mapping[str, Any], index: int) -> str:
    """One neighbor as a search found it: N, F and score."""
    text = neighbor["text"] or ONLY_THE_END
    after = neighbor["continuation"] or DOCUMENT_ENDS
    return (
        f'<article class="card" style="--own:{neighbor_color(index)}"><header><b>{index + 1} '
        f"{theirs(neighbor['title'] or neighbor['document'])}</b><span>{term('score')} "
        f"{neighbor['score']:.2f}</span></header>"
        f"{passage('N', esc(text))}{passage('F', esc(after))}</article>"
    )


def table(head: str, rows: Sequence[str]) -> str:
    """A table that scrolls within itself; head and rows are HTML."""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{TABLE}"><table>{body}</table></div>'


def saved_as() -> str:
    """The buttons that save the picture around them (what has data-picture) as a file: assets/pictures.js."""
    buttons = " ".join(
        f'<button type="button" data-save="{kind}">{kind.upper()}</button>' for kind in ("png", "svg")
    )
    return f'<p class="saves">Save as {buttons}</p>'


def found_html(neighbors: Sequence[Mapping[str, Any]], *, doubted: str = "", nothing: str = "") -> str:
    """What a search found, after why that may be unrelated; `nothing` says why there is none."""
    warned = note(doubted, "warning") if doubted else ""
    if not neighbors:
        return warned + note(nothing)
    return warned + "".join(neighbor_card(neighbor, index) for index, neighbor in enumerate(neighbors))


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
    if status.queue_position:
        return note(
            f"It waits for its turn: place {status.queue_position} of {status.waiting} in the queue. It "
            "starts by itself, also when you close the page; Stop takes it out of the queue."
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


def growing_text(writing: Writing) -> str:
    """The text so far, chunk by chunk."""
    blocks = []
    for start in range(0, len(writing.pieces), writing.chunk_len):
        end = min(start + writing.chunk_len, len(writing.pieces))
        tokens = "".join(_growing(writing, i, start) for i in range(start, end))
        number = start // writing.chunk_len + 1
        blocks.append(
            f'<div class="chunk"><span class="number">{number}</span>'
            f'<div class="tokens" dir="auto">{tokens}</div></div>'
        )
    going = " going" if writing.trace is None else ""
    last = writing.retrieved[-1] if writing.retrieved else None
    cards = "".join(neighbor_card(one, index) for index, one in enumerate(last.neighbors)) if last else ""
    said = f'<p class="caption">Found for chunk {last.chunk + 2}, read now</p>' if last else ""
    return (
        f'<div class="linked"><div class="text{going}"><div>{"".join(blocks)}</div></div>{said}'
        f'<div class="cards">{cards}</div></div>'
    )


def _growing(writing: Writing, i: int, start: int) -> str:
    """One token of a text that grows; what pads a prompt shows nothing."""
    if not (piece := writing.pieces[i]):
        return ""
    kinds = ["prompt"] * (i < writing.prompt_tokens) + ["gap"] * is_gap(writing.pieces, i, start)
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<span{kind}>{esc(piece)}</span>"


def is_gap(pieces: Sequence[str], i: int, start: int) -> bool:
    """Whether a token of a chunk that begins with token `start` is an empty line, which is shown as a gap."""
    return i > start and pieces[i] == "\n" and pieces[i - 1].endswith("\n")


def status_line(words: str) -> str:
    """How far something is, in HTML words, as a line that is read out when it changes."""
    return f'<p class="speed" role="status">{words}</p>'


def speed(tokens: int, seconds: float, search_ms: float | None, chunks: int, going: bool) -> str:
    """What a generation costs, in a line."""
    rate = f"{tokens / seconds:.0f} tokens/s" if seconds > 0 and tokens else "starting"
    found = f" · search {search_ms:.1f} ms a chunk, {chunks} chunks" if search_ms is not None else ""
    words = f"{'Writing: ' if going else ''}{tokens} tokens · {rate}{found}"
    return status_line(words)


def writing_speed(writing: Writing) -> str:
    times = [event.ms for event in writing.retrieved if event.ms]  # what an edit keeps was not searched again
    mean = sum(times) / len(times) if times else None
    return speed(writing.new_tokens, writing.seconds, mean, len(times), writing.trace is None)


def trace_speed(trace: Trace) -> str:
    about = trace.about
    if about.get("given"):
        took = f"Read and explained in {about.get('seconds', 0):.1f} s: {len(trace.tokens)} tokens"
        return status_line(took)
    tokens = len(trace.probabilities)
    return speed(tokens, about.get("seconds", 0), about.get("search_ms"), len(trace.neighbors), False)


AGAIN = "Temperature 0 always takes the likeliest token: raise it for another text."
AGAIN_BY_CHANCE = "Another seed drew the same tokens: raise the temperature for another text."


def intro(trace: Trace | None, *, example: bool) -> str:
    """One sentence that says what is being looked at."""
    if trace is None:
        return note(
            "No text yet. Choose a run, write a prompt and press Generate; "
            "without a run, train one on the Train tab."
        )
    about = trace.about
    run = esc(str(about.get("run", "")).removeprefix(SAMPLE))
    seed = about.get("config", {}).get("seed", 7)
    mark = f'<span class="mark">example, made with seed {esc(seed)}</span> ' if example else ""
    if about.get("edited"):
        mark = '<span class="mark">written with an edited neighbor</span> '
    elif about.get("again"):
        why = AGAIN_BY_CHANCE if about["config"]["temperature"] else AGAIN
        mark = f'<span class="mark">the same text again</span> {why} '
    whose = f"A given text, read by <b>{run}</b>" if about.get("given") else f"Text by <b>{run}</b>"
    if about.get("pages", 1) > 1:
        whose += f", page {esc(about['page'])} of {esc(about['pages'])}"
    if not trace.neighbors:
        return f'<p class="intro">{mark}{whose}, without {term("retrieval")}.</p>'
    database = esc(str(about.get("corpus_id") or about.get("database", "")).removeprefix(SAMPLE))
    where = f"<b>{database}</b>"
    if about.get("swapped"):
        where += f" ({term('hot swap')}: not the {term('corpus')} it was trained on)"
    looked = f"{term('neighbor', 'neighbors')} in {where}"
    if about.get("config", {}).get("retrieval") == "shuffled":
        looked = f"neighbors of other chunks in {where} ({term('shuffled control')})"
    own = ""
    if about.get("source"):
        own = f" The text stands in <b>{theirs(about['source'])}</b>, which was left out of the search."
    return f'<p class="intro">{mark}{whose}, reading {looked}.{own}</p>'


def sides_html(sides: Mapping[str, Writing]) -> str:
    """The same prompt and seed with retrieval on, off and shuffled; where two texts part is marked."""
    names = {"on": "retrieval on", "off": "retrieval off", "shuffled": "shuffled neighbors"}
    columns, rows = [], []
    for side in SIDES:
        writing = sides.get(side)
        if writing is None:
            columns.append(f'<section><h3>{names[side]}</h3><p class="caption">waits</p></section>')
            continue
        equal = parting(sides["on"].pieces, writing.pieces) if side != "on" else len(writing.pieces)
        prompt, same = writing.prompt_tokens, max(equal, writing.prompt_tokens)
        parts = (writing.pieces[:prompt], writing.pieces[prompt:same], writing.pieces[same:])
        given, alike, apart = (esc("".join(part)) for part in parts)
        columns.append(
            f'<section><h3>{names[side]}</h3><div class="sample" dir="auto">'
            f'<span class="prompt">{given}</span>{alike}<span class="apart">{apart}</span></div></section>'
        )
        if writing.trace is not None:
            found = summary(writing.trace)
            copied = f"{found['copied']:.0%}" if writing.trace.neighbors else "–"
            rows.append(
                f"<tr><th>{names[side]}</th><td>{writing.new_tokens}</td>"
                f"<td>{1 - found['distinct_2']:.0%}</td><td>{copied}</td>"
                f"<td>{'' if side == 'on' else max(0, equal - prompt)}</td></tr>"
            )
    head = (
        "<th></th><th>tokens written</th><th>repeated pairs of tokens</th>"
        f"<th>{term('copied')}, 5 tokens or more</th><th>equal to “on” at first (tokens)</th>"
    )
    columns_html = f'<div class="three">{"".join(columns)}</div>'
    return _sides_verdict(sides) + columns_html + (table(head, rows) if rows else "")


def _sides_verdict(sides: Mapping[str, Writing]) -> str:
    """Once all three stand there: whether what is copied is owed to what the neighbors say."""
    traces = [writing.trace for side in SIDES if (writing := sides.get(side)) is not None]
    known = [trace for trace in traces if trace is not None]
    if len(known) < len(SIDES):
        return ""
    on, shuffled = (summary(known[SIDES.index(side)])["copied"] for side in ("on", "shuffled"))
    claim = (
        "This text follows its neighbors"
        if on - shuffled >= TELLS
        else "This text does not follow its neighbors more than it follows unrelated ones"
    )
    return note(
        f"{claim}: it copies {on:.0%} from them, and {shuffled:.0%} where it gets those of other chunks. One "
        "text is no measurement; see Evaluate."
    )


def parting(one: list[str], other: list[str]) -> int:
    """How many tokens two texts have in common before they part."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def agreement_words(rho: float | None) -> str:
    """What the rank correlation of attention and effect says, by its sign and its size."""
    effect = term("effect")
    if rho is None:
        return f"There are too few neighbors to compare attention with {effect}."
    if rho >= AGREES:
        words = f"Attention agrees with {effect}"
    elif rho >= TELLS:
        words = f"Attention agrees with {effect} in part"
    elif rho > -TELLS:
        words = f"Attention does not predict which neighbor helped ({effect})"
    else:
        words = f"Attention runs against {effect}: the neighbors that were looked at most helped least"
    return f"{words} (<b>ρ = {rho:.2f}</b>)."
