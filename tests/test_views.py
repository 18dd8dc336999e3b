"""Views: all text of others is escaped, and the numbers shown are those of the trace."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from retro_demo import figures, job_views, tracing, views
from retro_demo.events import Retrieved
from retro_demo.glossary import GLOSSARY
from retro_demo.jobs import JobStatus
from retro_demo.tracing import Trace
from retro_demo.writing import Writing, export_trace

CANARY = "<img src=x onerror=alert(1)>{{x}}${y}"
C, K, HEADS = 4, 2, 3


def neighbor(title: str = CANARY) -> dict:
    return {
        "chunk": 5,
        "document": CANARY,
        "title": title,
        "score": 0.5,
        "text": CANARY,
        "continuation": CANARY,
        "tokens": [CANARY] * (2 * C),
    }


def small_trace(num_tokens: int = 11, **about) -> Trace:
    num_chunks = num_tokens // C
    weights = torch.rand(2, num_chunks, HEADS, C, K, 2 * C)
    weights = weights / weights.sum(dim=(-1, -2), keepdim=True)
    return Trace(
        about={"run": CANARY, "prompt": CANARY, "config": {"seed": 7, "retrieval": "on"}} | about,
        chunk_len=C,
        prompt_tokens=3,
        tokens=[CANARY] * num_tokens,
        probabilities=[0.5] * (num_tokens - 3),
        neighbors=[[neighbor(), neighbor("")] for _ in range(num_chunks)],
        layers=[2, 4],
        weights=weights,
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
WRITING = Writing([CANARY] * 6, 3, C, [Retrieved(0, [neighbor()], 1.0)], 2.0)
PAGES = {
    "text": lambda: views.trace_text(TRACE, 0),
    "writing": lambda: views.writing_html(WRITING),
    "neighbors": lambda: views.neighbors_html(TRACE, 0, tracing.attention(TRACE, 0, None, None)),
    "numbers": lambda: views.attention_table(TRACE, 0, tracing.attention(TRACE, 0, 2, 1)),
    "intro": lambda: views.intro(TRACE, example=True),
    "trail": lambda: views.trail(CANARY, STATS, CANARY, 0.1),
    "found": lambda: views.found_html([neighbor()]),
    "note": lambda: views.note(CANARY),
    "statistics": lambda: job_views.corpus_statistics(STATS),
    "build": lambda: job_views.build_status(
        status({"event": "failed", "error": CANARY}, state="failed"), CANARY
    ),
    "run": lambda: job_views.run_status(status(step(1), state="interrupted"), CANARY, 10, 64),
    "arms": lambda: job_views.arms_html(status(EVALUATED)),
    "corpora": lambda: job_views.corpora_table([(CANARY, "finished", 3, 10)]),
    "runs": lambda: job_views.runs_table([(CANARY, "failed", CANARY, CANARY, 10)]),
}


@pytest.mark.parametrize("page", PAGES)
def test_text_of_others_is_shown_and_never_markup(page):
    made = PAGES[page]()

    assert "&lt;img src=x onerror=alert(1)&gt;" in made
    assert "<img" not in made
    assert "{{" not in made
    assert "${" not in made


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.heatmap(TRACE, 0, tracing.attention(TRACE, 0, None, None)),
        lambda: figures.loss_curve(status(step(1), EVALUATED), CANARY),
    ],
)
def test_labels_of_figures_hold_no_markup(figure):
    layout = figure().to_plotly_json()
    layout["layout"].pop("uirevision", None)

    assert "<img" not in json.dumps(layout, default=lambda a: getattr(a, "tolist", str)())


def test_the_shares_of_the_neighbors_sum_to_one():
    weights = tracing.attention(TRACE, 1, None, None)

    assert tracing.shares(weights).sum() == pytest.approx(1.0)


def test_a_layer_and_a_head_are_those_of_the_trace():
    expected = TRACE.weights[1, 0, 2].numpy()

    assert np.array_equal(tracing.attention(TRACE, 0, 4, 2), expected)


def test_reading_tokens_are_the_last_of_the_chunk_and_those_that_follow():
    assert list(tracing.reading_tokens(TRACE, 0)) == [3, 4, 5, 6]
    assert list(tracing.reading_tokens(TRACE, 1)) == [7, 8, 9, 10]
    assert list(tracing.reading_tokens(small_trace(8), 1)) == [7]


def test_the_heatmap_has_a_panel_a_neighbor_with_a_row_a_reading_token():
    figure = figures.heatmap(TRACE, 1, tracing.attention(TRACE, 1, None, None))

    assert [panel.z.shape for panel in figure.data] == [(C, 2 * C)] * K


@pytest.mark.parametrize(
    ("about", "said"),
    [({"model": "lm"}, "plain language model"), ({"config": {"retrieval": "off"}}, "off")],
)
def test_text_without_neighbors_says_why(about, said):
    bare = Trace({"run": "a"} | about, C, 3, ["a"] * 9, [0.5] * 6, [], [], torch.zeros(0))

    assert said in views.neighbors_html(bare, 0, None)


def test_a_chunk_that_was_not_full_says_so():
    assert "not full" in tracing.why_nothing(TRACE, 2)


def test_a_loss_curve_of_many_steps_is_thinned():
    long = status(*[step(number) for number in range(1, 5001)])

    points = sum(len(line.x) for line in figures.loss_curve(long, "run").data)

    assert points <= figures.MOST_POINTS
    assert figures.loss_curve(long, "run").data[0].x[-1] == 5000


def test_the_gap_is_off_minus_on():
    assert job_views.gap_of(status(EVALUATED)) == pytest.approx(0.5)
    assert job_views.gap_of(status(step(1))) is None


def test_a_trace_is_exported_as_json_with_its_weights(tmp_path):
    export_trace(TRACE, tmp_path / "trace.json")

    values = json.loads((tmp_path / "trace.json").read_text("utf-8"))

    assert values["tokens"] == TRACE.tokens
    assert [part["layer"] for part in values["attention_mean_over_heads"]] == [2, 4]
    rows = values["attention_mean_over_heads"][0]["weights"]
    assert np.shape(rows) == (2 * C, K * 2 * C)


def test_each_term_of_the_glossary_is_one_sentence():
    for sentence in GLOSSARY.values():
        assert sentence.endswith(".")
        assert sentence[0].isupper()
