"""Before Gradio: the rate limiter, limits on request bodies, security headers, compression.

Requests and uploads of one address are counted, and Gradio's endpoints that the page does not need are
closed. Gradio reads a body into memory and looks at each value on the thread that answers everybody, so
bodies are bounded first. The headers keep the page from loading anything from another host, whatever a text
may hold.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retro_demo.errors import UserError
from retro_demo.server.limits import (
    MEGABYTE,
    PRIVATE,
    SITS_HERE,
    VISITOR,
    Limits,
    check_disk,
    for_strangers,
    limits_of,
)

MOST_BYTES = 8_000_000
"""The longest text (gradio_patches.MOST_CHARS) takes 4 MB as UTF-8, which browsers and gradio_client send,
and 6 MB in escapes, or 12 if it is of emoji alone."""
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


MOST_KNOWN = 10_000  # addresses; the one not seen for longest is forgotten first
WORK = re.compile(r"/(queue/join|call/[^/]+|call/v2/[^/]+|upload)/?$")  # what makes the server work
COST_OF_WORK = 10
FREE_OF_CHARGE = ("/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico")  # the page itself

UPLOAD = "/gradio_api/upload"  # whole: /run/upload would be an endpoint of that name
HOUR = 3600  # seconds; nobody's uploads are kept for longer (build_app)

PASSED_ON = (VISITOR, SITS_HERE, "x-forwarded-for", "x-real-ip", "forwarded", "via")
"""Headers of a request that somebody passed on; the first two are ours, which Gradio sends to itself."""

SHUT = {
    "/deep_link": "This page makes no deep links. Share a workspace code instead.",
    "/component_server": "No part of this page is asked like that. The API page lists what can be.",
    "/process_recording": "Recordings of the screen are not edited here. The browser saves them as they are.",
}
"""Deep links: Gradio writes all values of a session into a file, the workspace code too, for whoever names
the session, and shows them to whoever names the file. The other two take files that are no uploads."""


Buckets = OrderedDict[str, tuple[float, float]]  # tokens of an address, and when they were counted


class RateLimiter:
    """Plain ASGI middleware: a bucket of requests for each address, filled in a minute, and one of bytes.

    `proxies`: how many stand before the server. Each writes whom it heard at the end of X-Forwarded-For, so
    the address is that many hops from the end; what stands before it a visitor may have written.
    """

    def __init__(self, app: ASGIApp, home: Path, proxies: int = 0) -> None:
        self.app = app
        self.home = home
        self.proxies = proxies
        self._key = secrets.token_bytes(32)
        self._limits = PRIVATE  # until a server has said what holds
        self._buckets: Buckets = OrderedDict()
        self._sent: Buckets = OrderedDict()  # of bytes
        self._coming = 0  # bytes of uploads that are not there yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(FREE_OF_CHARGE):
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        for door, instead in SHUT.items():
            if path.endswith(door):
                await _refuse(send, 404, instead, 0)
                return
        self._limits = limits = limits_of(self.home, self._limits)
        per_minute, address = limits.requests_per_minute, self._address(scope)
        cost = COST_OF_WORK if scope["method"] == "POST" and WORK.search(scope["path"]) else 1
        if per_minute and (wait := self._take(address, per_minute, time.monotonic(), cost)):
            said = (
                f"There were more than {per_minute} requests in a minute from your address (work counts as "
                f"{COST_OF_WORK}). Wait {wait} seconds, and ask less often."
            )
            await _refuse(send, 429, said, wait)
            return
        scope = {**scope, "headers": self._passed_on(scope, address)}
        length = announced(dict(scope["headers"]))
        if scope["method"] == "POST" and path.endswith(UPLOAD):
            await self._take_in(scope, receive, send, limits, length, address)
            return
        status, said, receive = await refused_or_read(length, receive)
        if status:
            await _refuse(send, status, said, 0)
        else:
            await self.app(scope, receive, send)

    def _passed_on(self, scope: Scope, address: str) -> list[tuple[bytes, bytes]]:
        """The headers of a request, with a hash of its address: the queue's files are to tell no address.

        Also whether the asker sits at this machine, which commands are told by.
        """
        visitor = blake2b(address.encode(), key=self._key, digest_size=8).hexdigest()
        own = (VISITOR.encode(), SITS_HERE.encode())
        kept = [(name, value) for name, value in scope["headers"] if name not in own]
        here = [(own[1], b"1")] if self._sits_here(scope) else []
        return [*kept, (own[0], visitor.encode()), *here]

    def _sits_here(self, scope: Scope) -> bool:
        """Whether a request comes from this machine: nobody passed it on, and no strangers come here."""
        if self.proxies or for_strangers(self._limits) or not scope.get("client"):
            return False
        if any(name.decode("latin-1").lower() in PASSED_ON for name, _ in scope["headers"]):
            return False
        asker, server = scope["client"][0], (scope.get("server") or ("",))[0]
        try:
            return asker == server or ipaddress.ip_address(asker.removeprefix("::ffff:")).is_loopback
        except ValueError:
            return False

    async def _take_in(
        self, scope: Scope, receive: Receive, send: Send, limits: Limits, length: int | None, address: str
    ) -> None:
        """An upload, where the disk has room for it beside what is still to come of all others, and its
        address has not sent too much."""
        most = limits.upload_megabytes_per_hour * MEGABYTE
        if (limits.free_megabytes or most) and length is None:
            await _refuse(send, 411, "An upload must say its length (Content-Length). Send it whole.", 0)
            return
        left = length or 0
        try:
            check_disk(self.home, limits, self._coming + left)
        except UserError as error:
            await _refuse(send, 507, str(error), 600)
            return
        megabytes = f"{left / MEGABYTE:,.1f} MB"
        here = f"one address may upload at most {limits.upload_megabytes_per_hour:,} MB within an hour"
        if most and left > most:
            await _refuse(send, 413, f"The upload has {megabytes}, and {here}. Upload less.", 0)
            return
        if most and (wait := _pay(self._sent, address, left, most, HOUR, time.monotonic())):
            said = (
                f"This upload has {megabytes}, and {here}, with what came before from yours. "
                f"Wait {math.ceil(wait / 60)} minutes, or upload less."
            )
            await _refuse(send, 429, said, wait)
            return

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            came = min(left, len(message.get("body", b"")))  # what came is seen on the disk
            left -= came
            self._coming -= came
            return message

        self._coming += left
        try:
            await self.app(scope, counted, send)
        finally:
            self._coming -= left
            if most and left:  # what never came was not sent
                _pay(self._sent, address, -left, most, HOUR, time.monotonic())

    def _take(self, address: str, per_minute: int, now: float, cost: int = 1) -> int:
        """Let an address pay for a request; 0, or the seconds until it can."""
        return _pay(self._buckets, address, min(cost, per_minute), per_minute, 60, now)

    def _address(self, scope: Scope) -> str:
        """Where a request comes from; of IPv6 the network, whose owner has all its addresses."""
        text = scope["client"][0] if scope.get("client") else ""
        heard = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        hops = heard.decode("latin-1").split(",")
        if 0 < self.proxies <= len(hops):  # fewer: it came past one of the proxies, which says who it is
            text = _without_port(hops[-self.proxies].strip()) or text
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text[:64]
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            return str(address.ipv4_mapped)
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        return text


def _pay(buckets: Buckets, address: str, cost: int, most: int, seconds: int, now: float) -> int:
    """Take tokens out of a bucket that holds `most` and fills within so many seconds; 0, or the seconds until
    there are as many again."""
    tokens, before = buckets.pop(address, (float(most), now))
    tokens = min(most, tokens + (now - before) * most / seconds)
    paid = tokens >= cost
    buckets[address] = (tokens - cost * paid, now)
    if len(buckets) > MOST_KNOWN:
        buckets.popitem(last=False)
    return 0 if paid else math.ceil((cost - tokens) * seconds / most)


def _without_port(hop: str) -> str:
    """The address of a hop; some proxies write 192.0.2.1:80 and [2001:db8::1]:80."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


async def _refuse(send: Send, status: int, said: str, wait: int) -> None:
    body = json.dumps({"detail": said, "error": said}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", str(wait).encode())] if wait else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


log = logging.getLogger(__name__)

# Gradio's own page needs inline scripts and eval; there is no frame-ancestors rule, so that a
# Hugging Face Space may embed the page.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


MISSING = "No value provided for required argument:"  # as gradio begins a TypeError


class SecurityHeaders:
    """Plain ASGI middleware (starlette's own base class would buffer the event streams)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = streams = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun, streams
            if message["type"] == "http.response.start":
                begun, given = True, [*message.get("headers", [])]
                streams = any(name == b"content-type" and b"event-stream" in value for name, value in given)
                message["headers"] = [*given, *HEADERS]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
        except Exception as error:  # the last frame of ours that a request passes
            if streams and isinstance(error.__cause__, HTTPException):  # it was told in the stream already
                log.info("a stream of %r ended: %s", scope["path"], error.__cause__)
                await send({"type": "http.response.body", "body": b""})
                return
            if begun or scope["type"] != "http":
                raise
            if isinstance(error, KeyError) and scope["path"].rstrip("/").endswith("/queue/join"):
                said = "There is no such event on this page. Reload it; programs use the API page's names."
                await JSONResponse({"error": said}, 404)(scope, receive, send_with_headers)
                return
            if str(error).startswith(MISSING):
                name = str(error).removeprefix(MISSING).strip()
                said = f"The argument {name} is missing. The API page lists all of them."
                await JSONResponse({"error": said}, 400)(scope, receive, send_with_headers)
                return
            number = secrets.token_hex(4)
            log.exception("a request to %r failed (log id %s)", scope["path"], number)
            said = f"This request cannot be answered (log id {number})."
            await JSONResponse({"error": said}, 400)(scope, receive, send_with_headers)


WRITTEN_OUT = ("/", "/config", "/run/predict")  # how the paths of large answers that are no streams end


class Compressed:
    """The page and its answers as gzip, for who takes it: they are text of which 9 of 10 bytes repeat.

    Streams and files pass as they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.packed = GZipMiddleware(app, minimum_size=10_000, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        large = scope["type"] == "http" and scope["path"].endswith(WRITTEN_OUT)
        await (self.packed if large else self.app)(scope, receive, send)
