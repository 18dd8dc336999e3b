"""A visit: the address that asks for a run and a tab, links to give away, and the line at the top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.errors import UserError
from retro_demo.jobs import jobs
from retro_demo.paths import SAMPLE
from retro_demo.render import job_views, views
from retro_demo.runs.checkpoint import MargeRun, has_weights, read_any_config
from retro_demo.server import evaluations, service
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import QUIET, once_known

NOWHERE = {"tab": "", "run": ""}
TABS = ("generate", "train", "evaluate", "evidence")
COPY = """run => {
  const link = `${location.origin}${location.pathname}?run=${encodeURIComponent(run ?? '')}&tab=TAB`;
  navigator.clipboard?.writeText(link).catch(() => {});
  const words = run ? `Copied, where the browser allows it: <code>${link}</code>. It opens this run: ` +
    'one of yours in your workspace only, a shipped one for everybody.'
    : 'There is no run yet to link to. Train one first.';
  return `<p class="caption" role="status">${words}</p>`;
}"""

IN_VIEW = "(code, run) => [code, document.querySelector('#RUN')?.offsetParent ? run : null]"


@dataclass(frozen=True)
class Arrival:
    """The event after which the visitor is known, and what the address asks for."""

    event: Any
    home: Path
    visitor: gr.BrowserState
    link: gr.State
    """{"tab", "run"}, both empty where the address names none"""
    trail: gr.HTML

    def then(self, *event: Any, **how: Any) -> Any:
        return self.event.then(*event, **how)

    def opening(self, tab: gr.Tab, run: gr.Dropdown) -> Arrival:
        """The arrival after a link to `tab` (and the tabs around it) was followed: `run` holds its run."""
        around: list[tuple[Any, Any]] = []
        inner: Any = tab
        while inner is not None:
            if isinstance(inner, gr.Tab):
                around.append((inner.parent, inner.id))
            inner = inner.parent

        def follow(link: dict[str, str]) -> list[Any]:
            if link["tab"] != tab.id:
                return [gr.skip()] * (1 + len(around))
            chosen = gr.Dropdown([link["run"]], value=link["run"])
            return [chosen, *(gr.Tabs(selected=one) for _, one in around)]

        outputs = [run, *(tabs for tabs, _ in around)]
        event = self.event.then(follow, self.link, outputs, **QUIET)
        return Arrival(event, self.home, self.visitor, self.link, self.trail)

    def naming(self, tab: gr.Tab, run: gr.Dropdown) -> None:
        """Let the line at the top name the run of this tab while it is the one in view."""

        @once_known
        def name_it(code: str, name: str | None) -> Any:
            return trail_line(Workspace.open(self.home, code), name) if name else gr.skip()

        tab.select(name_it, [self.visitor, run], self.trail, **QUIET)
        # a run begun or found by a look is chosen by no hand; the tabs out of view change theirs, too
        in_view = IN_VIEW.replace("RUN", str(run.elem_id))
        run.change(name_it, [self.visitor, run], self.trail, js=in_view, **QUIET)


def asked_for(workspace: Workspace, query: Any) -> tuple[dict[str, str], str]:
    """The tab and run that an address asks for (a stranger's query), and why another tab opens, or "".

    A run that this tab cannot show opens on Train, which shows every run. Raises UserError where there is
    no such run or tab.
    """
    name, tab = str(query.get("run", ""))[:200], str(query.get("tab", "train"))[:40]
    if not name:
        return NOWHERE, ""
    known = workspace.runs()
    run = next((one for one in (name, SAMPLE + name) if one in known), "")
    if not run or tab not in TABS:
        what = f"the tab “{tab}”" if run else f"the run “{name}”"
        raise UserError(
            f"The link names {what}, which is not here. Choose a run from the lists; for one of another "
            "workspace open that workspace first, with its code, at the foot of the page."
        )
    folder = workspace.run(run)
    reads_evidence = isinstance(read_any_config(folder), MargeRun)
    unfit = ""
    if tab in ("generate", "evaluate") and not has_weights(folder):
        unfit = "it has no weights yet"
    elif tab == "evaluate" and run not in evaluations.readers(workspace):
        unfit = "it reads no neighbors, so there is no retrieval to judge"
    elif tab == "evidence" and not reads_evidence:
        unfit = "it is no MARGE, so it has no evidence"
    if unfit:
        words = f"{name} cannot be shown on the tab {tab.capitalize()}: {unfit}. It is opened on Train."
        return {"tab": "train", "run": run}, words
    return {"tab": "from-evidence" if tab == "generate" and reads_evidence else tab, "run": run}, ""


def copy_link(tab: str, run: gr.Dropdown, said: gr.HTML) -> None:
    """A button that copies a link to the chosen run on this tab; it holds no workspace code."""
    button = gr.Button("Copy a link to this run", size="sm", elem_id=f"link-{tab}")
    button.click(None, run, said, js=COPY.replace("TAB", tab))


def trail_line(workspace: Workspace, name: str) -> str:
    """The line at the top for a run: its corpus, its index, and what it is worth."""
    title, folder = service.corpus_of_run(workspace, name)
    worth = job_views.worth(jobs.status(workspace.run(name)), evaluations.measured(workspace, name))
    return views.trail(title, service.statistics(folder), name, worth)
