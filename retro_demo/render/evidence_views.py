"""A MARGE run's evidence as HTML: sentences, and a table behind each picture. Without gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retro_demo.explain.evidence_reading import RANDOM_DRAWS, EvidenceEdit, EvidenceReading
from retro_demo.explain.evidence_run import MargeCorpus
from retro_demo.explain.evidence_sample import Sample
from retro_demo.explain.evidence_series import reindexes
from retro_demo.jobs.jobs import JobStatus
from retro_demo.render.views import esc, language_name, neighbor_color, note, table, term, theirs

WORDS = 400  # characters of a piece of evidence in the list
TABLE_COLUMNS = (
    ("recall@1", "recall_at_1"),
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
    return term(title) if title in ("recall@1", "churn", "resting", "MRR") else esc(title)


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


def matrix_caption(nearest: tuple[int, int], first: tuple[int, int], step: int, count: int) -> str:
    """The finding of the matrix, beside that of the untrained encoder."""
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
        "click on a row, or on a target in the table below, shows what that target reads.</p>"
    )


def matrix_table(values: np.ndarray, relevance: np.ndarray, sample: Sample, source: MargeCorpus) -> str:
    """For each target of the sample its three most relevant documents, with their f and shown value."""
    head = "<th>target</th>" + "".join(
        f"<th>{n} most relevant</th><th>f</th><th>shown</th>" for n in (1, 2, 3)
    )
    names = [source.about(int(i))["name"] for i in sample.ids]
    rows = []
    for row, name in enumerate(names):
        order = np.argsort(np.where(np.isnan(relevance[row]), np.inf, -relevance[row]), kind="stable")[:3]
        cells = "".join(
            f"<td>{theirs(names[at])}</td><td>{relevance[row, at]:.4f}</td><td>{values[row, at]:.4g}</td>"
            for at in order
            if not np.isnan(relevance[row, at])
        )
        show = f'<button type="button" data-target="{int(sample.ids[row])}">{theirs(name)}</button>'
        rows.append(f"<tr><th>{show}</th>{cells}</tr>")
    return table(head, rows)


def map_caption(moved: Mapping[str, Any], step: int) -> str:
    """How to read the map, and what it hides."""
    return (
        f'<p class="caption">Two axes, the {term("PCA", "principal components")} of all kept embeddings at '
        "the first re-index, and the same for every re-index, so that movement means something. They hold "
        f"{moved['share_before']:.0%} of the spread there and {moved['share_after']:.0%} of it before step "
        f"{step:,}: the rest is not to be seen here. A line leads from where a document lay at first to "
        f"where it lies now (on average {moved['moved']:.2f} away, where 2 is the most). RETRO's map would "
        "not move: its embedder is frozen.</p>"
    )


def map_table(moved: Mapping[str, Any], sample: Sample, source: MargeCorpus) -> str:
    rows = []
    for i, before, after in zip(sample.ids, moved["before"], moved["after"], strict=True):
        about = source.about(int(i))
        cells = "".join(f"<td>{value:+.3f}</td>" for value in (*before, *after))
        rows.append(
            f"<tr><th>{theirs(about['name'])}</th><td>{theirs(about['group'])}</td>"
            f"<td>{esc(language_name(about['language']))}</td>{cells}</tr>"
        )
    head = (
        "<th>document</th><th>group</th><th>language</th><th>first x</th><th>y</th><th>now x</th><th>y</th>"
    )
    return table(head, rows)


def target_html(reading: EvidenceReading | None, source: MargeCorpus) -> str:
    """The target's text and what its evidence is worth to it."""
    if reading is None:
        return note("Choose a target: its evidence is found with the weights of the last save, and read.")
    about = source.about(reading.target)
    betas = ", ".join(f"{beta:.3f}" for beta in reading.betas)
    return (
        f'<p class="finding">{_worth(reading)}</p>'
        f'<p class="caption">One target only: <b>Evaluate</b> tells whether it is so over all held-out ones. '
        f"{term('beta')} by layer: {betas}.</p>"
        f'<article class="card"><header><b>{theirs(about["title"])}</b>'
        f"<span>{esc(language_name(about['language']))}</span><span>{theirs(about['name'])}</span></header>"
        f'<p dir="auto">{esc(source.text(reading.target))}</p></article>'
    )


def _worth(reading: EvidenceReading) -> str:
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
    for place, passage in enumerate(reading.ids):
        about, text = source.about(int(passage)), source.text(int(passage))
        same = " · same group" if about["group"] == source.about(reading.target)["group"] else ""
        rows.append(
            f"<tr><th>{place + 1}</th><td>{esc(language_name(about['language']))}</td>"
            f"<td><b>{theirs(about['title'])}</b> <small>{theirs(about['name'])}{same}</small>"
            f'<br><span dir="auto">{esc(text[:WORDS])}</span></td>'
            f"<td>{reading.relevance[place]:+.4f}</td><td>{mass[place]:.1%}</td>"
            f"<td>{reading.without[place]:.4f}</td><td>{reading.effect[place]:+.4f}</td></tr>"
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
        f"<tr><th>{place + 1}</th><td>{reading.relevance[place]:+.4f}</td>"
        + "".join(f"<td>{reading.mass[layer, place]:.2%}</td>" for layer in layers)
        + "</tr>"
        for place in range(len(reading.ids))
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
    """The passages that a MARGE writes from, as generation/marge_writing.py describes them."""
    if not passages:
        return note("Written without any evidence.")
    cards = "".join(
        f'<article class="card" style="--own:{neighbor_color(place)}"><header><b>{place + 1} '
        f"{theirs(one['title'] or one['document'])}</b><span>{esc(language_name(one['language']))}</span>"
        f"<span>{theirs(one['document'])}</span><span>{term('relevance')} {_relevance(one['score'])}</span>"
        "</header>"
        f'<p dir="auto">{esc(one["text"])}</p></article>'
        for place, one in enumerate(passages)
    )
    return f'<p class="caption">Its evidence, found in {milliseconds:.0f} ms.</p>{cards}'


def _relevance(score: float | None) -> str:
    return "not computed: there is no beginning to compare" if score is None else f"{score:+.3f}"


def written_html(prompt: str, text: str, tokens: int | None = None) -> str:
    """What was given and what a MARGE wrote; with the number of tokens once it is done."""
    done = "" if tokens is None else f'<p class="caption">{tokens} tokens written.</p>'
    given = f'<span class="prompt">{esc(prompt)}</span>' if prompt else ""
    return f'<div class="sample" dir="auto"><span class="tokens">{given}</span>{esc(text)}</div>{done}'
