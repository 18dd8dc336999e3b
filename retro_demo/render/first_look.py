"""What stands around a text at first sight, as HTML: findings, how much is copied, an edit to try, a walk.

The chips and the meters say what retrieval did. The walk (assets/walk.js) shows how one token came about,
with the numbers of the trace. All text of others passes through `esc`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from retro_demo.evaluation.copied_text import LONG
from retro_demo.explain.rewriting import copied_shares, is_written
from retro_demo.explain.text import title_of
from retro_demo.explain.tracing import Trace, attention, reading_tokens, spans, summary, why_nothing
from retro_demo.render.html_parts import agreement_words, esc, neighbor_color, note, term, theirs

FEW_LETTERS = 4  # a shorter word may be no name
MADE_UP, MADE_UP_NUMBER = "Atlantis", "1834"  # what no corpus says of it
WORD = re.compile(r"\w[\w'-]*")
MOST_QUERY = 160  # characters of a query in the walk


def findings(trace: Trace | None, off: Sequence[int] | None = None) -> str:
    """What retrieval did to this text in three chips, and how much of it is copied.

    off: the token ids that the run writes without its neighbors, the prompt first; empty: they are being
    written; None: there are none to compare with.
    """
    if trace is None or why_nothing(trace):
        return ""
    got = summary(trace)
    if not got["tokens"]:
        return note("No token of this text could read a neighbor yet. Ask for more tokens.")
    chips = "".join(
        f'<span class="chip {kind}"><b>{got[kind]:.0%}</b> {kind}</span>'
        for kind in ("helped", "hurt", "copied")
    )
    return (
        f'<div class="findings"><div class="chips">{chips}'
        f"<details><summary>What do these mean?</summary>{_meaning(got)}</details></div>"
        f"{_meters(trace, off)}</div>"
    )


def _meaning(got: dict[str, Any]) -> str:
    """The sentences behind the chips."""
    of = {"N": got["loss_off"] - got["loss_n_only"], "F": got["loss_off"] - got["loss_f_only"]}
    alone = ", ".join(f"{term(part)} alone {value:+.3f}" for part, value in of.items())
    return (
        f'<p class="finding">Retrieval helped <b>{got["helped"]:.0%}</b> of the tokens and hurt '
        f"<b>{got['hurt']:.0%}</b> (by over 0.1 {term('nat')}, against the same text with retrieval off; "
        f"see Evaluate for a fair comparison with a {term('matched baseline')}); mean {term('gain')} "
        f"<b>{got['mean_gain']:+.3f}</b> ({alone}). <b>{got['copied']:.0%}</b> are {term('copied')} "
        f"in runs of {LONG} or more. {agreement_words(got['agreement'])}</p>"
    )


def _meters(trace: Trace, off: Sequence[int] | None) -> str:
    """How much was copied from each neighbor, beside the same with retrieval off."""
    given = bool(trace.about.get("given"))
    rows = [_meter("this text" if given else "retrieval on", copied_shares(trace, trace.ids))]
    if off:
        rows.append(_meter("retrieval off", copied_shares(trace, off)))
    elif off is not None:
        rows.append(
            '<div class="meter" role="status"><span>retrieval off</span>'
            '<i class="waits">being written</i></div>'
        )
    return f'<div class="meters">{"".join(rows)}</div>'


def _meter(name: str, shares: Sequence[float]) -> str:
    """One bar: a part for each neighbor, and the rest in the run's own words."""
    own = max(0.0, 1 - sum(shares))
    said = [f"{share:.0%} copied from {k + 1}" for k, share in enumerate(shares) if share > 0]
    words = ", ".join([*said, f"{own:.0%} own words"])
    parts = "".join(
        f'<i style="width:{100 * share:.1f}%;--own:{neighbor_color(k)}"></i>'
        for k, share in enumerate(shares)
        if share > 0
    )
    shown = [
        f'<b style="--own:{neighbor_color(k)}">{k + 1}</b> {share:.0%}'
        for k, share in enumerate(shares)
        if share > 0
    ]
    copied = f"copied from {' '.join(shown)}" if shown else "nothing copied"
    return (
        f'<div class="meter"><span>{name}</span><div class="share" role="img" aria-label="{name}: {words}">'
        f'{parts}</div><span class="said" aria-hidden="true">{copied} · own words {own:.0%}</span></div>'
    )


def edit_to_try(trace: Trace) -> str:
    """A button that changes a word which the text copied, and lets the text be written anew; "" where nothing
    was copied that looks like a name or a number, and for a given text, which stays as it is."""
    if not is_written(trace) or trace.about.get("edited"):
        return ""
    for span in spans(trace):
        if span.length < LONG or span.end <= trace.prompt_tokens:
            continue
        pieces = trace.neighbors[span.chunk][span.neighbor]["pieces"]
        copied = "".join(trace.pieces[max(span.start, trace.prompt_tokens) : span.end])
        halves = "".join(pieces[: trace.chunk_len]), "".join(pieces[trace.chunk_len :])
        if (word := _telling_word(copied, halves)) is None:
            continue
        other = _other_word(word)
        return (
            f'<p class="try"><button type="button" data-act="try" data-chunk="{span.chunk}" '
            f'data-neighbor="{span.neighbor}" data-old="{esc(word)}" data-new="{esc(other)}">'
            f"Try: change <b>{theirs(word)}</b> to <b>{esc(other)}</b></button> and watch the text</p>"
        )
    return ""


def _telling_word(copied: str, halves: Sequence[str]) -> str | None:
    """A word of the copied text that stands whole in the neighbor: one in capitals, else a name, a number."""
    there = {word for half in halves for word in WORD.findall(half)}
    words = [word for word in WORD.findall(copied) if word in there]
    inside = [word for word in words if len(word) >= FEW_LETTERS and word.isalpha()]
    shouted = [word for word in inside if word.isupper()]
    named = [word for word in inside[1:] if word[0].isupper()]  # the first may only begin a sentence
    numbers = [word for word in words if word.isdecimal() and len(word) >= 2]
    return next(iter([*shouted, *numbers, *named, *inside]), None)


def _other_word(word: str) -> str:
    """What no corpus says there, in the same case and as long where it is a number."""
    if word.isdecimal():
        return (MADE_UP_NUMBER * len(word))[: len(word)]
    if word.isupper():
        return MADE_UP.upper()
    return MADE_UP if word[0].isupper() else MADE_UP.lower()


def walk_data(trace: Trace) -> dict[str, Any] | None:
    """How one token came about, for assets/walk.js: the query, what was found, what was read, what followed.

    The token is the word that retrieval helped most. None where nothing was read.
    """
    if why_nothing(trace):
        return None
    gain = np.nan_to_num(trace.numbers.gain)
    places = [
        (gain[i], chunk, row, i)
        for chunk, found in enumerate(trace.neighbors)
        for row, i in enumerate(reading_tokens(trace, chunk))
        if found and i + 1 < len(trace.tokens) and i + 1 >= trace.prompt_tokens
        if any(map(str.isalnum, trace.pieces[i + 1]))
    ]
    if not places:
        return None
    _, chunk, row, i = max(places)
    found = trace.neighbors[chunk]
    start = (chunk + 1) * trace.chunk_len - (trace.about.get("query_tokens") or trace.chunk_len)
    query = "".join(trace.pieces[max(trace.padding, start) : (chunk + 1) * trace.chunk_len])
    weights = attention(trace, None, None)[chunk, row, : len(found)]  # (K, R)
    return {
        "chunk": chunk + 1,
        "token": i + 1,
        "query": query[-MOST_QUERY:],
        "title": title_of(trace.about) if trace.about.get("by_title") else "",
        "before": "".join(trace.pieces[max(trace.padding, i - 30) : i + 1]),
        "neighbors": [
            {
                "title": one["title"] or one["document"],
                "score": round(one["score"], 2),
                "pieces": one["pieces"],
                "weights": [round(float(w), 3) for w in part],
            }
            for one, part in zip(found, weights, strict=True)
        ],
    }
