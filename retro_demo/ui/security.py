"""Headers that keep the page from loading anything from another host, whatever a text may hold."""

from __future__ import annotations

import logging
import secrets

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
