"""What the tests of uploads share: files to write and the two ends of reading them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfWriter

from benchmarks.small_pdfs import drawn, pages
from retro_demo.documents.sources import Reading, ReadingLimits, parse_fields, read_documents
from retro_demo.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\x01\0\x08\x06\0\0\0" + bytes(range(256)) * 8


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_zip(path: Path, members: Mapping[Any, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    return path


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def pdf(*texts: str, password: str = "", owner: str = "", algorithm: str = "RC4-128") -> bytes:
    """A PDF with a line on each page, encrypted where there is a password."""
    plain = pages(*[drawn(text.encode("latin-1")) for text in texts])
    if not (password or owner):
        return plain
    writer, buffer = PdfWriter(clone_from=io.BytesIO(plain)), io.BytesIO()
    writer.encrypt(password, owner or password, algorithm=algorithm)
    writer.write(buffer)
    return buffer.getvalue()


def read(*sources: Path, fields: str = "", limits: ReadingLimits | None = None) -> Reading:
    return read_documents(sources, fields=parse_fields(fields), limits=limits or ReadingLimits())


def refusal(*sources: Path, fields: str = "", limits: ReadingLimits | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read(*sources, fields=fields, limits=limits)
    return str(caught.value)


def texts(reading: Reading) -> dict[str, str]:
    return {document.id: document.text for document in reading.documents}
