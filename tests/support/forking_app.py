"""app.py as a browser meets it in tests: the same program, whose jobs are forked as those of other tests."""

from __future__ import annotations

import sys

from forked import Forks

from retro_demo.jobs import lifecycle
from retro_demo.ui.serve import main

if __name__ == "__main__":
    if sys.platform == "linux":
        lifecycle.subprocess = Forks()  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
