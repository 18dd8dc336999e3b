"""What Gradio does otherwise here: malformed requests refused, waiting sessions kept.

A request that no page would send is refused in a sentence before a handler sees it.

Gradio keeps the messages of 2,000 sessions and forgets the one that began first, whether it waits or not;
each call of a program is a session. On a busy page a build that waited in the queue so ended in "404: Not
Found". Here no session is forgotten while it waits for an answer.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import re
from asyncio import Queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState
from gradio.utils import LRUCache

from retro_demo.errors import UserError
from retro_demo.render.wording import to_program
from retro_demo.server.limits import ADDRESS, HERE, READS, SITS_HERE, VISITOR, limits_of
from retro_demo.settings import seen
from retro_demo.ui.form import shows_errors

log = logging.getLogger(__name__)

MOST_CHARS = 1_000_000  # of a text that is sent
KINDS = {
    "str": (str, "a text"),
    "int": ((int, float), "a number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "gr.FileData": (object, "an uploaded file"),  # uploads.py looks what it is
}


class Page(gr.Blocks):
    """Blocks that say what is wrong with the values of a request that Gradio itself refuses.

    Its own errors reach the caller without words, and the log with a traceback each.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *values: Any, **named: Any) -> Any:
        try:
            if not block_fn.fn:
                raise gr.Error("That is done in the browser: there is nothing to ask the server for.")
            inputs = _completed(block_fn, inputs)
            _check_lengths(block_fn, inputs)
            given = await super().preprocess_data(block_fn, sendable(inputs), *values, **named)
            return [_as_browsers_send(*pair) for pair in zip(block_fn.inputs, given, strict=True)]
        except gr.Error as error:
            raise gr.Error(_in_words(error.message), print_exception=False) from None
        except Exception as error:
            log.info("a request was refused: %s", error)
            raise gr.Error(
                "The values that were sent are not what this takes: too few, of another kind, or a file that "
                "was not uploaded here. The API page lists what each endpoint takes.",
                print_exception=False,
            ) from None

    async def process_api(self, *values: Any, **named: Any) -> dict[str, Any]:
        """As Gradio's; the rate limiter says which address it counts for, whether the asker sits here, and in
        what languages the asker reads."""
        request = named.get("request")
        headers = request.headers if isinstance(request, gr.Request) else {}
        asker, here = ADDRESS.set(headers.get(VISITOR, "")), HERE.set(SITS_HERE in headers)
        reads = READS.set(str(headers.get("accept-language", ""))[:200])
        try:
            return await super().process_api(*values, **named)
        finally:
            ADDRESS.reset(asker)
            HERE.reset(here)
            READS.reset(reads)

    async def postprocess_data(
        self, block_fn: Any, predictions: Any, state: SessionState | None
    ) -> list[Any]:
        """As Gradio's, which makes each component anew whose value stays (gr.skip()): a look at a run, every
        second, has 19 of them."""
        outputs, stays = block_fn.outputs, gr.skip()
        if not isinstance(predictions, list) or len(predictions) != len(outputs) or len(outputs) < 2:
            return await super().postprocess_data(block_fn, predictions, state)
        given = [
            at
            for at, value in enumerate(predictions)
            if outputs[at].stateful or not (isinstance(value, dict) and value == stays)
        ]
        answer: list[Any] = [stays] * len(outputs)
        if given:
            part = copy.copy(block_fn)
            part.outputs = [outputs[at] for at in given]
            values = [predictions[at] for at in given]
            values = await super().postprocess_data(part, values if len(given) > 1 else values[0], state)
            for at, value in zip(given, values, strict=True):
                answer[at] = value
        return answer


def _completed(block_fn: Any, inputs: list[Any]) -> list[Any]:
    """The values for a named endpoint with the defaults of the arguments that were left out at its end, as
    gradio_client completes them: a program of before an argument joined goes on."""
    left_out = block_fn.inputs[len(inputs) :]
    if not left_out or any(block.get_block_name() != "api" for block in left_out):
        return inputs
    defaults = [one.default for one in inspect.signature(block_fn.fn).parameters.values()][len(inputs) :]
    return inputs if inspect.Parameter.empty in defaults else [*inputs, *defaults]


def _check_lengths(block_fn: Any, inputs: Sequence[Any]) -> None:
    """Raise gr.Error for a text, also within a list, that is longer than any is taken."""
    for at, (block, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
        if not block.stateful and (chars := _longest(value)) > MOST_CHARS:
            name = getattr(block, "label", "") or "A text of the page"
            if block.get_block_name() == "api":  # whose labels are 1st, 2nd
                name = list(inspect.signature(block_fn.fn).parameters)[at]
            raise gr.Error(f"{name[:80]} has {chars:,} characters; at most {MOST_CHARS:,} are taken.")


def _longest(value: Any) -> int:
    """Characters of the longest text in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return max(map(_longest, [*value, *value.values()]), default=0)
    return max(map(_longest, value), default=0) if isinstance(value, list) else 0


def _in_words(message: str) -> str:
    """What Gradio says, but for its list of all choices: who presses can be faster than the lists change."""
    gone = re.match(r"Value: (.*?)(?: \(type: .*?\))? is not in the list of choices", message, re.DOTALL)
    if gone is None:
        return message[:200]
    return (
        f"{gone[1][:80]} is not in the list that it was chosen from, or no more. Look at what is chosen now, "
        "then press again."
    )


def _as_browsers_send(block: Any, value: Any) -> Any:
    """A value as a handler expects it: a text box has a text, a list that takes any text has texts."""
    if isinstance(block, gr.Textbox):
        return "" if value is None else value
    if isinstance(block, gr.Dropdown) and block.allow_custom_value and value is not None:
        return [str(one) for one in value] if isinstance(value, list) and block.multiselect else str(value)
    return value


def sendable(value: Any) -> Any:
    """A value of JSON without lone surrogates: an answer that quotes one could not be sent, which would end
    the stream of its page."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [sendable(one) for one in value]
    if isinstance(value, dict):
        return {sendable(name): sendable(one) for name, one in value.items()}
    return value


def public(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """An endpoint for programs: arguments checked against their annotations, errors as sentences."""
    wanted = inspect.signature(endpoint).parameters

    def check(values: Sequence[Any]) -> None:
        for (name, parameter), value in zip(wanted.items(), values, strict=False):
            if value is None and parameter.default is None:
                continue
            kinds, words = _kind(str(parameter.annotation))
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool is not kinds):
                raise UserError(f"{name} is {seen(value)}, but it must be {words}.")
            items: Any = value if str(parameter.annotation).startswith("list[str]") else []
            if not all(isinstance(one, str) for one in items):
                raise UserError(f"{name} is {seen(value)}, but it must be a list of texts.")

    if inspect.isgeneratorfunction(endpoint):

        @functools.wraps(endpoint)
        def stream(*values: Any) -> Any:
            check(values)
            yield from endpoint(*values)

        return shows_errors(stream, to_program)

    @functools.wraps(endpoint)
    def call(*values: Any) -> Any:
        check(values)
        return endpoint(*values)

    return shows_errors(call, to_program)


def _kind(annotation: str) -> tuple[Any, str]:
    plain = annotation.removesuffix(" | None")
    if plain.startswith("list"):
        return list, "a list"
    if plain.startswith("dict"):
        return dict, "an object"
    return KINDS[plain]


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
