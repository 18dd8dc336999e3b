"""What tests of interop share with others."""

from __future__ import annotations

import json
from typing import Any

from places import TESTS
from safetensors import safe_open
from torch import Tensor

ROUGH = {"atol": 2e-5, "rtol": 0}  # float32


EXACT = {"atol": 1e-10, "rtol": 0}  # float64


def fixture(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config that a file of tests/data names, and its tensors."""
    with safe_open(TESTS / "data" / f"{name}.safetensors", "pt") as file:
        names = file.keys()
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in names}
