"""What was mended or left out while documents were read: one sentence a kind, however many files it met."""

from __future__ import annotations

from collections.abc import Sequence

FIRST_NAMES = 5


class Notes:
    """Warnings about files, gathered by kind, in the order in which each kind first came up."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, sentence: str, name: str) -> None:
        """Note that `sentence`, which holds "{names}" once, is true of the file or document `name`."""
        self._names.setdefault(sentence, []).append(name)

    def take(self, other: Notes) -> None:
        """Note all that another collector has noted."""
        for sentence, names in other._names.items():
            self._names.setdefault(sentence, []).extend(names)

    def sentences(self) -> list[str]:
        """One sentence a kind, with the first names and their number where there are more."""
        return [sentence.replace("{names}", listed(names)) for sentence, names in self._names.items()]


def listed(names: Sequence[str], first: int = FIRST_NAMES) -> str:
    """`["a", "b"]` -> `"a, b"`; of many the `first` few and how many there are."""
    more = len(names) - first
    if more <= 0:
        return ", ".join(names)
    return f"{', '.join(names[:first])} and {more:,} more ({len(names):,} in all)"
