"""Where the request comes from that is being answered; the page says so, the queue and its limits ask."""

from __future__ import annotations

from contextvars import ContextVar

VISITOR = "x-retro-demo-visitor"
"""The header in which the doorman (ui/doorman.py) passes that on; what a visitor writes there is dropped."""
ADDRESS: ContextVar[str] = ContextVar("address", default="")
"""A hash of the address, of a server's lifetime: equal for requests of one address; "" where nobody knows.

A variable of the request's own context, because between the page and the queue lie ten ways to start a job.
"""
SITS_HERE = "x-retro-demo-here"
"""The header in which the doorman says that the visitor sits at this machine; also dropped from outside."""
HERE: ContextVar[bool] = ContextVar("here", default=False)
"""Whether the request comes from this machine and the page is not for strangers: who asks may see folders."""
