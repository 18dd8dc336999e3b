"""What a MARGE run found, in a sentence: of how many searches, untrained, by words alone, beside its control.

And the tokens whose weight it learned to raise and to lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retro_demo.explain.marge_history import MovedTokens
from retro_demo.render.html_parts import esc, note, table, term, theirs

FEW_GROUPS = 100
UNCOUNTED = (
    "How often it finds the same item in another language cannot be counted: no group of held-out "
    "documents stands in two languages."
)
NO_CONTROL = "No control yet: train the same with random evidence, and its line stands here too."


def found_html(rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] | None) -> str:
    """The finding of the last of a run's re-indexes (explain/marge_history.py), and what it is to be held
    against; `control`: those of its control, None where there is none."""
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    if "recall_at_1" not in last:
        return note(UNCOUNTED)
    searches = last.get("searches", 0)
    held_out = f"{last['queries']:,} held-out documents" if "queries" in last else "held-out documents"
    trained = len(rows) > 1
    said = f"{'It' if trained else 'Untrained, it'} finds the same item in another language in "
    said += f"<b>{_count(last, searches)}</b>"
    said += f" of <b>{searches:,}</b> {term('recall@1', 'searches')}" if searches else " of the searches"
    said += f" by {held_out}" + f"; untrained <b>{_count(first, searches)}</b>" * trained
    return f'<p class="finding">{said}.</p><p class="caption">{_beside(rows, control)}</p>'


def _count(row: Mapping[str, Any], searches: int) -> str:
    share = row["recall_at_1"]
    return f"{round(share * searches):,}" if searches else f"{share:.1%}"


def _beside(rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] | None) -> str:
    """What the finding is to be held against, in shares of the same searches."""
    first, last = rows[0], rows[-1]
    told = [_change("in all", rows, "recall_at_1")]
    if "recall_at_1_words" in last:
        told.append(f"{term('words alone')} {last['recall_at_1_words']:.1%}")
    if "recall_at_1_learned" in last:
        told.append(_change(term("learned part"), rows, "recall_at_1_learned"))
    if control:
        key = "recall_at_1_learned" if "recall_at_1_learned" in first else "recall_at_1"
        told.append(_change(f"its {term('control')} with random evidence", control, key))
    if "chance" in last:
        told.append(f"by chance {last['chance']:.1%}")
    return f"Found: {', '.join(told)}." + ("" if control else f" {NO_CONTROL}")


def _change(what: str, rows: Sequence[Mapping[str, Any]], key: str) -> str:
    known = [row[key] for row in rows if key in row]
    if len(known) < 2:
        return f"{what} {known[0]:.1%}" if known else what
    return f"{what} {known[0]:.1%} → {known[-1]:.1%}"


def taught_by(groups: int, sample: str) -> str:
    """What so few groups (texts that stand in two languages) can teach; "" where there are many.

    sample: the corpus of the run as its config names it.
    """
    if groups >= FEW_GROUPS:
        return ""
    if sample == "sample:udhr44":
        words = f"{groups} articles teach “Article N” and nothing else."
    else:
        words = f"{groups:,} groups stand in two languages: few to learn meaning from."
    return f'<p class="caption">Its lesson: {words}</p>'


def tokens_html(moved: MovedTokens, step: int) -> str:
    """The tokens whose weight rose and fell most, before `step`, beside what they weighed at first."""
    if not moved.rose and not moved.fell:
        return note("All tokens still weigh what their rarity says: nothing is learned yet.")
    rows = []
    for place in range(max(len(moved.rose), len(moved.fell))):
        cells = ""
        for some in (moved.rose, moved.fell):
            if place < len(some):
                text, before, now = some[place]
                cells += f"<td><b>{theirs(text)}</b></td><td>{before:.2f} → {now:.2f}</td>"
            else:
                cells += "<td></td><td></td>"
        rows.append(f"<tr>{cells}</tr>")
    head = "<th>rose</th><th>weight</th><th>fell</th><th>weight</th>"
    said = f"Before step {step:,}, against the untrained network, where rare tokens weigh about 1."
    return f'<p class="caption">{esc(said)}</p>{table(head, rows)}'
