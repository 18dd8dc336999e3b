"""A MARGE run's evidence as HTML and plotly figures, each with a table of the same numbers.

Figures suit a light and a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from retro_demo.explain.marge_history import PassageSample, reindexes
from retro_demo.explain.marge_reading import RANDOM_DRAWS, EvidenceEdit, EvidenceReading, MargeCorpus
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.render import plots
from retro_demo.render.html_parts import (
    color,
    esc,
    label,
    language_name,
    neighbor_color,
    note,
    table,
    term,
    theirs,
)
from retro_demo.render.plots import GRAY, described, figure_layout
from retro_demo.render.wording import GLOSSARY
from retro_demo.tokenizer import WORD

WORDS = 160  # characters of a piece of evidence in the list
BESIDE = 3  # pieces of evidence that stand beside the target
TABLE_COLUMNS = (
    ("recall@1", "recall_at_1"),
    ("words alone", "recall_at_1_words"),
    ("learned part", "recall_at_1_learned"),
    ("one script", "recall_at_1_same_script"),
    ("two scripts", "recall_at_1_other_script"),
    ("MRR", "mrr"),
    ("churn", "churn"),
    ("resting", "resting"),
    ("across languages", "across_languages"),
    ("one group", "same_group"),
    ("by chance", "same_group_by_chance"),
)


def reindex_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each re-index with its figures, the latest first."""
    if not rows:
        return note("Its re-indexes stand here after the first.")
    shown = [(title, key) for title, key in TABLE_COLUMNS if any(key in row for row in rows)]
    head = f"<th>before {term('step')}</th><th>pairs</th>"
    head += "".join(f"<th>{_word(title)}</th>" for title, _ in shown) + "<th>beta</th><th>s</th>"
    body = []
    for row in reversed(rows):
        cells = "".join(f"<td>{_share(row.get(key))}</td>" for _, key in shown)
        betas = ", ".join(f"{beta:.3f}" for beta in row.get("beta", []))
        body.append(
            f"<tr><th>{row['step']:,}</th><td>{row['pairs']:,}</td>{cells}<td>{betas}</td>"
            f"<td>{row.get('seconds', 0):.1f}</td></tr>"
        )
    return table(head, body)


def _word(title: str) -> str:
    return term(title) if title in GLOSSARY else esc(title)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def reindex_log(status: JobStatus) -> str:
    """What the last re-index found, in a sentence, and all of them as a table."""
    rows = reindexes(status)
    if not rows:
        return note("The first re-index comes before the first step.")
    last = rows[-1]
    sentence = (
        f"Re-index before step {last['step']:,}: {last['pairs']:,} pairs of target and evidence, "
        f"{last['targets_resting']:,} targets rest without any"
    )
    if "churn" in last:
        sentence += f", {last['churn']:.0%} of the pairs are new"
    if "recall_at_1" in last:
        sentence += (
            f". Held-out documents find themselves in another language at once in {last['recall_at_1']:.1%} "
            f"of the searches (untrained {rows[0]['recall_at_1']:.1%}, chance {last['chance']:.1%})"
        )
    return f'<p class="finding">{esc(sentence)}.</p>{reindex_table(rows)}'


SKETCHED = (
    " Relevance by words is drawn from kept sketches of the embeddings, right to about 0.07; what a target "
    "reads, below, is exact."
)


def matrix_caption(
    nearest: tuple[int, int], first: tuple[int, int], step: int, count: int, *, sketched: bool = False
) -> str:
    """The finding of the matrix, beside that of the untrained encoder; sketched: its vectors are sketches."""
    if not nearest[1]:
        return note(
            f"Before step {step:,}. No two of these {count} documents are of one group, so there is no right "
            "answer to count. Blank: the target itself, which is never its own evidence."
        )
    return (
        f'<p class="finding">Before step {step:,} the most relevant document is of the target\'s own '
        f"{term('group')} for <b>{nearest[0]} of {nearest[1]}</b> targets; with the untrained encoder "
        f"<b>{first[0]} of {first[1]}</b>.</p>"
        '<p class="caption">A row is a target, a column a document as evidence for it, lines are the borders '
        "between groups or languages. Blank: what may not be its evidence, such as the target itself. A "
        "click on a row, or on a target in the table below, shows what that target reads."
        f"{SKETCHED * sketched}</p>"
    )


def matrix_table(
    values: np.ndarray, relevance: np.ndarray, sample: PassageSample, source: MargeCorpus
) -> str:
    """For each target of the sample its three most relevant documents, with their f and shown value."""
    head = "<th>target</th>" + "".join(
        f"<th>{n} most relevant</th><th>f</th><th>shown</th>" for n in (1, 2, 3)
    )
    names = [source.about(int(i))["name"] for i in sample.ids]
    rows = []
    for row, name in enumerate(names):
        order = np.argsort(np.where(np.isnan(relevance[row]), np.inf, -relevance[row]), kind="stable")[:3]
        cells = "".join(
            f"<td>{theirs(names[at])}</td><td>{relevance[row, at]:.2f}</td><td>{values[row, at]:.2g}</td>"
            for at in order
            if not np.isnan(relevance[row, at])
        )
        show = f'<button type="button" data-target="{int(sample.ids[row])}">{theirs(name)}</button>'
        rows.append(f"<tr><th>{show}</th>{cells}</tr>")
    return table(head, rows)


def target_html(reading: EvidenceReading | None, source: MargeCorpus, tongue: str = "") -> str:
    """What its evidence is worth to the target, and both side by side, in a language ("": as they are)."""
    if reading is None:
        return note("Choose a target: its evidence is found with the weights of the last save, and read.")
    betas = ", ".join(f"{beta:.3f}" for beta in reading.betas)
    group = source.about(reading.target)["group"]
    evidence = "".join(
        _beside(source, int(one), tongue, f"{place} ", group)
        for place, one in enumerate(reading.ids[:BESIDE], start=1)
    )
    return (
        f'<p class="finding">{_gain_of_evidence(reading)}</p>'
        f'<p class="caption">One target only: <b>Evaluate</b> tells whether it is so over all held-out ones. '
        f"{term('beta')} by layer: {betas}.</p>"
        f'<div class="beside"><section><h3>{term("target", "Target")}</h3>'
        f"{_beside(source, reading.target, tongue)}</section>"
        f"<section><h3>{term('evidence', 'Evidence')}, the nearest first</h3>{evidence}</section></div>"
    )


def _beside(source: MargeCorpus, passage: int, tongue: str, before: str = "", group: str = "") -> str:
    """A passage as a card, in the language that is wished where its group has it, its own words behind."""
    about, text = source.about(passage), source.text(passage)
    same = "<span>same group</span>" if group == about["group"] else ""
    other = source.in_language(passage, tongue)
    shown, own = esc(text), ""
    if other is not None:
        shown = esc(source.text(other))
        name = esc(language_name(about["language"]))
        own = f'<details><summary>as it stands, in {name}</summary><p dir="auto">{esc(text)}</p></details>'
    return (
        f'<article class="card"><header><b>{before}{theirs(about["title"])}</b>'
        f"<span>{esc(language_name(about['language']))}</span><span>{theirs(about['name'])}</span>{same}"
        f'</header><p dir="auto">{shown}</p>{own}</article>'
    )


def _gain_of_evidence(reading: EvidenceReading) -> str:
    """What the evidence is worth, apart from what any evidence is worth."""
    said = f"{term('loss', 'Loss')} <b>{reading.loss:.4f}</b> nats a token with its evidence"
    none = f"<b>{reading.loss_none:.4f}</b> with {term('no evidence', 'none')}"
    if reading.loss_random is None:
        return (
            f"{said}, {none} ({reading.loss_none - reading.loss:+.4f}). No other group may be its evidence: "
            "whether that is owed to what the evidence says is not known."
        )
    worth = reading.loss_random - reading.loss
    verdict = "helps" if worth > 0 else "does not help"
    return (
        f"{said}, <b>{reading.loss_random:.4f}</b> with {term('random evidence', 'as many passages')} of "
        f"other groups (mean of {RANDOM_DRAWS} draws), {none}. What it says <b>{verdict}</b> here: "
        f"{worth:+.4f} nats a token; such other evidence is worth "
        f"{reading.loss_none - reading.loss_random:+.4f} against none."
    )


def evidence_table(reading: EvidenceReading, source: MargeCorpus) -> str:
    """The evidence as it is found now: relevance, attention, and the loss of the target without it."""
    mass = reading.mass_of(None)
    rows = []
    for index, passage in enumerate(reading.ids):
        about, text = source.about(int(passage)), source.text(int(passage))
        same = " · same group" if about["group"] == source.about(reading.target)["group"] else ""
        rows.append(
            f"<tr><th>{index + 1}</th><td>{esc(language_name(about['language']))}</td>"
            f"<td><b>{theirs(about['title'])}</b> <small>{theirs(about['name'])}{same}</small>"
            f'<br><span dir="auto">{esc(text[:WORDS])}</span></td>'
            f"<td>{reading.relevance[index]:+.4f}</td><td>{mass[index]:.1%}</td>"
            f"<td>{reading.without[index]:.4f}</td><td>{reading.effect[index]:+.4f}</td></tr>"
        )
    head = (
        f"<th></th><th>language</th><th>evidence</th><th>{term('relevance')} f</th>"
        f"<th>{term('attention')}</th><th>loss without it</th><th>it is worth (nats)</th>"
    )
    return table(head, rows)


def agreement_html(reading: EvidenceReading, layer: int | None) -> str:
    """Does the attention follow the relevance?"""
    rho = reading.agreement(layer)
    where = "on average over the layers" if layer is None else f"in layer {layer + 1}"
    said = (
        f"{term('Spearman')} rank correlation of relevance and attention {where}: <b>ρ = {rho:+.2f}</b>."
        if rho is not None
        else "There are too few pieces of evidence, or all are alike: no rank correlation."
    )
    return (
        f'<p class="finding">{said}</p><p class="caption">beta times f is added to the attention scores, so '
        "some agreement is built in; what the tokens say adds the rest. Numbers are places in the list.</p>"
    )


def agreement_table(reading: EvidenceReading) -> str:
    layers = range(len(reading.mass))
    head = "<th></th><th>f</th>" + "".join(f"<th>layer {layer + 1}</th>" for layer in layers)
    rows = [
        f"<tr><th>{index + 1}</th><td>{reading.relevance[index]:+.4f}</td>"
        + "".join(f"<td>{reading.mass[layer, index]:.2%}</td>" for layer in layers)
        + "</tr>"
        for index in range(len(reading.ids))
    ]
    return table(head, rows)


def edit_html(edit: EvidenceEdit) -> str:
    """What the edited evidence did to the target."""
    before, after = edit.loss
    f_before, f_after = edit.relevance
    words = "removed" if f_after is None else "changed"
    cut = f" Only the first {edit.tokens} tokens fit a passage: {edit.cut} were cut off." if edit.cut else ""
    f_words = (
        ""
        if f_after is None
        else f" Its relevance went from {f_before:+.4f} to {f_after:+.4f}"
        f" ({f_after - f_before:+.4f}), its share of attention from {edit.mass[0]:.1%} to {edit.mass[1]:.1%}."
    )
    return (
        f'<p class="proof" role="status">With piece {edit.piece + 1} {words}, the target\'s loss went from '
        f"{before:.4f} to {after:.4f} nats a token (<b>{after - before:+.4f}</b>).{f_words}{cut}</p>"
    )


def found_evidence(passages: Sequence[Mapping[str, Any]], milliseconds: float) -> str:
    """The passages that a MARGE writes from, as generation/marge.py describes them."""
    if not passages:
        return note("Written without any evidence.")
    cards = "".join(
        f'<article class="card" style="--own:{neighbor_color(index)}"><header><b>{index + 1} '
        f"{theirs(one['title'] or one['document'])}</b><span>{esc(language_name(one['language']))}</span>"
        f"<span>{theirs(one['document'])}</span><span>{term('relevance')} {_relevance(one['score'])}</span>"
        "</header>"
        f'<p dir="auto">{esc(one["text"])}</p></article>'
        for index, one in enumerate(passages)
    )
    return f'<p class="caption">Its evidence, found in {milliseconds:.0f} ms.</p>{cards}'


def _relevance(score: float | None) -> str:
    return "not computed: there is no beginning to compare" if score is None else f"{score:+.3f}"


def written_html(prompt: str, text: str, evidence: Sequence[str], tokens: int | None = None) -> str:
    """What was given and what a MARGE wrote, the words that stand in its evidence marked.

    `tokens`: how many it wrote, once it is done.
    """
    there = {word.lower() for one in evidence for word in WORD.findall(one)}
    parts, at, words, found = [], 0, 0, 0
    for word in WORD.finditer(text):
        words += 1
        if word[0].lower() in there:
            found += 1
            parts += [esc(text[at : word.start()]), f"<mark>{esc(word[0])}</mark>"]
            at = word.end()
    shown = "".join([*parts, esc(text[at:])])
    done = "" if tokens is None else f"{tokens} tokens written. "
    if tokens is not None and evidence:
        done += f"<mark>Marked</mark>: {found} of {words} words stand in its evidence."
    given = f'<span class="prompt">{esc(prompt)}</span>' if prompt else ""
    said = f'<p class="caption">{done}</p>' if done else ""
    return f'<div class="sample" dir="auto"><span class="tokens">{given}</span>{shown}</div>{said}'


BLUE = [[0.0, "rgba(47,111,190,.03)"], [0.35, "rgba(47,111,190,.28)"], [1.0, "rgba(47,111,190,1)"]]
TWO_SIDED = [[0.0, "rgba(214,103,28,1)"], [0.5, "rgba(128,135,148,.04)"], [1.0, "rgba(47,111,190,1)"]]
LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
MARGINS = {"l": 54, "r": 12, "t": 12, "b": 44}


def matrix_figure(
    values: np.ndarray,
    relevance: np.ndarray,
    sample: PassageSample,
    source: MargeCorpus,
    *,
    kind: str,
    top: float,
) -> go.Figure:
    """Targets (rows) x evidence (columns) as ranks (dark: 1) or centered values (full color at `top`)."""
    count = len(sample.ids)
    names = [label(source.about(int(i))["name"]) for i in sample.ids]
    if kind == "ranks":
        ticks = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= count]
        z, limits, scale = -np.log2(values), (-float(np.log2(max(2, count))), 0.0), BLUE
        bar = {"tickvals": [-float(np.log2(n)) for n in ticks], "ticktext": [str(n) for n in ticks]}
        told = "rank %{customdata[0]:.0f}"
    else:
        z, limits, scale, bar, told = values, (-top, top), TWO_SIDED, {}, "centered %{customdata[0]:+.4f}"
    figure = go.Figure(
        go.Heatmap(
            z=z.astype(np.float32),
            x=names,
            y=names,
            zmin=limits[0],
            zmax=limits[1],
            colorscale=scale,
            customdata=np.dstack([values, relevance]).astype(np.float32),
            hovertemplate="target %{y}<br>evidence %{x}<br>"
            + told
            + ", f = %{customdata[1]:.4f}<extra></extra>",
            colorbar=bar | {"thickness": 10, "outlinewidth": 0, "title": {"text": kind, "side": "right"}},
        )
    )
    borders = sample.borders(source.passages)
    for index in borders:
        line = {"color": GRAY, "width": 1}
        figure.add_shape(type="line", x0=index - 0.5, x1=index - 0.5, y0=-0.5, y1=count - 0.5, line=line)
        figure.add_shape(type="line", y0=index - 0.5, y1=index - 0.5, x0=-0.5, x1=count - 0.5, line=line)
    ends = [0, *borders, count]
    starts, middles = ends[:-1], [(a + b - 1) / 2 for a, b in zip(ends[:-1], ends[1:], strict=True)]
    words = [block_name(source, sample, start) for start in starts] if borders else []
    axis = {
        "type": "category",
        "tickmode": "array",
        "tickvals": middles if borders else [],
        "ticktext": [label(word) for word in words],
        "range": [-0.5, count - 0.5],
    }
    figure_layout(figure, height=560, margin={"l": 74, "r": 8, "t": 12, "b": 74}, showlegend=False)
    figure.update_xaxes(**axis, title="evidence", tickangle=-45, showgrid=False)
    figure.update_yaxes(**axis | {"range": [count - 0.5, -0.5]}, title="target", showgrid=False)
    plain = [source.about(int(i))["name"] for i in sample.ids]
    # a click on a row shows that target (assets/plots.js, assets/matrix.js)
    return described(figure, plots.matrix_words(relevance, plain), targets=sample.ids.tolist())


def full_color(values: np.ndarray) -> float:
    """Where the colors of centered values are full: 99 of 100 of them stay below."""
    known = np.abs(values[~np.isnan(values)])
    return max(float(np.quantile(known, 0.99)), 1e-6) if len(known) else 1.0


def block_name(source: MargeCorpus, sample: PassageSample, index: int) -> str:
    """What the block that begins at a place of the sample is called: its group or language."""
    about = source.about(int(sample.ids[index]))
    name = about["group"] if sample.order == "group" else language_name(about["language"])
    return name if len(name) <= 14 else "…" + name[-13:]


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str, key: str
) -> go.Figure:
    """Lines with dots; gray and named at the line are those of chance (dotted) and the untrained (dashed)."""
    figure = go.Figure()
    drawn = 0
    for name, points in series.items():
        if not points:
            continue
        plain = "chance" in name or name.startswith(("untrained", "words alone"))
        x, y = np.array(points, dtype=np.float32).T
        figure.add_scatter(
            x=x,
            y=y,
            name=label(name),
            mode="lines" if plain else "lines+markers",
            line={
                "color": GRAY if plain else color(drawn),
                "width": 1.5,
                "dash": "solid" if not plain else "dot" if "chance" in name else "dash",
            },
            marker={"size": 7, "symbol": SYMBOLS[drawn % len(SYMBOLS)]},
            hovertemplate=f"{label(name)}, step %{{x}}: %{{y:.3f}}<extra></extra>",
            showlegend=not plain,
        )
        drawn += not plain
        if plain:  # a legend of all lines would leave little of the picture on a phone
            at, side = (-1, "right") if "chance" in name else (0, "left")
            figure.add_annotation(
                x=x[at], y=y[at], text=label(name), xanchor=side, yanchor="bottom", showarrow=False
            )
    figure.update_yaxes(automargin=True)
    return figure_layout(
        described(figure, plots.lines_words(y_title, x_title, series)),
        height=260,
        uirevision=key,
        margin=MARGINS,
        xaxis_title=x_title,
        yaxis_title=y_title,
        legend=LEGEND,
        showlegend=True,
    )


def agreement_figure(reading: EvidenceReading, source: MargeCorpus, layer: int | None) -> go.Figure:
    """Relevance of each piece of evidence against the attention that it received."""
    names = [label(source.about(int(i))["name"]) for i in reading.ids]
    figure = go.Figure()
    figure.add_scatter(
        x=reading.relevance,
        y=reading.mass_of(layer),
        mode="markers+text",
        text=[str(index + 1) for index in range(len(names))],
        textposition="top center",
        customdata=names,
        marker={"color": color(0), "size": 10},
        hovertemplate="%{customdata}<br>f = %{x:.4f}, mass %{y:.1%}<extra></extra>",
    )
    figure_layout(
        figure,
        height=300,
        margin=MARGINS,
        xaxis_title="relevance f",
        yaxis_title="share of attention",
        showlegend=False,
    )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    words = plots.agreement_words(reading.relevance, reading.mass_of(layer), reading.agreement(layer))
    return described(figure, words)


def heatmap_figure(weights: np.ndarray, rows: Sequence[str], columns: Sequence[str], first: int) -> go.Figure:
    """Attention (tokens written, tokens of the evidence); rows are numbered from `first`."""
    figure = go.Figure(
        go.Heatmap(
            z=weights.astype(np.float32),
            colorscale=BLUE,
            zmin=0,
            zmax=max(float(weights.max(initial=0)), 1e-6),
            x=[f"{index + 1} {label(piece)}" for index, piece in enumerate(columns)],
            y=[f"{first + index} {label(piece)}" for index, piece in enumerate(rows)],
            hovertemplate="writing %{y}<br>reads %{x}<br>%{z:.4f} of its attention<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0},
        )
    )
    figure_layout(
        figure, height=120 + 15 * len(rows), margin={"l": 96, "r": 8, "t": 8, "b": 90}, showlegend=False
    )
    plain = {
        "type": "category",
        "showgrid": False,
        "tickfont": {"size": 10, "family": "ui-monospace, monospace"},
    }
    figure.update_xaxes(**plain, tickangle=-60)
    figure.update_yaxes(**plain, autorange="reversed")
    return described(figure, plots.heatmap_words(weights, rows, columns))
