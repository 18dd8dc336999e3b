"""Who comes in: so many requests and uploads of one address, no body that fills the memory, shut doors."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import secrets
import time
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retro_demo.errors import UserError
from retro_demo.server.addresses import SITS_HERE, VISITOR
from retro_demo.server.limits import MEGABYTE, PRIVATE, Limits, for_strangers, limits_of
from retro_demo.server.quotas import check_disk
from retro_demo.ui.bodies import announced, refused_or_read

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


class Doorman:
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
