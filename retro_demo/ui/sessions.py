"""Which sessions Gradio remembers, and whose calls wait: none is forgotten that still waits for an answer.

Gradio keeps the messages of 2,000 sessions and forgets the one that began first, whether it waits or not;
each call of a program is a session. On a busy page a build that waited for its place so ended in "404: Not
Found".
"""

from __future__ import annotations

from asyncio import Queue
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import LRUCache

from retro_demo.server.addresses import VISITOR
from retro_demo.server.limits import limits_of

MOST = 2_000
MOST_WAITING = 20_000  # a program that asks and never listens seems to wait for ever


class Messages(LRUCache):
    """The messages to each session; of too many the oldest go that wait for nothing."""

    def __init__(self, waiting_for: dict[str, set[str]]) -> None:
        """`waiting_for`: the events of each session that have not ended, which the queue keeps."""
        super().__init__(MOST)
        self.waiting_for = waiting_for

    def __setitem__(self, session: str, messages: Queue) -> None:
        if session not in self and len(self) >= self.max_size:
            idle = next((known for known in self if not self.waiting_for.get(known)), None)
            if idle is not None:
                del self[idle]
                self.waiting_for.pop(idle, None)
            elif len(self) < MOST_WAITING:
                self.max_size = len(self) + 1
        super().__setitem__(session, messages)

    def __missing__(self, session: str) -> Queue:
        """What ends for a session that has left is told to nobody."""
        return Queue()


def keep_those_who_wait(demo: gr.Blocks) -> None:
    """Let the queue of the page remember sessions so; call after `demo.queue()`."""
    queue = demo._queue
    queue.pending_messages_per_session = Messages(queue.pending_event_ids_session)


def bound_each_address(demo: gr.Blocks, home: Path) -> None:
    """Let no address fill the queue of the page, where all wait: call after `demo.queue()`.

    What is asked for is done in its turn, also for a program that does not listen any more.
    """
    queue = demo._queue
    push = queue.push

    async def bounded(body: Any, request: Any, username: str | None) -> Any:
        most, address = limits_of(home).calls_per_address, request.headers.get(VISITOR, "")
        lanes = queue.event_queue_per_concurrency_id.values()
        waiting = [event for lane in lanes for event in lane.queue]
        own = sum(event.request.headers.get(VISITOR, "") == address for event in waiting)
        if most and address and own >= most:
            said = f"{own} calls from your address wait already, and at most {most} may. "
            return False, said + "Wait for their answers, then ask again.", "queue_full"
        return await push(body=body, request=request, username=username)

    queue.push = bounded
