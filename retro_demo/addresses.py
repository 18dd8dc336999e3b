"""Where the request comes from that is being answered; the page says so, the queue and its limits ask."""

from __future__ import annotations

from contextvars import ContextVar

VISITOR = "x-retro-demo-visitor"
"""The header in which the doorman (ui/doorman.py) passes that on; what a visitor writes there is dropped."""
ADDRESS: ContextVar[str] = ContextVar("address", default="")
"""A hash of the address, of a server's lifetime: equal for requests of one address; "" where nobody knows.

A variable of the request's own context, because between the page and the queue lie ten ways to start a job.
"""
