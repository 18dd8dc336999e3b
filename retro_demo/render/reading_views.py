"""The timeline of what was looked up, and an edited neighbor with all that followed, as HTML.

Like render/views.py, without gradio: all text of others passes through `esc`.
"""

from __future__ import annotations

import numpy as np

from retro_demo.explain.copying import LONG
from retro_demo.explain.editing import Edit
from retro_demo.explain.findings import timeline, top_words
from retro_demo.explain.rewriting import Rewritten
from retro_demo.explain.tracing import Trace, why_nothing
from retro_demo.render.views import esc, neighbor_color, note, table, term, theirs


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
            f'<li style="--own:{neighbor_color(place)}"><b>{place + 1}</b> '
            f"{theirs(one['title'] or one['document'])} <small>{_scores(one)}</small></li>"
            for place, one in enumerate(row["neighbors"])
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
    return said + table(head, rows)


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

    `token` is the one to look at first; where the edit cannot have reached it, the most moved one.
    """
    edit = made.edit
    title = trace.neighbors[edit.chunk][edit.neighbor]["title"]
    reached = range(edit.first, len(trace.tokens))
    shown = token - 1 if token - 1 in reached else edit.first + int(edit.kl[edit.first :].argmax())
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
        f'<div class="edited" style="--own:{neighbor_color(edit.neighbor)}">{warning}{proof(edit)}'
        f"{_strip(trace, edit, shown)}{blocks}{continued}"
        f"<details><summary>Old and new text of neighbor {edit.neighbor + 1}, {theirs(title)}</summary>"
        f'<div class="three two"><section><h3>old</h3>{_sample(made.before)}</section>'
        f"<section><h3>new</h3>{_sample(made.after or '(nothing)')}</section></div></details></div>"
    )


def _sample(text: str) -> str:
    return f'<div class="sample" dir="auto">{esc(text)}</div>'


def proof(edit: Edit) -> str:
    """The sentence that says whether anything moved that must not, as it was measured."""
    good = "good" if edit.moved_before == 0 else "bad"
    moved = int((edit.kl[edit.first :] > 1e-3).sum())
    return (
        f'<p class="proof {good}"><b>{edit.moved_before} of {edit.first} earlier positions changed</b> '
        f"(largest difference of a log-probability: {edit.largest_before:.1g}); of the "
        f"{len(edit.kl) - edit.first} that can depend on it, {moved} moved by over 0.001 nat.</p>"
    )


def _strip(trace: Trace, edit: Edit, shown: int) -> str:
    """KL of each position as a row of cells: those before the neighbor's readers are set apart."""
    most = max(float(edit.kl.max()), 1e-6)
    cells = []
    for i, value in enumerate(edit.kl.tolist()):
        height = 100 * (value / most) ** 0.5
        said = f"after token {i + 1} {trace.tokens[i]}: {value:.4f} nat"
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
        f'<div class="strip">{"".join(cells)}</div>'
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
