"""Does an encoder find the same item in another language? Recall and reciprocal rank, by script too.

Documents are taken by their first passage. A query looks among all documents of one other language,
held out or not, for one of its own group (say, its translation).

Shapes: P passages, D embedding width, L languages, Q queries, C candidates.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retro_demo.corpus.corpus import Corpus
from retro_demo.evidence.passages import Passages

QUERY_BLOCK = 1024
CJK = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO")  # written together, so they count as one


def recall(
    embeddings: np.ndarray, passages: Passages, queries: np.ndarray, scripts: Sequence[str]
) -> dict[str, Any]:
    """`recall_by` with the cosine of embeddings (P, D), of any length."""
    vectors = np.asarray(embeddings, dtype=np.float64)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return recall_by(lambda own, others: vectors[own] @ vectors[others].T, passages, queries, scripts)


def recall_by(
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray],
    passages: Passages,
    queries: np.ndarray,
    scripts: Sequence[str],
) -> dict[str, Any]:
    """Figures over all pairs of a query and another language that holds its group; {} where there are none.

    scores: passage ids (Q,), (C,) -> (Q, C), more is nearer. queries bool (P,): passages whose documents
    ask, the first passage of each only. scripts: one for each of `passages.languages`.

    recall_at_1: share in which the nearest document of that language is of the query's group; mrr: mean
    of one over the rank of the best such; chance: recall_at_1 of a draw. An equal score counts as
    nearer than it, so vectors that are all the same find nothing. The first two also for pairs of one
    script and of two (`_same_script`, `_other_script`), where there are any. queries and pairs: how
    many; pool: mean number of candidates. matrix: recall_at_1 from language (row) to language
    (column) as `languages` orders them, None where there is no pair.
    """
    firsts = np.flatnonzero(passages.place == 0)
    asking = firsts[queries[firsts]]
    found = [
        _ranks(scores, passages, asking, firsts[passages.language[firsts] == language])
        for language in np.unique(passages.language[firsts])
    ]
    query, target, rank, pool, chance = np.concatenate(found, axis=1) if found else np.zeros((5, 0))
    if not len(query):
        return {}
    source, target = passages.language[query.astype(np.int64)], target.astype(np.int64)
    _, script = np.unique(np.array(scripts), return_inverse=True)
    same = script[source] == script[target]
    figures: dict[str, Any] = {}
    for name, part in (("", same | True), ("_same_script", same), ("_other_script", ~same)):
        if part.any():
            figures["recall_at_1" + name] = float(np.mean(rank[part] == 1))
            figures["mrr" + name] = float(np.mean(1 / rank[part]))
    figures["queries"] = len(np.unique(query))
    figures["pairs"] = len(query)
    figures["pool"] = float(pool.mean())
    figures["chance"] = float(chance.mean())
    count = len(passages.languages)
    cell = source * count + target
    hits, asked = (np.bincount(cell, weights, count * count) for weights in (rank == 1, None))
    cells = [hit / of if of else None for hit, of in zip(hits.tolist(), asked.tolist(), strict=True)]
    figures["languages"] = list(passages.languages)
    figures["matrix"] = [cells[i : i + count] for i in range(0, count * count, count)]
    return figures


def script_of(text: str) -> str:
    """The script that most letters of a text are of, such as "Latin"; Chinese and Japanese: "CJK".

    "" for a text without letters.
    """
    return _most(Counter(text))


def scripts_of(corpus: Corpus, languages: Sequence[str]) -> list[str]:
    """The script of each language: of most letters in its documents; "" where it has none."""
    signs = {language: Counter[str]() for language in languages}
    for document in corpus.documents:
        if document.lang in signs:
            signs[document.lang].update(document.text)
    return [_most(signs[language]) for language in languages]


def _ranks(
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray],
    passages: Passages,
    asking: np.ndarray,
    candidates: np.ndarray,
) -> np.ndarray:
    """Columns (5, n) of queries that have their group in one other language, that of all candidates.

    The query's passage id, that language, the rank of the best of the group, how many candidates
    there are, and the share of them that are of the group.
    """
    language = passages.language[candidates[0]]
    away = asking[passages.language[asking] != language]
    away = away[np.isin(passages.group[away], passages.group[candidates])]
    columns = [np.zeros((5, 0))]
    for start in range(0, len(away), QUERY_BLOCK):
        own = away[start : start + QUERY_BLOCK]
        values = scores(own, candidates)
        same = passages.group[own][:, None] == passages.group[candidates]
        best = np.where(same, values, -np.inf).max(axis=1, keepdims=True)
        rank = 1 + ((values >= best) & ~same).sum(axis=1)
        size = np.full(len(own), len(candidates))
        columns.append(np.stack([own, np.full(len(own), language), rank, size, same.mean(axis=1)]))
    return np.concatenate(columns, axis=1)


def _most(signs: Counter[str]) -> str:
    """The script that most of the counted letters are of."""
    scripts = Counter[str]()
    for sign, count in signs.items():
        if unicodedata.category(sign) in ("Lu", "Ll", "Lt", "Lo"):
            words = (
                unicodedata.name(sign, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")
            )
            scripts["CJK" if words[0] in CJK else words[0].capitalize()] += count
    # of equal counts the first in the alphabet, whatever the order of the text
    return min(scripts, key=lambda name: (-scripts[name], name), default="")
