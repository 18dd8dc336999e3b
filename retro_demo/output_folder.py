"""Where a verb may write: to a free path, or to a folder that the same verb began. All else is the user's.

Each verb that writes to a folder or file that a person names asks here before it writes anything, a lock
or a parent folder included. Our output is known by its manifest or config, never by a name: people have files
called documents.jsonl, config.json and model.safetensors, too. So a walk through sources can leave out
corpora, runs and exports below them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retro_demo.errors import UserError, listed

CONFIG = "config.json"
EXPORT, EXPORTED = "export.json", ("run", "corpus")  # the manifest of an export, and of what there are any
UNFINISHED = CONFIG + ".tmp"
PID = re.compile(rb"driven|\d+ \S+ [\d.]+\n|")  # as jobs.claim writes it, when it holds the lock
BEFORE_CONFIG = {"run": ("tokenizer.json", "tokenizer.json.tmp")}
"""What a verb writes while its config is on the way."""
MOST_BYTES = 100_000_000  # of a config: one of a corpus may name every file, or every document to forget
ROOM = 160  # bytes of a path for the names of what comes to lie in a folder
LONGEST_NAME, LONGEST_PATH = 255, 4095  # where the system does not say
SHOWN_CHARS, SHOWN_NAMES = 60, 4


def kind_of(folder: Path) -> str:
    """What of ours a folder holds: "corpus", "run", "evaluation", "study", "export", or "" for none."""
    return kind_by(read_object(folder / EXPORT), read_object(folder / CONFIG))


def kind_by(export: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """As `kind_of`, by what export.json and config.json of a folder hold, {} for what is not there."""
    return "export" if _is_manifest(export) else _kind_of_config(config)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none that can be read, whatever lies there."""
    try:
        at = path.stat()
        if not stat.S_ISREG(at.st_mode) or at.st_size > MOST_BYTES:  # a pipe would keep us waiting
            return {}
        values = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def check_output(out: Path, kind: str, *, placed: Collection[str] = ()) -> bool:
    """Whether `out` holds a `kind` of ours, to go on with; False where it is free for a new one.

    Free is what is not there and can be made, an empty folder, and what a kill left of a begin. `placed`
    names what the caller has put there. Looks and touches nothing. Raises UserError for everything else.
    """
    _check_name(out)
    there = _names_in(out)
    if there is None:
        _check_can_be_made(out)
        return False
    if (found := kind_of(out)) and found != kind:
        raise UserError(
            f"{_shown(out)} holds {_a(found)}, not {_a(kind)}. Nothing there was touched: choose another "
            "folder."
        )
    strange = [] if found else [n for n in there if n not in placed and not _of_a_begin(out, n, kind)]
    if strange:
        unknown = f", and its {CONFIG} is another program's or damaged" if CONFIG in strange else ""
        raise UserError(
            f"{_shown(out)} holds {_shown_names(strange)} and is no {kind} of this program{unknown}. Nothing "
            "there was touched: choose another folder, or an empty one."
        )
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{_shown(out)} cannot be written. Choose another folder, or change its permissions.")
    return bool(found)


def check_new(out: Path, *, is_file: bool = False, flag: str = "--out") -> None:
    """Raise UserError where a new folder (an empty one may be there) or file cannot be put at `out`.

    Looks and touches nothing. `flag` is what names the place.
    """
    _check_name(out)
    if is_file and os.path.lexists(_system_path(out)):
        raise UserError(
            f"{_shown(out)} is there already. Nothing was touched: name a file that is not, with {flag}."
        )
    there = _names_in(out)
    if there is None:
        _check_can_be_made(out)
    elif there or not out.name:
        holds = f" and holds {_shown_names(there)}" if there else ""
        raise UserError(
            f"{_shown(out)} is there already{holds}. Nothing was touched: name a folder that is not, or an "
            f"empty one, with {flag}."
        )


def make_output(out: Path) -> list[Path]:
    """Make a folder that was found free, and its parents; gives back those that were not there, inner first.

    Raises UserError, and leaves nothing, where the system does not let it be made.
    """
    missing = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _unmake(missing)
        raise _not_made(out, error) from error
    return missing


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that is being made or deleted, or that its owner hides."""
    return name.startswith(".")


@contextmanager
def working_folder(near: Path, prefix: str) -> Iterator[Path]:
    """A folder of its own below `near` to write to first: gone at the end, with parents that nothing fills.

    `prefix` begins with a dot: what a kill leaves is hidden. Raises UserError where it cannot be made.
    """
    made = make_output(near)
    try:
        folder = Path(tempfile.mkdtemp(dir=near, prefix=prefix))
    except OSError as error:
        _unmake(made)
        raise _not_made(near, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unmake(made)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` at the end, which is free, or nothing where that fails."""
    check_new(out)
    place = out.resolve()  # an empty folder may be meant by a link
    with working_folder(place.parent, ".export-") as scratch:
        folder = scratch / "whole"
        folder.mkdir()
        yield folder
        try:
            folder.replace(place)  # the system refuses where somebody put something there meanwhile
        except OSError as error:
            raise _not_made(out, error) from error


def _is_manifest(values: Mapping[str, Any]) -> bool:
    about = values.get("corpus")
    return (
        isinstance(values.get("format"), int)
        and values.get("kind") in EXPORTED
        and isinstance(values.get("files"), dict)
        and isinstance(about, dict)
        and isinstance(about.get("fingerprint"), str)
    )


def _kind_of_config(values: Mapping[str, Any]) -> str:
    config, training = values.get("config"), values.get("training")
    if values.get("kind") == "corpus":
        sources = values.get("sources")
        ours = isinstance(sources, list) and all(isinstance(source, str) for source in sources)
        return "corpus" if ours and isinstance(config, dict) and "chunk_len" in config else ""
    if values.get("kind") == "evaluation":
        ours = isinstance(values.get("run"), str) and isinstance(values.get("settings"), dict)
        return "evaluation" if ours else ""
    if values.get("kind") == "study":
        ours = isinstance(values.get("corpus"), str) and isinstance(values.get("settings"), dict)
        return "study" if ours else ""
    texts = all(isinstance(values.get(name), str) for name in ("model", "corpus", "corpus_fingerprint"))
    ours = isinstance(values.get("network"), dict) and isinstance(training, dict) and "steps" in training
    return "run" if texts and ours else ""


def _of_a_begin(out: Path, name: str, kind: str) -> bool:
    """Whether a file is what a kill leaves of us before there is a config: a lock, or a config on its way."""
    path = out / name
    try:
        at = path.lstat()
        if not stat.S_ISREG(at.st_mode):
            return False
        if name in ("lock", UNFINISHED) and not at.st_size:
            return True
        if name == "pid":
            held = os.path.lexists(out / "lock") and at.st_size < 200
            return held and PID.fullmatch(path.read_bytes()) is not None
    except FileNotFoundError:  # another process is at its begin
        return True
    except OSError:
        return False
    if name == UNFINISHED or name in BEFORE_CONFIG.get(kind, ()):
        return _kind_of_config(read_object(out / UNFINISHED)) == kind
    return False


def _names_in(out: Path) -> list[str] | None:
    """The names in a folder, None where nothing is there; UserError for what is no folder."""
    place = _system_path(out)
    try:
        return sorted(os.listdir(place))
    except FileNotFoundError:
        if not os.path.lexists(place):
            return None
        raise UserError(f"{_shown(out)} is a link that leads nowhere. Name a folder.") from None
    except NotADirectoryError:
        if not os.path.lexists(place):  # one of its parents is a file
            return None
        raise UserError(
            f"{_shown(out)} is a file, not a folder. Nothing was touched: name another place."
        ) from None
    except OSError as error:
        raise _not_made(out, error) from error


def _check_name(out: Path) -> None:
    """Raise UserError where a path is not UTF-8: what writes indexes and weights cannot take it."""
    try:
        str(out.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(out.absolute()).decode("utf-8", "backslashreplace")
        raise UserError(f"The path {_shown(shown)} is not UTF-8. Name another folder or file.") from error


def _check_can_be_made(out: Path) -> None:
    """Raise UserError where the folders on the way to `out` do not let it be made."""
    place = out.absolute()
    if len(os.fsencode(place)) + ROOM > _limit(Path("/"), "PC_PATH_MAX", LONGEST_PATH):
        raise UserError(f"The path {_shown(out)} is too long for this system. Name another folder.")
    missing = [place.name]
    for parent in place.parents:
        if os.path.lexists(parent):
            break
        missing.append(parent.name)
    else:
        parent = place.root
    if not os.path.isdir(parent):
        raise UserError(f"{_shown(out)} cannot be made: {_shown(parent)} is no folder. Name another place.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{_shown(out)} cannot be made: {_shown(parent)} cannot be written. Name another place."
        )
    longest = _limit(Path(parent), "PC_NAME_MAX", LONGEST_NAME)
    if any(len(os.fsencode(name)) > longest for name in missing):
        raise UserError(f"A name in {_shown(out)} is too long for this system. Name another folder.")


def _limit(at: Path, name: str, default: int) -> int:
    try:
        return os.pathconf(at, name)
    except (OSError, ValueError, AttributeError):
        return default


def _system_path(out: Path) -> str:
    """The path as the system takes it; UserError for one that it cannot take."""
    text = os.fspath(out)
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:
        raise UserError(f"{_shown(text)} is no path: it holds a character that none has.") from None
    return text


def _not_made(out: Path, error: OSError) -> UserError:
    return UserError(f"{_shown(out)} cannot be written ({error.strerror or error}). Name another place.")


def _unmake(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it was not made, or something lies in it
            folder.rmdir()


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _shown(place: os.PathLike[str] | str) -> str:
    text = os.fspath(place)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 4 * SHOWN_CHARS else f"{text[: 4 * SHOWN_CHARS]}..."


def _shown_names(names: Sequence[str]) -> str:
    """The first names, each cut, and how many more there are."""
    plain = [name if name.isprintable() else ascii(name) for name in names]
    cut = [name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}..." for name in plain]
    return listed(cut, SHOWN_NAMES)
