"""The names of languages in files, brought to one form."""

from __future__ import annotations

import re

LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_].*)?", re.IGNORECASE)


def as_language(tag: str) -> str:
    """`"en-US"` -> `"en"`, `"zh-hant-TW"` -> `"zh-Hant"` (BCP 47 without region); "" for what is none.

    A region makes no other language: passages of en-US and en-GB are not of two languages.
    """
    found = LANGUAGE.fullmatch(tag.strip())
    if not found:
        return ""
    return found[1].lower() + (f"-{found[2].title()}" if found[2] else "")
