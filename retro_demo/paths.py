"""Paths: of what ships with the code, and of the data folder for all that is written."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import platformdirs

from retro_demo.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # of a checkout, or site-packages
# an installed wheel has them inside the package, a checkout beside it
ASSETS, CHECKPOINTS = (
    PACKAGE / name if (PACKAGE / name).is_dir() else ROOT / name for name in ("assets", "checkpoints")
)
STATIC_FOLDER = ASSETS / "static_embedder"
CODE = re.compile(r"[A-Za-z0-9_-]{16,64}")
# only the name of a folder may be told
SERVER_FOLDERS = re.compile(r"(?:/[^\s/]+)+/(?:corpora|runs|traces|samples|checkpoints|evaluations)/")
INSIDE = re.compile(rf"(?P<home>/.*)/workspaces/(?P<code>{CODE.pattern})/(?P<rest>.*)", re.DOTALL)
LASTING = Path("/data")  # where a container or a Space keeps what lasts
LINKS = "links"  # in the data folder: TAG -> workspaces/CODE
MISSING = "missing"  # no folder: where the corpus or the base of an imported run would be
SAMPLE = "sample:"  # before the name of a corpus or run that ships with the code


def check_shipped() -> None:
    """Raise UserError where a folder that ships with the code is missing."""
    for folder in (ASSETS, CHECKPOINTS):
        if not folder.is_dir():
            raise UserError(
                f"The folder {folder.name}/ is missing: it belongs into {PACKAGE} or beside it. Install "
                "retro_demo again, or take all of its repository."
            )


def data_home() -> tuple[Path, str]:
    """The folder for all that is written, and a warning ("" if it lasts).

    RETRO_DEMO_HOME, else a writable /data, else the user's data folder, else a temporary one.
    """
    if named := os.environ.get("RETRO_DEMO_HOME"):
        home = Path(named).expanduser().resolve()
        if not _writable(home):
            raise UserError(f"RETRO_DEMO_HOME is {named}, which cannot be written. Name another folder.")
        return home, ""
    for home in (LASTING, _of_the_user()):
        if (home.is_dir() or home != LASTING) and _writable(home):
            return home, ""
    return (
        Path(tempfile.mkdtemp(prefix="retro_demo-")),
        "Nothing here can be written for good: corpora and runs are in a temporary folder and will be lost. "
        "Set RETRO_DEMO_HOME to a folder that lasts.",
    )


def _of_the_user() -> Path:
    return Path(platformdirs.user_data_dir("retro_demo", appauthor=False))


def usual_home() -> Path:
    """The data folder of whoever has not set RETRO_DEMO_HOME; nothing is made or looked into."""
    return LASTING if LASTING.is_dir() and os.access(LASTING, os.W_OK) else _of_the_user()


def settle_data_home() -> tuple[Path, str]:
    """`data_home`, decided once for this process and those it starts (a temporary folder, above all)."""
    home, warning = data_home()
    os.environ["RETRO_DEMO_HOME"] = str(home)
    return home, warning


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def run_folder(run: str) -> Path:
    """The folder that a config means by another run: a path, or "sample:NAME" for what ships."""
    return CHECKPOINTS / run.removeprefix(SAMPLE) if run.startswith(SAMPLE) else Path(run)


def link_to(home: Path, code: str) -> Path:
    """Where the link to a workspace lies, or would; the code cannot be found from its name."""
    return home / LINKS / hashlib.blake2b(code.encode(), digest_size=6).hexdigest()


def linked_place(path: str) -> str:
    """A path as it may be told: one into a workspace goes by the link to it, made where it is missing.

    Raises OSError where links cannot be made.
    """
    found = INSIDE.fullmatch(path)
    if found is None or not Path(found["home"], "workspaces", found["code"]).is_dir():
        return path
    link = link_to(Path(found["home"]), found["code"])
    link.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(Path("..", "workspaces", found["code"]), target_is_directory=True)
    return str(link / found["rest"])


def without_folders(text: str) -> str:
    """A text without the folders of the server: where it keeps things is nobody's business."""
    return SERVER_FOLDERS.sub("", text)
