"""What a MARGE run tells while it trains: its re-indexes and beta, below the loss on the Train tab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from retro_demo.explain.evidence_series import beta_series, pair_series, recall_series, reindexes
from retro_demo.jobs.jobs import JobStatus
from retro_demo.render import evidence_figures, evidence_views, views


@dataclass(frozen=True)
class EvidenceLive:
    """The components of the view; `values` fills them, `hidden` is for runs of other models."""

    outputs: list[Any]

    @property
    def hidden(self) -> list[Any]:
        return [gr.Column(visible=False)] + [gr.skip()] * (len(self.outputs) - 1)

    def values(self, status: JobStatus, run: str) -> list[Any]:
        """Values of `outputs` for a run as it stands."""
        rows = reindexes(status)
        found = recall_series(rows)
        drawn = evidence_figures.curves(found, "step", "recall@1, MRR", run)
        return [
            gr.Column(visible=True),
            gr.Column(visible=bool(rows)),  # before the first re-index there is nothing to draw
            gr.Plot(drawn, visible=True) if any(found.values()) else gr.Plot(visible=False),
            evidence_figures.curves(pair_series(rows), "step", "share", run),
            evidence_figures.curves(beta_series(status), "step", "beta", run),
            evidence_views.reindex_log(status),
        ]


def evidence_live() -> EvidenceLive:
    """Build the view."""
    with gr.Column(visible=False, elem_id="marge-live") as inside:
        gr.HTML(
            f"<h3>What its {views.term('re-index', 're-indexes')} found</h3><p class='caption'>"
            f"{views.term('recall@1')} and {views.term('MRR')} of held-out documents in other languages; the "
            "Evidence tab shows the documents.</p>"
        )
        with gr.Column(visible=False) as pictures:
            recall = gr.Plot(show_label=False, container=False, elem_id="train-recall")
            pairs = gr.Plot(show_label=False, container=False, elem_id="train-pairs")
            gr.HTML(f"<h3>{views.term('beta')}, layer by layer</h3>")
            betas = gr.Plot(show_label=False, container=False, elem_id="train-beta")
        log = gr.HTML(elem_id="reindex-log")
    return EvidenceLive([inside, pictures, recall, pairs, betas, log])
