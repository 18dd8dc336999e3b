"""Pushing to the Hub: the real client against a small server that speaks the endpoints it calls."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from held_back import PATIENCE
from huggingface_hub import constants
from sharing_helpers import told, trained  # noqa: F401
from train_helpers import same_weights

from retro_demo.cli import main

TOKEN = "hf_thisIsASecretOfTheTest"


class Hub(ThreadingHTTPServer):
    """Repositories as folders: makes them, takes large files by their hash, and commits."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[tuple[str, str]] = []  # path, token
        self.large: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}


class Answer(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, code: int, values: object) -> None:
        content = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {})

    def do_POST(self) -> None:
        hub, path, content = self.server, self.path.split("?")[0], self.body()
        hub.seen.append((path, self.headers.get("Authorization", "")))
        if path == "/api/validate-yaml":
            front = json.loads(content)["content"].split("---")[1]
            errors = [] if isinstance(yaml.safe_load(front), dict) else [{"message": "no front matter"}]
            return self.answer(200, {"errors": errors, "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": f"bad {self.headers.get('Authorization')}"})
        if path == "/api/repos/create":
            wanted = json.loads(content)
            repo = f"{wanted['organization']}/{wanted['name']}"
            hub.private[repo] = wanted.get("private", wanted.get("visibility") == "private")
            return self.answer(200, {"url": f"{hub.address}/{repo}"})
        if path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".npy")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            return self.answer(200, {"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(content)["objects"]
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}} for one in wanted
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            repo = "/".join(path.split("/")[3:5])
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] in ("file", "lfsFile"):
                    target = hub.folder / repo / value["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    large = line["key"] == "lfsFile"
                    target.write_bytes(
                        hub.large[value["oid"]] if large else base64.b64decode(value["content"])
                    )
            url = f"{hub.address}/{repo}/commit/{'0' * 40}"
            return self.answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})
        return self.answer(404, {"error": path})


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pushed(hub, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Pushes a run, as the verb does; tells its exit code and all that it said."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for place in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):  # whoever runs the tests may have some
        monkeypatch.setattr(constants, place, str(hub.folder / "home" / place))

    def push(run: Path, *more: str, token: str = TOKEN, repo: str = "me/places") -> tuple[int, str]:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", token)
        code = main.main(["push", str(run), "--repo", repo, "--json", *more])
        told = capsys.readouterr()
        return code, told.out + told.err

    return push


def test_what_is_pushed_comes_back_from_a_clone(tmp_path, hub, trained, capsys):  # noqa: F811
    env = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    env |= {"HF_HOME": str(hub.folder / "home")}
    command = [sys.executable, "-m", "retro_demo", "push", str(trained), "--repo", "me/places", "--json"]
    done = subprocess.run(
        [*command, "--with-corpus", "--private"], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    said = done.stdout + done.stderr

    assert done.returncode == 0, said
    assert json.loads(said.splitlines()[-1])["url"] == f"{hub.address}/me/places"
    assert hub.private == {"me/places": True}
    clone = hub.folder / "me" / "places"
    (clone / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    told(capsys, "import", clone, "--as", tmp_path / "mine")
    assert same_weights(trained, tmp_path / "mine")
    assert yaml.safe_load((clone / "README.md").read_text().split("---")[1])["library_name"] == "retro_demo"


def test_the_token_goes_to_the_hub_and_nowhere_else(tmp_path, hub, trained, pushed):  # noqa: F811
    code, said = pushed(trained)

    assert code == 0, said
    assert {token for path, token in hub.seen if "repos/create" in path} == {f"Bearer {TOKEN}"}
    assert TOKEN not in said
    kept = [p for p in [*tmp_path.rglob("*"), *trained.rglob("*")] if p.is_file()]
    assert kept
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]


def test_a_wrong_token_and_a_missing_one_are_said_without_showing_any(trained, pushed):  # noqa: F811
    code, said = pushed(trained, token="hf_wrongwrongwrong")

    assert code == 2
    assert "the token is wrong" in said
    assert "hf_wrongwrongwrong" not in said
    assert "no token for the Hub" in pushed(trained, token="")[1]
    assert "give it as OWNER/NAME" in pushed(trained, repo="../../x")[1]


def test_a_hub_that_is_not_there_is_one_sentence(hub, trained, pushed):  # noqa: F811
    hub.address = "http://127.0.0.1:9"

    code, said = pushed(trained)

    assert code == 2
    assert "was not reached" in said
    assert "Traceback" not in said
