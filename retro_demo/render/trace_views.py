"""The linked view of a trace as HTML: text, neighbors, attention, timeline, edits and their numbers.

assets/explain.js and assets/heatmap.js connect the parts in the browser; the numbers lie in the page as
JSON. All text of others passes through `esc`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from retro_demo.evaluation.copied_text import LONG, Span
from retro_demo.explain.edits import Edit, Rewritten
from retro_demo.explain.text import title_of
from retro_demo.explain.tracing import (
    Trace,
    attention,
    mass,
    spans,
    timeline,
    token_rows,
    top_words,
    why_nothing,
)
from retro_demo.render.first_look import edit_to_try, walk_data
from retro_demo.render.html_parts import (
    DOCUMENT_ENDS,
    ONLY_THE_END,
    esc,
    is_gap,
    neighbor_color,
    note,
    passage,
    saved_as,
    table,
    term,
    theirs,
    trace_speed,
)

GAIN_SCALES = (0.5, 1, 2, 4)  # nat, where the colors are full: the first that most gains stay within
EFFECT_OF_RANKS = "The effect is that of all neighbors of the same rank in the text, not of this one alone."
STIRRED = 0.001  # nat: from this KL on an edit moved a prediction
USED = 0.05  # nat: from this effect on a token is said to have used a neighbor


def linked(trace: Trace | None, chosen: int | None = None, before: Sequence[int] | None = None) -> str:
    """The whole view: the text by chunks, under it the chosen token and the neighbors of its chunk.

    before: the token ids of the text that stood here until a neighbor was edited; what differs is marked.
    """
    if trace is None:
        return note("Nothing written yet. Give a prompt and press Generate, or explain a text of yours.")
    numbers = range(len(trace.tokens) // trace.chunk_len + 1)
    filled = range(-(-len(trace.tokens) // trace.chunk_len))
    copied, shares = spans(trace), mass(trace)
    fresh = changed_tokens(before, trace.ids) if before is not None else set()
    blocks = "".join(_chunk(trace, number, copied, fresh) for number in filled)
    found = "".join(_found(trace, number, shares) for number in numbers)
    first = _first_token(trace, fresh) if chosen is None else chosen
    why = why_nothing(trace)
    edited = "" if before is None else " data-edited"  # what was typed for the text before is kept
    return (
        f'<div class="linked" data-chosen="{first}"{edited}>{note(why) if why else ""}'
        f'<div class="text by-copy">{blocks}</div>'
        f'<div class="under">{_tools(trace)}{edit_to_try(trace)}</div>'
        f'<div class="token-panel" aria-live="polite"></div>{found}'
        f"{_data(token_data(trace))}</div>"
    )


def changed_tokens(before: Sequence[int], now: Sequence[int]) -> set[int]:
    """The places of the tokens that a text did not have there before."""
    same = SequenceMatcher(None, list(before), list(now), autojunk=False).get_matching_blocks()
    return set(range(len(now))) - {block.b + i for block in same for i in range(block.size)}


def _data(values: dict[str, Any]) -> str:
    """Values as JSON for the scripts; the stamp tells them that there are new ones."""
    text = json.dumps(values, ensure_ascii=False)
    stamp = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f'<div class="data" data-stamp="{stamp}" hidden>{esc(text)}</div>'


def _first_token(trace: Trace, fresh: set[int]) -> int:
    """The token to show first: what an edit changed, among those that read the edited neighbor; without an
    edit `best_token`."""
    if not (edited := trace.about.get("edited")):
        return best_token(trace)
    start = (edited["chunk"] + 1) * trace.chunk_len
    readers = range(start, min(start + trace.chunk_len, len(trace.tokens)))
    return next((t for t in readers if t in fresh), min(start, len(trace.tokens) - 1))


def best_token(trace: Trace) -> int:
    """The token to show first: the word of what was written that retrieval helped most."""
    if not trace.neighbors:
        return trace.padding
    gain = np.nan_to_num(trace.numbers.gain[:-1])  # of the token after each
    words = [
        any(map(str.isalnum, piece)) and t >= trace.prompt_tokens for t, piece in enumerate(trace.pieces)
    ]
    return int(np.where(words[1:], gain, -np.inf).argmax()) + 1 if any(words[1:]) else len(trace.tokens) - 1


def _tools(trace: Trace) -> str:
    """What the colors mean, and the choice between them."""
    names = ("copy", "gain", "surprise", "entropy") if trace.neighbors else ("surprise",)
    buttons = "".join(
        f'<button type="button" data-by="{name}" aria-pressed="{str(name == names[0]).lower()}">{name}'
        "</button>"
        for name in names
    )
    return (
        f'<div class="tools"><span>color by</span><div class="switch" role="group" aria-label="Color by">'
        f'{buttons}</div><div class="scale" aria-live="polite"></div></div>'
    )


def _chunk(trace: Trace, number: int, copied: list[Span], fresh: set[int]) -> str:
    start, end = number * trace.chunk_len, min((number + 1) * trace.chunk_len, len(trace.tokens))
    start = max(start, trace.padding)
    under = {t: span for span in copied for t in range(span.start, span.end)}
    tokens = []
    for t in range(start, end):
        classes, more = ["prompt"] if t < trace.prompt_tokens else [], ""
        if t in under and under[t].length > 1:
            long, which = under[t].length >= LONG, under[t].neighbor
            classes.append("copied" if long else "echo")
            more = f' style="--own:{neighbor_color(which)}"'
            if long and t == under[t].end - 1:  # the number of the neighbor, once a span
                more += f' data-from="{which + 1}"'
        classes += ["fresh"] * (t in fresh) + ["gap"] * is_gap(trace.pieces, t, start)
        kind = f' class="{" ".join(classes)}"' if classes else ""
        tokens.append(f'<span data-t="{t}" tabindex="-1"{kind}{more}>{esc(trace.pieces[t])}</span>')
    if end == len(trace.tokens):
        tokens.append(
            f'<span data-t="{end}" tabindex="-1" class="next" aria-label="what comes next">▸</span>'
        )
    return (
        f'<div class="chunk" data-chunk="{number}" role="group" aria-label="Chunk {number + 1}">'
        f'<span class="number">{number + 1}</span>'
        f'<div class="tokens" dir="auto">{"".join(tokens)}</div></div>'
    )


def _found(trace: Trace, number: int, shares: np.ndarray) -> str:
    """The neighbors that a chunk was written with: those found with the chunk before it."""
    if number == 0:
        inside = note(
            "This is the prompt. What its end finds is read by the chunk that follows."
            if trace.prompt_tokens == trace.chunk_len
            else "The first chunk is written before anything can be looked up. The second one reads what the "
            "first one found."
        )
    elif reason := why_nothing(trace, number - 1):
        inside = note(reason)
    else:
        places = range(len(trace.neighbors[number - 1]))
        cards = "".join(_card(trace, number - 1, index, shares[:, index]) for index in places)
        inside = (
            f'<p class="caption">Found with {_query(trace, number)}, read for chunk {number + 1}</p>'
            f'<div class="cards">{cards}</div>'
        )
    return f'<section class="found" data-of="{number}" hidden>{inside}</section>'


def _query(trace: Trace, number: int) -> str:
    """What the neighbors were looked up with that were found at the end of so many chunks, as HTML."""
    prompt = number * trace.chunk_len == trace.prompt_tokens
    end = prompt or 0 < trace.about.get("query_tokens", 0) < trace.chunk_len
    title = title_of(trace.about) if trace.about.get("by_title") else ""
    words = f"the {'end' if end else 'text'} of {'the prompt' if prompt else f'chunk {number}'}"
    return words + (f" and the title “{theirs(title)}”" if title else "")


ACTS = {
    "edit": "Change its text and see what follows; a double click on a word does the same",
    "drop": "Write the text without it",
    "swap": "Read another chunk of the corpus in its place",
}


def _card(trace: Trace, chunk: int, index: int, shares: np.ndarray) -> str:
    """One neighbor: N and F token by token, its attention beside its effect, and what can be done to it."""
    neighbor = trace.neighbors[chunk][index]
    readers = range(
        (chunk + 1) * trace.chunk_len - 1, min((chunk + 2) * trace.chunk_len - 1, len(trace.tokens))
    )
    share = float(shares[readers].mean())
    known = trace.numbers.shapley[readers, index]
    known = known[~np.isnan(known)]
    effect = f"{known.mean():+.2f}" if len(known) else "–"
    half = trace.chunk_len
    parts = [
        "".join(f'<span data-r="{r}">{esc(neighbor["pieces"][r])}</span>' for r in range(start, start + half))
        for start in (0, half)
    ]
    edited = neighbor.get("edited")
    empty = not neighbor["text"] and not neighbor["continuation"]
    nothing = "(dropped)" if edited and empty else ""
    before = nothing or (parts[0] if edited or neighbor["text"] else ONLY_THE_END)
    after = parts[1] if neighbor["continuation"] else "" if nothing else DOCUMENT_ENDS
    acts = ACTS | ({"undo": "Back to the text before this edit"} if edited else {})
    buttons = "".join(
        f'<button type="button" data-act="{act}" title="{words}">{act}</button>'
        for act, words in acts.items()
    )
    title = theirs(neighbor["title"] or neighbor["document"])
    mark = '<span class="mark">edited</span>' if edited else ""
    return (
        f'<article class="card" data-chunk="{chunk}" data-neighbor="{index}" '
        f'style="--own:{neighbor_color(index)}"><header><b class="rank">{index + 1}</b>'
        '<button type="button" class="name" data-act="used" aria-pressed="false" '
        f'title="Dim the tokens that did not use it">{title}</button>{mark}'
        f'<span class="acts">{buttons}</span></header>'
        f'<div class="passages">{passage("N", before)}{passage("F", after)}</div>'
        f"<footer><span>{term('score')} {neighbor['score']:.2f}</span>"
        f'<span class="mass">{term("mass")} {share:.0%} '
        f'<span class="bar"><i style="width:{100 * min(1, share):.0f}%"></i></span></span>'
        f"<span>{term('effect', more=EFFECT_OF_RANKS)} {effect}</span></footer></article>"
    )


def token_data(trace: Trace) -> dict[str, Any]:
    """What the browser needs for each token, by the token's own number (the first has no losses)."""
    rows = token_rows(trace)
    numbers = trace.numbers
    return {
        "chunkLen": trace.chunk_len,
        "padding": trace.padding,
        "labels": trace.tokens,
        "colors": [neighbor_color(index) for index in range(trace.neighbor_tokens.shape[1])],
        "scales": {"gain": gain_scale(trace), "surprise": 8, "entropy": _widest(trace)},
        "used": USED,
        "on": [_round(row["loss_on"]) for row in rows],
        "off": [_round(row["loss_off"]) for row in rows],
        "gain": [_round(row["gain"]) for row in rows],
        "entropy": [_round(row["entropy"]) for row in rows],
        "mass": [[_round(value) for value in row["mass"]] for row in rows],
        "shapley": [[_round(value) for value in row["shapley"]] for row in rows],
        "null": [_round(row["null_mass"]) for row in rows],
        "copied": [row["copied"] for row in rows],
        "from": [row["from"] and list(row["from"].values()) for row in rows],
        "words": trace.words,
        "ids": trace.ids,
        "top": numbers.top_ids.tolist(),
        "p": np.round(numbers.top_probabilities.astype(float), 4).tolist(),  # of float32 17 digits stay
        "walk": walk_data(trace),
    }


def gain_scale(trace: Trace) -> float:
    """Where the colors of gain are full: 19 of 20 tokens stay below."""
    gain = np.abs(trace.numbers.gain)
    most = float(np.quantile(gain[~np.isnan(gain)], 0.95)) if len(gain) > 1 else 0
    return next((scale for scale in GAIN_SCALES if scale >= most), GAIN_SCALES[-1])


def _widest(trace: Trace) -> float:
    """The entropy of attention spread evenly over all that a token can read."""
    return round(float(np.log(max(2, np.prod(trace.neighbor_tokens.shape[1:])))), 2)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def heatmap(trace: Trace | None, layer: int | None = None, head: int | None = None) -> str:
    """The attention of all chunks for heatmap.js, which draws the chosen one: a byte a weight."""
    if trace is None or why_nothing(trace):
        return ""
    weights = attention(trace, layer, head)  # (L, C, K, R)
    top = max(float(np.quantile(weights, 0.999)), 1e-6)
    scaled = np.clip(weights / top * 255, 0, 255).round().astype(np.uint8)
    data = {
        "shape": scaled.shape,
        "top": round(top, 4),
        "colors": [neighbor_color(index) for index in range(scaled.shape[2])],
        "labels": trace.tokens,
        "padding": trace.padding,
        "neighbors": [
            [{"title": one["title"] or one["document"], "tokens": one["tokens"]} for one in found]
            for found in trace.neighbors
        ],
        "weights": base64.b64encode(scaled.tobytes()).decode(),
    }
    return (
        '<div class="heat" data-picture="attention">'
        f'<p class="shown" role="status">{_of_heads(trace, layer, head)}</p>'
        '<div class="panels"></div><p class="reading caption" aria-live="polite"></p>'
        f"{saved_as()}{_data(data)}</div>"
    )


def _of_heads(trace: Trace, layer: int | None, head: int | None) -> str:
    """Which layer and head a heatmap shows."""
    layers, heads = len(trace.layers), trace.weights.shape[2]
    if layers == heads == 1:
        return "The look-up, one for all layers"
    of = f"layer {layer}" if layer is not None else f"{layers} layers"
    if head is None:
        return f"Mean over the {heads} heads of {of}"
    return f"Head {head + 1} of {of}" if layer is not None else f"Head {head + 1}, mean over {of}"


def token_table(trace: Trace | None) -> str:
    """The numbers behind colors, cards and heatmap: a row for each token."""
    if trace is None:
        return ""
    count = trace.neighbor_tokens.shape[1] if trace.neighbors else 0
    head = "<th>token</th><th>text</th><th>loss on</th><th>loss off</th><th>gain</th><th>entropy</th>"
    head += "".join(f"<th>mass {k + 1}</th><th>effect {k + 1}</th>" for k in range(count))
    nothing = trace.about.get("null_slot") and count
    head += "<th>mass of nothing</th>" if nothing else ""
    head += "<th>copied</th><th>from</th>" if count else ""
    rows = []
    for row in token_rows(trace)[trace.padding :]:
        values = [row["loss_on"], row["loss_off"], row["gain"], row["entropy"]]
        for k in range(count):
            values += [row[name][k] if len(row[name]) > k else None for name in ("mass", "shapley")]
        values += [row["null_mass"]] if nothing else []
        cells = "".join(f"<td>{'' if value is None else f'{value:.3f}'}</td>" for value in values)
        if count:
            at = row["from"]
            source = f"{at['neighbor'] + 1} {at['part']} {at['place'] + 1}" if at else ""
            cells += f"<td>{row['copied'] or ''}</td><td>{source}</td>"
        rows.append(
            f"<tr><td>{row['token'] + 1 - trace.padding}</td>"
            f"<th>{theirs(trace.tokens[row['token']])}</th>{cells}</tr>"
        )
    return table(head, rows)


def timeline_html(trace: Trace | None) -> str:
    """One row for each chunk that looked something up: what it asked, what it found, what it was worth."""
    if trace is None:
        return ""
    if reason := why_nothing(trace):
        return note(reason)
    rows = []
    lookups = timeline(trace)
    widest = max([abs(row["gain"]) for row in lookups if row["gain"] is not None], default=0) or 1
    for row in lookups:
        found = "".join(
            f'<li style="--own:{neighbor_color(index)}"><b>{index + 1}</b> '
            f"{theirs(one['title'] or one['document'])} <small>{_scores(one)}</small></li>"
            for index, one in enumerate(row["neighbors"])
        )
        rows.append(
            f"<tr><td>{row['chunk'] + 1}</td>"
            f"<td class='query' dir='auto'>{esc(row['query'].strip()[:90])}</td>"
            f"<td><ol class='ranks'>{found}</ol></td><td>{_number(row['nearest'], '.2f')}</td>"
            f"<td>{_number(row['ms'], '.1f')}</td><td>{_two_sided(row['gain'], widest)}</td>"
            f"<td>{_number(row['copied'], '.0%')}</td></tr>"
        )
    head = (
        f"<th>chunk</th><th>its text, the query</th><th>{term('neighbor', 'neighbors')}, best first</th>"
        f"<th>best {term('score')}</th><th>ms</th><th>mean {term('gain')} of the next chunk (nat)</th>"
        f"<th>{term('copied')} there, {LONG} or more</th>"
    )
    said = (
        '<p class="caption">Where the best score falls from chunk to chunk, the text drifts away from what '
        "the corpus knows.</p>"
    )
    return trace_speed(trace) + said + table(head, rows)


def _scores(one: dict) -> str:
    parts = [f"score {one['score']:.2f}"]
    parts += [f"BM25 {one['bm25']:.1f}"] if "bm25" in one else []
    parts += [f"holds {one['shown']:.0%} of the next chunk"] if one.get("shown", 0) >= 0.25 else []
    return " · ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _two_sided(value: float | None, widest: float) -> str:
    """A bar to the right where it helped, to the left where it hurt, and the number."""
    if value is None:
        return "–"
    kind, width = ("helped" if value > 0 else "hurt"), 50 * abs(value) / widest
    return f'<span class="both {kind}"><i style="width:{width:.0f}%"></i></span> {value:+.3f}'


def edit_html(trace: Trace, made: Rewritten, token: int) -> str:
    """What followed from another neighbor: the proof, the strip, the next tokens, both continuations.

    `token` is the one to look at first; where the edit did not move it, the most moved one.
    """
    edit = made.edit
    title = trace.neighbors[edit.chunk][edit.neighbor]["title"]
    reached = range(edit.first, len(trace.tokens))
    asked = token - 1 in reached and edit.kl[token - 1] > STIRRED
    shown = token - 1 if asked else edit.first + int(edit.kl[edit.first :].argmax())
    cut = [f"{part} was cut by {n} tokens" for part, n in zip("NF", made.cut, strict=True) if n]
    warning = note(f"{' and '.join(cut)}: a neighbor has {trace.chunk_len} each.", "warning") if cut else ""
    continued = ""
    if made.goes_on_before or made.goes_on_after:
        continued = (
            '<div class="three two"><section><h3>goes on, before</h3>'
            f"{_sample(made.goes_on_before)}</section><section><h3>goes on, after</h3>"
            f"{_sample(made.goes_on_after)}</section></div>"
        )
    blocks = "".join(_next_tokens(trace, made, i, hidden=i != shown) for i in reached)
    return (
        f'<div class="edited" style="--own:{neighbor_color(edit.neighbor)}">{warning}'
        f"{proof(edit, trace.padding)}"
        f'<div data-picture="edit">{_strip(trace, edit, shown)}</div>{blocks}{continued}'
        f"<details><summary>Old and new text of neighbor {edit.neighbor + 1}, {theirs(title)}</summary>"
        f'<div class="three two"><section><h3>old</h3>{_sample(made.before)}</section>'
        f"<section><h3>new</h3>{_sample(made.after or '(nothing)')}</section></div></details></div>"
    )


def _sample(text: str) -> str:
    return f'<div class="sample" dir="auto">{esc(text)}</div>'


def proof(edit: Edit, padding: int = 0) -> str:
    """The sentence that says whether anything moved that must not, as it was measured."""
    good = "good" if edit.moved_before == 0 else "bad"
    moved = int((edit.kl[edit.first :] > STIRRED).sum())
    return (
        f'<p class="proof {good}"><b>{edit.moved_before} of {edit.first - padding} earlier positions '
        "changed</b> "
        f"(largest difference of a log-probability: {edit.largest_before:.1g}); of the "
        f"{len(edit.kl) - edit.first} that can depend on it, {moved} moved by over {STIRRED} nat.</p>"
    )


def _strip(trace: Trace, edit: Edit, shown: int) -> str:
    """KL of each position as a row of cells: those before the neighbor's readers are set apart."""
    most = max(float(edit.kl.max()), 1e-6)
    cells = []
    for i, value in list(enumerate(edit.kl.tolist()))[trace.padding :]:
        height = 100 * (value / most) ** 0.5
        said = f"after token {i + 1 - trace.padding} {trace.tokens[i]}: {value:.4f} nat"
        inside = f'<i style="height:{height:.0f}%"></i>'
        cells.append(
            f'<span class="early" title="{esc(said)}">{inside}</span>'
            if i < edit.first
            else f'<button type="button" data-position="{i}" aria-pressed="{str(i == shown).lower()}" '
            f'title="{esc(said)}" aria-label="{esc(said)}">{inside}</button>'
        )
    return (
        f'<p class="caption">{term("KL")} of the next-token prediction, before against after the edit; '
        f"highest {most:.3f} nat. Click a bar for its predictions.</p>"
        f'<div class="strip">{"".join(cells)}</div>{saved_as()}'
    )


def _next_tokens(trace: Trace, made: Rewritten, position: int, *, hidden: bool) -> str:
    """The likeliest next tokens after a position: before, after, and without retrieval."""
    names = ("before", "after", "retrieval off")
    lists = []
    for name, ids, likely in zip(
        names, made.edit.top_ids[:, position], made.edit.top_probabilities[:, position], strict=True
    ):
        items = "".join(
            f"<li><span dir='auto'>{esc(word)}</span><i style='width:{100 * p:.0f}%'></i><b>{p:.1%}</b></li>"
            for word, p in top_words(made.words, ids, np.asarray(likely))
        )
        lists.append(f"<section><h4>{name}</h4><ol class='likely'>{items}</ol></section>")
    context = "".join(trace.pieces[max(0, position - 11) : position + 1])
    return (
        f'<div data-after="{position}"{" hidden" if hidden else ""}>'
        f'<p class="caption">What comes after “{theirs("…" + context)}”</p>'
        f'<div class="three">{"".join(lists)}</div></div>'
    )
