"""What a stranger's program sends that no page would: refused in a sentence before a handler sees it."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.knobs import seen
from retro_demo.ui.form import shows_errors

log = logging.getLogger(__name__)

MOST_CHARS = 1_000_000  # of a text over HTTP
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
            given = await super().preprocess_data(block_fn, sendable(inputs), *values, **named)
            return [_as_browsers_send(*pair) for pair in zip(block_fn.inputs, given, strict=True)]
        except gr.Error as error:
            raise gr.Error(error.message[:200], print_exception=False) from None
        except Exception as error:
            log.info("a request was refused: %s", error)
            raise gr.Error(
                "The values that were sent are not what this takes: too few, of another kind, or a file that "
                "was not uploaded here. The API page lists what each endpoint takes.",
                print_exception=False,
            ) from None


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
            if isinstance(value, str) and len(value) > MOST_CHARS:
                raise UserError(f"{name} has {len(value):,} characters; at most {MOST_CHARS:,} are taken.")

    if inspect.isgeneratorfunction(endpoint):

        @functools.wraps(endpoint)
        def stream(*values: Any) -> Any:
            check(values)
            yield from endpoint(*values)

        return shows_errors(stream)

    @functools.wraps(endpoint)
    def call(*values: Any) -> Any:
        check(values)
        return endpoint(*values)

    return shows_errors(call)


def _kind(annotation: str) -> tuple[Any, str]:
    plain = annotation.removesuffix(" | None")
    if plain.startswith("list"):
        return list, "a list"
    if plain.startswith("dict"):
        return dict, "an object"
    return KINDS[plain]
