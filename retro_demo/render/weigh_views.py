"""What documents are worth to a run, in a sentence and as HTML. Like render/views.py, without gradio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retro_demo.listing import listed
from retro_demo.render.views import esc, note, table, term, theirs


def weighed_words(result: Mapping[str, Any]) -> str:
    """What is lost over all, in sentences."""
    names = listed(result["weighed"], 3)
    read = ""
    if "held_out_chunks" in result:
        read = (
            f"{result['held_out_chunks_finding']:,} of {result['held_out_chunks']:,} held-out chunks find "
            f"{names}. "
        )
    nats = result["nats"]
    if not result["tokens"] or not result["chunks_reading"]:
        return read + f"No chunk of what was read finds {names}, so nothing would be lost."
    lost, gain = nats["without"] - nats["with"], nats["off"] - nats["with"]
    return (
        f"{read}Over the {result['tokens']:,} tokens read, forgetting costs {lost:+.4f} nat a token; all "
        f"neighbors together are worth {gain:+.4f}."
    )


def weighed_html(result: Mapping[str, Any] | None) -> str:
    """The sentence, then the tokens that lose most."""
    if result is None:
        return ""
    rows = [
        f"<tr><td dir='auto'>{esc(row['context'])}<mark>{esc(row['token'])}</mark></td>"
        f"<td>{row['lost']:+.2f}</td><td>{row['log_p_with']:.2f}</td><td>{row['log_p_without']:.2f}</td>"
        f"<td>{row['log_p_off']:.2f}</td><td>{theirs(row['because'])}</td></tr>"
        for row in result["rows"]
        if row["lost"] > 0
    ]
    head = (
        f"<th>token, after what</th><th>{term('nat', 'nats')} lost</th><th>log p with</th><th>without</th>"
        f"<th>{term('retrieval off')}</th><th>because of</th>"
    )
    return note(weighed_words(result)) + (table(head, rows) if rows else "")
