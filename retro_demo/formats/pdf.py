"""Reads .pdf files: the text of their pages."""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator

from pypdf import PdfReader
from pypdf.errors import DependencyError, PyPdfError

from retro_demo.errors import UserError
from retro_demo.formats.rows import File, Row

# What pypdf raises on damaged files goes well beyond its own errors.
BROKEN_PDF = (
    PyPdfError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,  # RecursionError, NotImplementedError
    TypeError,
    ValueError,
    zlib.error,
)


def read_pdf(file: File) -> Iterator[Row]:
    """The text of all pages as one document."""
    label, limits = file.label, file.limits
    data = file.stream.read(limits.pdf_bytes + 1)
    if len(data) > limits.pdf_bytes:
        raise UserError(f"{label} has more than {limits.pdf_bytes:,} bytes: split the PDF.")
    if not data:
        return
    # It remarks on every oddity of a file; what matters to the user is said here.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    pages: list[str] = []
    num_chars = 0
    try:
        reader = PdfReader(io.BytesIO(data))
        # Many encrypted files open with the empty password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError(f"{label} is encrypted: save the PDF without a password.")
        if len(reader.pages) > limits.pdf_pages:
            raise UserError(
                f"{label} has {len(reader.pages):,} pages, more than {limits.pdf_pages:,}: split the PDF."
            )
        for page in reader.pages:
            pages.append(page.extract_text())
            num_chars += len(pages[-1])
            if num_chars > limits.document_chars:
                raise UserError(
                    f"{label} has more than {limits.document_chars:,} characters of text: split the PDF."
                )
    except DependencyError as error:
        raise UserError(f"{label} is encrypted: save the PDF without a password.") from error
    except BROKEN_PDF as error:
        raise UserError(f"{label} is not a PDF that can be read ({error}).") from error
    yield Row("\n\n".join(pages))
