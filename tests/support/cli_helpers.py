"""What tests of cli share with others."""

from __future__ import annotations

import json

from retro_demo.cli import main


def run(capsys, *arguments: object) -> tuple[int, list[dict], str]:
    """Exit code, JSON events on stdout, stderr."""
    code = main.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err
