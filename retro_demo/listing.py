"""Lists of names in sentences, short however long they are."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """`["a", "b", "c"]` -> `"a, b, c"`; of more than `shown` the first, as in `"a, b and 3 more"`."""
    more = len(names) - shown
    first = ", ".join(names[:shown])
    return f"{first} and {more:,} more" if more > 0 else first
