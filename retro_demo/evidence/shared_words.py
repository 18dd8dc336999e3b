"""Which tokens of passages belong to words that many languages share: names, foreign words, and digits.

Whoever writes a translation copies them, and whoever looks for one goes by them: so neither learns anything
else from texts that are full of them. Training may take them out (`EvidenceConfig.shared_dropout`).

Shapes: P passages, S tokens.
"""

from __future__ import annotations

import re

import numpy as np

from retro_demo.evidence.passages import Passages
from retro_demo.tokenizer import WORD, Tokenizer

LEAST_LETTERS = 3
SHARE = 0.4  # of the languages, and
LEAST_LANGUAGES = 3  # so many, or all where there are fewer
DIGITS = re.compile(r"\d+")


def shared_tokens(passages: Passages, tokenizer: Tokenizer) -> np.ndarray:
    """bool (P, S): tokens of such words, and of digits; none where there is but one language.

    What is shared is learned of the passages that are not held out.
    """
    out = np.zeros(passages.tokens.shape, dtype=bool)
    count = len(passages.languages)
    if count < 2:
        return out
    size = tokenizer.vocab_size
    spelled = [tokenizer.token_bytes(token) for token in range(size)]
    raw = [[spelled[one] if one < size else b"" for one in row.tolist()] for row in passages.tokens]
    texts = [b"".join(row).decode("utf-8", errors="surrogateescape") for row in raw]
    seen: dict[str, set[int]] = {}
    for text, language, held_out in zip(texts, passages.language, passages.held_out, strict=True):
        for word in set() if held_out else set(WORD.findall(text.lower())):
            seen.setdefault(word, set()).add(int(language))
    least = max(min(LEAST_LANGUAGES, count), SHARE * count)
    shared = {word for word, where in seen.items() if len(where) >= least and len(word) >= LEAST_LETTERS}
    for row, (text, parts) in enumerate(zip(texts, raw, strict=True)):
        ends = np.cumsum([len(part) for part in parts])
        words = [one.span() for one in WORD.finditer(text) if one[0].lower() in shared]
        bounds = _in_bytes(text, sorted(words + [one.span() for one in DIGITS.finditer(text)]))
        for start, end in bounds:
            first, last = np.searchsorted(ends, (start, end - 1), side="right")
            out[row, first : last + 1] = True
    return out


def _in_bytes(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places of letters as places of bytes; the spans are sorted, and may lie within each other."""
    out, done, at = [], 0, 0
    for start, end in spans:
        at += len(text[done:start].encode("utf-8", errors="surrogateescape"))
        done = max(done, start)
        out.append((at, at + len(text[start:end].encode("utf-8", errors="surrogateescape"))))
    return out


def without(tokens: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """tokens (N, S) without those that are gone (N, S), bool: the others move together, padding behind."""
    kept = (tokens != 0) & ~gone
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, tokens, 0), order, axis=1)
