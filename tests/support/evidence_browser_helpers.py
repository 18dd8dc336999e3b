"""What tests of evidence browser share with others."""

from __future__ import annotations

import pytest
from browser_helpers import browser, url  # noqa: F401
from evidence_helpers import build_translated, train_marge_run

from retro_demo.server.workspace import Workspace, new_code


@pytest.fixture(scope="module")
def space(shared_by_browsers) -> Workspace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(shared_by_browsers.home))
        space = Workspace.open(shared_by_browsers.home, new_code())
        corpus = build_translated(space.folder / "corpora" / "three")
        train_marge_run(space.folder / "runs" / "finder", corpus)
    return space
