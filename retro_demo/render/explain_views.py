"""The linked view of a trace as HTML: text, neighbors, attention, and the numbers behind them.

assets/explain.js and assets/heatmap.js tie the parts together in the browser; what they need lies
in the page as JSON. Like render/views.py, without gradio: all text of others passes through `esc`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import numpy as np

from retro_demo.explain.copying import LONG, Span
from retro_demo.explain.findings import spans, summary, token_rows
from retro_demo.explain.tracing import Trace, attention, mass, why_nothing
from retro_demo.render.views import esc, neighbor_color, note, passage, table, term, theirs

GAIN_SCALES = (0.5, 1, 2, 4)  # nat, where the colors are full: the first that most gains stay within
EFFECT_OF_RANKS = "The effect is that of all neighbors of the same rank in the text, not of this one alone."
AGREES, TELLS = 0.7, 0.3  # rank correlations: from here on attention agrees with effect, or in part
USED = 0.05  # nat: from this effect on a token is said to have used a neighbor


def linked(trace: Trace | None, chosen: int | None = None) -> str:
    """The whole view: the finding, the text by chunks, and beside it the neighbors of each chunk."""
    if trace is None:
        return note("Nothing written yet. Give a prompt and press Generate, or explain a text of yours.")
    numbers = range(len(trace.tokens) // trace.chunk_len + 1)
    copied, shares = spans(trace), mass(trace)
    blocks = "".join(_chunk(trace, number, copied) for number in numbers)
    found = "".join(_found(trace, number, shares) for number in numbers)
    first = best_token(trace) if chosen is None else chosen
    return (
        f'<div class="linked" data-chosen="{first}">{finding(trace)}{_tools(trace)}'
        f'<div class="sides"><div class="text">{blocks}</div>'
        f'<div class="beside"><div class="token-panel" aria-live="polite"></div>{found}</div></div>'
        f"{_data(token_data(trace))}</div>"
    )


def _data(values: dict[str, Any]) -> str:
    """Values as JSON for the scripts; the stamp tells them that there are new ones."""
    text = json.dumps(values, ensure_ascii=False)
    stamp = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f'<div class="data" data-stamp="{stamp}" hidden>{esc(text)}</div>'


def best_token(trace: Trace) -> int:
    """The token to show first: the end of the longest copy, else where retrieval helped most."""
    long = [span for span in spans(trace) if span.length >= LONG]
    if long:
        return max(long, key=lambda span: span.end - span.start).end - 1
    gain = np.nan_to_num(trace.numbers.gain)
    return min(int(gain.argmax()) + 1, len(trace.tokens) - 1) if trace.neighbors else 0


def finding(trace: Trace) -> str:
    """The sentence that says what retrieval did to this text."""
    if reason := why_nothing(trace):
        return note(reason)
    got = summary(trace)
    if not got["tokens"]:
        return note("No token of this text could read a neighbor yet. Ask for more tokens.")
    of = {"N": got["loss_off"] - got["loss_n_only"], "F": got["loss_off"] - got["loss_f_only"]}
    alone = ", ".join(f"{term(part)} alone {value:+.3f}" for part, value in of.items())
    return (
        f'<p class="finding">Retrieval helped <b>{got["helped"]:.0%}</b> of the tokens and hurt '
        f"<b>{got['hurt']:.0%}</b> (by over 0.1 {term('nat')}, against the same text with retrieval off; "
        f"what it is worth beside a matched baseline is told on Evaluate); mean {term('gain')} "
        f"<b>{got['mean_gain']:+.3f}</b> ({alone}). <b>{got['copied']:.0%}</b> are {term('copied')} "
        f"in runs of {LONG} or more. {agreement_words(got['agreement'])}</p>"
    )


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
        words = f"Attention tells little of {effect}"
    else:
        words = f"Attention runs against {effect}: the neighbors that were looked at most helped least"
    return f"{words} (<b>ρ = {rho:.2f}</b>)."


def _tools(trace: Trace) -> str:
    """What the colors mean, and the choice between them."""
    names = ("gain", "copy", "surprise", "entropy") if trace.neighbors else ("surprise",)
    buttons = "".join(
        f'<button type="button" data-by="{name}" aria-pressed="{str(name == names[0]).lower()}">{name}'
        "</button>"
        for name in names
    )
    return (
        f'<div class="tools"><span>color by</span><div class="switch" role="group" aria-label="Color by">'
        f'{buttons}</div><div class="scale" aria-live="polite"></div></div>'
    )


def _chunk(trace: Trace, number: int, copied: list[Span]) -> str:
    start, end = number * trace.chunk_len, min((number + 1) * trace.chunk_len, len(trace.tokens))
    under = {t: span for span in copied for t in range(span.start, span.end)}
    tokens = []
    for t in range(start, end):
        classes, style = ["prompt"] if t < trace.prompt_tokens else [], ""
        if t in under and under[t].length > 1:
            classes.append("copied" if under[t].length >= LONG else "echo")
            style = f' style="--own:{neighbor_color(under[t].neighbor)}"'
        kind = f' class="{" ".join(classes)}"' if classes else ""
        tokens.append(f'<span data-t="{t}" tabindex="-1"{kind}{style}>{esc(trace.pieces[t])}</span>')
    if end == len(trace.tokens) and number == end // trace.chunk_len:
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
            "The first chunk is written before anything can be looked up. The second one reads what the "
            "first one found."
        )
    elif reason := why_nothing(trace, number - 1):
        inside = note(reason)
    else:
        places = range(len(trace.neighbors[number - 1]))
        cards = "".join(_card(trace, number - 1, place, shares[:, place]) for place in places)
        inside = (
            f'<p class="caption">Found with the text of chunk {number}, read while chunk {number + 1} was '
            f"written. Click a title to see which tokens used it. {EFFECT_OF_RANKS}</p>{cards}"
        )
    return f'<section class="found" data-of="{number}" hidden>{inside}</section>'


def _card(trace: Trace, chunk: int, place: int, shares: np.ndarray) -> str:
    """One neighbor: its attention beside its effect, N and F token by token, and what can be done to it."""
    neighbor = trace.neighbors[chunk][place]
    readers = range(
        (chunk + 1) * trace.chunk_len - 1, min((chunk + 2) * trace.chunk_len - 1, len(trace.tokens))
    )
    share = float(shares[readers].mean())
    known = trace.numbers.shapley[readers, place]
    known = known[~np.isnan(known)]
    effect = f"{known.mean():+.3f}" if len(known) else "–"
    half = trace.chunk_len
    parts = [
        "".join(f'<span data-r="{r}">{esc(neighbor["pieces"][r])}</span>' for r in range(start, start + half))
        for start in (0, half)
    ]
    after = parts[1] if neighbor["continuation"] else "(the document ends here)"
    buttons = "".join(
        f'<button type="button" data-act="{act}" title="{words}">{act}</button>'
        for act, words in (
            ("edit", "Change its text and see what follows"),
            ("drop", "Read the text without it"),
            ("swap", "Read another chunk in its place"),
        )
    )
    return (
        f'<article class="card" data-chunk="{chunk}" data-neighbor="{place}" '
        f'style="--own:{neighbor_color(place)}"><header>'
        f'<button type="button" class="name" data-act="used" aria-pressed="false">{place + 1} '
        f"{theirs(neighbor['title'] or neighbor['document'])}</button>"
        f"<span>{term('score')} {neighbor['score']:.2f}</span>"
        f'<span class="mass">{term("mass")} {share:.0%}</span>'
        f'<span class="bar"><i style="width:{100 * min(1, share):.0f}%"></i></span>'
        f"<span>{term('effect')} <b>{effect}</b></span></header>"
        f"{passage('N', parts[0])}{passage('F', after)}"
        f'<footer class="acts">{buttons}</footer></article>'
    )


def token_data(trace: Trace) -> dict[str, Any]:
    """What the browser needs for each token, by the token's own number (the first has no losses)."""
    rows = token_rows(trace)
    numbers = trace.numbers
    return {
        "chunkLen": trace.chunk_len,
        "labels": trace.tokens,
        "colors": [neighbor_color(place) for place in range(trace.neighbor_tokens.shape[1])],
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
        "p": np.round(numbers.top_probabilities, 4).tolist(),
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


def heat(trace: Trace | None, layer: int | None = None, head: int | None = None) -> str:
    """The attention of all chunks for heatmap.js, which draws the chosen one: a byte a weight."""
    if trace is None or why_nothing(trace):
        return ""
    weights = attention(trace, layer, head)  # (L, C, K, R)
    top = max(float(np.quantile(weights, 0.999)), 1e-6)
    scaled = np.clip(weights / top * 255, 0, 255).round().astype(np.uint8)
    data = {
        "shape": scaled.shape,
        "top": round(top, 4),
        "colors": [neighbor_color(place) for place in range(scaled.shape[2])],
        "labels": trace.tokens,
        "neighbors": [
            [{"title": one["title"] or one["document"], "tokens": one["tokens"]} for one in found]
            for found in trace.neighbors
        ],
        "weights": base64.b64encode(scaled.tobytes()).decode(),
    }
    return (
        '<div class="heat"><div class="panels"></div><p class="reading caption" aria-live="polite"></p>'
        f"{_data(data)}</div>"
    )


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
    for row in token_rows(trace):
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
            f"<tr><td>{row['token'] + 1}</td><th>{theirs(trace.tokens[row['token']])}</th>{cells}</tr>"
        )
    return table(head, rows)
