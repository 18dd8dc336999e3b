"""What only the evaluation of a MARGE has to show: its encoder across languages, and beta, as HTML.

Draws from the plain dict of evaluation/marge_evaluate_report.py; the arms are drawn by
render/evaluate_views.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retro_demo.render.views import note, table

PARTS = (("", "all pairs"), ("_same_script", "of one script"), ("_other_script", "of two scripts"))


def across_html(result: Mapping[str, Any]) -> str:
    """How often the encoder finds the same item in another language, beside chance."""
    found = result["across_languages"]
    if not found:
        return note("No held-out item stands in two languages, so there is no recall across languages.")
    rows = [
        f"<tr><th>{words}</th><td>{found[f'recall_at_1{part}']:.1%}</td><td>{found[f'mrr{part}']:.3f}</td></tr>"
        for part, words in PARTS
        if f"recall_at_1{part}" in found
    ]
    caption = (
        f"<p class='caption'>{found['queries']:,} held-out documents look among all documents of each other "
        f"language, held out or not: {found['pairs']:,} pairs, {found['pool']:.1f} candidates on average. By "
        f"chance the first would be right in {found['chance']:.1%}.</p>"
    )
    return caption + table("<th>languages</th><th>recall@1</th><th>mean reciprocal rank</th>", rows)


def beta_html(result: Mapping[str, Any]) -> str:
    """How much relevance weighs, for each layer that reads evidence."""
    rows = [f"<tr><th>{number}</th><td>{one:.3f}</td></tr>" for number, one in enumerate(result["beta"], 1)]
    caption = (
        "<p class='caption'>A passage that is more relevant by 1 gets e<sup>beta</sup> times the "
        "attention; every beta begins as 1.</p>"
    )
    return caption + table("<th>layer with evidence</th><th>beta</th>", rows)
