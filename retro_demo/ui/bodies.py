"""What a request may hold that is no upload: Gradio reads it into memory, and looks at each value on the
thread that answers everybody."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Message, Receive

from retro_demo.server.limits import MEGABYTE

MOST_BYTES = 8_000_000
"""The longest text (refusals.MOST_CHARS) takes 4 MB as UTF-8, which browsers and gradio_client send, and 6 MB
in escapes, or 12 if it is of emoji alone."""
MOST_VALUES = 20_000
"""A thousand files, the most of an upload, are 9,000. 8 MB of empty lists took 4 seconds, in which the server
answered nobody, and 1 GB."""


def announced(headers: Mapping[bytes, bytes]) -> int | None:
    """Bytes of the body, as its head says; None where it comes in pieces, however many. The web server takes
    no byte more."""
    length = headers.get(b"content-length", b"" if b"transfer-encoding" in headers else b"0")
    return int(length) if length.isdigit() else None


async def refused_or_read(length: int | None, receive: Receive) -> tuple[int, str, Receive]:
    """Why a body is not taken, with the status; (0, "", what to receive it from) where it is."""
    if length is None:
        return 411, "A request must say its length (Content-Length). Send it whole.", receive
    if length > MOST_BYTES:
        said = (
            f"The request has {length / MEGABYTE:,.1f} MB; at most {MOST_BYTES // MEGABYTE} MB are taken. "
            "Send files as uploads, and texts as UTF-8."
        )
        return 413, said, receive
    if length <= MOST_VALUES:  # so many values take more bytes
        return 0, "", receive
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # who asked has gone
            return 0, "", _again([message], receive)
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    if b"\0" in body:  # UTF-16, which json would read; in UTF-8 there is none
        return 400, "The request is no JSON in UTF-8. Send it as that.", receive
    if values(body) > MOST_VALUES:
        return 413, f"The request holds more than {MOST_VALUES:,} values. Ask for less at a time.", receive
    return 0, "", _again([{"type": "http.request", "body": body, "more_body": False}], receive)


def values(body: bytes) -> int:
    """How many values a text of JSON holds, about; a bound from below where there are far too many."""
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of quotes begins and ends texts
    if (texts := bare.count(b'"') // 2) > 2 * MOST_VALUES:  # of an object also the names are texts
        return texts // 2
    outside = b"".join(bare.split(b'"')[::2])
    return sum(outside.count(mark) for mark in (b",", b"[", b"{"))


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Messages that came already, then those that come."""

    async def received() -> Message:
        return messages.pop(0) if messages else await receive()

    return received
