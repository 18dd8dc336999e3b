"""Archives -> named byte streams within limits, with readable names.

Opens what a user gave (files, folders, .zip, .gz). It guards against hostile archives, and against files that
are archives inside: every byte is counted as it is unpacked, and sizes in an archive's headers are not
believed. A .zip stores names in code page 437 or UTF-8, and programs write any encoding: names are decoded
here and otherwise come back as they are, unsafe ones too.

This module does not know text, the encodings of texts, or documents.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from retro_demo.documents.encodings import guess_of_names
from retro_demo.errors import UserError
from retro_demo.output_folder import CONFIG, EXPORT, is_hidden, kind_by

UTF8_FLAG = 0x800
UNICODE_PATH = 0x7075  # the extra field of Info-ZIP that holds the name in UTF-8
USUAL = "cp437"


@dataclass(frozen=True)
class ZipNames:
    """names: of each member; guessed: the encoding that some were guessed to be in, "" = none was."""

    names: list[str]
    guessed: str = ""


def names_of(members: Sequence[zipfile.ZipInfo]) -> ZipNames:
    """The names of an archive's members: as it says, else as UTF-8, else in the likeliest code page."""
    told = [_told(member) for member in members]
    raw = [member.orig_filename.encode(USUAL) for member, name in zip(members, told, strict=True) if not name]
    others = [name for name in raw if not _is_utf8(name)]  # plain ASCII is UTF-8 too
    encoding = guess_of_names(others, USUAL) if others else "utf-8"
    unknown = (name.decode("utf-8" if _is_utf8(name) else encoding, "replace") for name in raw)
    names = [name or next(unknown) for name in told]
    names = [name.split("\0")[0] for name in names]  # a zero ends a name
    return ZipNames(names, "" if encoding in ("utf-8", USUAL) else encoding)


def _told(member: zipfile.ZipInfo) -> str:
    """The name of a member where the archive says how it is written, else ""."""
    if member.flag_bits & UTF8_FLAG:
        return member.orig_filename
    extra, raw = member.extra, member.orig_filename.encode(USUAL)
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        # version 1, and the name that it was written beside: another one was renamed since
        if kind == UNICODE_PATH and field[:5] == struct.pack("<BI", 1, zlib.crc32(raw)):
            return field[5:].decode("utf-8") if _is_utf8(field[5:]) else ""
    return ""


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,  # gzip.BadGzipFile among them
    ValueError,
    NotImplementedError,
)
FREE_BYTES = 1_000_000  # tiny archives may unpack to this much at any compression ratio
DIRECTORY_BYTES = 1_024  # of a zip's table of contents, for each member allowed
MANIFEST_BYTES = 4_000_000  # of a file in an archive that may say that this program made its folder
NESTED = "an archive inside an archive"
UNPACK = "unpack the outer one first"


@dataclass(frozen=True)
class ReadingLimits:
    """How much may be read; anything over it is refused with a UserError."""

    total_bytes: int = 256_000_000
    """Of all sources together, unpacked."""
    document_chars: int = 32_000_000
    """Of one document (of one line in .jsonl and .csv, one record in .json, the whole of an .ipynb)."""
    line_chars: int = 1_000_000
    """Of one line in .txt, .md and other text."""
    archive_members: int = 10_000
    compression_ratio: int = 200
    """Bytes that one byte of an archive may unpack to."""
    pdf_bytes: int = 64_000_000
    pdf_pages: int = 20_000
    pdf_seconds: int = 300
    """For one file; the largest manual of Debian, 16,248 pages, takes 40."""
    pdf_memory: int = 2_000_000_000
    """Bytes that reading one file may write to; systems other than Linux do not hold it."""


DEFAULT_LIMITS = ReadingLimits()


class OverLimit(UserError):
    """There is more than may be read of all sources together, so that no part of them is."""


class BadFile(UserError):
    """A file that cannot be read, whatever the others are: "`label` is `what`: `advice`."."""

    def __init__(self, label: str, what: str, advice: str) -> None:
        super().__init__(f"{label} is {what}: {advice}.")
        self.what = what
        self.advice = advice


@dataclass(frozen=True)
class Entry:
    """One file to read, wherever it lies: on its own, in a folder, in an archive."""

    name: str
    """Path relative to the folder or archive it came from, with forward slashes."""
    label: str
    """How to speak of it in messages."""
    kind: str
    """Suffix in lower case, without .gz: `.jsonl` for `a.jsonl.gz`."""
    chosen: bool
    """The user named this very file; False for what was found in a folder or an archive."""
    size: int
    """Bytes that it takes on the disk, as a member of an archive packed."""
    open: Callable[[], AbstractContextManager[io.BufferedReader]]
    """Opens the unpacked bytes. Reading raises UserError where the file is broken or too large."""
    unpacker: Unpacker
    """For kinds that are packed inside, such as .docx."""
    trouble: UserError | None = None
    """Why it cannot be read, where that is known before it is opened; opening raises it."""
    guessed: str = ""
    """The encoding that its name in an archive was guessed to be in, "" = none was."""


@dataclass(frozen=True)
class Found:
    """A file that was named, or lies in a folder that was, before it is opened."""

    path: Path
    name: str
    """Relative to the folder that was named, with forward slashes; of a file that was named its own."""
    chosen: bool
    size: int = 0
    """Bytes on the disk."""
    trouble: UserError | None = None
    """Why it cannot be opened, where that is known."""


def open_sources(sources: Sequence[Path], limits: ReadingLimits) -> Iterator[Entry]:
    """The files of all sources, as `find_files` finds and `open_files` opens them."""
    return open_files(find_files(sources), limits)


def find_files(
    sources: Sequence[Path],
    *,
    skipped: Callable[[Path], bool] = lambda _: False,
    hidden: Callable[[str], None] = lambda _: None,
) -> list[Found]:
    """The files of all sources in their order, those of a folder sorted by name; archives are files here.

    Passed over are, below a source, the folders that `skipped` says yes to, and hidden files and folders,
    which `hidden` is told. What is no file has its error: a missing source, a link that leads nowhere,
    a folder that cannot be opened.
    """
    found: list[Found] = []
    for source in sources:
        if os.path.isdir(source):
            for name, what in _files_below(source, skipped, hidden):
                advice = "put the file itself in its place"
                trouble = BadFile(_shown(name), what, advice) if what else None
                found.append(Found(source / name, name, False, _size(source / name), trouble))
        else:
            trouble = None if os.path.isfile(source) else _no_file(source)
            found.append(Found(source, source.name, True, _size(source), trouble))
    return found


def open_files(
    found: Iterable[Found],
    limits: ReadingLimits,
    *,
    hidden: Callable[[str], None] = lambda _: None,
    output: Callable[[str], None] | None = None,
) -> Iterator[Entry]:
    """The files that were found, and of archives what these hold, sorted by name.

    A .gz inside a .zip is unpacked, an archive inside an archive is not. What is passed over in archives is
    told: hidden files to `hidden`, folders that this program made to `output`, without which they are files
    like others. What cannot be read has its error, as a broken or unsafe archive. Raises OverLimit.
    """
    meter = _Meter(limits)
    for file in found:
        if file.trouble:
            yield _troubled(file.name, file.trouble, meter, chosen=file.chosen)
        else:
            yield from _entries(file, meter, hidden, output)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):  # a zero byte in the path
        return 0


def _no_file(source: Path) -> UserError:
    """Why a source is neither a file nor a folder."""
    try:
        source.stat()
    except OSError as error:
        if os.path.islink(source):
            return BadFile(_shown(str(source)), "a link that leads nowhere", "give the file itself")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return UserError(f"There is no file or folder {_shown(str(source))!r}: check the path.")
        return UserError(f"{_shown(str(source))!r} cannot be opened ({error.strerror}): check the path.")
    except ValueError:  # a zero byte in the path
        return UserError(f"There is no file or folder {str(source)!r}: check the path.")
    what = "neither a file nor a folder but a pipe, socket or device"
    return BadFile(_shown(str(source)), what, "save what it gives in a file and name that")


def _closed(label: str, error: OSError) -> BadFile:
    return BadFile(label, f"a file that cannot be opened ({error.strerror})", "check whether you may read it")


def _broken(label: str, error: Exception) -> UserError:
    return UserError(f"{label} is broken ({error}).")


def _files_below(
    folder: Path, skipped: Callable[[Path], bool], hidden: Callable[[str], None]
) -> list[tuple[str, str]]:
    """What lies below a folder, sorted by its path: (path, what it is where that is no file, or "")."""
    found: list[tuple[str, str]] = []

    def add(path: Path, what: str) -> None:
        found.append((path.relative_to(folder).as_posix() if path != folder else folder.name, what))

    def closed(error: OSError) -> None:
        add(Path(error.filename), f"a folder that cannot be opened ({error.strerror})")

    for root, folders, files in os.walk(folder, onerror=closed):
        for path in (Path(root, name) for name in sorted([*folders, *files]) if _is_left_out(name)):
            hidden(_shown(path.relative_to(folder).as_posix()))
        folders[:] = [n for n in sorted(folders) if not (_is_left_out(n) or skipped(Path(root, n)))]
        for path in (Path(root, name) for name in folders):
            if path.is_symlink():  # not followed: it may lead around in a circle
                add(path, "a link to a folder")
        for path in (Path(root, name) for name in files if not _is_left_out(name)):
            if path.is_file():
                add(path, "")
            else:
                add(path, "a link that leads nowhere" if path.is_symlink() else "a pipe, socket or device")
    return sorted(found)


def _entries(
    file: Found, meter: _Meter, hidden: Callable[[str], None], output: Callable[[str], None] | None
) -> Iterator[Entry]:
    kind, label = _kind(file.name), _shown(file.name)
    if kind == ".zip" and not file.name.lower().endswith(".gz"):
        try:
            yield from _zip_entries(file, label, meter, hidden, output)
        except OverLimit:
            raise
        except UserError as error:
            yield _troubled(file.name, error, meter, chosen=file.chosen)
    elif kind in (".zip", ".gz"):
        yield _troubled(file.name, BadFile(label, NESTED, UNPACK), meter, chosen=file.chosen)
    else:
        opener = partial(_open_file, file.path, label, meter)
        yield Entry(label, label, kind, file.chosen, file.size, opener, Unpacker(label, meter))


def _troubled(name: str, error: UserError, meter: _Meter, *, chosen: bool) -> Entry:
    def open_it() -> NoReturn:
        raise error

    label = _shown(name)
    return Entry(label, label, _kind(name), chosen, 0, open_it, Unpacker(label, meter), error)


@contextmanager
def _open_file(path: Path, label: str, meter: _Meter) -> Iterator[io.BufferedReader]:
    try:
        meter.begin(path, label)
        raw = path.open("rb")
    except OSError as error:
        raise _closed(label, error) from error
    with raw, _unpacked(raw, path.name, label, meter) as stream:
        yield stream


def _zip_entries(
    file: Found,
    label: str,
    meter: _Meter,
    hidden: Callable[[str], None],
    output: Callable[[str], None] | None,
) -> Iterator[Entry]:
    """The members of an archive; raises UserError before the first of them where none can be read."""
    path = file.path
    try:
        meter.begin(path, label)
    except OSError as error:
        raise _closed(label, error) from error
    with _opened_zip(path, label, "a zip archive", meter) as archive:
        members = archive.infolist()
        names = names_of(members)
        for name in names.names:
            _check_name(name, label)
        paths = [name.replace("\\", "/") for name in names.names]  # some programs on Windows write these
        for name in dict.fromkeys(filter(None, map(_hidden_part, sorted(paths)))):
            hidden(f"{name} in {label}")
        by_path = dict(zip(paths, members, strict=True))
        ours = _outputs(archive, by_path, label, meter) if output else {}
        if "" in ours and file.chosen:
            raise UserError(
                f"{label} holds no documents: this program made what is in it (kind: {ours['']}). "
                "Name files, or a folder of them."
            )
        for folder in ours:
            assert output
            output(f"{folder.rstrip('/')} in {label}" if folder else label)
        for name, member in sorted(zip(paths, members, strict=True), key=lambda pair: pair[0]):
            if not (name.endswith("/") or _hidden_part(name) or name.startswith(tuple(ours))):
                where, kind = f"{name} in {label}", _kind(name)
                trouble = BadFile(where, NESTED, UNPACK) if kind in (".zip", ".gz") else None
                trouble = trouble or _trouble_of(member, where)
                yield Entry(
                    name,
                    where,
                    kind,
                    False,
                    member.compress_size,
                    partial(_open_member, archive, member, name, where, meter),
                    Unpacker(where, meter),
                    trouble,
                    "" if name.isascii() else names.guessed,
                )


def _outputs(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], label: str, meter: _Meter
) -> dict[str, str]:
    """The folders in an archive that this program made, as "name/" or "" for the whole, and their kinds."""

    def held(name: str) -> dict[str, object]:
        where = f"{name} in {label}"
        if name not in members or _trouble_of(members[name], where):
            return {}
        try:
            with _open_member(archive, members[name], name, where, meter) as stream:
                values = json.loads(stream.read(MANIFEST_BYTES))
        except OverLimit:
            raise
        except (UserError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    ends = (EXPORT, CONFIG)
    folders = sorted({n.removesuffix(end) for n in members for end in ends if f"/{n}".endswith(f"/{end}")})
    kinds = {folder: kind_by(held(folder + EXPORT), held(folder + CONFIG)) for folder in folders}
    found: dict[str, str] = {}
    for folder, kind in kinds.items():
        if kind and not folder.startswith(tuple(found)):
            found[folder] = kind
    return found


@contextmanager
def _opened_zip(place: Path | int, label: str, kind: str, meter: _Meter) -> Iterator[zipfile.ZipFile]:
    """A zip at a path or descriptor, whose members are not too many; `kind` as in "a zip archive"."""
    limit = meter.limits.archive_members
    too_many = f"{label} holds more than {limit:,} files: split it into several archives."
    try:
        file = _ZipFileOnDisk(place, limit * DIRECTORY_BYTES, too_many)
    except OSError as error:
        raise _closed(label, error) from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except BROKEN_ARCHIVE as error:
            raise UserError(f"{label} is not {kind}, or is broken ({error}).") from error
        if len(archive.infolist()) > limit:
            raise UserError(too_many)
        yield archive


@contextmanager
def _open_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, label: str, meter: _Meter
) -> Iterator[io.BufferedReader]:
    if trouble := _trouble_of(member, label):
        raise trouble
    try:
        raw = archive.open(member)
    except BROKEN_ARCHIVE as error:
        raise _broken(label, error) from error
    with raw, _unpacked(raw, name, label, meter) as stream:
        yield stream


@contextmanager
def _unpacked(raw: IO[bytes], name: str, label: str, meter: _Meter) -> Iterator[io.BufferedReader]:
    """The bytes of `raw`, gunzipped where its name says so, each counted by the meter."""
    outer: io.BufferedReader = io.BufferedReader(_Metered(raw, label, meter))
    if not name.lower().endswith(".gz"):
        yield outer
    else:
        with gzip.GzipFile(fileobj=outer) as unpacked:
            inner: io.BufferedReader = io.BufferedReader(_Metered(unpacked, label, meter))
            yield inner


class Unpacker:
    """Opens a file that is a zip inside (.docx, .epub), its bytes counted with those of its source."""

    def __init__(self, label: str, meter: _Meter) -> None:
        self._label = label
        self._meter = meter

    def count(self, num_bytes: int) -> None:
        """Count what a library unpacked by itself; raises UserError where it is too much."""
        self._meter.count(num_bytes, self._label)

    @contextmanager
    def parts(self, stream: io.BufferedReader, kind: str) -> Iterator[Parts]:
        """The parts of the file whose bytes are `stream`; `kind` as in "a .docx file". Raises UserError."""
        with tempfile.TemporaryFile() as file:  # a zip is read from its end, and a stream has none yet
            shutil.copyfileobj(stream, file)
            file.flush()
            with _opened_zip(file.fileno(), self._label, kind, self._meter) as archive:
                for member in archive.infolist():
                    _check_name(member.filename, self._label)
                    if trouble := _trouble_of(member, f"{member.filename} in {self._label}"):
                        raise trouble
                yield Parts(archive, self._label, self._meter)


class Parts:
    """The parts of a file that is a zip inside, by name."""

    def __init__(self, archive: zipfile.ZipFile, label: str, meter: _Meter) -> None:
        self._archive = archive
        self._label = label
        self._meter = meter
        self._members = {member.filename: member for member in archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedReader]:
        """The unpacked bytes of a part. Reading raises UserError where it is broken or too large."""
        where = f"{name} in {self._label}"
        try:
            raw = self._archive.open(self._members[name])
        except KeyError:
            raise UserError(f"{self._label} is incomplete: it has no {name}.") from None
        except BROKEN_ARCHIVE as error:
            raise _broken(where, error) from error
        with raw:
            yield io.BufferedReader(_Metered(raw, where, self._meter))


def _kind(name: str) -> str:
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def _is_left_out(name: str) -> bool:
    return is_hidden(name) or name == "__MACOSX"


def _hidden_part(path: str) -> str:
    """A path of an archive up to its first part that is hidden, "" where none is."""
    parts = PurePosixPath(path).parts
    at = next((at for at, part in enumerate(parts) if _is_left_out(part)), None)
    return "" if at is None else "/".join(parts[: at + 1])


def _shown(name: str) -> str:
    """A path as it can be told and kept: bytes that are no UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _check_name(name: str, label: str) -> None:
    if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|[A-Za-z]:", name):
        raise UserError(
            f"{label} holds the unsafe path {name[:80]!r}, which leads out of the archive: "
            "pack it again from inside its folder."
        )


def _trouble_of(member: zipfile.ZipInfo, label: str) -> UserError | None:
    """Why a member of an archive is not unpacked, None where it can be."""
    if stat.S_ISLNK(member.external_attr >> 16):
        return BadFile(label, "a link", "pack the file itself instead")
    if member.flag_bits & 1:
        return BadFile(label, "encrypted", "pack it again without a password")
    # Only these two unpack in bounded steps: a few bytes of bzip2 can hold gigabytes.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = f"packed by method {member.compress_type}"
        return BadFile(label, method, "pack it again with the usual method, deflate")
    return None


class _Meter:
    """Counts what all sources and what the current one unpack to."""

    def __init__(self, limits: ReadingLimits) -> None:
        self.limits = limits
        self._total = 0
        self._source_size = 0
        self._source_unpacked = 0

    def begin(self, path: Path, label: str) -> None:
        self._source_size = path.stat().st_size
        self._source_unpacked = 0
        if self._source_size > self.limits.total_bytes:
            raise self._too_large(label)

    def count(self, num_bytes: int, label: str) -> None:
        self._total += num_bytes
        self._source_unpacked += num_bytes
        if self._total > self.limits.total_bytes:
            raise self._too_large(label)
        allowed = self._source_size * self.limits.compression_ratio
        if self._source_unpacked > max(allowed, FREE_BYTES):
            raise OverLimit(
                f"{label} unpacks to more than {self.limits.compression_ratio} times its size, "
                "as a zip bomb does: unpack it yourself and give the files."
            )

    def _too_large(self, label: str) -> OverLimit:
        limit = self.limits.total_bytes / 1e6
        return OverLimit(
            f"With {label} there are more than {limit:,.6g} MB to read: give fewer or smaller files."
        )


class _Metered(io.RawIOBase):
    """A stream whose bytes are counted as they are read, and whose failures are UserErrors."""

    def __init__(self, stream: IO[bytes] | io.BufferedIOBase, label: str, meter: _Meter) -> None:
        self._stream = stream
        self._label = label
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            data = self._stream.read(len(buffer))
        except BROKEN_ARCHIVE as error:
            raise UserError(f"{self._label} is broken or cut off ({error}).") from error
        self._meter.count(len(data), self._label)
        buffer[: len(data)] = data
        return len(data)


class _ZipFileOnDisk(io.FileIO):
    """Refuses the one big read that zipfile makes: the table of contents, before it is parsed."""

    def __init__(self, place: Path | int, read_limit: int, message: str) -> None:
        super().__init__(place, closefd=isinstance(place, Path))
        self._read_limit = max(read_limit, 1 << 17)  # the search for the table's end reads 64 kB
        self._message = message

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._read_limit:
            raise UserError(self._message)
        return super().read(-1 if size is None else size)
