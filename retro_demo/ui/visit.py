"""A visit: what is chosen for the whole page and kept in its address, links, breadcrumbs, the writing lane.

In the lane one text at a time is written: others wait for it, and a visitor can stop it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.corpus.store import is_built
from retro_demo.errors import UserError
from retro_demo.jobs import lifecycle
from retro_demo.paths import SAMPLE
from retro_demo.render import html_parts, job_views
from retro_demo.runs.checkpoint import has_weights, read_any_config
from retro_demo.server import evaluations, service
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import PRIVATE, QUIET, Values, named_runs, once_known, shows_errors

NOWHERE = {"tab": "", "run": "", "corpus": ""}
TABS = ("generate", "corpus", "train", "evaluate", "evidence")
COPY = """run => {
  const link = `${location.origin}${location.pathname}?run=${encodeURIComponent(run ?? '')}&tab=TAB`;
  navigator.clipboard?.writeText(link).catch(() => {});
  const words = run ? `Copied, where the browser allows it: <code>${link}</code>. It opens this run: ` +
    'one of yours in your workspace only, a shipped one for everybody.'
    : 'There is no run yet to link to. Train one first.';
  return `<p class="caption" role="status">${words}</p>`;
}"""

KEEP = """value => {
  if (!window.retroTouched) return;  // what the page chooses on arrival is nobody's choice
  const at = new URL(location.href);
  const shown = document.querySelector('#FIELD')?.offsetParent;
  if (!shown && !SELECTED) return;
  at.searchParams.set('tab', 'TAB');
  if (value) at.searchParams.set('NAME', value.replace(/^sample:/, ''));
  else at.searchParams.delete('NAME');
  history.replaceState(history.state, '', at);
}"""
"""Keeps what is chosen in the address, so that a reload opens the same; SELECTED: its tab was just opened."""

FORGET_RUN = """() => {
  const at = new URL(location.href);
  at.searchParams.delete('run');
  history.replaceState(history.state, '', at);
}"""
"""A run is begun: a reload before it is shown opens the newest one, not the one that was chosen before."""

TOUCHED = "".join(
    f"addEventListener('{kind}', () => {{ window.retroTouched = true; }}, {{ once: true, capture: true }});"
    for kind in ("pointerdown", "keydown")
)
"""For the head of the page: notes that its visitor has done something."""

IN_VIEW = """(code, name, ...more) => {
  const shown = document.querySelector('#CHOICE')?.offsetParent;
  return [code, shown ? name : null, ...more];
}"""


FIRST = "generate"
"""The tab that a page opens on; the others are filled once it shows its text."""
AFTER_FIRST = """() => new Promise(go_on => {
  const latest = performance.now() + 10_000;
  const look = () => {
    const tab = document.querySelector('[role=tab][aria-selected=true]')?.textContent.trim().toLowerCase();
    const elsewhere = tab && tab !== 'FIRST';
    if (elsewhere || document.querySelector('#linked .text') || performance.now() > latest) go_on([]);
    else setTimeout(look, 30);
  };
  look();
})""".replace("FIRST", FIRST)
"""Waits until the page shows its first text, or another tab is in view: what fills tabs out of view would
delay it."""

Fields = Sequence[tuple[str, gr.Dropdown]]
"""Where a run or a corpus is chosen, each by the id of its tab."""


@dataclass(frozen=True)
class Arrival:
    """The event after which the visitor is known, and what the address asks for."""

    event: Any
    home: Path
    visitor: gr.BrowserState
    link: gr.State
    """{"tab", "run"}, both empty where the address names none"""
    breadcrumb: gr.HTML
    built: gr.State
    """the corpus whose build was begun on this page since Train was looked at"""
    runs: list[tuple[str, gr.Dropdown]] = field(default_factory=list)
    """where a run is chosen, by the id of its tab"""
    corpora: list[tuple[str, gr.Dropdown]] = field(default_factory=list)

    def then(self, *event: Any, **how: Any) -> Any:
        return self.event.then(*event, **how)

    def opening(self, tab: gr.Tab, run: gr.Dropdown) -> Arrival:
        """The arrival after a link to `tab` (and the tabs around it) was followed: `run` holds its run."""
        self.runs.append((str(tab.id), run))
        return self._opening(tab, run, "run")

    def opening_corpus(self, tab: gr.Tab, corpus: gr.Dropdown) -> Arrival:
        """As `opening`, of a tab on which a corpus is chosen."""
        self.corpora.append((str(tab.id), corpus))
        return self._opening(tab, corpus, "corpus")

    def choosing(self, tab: str, corpus: gr.Dropdown) -> Arrival:
        """A corpus is chosen on this tab, too; with a link that names one it is that one."""
        self.corpora.append((tab, corpus))

        def follow(link: dict[str, str]) -> Any:
            known = link["tab"] == tab and link["corpus"]
            return gr.Dropdown([link["corpus"]], value=link["corpus"]) if known else gr.skip()

        keep = KEEP.replace("TAB", tab).replace("NAME", "corpus").replace("FIELD", str(corpus.elem_id))
        corpus.change(None, corpus, None, js=keep.replace("SELECTED", "false"), **PRIVATE)
        return replace(self, event=self.event.then(follow, self.link, corpus, **QUIET))

    def _opening(self, tab: gr.Tab, choice: gr.Dropdown, name: str) -> Arrival:
        around: list[tuple[Any, Any]] = []
        inner: Any = tab
        while inner is not None:
            if isinstance(inner, gr.Tab):
                around.append((inner.parent, inner.id))
            inner = inner.parent

        def follow(link: dict[str, str]) -> list[Any]:
            if link["tab"] != tab.id:
                return [gr.skip()] * (1 + len(around))
            chosen = gr.Dropdown([link[name]], value=link[name]) if link[name] else gr.skip()
            return [chosen, *(gr.Tabs(selected=one) for _, one in around)]

        outputs = [choice, *(tabs for tabs, _ in around)]
        event = self.event.then(follow, self.link, outputs, **QUIET)
        opened = str(around[-1][1])  # the outermost tab, which the address names
        keep = KEEP.replace("TAB", opened).replace("NAME", name).replace("FIELD", str(choice.elem_id))
        if len(around) == 1:
            tab.select(None, choice, None, js=keep.replace("SELECTED", "true"), **PRIVATE)
        choice.change(None, choice, None, js=keep.replace("SELECTED", "false"), **PRIVATE)
        return replace(self, event=event if tab.id == FIRST else _after_first(event))

    def share_choices(self) -> None:
        """Let a run or corpus that is chosen on one tab be the one of all tabs that can show it."""
        for fields, of in ((self.runs, self._run_elsewhere), (self.corpora, self._corpus_elsewhere)):
            for _, chosen in fields:
                others = [(name, other) for name, other in fields if other is not chosen]
                if others:
                    moved = once_known(partial(of, others))
                    chosen.input(moved, [self.visitor, chosen], [other for _, other in others], **QUIET)

    def _run_elsewhere(self, others: Fields, code: str, run: str | None) -> Values:
        workspace = Workspace.open(self.home, code)

        def moved(tab: str) -> Any:
            if not run or not can_show(workspace, run, tab):
                return gr.skip()
            return gr.Dropdown(named_runs([run]), value=run)

        return {field: moved(tab) for tab, field in others}

    def _corpus_elsewhere(self, others: Fields, code: str, corpus: str | None) -> Values:
        workspace = Workspace.open(self.home, code)
        chosen = str(corpus)
        there = chosen in workspace.corpora() and is_built(workspace.corpus(chosen))
        moved = gr.Dropdown([(service.corpus_title(chosen), chosen)], value=chosen) if there else gr.skip()
        return {field: moved for _, field in others}

    def naming(
        self,
        tab: gr.Tab,
        choice: gr.Dropdown,
        line: Callable[..., str],
        beside: Sequence[gr.Dropdown] = (),
        when: Sequence[Any] = (),
    ) -> None:
        """Let the line at the top name the run or corpus of this tab while it is the one in view.

        line: what makes it of a workspace, the choice and the choices `beside` it; `when`: events after which
        there may be more to say.
        """

        @once_known
        def name_it(code: str, name: str | None, *more: Any) -> Any:
            return line(Workspace.open(self.home, code), name, *more) if name else gr.skip()

        known = [self.visitor, choice, *beside]
        tab.select(name_it, known, self.breadcrumb, **QUIET)
        # what is begun or found by a look is chosen by no hand; the tabs out of view change theirs, too
        in_view = IN_VIEW.replace("CHOICE", str(choice.elem_id))
        changes = [*(one.change for one in (choice, *beside)), *when]
        gr.on(changes, name_it, known, self.breadcrumb, js=in_view, **QUIET)


def _after_first(event: Any) -> Any:
    """The event, once the page shows its first text. A script is waited for where Python is called, too."""
    return event.then(_go_on, None, None, js=AFTER_FIRST, **QUIET)


def _go_on() -> None:
    pass


def can_show(workspace: Workspace, run: str, tab: str) -> bool:
    """Whether a tab can show a run of a workspace; Train shows every run."""
    if run not in workspace.runs():
        return False
    if tab == "train":
        return True
    if not has_weights(workspace.run(run)):
        return False
    if tab == "evaluate":
        return run in evaluations.readers(workspace)
    return tab in read_any_config(workspace.run(run)).kind.tabs


def asked_for(workspace: Workspace, query: Any) -> tuple[dict[str, str], str]:
    """The tab and run that an address asks for (a stranger's query), and why another tab opens, or "".

    A run that this tab cannot show opens on Train, which shows every run. Raises UserError where there is
    no such run or tab.
    """
    name, tab = str(query.get("run", ""))[:200], str(query.get("tab", "train"))[:40]
    named, corpora = str(query.get("corpus", ""))[:200], workspace.corpora()
    corpus = next((one for one in (named, SAMPLE + named) if named and one in corpora), "")
    if tab == "corpus" or not name:
        opened = tab if "tab" in query and tab in TABS else ""
        return {"tab": opened, "run": "", "corpus": corpus}, ""
    known = workspace.runs()
    run = next((one for one in (name, SAMPLE + name) if one in known), "")
    if not run or tab not in TABS:
        what = f"the tab “{tab}”" if run else f"the run “{name}”"
        raise UserError(
            f"The link names {what}, which is not here. Choose a run from the lists; for one of another "
            "workspace open that workspace first, with its code, at the foot of the page."
        )
    folder = workspace.run(run)
    tabs = read_any_config(folder).kind.tabs
    unfit = ""
    if tab in ("generate", "evaluate") and not has_weights(folder):
        unfit = "it has no weights yet"
    elif tab == "evaluate" and run not in evaluations.readers(workspace):
        unfit = "it reads no neighbors, so there is no retrieval to judge"
    elif tab == "evidence" and tab not in tabs:
        unfit = "it is no MARGE, so it has no evidence"
    if unfit:
        words = f"{name} cannot be shown on the tab {tab.capitalize()}: {unfit}. It is opened on Train."
        return {"tab": "train", "run": run, "corpus": corpus}, words
    return {"tab": tabs[0] if tab == "generate" else tab, "run": run, "corpus": corpus}, ""


def belongs(workspace: Workspace, run: str, corpus: str | None) -> bool:
    """Whether a run was trained on that corpus; so does every run where none is chosen."""
    if not corpus or corpus not in workspace.corpora():
        return True
    return service.corpus_of_run(workspace, run)[1].resolve() == workspace.corpus(corpus).resolve()


def copy_link(tab: str, run: gr.Dropdown, said: gr.HTML) -> None:
    """A button that copies a link to the chosen run on this tab; it holds no workspace code."""
    button = gr.Button("Copy a link to this run", size="sm", elem_id=f"link-{tab}")
    button.click(None, run, said, js=COPY.replace("TAB", tab))


def run_breadcrumb(workspace: Workspace, name: str) -> str:
    """The line at the top for a run: its corpus, its index, and what it is worth."""
    title, folder = service.corpus_of_run(workspace, name)
    gain = job_views.retrieval_gain(
        lifecycle.status(workspace.run(name)), evaluations.measured(workspace, name)
    )
    known = service.statistics(folder) if service.is_ready(workspace, name) else None
    return html_parts.breadcrumb(title, known, name, gain)


def train_breadcrumb(workspace: Workspace, run: str, corpus: str | None) -> str:
    """The line at the top where a corpus is trained on: it names a run only of that corpus."""
    if run in workspace.runs() and not belongs(workspace, run, corpus):
        return corpus_breadcrumb(workspace, str(corpus))
    return run_breadcrumb(workspace, run)


def corpus_breadcrumb(workspace: Workspace, name: str) -> str:
    """The line at the top for a corpus, whatever run reads it."""
    there = name in workspace.corpora()
    known = service.statistics(workspace.corpus(name)) if there else None
    return html_parts.corpus_breadcrumb(service.corpus_title(name), known)


MOST = 1_000  # texts that were asked for and have not ended; the queue of the page holds 256
FOLLOWERS = 3  # of one code: as many pages of a visitor can wait for a corpus at a time
STOPPED = "You stopped it: no text is written."
TOO_MANY = (
    f"More than {FOLLOWERS} things that you asked for wait for a corpus, so the one asked for first waits no "
    "longer. Ask again when the corpus is ready."
)


@dataclass(eq=False)
class Asked:
    """Something that a visitor asked for and that has not ended."""

    code: str
    end: str = ""
    """why it shall end, in a sentence"""


class Lane:
    """The texts that visitors asked for on one part of the page, and which of them shall end.

    Each has a token. A page keeps that of the text it asked for last, so Stop ends no text of another page
    of the same visitor.
    """

    def __init__(self, cache: ModelCache) -> None:
        self.home = cache.home
        self._asked: dict[str, Asked] = {}  # by token, the one that was asked for longest ago first
        self._followers: list[Asked] = []
        self._lock = threading.Lock()

    def waiting(self) -> Callable[..., Iterator[Any]]:
        """A handler that tells how what a run is to read comes along: nobody waits for that in the lane.

        Its inputs: the visitor's code, the run, and the other corpus that it reads where one can be chosen;
        its outputs: what is said, and the token of the text.
        """

        def wait(code: str, name: str | None, other: str = "") -> Iterator[list[Any]]:
            token = self.ask(code)
            yield [gr.skip(), token]
            for said in self.until_ready(code, token, name, other):
                yield [said, gr.skip()]

        return shows_errors(wait)

    def ask(self, code: str) -> str:
        """Note that a text is asked for; returns its token."""
        token = secrets.token_hex(8)
        self._expect(token, code)
        return token

    def until_ready(self, code: str, token: str, name: str | None, other: str = "") -> Iterator[str]:
        """What is said while that is made which a run reads for the text of a token, and whoever asked for it
        waits; nothing where all is there. Raises UserError where the text is stopped meanwhile."""
        workspace, asked = (
            Workspace.open(self.home, code),
            self._asked.get(token) or self._expect(token, code),
        )
        with self.follower(asked):
            for build in service.wait_for_corpus(workspace, name, other) if name else ():
                if name and other and asked.end == STOPPED:
                    service.stop_retokenizing(workspace, workspace.run(name), workspace.corpus(other))
                if asked.end:
                    raise UserError(asked.end)
                yield job_views.waiting(build, "The corpus is being prepared")

    def stopping(self) -> Callable[[Any, str], None]:
        """A handler that ends the text of a token, also one that waits for its turn."""

        def stop(code: Any, token: str) -> None:
            Workspace.open(self.home, code)  # refuses what is no code
            with self._lock:
                if token in self._asked and self._asked[token].code == code:
                    self._asked[token].end = STOPPED

        return shows_errors(stop)

    def expects(self, token: str) -> bool:
        """Whether the text of a token was asked for and has not ended."""
        return token in self._asked

    @contextmanager
    def text(self, code: str, token: str) -> Iterator[Callable[[], bool]]:
        """While a text is written: what says whether its visitor wants it to end."""
        asked = self._asked.get(token) or (self._expect(token, code) if token else Asked(code))
        try:
            yield lambda: bool(asked.end)
        finally:
            with self._lock:
                self._asked.pop(token, None)

    @contextmanager
    def follower(self, asked: Asked) -> Iterator[None]:
        """While a handler follows a build: of too many of one code the oldest is told to end."""
        with self._lock:
            self._followers.append(asked)
            for one in [one for one in self._followers if one.code == asked.code][:-FOLLOWERS]:
                one.end = one.end or TOO_MANY
        try:
            yield
        finally:
            with self._lock:
                self._followers.remove(asked)

    def _expect(self, token: str, code: str) -> Asked:
        with self._lock:
            asked = self._asked[token] = Asked(code)
            while len(self._asked) > MOST:  # who asked for it left before its turn
                del self._asked[next(iter(self._asked))]
        return asked
