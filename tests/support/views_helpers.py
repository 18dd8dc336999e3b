"""What tests of views share with others."""

from __future__ import annotations

import numpy as np
import torch

from retro_demo.events import Retrieved
from retro_demo.explain.attribution import Numbers
from retro_demo.explain.edits import Edit, Rewritten
from retro_demo.explain.text import Writing
from retro_demo.explain.tracing import Trace
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.render import first_look, html_parts, job_views, trace_views

CANARY = "<img src=x onerror=alert(1)>{{x}}${y}"


C, K, HEADS = 4, 2, 3


def neighbor(title: str = CANARY) -> dict:
    return {
        "chunk": 5,
        "document": CANARY,
        "title": title,
        "score": 0.5,
        "bm25": 3.0,
        "text": CANARY,
        "continuation": CANARY,
        "tokens": [CANARY] * (2 * C),
        "pieces": [CANARY] * (2 * C),
    }


def small_trace(num_tokens: int = 11, **about) -> Trace:
    """Tokens 3, 4, 5, ...; the second neighbor of the first chunk holds tokens 4 to 6 in its F."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    num_chunks = num_tokens // C
    weights = torch.rand(2, num_chunks, HEADS, C, K, 2 * C)
    weights = weights / weights.sum(dim=(-1, -2), keepdim=True)
    read = rng.integers(50, 60, (num_chunks, K, 2 * C))
    ids = list(range(3, 3 + num_tokens))
    read[0, 1, C : C + 3] = ids[4:7]
    losses = [np.append(rng.uniform(0.5, 4, num_tokens - 1), np.nan) for _ in range(4)]
    shapley = np.stack([0.75 * (losses[1] - losses[0]), 0.25 * (losses[1] - losses[0])], axis=1)
    top = rng.integers(0, 9, (2, num_tokens, 5)).astype(np.int32)
    return Trace(
        about={"run": CANARY, "prompt": CANARY, "config": {"seed": 7, "retrieval": "on"}} | about,
        chunk_len=C,
        prompt_tokens=3,
        ids=ids,
        tokens=[CANARY] * num_tokens,
        pieces=[CANARY] * num_tokens,
        probabilities=[0.5] * (num_tokens - 3),
        neighbors=[[neighbor(), neighbor("")] for _ in range(num_chunks)],
        layers=[2, 4],
        words=dict.fromkeys(range(9), CANARY),
        weights=weights,
        neighbor_tokens=read,
        numbers=Numbers(*losses, shapley, top, np.full(top.shape, 0.1, np.float32)),
    )


def status(*events: dict, state: str = "running") -> JobStatus:
    return JobStatus(state, list(events), CANARY)


def step(number: int) -> dict:
    return {"event": "step", "step": number, "loss": 5.0, "lr": 0.1, "tokens_per_second": 100.0}


TRACE = small_trace()


STATS = {
    "documents": 3,
    "chunks": 9,
    "tokens": 90,
    "bytes": 900,
    "bytes_per_token": 3.0,
    "vocabulary": 300,
    "held_out_documents": 1,
    "exact_duplicates": 0,
    "near_duplicates": 1,
    "duplicate_examples": [[CANARY, CANARY, 0.9]],
    "chunks_short_of_neighbors": 0,
    "document_tokens": [10, 30, 50],
    "held_out": [False, True, False],
    "index": CANARY,
    "device": CANARY,
    "embedder": CANARY,
    "seconds": 1.0,
    "warnings": [CANARY],
    "chunk_len": 4,
}


EVALUATED = {
    "event": "evaluated",
    "step": 1,
    "arms": {
        "on": {"nats": 5.0, "bpb": 2.0, "tokens": 10},
        "off": {"nats": 5.5, "bpb": 2.1, "tokens": 10},
    },
    "sample": CANARY,
}


EDITED = Rewritten(
    Edit(
        0,
        1,
        np.zeros(2 * C),
        np.zeros(2 * C),
        np.append(np.zeros(C - 1), np.ones(8)),
        C - 1,
        0,
        0.0,
        np.zeros((3, 11, 5), np.int32),
        np.full((3, 11, 5), 0.1),
    ),
    {0: CANARY},
    CANARY,
    CANARY,
    [0, 3],
    CANARY,
    CANARY,
)


WRITING = Writing([CANARY] * 6, 3, C, [Retrieved(0, [neighbor()], 1.0)], 2.0)


PAGES = {
    "linked": lambda: trace_views.linked(TRACE),
    "findings": lambda: first_look.findings(TRACE, TRACE.ids) + trace_views.linked(TRACE, before=[]),
    "heat": lambda: trace_views.heatmap(TRACE),
    "numbers": lambda: trace_views.token_table(TRACE),
    "timeline": lambda: trace_views.timeline_html(TRACE),
    "edit": lambda: trace_views.edit_html(TRACE, EDITED, 5),
    "writing": lambda: html_parts.growing_text(WRITING),
    "sides": lambda: html_parts.sides_html({"on": WRITING}),
    "intro": lambda: html_parts.intro(TRACE, example=True),
    "given": lambda: html_parts.intro(small_trace(given=True, source=CANARY, database=CANARY), example=False),
    "trail": lambda: html_parts.breadcrumb(
        CANARY, STATS, CANARY, job_views.retrieval_gain(status(EVALUATED), None)
    ),
    "found": lambda: html_parts.found_html([neighbor()]),
    "note": lambda: html_parts.note(CANARY),
    "statistics": lambda: job_views.corpus_statistics(STATS),
    "build": lambda: job_views.build_status(
        status({"event": "failed", "error": CANARY}, state="failed"), CANARY
    ),
    "run": lambda: job_views.run_status(status(step(1), state="interrupted"), CANARY, 10, None),
    "arms": lambda: job_views.arms_html(status(EVALUATED)),
    "corpora": lambda: job_views.corpora_table([(CANARY, "finished", 3, 10)]),
    "runs": lambda: job_views.runs_table([(CANARY, "failed", CANARY, CANARY, 10)]),
}
