"""A study as HTML: how far its parts are, what each seed gave, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retro_demo.evaluation.losses import LEVEL
from retro_demo.render.html_parts import badge, bar, esc, failure, standing, table, term
from retro_demo.server.studies import StudyStatus

PARTS = {
    "base": "a plain lm, the base",
    "retrofit": "a retrofit: the base, frozen, learns to read neighbors",
    "baseline": "the matched baseline: the base trains on without neighbors",
    "reader": "a reader: the pretrained model, frozen, learns to read neighbors",
    "verdict": "the verdict, on held-out documents",
}


def study_status(study: StudyStatus, name: str) -> str:
    """A study as it stands: one bar for all, its parts, and at the end the verdict."""
    head = f"<h3>{esc(name)} {badge(study.job.state)}</h3>{standing(study.job)}"
    if study.result:
        return head + verdict_html(study.result)
    items = "".join(
        f'<li class="{part.state}" style="--share:{100 * part.share:.0f}%">{_words(part.title)}</li>'
        for part in study.parts
    )
    number = next((i for i, part in enumerate(study.parts, 1) if part.state == "now"), len(study.parts))
    words = f"part {number} of {len(study.parts)} · {study.share:.0%} of all"
    return f'{head}{bar(study.share, words)}<ol class="stages">{items}</ol>{failure(study.job)}'


def _words(title: str) -> str:
    name, comma, seed = title.partition(", ")
    return esc(PARTS.get(name, name) + comma + seed)


def verdict_html(result: Mapping[str, Any]) -> str:
    """The verdict, what it stands on in a table of the seeds, and what would change it."""
    against = "no neighbors" if result["against"] == "off" else "matched baseline"
    rows = [
        f"<tr><th>{seed['seed']}</th><td>{_difference(seed['difference'])}</td>"
        f"<td>{_difference(seed['shuffled'])}</td><td>{esc(seed['run'])}</td></tr>"
        for seed in result["seeds"]
    ]
    head = (
        f"<th>seed</th><th>with neighbors minus {against}</th><th>minus {term('shuffled control')}</th>"
        "<th>run</th>"
    )
    unit = (
        f"<p class='caption'>Differences in {term('bits per byte')}, with {LEVEL}% intervals: below 0 "
        "neighbors help. Evaluate has all figures of each run.</p>"
    )
    steps = "".join(f"<li>{esc(step)}</li>" for step in result["next"])
    more = (
        f"<details><summary>What would change this verdict?</summary><ul>{steps}</ul></details>"
        if steps
        else ""
    )
    claim, measured, on = result["verdict"].partition(" Measured on")
    kind = {True: "yes", False: "no"}.get(result["helps"], "")
    said = f'<p class="claim">{esc(claim)}</p><p class="caption">{esc((measured + on).strip())}</p>'
    return f'<div class="verdict {kind}">{said}</div>{table(head, rows)}{unit}{more}'


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    ends = difference["bpb_ci"]
    told = f" ({ends[0]:+.4f} to {ends[1]:+.4f})" if ends else ""
    return f"{difference['bpb']:+.4f}{told}"
