"""The evaluation on the page: sentences, pictures and tables of the same figures, safe to show."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from evaluation_helpers import make_run

from retro_demo.evaluation.arms import ARM_NAMES
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.events import Finished
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.render import evaluation_views, plots
from retro_demo.render.wording import GLOSSARY
from retro_demo.settings import EvaluateConfig


@pytest.fixture(scope="module")
def result(tmp_path_factory, half_held_out) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("evaluation")
    run = make_run(folder / "run", half_held_out.folder, "retro", seed=1)
    baseline = make_run(folder / "baseline", half_held_out.folder, "lm", seed=1)
    settings = EvaluateConfig(
        first_tokens=300, max_tokens=300, resamples=200, database_sizes=(30, 100), neighbor_counts=(1, 2)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(folder / "home"))
        prepare_evaluation(folder / "e", Request(str(run), str(baseline), settings=settings))
        *_, last = run_evaluation(folder / "e", lambda: False)
    assert isinstance(last, Finished)
    return last.to_json()


def test_the_verdict_is_shown_whole_its_claim_first(result):
    shown = evaluation_views.verdict_html(result)
    claim, rest = evaluation_views.split_claim(result["verdict"])
    older = evaluation_views.verdict_html({name: one for name, one in result.items() if name != "title"})

    assert f"{claim} {rest}".strip() == result["verdict"]
    assert "(" not in claim
    assert f'<p class="claim">{result["title"]}</p>' in shown
    assert f'<p class="claim">{claim}</p>' in older


def test_the_verdict_stands_on_a_table_of_differences_to_its_controls(result):
    shown = evaluation_views.grounds_table(result)
    on, before = result["arms"]["on"]["differences"], {"off": 0.25, "bpb_ci": [0.1, 0.4]}

    for other in ("baseline", "shuffled", "off"):
        assert f"<td>{on[other]['bpb']:+.4f}</td>" in shown
    assert f"{result['counts']['tokens']:,} tokens" in shown
    assert "random neighbors" in shown
    assert "evidence" not in shown
    assert "random evidence" in evaluation_views.grounds_table(result | {"names": {}})
    far = {"on": {"differences": {}}, "baseline_before": {"differences": {"on": before | {"bpb": 0.25}}}}
    shown = evaluation_views.grounds_table(result | {"arms": far})
    assert "<td>-0.2500</td><td>-0.4000 to -0.1000</td><td>better</td>" in shown


@pytest.mark.parametrize(("helps", "kind"), [(True, "yes"), (False, "no"), (None, "open")])
def test_the_verdict_is_marked_by_what_it_says(result, helps, kind):
    assert f'class="verdict {kind}"' in evaluation_views.verdict_html(result | {"helps": helps})


@pytest.mark.parametrize(
    ("mean", "words"), [(0.0312, "0.0312 nat a token better"), (-0.2, "worse on average")]
)
def test_a_mean_gain_is_said_in_words_beside_a_verdict_where_less_is_better(mean, words):
    moved = {"helped": 0.5, "hurt": 0.2, "threshold": 0.1, "mean": mean}

    assert words in evaluation_views.moved_html(moved, "baseline")


def test_every_arm_has_a_dot_and_a_row_with_the_same_figure(result):
    figure = plots.arms_figure(result)
    table = evaluation_views.arms_table(result)
    dots = {trace["y"][0]: trace["x"][0] for trace in figure.data}

    assert set(dots) == {evaluation_views.arm_name(name) for name in result["arms"]}
    for name, arm in result["arms"].items():
        assert dots[evaluation_views.arm_name(name)] == arm["bpb"]
        assert f"<td>{arm['bpb']:.4f}</td>" in table
        assert ("reach" not in arm) or f"<td>{arm['reach']:.1%}</td>" in table
    assert "reach" in result["arms"]["on"]
    line = figure.layout.shapes[0]
    assert line["x0"] == result["arms"]["baseline"]["bpb"]


def test_the_bar_around_a_dot_is_the_interval_of_its_difference_to_the_line(result):
    figure = plots.arms_figure(result)
    dot = next(trace for trace in figure.data if trace["y"][0] == "retrieval on")
    on, line = result["arms"]["on"], result["arms"]["baseline"]["bpb"]
    low, high = on["differences"]["baseline"]["bpb_ci"]

    assert dot["x"][0] + dot["error_x"]["array"][0] == pytest.approx(line + high)
    assert dot["x"][0] - dot["error_x"]["arrayminus"][0] == pytest.approx(line + low)


@pytest.mark.parametrize("against", ["database", "neighbors"])
def test_the_curve_its_histogram_and_the_table_show_the_same(result, against):
    leakage = result["leakage"][against]
    figure = plots.leakage_figure(leakage)
    table = evaluation_views.leakage_table(leakage)

    curves = {trace["name"]: trace["y"] for trace in figure.data if trace["name"]}
    assert list(curves["retrieval on"]) == leakage["bpb"]["on"]
    assert list(figure.data[-1]["y"]) == leakage["chunks_per_bin"]
    assert table.count("<tr") == 1 + len(leakage["alpha"])
    assert table.count('class="few"') == sum(leakage["greyed"])


def test_the_differences_to_the_baseline_are_drawn_where_the_curves_lie_on_one_line(result):
    leakage = result["leakage"]["database"]
    figure = plots.leakage_figure(leakage)

    drawn = {trace["name"]: trace["y"] for trace in figure.data if trace["name"]}
    last = drawn["retrieval on, difference"][-1]
    assert last == pytest.approx(leakage["bpb"]["on"][-1] - leakage["bpb"]["baseline"][-1])
    assert last == pytest.approx(result["arms"]["on"]["differences"]["baseline"]["bpb"])
    assert "matched baseline, difference" not in drawn
    bare = {**leakage, "bpb": {arm: leakage["bpb"][arm] for arm in ("off", "on")}}
    assert plots.leakage_differences(bare)[0] == "off"
    empty = {**leakage, "bpb": {arm: [None, *values[1:]] for arm, values in leakage["bpb"].items()}}
    assert plots.leakage_differences(empty)[1]["on"][0] is None


def test_a_bin_of_few_chunks_is_pale(result):
    leakage = copy.deepcopy(result["leakage"]["database"])
    leakage["greyed"] = [False] * 5 + [True]
    figure = plots.leakage_figure(leakage)

    assert list(figure.data[0]["marker"]["opacity"]) == [1.0] * 5 + [0.35]
    colors = figure.data[-1]["marker"]["color"]
    assert len(set(colors[:5])) == 1
    assert colors[5] != colors[0]


def test_the_gain_by_bucket_is_drawn_with_its_interval(result):
    leakage = result["leakage"]["database"]
    figure = plots.buckets_figure(leakage)
    shown = [bucket for bucket in leakage["buckets"] if bucket["gain"]]

    assert list(figure.data[0]["y"]) == [bucket["gain"]["baseline"]["nats"] for bucket in shown]
    for bucket in shown:
        assert f"{bucket['gain']['off']['nats']:+.4f}" in evaluation_views.buckets_table(leakage)


@pytest.mark.parametrize(("kind", "count"), [("database_sizes", 2), ("neighbor_counts", 2)])
def test_database_sizes_and_k_are_drawn_where_they_were_measured(result, kind, count):
    curves = result["curves"]
    figure = plots.curve_figure(curves, kind)

    assert list(figure.data[0]["y"]) == [point["bpb"] for point in curves[kind]]
    assert len(curves[kind]) == count
    assert evaluation_views.curves_table(curves).count("<tr") == 1 + 4


@pytest.mark.parametrize("kind", ["database_sizes", "neighbor_counts"])
def test_a_slider_moves_along_the_measured_sizes_and_says_the_figures_of_each(result, kind):
    curves = result["curves"]
    figure = plots.curve_figure(curves, kind)

    steps = figure.layout.sliders[0].steps
    assert len(steps) == len(curves[kind])
    for step, point in zip(steps, curves[kind], strict=True):
        place, words, (ring,) = step.args
        assert place["y"] == [[point["bpb"]]]
        assert f"{point['bpb']:.4f} bits per byte" in words["title.text"]
        assert f"{point['difference']['bpb']:+.4f}" in words["title.text"]
        assert figure.data[ring].mode == "markers"
    assert figure.layout.title.text == steps[-1].args[1]["title.text"]


def test_without_a_baseline_the_line_is_off_and_the_missing_control_is_said(result):
    bare = copy.deepcopy(result)
    del bare["arms"]["baseline"]
    bare["next"] = ["A matched baseline: train an lm."]

    assert plots.arms_figure(bare).layout.shapes[0]["x0"] == result["arms"]["off"]["bpb"]
    assert "A matched baseline: train an lm." in evaluation_views.next_html(bare)


def test_before_there_is_anything_the_page_says_what_to_do():
    assert "press Evaluate" in evaluation_views.verdict_html(None)
    assert evaluation_views.next_html(None) == ""
    assert evaluation_views.evaluation_status(None) == ""


def test_progress_is_said_in_words_and_a_failure_in_its_sentence():
    running = JobStatus(
        "running", [{"event": "progress", "stage": "round 1 of 3", "done": 5, "total": 20}], ""
    )
    failed = JobStatus("failed", [{"event": "failed", "error": "No <b>corpus</b>."}], "")

    assert "round 1 of 3: 25% of the reading" in evaluation_views.evaluation_status(running)
    assert "No &lt;b&gt;corpus&lt;/b&gt;." in evaluation_views.evaluation_status(failed)


def test_what_comes_from_a_file_is_escaped(result):
    bad = result | {"verdict": "Retrieval <script>alert(1)</script> helps", "next": ["<img src=x>"]}

    assert "<script>" not in evaluation_views.verdict_html(bad)
    assert "<img" not in evaluation_views.next_html(bad)


def test_every_arm_is_explained():
    assert set(evaluation_views.ARM_TERMS) == set(ARM_NAMES)
    assert set(evaluation_views.ARM_TERMS.values()) | {"oracle", "overlap"} <= set(GLOSSARY)


CANARY = "<img src=x onerror=alert(1)>{{x}}${y}"
HTML = {
    "verdict": lambda result: evaluation_views.verdict_html(result, CANARY),
    "next": evaluation_views.next_html,
    "arms caption": evaluation_views.arms_caption,
    "arms": evaluation_views.arms_table,
    "leakage": lambda result: evaluation_views.leakage_table(result["leakage"]["database"]),
    "buckets": lambda result: evaluation_views.buckets_table(result["leakage"]["database"]),
    "curves": lambda result: evaluation_views.curves_table(result["curves"]),
    "origin": evaluation_views.origin_html,
}
FIGURES = {
    "arms": plots.arms_figure,
    "leakage": lambda result: plots.leakage_figure(result["leakage"]["database"]),
    "buckets": lambda result: plots.buckets_figure(result["leakage"]["database"]),
    "sizes": lambda result: plots.curve_figure(result["curves"], "database_sizes"),
    "counts": lambda result: plots.curve_figure(result["curves"], "neighbor_counts"),
}
MARKS = {"references", "reference", "same_as"}  # they name an arm, and show it by its name


def forged(value: Any, name: str = "") -> Any:
    """A result whose every word is a canary, as a file from a stranger may have it."""
    if isinstance(value, dict):
        return {key: forged(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [forged(part, name) for part in value]
    return CANARY if isinstance(value, str) and name not in MARKS else value


@pytest.mark.parametrize("view", HTML)
def test_no_word_of_a_forged_result_becomes_markup(result, view):
    made = HTML[view](forged(result))

    assert "<img" not in made
    assert "{{" not in made
    assert "${" not in made


@pytest.mark.parametrize("name", FIGURES)
def test_no_word_of_a_forged_result_becomes_a_tag_of_plotly(result, name):
    assert "<img" not in FIGURES[name](forged(result)).to_json()
