"""Requests of one address: who asks too often waits, and nobody else does."""

from __future__ import annotations

import asyncio
from collections import namedtuple

import httpx
import pytest
from page_helpers import served_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from retro_demo import quotas
from retro_demo.limits import PRIVATE, PUBLIC, Limits, keep_limits
from retro_demo.ui import doorman
from retro_demo.ui.doorman import Doorman


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


ROUTES = [Route("/{path:path}", hello, methods=["GET", "POST"])]


def client(home, *, proxies: int = 0) -> TestClient:
    door = Doorman(Starlette(routes=ROUTES), home, proxies)
    return TestClient(door, client=("203.0.113.7", 1))  # pyright: ignore[reportArgumentType]


def test_the_request_too_many_is_refused_in_a_sentence_that_says_when_to_come_back(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=3))
    door = client(data_folder)

    assert [door.get("/config").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = door.get("/config")
    assert "more than 3 requests in a minute" in refused.json()["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 20


def test_tokens_come_back_with_time_and_never_more_than_a_minute_has(data_folder):
    door = Doorman(Starlette(), data_folder)

    assert [door._take("a", 2, 100.0) for _ in range(3)] == [0, 0, 30]
    assert door._take("a", 2, 129.0) == 1
    assert door._take("a", 2, 131.0) == 0
    assert [door._take("a", 2, 9e6) for _ in range(3)] == [0, 0, 30]


def test_asking_for_work_costs_as_much_as_ten_looks(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=25))
    door = client(data_folder)

    paths = ["/gradio_api/queue/join", "/gradio_api/call/generate", "/gradio_api/call/v2/generate"]
    assert [door.post(path).status_code for path in paths] == [200, 200, 429]
    assert [door.get("/gradio_api/call/generate/id").status_code for _ in range(5)] == [200] * 5


def test_a_private_server_counts_nothing(data_folder):
    keep_limits(data_folder, PRIVATE)
    door = client(data_folder)

    assert {door.get("/config").status_code for _ in range(PUBLIC.requests_per_minute + 100)} == {200}
    assert not door.app._buckets  # pyright: ignore[reportAttributeAccessIssue]


def test_the_files_of_the_page_cost_nothing(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=1))
    door = client(data_folder)

    assert {door.get("/assets/index.js").status_code for _ in range(9)} == {200}
    assert door.get("/config").status_code == 200


PEER = "203.0.113.7"


@pytest.mark.parametrize(
    ("proxies", "said", "seen"),
    [
        (0, ["192.0.2.1, 198.51.100.2"], PEER),
        (1, ["192.0.2.1, 198.51.100.2"], "198.51.100.2"),
        (1, ["192.0.2.1", "198.51.100.2"], "198.51.100.2"),  # a proxy that adds a header of its own
        (2, ["192.0.2.1, 198.51.100.2, 10.0.0.1"], "198.51.100.2"),
        (2, ["192.0.2.1,198.51.100.2", "10.0.0.1"], "198.51.100.2"),
        (2, ["192.0.2.1"], PEER),  # past the first proxy
        (1, [], PEER),
        (1, [""], PEER),
        (1, ["192.0.2.1, 198.51.100.2:4711"], "198.51.100.2"),
        (1, ["192.0.2.1, [2001:db8:1:2::9]:4711"], "2001:db8:1:2::/64"),
    ],
)
def test_only_the_hops_of_the_proxies_that_are_there_are_believed(data_folder, proxies, said, seen):
    keep_limits(data_folder, Limits(requests_per_minute=9))
    door = client(data_folder, proxies=proxies)

    door.get("/config", headers=[("X-Forwarded-For", hops) for hops in said])

    assert list(door.app._buckets) == [seen]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("proxies", [0, 1, 2])
def test_who_forges_addresses_is_counted_as_one_visitor_all_the_same(data_folder, proxies):
    keep_limits(data_folder, Limits(requests_per_minute=3))
    door = client(data_folder, proxies=proxies)
    written = ["198.51.100.2", "10.0.0.1"][:proxies]  # by the proxies that stand there

    def ask(forged: str) -> int:
        return door.get("/config", headers={"X-Forwarded-For": ", ".join([forged, *written])}).status_code

    assert [ask(f"192.0.2.{number}") for number in range(5)] == [200, 200, 200, 429, 429]


def test_app_py_believes_no_address_that_a_visitor_of_the_same_machine_writes(tmp_path, monkeypatch):
    """The web server alone would, for whoever comes from 127.0.0.1, as through a proxy beside it."""
    monkeypatch.setenv("RETRO_DEMO_LIMIT_REQUESTS_PER_MINUTE", "20")
    with served_app(tmp_path / "home") as address:

        def ask(number: int) -> int:
            return httpx.get(address + "config", headers={"X-Forwarded-For": f"192.0.2.{number}"}).status_code

        assert 429 in [ask(number) for number in range(25)]


def test_the_owner_of_an_ipv6_network_is_one_visitor(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=9))
    door = client(data_folder, proxies=1)

    for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"):
        door.get("/config", headers={"X-Forwarded-For": address})

    assert len(door.app._buckets) == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_the_table_of_addresses_is_bounded_and_forgets_who_was_not_seen_for_longest(data_folder, monkeypatch):
    monkeypatch.setattr(doorman, "MOST_KNOWN", 3)
    door = Doorman(Starlette(), data_folder)
    for address in "abcad":
        door._take(address, 10, 1.0)

    assert list(door._buckets) == ["c", "a", "d"]


def test_nothing_is_uploaded_onto_a_disk_that_is_nearly_full(data_folder, monkeypatch):
    keep_limits(data_folder, Limits(free_megabytes=100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(quotas.shutil, "disk_usage", lambda _: usage(1, 1, 50_000_000))
    door = client(data_folder)

    refused = door.post("/gradio_api/upload")

    assert refused.status_code == 507
    assert "50 MB are free, 100 MB stay so" in refused.json()["detail"]
    assert door.get("/config").status_code == 200


def test_uploads_at_once_count_what_is_still_to_come_of_the_others(data_folder, monkeypatch):
    """Each alone would leave enough of the disk free, all together would not."""
    keep_limits(data_folder, Limits(free_megabytes=100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(quotas.shutil, "disk_usage", lambda _: usage(1, 1, 150_000_000))
    upload = {
        "type": "http",
        "method": "POST",
        "path": "/gradio_api/upload",
        "client": ("203.0.113.7", 1),
        "headers": [(b"content-length", b"30000000")],
    }

    async def arrive() -> list[int]:
        more, answers, entered = asyncio.Event(), [], []

        async def page(_scope, receive, send) -> None:
            entered.append(await receive())
            await more.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive() -> dict:
            return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}

        async def send(message) -> None:
            answers.extend([message["status"]] if message["type"] == "http.response.start" else [])

        door = Doorman(page, data_folder)
        first = asyncio.create_task(door(upload, receive, send))
        while not entered:
            await asyncio.sleep(0)
        assert door._coming == 29_000_000  # the first megabyte is on the disk
        await door(upload, receive, send)  # 29 and 30 more would leave 91 MB
        more.set()
        await first
        await door(upload, receive, send)
        assert door._coming == 0
        return answers

    assert asyncio.run(arrive()) == [507, 200, 200]


def test_an_upload_that_does_not_say_its_length_is_refused_where_the_disk_is_watched(data_folder):
    door = client(data_folder)
    pieces = iter([b"a", b"b"])  # sent piece by piece, as no browser does

    assert door.post("/gradio_api/upload", content=pieces).status_code == 200
    keep_limits(data_folder, Limits(free_megabytes=1))
    refused = door.post("/gradio_api/upload", content=pieces)

    assert refused.status_code == 411
    assert "must say its length" in refused.json()["detail"]


def test_an_ipv4_address_is_one_visitor_also_where_ipv6_writes_it(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=1))
    door = client(data_folder, proxies=1)

    def ask(address: str) -> int:
        return door.get("/config", headers={"x-forwarded-for": address}).status_code

    assert [ask("::ffff:198.51.100.1"), ask("::ffff:198.51.100.2"), ask("198.51.100.1")] == [200, 200, 429]
