"""Documents of a corpus cut into passages, which MARGE reads and writes (papers.md 2.2).

This module cuts and numbers; who is whose evidence is the business of evidence/evidence.py.

Shapes: P passages, S tokens of a passage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retro_demo.corpus.corpus import Corpus
from retro_demo.errors import UserError


@dataclass(frozen=True)
class Passages:
    """All passages in the order of their documents; they never cross documents."""

    tokens: np.ndarray
    """int64 (P, S): the token of the language (vocabulary + its index), then text, padded with 0."""
    document: np.ndarray
    """int (P,): index into the documents of the corpus."""
    place: np.ndarray
    """int (P,): number of the passage within its document."""
    language: np.ndarray
    """int (P,): index into `languages`."""
    group: np.ndarray
    """int (P,): the same number for the same group of documents (say, translations of one text)."""
    content: np.ndarray
    """int (P,): the same number for the same text, in whatever language or document it stands."""
    held_out: np.ndarray
    """bool (P,)"""
    database_only: np.ndarray
    """bool (P,): may be evidence, never a target."""
    languages: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each passage, its language's included, padding aside: int (P,)."""
        return (self.tokens != 0).sum(axis=1)


def languages_of(corpus: Corpus) -> tuple[str, ...]:
    """The languages of a corpus' documents, sorted; "" stands for documents that name none."""
    return tuple(sorted({document.lang for document in corpus.documents}))


def cut_passages(corpus: Corpus, passage_len: int, languages: tuple[str, ...] | None = None) -> Passages:
    """Each document's tokens, cut every passage_len - 1; the language's token goes before each passage.

    All text is kept; a passage that would hold nothing but the end of the text is not made.
    languages: those of a run, whose tokens they name; None: those of the corpus, sorted. Raises
    UserError where the corpus has one that the run does not know.
    """
    of_document = [document.lang for document in corpus.documents]
    known = languages_of(corpus) if languages is None else languages
    if unknown := sorted(set(of_document) - set(known)):
        raise UserError(
            f"The run knows no language {_named(unknown)}: it knows {_named(known)}. Give documents in "
            "its languages, or train a run on these."
        )
    number = {language: i for i, language in enumerate(known)}
    size = passage_len - 1
    text, document = _text_of_documents(corpus)
    lengths = np.bincount(document, minlength=len(corpus.documents))
    starts = np.cumsum(lengths) - lengths
    where = np.arange(len(text)) - starts[document]  # within the document
    # the end of the text alone makes no passage
    alone = (where > 0) & (where % size == 0) & (where == lengths[document] - 1)
    text, document, where = text[~alone], document[~alone], where[~alone]

    first = np.flatnonzero(where % size == 0)
    passage = np.cumsum(where % size == 0) - 1
    owner = document[first]
    language = np.array([number[name] for name in of_document])[owner]
    tokens = np.zeros((len(first), passage_len), dtype=np.int64)
    tokens[:, 0] = corpus.tokenizer.vocab_size + language
    tokens[passage, 1 + where % size] = text

    groups = {group: i for i, group in enumerate(dict.fromkeys(d.group for d in corpus.documents))}
    return Passages(
        tokens=tokens,
        document=owner,
        place=where[first] // size,
        language=language,
        group=np.array([groups[document.group] for document in corpus.documents])[owner],
        content=_numbers_of_texts(tokens[:, 1:]),
        held_out=corpus.held_out[owner],
        database_only=corpus.database_only[owner],
        languages=known,
    )


def _text_of_documents(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of all documents in a row, padding aside, and the document of each."""
    chunks = corpus.chunks
    flat = chunks.tokens.reshape(-1)
    document = np.repeat(chunks.document.astype(np.int64), chunks.tokens.shape[1])
    return flat[flat != 0], document[flat != 0]


def _numbers_of_texts(tokens: np.ndarray) -> np.ndarray:
    """Equal rows have equal numbers, int (P,).

    The token that ends a text parts none: a passage has it only where it is not full of text.
    """
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in tokens], dtype=np.int64)


def _named(languages: tuple[str, ...] | list[str]) -> str:
    return ", ".join(language or "(none given)" for language in languages)
