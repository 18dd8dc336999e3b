"""The form of the Train tab: what to train on which corpus, its settings in three groups, what that costs.

Button, estimate and command stay in view while the settings are scrolled. The form is kept in the browser, so
that a reload brings it back, and can be saved to a file and loaded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from retro_demo.devices import lends_gpu
from retro_demo.errors import UserError
from retro_demo.evaluation.over_seeds import MOST_SEEDS
from retro_demo.kinds import KINDS, Kind, kind_named
from retro_demo.pretrained.bases import available_bases
from retro_demo.render import html_parts, job_views
from retro_demo.render.wording import on_page, told
from retro_demo.server import planned, run_actions, service
from retro_demo.server.limits import limits_of
from retro_demo.server.planned import STUDY, Plan
from retro_demo.server.workspace import Workspace
from retro_demo.settings import TrainConfig, whole
from retro_demo.ui.form import (
    BRIEF,
    QUIET,
    Form,
    Values,
    once_known,
    shows_errors,
)

FIRST = ("steps", "seed")
"""Settings that stand above the groups."""
OF_NEIGHBORS = (
    "num_neighbors",
    "retriever",
    "query_tokens",
    "reading",
    "lessons_kept",
    "noise",
    "neighbor_source",
)
GROUPS = ("Neighbors", "Optimizer", "Architecture")
LARGEST_FILE = 100_000  # bytes of saved settings
NO_SETTINGS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a form raises from JSON that is none."""

SEARCH = """async (text) => {
  const words = text.trim().toLowerCase();
  const groups = [...document.querySelectorAll('#groups .group')];
  const head = group => group.querySelector('button.label-wrap');
  const isOpen = group => head(group).classList.contains('open');
  for (const group of groups) {  // a closed one has nothing in it to search
    if (words && !isOpen(group)) { head(group).click(); group.dataset.opened = '1'; }
  }
  const knobs = group => group.querySelectorAll('.block[id*="knob-"]');
  for (let tries = 0; words && tries < 40 && !groups.every(group => knobs(group).length); tries++) {
    await new Promise(done => setTimeout(done, 50));
  }
  for (const group of groups) {
    let found = 0;
    for (const one of knobs(group)) {
      const hit = !words || `${one.textContent} ${one.id.replaceAll('_', ' ')}`.toLowerCase().includes(words);
      one.classList.toggle('unasked', !hit);
      found += hit;
    }
    group.classList.toggle('unasked', Boolean(words) && !found);
    if (!words && group.dataset.opened) { head(group).click(); delete group.dataset.opened; }
  }
}"""

SAVE = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'train-settings.json';
  link.click();
  URL.revokeObjectURL(link.href);
}"""


def group_of(kind: Kind, setting: str) -> str:
    """In which of the GROUPS a setting of a kind of run stands."""
    if setting in OF_NEIGHBORS:
        return "Neighbors"
    part = kind.settings()[setting]
    if part is kind.part_types()["network"]:
        return "Architecture"
    return "Optimizer" if part is TrainConfig else "Neighbors"


class PlanForm:
    """What to train: corpus, model, base, preset and settings, and what that costs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        missing = not available_bases()  # what cannot be begun here comes last
        offered = sorted(KINDS.values(), key=lambda kind: (kind.trains_pretrained and missing, kind.place))
        # where a GPU is lent to who stays on the page, nothing goes on by itself
        models = [] if lends_gpu() else [("Does retrieval help here?", STUDY)]
        models += [(kind.choice, kind.name) for kind in offered]
        self.first = models[0][1]
        kind = planned.first_kind(self.first, next(iter(available_bases()), ""))
        gr.HTML("<h2>Train</h2>")
        self.corpus = gr.Dropdown([], label="Corpus", info="Built ones only.", elem_id="train-corpus")
        self.model = gr.Radio(
            models,
            value=self.first,
            label="What",
            elem_id="model",
            elem_classes=BRIEF,
            info=_about(offered, self.first == STUDY),
        )
        with gr.Row(elem_classes="knobs"):
            self.base = gr.Dropdown(
                [],
                label="Base",
                elem_id="base",
                elem_classes=BRIEF,
                min_width=200,
                info="What to begin with. Of a reader a pretrained model, as it is or fine-tuned; of a "
                "fine-tuned model a pretrained one; else an lm. A reader and a retrofit freeze it; an lm "
                "that trains on from it for as many steps is the matched baseline.",
            )
            self.seeds = gr.Number(
                1,
                label="Seeds",
                minimum=1,
                maximum=MOST_SEEDS,
                elem_id="seeds",
                elem_classes=BRIEF,
                min_width=90,
                visible=self.first == STUDY,
                info="All is trained anew with so many seeds. The verdict is averaged over them.",
            )
        self.preset = gr.Radio(
            list(kind.presets),
            value="tiny",
            label="Size",
            elem_id="preset",
            elem_classes=BRIEF,
            info=kind.sizes,
        )
        self.forms: dict[frozenset[Any], Form] = {}  # kinds with the same settings share one
        self.tops: dict[frozenset[Any], gr.Column] = {}
        self.columns: dict[frozenset[Any], gr.Column] = {}
        self.neighbors: dict[frozenset[Any], gr.Accordion] = {}
        kinds = sorted(KINDS.values(), key=lambda one: one.place)
        for each in kinds:
            if own_settings(each) not in self.forms:
                self._add_form(each, shown=own_settings(each) == own_settings(kind))
        self.name = gr.Textbox(
            label="Name", max_lines=1, elem_id="run-name", placeholder="Empty: by corpus, model and size"
        )
        self._search_row()
        with gr.Column(elem_id="groups"):
            for own, form in self.forms.items():
                of = next(each for each in kinds if own_settings(each) == own)
                self._add_groups(of, form, shown=own == own_settings(kind))
        self._files_row()
        self._pinned()
        self.widgets = [*(widget for form in self.forms.values() for widget in form.inputs), self.seeds]

    def _search_row(self) -> None:
        self.query = gr.Textbox(
            label="Search the settings",
            max_lines=1,
            elem_id="search-settings",
            placeholder="such as learning rate",
        )

    def _add_form(self, kind: Kind, *, shown: bool) -> None:
        """The settings of a kind of run, and those of them that stand above the groups."""
        prefix, parts = f"{kind.name}-" if self.forms else "", reversed(kind.part_types().values())
        form = Form(*parts, values=kind.presets["tiny"], only=kind.settings(), prefix=prefix)
        self.forms[own_settings(kind)] = form
        with gr.Column(visible=shown) as self.tops[own_settings(kind)], gr.Row(elem_classes="knobs"):
            form.show_named(FIRST, short=True)

    def _add_groups(self, kind: Kind, form: Form, *, shown: bool) -> None:
        with gr.Column(visible=shown) as self.columns[own_settings(kind)]:
            for group in GROUPS:
                names = [n for n in form.fields if n not in FIRST and group_of(kind, n) == group]
                # the main ones first
                names.sort(key=lambda name: not form.fields[name].metadata["main"])
                closed = gr.Accordion(f"{group} ({len(names)})", open=False, elem_classes="group")
                if group == "Neighbors":
                    self.neighbors[own_settings(kind)] = closed
                with closed, gr.Row(elem_classes="knobs"):
                    if "edition" in names:
                        form.widgets["edition"] = self.edition = _edition(form)
                    form.show_named(names, short=True)

    def _files_row(self) -> None:
        with gr.Row(elem_classes="actions"):
            self.save = gr.Button("Save settings", size="sm", elem_id="save-settings")
            self.load = gr.UploadButton(
                "Load settings", size="sm", file_types=[".json"], elem_id="load-settings"
            )
        self.saved = gr.Textbox(visible=False)
        self.filled_for = gr.State([])
        """model and base that the settings were filled for"""
        self.kept = gr.BrowserState("", storage_key="retro-demo-train-form")

    def _pinned(self) -> None:
        with gr.Column(elem_id="pinned"):
            self.estimate = gr.HTML(elem_id="estimate", min_height=48)
            with gr.Row(elem_classes="actions"):
                self.start = gr.Button("Start training", variant="primary", elem_id="train", min_width=130)
                self.command = gr.Textbox(
                    label="The command that does this",
                    container=False,
                    lines=1,
                    max_lines=1,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="plan-command",
                    scale=3,
                    min_width=180,
                )

    def form(self, model: str, base: str | None = "") -> Form:
        """The form of a kind of run, or of a study with this base."""
        return self.forms[own_settings(planned.first_kind(model, base))]

    def wire(self, visitor: gr.BrowserState, arrival: Any) -> Any:
        """Returns the event after which the form is as it was before a reload."""
        planned_with = [visitor, self.model, self.preset, self.base]
        settings = [*self.widgets[:-1], self.filled_for]
        fills = {"fn": shows_errors(self.fill_for), "inputs": planned_with, "outputs": settings} | QUIET
        offered = [visitor, self.corpus, self.model, self.base]
        bases = [self.base, self.edition]
        offers = {"fn": once_known(self.offer_bases), "inputs": offered, "outputs": bases} | QUIET
        chosen = [self.corpus, self.model, self.preset, self.base]
        guessed = [visitor, *chosen, self.name, *self.widgets]
        drawn = [self.estimate, self.command, self.start, self.kept]
        guesses = {"fn": shows_errors(self.guess_named), "inputs": guessed, "outputs": drawn} | QUIET
        shown = [self.preset, self.seeds, *self._shown()]
        adapts = {"fn": shows_errors(self.adapt), "inputs": [self.model, self.preset, self.base]}
        adapts |= {"outputs": shown} | QUIET

        refits = {"fn": shows_errors(self.refit), "inputs": [*planned_with, self.filled_for]}
        refits |= {"outputs": settings} | QUIET
        self.preset.input(**fills)
        self.base.input(**adapts).then(**fills)
        # another model may begin from other runs, and has other settings even with the same base
        filled = self.model.input(**offers).then(**adapts).then(**fills)
        moved = self.corpus.change(**offers).then(**adapts).then(**refits)
        self.base.focus(once_known(self.offer_more), [visitor, self.corpus, self.model], self.base, **QUIET)
        changed = [each.change for each in (self.base, self.corpus, self.name, self.preset, *self.widgets)]
        gr.on(changed, **guesses)
        for done in (filled, moved):  # behind the offer: a base that another model has not would be refused
            done.then(**guesses)
        self.query.change(None, self.query, None, js=SEARCH)
        return self._wire_files(visitor, arrival, guesses)

    def _wire_files(self, visitor: gr.BrowserState, arrival: Any, guesses: dict[str, Any]) -> Any:
        every = [self.corpus, self.model, self.preset, self.base, self.name, *self.widgets]
        saved = self.save.click(self.as_text, every, self.saved, **QUIET)
        saved.then(None, self.saved, None, js=SAVE)
        chosen = [self.corpus, self.model, self.preset, self.base, self.filled_for]
        filled = [*chosen, self.name, *self._shown(), *self.widgets]
        loaded = self.load.upload(shows_errors(self.load_file), [visitor, self.load], filled, **QUIET)
        loaded.then(**guesses)
        back = arrival.then(once_known(self.bring_back), [visitor, self.kept], filled, **QUIET)
        back.then(**guesses)
        return back  # the lists of the tab are not to wait for more

    def _shown(self) -> list[Any]:
        """What is there for some kinds of run only."""
        return [*self.tops.values(), *self.columns.values(), *self.neighbors.values()]

    def settings(self, model: str, values: Sequence[Any], base: str | None = "") -> dict[str, Any]:
        """The settings of the model that was chosen; `values` are those of the widgets of all forms."""
        given, form = dict(zip(self.widgets, values, strict=True)), self.form(model, base)
        return form.read([given[widget] for widget in form.inputs])

    def plan(
        self,
        corpus: str | None,
        model: str,
        preset: str,
        base: str | None,
        name: str,
        values: Sequence[Any],
    ) -> Plan:
        """What is planned; raises UserError for values that are none."""
        begun = "" if model != STUDY and kind_named(model).base == "cannot" else base or ""
        seeds = values[-1]
        if model == STUDY and (not isinstance(seeds, (int, float)) or not 1 <= seeds <= MOST_SEEDS):
            raise UserError(f"Seeds is {seeds!r}; give a number from 1 to {MOST_SEEDS}.")
        many = whole(seeds, "Seeds") if model == STUDY else 1
        settings = self.settings(model, values, begun)
        return Plan(corpus or "", model, preset, begun, settings, many, name or "")

    def adapt(self, model: str, preset: str, base: str | None = "") -> Values:
        """Each model has its own presets and settings."""
        kind = planned.first_kind(model, base)
        chosen, mine = preset if preset in kind.presets else "tiny", own_settings(kind)
        return {
            self.preset: gr.Radio(list(kind.presets), value=chosen, info=kind.sizes),
            self.seeds: gr.Number(visible=model == STUDY),
            self.neighbors[mine]: gr.Accordion(visible=kind.retrieves),
            **{
                column: gr.Column(visible=own == mine)
                for columns in (self.tops, self.columns)
                for own, column in columns.items()
            },
        }

    def offer_bases(self, code: str, corpus: str | None, model: str, base: str | None) -> Values:
        """The runs that can be begun from; a retrofit needs one, the others may begin from scratch."""
        workspace = Workspace.open(self.home, code)
        offered = planned.base_choices(workspace, corpus, model)
        values = [value for _, value in offered]
        must, cannot = (model != STUDY and kind_named(model).base == word for word in ("must", "cannot"))
        keep = (must or model == STUDY) and base in values
        chosen = base if keep else next(iter(values), None)
        return {
            self.base: gr.Dropdown(offered, value=chosen, visible=not cannot),
            self.edition: gr.Dropdown(run_actions.edition_choices(workspace, corpus)),
        }

    def offer_more(self, code: str, corpus: str | None, model: str) -> Values:
        """A training may have ended since; what is chosen stays."""
        return {self.base: gr.Dropdown(planned.base_choices(Workspace.open(self.home, code), corpus, model))}

    def fill(self, code: str, model: str, preset: str, base: str | None) -> Values:
        workspace, kind = Workspace.open(self.home, code), planned.first_kind(model, base)
        preset = preset if preset in kind.presets else "tiny"
        settings = run_actions.starting_settings(workspace, kind.name, preset, base or "")
        form = self.form(model, base)
        return dict(zip(form.inputs, form.fill(settings), strict=True))

    def fill_for(self, code: str, model: str, preset: str, base: str | None) -> Values:
        """As `fill`, with the mark of what the settings were filled for."""
        return self.fill(code, model, preset, base) | {self.filled_for: [model, base]}

    def refit(self, code: str, model: str, preset: str, base: str | None, before: list[Any]) -> Values:
        """Fill the settings anew where another corpus brought another base; else they stay as they are."""
        if not code or before == [model, base]:
            return gr.skip()
        return self.fill_for(code, model, preset, base)

    def guess_named(
        self,
        code: str,
        corpus: str | None,
        model: str,
        preset: str,
        base: str | None,
        name: str,
        *values: Any,
    ) -> Values:
        """What is planned as it stands: its size and time, its command, or what is wrong with it."""
        if not code:
            return gr.skip()
        kept = {self.kept: f"{_tag(code)} {self.as_text(corpus, model, preset, base, name, *values)}"}
        label = "Find out" if model == STUDY else "Start training"
        shown = {self.start: gr.Button(label), **kept}
        kind = planned.first_kind(model, base)
        if kind.base == "must" and not base:
            words = service.no_base(Workspace.open(self.home, code), corpus, model)
            return {self.estimate: html_parts.note(words, "warning"), self.command: "", **shown}
        try:  # half-typed settings are no mistake yet: say it in place, without a toast
            plan = self.plan(corpus, model, preset, base, name, values)
            workspace = Workspace.open(self.home, code)
            parts = planned.trainings(workspace, plan)
            command = planned.command_of_plan(workspace, plan)
        except UserError as error:
            return {self.estimate: html_parts.note(on_page(error), "warning"), self.command: "", **shown}
        passes = {}
        if plan.corpus in run_actions.built_ones(workspace):
            model = parts[0].model
            passes = run_actions.passes_ahead(workspace.corpus(plan.corpus), model, dict(plan.settings))
        minutes, doubt = limits_of(self.home).minutes, planned.doubts(workspace, plan)
        size = job_views.estimates(parts, preset, minutes, passes, plan.seeds if plan.model == STUDY else 0)
        size += html_parts.note(doubt, "warning") if doubt else ""
        return {self.estimate: size, self.command: told(command), **shown}

    def guess(
        self, code: str, corpus: str | None, model: str, preset: str, base: str | None, *values: Any
    ) -> Values:
        """As `guess_named`, for a run without a name."""
        return self.guess_named(code, corpus, model, preset, base, "", *values)

    def as_text(
        self, corpus: str | None, model: str, preset: str, base: str | None, name: str, *values: Any
    ) -> str:
        """The form as JSON: what is chosen, and the values of the settings of that model."""
        given, form = dict(zip(self.widgets, values, strict=True)), self.form(model, base)
        settings = {field: given[widget] for field, widget in form.widgets.items()}
        chosen = {"corpus": corpus, "model": model, "preset": preset, "base": base or "", "name": name}
        return json.dumps(chosen | {"seeds": values[-1], "settings": settings}, indent=1)

    def load_file(self, code: str, path: str | None) -> Values:
        """Fill the form with saved settings; raises UserError for a file that is none, or not for here."""
        try:
            text = Path(path or "").read_bytes()
            if len(text) > LARGEST_FILE:
                raise ValueError
            return self.filled(code, text.decode("utf-8"), all_here=True)
        except (OSError, *NO_SETTINGS):
            raise UserError(
                "This is no file of saved settings. Choose one that Save settings made."
            ) from None

    def bring_back(self, code: str, kept: str) -> Values:
        """Fill the form as it was before a reload; what a browser kept is not believed."""
        try:
            of, _, text = kept.partition(" ")
            return self.filled(code, text) if of == _tag(code) else self._untouched(code)
        except (*NO_SETTINGS, UserError):
            return self._untouched(code)

    def _untouched(self, code: str) -> Values:
        model = self.first
        base = next(
            (value for _, value in planned.base_choices(Workspace.open(self.home, code), None, model)), ""
        )
        return {**self.adapt(model, "tiny", base), **self.fill_for(code, model, "tiny", base)}

    def filled(self, code: str, text: str, *, all_here: bool = False) -> Values:
        """The values of the widgets for a form as JSON; of corpus and base only those that are here.

        all_here: raises UserError where the corpus or the base that it names is not.
        """
        kept: Mapping[str, Any] = json.loads(text)
        workspace, model, given = Workspace.open(self.home, code), kept["model"], dict(kept["settings"])
        offered_models = [value for _, value in self.model.choices]
        if model not in offered_models:
            raise KeyError(model)
        corpora = run_actions.built_ones(workspace)
        corpus = kept["corpus"] if kept["corpus"] in corpora else None
        offered = planned.base_choices(workspace, corpus, model)
        cannot = model != STUDY and kind_named(model).base == "cannot"
        bases = [value for _, value in offered]
        if all_here and kept["corpus"] and not corpus:
            raise UserError(_not_here("corpus", kept["corpus"]))
        if all_here and kept["base"] and kept["base"] not in bases and not cannot:
            raise UserError(_not_here("base", kept["base"]))
        base = kept["base"] if kept["base"] in bases else next(iter(bases), "")
        form = self.form(model, base)
        known = {name: value for name, value in given.items() if name in form.widgets}
        form.read([known.get(name, widget.value) for name, widget in form.widgets.items()])  # or refuses
        seeds = min(max(int(kept.get("seeds") or 1), 1), MOST_SEEDS)
        return {
            **({self.corpus: gr.Dropdown(_corpora(corpora), value=corpus)} if corpus else {}),
            self.model: model,
            self.filled_for: [model, base],
            self.base: gr.Dropdown(offered, value=base, visible=not cannot),
            self.name: str(kept.get("name") or ""),
            **self.adapt(model, str(kept["preset"]), base),
            **{form.widgets[name]: value for name, value in known.items()},
            self.seeds: gr.Number(seeds, visible=model == STUDY),
        }


def _tag(code: str) -> str:
    """What tells that a kept form is of this workspace: another one has other corpora and runs."""
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def _not_here(what: str, name: Any) -> str:
    return (
        f"The file was saved with the {what} {str(name)[:200]!r}, which this workspace cannot offer. "
        f"Make or import that {what} first, or name another one in the file."
    )


def _corpora(corpora: Sequence[str]) -> list[tuple[str, str]]:
    return [(service.corpus_title(each), each) for each in corpora]


def _about(kinds: Sequence[Kind], with_study: bool) -> str:
    study = "The first trains what reads neighbors and its matched baseline, and compares them. " * with_study
    return study + "; ".join(kind.about for kind in kinds) + "."


def _edition(form: Form) -> gr.Dropdown:
    meta = form.fields["edition"].metadata
    return gr.Dropdown(
        [("none", "")],
        value="",
        label=meta["label"],
        info=meta["help"],
        elem_id="knob-edition",
        elem_classes=BRIEF,
    )


def own_settings(kind: Kind) -> frozenset[Any]:
    """What tells the settings of a kind from those of others."""
    return frozenset(kind.settings().items())
