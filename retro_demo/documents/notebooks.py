"""Reads Jupyter notebooks (.ipynb): text and code of their cells, without what the code printed.

Source: nbformat 4 (a list of cells) and 3 (cells within worksheets).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from retro_demo.documents.flow import as_title
from retro_demo.documents.records import kind_of_value, too_odd
from retro_demo.documents.rows import File, Row
from retro_demo.documents.text import TextReader
from retro_demo.documents.titles import markdown_title
from retro_demo.errors import UserError

LEFT_OUT = "Outputs of notebook cells were left out: {names}."


def read_ipynb(file: File) -> Iterator[Row]:
    """All cells in their order as one document; its title is the first heading."""
    text, limit = TextReader(file), file.limits.document_chars
    blocks: list[str] = []
    num_chars = 0
    while block := text.read():
        num_chars += len(block)
        blocks.append(block)
        if num_chars > limit:
            raise UserError(
                f"{file.label} has more than {limit:,} characters: clear the outputs of its cells, save it."
            )
    text.note_bad_bytes()
    if not num_chars:
        return
    cells = list(_cells(_parsed("".join(blocks), file.label), file.label))
    sources, title, outputs = [], "", 0
    for cell in cells:
        source = _source(cell, file.label)
        if source.strip():
            sources.append(source.strip("\n"))
        if cell.get("cell_type") == "heading":  # of nbformat 3
            title = title or source.strip()
        elif cell.get("cell_type") == "markdown":
            title = title or markdown_title(source)
        outputs += bool(cell.get("outputs"))
    if outputs:
        file.notes.add(LEFT_OUT, f"{file.label} ({outputs:,})")
    yield Row("\n\n".join(sources), title=as_title(title))


def _parsed(text: str, label: str) -> dict[str, object]:
    try:
        notebook = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{label} is not a notebook: it is not valid JSON ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise too_odd(error, label) from error
    if not isinstance(notebook, dict):
        raise UserError(f"{label} is not a notebook: it holds {kind_of_value(notebook)}.")
    return notebook


def _cells(notebook: dict[str, object], label: str) -> Iterator[dict[str, object]]:
    worksheets = notebook.get("worksheets")
    holders = worksheets if isinstance(worksheets, list) else [notebook]
    for holder in holders:
        cells = holder.get("cells") if isinstance(holder, dict) else None
        if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
            raise UserError(f"{label} is not a notebook: it has no list of cells.")
        yield from cells


def _source(cell: dict[str, object], label: str) -> str:
    """The text of a cell, which is a string or a list of lines."""
    source = cell.get("source", cell.get("input", ""))
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(
            f"{label} has a cell whose source is a {type(source).__name__}, not text: save it anew."
        )
    return "".join(lines)
