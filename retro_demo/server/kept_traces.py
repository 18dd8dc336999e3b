"""The texts that a visitor wrote or had explained, kept in the workspace, and the examples that ship."""

from __future__ import annotations

from retro_demo.explain.tracing import Trace
from retro_demo.paths import SAMPLE
from retro_demo.server.workspace import Workspace

KEPT_TRACES = 30


def keep_trace(workspace: Workspace, name: str, trace: Trace) -> None:
    """Save a trace; of many, only the latest stay. Raises UserError where the workspace is gone."""
    workspace.check_there()
    (workspace.folder / "traces").mkdir(mode=0o700, exist_ok=True)
    trace.save(workspace.trace(name))
    others = [path for path in (workspace.folder / "traces").glob("*.json") if path.stem != name]
    others.sort(key=lambda path: path.stat().st_mtime)  # the new one stays, also where the clock was set back
    for path in others[: max(0, len(others) - (KEPT_TRACES - 1))]:
        path.unlink()
        path.with_suffix(".safetensors").unlink(missing_ok=True)


def load_trace(workspace: Workspace, name: str) -> Trace | None:
    """A kept trace, or None where it is gone."""
    path = workspace.trace(name)
    if path.with_suffix(".json").exists() and path.with_suffix(".safetensors").exists():
        return Trace.load(path)
    return None


def shown_trace(workspace: Workspace, name: str) -> tuple[str, Trace | None]:
    """The trace to show with its id: the kept one, else the example of the first shipped run."""
    shipped = [run for run in workspace.runs() if run.startswith(SAMPLE)]
    for candidate in filter(None, (name, *shipped)):
        if (trace := load_trace(workspace, candidate)) is not None:
            return candidate, trace
    return "", None
