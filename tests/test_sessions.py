"""Which sessions the page's queue remembers."""

from __future__ import annotations

from asyncio import Queue

import gradio as gr

from retro_demo.ui import sessions
from retro_demo.ui.sessions import Messages, keep_those_who_wait


def test_whoever_waits_is_not_forgotten_for_those_who_came_later():
    waiting_for = {"early": {"a build"}}
    messages = Messages(waiting_for)
    messages["early"] = early = Queue()
    for number in range(3 * sessions.MOST):
        waiting_for[str(number)] = set()
        messages[str(number)] = Queue()

    assert messages["early"] is early
    assert len(messages) == sessions.MOST
    assert len(waiting_for) == sessions.MOST  # nothing is kept of those who are forgotten
    assert str(3 * sessions.MOST - 1) in messages


def test_programs_that_ask_and_never_listen_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(sessions, "MOST_WAITING", 3_000)
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
