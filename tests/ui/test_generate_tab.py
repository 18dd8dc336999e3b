"""The handlers of the Generate tab and of the linked view, called as the page calls them, without a page.

Waiting for a corpus, Stop, and texts whose workspace goes stand in test_writing_lane.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from evaluation_helpers import visitor_with_runs
from page_helpers import page_home
from writing_lane_helpers import edited, going_on

from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.explain import edits
from retro_demo.render import html_parts
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace, shown_trace
from retro_demo.ui.generate_tab import GenerateHandlers, GenerateView
from retro_demo.ui.linked_view import ExplainHandlers

TEXT = "Area of Arden: 100 square km. Exports of Arden: fish and timber, and much of it."


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("tab")) as folder:
        yield folder


@pytest.fixture(scope="module")
def code(home, small_folder) -> str:
    """The code of a workspace with a run that reads neighbors and one that does not."""
    return visitor_with_runs(home, small_folder).folder.name


@pytest.fixture(scope="module")
def on(home) -> GenerateHandlers:
    with gr.Blocks():
        return GenerateHandlers(ModelCache(home), GenerateView(), gr.HTML())


@pytest.fixture(scope="module")
def inside(on) -> ExplainHandlers:
    return ExplainHandlers(on.cache, on.view.text, on.lane)


def form_values(on: GenerateHandlers, **settings: Any) -> list[Any]:
    settings = {"max_new_tokens": 12} | settings
    return [settings.get(name, widget.value) for name, widget in on.view.form.widgets.items()]


def readings(on: GenerateHandlers) -> list[Any]:
    return [widget.value for widget in on.view.reading.inputs]


def ended(steps: Iterator[dict[Any, Any]], component: Any) -> Any:
    """What the last step that tells of a component says."""
    return [step[component] for step in steps if component in step][-1]


def put_back(kept: str, view: GenerateView) -> tuple[str, dict[str, Any]]:
    """Prompt and settings that a text was made with."""
    prompt, *settings = json.loads(kept)["filled"]
    return prompt, dict(zip(view.form.widgets, settings, strict=True))


@pytest.fixture(scope="module")
def kept(on, code) -> str:
    """The id of a text that was written with the reader."""
    return ended(on.write(code, "reader", "", "", "", "Area of", *form_values(on, seed=7)), on.view.trace_id)


def test_a_text_is_written_kept_and_shown_with_what_it_was_asked_with(on, code, kept):
    view = on.view
    shown = on.restore(code, kept, None)

    assert set(shown) == {view.speed, *view.text.outputs, view.put_back}
    prompt, settings = put_back(shown[view.put_back], view)
    assert prompt == "Area of"
    assert (settings["seed"], settings["max_new_tokens"]) == (7, 12)
    assert on.show(code, kept)[view.text.linked] == shown[view.text.linked]


def test_the_example_that_ships_stands_there_at_first_with_what_made_it(on, code, kept):
    view, (_, example) = on.view, shown_trace(Workspace.open(on.home, code), "")
    assert example is not None
    shown = on.restore(code, "", None)

    prompt, settings = put_back(shown[view.put_back], view)
    assert prompt == example.about["prompt"]
    assert settings["seed"] == example.about["config"]["seed"]
    assert shown[view.text.linked] != on.show(code, kept)[view.text.linked]


def test_generate_with_nothing_changed_takes_the_next_seed_and_shows_it(on, code, kept):
    view, values = on.view, form_values(on, seed=7)
    again = [*on.write(code, "reader", "", "", kept, "Area of", *values)]
    other = [*on.write(code, "reader", "", "", kept, "Area of Arden", *values)]

    seed = view.form.widgets["seed"]
    assert ended(iter(again), seed) == 8
    assert text_of(on, code, again[-1][view.trace_id]).about["written_with"]["seed"] == 8
    assert all(seed not in step for step in other)  # what is typed there meanwhile stays


def test_at_temperature_0_the_same_text_is_written_again_and_that_is_said(on, code):
    view, values = on.view, form_values(on, temperature=0.0)
    once = ended(on.write(code, "reader", "", "", "", "Area of", *values), view.trace_id)
    steps = [*on.write(code, "reader", "", "", once, "Area of", *values)]

    twice = steps[-1][view.trace_id]
    assert text_of(on, code, twice).ids == text_of(on, code, once).ids
    assert html_parts.AGAIN in on.show(code, twice)[view.text.intro]
    assert "the same text again" not in on.show(code, once)[view.text.intro]


def test_where_another_seed_writes_the_same_text_that_is_said(on, code):
    view, values = on.view, form_values(on, seed=1, top_k=1)  # the likeliest token, whatever is drawn
    once = ended(on.write(code, "reader", "", "", "", "Area of", *values), view.trace_id)
    twice = ended(on.write(code, "reader", "", "", once, "Area of", *values), view.trace_id)

    assert html_parts.AGAIN_BY_CHANCE in on.show(code, twice)[view.text.intro]


def test_what_cannot_be_written_is_refused_in_a_sentence(on, code):
    with pytest.raises(UserError, match="There is no run yet"):
        list(on.write(code, "", "", "", "", "Area of", *form_values(on)))
    with pytest.raises(UserError, match="there is no retrieval to compare"):
        list(on.side_by_side(code, "plain", "", "", "Area of", *form_values(on)))


def test_three_texts_stand_side_by_side(on, code):
    steps = [*on.side_by_side(code, "reader", "", "", "Area of", *form_values(on))]
    first, last = (step[on.view.sides] for step in (steps[1], steps[-1]))

    assert last.count("Area of") == 3
    assert first != last


def test_a_given_text_is_explained_and_read_again_and_leaves_the_form_alone(on, code):
    view = on.view
    given = ended(on.explain_given(code, "reader", "", TEXT, *readings(on)), view.trace_id)
    again = ended(on.explain_shown(code, given, "", *readings(on)), view.trace_id)

    traces = [shown_trace(Workspace.open(on.home, code), one)[1] for one in (given, again)]
    assert given != again
    assert all(trace is not None and "".join(trace.pieces) == TEXT for trace in traces)
    assert set(on.restore(code, given, None)) == {view.speed, *view.text.outputs}


def test_the_run_of_the_shown_text_is_chosen_unless_the_visitor_chose(on, code, kept):
    chosen = on.refresh(code, kept, None, "", False, None)
    left = on.refresh(code, kept, "plain", "", False, None)

    assert chosen[on.view.run].value == "reader"
    assert "value" not in left[on.view.run].constructor_args
    assert ("places", "places") in left[on.view.corpus].choices
    assert on.refresh(code, kept, None, "gone", False, None)[on.view.corpus].value == ""


def test_the_line_at_the_top_names_the_run_that_is_in_view(on, code, kept):
    values = kept, "plain", "", False, None

    assert "plain" in on.name_shown_run(code, False, "plain", "finder")
    assert "reader" in on.name_shown_run(code, True, "plain", "reader")
    assert "No run yet" in on.name_shown_run(code, True, "plain", None)
    assert on.breadcrumb not in on.arrive(code, {"tab": "train"}, *values)
    assert on.arrive(code, {"tab": ""}, *values)[on.breadcrumb] == on.name_shown_run(
        code, False, "plain", None
    )


def test_a_held_out_document_of_the_runs_corpus_fills_the_box(on, code):
    shown = on.describe_run(code, "reader")
    documents = shown[on.view.document]
    _, number = documents.choices[0]

    assert "reader" in shown[on.breadcrumb]
    corpus = load_corpus(Workspace.open(on.home, code).corpus("places"))
    assert corpus.held_out[number]
    filled = on.fill_document(code, "reader", number)
    assert filled == {on.view.put_in: corpus.documents[number].text}
    assert on.fill_document(code, "reader", None) == gr.skip()
    assert on.describe_run(code, None)[on.view.document].choices == []


def test_explain_opens_on_a_held_out_document_and_leaves_a_text_of_the_visitor_alone(on, code):
    view, corpus = on.view, load_corpus(Workspace.open(on.home, code).corpus("places"))
    begun = on.begin_with_document(code, "reader", "", "")
    first = begun[view.document].value

    assert corpus.held_out[first]
    assert begun[view.put_in] == corpus.documents[first].text
    again = on.begin_with_document(code, "plain", begun[view.put_in], begun[view.put_in])
    assert again[view.put_in] == begun[view.put_in]
    assert on.begin_with_document(code, "reader", "My own words.", begun[view.put_in]) == gr.skip()
    assert on.begin_with_document(code, None, "", "") == gr.skip()


def test_what_only_retrieval_needs_is_greyed_for_a_plain_lm(on, code):
    corpus, retrieval = on.view.corpus, on.view.form.widgets["retrieval"]
    shown = {name: on.choose_run(code, name, "places", "", []) for name in ("reader", "plain")}

    assert [shown[name][corpus].interactive for name in shown] == [True, False]
    assert [shown[name][retrieval].interactive for name in shown] == [True, False]
    assert shown["plain"][corpus].value == ""
    assert "value" not in shown["reader"][corpus].constructor_args


def test_a_marge_hides_the_runs_and_texts_of_the_others(on):
    view = on.view

    for of_marge, visible in ((True, "hidden"), (False, True)):
        shown = on.show_form(of_marge)
        assert (shown[view.above].visible, shown[view.below].visible) == (visible, visible)
        assert shown[view.of_marge] is of_marge


def clicked(act: str, **more: Any) -> gr.EventData:
    return gr.EventData(None, {"chunk": 0, "neighbor": 0, "token": 9, "act": act} | more)


def text_of(on: GenerateHandlers, code: str, name: str) -> Any:
    trace = shown_trace(Workspace.open(on.home, code), name)[1]
    assert trace is not None
    return trace


def test_with_an_edited_neighbor_the_text_is_written_anew_and_can_be_taken_back(on, inside, code, kept):
    view, before = inside.view, text_of(on, code, kept)
    *growing, last = edited(inside, code, kept, clicked("write", n="Area of Arden: 7", f="and so on"))

    assert growing
    assert all(set(step) == {view.linked, view.speed, view.go} for step in growing)
    anew = text_of(on, code, last[view.trace_id])
    assert anew.ids[: before.chunk_len] == before.ids[: before.chunk_len]
    assert anew.prompt_tokens == before.prompt_tokens
    assert "".join(anew.neighbors[0][0]["pieces"]).startswith("Area of Arden: 7")
    assert anew.about["edited"]["from"] == kept
    assert anew.about["edited"]["text"].startswith("Area of Arden: 7")
    assert "0 of" in last[view.changed]
    assert "written with an edited neighbor" in last[view.intro]

    (back,) = edited(inside, code, last[view.trace_id], clicked("undo"))
    assert back[view.trace_id] == kept
    assert "written with an edited neighbor" not in back[view.intro]


def test_a_neighbor_that_is_written_as_it_stood_leaves_the_text_as_it_was(on, inside, code, kept):
    """The rest is drawn with the numbers that were left of the seed."""
    before = text_of(on, code, kept)
    run = on.cache.run(Workspace.open(on.home, code).run("reader"), None, before.about["retriever"])
    n, f = edits.neighbor_texts(run, before.neighbor_tokens[0, 0])
    *_, last = edited(inside, code, kept, clicked("write", n=n, f=f))

    assert text_of(on, code, last[inside.view.trace_id]).ids == before.ids


def test_a_neighbor_is_dropped_or_swapped_and_another_chunk_can_be_chosen(on, inside, code, kept):
    view = inside.view
    *_, dropped = edited(inside, code, kept, clicked("drop"))
    *_, swapped = edited(inside, code, kept, clicked("swap"))
    choices = swapped[view.other].choices
    *_, chosen = going_on(inside, code, inside.ask_other(code, kept, (0, 0, 9), choices[1][1]))

    assert not text_of(on, code, dropped[view.trace_id]).neighbor_tokens[0, 0].any()
    first = text_of(on, code, swapped[view.trace_id]).neighbors[0][0]
    assert (first["chunk"], first["edited"]) == (choices[0][1], True)
    assert text_of(on, code, chosen[view.trace_id]).neighbors[0][0]["chunk"] == choices[1][1]


def test_stop_ends_what_an_edit_writes(on, inside, code, kept):
    view = inside.view
    (asked,) = inside.ask_edit(code, kept, clicked("drop"))
    steps = inside.edit(code, asked[view.wish], asked[view.token])
    next(steps)
    on.lane.stopping()(code, asked[view.token])
    *_, last = steps

    whole, ended_early = text_of(on, code, kept), text_of(on, code, last[view.trace_id])
    assert len(ended_early.ids) < len(whole.ids)
    assert not on.lane.expects(asked[view.token])


def test_what_names_no_neighbor_or_is_no_text_is_refused(inside, code, kept):
    for event, words in (
        (gr.EventData(None, {}), "That names no neighbor"),
        (clicked("write", n=7, f=""), "A neighbor is two texts"),
        (clicked("write", n="x" * 20_000, f=""), "A neighbor is two texts"),
        (clicked("write", neighbor=9), "has no neighbor 9"),
    ):
        with pytest.raises(UserError, match=words):
            list(edited(inside, code, kept, event))
    with pytest.raises(UserError, match="none of those that can be swapped in"):
        list(going_on(inside, code, inside.ask_other(code, kept, (0, 0, 9), 10**6)))


def test_an_edit_leaves_a_given_text_as_it_is_and_says_what_changed(on, inside, code):
    view = inside.view
    given = ended(on.explain_given(code, "reader", "", TEXT, *readings(on)), view.trace_id)
    said, shown = edited(inside, code, given, clicked("write", n="Area of Arden", f=""))

    assert "Reading the text" in said[view.speed]
    assert set(shown) == {view.speed, view.changed, view.download}
    assert "earlier positions" in shown[view.changed]


def test_stop_ends_the_edit_of_a_given_text_and_leaves_the_text(on, inside, code):
    view = inside.view
    given = ended(on.explain_given(code, "reader", "", TEXT, *readings(on)), view.trace_id)
    before = on.show(code, given)[view.linked]
    (asked,) = inside.ask_edit(code, given, clicked("write", n="Area of Arden", f=""))
    steps = inside.edit(code, asked[view.wish], asked[view.token])
    assert "Reading the text" in next(steps)[view.speed]

    on.lane.stopping()(code, asked[view.token])

    with pytest.raises(UserError, match=r"You stopped it: the text stays"):
        next(steps)
    assert on.show(code, given)[view.linked] == before
    assert not on.lane.expects(asked[view.token])


def test_the_run_writes_without_neighbors_for_the_meter_beside_the_text(on, inside, code):
    view = inside.view
    name = ended(on.write(code, "reader", "", "", "", "Area of", *form_values(on, seed=8)), view.trace_id)
    assert "being written" in on.show(code, name)[view.findings]
    (shown,) = inside.write_off(code, name)

    assert "retrieval off:" in shown[view.findings]
    trace = text_of(on, code, name)
    assert trace.about["off"][: trace.prompt_tokens] == trace.ids[: trace.prompt_tokens]
    assert "being written" not in on.show(code, name)[view.findings]
    assert list(inside.write_off(code, name)) == [{inside.view.findings: gr.skip()}]


def test_a_run_that_cannot_write_just_now_leaves_the_meter_out_without_a_word(on, inside, code, monkeypatch):
    name = ended(
        on.write(code, "reader", "", "", "", "Area of", *form_values(on, seed=9)), inside.view.trace_id
    )

    def busy(*_: Any) -> Any:
        raise UserError("Its corpus is being built first. Ask again in a minute.")

    monkeypatch.setattr(inside, "_run_of", busy)
    (shown,) = inside.write_off(code, name)

    assert "retrieval on:" in shown[inside.view.findings]
    assert "retrieval off:" not in shown[inside.view.findings]


def test_a_text_that_anybody_asks_for_takes_the_place_of_the_meter(on, inside, code, monkeypatch):
    name = ended(
        on.write(code, "reader", "", "", "", "Area of", *form_values(on, seed=10)), inside.view.trace_id
    )
    load = inside._run_of

    def hurried(*known: Any) -> Any:
        inside.hurry()  # by another visitor, while the run is loaded
        return load(*known)

    monkeypatch.setattr(inside, "_run_of", hurried)
    (shown,) = inside.write_off(code, name)

    assert "retrieval on:" in shown[inside.view.findings]
    assert "retrieval off:" not in shown[inside.view.findings]
    assert "off" not in text_of(on, code, name).about  # the next look writes it


def test_the_button_counts_what_is_written(on, code):
    steps = [*on.write(code, "reader", "", "", "", "Area of", *form_values(on))]
    said = [step[on.view.go] for step in steps if on.view.go in step]

    assert said[0] == "Writing 1/12"
    assert said[-1] == "Writing 12/12"


def test_the_heatmap_is_of_the_layer_and_head_that_are_chosen_in_the_overview(inside, code, kept):
    def drawn(**place: Any) -> str:
        return inside.show_heatmap(code, kept, gr.EventData(None, place))

    pictures = {drawn(layer=layer, head=head) for layer, head in ((0, 0), (1, 0), (0, 2), (1, 2))}

    assert len(pictures) == 4
    for place in ({}, {"layer": 99, "head": 1}, {"layer": 1, "head": 99}, {"layer": "x", "head": 1}):
        with pytest.raises(UserError):
            drawn(**place)
