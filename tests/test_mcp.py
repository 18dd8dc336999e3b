"""The endpoints as tools of an MCP client, where the package mcp is installed; without it, what is said."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError

import pytest
from page_helpers import page_home
from test_page import ENDPOINTS

import app
from retro_demo.ui.page import build_app
from retro_demo.workspace import new_code


def test_only_the_named_endpoints_are_tools_and_a_mistake_comes_back_as_its_sentence(tmp_path):
    pytest.importorskip("mcp")
    if app.mcp_missing():
        pytest.skip(app.mcp_missing())
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask(address: str):
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = [tool.name for tool in (await session.list_tools()).tools]
            wrong = {"workspace": new_code(), "corpus": "nowhere", "text": "salt"}
            return tools, await session.call_tool("search", wrong)

    with page_home(tmp_path) as home:
        demo, _ = build_app(home)
        address = app.serve(demo, "127.0.0.1", None, mcp=True)
        try:
            tools, answer = asyncio.run(ask(address))
        finally:
            demo.close()
    assert {f"/{name}" for name in tools} == ENDPOINTS
    assert answer.isError
    assert "nowhere" in str(answer.content)


@pytest.mark.parametrize(("found", "words"), [("", "is not installed"), ("2.3.0", "gradio cannot use")])
def test_without_a_fitting_mcp_the_flag_says_what_to_install(monkeypatch, found, words):
    def version(name: str) -> str:
        if not found:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(app, "version", version)
    assert words in app.mcp_missing()
    assert "requirements-mcp.txt" in app.mcp_missing()
