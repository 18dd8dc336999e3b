"""A stranger who knows names, ids and paths of another visitor, but not the code, gets nothing: raw HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from held_back import PATIENCE
from page_helpers import page_home, refusing_app  # noqa: F401  (a fixture)
from train_helpers import advance, prepare

from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.paths import data_home
from retro_demo.server.cleanup import serve_alone
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.ui.page import build_app
from retro_demo.ui.serve import launch

SECRET = "Zanzibarium"  # stands in the victim's documents, names and texts, and nowhere else


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("apart")) as folder:
        yield folder


@pytest.fixture(scope="module")
def victim(home, small_folder) -> Workspace:
    """A visitor with a corpus, a run with weights, a run at work and a kept text; all speak of the secret."""
    space = Workspace.open(home, new_code()).make()
    corpus = space.folder / "corpora" / f"{SECRET.lower()}-texts"
    shutil.copytree(small_folder, corpus)
    (corpus / "sources").mkdir()
    (corpus / "sources" / "upload.txt").write_text(f"{SECRET} is nobody's business. " * 50)
    advance(prepare(space.folder / "runs" / f"{SECRET.lower()}-run", corpus, steps=2))
    (space.folder / "traces").mkdir(parents=True, exist_ok=True)
    (space.folder / "traces" / "kept.json").write_text(json.dumps({"text": SECRET}))
    return space


@pytest.fixture(scope="module")
def url(home) -> Iterator[str]:
    demo, _ = build_app(home)
    yield launch(demo, home, None, None)
    demo.close()


@pytest.fixture(scope="module")
def http(url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE) as opened:
        yield opened


@pytest.fixture(scope="module")
def config(http) -> dict[str, Any]:
    return http.get("/config").json()


@pytest.fixture
def stranger(home) -> str:
    return Workspace.open(home, new_code()).make().folder.name


@pytest.fixture
def untouched(victim) -> Iterator[None]:
    """Whatever the test does, the victim's folder holds the same afterwards."""
    before = digest(victim.folder)
    yield
    assert digest(victim.folder) == before


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_a_session_holds_no_copy_of_the_whole_page(home):
    demo, _ = build_app(home)
    url = launch(demo, home, None, None)
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            said = called(http, "run_status", [new_code(), "sample:factbook-lm"])
        sessions = demo.app.state_holder.session_data
    finally:
        demo.close()

    assert "event: complete" in said
    assert len(sessions) == 1
    assert all(len(session.config_values) < 10 for session in sessions.values())  # of some 600


def names_of(victim: Workspace, kind: str) -> list[str]:
    """What a stranger may write where an id belongs, to get at the victim's."""
    name = next((victim.folder / kind).iterdir()).name
    code = victim.folder.name
    return [
        name,
        f"../../{code}/{kind}/{name}",
        f"sample:../../../workspaces/{code}/{kind}/{name}",
        f"sample:{victim.folder / kind / name}",
        str(victim.folder / kind / name),
        f"..%2f..%2f{code}%2f{kind}%2f{name}",
        f"{name}\x00",
    ]


def called(http: httpx.Client, name: str, values: list[Any]) -> str:
    """All that a named endpoint answers."""
    asked = http.post(f"/gradio_api/call/{name}", json={"data": values})
    if asked.status_code != 200:
        return f"event: error {asked.status_code} {asked.text}"
    return http.get(f"/gradio_api/call/{name}/{asked.json()['event_id']}").text


def joined(http: httpx.Client, session: str, index: int, values: list[Any]) -> str:
    """All that the queue answers to an event of the page, named by its number."""
    asked = http.post(
        "/gradio_api/queue/join", json={"fn_index": index, "data": values, "session_hash": session}
    )
    if asked.status_code != 200:
        return asked.text
    said = ""
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
        for line in answer.iter_lines():
            said += line
            if "process_completed" in line or "close_stream" in line:
                return said
    return said


def direct(http: httpx.Client, session: str, index: int, values: list[Any]) -> str:
    asked = {"fn_index": index, "data": values, "session_hash": session}
    return http.post("/gradio_api/run/predict", json=asked).text


ENDPOINTS = [
    ("search", "corpora", lambda code, name: [code, name, "nobody", 4, "dense"]),
    ("train", "corpora", lambda code, name: [code, name, "lm", "tiny", 2, 0, ""]),
    ("train", "runs", lambda code, name: [code, "sample:factbook2015", "retrofit", "tiny", 2, 0, name]),
    ("change_corpus", "corpora", lambda code, name: [code, name, [], ["Arden"], "", ""]),
    ("run_status", "runs", lambda code, name: [code, name]),
    ("stop_run", "runs", lambda code, name: [code, name]),
    ("generate", "runs", lambda code, name: [code, name, "Area of", 4]),
    ("evaluate", "runs", lambda code, name: [code, name]),
    ("explain", "runs", lambda code, name: [code, name, "Area of Arden"]),
    ("weigh", "runs", lambda code, name: [code, name, ["Arden"], ""]),
]


@pytest.mark.parametrize(("endpoint", "kind", "values"), ENDPOINTS, ids=lambda value: str(value)[:14])
def test_no_endpoint_reads_or_works_on_what_belongs_to_another(
    http, victim, stranger, untouched, endpoint, kind, values
):
    for name in names_of(victim, kind):
        said = called(http, endpoint, values(stranger, name))
        assert "event: error" in said, said
        assert SECRET not in said


def crooked_codes(victim: Workspace, stranger: str) -> list[Any]:
    code = victim.folder.name
    return [
        f"../{code}",
        f"{stranger}/../{code}",
        f"./{code}",
        f"{code}/",
        f"{code}\n",
        f"{code}\x00",
        code[:-1],
        code.swapcase(),
        "*" * 24,
        "." * 20,
        "",
        None,
        [code],
        {"path": code},
    ]


def test_what_is_only_nearly_the_code_opens_nothing(http, victim, stranger, untouched):
    run, corpus = (next((victim.folder / kind).iterdir()).name for kind in ("runs", "corpora"))
    for code in crooked_codes(victim, stranger):
        for endpoint, values in [
            ("run_status", [code, run]),
            ("search", [code, corpus, "nobody", 2]),
            ("stop_run", [code, run]),
            ("delete_my_data", [code, False]),
        ]:
            said = called(http, endpoint, values)
            assert "event: error" in said, (code, said)
            assert SECRET not in said


def guesses(config: dict[str, Any], entry: dict[str, Any], code: str, one: str) -> list[Any]:
    """Values for an event of the page: the stranger's code, and the same guess wherever text belongs."""
    components = {component["id"]: component for component in config["components"]}
    values = []
    for number in entry["inputs"]:
        kind, usual = components[number]["type"], components[number]["props"].get("value")
        if kind == "browserstate":
            values.append(code)
        elif kind == "dropdown":
            values.append(one or None)  # nothing is chosen
        elif kind in ("textbox", "state"):
            values.append(one)
        elif kind in ("file", "uploadbutton"):
            values.append([{"path": one, "meta": {"_type": "gradio.FileData"}}])
        else:
            values.append(usual)
    return values


@pytest.mark.parametrize("ask", [direct, joined], ids=["direct", "queue"])
def test_no_event_of_the_page_called_by_its_number_tells_or_changes_anything_of_another(
    http, victim, stranger, config, untouched, ask
):
    """Each event, with names, paths and files of the victim in the place of every text."""
    documents = str(next((victim.folder / "corpora").glob("*/documents.jsonl")))
    asked = 0
    for one in (names_of(victim, "runs")[1], documents):
        for entry in config["dependencies"]:
            if entry["backend_fn"] and entry["id"] is not None:
                said = ask(http, "strange" + stranger[:6], entry["id"], guesses(config, entry, stranger, one))
                assert SECRET not in said, (entry["targets"], said)
                asked += 1
    assert asked > 60


def test_no_list_of_the_page_shows_what_belongs_to_another(http, victim, stranger, config):
    """Each event as the stranger's own page sends it on arrival: nothing chosen yet."""
    hidden = [SECRET.lower(), victim.folder.name]
    answered = 0
    for entry in config["dependencies"]:
        if not entry["backend_fn"] or entry["queue"]:
            continue
        values = guesses(config, entry, stranger, "")
        said = direct(http, "arriving" + stranger[:6], entry["id"], values)
        assert not [word for word in hidden if word in said.lower()], (entry["targets"], said)
        answered += '"data"' in said
    assert answered > 10


def test_a_visitor_with_the_code_sees_all_of_it(http, victim, config):
    """The control of the test above: with the code, the same questions do tell."""
    shown = ""
    for entry in config["dependencies"]:
        if entry["backend_fn"] and not entry["queue"]:
            values = guesses(config, entry, victim.folder.name, "")
            shown += direct(http, "own" + victim.folder.name[:6], entry["id"], values)
    assert f"{SECRET.lower()}-run" in shown
    assert f"{SECRET.lower()}-texts" in shown


def test_no_file_of_the_data_folder_is_served_by_any_route(http, home, victim):
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 8
    uploads = os.environ["GRADIO_TEMP_DIR"]
    for path in files:
        beside = os.path.relpath(path, uploads)
        for route in (
            f"/gradio_api/file={path}",
            f"/file={path}",
            f"/gradio_api/file/{path}",
            f"/gradio_api/file={uploads}/{beside}",
            f"/gradio_api/file={uploads}/{beside.replace('../', '%2e%2e/')}",
            f"/gradio_api/file={beside}",
            f"/gradio_api/file=file://{path}",
            f"/static/{beside}",
            f"/assets/{beside}",
            f"/svelte/{beside}",
        ):
            answer = http.get(route)
            assert answer.status_code in (400, 403, 404, 405, 422) or SECRET not in answer.text, route
            assert answer.status_code != 200 or answer.headers["content-type"].startswith("text/html"), route


def test_folders_of_uploads_are_not_listed(http):
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    sent = http.post("/gradio_api/upload", files={"files": ("mine.txt", b"own text")})
    place = Path(sent.json()[0])

    assert place.is_relative_to(uploads)
    for folder in (uploads, place.parent):
        assert http.get(f"/gradio_api/file={folder}").status_code in (403, 404)
    assert len(place.parent.name) >= 32  # nobody guesses it who has not the same file


def test_a_file_of_another_is_no_upload(http, victim, stranger, untouched):
    for path in (victim.folder / "corpora").rglob("*.*"):
        forged = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}]
        assert "event: error" in called(http, "build_corpus", [stranger, forged, "mine"])
        assert "event: error" in called(
            http, "change_corpus", [stranger, "sample:udhr44", forged, [], "", "m"]
        )


def test_another_session_hands_over_neither_events_nor_a_code(http, victim, config):
    session = "session" + victim.folder.name[:8]
    for entry in config["dependencies"]:
        if entry["backend_fn"] and not entry["queue"]:
            direct(http, session, entry["id"], guesses(config, entry, victim.folder.name, ""))

    # Gradio would write down all values of the session here, the code too, for whoever names it
    for route in ("/gradio_api/deep_link", "/gradio_api/deep_link/", "/gradio_api//deep_link"):
        assert http.get(route, params={"session_hash": session}).status_code == 404
    assert not (Path(os.environ["GRADIO_TEMP_DIR"]) / "deep_links").exists()
    for route in ("/gradio_api/heartbeat/guessed", "/gradio_api/queue/data?session_hash=guessed"):
        with http.stream("GET", route) as answer:
            assert victim.folder.name not in next(answer.iter_text(), "")


def test_nobody_stops_or_deletes_what_another_trains(http, home, victim, stranger):
    corpus = next((victim.folder / "corpora").iterdir())
    run = prepare(
        victim.folder / "runs" / "at-work", corpus, steps=100_000, eval_every=100_000, save_every=100_000
    )
    lifecycle.start(run, "train")
    try:
        for name in ("at-work", f"../../{victim.folder.name}/runs/at-work"):
            assert "event: error" in called(http, "stop_run", [stranger, name])
        assert '"deleted_bytes"' in called(http, "delete_my_data", [stranger, True])
        time.sleep(0.3)
        assert lifecycle.is_running(run)
        assert not (home / "workspaces" / stranger).exists()
    finally:
        lifecycle.kill(run)


def test_delete_my_data_asks_for_a_yes_and_then_leaves_nothing(http, home):
    own = Workspace.open(home, new_code()).make()
    (own.folder / "traces").mkdir(parents=True, exist_ok=True)
    (own.folder / "traces" / "kept.json").write_text("{}")

    assert "confirm=true" in called(http, "delete_my_data", [own.folder.name, False])
    assert own.folder.exists()
    assert '{"deleted_bytes": 2}' in called(http, "delete_my_data", [own.folder.name, True])
    assert not own.folder.exists()


def test_delete_my_data_takes_the_files_along_that_were_brought(http, home):
    own = Workspace.open(home, new_code()).make()
    (path,) = http.post("/gradio_api/upload", files={"files": ("diary.txt", b"dear diary")}).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "diary.txt"}
    assert http.get(f"/gradio_api/file={path}").status_code == 200

    called(http, "change_corpus", [own.folder.name, "none", [file], [], "", ""])  # refused, but brought
    called(http, "delete_my_data", [own.folder.name, True])

    assert not Path(path).exists()
    assert http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_an_unknown_session_or_event_is_told_so_and_fills_no_log(http, caplog):
    streamed = http.get("/gradio_api/queue/data", params={"session_hash": "zzz"})
    joined = http.post("/gradio_api/queue/join", json={"fn_index": 99999, "data": [], "session_hash": "zzz"})

    assert "404" in streamed.text
    assert (joined.status_code, "no such event" in joined.text) == (404, True)
    assert "Traceback" not in caplog.text


def test_a_missing_argument_is_named(http, caplog):
    asked = http.post("/gradio_api/call/v2/search", json={"workspace": new_code()})

    assert asked.status_code == 400
    assert asked.json() == {"error": "The argument corpus is missing. The API page lists all of them."}
    assert "Traceback" not in caplog.text


def test_shipped_runs_and_sample_corpora_are_for_reading(http, home, stranger):
    change = [stranger, "sample:factbook2015", [], ["x"], "", ""]

    assert "ships with the app" in called(http, "stop_run", [stranger, "sample:factbook-retrofit"])
    assert "event: error" in called(http, "change_corpus", change)


def test_what_the_app_keeps_is_closed_to_other_users_of_the_machine(url, home, victim, tmp_path, monkeypatch):
    for folder in (home / "workspaces", home / "uploads", victim.folder, home / "queue"):
        if folder.exists():
            assert folder.stat().st_mode & 0o077 == 0, folder

    monkeypatch.setenv("RETRO_DEMO_HOME", str(tmp_path / "new"))
    assert data_home()[0].stat().st_mode & 0o077 == 0


def test_what_lies_in_the_data_folder_is_not_served_even_where_a_handler_names_it(tmp_path, monkeypatch):
    """The data folder may lie where Gradio would serve from: the working directory, or that of uploads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    private, plain = tmp_path / "workspaces" / "code" / "text.txt", tmp_path / "open.txt"
    private.parent.mkdir(parents=True)
    for path in (private, plain):
        path.write_text(SECRET)
    with gr.Blocks() as demo:
        name, file = gr.Textbox(), gr.File()
        name.submit(lambda path: path, name, file, api_name="hand_out", queue=False)
    address = launch(demo, tmp_path, None, None)
    try:
        with httpx.Client(base_url=address, timeout=PATIENCE) as http:
            said = {
                p: http.post("/gradio_api/run/hand_out", json={"data": [str(p)]}) for p in (private, plain)
            }
            assert said[plain].status_code == 200
            assert said[private].status_code == 500
            assert http.get(f"/gradio_api/file={plain}").text == SECRET
            assert http.get(f"/gradio_api/file={private}").status_code == 403
    finally:
        demo.close()


def test_two_servers_on_one_data_folder_refuse_each_other(tmp_path, monkeypatch, refusing_app):  # noqa: F811
    lock = serve_alone(tmp_path)
    monkeypatch.setenv("RETRO_DEMO_HOME", str(tmp_path))

    assert f"is served by another process already (number {os.getpid()})" in refusing_app("--port", "1")
    lock.release()
    serve_alone(tmp_path).release()  # who died or left holds nothing


@pytest.mark.parametrize("name", ["uploads/letter.txt", "workspaces/my-garden-of-roses/plan.txt"])
def test_a_data_folder_with_files_of_somebody_else_is_not_served(tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(parents=True)
    mine.write_text("Dear all")

    with pytest.raises(UserError, match=name.split("/")[1]):
        serve_alone(tmp_path)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    (tmp_path / "server.pid").write_text("4711")  # as a server leaves it
    serve_alone(tmp_path).release()
