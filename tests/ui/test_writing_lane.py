"""The lane where one text is written after the other: nobody holds it longer than a text takes."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest
from writing_lane_helpers import answer, handlers, named  # noqa: F401

from retro_demo.corpus.samples import prepare_sample
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.paths import CHECKPOINTS
from retro_demo.server.cleanup import delete_workspace
from retro_demo.server.limits import PUBLIC, checked_writing
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import new_code
from retro_demo.ui import visit
from retro_demo.ui.generate_tab import GenerateHandlers, GenerateView, resting
from retro_demo.ui.linked_view import ExplainHandlers
from retro_demo.ui.visit import FOLLOWERS, Lane

RUN = f"sample:{sorted(path.parent.name for path in CHECKPOINTS.glob('*retro*/config.json'))[0]}"
LANE = "model"
STOP = "stop-generating"


def values_for(handler: Any, code: str) -> list[Any]:
    """What the page would send at first: the code, the run, and the values that the widgets begin with."""
    return [code, RUN, *(widget.value for widget in handler.inputs[2:])]


def test_who_waits_for_a_corpus_is_told_so_and_holds_nobody_else_up(data_folder):
    known, code = handlers(data_folder), new_code()
    write, compare = named(known, "write")[0], named(known, "side_by_side")[0]
    explain = named(known, "explain_given")[0]
    endpoints = [one for one in known if one.api_name in ("generate", "explain")]
    assert {one.concurrency_id for one in (write, compare, explain, *endpoints)} == {LANE}

    with lifecycle.claim(prepare_sample(data_folder, "factbook2015")):  # as its build would
        for handler in (write, compare, explain):
            assert "is being built first" in str(answer(handler.fn, *values_for(handler, code))[-1])
        for endpoint in endpoints:
            assert "is being built first" in str(answer(endpoint.fn, code, RUN, "Area")[-1])


def test_the_page_waits_for_a_corpus_outside_the_lane_and_says_how_far_it_is(data_folder):
    waits = named(handlers(data_folder), "wait")
    assert len(waits) == 8  # to write by a button or Enter, twice by a click, explain, compare; evidence: 2
    assert all(one.concurrency_id != LANE and one.concurrency_limit is None for one in waits)

    with lifecycle.claim(prepare_sample(data_folder, "factbook2015")):
        steps = waits[0].fn(new_code(), RUN)
        next(steps)
        assert "The corpus is being prepared" in next(steps)[0]


def test_an_edit_waits_for_a_corpus_that_is_being_prepared_and_says_so(data_folder):
    with gr.Blocks():
        on = GenerateHandlers(ModelCache(data_folder), GenerateView(), gr.HTML())
    inside, code = ExplainHandlers(on.cache, on.view.text, on.lane), new_code()
    event = gr.EventData(None, {"act": "drop", "chunk": 0, "neighbor": 0, "token": 9})
    with lifecycle.claim(prepare_sample(data_folder, "factbook2015")):  # as its build would
        steps = inside.ask_edit(code, RUN, event)
        asked = next(steps)
        assert "The corpus is being prepared" in next(steps)[on.view.speed]
        on.lane.stopping()(code, asked[on.view.token])
        with pytest.raises(UserError, match="You stopped it"):
            list(steps)


def test_stop_takes_the_code_of_a_workspace_and_nothing_else(data_folder):
    stops = named(handlers(data_folder), "stop")
    assert len(stops) == 3  # of a text, of an edited given text, of writing from evidence

    for handler in stops:
        for code in ("x" * 2_000_000, "", [], {"a": 1}, None, 7):
            assert "A workspace code has 16 to 64" in str(answer(handler.fn, code, "token"))
        assert answer(handler.fn, new_code(), "token") == [None]


def asked_for(lane: Lane, code: str) -> str:
    """The token of a text whose corpus is there."""
    return list(lane.waiting()(code, None))[0][1]


def test_only_a_text_that_was_asked_for_can_be_stopped_from_then_to_its_end(data_folder):
    lane, code, other = Lane(ModelCache(data_folder)), new_code(), new_code()
    stop, token = lane.stopping(), asked_for(lane, code)

    stop(other, token)  # of somebody else
    with lane.text(code, token) as stopped, lane.text(other, asked_for(lane, other)) as theirs:
        assert not stopped()
        stop(code, token)
        assert stopped()
        assert not theirs()
    stop(code, token)  # it has ended
    token = asked_for(lane, code)
    stop(code, token)  # it waits for its turn
    with lane.text(code, token) as stopped:
        assert stopped()
    with lane.text(code, token) as stopped:
        assert not stopped()


def test_stop_on_one_page_of_a_visitor_ends_no_text_of_another_one(data_folder):
    lane, code = Lane(ModelCache(data_folder)), new_code()
    first, second = asked_for(lane, code), asked_for(lane, code)

    with lane.text(code, first) as stopped:
        lane.stopping()(code, second)
        assert not stopped()
    with lane.text(code, second) as stopped:  # the end of the first did not forget it
        assert stopped()


def test_the_end_of_a_text_leaves_the_buttons_to_one_that_the_page_asked_for_since(data_folder):
    lane, code = Lane(ModelCache(data_folder)), new_code()
    rest = resting(lane)
    first, second = asked_for(lane, code), asked_for(lane, code)

    with lane.text(code, first):
        pass
    assert rest(second) == [gr.skip()] * 3  # of the page: it waits, or is written
    with lane.text(code, second):
        assert rest(second) == [gr.skip()] * 3
    assert [button.interactive for button in rest(second)] == [True, False, False]  # Generate, both Stops


def test_each_text_lets_the_buttons_rest_however_it_ends_and_a_reading_never_does(data_folder):
    known = handlers(data_folder)
    on_tab = [one for one in named(known, "write") if one.outputs[-1].elem_id == "generate"]
    assert len(on_tab) == 4  # by a button, Enter, an example, the other edition

    def after(one: Any, *, failed: bool) -> list[Any]:
        wanted = "trigger_only_on_failure" if failed else "trigger_only_on_success"
        follow = [each for each in known if each.trigger_after == one._id and getattr(each, wanted)]
        return [each for each in follow if STOP in [out.elem_id for out in each.outputs]]

    (swap,) = named(known, "swap_edition")
    assert len(after(swap, failed=True)) == 1
    for one in (*on_tab, *named(known, "side_by_side")):
        assert one.trigger_mode == "multiple"  # what was asked for is written: nothing waits for it in vain
        assert len(after(one, failed=True)) == 1
        assert [each.fn.__name__ for each in after(one, failed=False)] == ["rest"]
    for one in (*named(known, "explain_given"), *named(known, "explain_shown")):
        assert not after(one, failed=True) + after(one, failed=False)


def test_a_page_keeps_the_token_of_its_own_text(data_folder):
    known = handlers(data_folder)
    for way in ("wait", "write", "side_by_side", "stop"):
        for handler in named(known, way):
            tokens = handler.outputs[1:] if way == "wait" else handler.inputs
            assert sum(isinstance(one, gr.State) and one.value == "" for one in tokens) == 1, way


def test_of_too_many_that_wait_for_one_visitor_the_oldest_is_let_go_and_nobody_elses(data_folder):
    lane, code = Lane(ModelCache(data_folder)), new_code()
    with lifecycle.claim(prepare_sample(data_folder, "factbook2015")):  # as its build would
        other = lane.waiting()(new_code(), RUN)
        waits = [lane.waiting()(code, RUN) for _ in range(FOLLOWERS + 1)]
        for steps in (other, *waits):
            next(steps)
            assert "The corpus is being prepared" in next(steps)[0]

        with pytest.raises(gr.Error, match="Ask again when the corpus is ready"):
            next(waits[0])
        for steps in (other, *waits[1:]):
            next(steps)
        waits[1].close()  # pyright: ignore[reportAttributeAccessIssue]
        # its visitor left: there is room for one more
        again = lane.waiting()(code, RUN)
        for steps in (again, again, *waits[2:]):
            next(steps)


def test_who_looks_at_the_evidence_waits_no_oftener_than_who_writes(data_folder):
    choose = next(one for one in named(handlers(data_folder), "show_run") if "evidence" in one.fn.__module__)
    code = new_code()
    with lifecycle.claim(prepare_sample(data_folder, "udhr44")):  # as its build would
        waits = [choose.fn(code, "sample:rights-marge", "held-out") for _ in range(FOLLOWERS + 1)]
        for steps in waits:
            assert "The corpus is being prepared" in str(next(steps))
        with pytest.raises(gr.Error, match="Ask again when the corpus is ready"):
            next(waits[0])


def test_texts_whose_visitors_left_are_not_remembered_for_ever(data_folder, monkeypatch):
    monkeypatch.setattr(visit, "MOST", 2)
    lane = Lane(ModelCache(data_folder))
    tokens = {code: asked_for(lane, code) for code in [new_code() for _ in range(4)]}
    for code, token in tokens.items():
        lane.stopping()(code, token)

    stopped = []
    for code, token in reversed(tokens.items()):
        with lane.text(code, token) as asked:
            stopped.append(asked())
    assert stopped == [True, True, False, False]


@pytest.mark.parametrize("way", ["explain_given", "write"])
def test_a_text_that_ends_after_all_was_deleted_brings_nothing_back(data_folder, way):
    home, code = data_folder, new_code()
    handler = next(one for one in named(handlers(home), way) if "run" in [w.elem_id for w in one.inputs[1:2]])
    values = values_for(handler, code)
    values[1] = "sample:factbook-lm"
    if way == "explain_given":
        values[3] = "Area: 100 square km. Exports: fish and timber."
    steps = handler.fn(*values)
    next(steps)
    next(steps)  # it reads, or has written its first words

    delete_workspace(home, code)

    with pytest.raises(gr.Error, match="no workspace of this code"):
        list(steps)
    assert not list((home / "workspaces").iterdir())


def test_no_text_is_longer_on_a_public_page_than_others_can_wait_for(data_folder):
    known, code = handlers(data_folder, PUBLIC), new_code()
    ask = PUBLIC.new_tokens + 1
    words = f"You ask for {ask} new tokens, and here at most {PUBLIC.new_tokens} are written at a time"
    generate = next(one for one in known if one.api_name == "generate")

    assert words in str(answer(generate.fn, code, RUN, "Area", ask)[-1])
    for name in ("write", "side_by_side"):
        for handler in named(known, name):
            values = values_for(handler, code)
            place = [getattr(one, "elem_id", "") or "" for one in handler.inputs]
            at = next(i for i, id_ in enumerate(place) if id_.endswith("knob-max_new_tokens"))
            values[at] = ask
            assert words in str(answer(handler.fn, *values)[-1])


def test_a_private_page_writes_texts_of_any_length(data_folder):
    assert checked_writing(data_folder, max_new_tokens=65_536).max_new_tokens == 65_536
    with pytest.raises(UserError, match="max_new_tokens"):
        checked_writing(data_folder, max_new_tokens=0)
