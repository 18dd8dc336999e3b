"""A text while it grows, and the sentences around it, as HTML. Like render/views.py, without gradio."""

from __future__ import annotations

from collections.abc import Mapping

from retro_demo.explain.findings import summary
from retro_demo.explain.tracing import Trace
from retro_demo.explain.writing import SIDES, Writing
from retro_demo.paths import SAMPLE
from retro_demo.render.views import esc, note, table, term, theirs


def growing_text(writing: Writing) -> str:
    """The text so far, chunk by chunk."""
    blocks = []
    for start in range(0, len(writing.pieces), writing.chunk_len):
        part = writing.pieces[start : start + writing.chunk_len]
        tokens = "".join(
            f"<span{_kind(i, writing.prompt_tokens)}>{esc(piece)}</span>"
            for i, piece in enumerate(part, start)
        )
        number = start // writing.chunk_len + 1
        blocks.append(
            f'<div class="chunk"><span class="number">{number}</span>'
            f'<div class="tokens" dir="auto">{tokens}</div></div>'
        )
    going = " going" if writing.trace is None else ""
    return f'<div class="text{going}">{"".join(blocks)}</div>'


def _kind(token: int, prompt_tokens: int) -> str:
    return ' class="prompt"' if token < prompt_tokens else ""


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
    if about.get("given"):
        took = f"Read and explained in {about.get('seconds', 0):.1f} s: {len(trace.tokens)} tokens"
        return f'<p class="speed" role="status">{took}</p>'
    tokens = len(trace.probabilities)
    return speed(tokens, about.get("seconds", 0), about.get("search_ms"), len(trace.neighbors), False)


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
    whose = f"A given text, read by <b>{run}</b>" if about.get("given") else f"Text by <b>{run}</b>"
    if about.get("pages", 1) > 1:
        whose += f", page {esc(about['page'])} of {esc(about['pages'])}"
    if not trace.neighbors:
        return f'<p class="intro">{mark}{whose}, without {term("retrieval")}.</p>'
    database = esc(str(about.get("database", "")).removeprefix(SAMPLE))
    where = f"{term('corpus')} <b>{database}</b>"
    if about.get("swapped"):
        where += f" ({term('hot swap')}: not the one it was trained on)"
    if about.get("config", {}).get("retrieval") == "shuffled":
        looked = f"the {term('neighbor', 'neighbors')} of other chunks ({term('shuffled control')})"
    else:
        looked = f"{term('neighbor', 'neighbors')}"
    own = ""
    if about.get("source"):
        own = f" The text stands in <b>{theirs(about['source'])}</b>, which was left out of the search."
    return (
        f'<p class="intro">{mark}{whose}: after each {term("chunk")} it looked up {looked} in {where}, '
        f"and read them through {term('cross-attention')} while it went on.{own}</p>"
    )


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
                f"<td>{_surprise(writing.trace)}</td><td>{1 - found['distinct_2']:.0%}</td><td>{copied}</td>"
                f"<td>{'' if side == 'on' else max(0, equal - prompt)}</td></tr>"
            )
    head = (
        "<th></th><th>tokens written</th><th>mean surprise (nat)</th><th>repeated pairs of tokens</th>"
        f"<th>{term('copied')}, 5 tokens or more</th><th>equal to “on” at first (tokens)</th>"
    )
    return f'<div class="three">{"".join(columns)}</div>' + (table(head, rows) if rows else "")


def _surprise(trace: Trace) -> str:
    """How surprised the model was by what it drew, on the average."""
    losses = trace.numbers.loss_on[trace.prompt_tokens - 1 : -1]
    return f"{losses.mean():.2f}" if len(losses) else "–"


def parting(one: list[str], other: list[str]) -> int:
    """How many tokens two texts have in common before they part."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
