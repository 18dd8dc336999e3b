"""Requests of one address: who asks too often waits, and nobody else does."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import namedtuple

import httpx
import pytest
from held_back import PATIENCE
from page_helpers import page_home
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from benchmarks.serving import served_page
from retro_demo.server.limits import PRIVATE, PUBLIC, SITS_HERE, VISITOR, Limits, keep_limits
from retro_demo.ui import middleware
from retro_demo.ui.gradio_patches import MOST_CHARS
from retro_demo.ui.middleware import RateLimiter


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def weigh(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


ROUTES = [
    Route("/gradio_api/run/{name}", weigh, methods=["POST"]),
    Route("/gradio_api/upload", weigh, methods=["POST"]),
    Route("/{path:path}", hello, methods=["GET", "POST"]),
]


UPLOADING = {
    "type": "http",
    "method": "POST",
    "path": "/gradio_api/upload",
    "client": ("203.0.113.7", 1),
    "headers": [(b"content-length", b"30000000")],
}


def client(home, *, proxies: int = 0) -> TestClient:
    door = RateLimiter(Starlette(routes=ROUTES), home, proxies)
    return TestClient(door, client=("203.0.113.7", 1))  # pyright: ignore[reportArgumentType]


def test_the_request_too_many_is_refused_in_a_sentence_that_says_when_to_come_back(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=3))
    door = client(data_folder)

    assert [door.get("/config").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = door.get("/config")
    assert "more than 3 requests in a minute" in refused.json()["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 20


def test_tokens_come_back_with_time_and_never_more_than_a_minute_has(data_folder):
    door = RateLimiter(Starlette(), data_folder)

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


ASKERS = {
    "a browser here": ("127.0.0.1", {}, 0, PRIVATE, True),
    "a browser here, by IPv6": ("::1", {}, 0, PRIVATE, True),
    "one that names this machine by its address": ("192.0.2.4", {}, 0, PRIVATE, True),
    "another machine": ("203.0.113.7", {}, 0, PRIVATE, False),
    "no address": ("testclient", {}, 0, PRIVATE, False),
    "somebody behind a proxy that nobody told of": ("127.0.0.1", {"X-Forwarded-For": "a"}, 0, PRIVATE, False),
    "somebody behind a proxy of ours": ("127.0.0.1", {}, 1, PRIVATE, False),
    "Gradio, for somebody": ("127.0.0.1", {VISITOR: "a"}, 0, PRIVATE, False),
    "who says so": ("203.0.113.7", {SITS_HERE: "1"}, 0, PRIVATE, False),
    "a browser here on a public page": ("127.0.0.1", {}, 0, PUBLIC, False),
}


@pytest.mark.parametrize(("address", "headers", "proxies", "limits", "here"), ASKERS.values(), ids=ASKERS)
def test_only_who_sits_at_a_machine_that_serves_no_strangers_may_see_its_folders(
    data_folder, address, headers, proxies, limits, here
):
    async def told(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(SITS_HERE in request.headers))

    keep_limits(data_folder, limits)
    door = RateLimiter(Starlette(routes=[Route("/", told)]), data_folder, proxies)
    asker = TestClient(door, base_url="http://192.0.2.4", client=(address, 1))

    assert asker.get("/", headers=headers).text == str(here)


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


def test_app_py_believes_no_address_that_a_visitor_of_the_same_machine_writes(tmp_path):
    """The web server alone would, for whoever comes from 127.0.0.1, as through a proxy beside it."""
    limits = Limits(requests_per_minute=2)  # a third is free again after half a minute
    with page_home(tmp_path) as home, served_page(home, limits) as address:

        def ask(number: int) -> int:
            headers = {"X-Forwarded-For": f"192.0.2.{number}"}
            return httpx.get(address + "config", headers=headers, timeout=PATIENCE).status_code

        assert 429 in [ask(number) for number in range(9)]


def test_the_owner_of_an_ipv6_network_is_one_visitor(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=9))
    door = client(data_folder, proxies=1)

    for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"):
        door.get("/config", headers={"X-Forwarded-For": address})

    assert len(door.app._buckets) == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_the_table_of_addresses_is_bounded_and_forgets_who_was_not_seen_for_longest(data_folder, monkeypatch):
    monkeypatch.setattr(middleware, "MOST_KNOWN", 3)
    door = RateLimiter(Starlette(), data_folder)
    for address in "abcad":
        door._take(address, 10, 1.0)

    assert list(door._buckets) == ["c", "a", "d"]


def test_nothing_is_uploaded_onto_a_disk_that_is_nearly_full(data_folder, monkeypatch):
    keep_limits(data_folder, Limits(free_megabytes=100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 50_000_000))
    door = client(data_folder)

    refused = door.post("/gradio_api/upload")

    assert refused.status_code == 507
    assert "50 MB are free, 100 MB stay so" in refused.json()["detail"]
    assert door.get("/config").status_code == 200


def test_uploads_at_once_count_what_is_still_to_come_of_the_others(data_folder, monkeypatch):
    """Each alone would leave enough of the disk free, all together would not."""
    keep_limits(data_folder, Limits(free_megabytes=100))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 150_000_000))

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

        door = RateLimiter(page, data_folder)
        first = asyncio.create_task(door(UPLOADING, receive, send))
        while not entered:
            await asyncio.sleep(0)
        assert door._coming == 29_000_000  # the first megabyte is on the disk
        await door(UPLOADING, receive, send)  # 29 and 30 more would leave 91 MB
        more.set()
        await first
        await door(UPLOADING, receive, send)
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


@pytest.mark.parametrize("path", ["deep_link", "component_server", "component_server/", "process_recording"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_doors_of_gradio_that_the_page_does_not_use_are_shut(data_folder, method, path):
    refused = client(data_folder).request(method, f"/gradio_api/{path}", content=b"x")

    assert refused.status_code == 404
    assert refused.json()["detail"].endswith(".")


@pytest.mark.parametrize("path", ["run/predict", "run/upload", "queue/join", "call/upload", "cancel", "mcp/"])
def test_no_request_but_an_upload_is_read_that_is_larger_than_any_that_is_needed(data_folder, path):
    door = client(data_folder)  # also of a private server
    text = b'"' + b"x" * (middleware.MOST_BYTES - 2) + b'"'

    assert door.post(f"/gradio_api/{path}", content=text).status_code == 200
    refused = door.post(f"/gradio_api/{path}", content=text + b" ")
    pieces = door.post(f"/gradio_api/{path}", content=iter([b"1", b"2"]))

    assert (refused.status_code, pieces.status_code) == (413, 411)
    assert "The request has 8.0 MB; at most 8 MB are taken" in refused.json()["detail"]
    assert "must say its length" in pieces.json()["detail"]
    assert door.post("/gradio_api/upload", content=text + b" ").text == str(len(text) + 1)


def test_the_longest_text_in_any_script_is_within_what_is_read(data_folder):
    door, texts = client(data_folder), [script * MOST_CHARS for script in ("a", "\n", "\u00e9", "\u4e2d")]
    for text in texts:
        for ascii_only in (True, False):
            sent = json.dumps({"data": ["code", text]}, ensure_ascii=ascii_only).encode()
            assert door.post("/gradio_api/run/predict", content=sent).text == str(len(sent))
    emoji = json.dumps({"data": ["\U0001f40b" * MOST_CHARS]}, ensure_ascii=False).encode()
    assert door.post("/gradio_api/run/predict", content=emoji).text == str(len(emoji))


MANY = middleware.MOST_VALUES + 2


@pytest.mark.parametrize(
    "sent",
    [
        b"[" + b"[]," * MANY + b"[]]",
        b"[" + b"{}," * MANY + b"{}]",
        b"[" + b"1," * MANY + b"1]",
        b"[" + b'"",' * MANY + b'""]',
        b"[" + b'"",' * 4 * MANY + b'""]',
        b"[" * MANY,
        b'["\\\\",' + b"[]," * MANY + b'"\\""]',  # texts that end in a backslash, or hold a quote
        b'["\\\\\\"",' + b"[]," * MANY + b'"\\""]',
    ],
    ids=[
        "lists",
        "objects",
        "numbers",
        "texts",
        "more texts",
        "nested",
        "after a backslash",
        "after a quote",
    ],
)
def test_a_request_of_very_many_values_is_refused_before_they_are_read(data_folder, sent):
    refused = client(data_folder).post("/gradio_api/run/predict", content=sent)

    assert refused.status_code == 413
    assert "The request holds more than 20,000 values" in refused.json()["detail"]


def test_a_request_in_an_encoding_whose_values_are_not_counted_is_refused(data_folder):
    sent = json.dumps([[]] * MANY).encode("utf-16")

    assert client(data_folder).post("/gradio_api/run/predict", content=sent).status_code == 400


def test_brackets_quotes_and_commas_within_a_text_are_no_values(data_folder):
    sent = json.dumps({"data": ['[{"a\\": 1}, ' * 80_000, "\\"]}).encode()

    assert client(data_folder).post("/gradio_api/run/predict", content=sent).text == str(len(sent))


def test_an_address_uploads_so_much_within_an_hour_and_others_as_much_again(data_folder, monkeypatch):
    keep_limits(data_folder, Limits(upload_megabytes_per_hour=3))
    now = [1000.0]
    monkeypatch.setattr(middleware.time, "monotonic", lambda: now[0])
    door = client(data_folder, proxies=1)

    def upload(megabytes: float, address: str = "192.0.2.1") -> httpx.Response:
        content = b"x" * int(megabytes * 1_000_000)
        return door.post("/gradio_api/upload", content=content, headers={"x-forwarded-for": address})

    assert [upload(1.5).status_code for _ in range(2)] == [200, 200]
    refused = upload(1.5)
    assert refused.status_code == 429
    assert "This upload has 1.5 MB, and one address may upload at most 3 MB within an hour" in refused.text
    assert "Wait 30 minutes" in refused.text
    assert refused.headers["retry-after"] == "1800"
    assert upload(3, "192.0.2.9").status_code == 200
    now[0] += 1801
    assert upload(1.5).status_code == 200
    never = upload(3.1, "192.0.2.8")  # no waiting would help
    assert never.status_code == 413
    assert "The upload has 3.1 MB, and one address may upload at most 3 MB" in never.text
    assert door.post("/gradio_api/upload", content=iter([b"1", b"2"])).status_code == 411


def test_what_a_broken_upload_did_not_send_is_not_counted(data_folder):
    keep_limits(data_folder, Limits(upload_megabytes_per_hour=30))
    answers, messages = [], []

    async def page(_scope, receive, send) -> None:
        while (await receive())["type"] == "http.request":
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message) -> None:
        answers.extend([message["status"]] if message["type"] == "http.response.start" else [])

    async def try_twice() -> None:
        door = RateLimiter(page, data_folder)
        await door(UPLOADING, receive, send)  # not a byte of it came
        messages.append({"type": "http.request", "body": b"x" * 1_000_000, "more_body": True})
        await door(UPLOADING, receive, send)
        await door(UPLOADING, receive, send)  # 29 MB are left

    asyncio.run(try_twice())
    assert answers == [200, 200, 429]


def test_the_limits_still_hold_when_their_file_is_gone(data_folder):
    keep_limits(data_folder, Limits(requests_per_minute=2))
    door = client(data_folder)

    answers = [door.get("/config").status_code]
    (data_folder / "limits.json").unlink()

    assert answers + [door.get("/config").status_code for _ in range(2)] == [200, 200, 429]
