"""Views: all text of others is escaped, and the numbers shown are those of the trace."""

from __future__ import annotations

import base64
import copy
import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from views_helpers import (  # noqa: F401
    CANARY,
    EDITED,
    EVALUATED,
    PAGES,
    TRACE,
    WRITING,
    C,
    K,
    small_trace,
    status,
    step,
)

from retro_demo.events import Retrieved
from retro_demo.explain import tracing
from retro_demo.explain.text import trace_values
from retro_demo.jobs import lifecycle
from retro_demo.paths import CHECKPOINTS
from retro_demo.render import first_look, html_parts, job_views, plots, trace_views
from retro_demo.render.wording import GLOSSARY
from retro_demo.server.planned import Training


@pytest.mark.parametrize("page", PAGES)
def test_text_of_others_is_shown_and_never_markup(page):
    made = PAGES[page]()

    assert "&lt;img src=x onerror=alert(1)&gt;" in made
    assert "<img" not in made
    assert "{{" not in made
    assert "${" not in made


def test_labels_of_a_loss_curve_hold_no_markup():
    layout = plots.loss_curve(status(step(1), EVALUATED), CANARY).to_plotly_json()
    layout["layout"].pop("uirevision", None)

    assert "<img" not in json.dumps(layout, default=lambda a: getattr(a, "tolist", str)())


def test_the_line_above_a_growing_text_tells_of_searches_that_were_made_and_of_no_others():
    kept = replace(WRITING, retrieved=[Retrieved(0, [], 0.0)])  # by an edit, from the text before
    both = replace(WRITING, retrieved=[Retrieved(0, [], 0.0), Retrieved(1, [], 3.0)])

    assert "search" not in html_parts.writing_speed(kept)
    assert "search 3.0 ms a chunk, 1 chunks" in html_parts.writing_speed(both)


def test_a_layer_and_a_head_are_those_of_the_trace():
    expected = TRACE.weights[1, 0, 2].numpy()

    assert np.array_equal(tracing.attention(TRACE, 4, 2)[0], expected)


def test_reading_tokens_are_the_last_of_the_chunk_and_those_that_follow():
    assert list(tracing.reading_tokens(TRACE, 0)) == [3, 4, 5, 6]
    assert list(tracing.reading_tokens(TRACE, 1)) == [7, 8, 9, 10]
    assert list(tracing.reading_tokens(small_trace(8), 1)) == [7]


def test_the_chips_are_the_figures_of_the_trace_and_the_meters_add_up():
    page, got = first_look.findings(TRACE, TRACE.ids), tracing.summary(TRACE)

    assert re.findall(r"<b>(\d+%)</b> (\w+)</span>", page) == [
        (f"{got[kind]:.0%}", kind) for kind in ("helped", "hurt", "copied")
    ]
    bars = re.findall(r'aria-label="([^"]*)"', page)
    assert [bar.split(":")[0] for bar in bars] == ["retrieval on", "retrieval off"]
    assert all(sum(map(int, re.findall(r"(\d+)%", bar))) == 100 for bar in bars)
    assert "being written" in first_look.findings(TRACE, [])
    assert first_look.findings(None) == ""


def copying_trace():
    """As `small_trace`, but its second chunk stands in a neighbor as it was written."""
    trace = small_trace(8, written_with={"max_new_tokens": 5, "seed": 7})
    trace.neighbor_tokens[0, 0, 2:8] = trace.ids[2:8]
    pieces = ["", "", "so ", "says ", "LORN ", "in ", "12", "."]
    found = [[one | {"pieces": ["x"] * 8} for one in place] for place in trace.neighbors]
    found[0][0]["pieces"] = pieces
    return replace(trace, neighbors=found, pieces=["a "] * 2 + pieces[2:])


def test_an_edit_to_try_changes_a_word_that_the_text_copied_and_its_neighbor_has():
    offered = first_look.edit_to_try(copying_trace())

    assert 'data-chunk="0" data-neighbor="0" data-old="LORN" data-new="ATLANTIS"' in offered
    given = replace(copying_trace(), about={"given": True})
    assert first_look.edit_to_try(given) == ""
    assert first_look.edit_to_try(TRACE) == ""


def test_copied_spans_carry_the_number_of_their_neighbor_once():
    page = trace_views.linked(copying_trace())

    assert re.findall(r'data-from="(\d)"', page) == ["1"]
    assert page.count('class="copied') == 4


def test_what_an_edit_changed_in_a_text_is_marked():
    assert trace_views.changed_tokens([1, 2, 3, 4], [1, 2, 9, 4, 5]) == {2, 4}
    assert trace_views.changed_tokens([1, 2], [1, 2]) == set()
    assert "fresh" in trace_views.linked(TRACE, before=[*TRACE.ids[:-1], 99])
    assert "fresh" not in trace_views.linked(TRACE)


def test_the_walk_shows_the_token_that_retrieval_helped_most_with_what_it_read():
    walk = first_look.walk_data(TRACE)

    assert walk is not None
    readers = [i for chunk in (0, 1) for i in tracing.reading_tokens(TRACE, chunk) if i + 1 < len(TRACE.ids)]
    best = max(readers, key=lambda i: TRACE.numbers.gain[i])
    assert walk["token"] == best + 1
    assert [len(one["weights"]) for one in walk["neighbors"]] == [2 * C] * K
    assert first_look.walk_data(replace(TRACE, neighbors=[], layers=[], weights=torch.zeros(0))) is None


def data_of(page: str) -> dict:
    """What a view leaves in the page for its script."""
    text = re.search(r'class="data"[^>]*>(.*?)</div>', page, re.S)
    assert text
    return json.loads(html.unescape(text[1]))


def test_the_heatmap_gives_the_browser_every_weight_of_the_chosen_layer_and_head():
    data = data_of(trace_views.heatmap(TRACE, 4, 2))

    weights = np.frombuffer(base64.b64decode(data["weights"]), np.uint8).reshape(data["shape"]) / 255
    expected = TRACE.weights[1, :, 2].numpy()
    np.testing.assert_allclose(weights * data["top"], np.minimum(expected, data["top"]), atol=0.01)


def test_the_linked_view_has_every_token_and_the_one_that_would_come_next():
    page = trace_views.linked(TRACE)

    assert [int(t) for t in re.findall(r'data-t="(\d+)"', page)] == list(range(12))
    assert len(re.findall(r'<section class="found"', page)) == 3


def test_beside_the_effects_the_page_says_that_they_are_of_ranks():
    sections = trace_views.linked(TRACE).split('<section class="found"')[1:]

    with_effects = [section for section in sections if 'class="card"' in section]
    assert with_effects
    assert all("all neighbors of the same rank in the text" in section for section in with_effects)
    assert "rank" in GLOSSARY["effect"]


def test_the_browser_gets_the_gain_of_each_token_and_the_place_it_was_copied_from():
    data = data_of(trace_views.linked(TRACE))

    assert data["gain"][0] is None
    assert data["gain"][5] == pytest.approx(TRACE.numbers.gain[4], abs=1e-3)
    assert (data["copied"][6], data["from"][6]) == (3, [1, "F", 2])


def test_colors_are_full_where_few_gains_are_stronger():
    assert trace_views.gain_scale(TRACE) in trace_views.GAIN_SCALES
    assert trace_views.gain_scale(TRACE) >= np.nanquantile(np.abs(TRACE.numbers.gain), 0.95)


def test_the_proof_says_what_was_counted_and_turns_bad_with_the_first_move():
    assert "0 of 3 earlier positions changed" in trace_views.proof(EDITED.edit)
    moved = replace(EDITED.edit, moved_before=2, largest_before=0.5)
    assert "2 of 3 earlier positions changed" in trace_views.proof(moved)
    assert 'class="proof bad"' in trace_views.proof(moved)


def test_an_edit_shows_each_position_that_can_depend_on_it_and_no_other():
    page = trace_views.edit_html(TRACE, EDITED, 5)

    assert [int(i) for i in re.findall(r'data-position="(\d+)"', page)] == list(range(C - 1, 11))
    assert len(re.findall('class="early"', page)) == C - 1
    assert re.findall(r'data-after="(\d+)">', page) == ["4"]
    assert "F was cut by 3 tokens" in page


@pytest.mark.parametrize(
    ("rho", "words"),
    [
        (0.9, "Attention agrees with"),
        (0.4, "in part"),
        (0.1, "does not predict which neighbor helped"),
        (-0.29, "does not predict which neighbor helped"),
        (-0.38, "runs against"),
        (None, "too few neighbors"),
    ],
)
def test_attention_is_said_to_agree_with_effect_only_as_far_as_the_correlation_goes(rho, words):
    said = html_parts.agreement_words(rho)

    assert words in said
    assert ("Attention agrees" in said) == (rho is not None and rho >= html_parts.TELLS)
    assert rho is None or f"{rho:.2f}" in said


def test_a_finding_names_what_it_compares_with():
    assert "against the same text with retrieval off" in first_look.findings(TRACE)
    assert "matched baseline" in first_look.findings(TRACE)


def test_two_texts_part_at_their_first_difference():
    assert html_parts.parting(["a", "b", "c"], ["a", "b", "d"]) == 2
    assert html_parts.parting(["a"], ["a", "b"]) == 1


@pytest.mark.parametrize(
    ("about", "said"),
    [({"model": "tuned"}, "(tuned) has no way"), ({"config": {"retrieval": "off"}}, "off")],
)
def test_text_without_neighbors_says_why(about, said):
    bare = replace(small_trace(9, **about), neighbors=[], layers=[], weights=torch.zeros(0))

    assert said in trace_views.linked(bare)
    assert trace_views.heatmap(bare) == ""


def test_a_chunk_that_was_not_full_says_so():
    assert "not full" in tracing.why_nothing(TRACE, 2)


def test_a_loss_curve_of_many_steps_is_thinned():
    long = status(*[step(number) for number in range(1, 5001)])

    points = sum(len(line.x) for line in plots.loss_curve(long, "run").data)

    assert points <= plots.MOST_POINTS
    assert plots.loss_curve(long, "run").data[0].x[-1] == 5000


def test_the_gap_is_off_minus_on():
    assert job_views.gap_of(status(EVALUATED)) == pytest.approx(0.5)
    assert job_views.gap_of(status(step(1))) is None


def test_what_a_run_is_worth_names_where_the_figure_is_from():
    on = {"differences": {"off": {"nats": -0.0347, "bpb": -0.0147}}}
    measured = {"arms": {"on": on}, "counts": {"tokens": 60071}, "match": None}
    beside_baseline = copy.deepcopy(measured) | {"match": {"words": "", "unfit": ""}}
    beside_baseline["arms"]["on"]["differences"]["baseline"] = {"nats": 0.0004, "bpb": 0.0002}

    assert "+0.50 nat" in job_views.retrieval_gain(status(EVALUATED), None)
    assert "held-out tokens, in training" in job_views.retrieval_gain(status(EVALUATED), None)
    assert "+0.03 nat" in job_views.retrieval_gain(status(EVALUATED), measured)
    assert "60,071 held-out tokens, no matched baseline" in job_views.retrieval_gain(
        status(EVALUATED), measured
    )
    assert "on minus matched baseline +0.0002" in job_views.retrieval_gain(status(EVALUATED), beside_baseline)
    titled = beside_baseline | {"title": "Retrieval helps: it did better"}
    assert job_views.retrieval_gain(status(EVALUATED), titled) == "retrieval helps: it did better"
    unfit = beside_baseline | {"match": {"words": "", "unfit": "it is smaller"}}
    assert "no matched baseline" in job_views.retrieval_gain(status(EVALUATED), unfit)
    assert job_views.retrieval_gain(status(step(1)), None) == ""


def test_a_trace_is_exported_as_json_with_its_weights():
    values = json.loads(json.dumps(trace_values(TRACE)))

    assert [row["text"] for row in values["tokens"]] == TRACE.pieces
    assert values["summary"]["agreement"] == tracing.agreement(TRACE)
    assert [part["layer"] for part in values["attention_mean_over_heads"]] == [2, 4]
    rows = values["attention_mean_over_heads"][0]["weights"]
    assert np.shape(rows) == (2 * C, K * 2 * C)


def test_each_term_of_the_glossary_is_one_sentence():
    for sentence in GLOSSARY.values():
        assert sentence.endswith(".")
        assert sentence[0].isupper()


def test_a_run_says_what_it_does_beside_its_steps():
    progress = {
        "event": "progress",
        "stage": "measuring held-out loss, tokens",
        "done": 4000,
        "total": 20_000,
    }
    words = "measuring held-out loss, tokens: 4,000 of 20,000"
    before = status({"event": "started"}, progress, state="running")
    assert words in job_views.run_status(before, "run", 10, None)
    between = status(step(1), progress, state="running")
    assert words in job_views.run_status(between, "run", 10, None)
    for now in (
        status(step(1), progress, step(2), state="running"),
        status(step(1), progress, state="stopped"),
    ):
        assert "measuring" not in job_views.run_status(now, "run", 10, None)


def test_the_estimate_grows_with_all_that_makes_a_run_long_and_names_the_time_that_it_may_take():
    def told(parameters: int, steps: int, model: str, minutes: int = 0, seeds: int = 0) -> str:
        return job_views.estimates([Training(model, parameters, steps, 1536)], "tiny", minutes, seeds=seeds)

    assert "about <b>11 min 31 s</b>" in told(10**6, 3000, "marge")  # 6 operations of a parameter and token
    assert "about <b>23 min 2 s</b>" in told(2 * 10**6, 3000, "marge")
    assert "about <b>12 s</b>" in told(10**6, 50, "retro")
    assert "about <b>35 s</b>" in told(10**6, 50, "retro", seeds=3)
    assert "saves and leaves" not in told(10**6, 3000, "retro", 12)
    assert "After 11 minutes at work it saves and leaves" in told(10**6, 3000, "retro", 11)


def test_a_label_of_a_figure_is_short_and_holds_neither_tags_nor_templates():
    shown = html_parts.label("<a href='x'>" + "long " * 1000 + "%{y}</a>")

    assert "<" not in shown
    assert "{" not in shown
    assert len(html.unescape(shown)) <= html_parts.MOST_LABEL + 1


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(CHECKPOINTS.glob("*/evaluation"))])
def test_the_evaluation_of_each_shipped_run_can_be_named_at_the_top(name):
    folder = CHECKPOINTS / name
    measured = json.loads((folder / "evaluation" / "events.jsonl").read_text("utf-8").splitlines()[-1])

    told = job_views.retrieval_gain(lifecycle.status(folder), measured)
    if (measured.get("match") or {"unfit": "it has none"})["unfit"]:
        assert f"{measured['counts']['tokens']:,} held-out tokens" in told
    else:
        assert told[1:] == html.escape(measured["title"][1:])


def test_a_card_says_why_its_neighbor_has_no_words():
    trace = copy.deepcopy(small_trace())
    trace.neighbors[0][0] |= {"text": "", "continuation": ""}
    page = trace_views.linked(trace)

    assert html_parts.ONLY_THE_END in page
    assert html_parts.ONLY_THE_END not in trace_views.linked(TRACE)
