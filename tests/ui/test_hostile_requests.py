"""What a stranger's program sends to the page: answered in a sentence, never with a traceback or a folder."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from held_back import PATIENCE
from marge_helpers import make_marge_run
from page_helpers import lend_samples, page_home, refusing_app  # noqa: F401  (a fixture)
from places import ROOT
from train_helpers import advance, prepare

from benchmarks.serving import served_page
from retro_demo.server.limits import PRIVATE, Limits, keep_limits
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.gradio_patches import Page, sendable

JUNK = [None, True, -1, 1.5, float("nan"), "\ud800", "\0", "../../etc/passwd", [1, [2]], {"a": {"b": None}}]
MULTIPART = {"content-type": "multipart/form-data; boundary=hostile"}
FORGED = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
SHOWN_NEVER = ("Traceback", 'File "', "site-packages", "root:x", "Something went wrong inside", str(ROOT))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with page_home(tmp_path_factory.mktemp("page")) as folder:
        lend_samples(folder)
        yield folder


@pytest.fixture(scope="module")
def client(home):
    stranger = {"content-type": "application/json", "x-forwarded-for": "192.0.2.1"}  # elsewhere
    with (
        served_page(home) as address,
        httpx.Client(base_url=address, timeout=PATIENCE, headers=stranger) as opened,
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


@pytest.mark.parametrize("many", [False, True])
def test_who_presses_before_the_lists_have_changed_hears_what_to_do_and_not_a_list(many):
    with Page() as demo:
        baseline = gr.Dropdown(["one", "two"], multiselect=many)
        gr.Button().click(lambda value: value, baseline, None)
    function = next(iter(demo.fns.values()))

    with pytest.raises(gr.Error) as said:
        asyncio.run(demo.preprocess_data(function, [["gone"] if many else "gone"], None))

    assert "gone" in said.value.message
    assert "is not in the list that it was chosen from, or no more. Look at what" in said.value.message
    assert "two" not in said.value.message


def handlers(client: httpx.Client, *, queued: bool) -> list[dict[str, Any]]:
    """The events of the page that the server answers, in its queue or outside."""
    known = client.get("config").json()["dependencies"]
    return [one for one in known if one["backend_fn"] and (one["queue"] is not False) == queued]


def faulty(said: str, home: Path) -> bool:
    """Whether an answer shows what it never should, or is an error without words."""
    bare = said.replace(" ", "")
    return any(one in said for one in (*SHOWN_NEVER, str(home), "Internal Server Error")) or (
        '"error":null' in bare or '"error":""' in bare
    )


def sent(client: httpx.Client, handler: dict[str, Any], values: list[Any], session: str) -> str:
    """All that is answered to an event of the page, named by its number, where the page would ask it."""
    body = {"data": values, "fn_index": handler["id"], "session_hash": session}
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    if handler["queue"] is False:
        return client.post("gradio_api/run/predict", content=content).text
    asked = client.post("gradio_api/queue/join", content=content)
    if asked.status_code != 200:
        return asked.text
    said = ""
    with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream.iter_lines():
            said += line
            if "process_completed" in line or "close_stream" in line:
                break
    assert "process_completed" in said, said  # or no code of the handler was reached
    return said


def test_each_handler_of_the_page_outside_the_queue_survives_junk_of_each_type_by_its_number(client, home):
    faults, asked = [], 0
    for handler in handlers(client, queued=False):
        forged = (JUNK[-1 - handler["id"] % 2], "first")  # a code that is a list or an object
        for code, junk in [forged, *((new_code(), junk) for junk in JUNK[handler["id"] % 3 :: 3])]:
            values = [code, *[junk] * 40][: len(handler["inputs"])]
            said = sent(client, handler, values, f"h{handler['id']}")
            faults += [(handler["api_name"], code, junk, said)] if faulty(said, home) else []
            asked += 1

    assert not faults
    assert asked > 250


def test_each_queued_handler_survives_junk_in_every_place(client, home):
    faults, asked = [], 0
    for handler in handlers(client, queued=True):
        values = [new_code(), *[JUNK[(handler["id"] + at) % len(JUNK)] for at in range(40)]]
        said = sent(client, handler, values[: len(handler["inputs"])], f"q{handler['id']}")
        faults += [(handler["api_name"], handler["targets"], said[-600:])] if faulty(said, home) else []
        asked += 1

    assert not faults
    assert asked > 50


@pytest.fixture
def own(home, client, small_folder) -> Iterator[Workspace]:
    """A workspace with a corpus, a run on it and a MARGE, in which one job works and few may wait."""
    space = Workspace.open(home, new_code())
    corpus = shutil.copytree(small_folder, space.folder / "corpora" / "islands")
    advance(prepare(space.folder / "runs" / "first", corpus, steps=2))
    make_marge_run(space.folder / "runs" / "several", corpus)
    keep_limits(home, Limits(running=1, waiting=2, new_tokens=8))
    yield space
    keep_limits(home, PRIVATE)
    assert "deleted_bytes" in asked(client, "/delete_my_data", [space.folder.name, True])  # ends its jobs


LAST = (
    "build_",
    "start_",
    "continue_",
    "lengthen",
    "train",
    "add_",
    "forget_",
    "rename",
    "resume",
    "evaluate",
    "change",
    "delete",
)
"""Handlers that start jobs, rename or delete come after those that look at what there is."""


def as_a_page(config: dict[str, Any], handler: dict[str, Any], code: Any, junk: int) -> list[Any]:
    """What an own page would send: names of the workspace, usual settings, and junk in each text."""
    components = {component["id"]: component for component in config["components"]}
    values: list[Any] = []
    for at, number in enumerate(handler["inputs"]):
        kind, props = components[number]["type"], components[number]["props"]
        name = str(props.get("elem_id"))
        if at == 0:
            values.append(code)
        elif kind == "dropdown" and ("run" in name or "corpus" in name):
            marge = name in ("marge-write-run", "evidence-run")
            values.append("islands" if "corpus" in name else "several" if marge else "first")
        elif kind in ("textbox", "state", "browserstate", "api"):
            values.append(JUNK[(junk + at) % len(JUNK)])
        else:
            values.append(props.get("value"))
    return values


def test_each_queued_handler_survives_junk_beside_names_that_are_there(client, home, own):
    """Junk in every place is refused at the first; here the rest is what a page would send."""
    config, code = client.get("config").json(), own.folder.name
    for handler in handlers(client, queued=False):  # the page opens its tabs: their lists hold what is there
        sent(client, handler, [code, *[None] * 40][: len(handler["inputs"])], "own")
    faults, done = [], []
    for handler in sorted(handlers(client, queued=True), key=lambda one: one["api_name"].startswith(LAST)):
        for first in (code, JUNK[handler["id"] % len(JUNK)]):
            said = sent(client, handler, as_a_page(config, handler, first, handler["id"]), "own")
            faults += [(handler["api_name"], first, said[-600:])] if faulty(said, home) else []
            done += [handler["api_name"]] if '"success":true' in said.replace(" ", "") else []

    assert not faults
    assert len(set(done)) > 15, done


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


def test_a_text_that_is_too_long_is_refused_by_the_name_of_its_field_wherever_it_stands(client, home):
    """Before a handler sees it: the page's own took a text of any length."""
    config, text = client.get("config").json(), "x" * 1_000_001
    labels = {one["id"]: one["props"].get("label") for one in config["components"]}
    kinds = {one["id"]: one["type"] for one in config["components"]}
    seen = set()
    for handler in handlers(client, queued=True) + handlers(client, queued=False):
        for at, number in enumerate(handler["inputs"]):
            if kinds[number] != "textbox" or labels[number] in seen:
                continue
            seen.add(labels[number])
            for long in (text, [["a", {"b": text}]], {text: 1}):
                values: list[Any] = [None] * len(handler["inputs"])
                values[at] = long
                said = sent(client, handler, values, f"long{number}")
                assert f"{labels[number] or 'A text of the page'} has 1,000,001 characters" in said, said[
                    :300
                ]
    assert len(seen) > 10

    for name, argument, values in [
        ("/generate", "prompt", [new_code(), "run", text]),
        ("/search", "text", [new_code(), "corpus", text]),
        ("/weigh", "documents", [new_code(), "run", [text], "a"]),
    ]:
        parameters = named(client)[name]["parameters"]
        usual = [one.get("parameter_default") for one in parameters[len(values) :]]
        assert f"{argument} has 1,000,001 characters; at most 1,000,000" in asked(
            client, name, values + usual
        )


def test_the_served_page_refuses_what_would_fill_its_memory(client):
    """With the web server itself between, which has to drop what nobody reads."""
    for _ in range(3):
        large = client.post("gradio_api/queue/join", content=b"[" + b" " * 20_000_000 + b"]")
        many = client.post("gradio_api/run/predict", content=b"[" + b"[]," * 1_000_000 + b"[]]")
        files = client.post("gradio_api/component_server", files={"a": b"x" * 1_000_000}, headers=MULTIPART)

        assert [one.status_code for one in (large, many, files)] == [413, 413, 404]
        assert all(one.json()["error"].endswith(".") for one in (large, many, files))


@pytest.mark.parametrize("place", ["browser-secret", "workspaces", "../../etc/passwd"])
def test_no_file_of_the_data_folder_is_served(client, home, place):
    for route in ("gradio_api/file=", "file=", "static/"):
        assert client.get(f"{route}{home / place}").status_code in (403, 404)


def test_the_app_refuses_to_start_where_visitors_could_run_code(monkeypatch, refusing_app):  # noqa: F811
    monkeypatch.setenv("GRADIO_VIBE_MODE", "1")

    assert "GRADIO_VIBE_MODE is set" in refusing_app()
