"""What tests of sharing share with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from places import TESTS
from train_helpers import advance, prepare

from retro_demo.cli import main

TINY = TESTS / "data" / "export_v1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_folder) -> Path:
    """A RETRO of twelve steps; do not change it."""
    run = prepare(tmp_path_factory.mktemp("runs") / "places-retro", small_folder)
    advance(run)
    return run


def told(capsys, *arguments: object) -> list[dict]:
    """The events of a verb that ends well."""
    assert main.main([*map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
