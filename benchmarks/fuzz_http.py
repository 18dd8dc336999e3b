"""The targets of benchmarks/fuzz.py over HTTP: a running page asked in ways that no browser asks.

Named endpoints, the handlers of the page by their number, uploads, routes of files. What an answer may
never hold: a traceback, a folder of the server, or the sentence that stands for a fault of the program.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from benchmarks.fuzz import Tally, run_target
from benchmarks.fuzz_inputs import STRINGS, a_document, junk
from benchmarks.fuzz_shares import damaged_export
from benchmarks.serving import served_page
from retro_demo.corpus.sharding import ensure_sample
from retro_demo.errors import UserError
from retro_demo.server.limits import PUBLIC
from retro_demo.sharing.exporting import write_zip

PROGRAM_FAULT = "Something went wrong inside the program"
SECONDS = 60
STRICT = replace(PUBLIC, requests_per_minute=1_000_000)  # all that is asked here comes from one address
MULTIPART = {"content-type": "multipart/form-data; boundary=fuzz"}  # of an upload; all else is JSON
CODE = "f" * 24
TEXT = "Island 3 exports fish, salt and 21 boats of timber. Island 5 exports fish. "
USUAL: dict[str, Any] = {
    "workspace": CODE,
    "corpus": "islands",
    "run": "run",
    "text": TEXT,
    "prompt": "Island 3",
    "k": 3,
    "retriever": "dense",
    "retrieval": "on",
    "max_new_tokens": 8,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 0.95,
    "seed": 7,
    "steps": 2,
    "page": 1,
    "max_tokens": 500,
    "chunk_len": 8,
    "holdout": 0.2,
    "embedder": "static",
    "preset": "tiny",
}
# what would start a process that outlives the input never gets good values alone
GOOD: dict[str, dict[str, Any]] = {
    "/generate": {"corpus": "", "max_new_tokens": 8},
    "/explain": {"corpus": "", "num_neighbors": 2, "edit": None},
    "/weigh": {"corpus": "", "documents": ["islands.jsonl:1"]},
    "/train": {"model": "none"},
    "/evaluate": {"run": "nowhere"},
    "/build_corpus": {"files": []},
    "/change_corpus": {"forget": ["nothing"]},
}
PATHS = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
    "/proc/self/environ",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "app.py",
    "",
    "\0",
)


def ask_the_page(seed: int, numbers: range, folder: Path) -> dict[str, Tally]:
    """Start the page on a data folder below `folder` and give each way of asking its inputs."""
    home = folder / "home"
    space = home / "workspaces" / CODE
    shutil.copytree(folder / "a corpus", space / "corpora" / "islands")
    shutil.copytree(folder / "a run", space / "runs" / "run")
    list(ensure_sample("sample:factbook2015"))  # or whoever asks for the shipped run waits for its corpus
    with (
        served_page(home, STRICT) as address,
        httpx.Client(
            base_url=address, timeout=SECONDS, headers={"content-type": "application/json"}
        ) as client,
    ):
        config = client.get("config").json()
        ways = {
            "http, named endpoints": partial(_named, client, home, client.get("gradio_api/info").json()),
            "http, handlers by number": partial(_by_number, client, home, config),
            "http, imports": partial(_imports, client, home, sorted((folder / "exports").iterdir())),
            "http, routes": partial(_routes, client, home),
        }
        return {name: run_target(way, name, seed, numbers, folder) for name, way in ways.items()}


def check_answer(text: str, home: Path, who: str = "") -> None:
    """Raise AssertionError where an answer shows what no stranger may see; UserError where it refuses.

    A download is named by its place among the uploads, which is where Gradio hands it out from.
    """
    text = text.replace(os.environ["GRADIO_TEMP_DIR"], "")
    for forbidden in (
        "Traceback",
        'File "',
        str(home),
        str(Path.cwd()),
        "site-packages",
        PROGRAM_FAULT,
        "root:x",
    ):
        assert forbidden not in text, f"the answer of {who} shows {forbidden!r}: {text[:600]}"


def _named(client: httpx.Client, home: Path, info: dict[str, Any], rng: random.Random, _: Path) -> object:
    """An endpoint by its name: good values, of which some are made junk."""
    name = rng.choice(list(info["named_endpoints"]))
    values = []
    for parameter in info["named_endpoints"][name]["parameters"]:
        known = USUAL | GOOD.get(name, {})
        values.append(known.get(parameter["parameter_name"], ""))
    for _ in range(rng.randint(0, 2)):
        values[rng.randrange(rng.random() < 0.9, len(values))] = _value(rng)
    if rng.random() < 0.05:
        values = values[: rng.randrange(len(values) + 1)] + [junk(rng)] * rng.randrange(3)
    return _called(client, home, name, values)


def _by_number(
    client: httpx.Client, home: Path, config: dict[str, Any], rng: random.Random, _: Path
) -> object:
    """Any handler of the page by its number, as the page itself asks, with junk."""
    handler = rng.choice(config["dependencies"])
    values = [_value(rng) for _ in handler["inputs"]]
    if values and rng.random() < 0.8:
        values[0] = CODE
    body: dict[str, Any] = {"data": values, "fn_index": handler["id"], "session_hash": f"s{rng.random()}"}
    if rng.random() < 0.1:
        body[rng.choice(list(body))] = junk(rng)
    if rng.random() < 0.1:
        body |= {"trigger_id": junk(rng), "event_data": junk(rng)}
    who = f"handler {handler['id']} {handler['api_name']} {body!r:.300}"
    if handler["queue"] is False or rng.random() < 0.1:
        answer = client.post("gradio_api/run/predict", content=_body(body))
        check_answer(answer.text, home, who)
        _refuse_unless_fine(answer, who)
        return answer.text
    answer = client.post("gradio_api/queue/join", content=_body(body))
    check_answer(answer.text, home, who)
    _refuse_unless_fine(answer, who)
    if not isinstance(body["session_hash"], str):
        return answer.text  # a stream that nobody can ask for
    return _heard(client, f"gradio_api/queue/data?session_hash={quote(body['session_hash'])}", home, who)


def _refuse_unless_fine(answer: httpx.Response, who: str) -> None:
    """Raise UserError with the words of an answer that is no result; AssertionError where it has none."""
    if answer.status_code == 200:
        return
    try:
        said = answer.json()
    except ValueError:
        said = None
    words = (said.get("error") or said.get("detail")) if isinstance(said, dict) else None
    assert words, f"HTTP {answer.status_code} without words to {who}: {answer.text[:300]}"
    raise UserError(f"HTTP {answer.status_code} {str(words)[:60]}")


def _heard(client: httpx.Client, place: str, home: Path, who: str) -> str:
    """All that an event stream says up to its end."""
    said: list[str] = []
    with client.stream("GET", place) as stream:
        for line in stream.iter_lines():
            said.append(line)
            if line.startswith("event: error") or line.startswith("event: complete"):
                continue
            if "process_completed" in line or "close_stream" in line:
                break
    text = "\n".join(said)
    check_answer(text, home, who)
    if "event: error" in text or '"success":false' in text:
        found = re.search(r'"error": ?"([^"]*)"', text)
        assert found, f"an error without words of {who}: {text[:300]}"
        raise UserError(found[1])
    return text


def _routes(client: httpx.Client, home: Path, rng: random.Random, _: Path) -> object:
    """Uploads, and files asked for by path."""
    how = rng.randrange(4)
    if how == 0:
        name, content = a_document(rng)
        answer = client.post(
            "gradio_api/upload",
            files={"files": (rng.choice((name, *PATHS)), content)},
            headers=MULTIPART,
        )
        check_answer(answer.text.replace(str(home.parent / "uploads"), ""), home)  # it tells where it lies
        _refuse_unless_fine(answer, f"an upload of {name}")
        return answer.text
    route = rng.choice(("gradio_api/file=", "gradio_api/proxy=", "file/", "static/", "gradio_api/stream/"))
    path = rng.choice(
        (*PATHS, str(home / "browser-secret"), str(home / "workspaces"), "retro_demo/cli/main.py")
    )
    if how == 1:
        answer = client.get(route + quote(path, safe=rng.choice(("", "/:"))))
    elif how == 2:
        answer = client.post(
            f"gradio_api/call/{quote(rng.choice(STRINGS)[:60], errors='replace')}", content=_body(junk(rng))
        )
    else:
        place = rng.choice(("queue/join", "run/predict", "component_server", "cancel", "reset", "call/train"))
        answer = client.post(f"gradio_api/{place}", content=_body(junk(rng)))
    check_answer(answer.text.replace(path, "") if path else answer.text, home)
    _refuse_unless_fine(answer, str(answer.request.url))
    return answer.text


def _imports(
    client: httpx.Client, home: Path, exports: Sequence[Path], rng: random.Random, folder: Path
) -> object:
    """A damaged export, uploaded and imported by a visitor who then deletes everything."""
    source, code = damaged_export(rng.choice(exports), rng, folder), f"{rng.getrandbits(96):024x}"
    if source.is_dir():
        write_zip(source, folder / "packed.zip")  # a visitor has no other way
        source = folder / "packed.zip"
    content = source.read_bytes()
    sent = client.post("gradio_api/upload", files={"files": ("e.zip", content)}, headers=MULTIPART)
    _refuse_unless_fine(sent, "an upload")
    file = {"path": sent.json()[0], "orig_name": "e.zip", "meta": {"_type": "gradio.FileData"}}
    try:
        return _called(client, home, "/import_run", [code, file, ""])
    finally:
        _called(client, home, "/delete_my_data", [code, True])


def _called(client: httpx.Client, home: Path, name: str, values: list[Any]) -> str:
    """All that a named endpoint answers; raises UserError where it refuses."""
    who = f"{name}{values!r:.300}"
    answer = client.post(f"gradio_api/call{name}", content=_body({"data": values}))
    check_answer(answer.text, home, who)
    _refuse_unless_fine(answer, who)
    return _heard(client, f"gradio_api/call{name}/{answer.json()['event_id']}", home, who)


def _value(rng: random.Random) -> Any:
    if rng.random() < 0.2:
        return rng.choice(("sample:udhr44", "sample:factbook-lm", "retro", "lm", "tiny", "on", "dense"))
    if rng.random() < 0.04:
        return [{"path": rng.choice(PATHS), "meta": {"_type": "gradio.FileData"}}]
    return junk(rng)


def _body(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")
