"""A document opened at a place: where a chunk stands in its document, and the text around a place.

All offsets count characters (code points) of the document's text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro_demo.corpus.changes import find_documents
from retro_demo.corpus.store import Corpus
from retro_demo.corpus.verbatim import Place
from retro_demo.errors import UserError

MOST_SHOWN = 200_000  # characters of a document on one view


@dataclass(frozen=True)
class OpenedDocument:
    """A document at a place: text[start:end] is what it was opened at.

    text: the whole document, or MOST_SHOWN characters of it around the place; `before` and `after` are then
    left out of it, in characters. held_out: no run of the corpus was trained on it or can find it.
    """

    document: str
    title: str
    held_out: bool
    text: str
    start: int
    end: int
    before: int = 0
    after: int = 0


def open_document(corpus: Corpus, place: Place) -> OpenedDocument:
    """The document of a place, to be shown there; raises UserError where there is no such place."""
    if not 0 <= place.document < len(corpus.documents):
        raise UserError(
            f"There is no document {place.document}; the last one is {len(corpus.documents) - 1}."
        )
    one = corpus.documents[place.document]
    size = len(one.text)
    if not 0 <= place.start <= place.end <= size:
        raise UserError(
            f"{one.id} has {size:,} characters, and {place.start:,} to {place.end:,} are asked for. "
            f"Give a start of 0 or more and an end of {size:,} at most."
        )
    first = 0
    if size > MOST_SHOWN:
        first = min(max(0, place.start - MOST_SHOWN // 2), size - MOST_SHOWN)
    text = one.text[first : first + MOST_SHOWN]
    return OpenedDocument(
        one.id,
        one.title,
        bool(corpus.held_out[place.document]),
        text,
        place.start - first,
        min(place.end - first, len(text)),
        first,
        size - first - len(text),
    )


def place_in(corpus: Corpus, document: str, start: int = 0, end: int = 0) -> Place:
    """Characters start to end - 1 of a document, by its id or title; UserError where none or several fit."""
    names = find_documents(corpus, [document])
    number = next(at for at, one in enumerate(corpus.documents) if one.id == names[0])
    return Place(number, start, max(start, end))


def place_of_chunk(corpus: Corpus, chunk: int, chunks: int = 1) -> Place:
    """Where a chunk stands in its document; with chunks = 2 its continuation, too, where there is one.

    Raises UserError where the corpus has no such chunk.
    """
    if not 0 <= chunk < len(corpus.chunks):
        raise UserError(f"There is no chunk {chunk} in this corpus; it has {len(corpus.chunks):,}.")
    size = corpus.config.chunk_len
    return place_of_tokens(corpus, chunk * size, (chunk + chunks) * size)


def place_of_tokens(corpus: Corpus, first: int, end: int) -> Place:
    """Where tokens first to end - 1 stand, counted over all chunks, as far as they are of one document.

    A character that is cut by their border belongs to them.
    """
    size = corpus.config.chunk_len
    document = int(corpus.chunks.document[first // size])
    begin, after = np.searchsorted(corpus.chunks.document, [document, document + 1]) * size
    tokens = corpus.chunks.tokens.reshape(-1)
    before, own = (
        b"".join(map(corpus.tokenizer.token_bytes, part.tolist()))
        for part in (tokens[begin:first], tokens[first : min(end, after)])
    )
    begun_before = bool(own) and own[0] & 0xC0 == 0x80
    return Place(document, _characters(before) - begun_before, _characters(before + own))


def _characters(utf8: bytes) -> int:
    """How many characters begin in these bytes."""
    return int((np.frombuffer(utf8, np.uint8) & 0xC0 != 0x80).sum())
