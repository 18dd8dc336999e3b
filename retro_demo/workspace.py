"""Where things lie: the data folder, what ships with the code, and one visitor's own folders.

DATA/samples/NAME-HASH          built sample corpora, shared and read-only for visitors
DATA/derived/FINGERPRINT        what is made from a corpus that cannot be written
DATA/links/TAG                  another way to a workspace, which does not tell its code
DATA/workspaces/CODE/corpora    a visitor's corpora, runs and kept traces
                    /runs           with their evaluations
                    /evaluations    those of the shipped runs
                    /traces
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from retro_demo.building import write_corpus_config
from retro_demo.config import CorpusConfig
from retro_demo.corpus import MANIFEST, file_hash
from retro_demo.cutting import ASSETS, SHIPPED_TOKENIZERS
from retro_demo.embedding import STATIC_FOLDER
from retro_demo.errors import UserError
from retro_demo.jobs import is_at_work
from retro_demo.lookup_world import WRITERS, LookupConfig, write_lookup_world

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
CODE = re.compile(r"[A-Za-z0-9_-]{16,64}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}")
# only the name of a folder may be told
SERVER_FOLDERS = re.compile(r"(?:/[^\s/]+)+/(?:corpora|runs|traces|samples|checkpoints|evaluations)/")
INSIDE = re.compile(rf"(?P<home>/.*)/workspaces/(?P<code>{CODE.pattern})/(?P<rest>.*)", re.DOTALL)
LASTING = Path("/data")  # where a container or a Space keeps what lasts
LINKS = "links"  # in the data folder: TAG -> workspaces/CODE
SAMPLE = "sample:"  # before the name of a corpus or run that ships with the code


@dataclass(frozen=True)
class Sample:
    """A corpus that ships with the code: as a file, or as a world that is written when it is asked for."""

    title: str
    source: Path | LookupConfig
    config: CorpusConfig
    at_start: bool = True  # whether it is built before anybody asks


SAMPLES = {
    "factbook2015": Sample(
        "World Factbook 2015",
        ASSETS / "factbook2015" / "factbook2015.jsonl.gz",
        CorpusConfig(tokenizer="factbook", chunk_len=32),
    ),
    "udhr44": Sample(
        "Human rights in 44 languages",
        ASSETS / "udhr44" / "udhr44.jsonl.gz",
        CorpusConfig(holdout=0.2),
    ),
    "lookup": Sample(
        "Lookup world", LookupConfig(), CorpusConfig(chunk_len=32, vocab_size=4096), at_start=False
    ),
}


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


def sample_folder(home: Path, name: str) -> Path:
    """Where the sample corpus `name` is built; another version of its source is another folder."""
    if name not in SAMPLES:
        raise UserError(f"There is no sample corpus {name}. There is: {', '.join(SAMPLES)}.")
    sample = SAMPLES[name]
    source = sample.source
    parts = [
        file_hash(source) if isinstance(source, Path) else repr((source, *map(file_hash, WRITERS))),
        file_hash(STATIC_FOLDER / "table.safetensors"),
        repr(sample.config),
    ]
    if sample.config.tokenizer in SHIPPED_TOKENIZERS:
        parts += [file_hash(SHIPPED_TOKENIZERS[sample.config.tokenizer])]
    return home / "samples" / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def prepare_sample(home: Path, name: str) -> Path:
    """The folder of a sample corpus, ready for `build_corpus` (which finds it done the second time)."""
    folder, sample = sample_folder(home, name), SAMPLES[name]
    if not (folder / "config.json").exists():
        source = sample.source
        if isinstance(source, LookupConfig):
            folder.mkdir(parents=True, exist_ok=True)
            source = write_lookup_world(folder / "world.jsonl", source)
        write_corpus_config(folder, [source], sample.config)
    return folder


def corpus_folder(home: Path, corpus: str) -> Path:
    """The folder that a run's config means by its corpus: a path, or "sample:NAME"."""
    if corpus.startswith(SAMPLE):
        return sample_folder(home, corpus.removeprefix(SAMPLE))
    return Path(corpus)


def run_folder(run: str) -> Path:
    """The folder that a config means by another run: a path, or "sample:NAME" for what ships."""
    return CHECKPOINTS / run.removeprefix(SAMPLE) if run.startswith(SAMPLE) else Path(run)


def new_code() -> str:
    """A code for a new visitor that nobody can guess."""
    return secrets.token_urlsafe(18)


@dataclass(frozen=True)
class Workspace:
    """One visitor's folders. Ids are names of folders here, or "sample:NAME" for what ships."""

    home: Path
    folder: Path

    @staticmethod
    def open(home: Path, code: str) -> Workspace:
        """The workspace of a code; raises UserError for what is no code.

        Nothing is made, for anybody can make up codes: a request that writes calls `make`.
        """
        if not isinstance(code, str) or not CODE.fullmatch(code):
            raise UserError(
                "A workspace code has 16 to 64 letters, digits, - or _. Reload the page to get one."
            )
        folder = home / "workspaces" / code
        with suppress(FileNotFoundError):  # nothing was written under this code yet
            if abs(time.time() - folder.stat().st_mtime) > 3600:  # the clock may have been set back
                os.utime(folder)  # the last visit: see janitor.py
        return Workspace(home, folder)

    def make(self) -> Workspace:
        """Make its folder, where there is none, for a request that begins to write; gives it back.

        What takes long calls this at its begin, once it is known that it can be done, and `check_there` at
        its end: what is missing then was deleted meanwhile. The folders inside are made by what fills them.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def check_there(self) -> None:
        """Raise UserError where it was deleted since it was made: what ends later may not bring it back."""
        if not self.folder.is_dir():
            raise UserError("There is no workspace of this code any more. Reload the page to get a new one.")

    def corpora(self) -> list[str]:
        """Ids of the corpora that can be chosen, built or being built; samples first."""
        return [SAMPLE + name for name in SAMPLES] + self._names("corpora")

    def runs(self) -> list[str]:
        """Ids of the runs, shipped ones first (the one with an example leads), then the newest first."""
        folders = [path.parent for path in CHECKPOINTS.glob("*/config.json")]
        shipped = sorted(folders, key=lambda path: (not (path / "example.json").exists(), path.name))
        return [SAMPLE + path.name for path in shipped] + self._names("runs")

    def _names(self, kind: str) -> list[str]:
        folders = [path for path in (self.folder / kind).glob("*") if (path / "config.json").exists()]
        return [
            path.name for path in sorted(folders, key=lambda path: (path / "config.json").stat().st_mtime)
        ][::-1]

    def corpus(self, name: str) -> Path:
        """The folder of a corpus id; raises UserError for an unknown one."""
        name = str(name)  # what comes over HTTP may be anything
        if name.startswith(SAMPLE):
            return sample_folder(self.home, name.removeprefix(SAMPLE))
        return self._existing("corpora", name, "corpus")

    def run(self, name: str) -> Path:
        """The folder of a run id; raises UserError for an unknown one."""
        name = str(name)
        if name.startswith(SAMPLE):
            plain = name.removeprefix(SAMPLE)
            if not NAME.fullmatch(plain) or not (CHECKPOINTS / plain / "config.json").exists():
                raise UserError(f"There is no shipped run {name[:80]!r}. Choose a run from the list.")
            return CHECKPOINTS / plain
        return self._existing("runs", name, "run")

    def trace(self, name: str) -> Path:
        """Where the trace `name` lies (no suffix)."""
        name = str(name)
        if name.startswith(SAMPLE):
            return self.run(name) / "example"
        if not NAME.fullmatch(name):
            raise UserError(f"There is no trace {name[:80]!r}. Generate anew.")
        return self.folder / "traces" / name

    def _existing(self, kind: str, name: str, word: str) -> Path:
        folder = self.folder / kind / name
        if not NAME.fullmatch(name) or not (folder / "config.json").exists():
            raise UserError(f"There is no {word} {name[:80]!r} in this workspace. Choose one from the list.")
        return folder

    def new_folder(self, kind: str, wanted: str) -> Path:
        """A folder for a new corpus or run (kind "corpora" or "runs"), named as wanted as can be."""
        plain = unicodedata.normalize("NFKD", wanted).encode("ascii", "ignore").decode()
        base = re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._")[:50] or "unnamed"
        (self.make().folder / kind).mkdir(mode=0o700, exist_ok=True)
        for number in range(1, 10_000):
            folder = self.folder / kind / (base if number == 1 else f"{base}-{number}")
            if not folder.exists():
                folder.mkdir(mode=0o700)
                return folder
        raise UserError(f"There are too many called {base!r}. Choose another name.")

    def rename(self, kind: str, old: str, new: str) -> str:
        """Give a corpus or run another name; returns it. Not while something works on it."""
        folder = self.owned(kind, old)
        wanted = new.strip().lower()
        if not NAME.fullmatch(wanted):
            raise UserError(
                f"{new[:80]!r} is no name: use up to 61 small letters, digits, - _ or . "
                "and begin with a letter or a digit."
            )
        target = folder.with_name(wanted)
        if target.exists():
            raise UserError(f"There is already one called {wanted!r}. Choose another name.")
        folder.rename(target)
        return wanted

    def delete(self, kind: str, name: str) -> None:
        """Remove a corpus or run with all its files. Not while something works on it."""
        shutil.rmtree(self.owned(kind, name))

    def owned(self, kind: str, name: str) -> Path:
        """The folder of a corpus or run of the visitor's own that nothing works on; else raises UserError."""
        if name.startswith(SAMPLE):
            raise UserError(f"{name.removeprefix(SAMPLE)} ships with the app and stays as it is.")
        folder = self._existing(kind, name, {"corpora": "corpus", "runs": "run"}[kind])
        if is_at_work(folder) or any(map(is_at_work, folder.glob("evaluations/*"))):
            raise UserError(f"{name} is being worked on, or waits to be. Stop it first.")
        return folder


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


def disk_use(folder: Path) -> int:
    """Bytes of all files below the folder; what a job moves away meanwhile does not count."""
    used = 0
    for place, _, names in os.walk(folder):  # which, unlike rglob, takes it well when a folder vanishes
        for name in names:
            with suppress(FileNotFoundError):
                used += os.stat(os.path.join(place, name)).st_size
    return used


def derived_folder(home: Path, corpus: Path, fingerprint: str) -> Path:
    """Where to keep what is made from a corpus: with it, or in the data folder where that is read-only."""
    if os.access(corpus, os.W_OK):
        return corpus
    folder = home / "derived" / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_built(corpus: Path) -> bool:
    """Whether a corpus folder is built to its end."""
    return (corpus / MANIFEST).exists()
