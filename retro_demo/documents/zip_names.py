"""The names of what a .zip holds: the format gives them in code page 437 or UTF-8, and programs in anything.

It knows nothing of what a name is good for: unsafe ones come back as they are.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from retro_demo.documents.charsets import guess_of_names

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
