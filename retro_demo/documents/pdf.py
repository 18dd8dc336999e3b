"""Reads .pdf files: starts and bounds the process that reads the pages, and passes their text on as rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from retro_demo.documents.archives import ReadingLimits
from retro_demo.documents.pdf_pages import doubt_of_page, join_broken_words, ranges, spelled
from retro_demo.documents.rows import File, Part, Row
from retro_demo.errors import UserError

ABORTED = 3  # on Windows; elsewhere the number of a signal, below 0
DOUBTS = {
    "garbled": "Letters are likely to be wrong, as the PDF does not tell which its glyphs stand for (text "
    "recognition can help): {names}.",
    "glued": "Words are likely to run together, as the PDF does not tell where they end: {names}.",
}


def read_pdf(file: File) -> Iterator[Row | Part]:
    """The text of all pages as one document; what is missing or doubtful is noted with its pages."""
    label, limits = file.label, file.limits
    data = file.stream.read(limits.pdf_bytes + 1)
    if len(data) > limits.pdf_bytes:
        raise UserError(f"{label} has more than {limits.pdf_bytes:,} bytes: split the PDF.")
    if not data:
        return
    pages = Pages()
    with _records(data, label, limits) as records:
        head = next(records)
        if "refused" in head:
            raise UserError(_refusal(head, label, limits))
        for record in records:
            pages.take(record)
            if pages.num_chars > limits.document_chars:
                raise UserError(
                    f"{label} has more than {limits.document_chars:,} characters of text: split the PDF."
                )
            yield Part(pages.number, head["pages"])
    pages.note(file, head)
    yield Row(join_broken_words("\n\n".join(filter(None, pages.texts))))


class Pages:
    """The pages of a PDF as they come: their texts, and which of them are what."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.number = self.num_chars = 0
        self._textless: list[int] = []
        self._commented: list[int] = []
        self._damaged: set[int] = set()
        self._doubtful: dict[str, list[int]] = {kind: [] for kind in DOUBTS}

    def take(self, record: dict[str, Any]) -> None:
        """The next page, or the list of damaged ones."""
        if "damaged" in record:
            self._damaged |= set(record["damaged"])
            return
        self.number += 1
        if record.get("failed"):
            self._damaged.add(self.number)
            return
        page = spelled(record["text"])
        if page and (kind := doubt_of_page(record["text"], record["unmapped"], record["numbers"])):
            self._doubtful[kind].append(self.number)
        if record["comments"]:
            self._commented.append(self.number)
        values = "\n".join(record["form"])
        if not page and not values and record.get("seen"):
            self._textless.append(self.number)
        self.texts += [page, values]
        self.num_chars += len(page) + len(values)

    def note(self, file: File, head: dict[str, Any]) -> None:
        """Say what is missing or doubtful."""

        def some(pages: list[int]) -> str:
            return f"{len(pages):,} of {self.number:,} pages of {file.label} ({ranges(pages)})"

        if self._damaged:
            file.notes.add(
                "Damaged, so that text of it is missing: {names}. The rest was read.",
                some(sorted(self._damaged)),
            )
        textless = [page for page in self._textless if page not in self._damaged]
        if textless and self.num_chars:  # one without any text is left out, which is said of the document
            file.notes.add(
                "Pages without text (scans? they need text recognition first): {names}.", some(textless)
            )
        if self._commented:
            file.notes.add("Comments on pages of PDFs were left out: {names}.", some(self._commented))
        for kind, pages in self._doubtful.items():
            if pages:
                file.notes.add(DOUBTS[kind], some(pages))
        if head["xfa"]:
            file.notes.add(
                "Forms of a kind that only Adobe's programs fill in and show (XFA); what other programs see "
                "of them was read: {names}.",
                file.label,
            )


def _refusal(head: dict[str, Any], label: str, limits: ReadingLimits) -> str:
    return {
        "password": f"{label} is encrypted and opens with a password only: save the PDF without a password.",
        "encryption": f"{label} is encrypted in a way that cannot be read: save the PDF without a password.",
        "pages": f"{label} has {head.get('pages', 0):,} pages, more than {limits.pdf_pages:,}: split it.",
        "format": f"{label} is not a PDF that can be read: it is damaged, or something else.",
    }[head["refused"]]


@contextmanager
def _records(data: bytes, label: str, limits: ReadingLimits) -> Iterator[Iterator[dict[str, Any]]]:
    """What pdf_pages.py tells of a file, in a process that may crash, hang or take much memory alone."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "retro_demo.documents.pdf_pages",
            str(limits.pdf_pages),
            str(limits.pdf_memory),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limits.pdf_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield _lines(process, data, label, limits, late)
    finally:
        timer.cancel()
        process.kill()
        with suppress(OSError), process:  # closes the pipes and waits
            pass


def _lines(
    process: subprocess.Popen[bytes], data: bytes, label: str, limits: ReadingLimits, late: threading.Event
) -> Iterator[dict[str, Any]]:
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):
        process.stdin.write(data)
        process.stdin.close()
    wanted = told = 0
    for line in process.stdout:
        record = json.loads(line)
        if told == 0:
            wanted = record["pages"] if "refused" not in record else 0
        told += 1
        yield record
    code = process.wait()
    if told > wanted:  # what comes after the last page is a look for damage, which may fail on its own
        return
    where = f"page {told} of {wanted:,}" if told else "its start"
    if late.is_set():
        raise UserError(
            f"{label} takes more than {limits.pdf_seconds:,} seconds to read (stopped at {where}): split the "
            "PDF, or print it to a new one."
        )
    if code < 0 or code == ABORTED or code > 127:
        raise UserError(
            f"{label} cannot be read (the reader broke off at {where}): it is damaged, or needs more than "
            f"{limits.pdf_memory / 1e6:,.0f} MB of memory. Print it to a new PDF."
        )
    raise RuntimeError(f"The process that reads PDFs ended with {code} at {where} of {label}.")
