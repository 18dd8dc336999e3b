"""Who comes in: requests of one address a minute, no upload onto a full disk, one door that stays shut."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import time
from collections import OrderedDict
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retro_demo.errors import UserError
from retro_demo.limits import Limits, limits_of
from retro_demo.quotas import check_disk

MOST_KNOWN = 10_000  # addresses; the one not seen for longest is forgotten first
WORK = re.compile(r"/(queue/join|call/[^/]+|call/v2/[^/]+|upload)/?$")  # what makes the server work
COST_OF_WORK = 10
FREE_OF_CHARGE = ("/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico")  # the page itself

SHUT = "/deep_link"
"""Gradio writes all values of a session into a file there, the workspace code too, for whoever names the
session, and shows them to whoever names the file."""


class Doorman:
    """Plain ASGI middleware: a bucket of tokens for each address, filled once a minute.

    `proxies`: how many stand before the server. Each writes whom it heard at the end of X-Forwarded-For, so
    the address is that many hops from the end; what stands before it a visitor may have written.
    """

    def __init__(self, app: ASGIApp, home: Path, proxies: int = 0) -> None:
        self.app = app
        self.home = home
        self.proxies = proxies
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._coming = 0  # bytes of uploads that are not there yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(FREE_OF_CHARGE):
            await self.app(scope, receive, send)
            return
        if scope["path"].rstrip("/").endswith(SHUT):
            await _refuse(send, 404, "This page makes no deep links. Share a workspace code instead.", 0)
            return
        limits = limits_of(self.home)
        per_minute = limits.requests_per_minute
        cost = COST_OF_WORK if scope["method"] == "POST" and WORK.search(scope["path"]) else 1
        if per_minute and (wait := self._take(self._address(scope), per_minute, time.monotonic(), cost)):
            said = (
                f"There were more than {per_minute} requests in a minute from your address (work counts as "
                f"{COST_OF_WORK}). Wait {wait} seconds, and ask less often."
            )
            await _refuse(send, 429, said, wait)
            return
        if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            await self._take_in(scope, receive, send, limits)
        else:
            await self.app(scope, receive, send)

    async def _take_in(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        """An upload, where the disk has room for it beside what is still to come of all others."""
        said = dict(scope["headers"]).get(b"content-length", b"")
        if limits.free_megabytes and not said.isdigit():
            await _refuse(send, 411, "An upload must say its length (Content-Length). Send it whole.", 0)
            return
        left = int(said) if said.isdigit() else 0  # the web server takes no byte more
        try:
            check_disk(self.home, limits, self._coming + left)
        except UserError as error:
            await _refuse(send, 507, str(error), 600)
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

    def _take(self, address: str, per_minute: int, now: float, cost: int = 1) -> int:
        """Take tokens of an address; 0, or the seconds until there are as many again."""
        tokens, before = self._buckets.pop(address, (float(per_minute), now))
        tokens = min(per_minute, tokens + (now - before) * per_minute / 60)
        cost = min(cost, per_minute)
        paid = tokens >= cost
        self._buckets[address] = (tokens - cost * paid, now)
        if len(self._buckets) > MOST_KNOWN:
            self._buckets.popitem(last=False)
        return 0 if paid else math.ceil((cost - tokens) * 60 / per_minute)

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
