"""What a stranger's program sends to the page: answered in a sentence, never with a traceback or a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from page_helpers import page_home

from benchmarks.serving import served_page
from retro_demo.ui.refusals import sendable
from retro_demo.workspace import new_code

ROOT = Path(__file__).resolve().parent.parent
JUNK = [None, True, -1, 1.5, float("nan"), "\ud800", "\0", "../../etc/passwd", [1, [2]], {"a": {"b": None}}]
FORGED = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
SHOWN_NEVER = ("Traceback", 'File "', "site-packages", "root:x", "Something went wrong inside", str(ROOT))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with page_home(tmp_path_factory.mktemp("page")) as folder:
        yield folder


@pytest.fixture(scope="module")
def client(home):
    json_type = {"content-type": "application/json"}
    with (
        served_page(home) as address,
        httpx.Client(base_url=address, timeout=60, headers=json_type) as opened,
    ):
        yield opened


def heard(client: httpx.Client, place: str) -> str:
    with client.stream("GET", place) as stream:
        return "\n".join(stream.iter_lines())


def asked(client: httpx.Client, name: str, values: list) -> str:
    """All that a named endpoint answers."""
    body = json.dumps({"data": values}).encode("utf-8", "surrogatepass")
    answer = client.post(f"gradio_api/call{name}", content=body)
    assert answer.status_code == 200, answer.text
    return heard(client, f"gradio_api/call{name}/{answer.json()['event_id']}")


def named(client: httpx.Client) -> dict:
    return client.get("gradio_api/info").json()["named_endpoints"]


def refused(text: str, home: Path) -> bool:
    """Whether it is an error with words, and shows nothing that it should not."""
    assert not [one for one in (*SHOWN_NEVER, str(home)) if one in text], text
    return "event: error" in text and '"error": "' in text


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: type(junk).__name__)
def test_each_endpoint_refuses_junk_of_each_type_in_a_sentence(client, home, junk):
    for name, endpoint in named(client).items():
        values = [new_code()] + [junk] * (len(endpoint["parameters"]) - 1)
        if (name, junk) == ("/delete_my_data", True):
            continue  # this is just what it takes

        assert refused(asked(client, name, values), home), name


@pytest.mark.parametrize("values", [[], [FORGED] * 3, [FORGED] * 20], ids=["none", "few", "many"])
def test_what_gradio_refuses_is_refused_in_words(client, home, values):
    for name in named(client):
        assert "The values that were sent are not what this takes" in asked(client, name, values), name


def test_each_handler_of_the_page_survives_junk_of_each_type_by_its_number(client, home):
    faults = []
    for handler in client.get("config").json()["dependencies"]:
        for junk in JUNK:
            values = [new_code(), *[junk] * 40][: len(handler["inputs"])]
            body = {"data": values, "fn_index": handler["id"], "session_hash": f"h{handler['id']}"}
            content = json.dumps(body).encode("utf-8", "surrogatepass")
            said = client.post("gradio_api/run/predict", content=content).text
            bad = (*SHOWN_NEVER, str(home), "Internal Server Error", '"error":null')
            faults += [(handler["api_name"], junk, said) for one in bad if one in said]

    assert not faults


def test_a_value_that_no_answer_could_quote_does_not_end_the_stream(client):
    body = {"data": [new_code(), "\ud800", [FORGED]], "session_hash": "lone"}
    handlers = client.get("config").json()["dependencies"]
    queued = next(h for h in handlers if h["queue"] is not False and len(h["inputs"]) == 3)
    client.post("gradio_api/queue/join", content=json.dumps(body | {"fn_index": queued["id"]}))

    assert "process_completed" in heard(client, "gradio_api/queue/data?session_hash=lone")
    assert sendable({"a\ud800": ["\udfff", 1]}) == {"a?": ["?", 1]}


@pytest.mark.parametrize("route", ["queue/join", "run/predict", "cancel", "reset", "component_server"])
def test_a_body_that_is_no_request_is_an_error_of_the_caller(client, home, route):
    for junk in (*JUNK[:5], *JUNK[7:], "[" * 10_000):
        answer = client.post(f"gradio_api/{route}", content=json.dumps(junk))

        assert 400 <= answer.status_code < 500 or answer.status_code == 200
        assert not [one for one in (*SHOWN_NEVER, str(home)) if one in answer.text]


@pytest.mark.parametrize("place", ["browser-secret", "workspaces", "../../etc/passwd"])
def test_no_file_of_the_data_folder_is_served(client, home, place):
    for route in ("gradio_api/file=", "file=", "static/"):
        assert client.get(f"{route}{home / place}").status_code in (403, 404)


def test_the_app_refuses_to_start_where_visitors_could_run_code(tmp_path):
    env = os.environ | {"GRADIO_VIBE_MODE": "1", "RETRO_DEMO_HOME": str(tmp_path)}

    done = subprocess.run([sys.executable, str(ROOT / "app.py")], env=env, capture_output=True, text=True)

    assert done.returncode == 2
    assert "GRADIO_VIBE_MODE is set" in done.stderr
    assert "Traceback" not in done.stderr
