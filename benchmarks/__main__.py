"""All benchmarks, one after the other, and a table of the aims at the end; `make bench` calls this.

    .venv/bin/python -m benchmarks [PART ...] [--quick]

On 2 quiet cores the whole takes less than the budget of 45 minutes (each part's share is in PARTS, in
minutes; what it took is printed). Each part is a command of its own, with flags of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measuring import RESULTS, markdown

PARTS = {
    "training_step": 8.0,
    "generation": 10.0,
    "marge_reindex": 3.0,
    "retrieval_share": 2.0,
    "busy_neighbor": 4.0,
    "startup": 2.0,
    "embedding": 4.0,
    "index_scale": 12.0,
}
"""Minutes that each part may take on 2 quiet cores."""
BUDGET = 45.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that all of them work")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.parts) - set(PARTS)):
        parser.error(f"there is no part {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    took, failed = {}, []
    for name in chosen.parts or PARTS:
        goal = RESULTS / f"{name}.json"
        goal.unlink(missing_ok=True)
        print(f"\n## {name}", flush=True)
        begun = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if chosen.quick else [])]
        if subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, check=False).returncode:
            failed.append(name)
        took[name] = (time.perf_counter() - begun) / 60
    print("\n## All of it\n")
    rows = [(name, f"{minutes:.1f}", PARTS[name]) for name, minutes in took.items()]
    print(markdown(("part", "minutes", "of"), [*rows, ("all", f"{sum(took.values()):.1f}", BUDGET)]))
    aims = [aim for name in took for aim in aims_of(name)]
    if aims:
        rows = [(aim["what"], aim["aim"], aim["measured"], "yes" if aim["met"] else "no") for aim in aims]
        print("\n" + markdown(("aim", "wanted", "measured", "met"), rows))
    if failed:
        print(f"\nThese failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def aims_of(name: str) -> list[dict[str, str]]:
    """The aims that a part wrote down; none where it failed."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()).get("aims", []) if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
