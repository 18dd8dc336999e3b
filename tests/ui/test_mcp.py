"""The endpoints as tools of an MCP client, where the package mcp is installed; without it, what is said."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
from page_helpers import page_home
from page_shared import ENDPOINTS

from retro_demo.server.limits import PRIVATE, PUBLIC
from retro_demo.server.workspace import new_code
from retro_demo.ui import serve
from retro_demo.ui.middleware import COST_OF_WORK, RateLimiter
from retro_demo.ui.page import build_app


async def asked(address: str, headers: dict[str, str] | None = None):
    """Names of the tools, and what `search` answers to a corpus that is not there."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with (
        streamablehttp_client(f"{address}gradio_api/mcp/", headers=headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        wrong = {"workspace": new_code(), "corpus": "nowhere", "text": "salt"}
        return tools, await session.call_tool("search", wrong)


@pytest.fixture
def needs_mcp() -> None:
    pytest.importorskip("mcp")
    if serve.mcp_missing():
        pytest.skip(serve.mcp_missing())


def test_only_the_named_endpoints_are_tools_and_a_mistake_comes_back_as_its_sentence(tmp_path, needs_mcp):
    with page_home(tmp_path) as home:
        demo, _ = build_app(home)
        address = serve.launch(demo, home, "127.0.0.1", None, mcp=True)
        try:
            tools, answer = asyncio.run(asked(address))
        finally:
            demo.close()
    assert {f"/{name}" for name in tools} == ENDPOINTS
    assert answer.isError
    assert "nowhere" in str(answer.content)


def test_behind_a_proxy_who_asks_for_a_tool_pays_for_its_work(tmp_path, needs_mcp, monkeypatch):
    paid: list[tuple[str, int]] = []

    def noted(door: RateLimiter, address: str, per_minute: int, now: float, cost: int = 1) -> int:
        paid.append((address, cost))
        return take(door, address, per_minute, now, cost)

    take = RateLimiter._take
    monkeypatch.setattr(RateLimiter, "_take", noted)
    with page_home(tmp_path) as home:
        demo, _ = build_app(home, "", PUBLIC)
        address = serve.launch(demo, home, "127.0.0.1", None, mcp=True, proxies=1)
        try:
            asyncio.run(asked(address, {"X-Forwarded-For": "198.51.100.9, 192.0.2.7"}))
        finally:
            demo.close()

    assert ("192.0.2.7", COST_OF_WORK) in paid
    assert {address for address, cost in paid if cost > 1} == {"192.0.2.7"}


@pytest.mark.parametrize(
    ("limits", "proxies", "fine"),
    [
        (PUBLIC, 0, False),
        (PUBLIC, 1, True),
        (replace(PUBLIC, requests_per_minute=0), 0, True),
        (PRIVATE, 0, True),
    ],
)
def test_tools_and_a_limit_of_requests_go_together_only_where_visitors_can_be_told_apart(
    limits, proxies, fine
):
    assert (serve.mcp_uncounted(limits, proxies) == "") is fine


@pytest.mark.parametrize(("found", "words"), [("", "is not installed"), ("2.3.0", "gradio cannot use")])
def test_without_a_fitting_mcp_the_flag_says_what_to_install(monkeypatch, found, words):
    def version(name: str) -> str:
        if not found:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(serve, "version", version)
    assert words in serve.mcp_missing()
    assert "requirements-mcp.txt" in serve.mcp_missing()
