"""The reference packages, fetched and imported beside our own: RETRO-pytorch 0.3.9, marge-pytorch 0.2.9.

    .venv/bin/python -m benchmarks.reference_env

They cannot be installed as published (their dependencies exclude one another), and what is measured of
them needs torch, einops and numpy only. So their wheels are downloaded alone, checked against the hashes
in references.txt, unpacked into a folder that git ignores, and imported with empty modules in the places
of faiss and autofaiss. Being in the same process they run on the same threads and the same torch, in turns
with ours.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "build" / "references"
WANTED = ROOT / "benchmarks" / "references.txt"


def fetch(folder: Path = PACKAGES) -> Path:
    """The folder with both packages unpacked, downloaded the first time; ends the program where it cannot."""
    if (folder / "complete").exists():
        return folder
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", wheels, "--requirement", str(WANTED)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise SystemExit(
                "The reference packages could not be downloaded, so there is nothing to compare with. "
                f"pip said: {said} Connect to a package index, or unpack both wheels of "
                f"{WANTED.relative_to(ROOT)} into {folder} and create the file {folder / 'complete'}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for wheel in Path(wheels).glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
    (folder / "complete").touch()
    return folder


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within the block, importing faiss or autofaiss gives an empty module; then all is as before."""
    before = {name: sys.modules.get(name) for name in ("faiss", "autofaiss")}
    for name in before:
        sys.modules[name] = ModuleType(name)
    sys.modules["autofaiss"].build_index = None  # pyright: ignore[reportAttributeAccessIssue]  # imported by name
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def load_references() -> tuple[ModuleType, ModuleType]:
    """The modules retro_pytorch and marge_pytorch, fetched where they are not there yet."""
    folder = str(fetch())
    if folder not in sys.path:
        sys.path.append(folder)
    with stand_ins():
        return importlib.import_module("retro_pytorch"), importlib.import_module("marge_pytorch")


if __name__ == "__main__":
    for package in load_references():
        print(package.__name__, "from", package.__file__)
