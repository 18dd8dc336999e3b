"""What the page's queue remembers of sessions, and what an answer costs."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from asyncio import Queue
from copy import deepcopy
from dataclasses import replace

import gradio as gr
import httpx
from gradio.state_holder import SessionState
from held_back import PATIENCE, no_place_free
from page_helpers import page_home

from benchmarks.serving import served_page
from retro_demo.errors import UserError
from retro_demo.jobs.job_queue import read_queue
from retro_demo.server import service
from retro_demo.server.limits import PUBLIC
from retro_demo.server.workspace import new_code
from retro_demo.ui import gradio_patches, serve
from retro_demo.ui.gradio_patches import Messages, Page, keep_those_who_wait


def test_whoever_waits_is_not_forgotten_for_those_who_came_later():
    waiting_for = {"early": {"a build"}}
    messages = Messages(waiting_for)
    messages["early"] = early = Queue()
    for number in range(3 * gradio_patches.MOST):
        waiting_for[str(number)] = set()
        messages[str(number)] = Queue()

    assert messages["early"] is early
    assert len(messages) == gradio_patches.MOST
    assert len(waiting_for) == gradio_patches.MOST  # nothing is kept of those who are forgotten
    assert str(3 * gradio_patches.MOST - 1) in messages


def test_programs_that_ask_and_never_listen_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(gradio_patches, "MOST_WAITING", 3_000)
    waiting_for: dict[str, set[str]] = {}
    messages = Messages(waiting_for)
    for number in range(5_000):
        waiting_for[str(number)] = {"something"}
        messages[str(number)] = Queue()

    assert len(messages) == 3_000
    assert "4999" in messages


def test_what_ends_for_a_session_that_has_left_is_told_to_nobody():
    messages = Messages({})

    messages["gone"].put_nowait("done")

    assert "gone" not in messages


def test_the_queue_of_a_page_remembers_so():
    with gr.Blocks() as demo:
        gr.Textbox()
    demo.queue()

    keep_those_who_wait(demo)

    kept = demo._queue.pending_messages_per_session
    assert isinstance(kept, Messages)
    assert kept.waiting_for is demo._queue.pending_event_ids_session


def test_an_answer_makes_only_those_components_anew_that_it_changes(monkeypatch):
    made = []
    monkeypatch.setattr(SessionState, "_update_config", lambda _state, key: made.append(key))
    with Page() as demo:
        boxes = [gr.Textbox() for _ in range(4)]
        kept = gr.State("before")
        boxes[0].change(lambda: None, None, [*boxes, kept])
    function = next(iter(demo.fns.values()))
    answers = {
        boxes[2]._id: [gr.skip(), "a text", gr.update(visible=False), gr.skip(), "after"],
        boxes[1]._id: [gr.skip(), gr.update(value="b"), gr.skip(), gr.skip(), gr.skip()],
        None: [gr.skip()] * 5,
    }
    for changed, values in answers.items():
        states = SessionState(demo), SessionState(demo)
        ours = asyncio.run(demo.postprocess_data(function, deepcopy(values), states[0]))
        assert made == [changed] * (changed is not None)
        gradios = asyncio.run(gr.Blocks.postprocess_data(demo, function, deepcopy(values), states[1]))

        assert ours == gradios
        assert states[0][kept._id] == states[1][kept._id]
        assert len(made) > 3  # Gradio's own makes all of them
        made.clear()


def test_a_page_makes_no_table_of_all_calls_after_each_call():
    """Gradio's own is of 10,000 calls, on the thread that answers all of them."""
    with gr.Blocks() as demo:
        gr.Textbox()
    queue = demo.queue()._queue
    queue.events_recorded = 10_000
    call = {"function": "search", "status": "success", "process_time": 1.0, "session_hash": "a"}

    assert serve.os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] == str(queue.ANALYTICS_MAX_EVENTS)
    assert queue.compute_analytics_summary([call]) == {"functions": {}}


def test_an_address_fills_only_its_part_of_the_pages_queue_and_others_get_in(tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def held(*_values) -> None:
        begun.set()
        go_on.wait(PATIENCE)
        raise UserError("The test is over.")

    monkeypatch.setattr(service, "check_ready", held)  # the first text holds its lane: the others wait
    with page_home(tmp_path) as home, served_page(home, replace(PUBLIC, calls_per_address=2)) as address:
        texts = {
            "data": [new_code(), "sample:factbook-retrofit", "A", 400, 0.8, 0, 0.95, 7, "on", "", "", "", ""]
        }

        def asked(client: httpx.Client) -> httpx.Response:
            return client.post("gradio_api/call/generate", json=texts)

        with (
            httpx.Client(
                base_url=address, transport=httpx.HTTPTransport(local_address="127.0.0.5"), timeout=PATIENCE
            ) as many,
            httpx.Client(base_url=address, timeout=PATIENCE) as other,
        ):
            forged = {"x-retro-demo-visitor": "somebody else"}  # as if it were a header of one's own
            answers = [many.post("gradio_api/call/generate", json=texts, headers=forged)]
            assert begun.wait(PATIENCE)
            answers += [many.post("gradio_api/call/generate", json=texts, headers=forged) for _ in range(3)]
            answers.append(asked(other))
            go_on.set()

    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 200]
    assert "2 calls from your address wait already, and at most 2 may" in answers[3].json()["detail"]


def test_a_job_knows_the_address_that_it_was_asked_for_from_by_a_hash_alone(tmp_path, small_folder):
    with page_home(tmp_path) as home, served_page(home, PUBLIC) as address, no_place_free(home, PUBLIC):
        seen = []  # of jobs that wait: one that starts leaves the queue as fast as it can
        for place, code in (("127.0.0.5", new_code()), ("127.0.0.5", new_code()), ("127.0.0.6", new_code())):
            shutil.copytree(small_folder, home / "workspaces" / code / "corpora" / "places")
            with httpx.Client(
                base_url=address, transport=httpx.HTTPTransport(local_address=place), timeout=PATIENCE
            ) as client:
                values = {"data": [code, "places", "lm", "tiny", 1, 0, ""]}
                event = client.post("gradio_api/call/train", json=values).json()["event_id"]
                said = client.get(f"gradio_api/call/train/{event}").text
                assert "event: complete" in said, said
            seen.append({entry.visitor: entry.address for entry in read_queue(home)}.get(code, "gone"))

    assert seen[0] == seen[1] != seen[2]
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in seen)
